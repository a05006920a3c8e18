"""Show this machine: caches, measured peak, bandwidths, noise."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastrun.tuner.records.units import UNKNOWN, plural, significant, size

if TYPE_CHECKING:
    from fastrun.tuner.machine.probe import MachineReport


_FEATURES = {
    *("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bf16", "avx512vnni"),
    *("avx512fp16", "avxvnni", "amx-bf16", "amx-int8", "amx-tile"),
    *("neon", "fp-armv8", "dotprod", "fullfp16", "sve"),
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--refresh", action="store_true", help="measure again")
    parser.add_argument("--json", action="store_true", help="print JSON, with all details")


def run(arguments: Namespace) -> int:
    """Print what is known about this machine, and measure what is not."""
    from fastrun.kernels.core.cpu import Cpu
    from fastrun.kernels.native.cache import cache_root
    from fastrun.processor import features, shortcoming
    from fastrun.tuner.machine.noise import amount, in_words
    from fastrun.tuner.machine.probe import probe
    from fastrun.tuner.measure.confine import unconfined
    from fastrun.tuner.records.environment import Environment
    from fastrun.tuner.terminal.prose import say

    report, cpu, here = probe(arguments.refresh), Cpu.host(), Environment.host()
    if arguments.json:
        print(json.dumps({"environment": here.to_dict(), "machine": asdict(report)}, indent=1))
        return 0
    caches = (("L1", cpu.l1), ("L2", cpu.l2), ("L3", cpu.l3))
    limit = "none" if here.cpu_limit is None else f"{significant(here.cpu_limit)} cores of time"
    memory = "" if here.memory_limit is None else f", {size(here.memory_limit)} of it allowed"
    settings = {"governor": here.governor, "turbo": here.turbo, "SMT": here.smt}
    rates = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in report.read_streams.items())
    lines = [
        ("processor", f"{cpu.model}, {plural(cpu.cores, 'core')} to use; code for {cpu.name}"),
        ("vectors", f"{cpu.lanes} floats wide, {cpu.registers} registers"),
        ("features", " ".join(sorted(features(cpu) & _FEATURES)) or UNKNOWN),
        *([("", complaint)] if (complaint := shortcoming(cpu)) else []),
        ("caches", ", ".join(f"{level} {size(n)}" for level, n in caches if n)),
        ("memory", f"{size(here.memory)}{memory}"),
        ("CPU limit", limit),
        ("sandbox", unconfined() or "system calls of kernels are filtered while they are measured"),
        ("settings", ", ".join(f"{k} {v or 'unknown'}" for k, v in settings.items())),
        ("system", f"{here.system}, {here.kernel}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in here.versions.items())),
        ("", ""),
        ("measured", f"{report.time[:16]} UTC; --refresh measures again"),
        ("peak", f"{_peak_text(report)} of float32 multiply-adds"),
        ("products", f"{_dots_text(report)} GOP/s on one core"),
        ("reading", f"{rates} GB/s on one core"),
        ("noise", f"{amount(report.noise)} then, {amount(_noise_now())} now"),
        ("", in_words(report.noise)),
        ("load", ", ".join(f"{x:.2f}" for x in here.load) + " over 1, 5 and 15 minutes"),
        ("", ""),
        ("machine", f"{cpu.fingerprint} (the fingerprint, under which records are stored)"),
        ("files", str(cache_root())),
    ]
    for name, text in lines:
        say(f"{name:<11}{text}".rstrip(), indent=11)
    return 0


def _peak_text(report: MachineReport) -> str:
    one, all_cores = report.peak / 1e9, report.peak_all / 1e9
    return f"{one:.1f} GFLOP/s on one core, {all_cores:.1f} on {report.cores}"


def _dots_text(report: MachineReport) -> str:
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in report.dots.items()) or "none"


def _noise_now() -> float:
    from fastrun.tuner.measure.canary import canary

    readings = sorted(canary() for _ in range(50))
    return readings[45]
