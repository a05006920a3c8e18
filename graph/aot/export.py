"""Exports a network: a shared library, an archive, a header, weights, an example, the plan."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrun.graph.aot import ports, texts
from fastrun.graph.aot.functions import FUNCTIONS
from fastrun.graph.aot.image import Image, image
from fastrun.graph.aot.interface import SERVES, interface_ir
from fastrun.graph.aot.layout import HEAD_BYTES, WEIGHTS_ALIGN, InPlace, Interface, Variant
from fastrun.graph.aot.systems import LINUX, SYSTEMS, glue, with_glue
from fastrun.graph.build.steps import Arrangement, NumpyStep
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Graph
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import carried_out, follow_plan, make_plan, packed_bytes
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.processors import NAMES, baseline, needs, target
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.native.compile import llvm_version
from fastrun.kernels.native.elf import archive
from fastrun.kernels.native.shared import imports, link

# Weights up to so many bytes may lie in the library.
MOST_EMBEDDED = 64 << 20


class ExportError(GraphError):
    """The network cannot be exported as asked. The message is one line."""


@dataclass(frozen=True)
class Built:
    """The code of one target: `replaced` steps of the plan run by other schedules than it says."""

    target: str
    cpu: Cpu
    plan: Plan
    image: Image
    replaced: int


@dataclass(frozen=True)
class Export:
    """What was written: files with their bytes, and facts of each target."""

    name: str
    folder: Path
    files: dict[str, int]
    targets: tuple[Built, ...]
    imports: tuple[str, ...]


def export(
    graph: Graph,
    folder: Path,
    targets: Sequence[str] = ("native",),
    plans: Mapping[str, Plan] | None = None,
    name: str | None = None,
    embed: bool = False,
    threads: int = 1,
    max_weights: int | None = None,
    system: str = LINUX,
) -> Export:
    """Write an optimised graph into `folder` as a library for the `targets`, the best one first.

    The `plans` of targets are followed where the target can; heuristics choose all else, so that
    the packed weights of a target take at most `max_weights` bytes.
    `name` is the prefix of all functions and files, by default the network's. With `embed` the
    weights lie in the library. For another `system` than Linux there are objects for its linker
    instead of libraries. The same arguments give the same bytes.

    Raises:
        ExportError: a target is unknown or of another architecture than the first, the name is no
            identifier of C, the weights are too large, for the library or for `max_weights`,
            NumPy computes a node, or the interface lacks an element type.
        GraphError: the network cannot be run, or the plan is another network's.
        OSError: the folder cannot be written.
    """
    prefix = name or _identifier(graph.name)
    _check(prefix, targets, system, embed)
    named = list(dict.fromkeys(targets))
    cpus = [_on(t, system) for t in named]
    if len({cpu.triple for cpu in cpus}) > 1:
        raise ExportError("targets of one export have one architecture: export twice")
    plans = plans or {}
    built = [
        _built(graph, t, cpu, i, plans.get(t), threads, max_weights)
        for i, (t, cpu) in enumerate(zip(named, cpus, strict=True))
    ]
    weights, starts = _weights(built)
    if embed and len(weights) > MOST_EMBEDDED:
        raise ExportError(
            f"{len(weights) >> 20} MB of weights are too many to embed: leave them in their file"
        )
    facts = Interface(
        prefix, weights[:HEAD_BYTES], len(weights), f"{prefix}_weights" if embed else "",
        ports.inputs(graph), ports.outputs(graph), _in_place(built),
    )  # fmt: skip
    objects = _compiled(facts, built, starts, system)
    files = {
        f"{prefix}.h": texts.header(facts, graph.name, named).encode(),
        "example.c": texts.example(prefix, graph, embed).encode(),
        f"{prefix}.plan": str(built[0].plan).encode(),
    }
    outside = set[str]()
    if SYSTEMS[system].suffix:
        files |= _for_a_linker(prefix, system, objects)
    else:
        outside = imports([*objects.values()], [facts.embed])
        if strange := sorted(outside - set(SERVES)):
            raise ExportError(f"a kernel calls {strange[0]}, which not every C library has")
        files |= _linked(facts, system, objects, weights)
        files |= _for_builds(prefix, graph, built[0].cpu.triple, embed)
    if not embed:
        files[f"{prefix}.weights"] = weights
    _write(folder, files)
    sizes = {name: len(data) for name, data in files.items()}
    return Export(prefix, folder, sizes, tuple(built), tuple(sorted(outside)))


def _check(prefix: str, targets: Sequence[str], system: str, embed: bool) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", prefix):
        raise ExportError(f"{prefix!r} is no name for C: use a-z, 0-9 and _, a letter first")
    if unknown := [t for t in targets if t not in NAMES]:
        raise ExportError(f"unknown target {unknown[0]!r}: use {', '.join(NAMES)}")
    if system not in SYSTEMS:
        raise ExportError(f"unknown system {system!r}: use {', '.join(SYSTEMS)}")
    if SYSTEMS[system].suffix and embed:
        raise ExportError(f"weights lie in their file on {system}: leave out --embed")


def _weights(built: Sequence[Built]) -> tuple[bytes, list[int]]:
    """The weights of all targets behind their head, and where those of each begin."""
    body, starts = b"", list[int]()
    for b in built:
        body = body.ljust(-(-len(body) // WEIGHTS_ALIGN) * WEIGHTS_ALIGN, b"\0")
        starts.append(WEIGHTS_ALIGN + len(body))
        body += b.image.weights
    return _head(built, body).ljust(WEIGHTS_ALIGN, b"\0") + body, starts


def _compiled(
    facts: Interface, built: Sequence[Built], starts: Sequence[int], system: str
) -> dict[str, bytes]:
    """The objects of the interface and of each target's code, by the names of their files."""
    variants = [
        Variant(b.target, b.image.steps, b.image.loose, b.image.count, b.image.arena,
                b.image.local, start, len(b.image.weights), needs(b.cpu))
        for b, start in zip(built, starts, strict=True)
    ]  # fmt: skip
    base = _under(system, baseline(built[0].cpu.machine))
    interface, suffix = interface_ir(facts, base.triple, variants), SYSTEMS[system].suffix
    if suffix:
        interface = with_glue(interface, facts.prefix)
    objects = compile_all([(interface, base), *((b.image.ir, b.cpu) for b in built)])
    names = ["interface", *(f"code{i}" for i in range(len(built)))]
    return {f"{x}.{suffix or 'o'}": data for x, data in zip(names, objects, strict=True)}


