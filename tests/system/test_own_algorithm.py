"""An algorithm is two files: the README's is right and competes, a wrong one is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

MIMIC = '''
"""A copy of the input: right for the identity filter only, so the sandbox must refuse it."""
from dataclasses import dataclass
from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.core.template import KernelTemplate

@dataclass(frozen=True)
class Schedule:
    layout: str = "NCHW"
    step: int = 1

def build(p, s, cpu, io):
    module = Module(cpu)
    @module.stage("mimic", tasks=p.n * p.c)
    def write_mimic(k: Kernel, task: Index) -> None:
        src, dst = k.tensor("src", io.src), k.tensor("dst", io.dst)
        with k.loop(p.h) as y, k.loop(0, p.w, step=s.step) as x:
            at = (task // p.c, task % p.c, y, x)
            dst.store(src.load(*at, lanes=1), *at)
    return module.program(io, lambda w: w.reshape(-1))

def why_not(p, cpu):
    return None if p.depth == 1 else "not the identity"

template = KernelTemplate("mimic", Schedule, why_not, lambda p, cpu: Schedule(), build)
'''
MIMIC_SPACE = """
from fastrun.kernels.conv.mimic import Schedule
from fastrun.search_spaces.space import Space

def space(p, cpu):
    return Space(Schedule, {"layout": ["NCHW"], "step": [1, 2]})
"""

SCRIPT = """
from fastrun import Budget, ConvProblem, Database, SearchOptions, fast_run

texts = "conv 1x5x9x12 32x3x3 s1x2 p1 d2x1 bias add relu", "conv 1x1x8x8 1x1x1 s1 p0"
problems = [(ConvProblem.parse(text), 1) for text in texts]
with Database("sqlite://") as database:
    options = SearchOptions(algorithms=["rows", "mimic"])
    fast_run(problems, database, Budget(trials=6), options=options)
    for r in database.records():
        print(r.algorithm, r.outcome)
"""


def test_two_files_elsewhere_are_found_searched_and_judged(tmp_path: Path) -> None:
    """With nothing else changed."""
    section = (ROOT / "README.md").read_text().split("## An algorithm is two files")[1]
    rows, space = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for name, algorithm, values in (("rows", rows, space), ("mimic", MIMIC, MIMIC_SPACE)):
        for folder, code in (("kernels/conv", algorithm), ("search_spaces/conv", values)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{name}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "FASTRUN_ALGORITHMS": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert outcomes.count("rows correct") >= 4
    assert outcomes.count("naive correct") >= 2
    assert {line for line in outcomes if line.startswith("mimic")} == {"mimic correctness"}
    assert {line for line in outcomes if line.startswith("rows")} == {"rows correct"}
