"""Write a network as a C library that runs without Python."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fastrun.options import database, max_weights, new_folder, shapes, shapes_of, thread_count


def options(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in network or an ONNX file")
    parser.add_argument(
        "-o",
        "--out",
        type=new_folder,
        required=True,
        metavar="DIR",
        help="the folder to write into",
    )
    parser.add_argument(
        "--target",
        type=_targets,
        default=("native",),
        metavar="A,B",
        help="kinds of processors, the best first: x86-64-v2, x86-64-v3, x86-64-v4, "
        "x86-64-v4+vnni, x86-64-v4+amx, aarch64, aarch64+dotprod, riscv64gcv, "
        "riscv64gcv+zvl256b, or native for this machine (default). The library runs the first "
        "that its processor supports",
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="follow this plan (see `fastrun plan --save`)"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="prefix of functions and files (default: the network's name)"
    )
    parser.add_argument(
        "--embed", action="store_true", help="put the weights into the library, up to 64 MB"
    )
    parser.add_argument(
        "--system",
        default="linux",
        choices=("linux", "android", "macos", "windows"),
        help="for macos and windows objects are written, which the system's own linker takes",
    )
    thread_count(parser)
    max_weights(parser)
    shapes(parser)
    database(parser)


def run(arguments: Namespace) -> int:
    """Write the files, run the library once, and say what it needs."""
    from fastrun.graph.aot.check import check
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise
    from fastrun.loading import remarks
    from fastrun.tuner.networks.export import export
    from fastrun.tuner.records.units import plural, size

    given = shapes_of(arguments)
    with remarks():
        exported = export(
            arguments.model,
            arguments.out,
            arguments.target,
            threads=arguments.threads,
            plan=arguments.plan,
            database=arguments.db,
            shapes=given,
            name=arguments.name,
            embed=arguments.embed,
            max_weights=arguments.max_weights,
            system=arguments.system,
        )
    for name, count in exported.files.items():
        print(f"{size(count):>9}  {arguments.out / name}")
    if exported.imports:
        print(f"needs of the C library: {', '.join(exported.imports)}")
    errors = check(optimise(load_network(arguments.model, given)), exported, arguments.threads)
    for built in exported.targets:
        error = errors[built.target]
        image = built.image
        checked = "not run: this processor lacks what it needs"
        if arguments.system != "linux":
            checked = f"not run: it is for {arguments.system}"
        if error is not None:
            checked = f"rms error {error:.1e} against float64"
        replaced = ""
        if built.replaced:
            replaced = f"; {plural(built.replaced, 'step')} of the plan by heuristics instead"
        print(
            f"{built.target}: {size(image.arena)} and {size(image.local)} a thread; "
            f"{checked}{replaced}"
        )
    return 0


def _targets(text: str) -> tuple[str, ...]:
    from fastrun.kernels.core.processors import NAMES

    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no target {unknown[0]!r}: use {', '.join(NAMES)}")
    return names