def _for_a_linker(prefix: str, system: str, objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of an export that another system's linker completes."""
    makefile = texts.objects_makefile(prefix, [*objects], SYSTEMS[system].libraries)
    return {
        **objects,
        f"{prefix}_os.c": glue(prefix).encode(),
        "Makefile": makefile.encode(),
    }


def _linked(
    facts: Interface, system: str, objects: Mapping[str, bytes], weights: bytes
) -> dict[str, bytes]:
    """The shared library; the archive too, if the weights are in a file of their own."""
    library = f"lib{facts.prefix}.so"
    exports = [f"{facts.prefix}_{f}" for f in FUNCTIONS]
    blobs = {facts.embed: weights} if facts.embed else {}
    parts, needed = [*objects.values()], SYSTEMS[system].needed
    files = {library: link(library, parts, exports, blobs, needed)}
    return files if facts.embed else files | {f"lib{facts.prefix}.a": archive(objects)}


def _for_builds(prefix: str, graph: Graph, triple: str, embed: bool) -> dict[str, bytes]:
    """The files that say to make, pkg-config, CMake and Python how the library is used."""
    made = {
        "Makefile": texts.makefile(prefix, triple),
        f"{prefix}.pc": texts.pkg_config(prefix, graph),
        f"{prefix}-config.cmake": texts.cmake(prefix),
        f"{prefix}.py": texts.loader(prefix, graph, embed),
    }
    return {name: text.encode() for name, text in made.items()}


def _on(name: str, system: str) -> Cpu:
    """The processor of a target under a system, which may have other registers than the target."""
    cpu = target(name)
    found = _under(system, cpu)
    if name != "native" and needs(cpu).tiles and not needs(found).tiles:
        raise ExportError(
            f"code for {system} has no tile registers (AMX): export for x86-64-v4+vnni"
        )
    return found


def _under(system: str, cpu: Cpu) -> Cpu:
    found = SYSTEMS[system].of(cpu)
    if found is None:
        raise ExportError(f"{system} has no {cpu.machine}: export for another target")
    return found


def _built(
    graph: Graph,
    name: str,
    cpu: Cpu,
    number: int,
    plan: Plan | None,
    threads: int,
    max_weights: int | None,
) -> Built:
    made, arrangement = _arranged(graph, cpu, plan, threads, max_weights)
    by_numpy = [step for step in arrangement.steps if isinstance(step, NumpyStep)]
    if by_numpy:
        others = f" (and {len(by_numpy) - 1} more)" if by_numpy[1:] else ""
        raise ExportError(
            f"node {by_numpy[0].node.label}{others} has no kernel and is computed by NumPy, "
            "which a library lacks: replace it before export"
        )
    done = carried_out(made, arrangement)
    replaced = sum(made.forms[x].algorithm != form.algorithm for x, form in done.forms.items())
    if plan and max_weights is not None and packed_bytes(arrangement) > max_weights:
        raise ExportError(
            f"the plan for {name} packs more than {max_weights / 1e6:.1f} MB of weights: plan "
            "again with this limit"
        )
    try:
        types = {x.name: x.dtype for x in (*ports.inputs(graph), *ports.outputs(graph))}
    except KeyError as error:
        raise ExportError(
            f"an input or output has elements of {error}, which a library cannot take: "
            "convert it in the model"
        ) from None
    return Built(name, cpu, done, image(arrangement, cpu, types, f"isa{number}"), replaced)


def _arranged(
    graph: Graph, cpu: Cpu, plan: Plan | None, threads: int, max_weights: int | None
) -> tuple[Plan, Arrangement]:
    if plan is None:
        return make_plan(
            graph, heuristic_choices(cpu), cpu, threads=threads, max_weights=max_weights
        )
    return plan, follow_plan(graph, plan, cpu)


def _in_place(built: Sequence[Built]) -> list[InPlace | None]:
    """How inputs and outputs lie that the code of all targets uses where they are."""
    each = zip(*(b.image.in_place for b in built), strict=True)
    return [places[0] if len({*places}) == 1 else None for places in each]


def _head(built: Sequence[Built], body: bytes) -> bytes:
    """What identifies the weights: of which plan, code, compiler and values they are."""
    digest = hashlib.sha256(llvm_version().encode())
    for b in built:
        digest.update(f"{b.target} {b.image.ir}".encode())
    digest.update(body)
    return (b"fastrun weights 1\0".ljust(32, b"\0") + digest.digest())[:HEAD_BYTES]


def _identifier(name: str) -> str:
    text = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
    return text if text[:1].isalpha() else f"net_{text}".rstrip("_")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files or none: into a folder beside, file by file, and then into place."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        for name in files:
            os.replace(beside / name, folder / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
