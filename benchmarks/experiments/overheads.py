"""The costs of measuring: a call, a barrier, a job in the sandbox, storing a record.

    python benchmarks/experiments/overheads.py

Prints a line for each. The overhead of a job is its time from submission to result without the
timed blocks: transfer, loading, the checked call, comparing, calibrating and two canaries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from fastrun.kernels.codegen.builder import ARGUMENTS
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.cache import cache_root
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.kernels.registry import templates
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import Compiled, Job
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.sandbox import Compiler, Sandbox
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Errors, Outcome, Record
from fastrun.tuner.store.database import Database

PROBLEMS = ("conv 1x64x56x56 64x3x3 s1 p1 bias relu", "conv 1x512x7x7 512x3x3 s1 p1 bias relu")
CALLS = 100_000
JOBS = 20
STORED = 1000


def call_seconds(stages: int, threads: int) -> float:
    """Seconds per call of a program whose stages do nothing."""
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    head = f'target triple = "{Cpu.host().triple}"'
    ir = f"{head}\ndefine void @nothing({pointers}, i64 %begin, i64 %end) {{\n  ret void\n}}\n"
    library = Library(compile_object(ir, Cpu.host()), ["nothing"])
    cores = sorted(os.sched_getaffinity(0))[:threads]
    runner = Runner(library, [Stage("nothing", threads)] * stages, cores)
    buffers = Buffers(0, 0, 0, 0, 0, 0, local=(0,) * threads)
    return min(runner.run(buffers, threads, CALLS) for _ in range(5)) / CALLS


def job_overheads(text: str, regime: str) -> list[float]:
    """Seconds of each job without its timed blocks."""
    p, cpu, cores = ConvProblem.parse(text), Cpu.host(), Cores.split(1)
    direct = templates()["direct"]
    with Scratch() as scratch, Sandbox(cores) as sandbox, Compiler(cores, cpu) as compiler:
        operands = Operands.make(p, scratch)
        program = compiler.submit(operands, direct.text(direct.heuristic(p, cpu))).result()
        assert isinstance(program, Compiled), program
        job = Job(program, operands, regime=regime)
        sandbox.submit(job).result()
        overheads = []
        for _ in range(JOBS):
            start = time.perf_counter()
            result = sandbox.submit(job).result()
            spent = time.perf_counter() - start
            overheads.append(spent - sum(result.samples) * result.repeats)
    return overheads


def storing_seconds(folder: Path, already: int) -> list[float]:
    """Seconds of storing each of `STORED` records in a file that holds `already` others."""

    def record(number: int) -> Record:
        return Record(
            problem=PROBLEMS[number % 2],
            schedule=f"direct(layout=NCHW16c, tile_h=2, tile_w=3, cols=4, unroll={number})",
            machine=Cpu.host().fingerprint,
            threads=1,
            regime="hot",
            toolchain=toolchain(),
            ir_hash=f"{number:032}",
            outcome=Outcome.CORRECT,
            samples=tuple(1e-3 + 1e-6 * (number + i) for i in range(15)),
            errors=Errors(1e-6, 1e-7, 1e-9),
            seconds={"build": 0.03, "compile": 0.04, "verify": 0.01, "measure": 0.01},
            run="storing",
            noise=0.01,
        )

    others, path = folder / "others.jsonl", folder / f"{already}.db"
    others.write_text("".join(f"{json.dumps(record(i).to_dict())}\n" for i in range(already)))
    spent = []
    with Database(path) as database:
        database.import_file(others)
        for new in [record(already + i) for i in range(STORED)]:
            start = time.perf_counter()
            database.add(new)
            spent.append(time.perf_counter() - start)
    return spent


def main() -> None:
    about = "The costs of measuring: a call, a barrier, a job in the sandbox, storing a record."
    argparse.ArgumentParser(description=about).parse_args()
    one, four = call_seconds(1, 1), call_seconds(4, 1)
    print(f"call of one stage, 1 thread       {one * 1e9:8.1f} ns")
    print(f"each further stage, 1 thread      {(four - one) / 3 * 1e9:8.1f} ns")
    if len(os.sched_getaffinity(0)) > 1:
        print(f"call of one stage, 2 threads      {call_seconds(1, 2) * 1e9:8.1f} ns")
    for text in PROBLEMS:
        for regime in ("hot", "cold-weights"):
            median = statistics.median(job_overheads(text, regime))
            print(f"job beyond its blocks, {regime:12} {median * 1e3:6.1f} ms  {text}")
    for already in (0, 20_000):
        # In the folder of databases, which is on a disk and not in memory.
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
            spent = sorted(storing_seconds(Path(folder), already))
        print(
            f"storing a record after {already:6} {1e3 * statistics.median(spent):8.2f} ms; "
            f"99 of 100 within {1e3 * spent[STORED * 99 // 100]:.2f} ms"
        )


if __name__ == "__main__":
    main()
