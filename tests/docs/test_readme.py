"""The README's algorithm works as shown; `test_docs` looks at the rest of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_texts_are_ours() -> None:
    (problem,) = re.findall(r"^conv .*$", README, re.MULTILINE)
    (schedule,) = re.findall(r"^\w+\(layout=.*\)$", README, re.MULTILINE)
    template, parsed = parse_schedule(schedule)
    template.program(ConvProblem.parse(problem), parsed, Cpu.avx512())


def test_the_algorithm_shown_is_right_and_competes(tmp_path: Path) -> None:
    algorithm, space = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for folder, code in (("kernels/conv", algorithm), ("search_spaces/conv", space)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.py").write_text(code)
    script = f"""
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.store.database import Database
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions

p = ConvProblem.parse("conv 1x5x9x12 32x3x3 s1x2 p1 d2x1 bias add relu")
with Database({str(tmp_path / "records.db")!r}) as database:
    fast_run([(p, 1)], database, Budget(trials=6), options=SearchOptions(algorithms=["rows"]))
    for r in database.records(algorithm="rows"):
        print(r.stage, r.outcome, r.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FASTRUN_ALGORITHMS": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) >= 4
    assert {line.split()[1] for line in outcomes} == {"correct"}, done.stdout
