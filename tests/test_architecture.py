"""What keeps the packages apart, and an algorithm in two files."""

import ast
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from kernels.core.template import templates
from search_spaces.space import space_for

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": set(),
    "search_spaces": {"kernels"},
    "graph": {"kernels"},
    "tuner": {"kernels", "search_spaces", "graph"},
}
# The command line is on top of everything.
EXCEPTIONS = {"tuner/commands/bench.py": {"benchmarks"}}
OURS = {*MAY_IMPORT, "benchmarks", "examples", "notebooks", "tests"}
ONLY_HERE = {
    "llvmlite": {"kernels/codegen/jit.py", "kernels/codegen/facts.py", "kernels/core/cpu.py"},
    "optuna": {"tuner/propose.py", "tuner/mirror.py"},  # to search with, to show with
    "optuna_dashboard": {"tuner/mirror.py"},
    "distributed": {"tuner/fleet.py"},
    "sqlalchemy": {f"tuner/{name}.py" for name in ("database", "store", "tables", "mirror")},
    "matplotlib": {"tuner/look.py", "tuner/plots.py", "tuner/layer_plots.py"},
    "rich": {"tuner/display.py"},
    "threadpoolctl": {"tuner/cores.py"},
    "jinja2": {"tuner/report.py"},
    "PIL": {"tuner/pictures.py"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_only_look_down(package: str) -> None:
    for path in sources(package):
        allowed = MAY_IMPORT[package] | EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
        upward = imports(path) & OURS - allowed - {package}
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize("library", ONLY_HERE)
def test_libraries_stay_in_their_files(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in sources(package)
        if library in imports(path)
    }
    assert users <= ONLY_HERE[library]


def test_kernels_import_is_light() -> None:
    code = (
        "import sys, kernels.core.template as t; t.templates();"
        "heavy = {'optuna', 'pandas', 'matplotlib', 'sqlalchemy', 'onnx'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_algorithm_has_a_space() -> None:
    p = ConvProblem.parse("conv 1x32x14x14 32x3x3 s1 p1 bias")
    for name in templates():
        assert space_for(name, p, Cpu.host()).volume >= 1


ALGORITHM = '''
"""A copy of the input: right for the identity filter only, so the sandbox must refuse it."""
from dataclasses import dataclass
from kernels.codegen.builder import Module
from kernels.core.template import KernelTemplate

@dataclass(frozen=True)
class Schedule:
    layout: str = "NCHW"
    step: int = 1

def build(p, s, cpu, io):
    module = Module(cpu)
    with module.stage("mimic", tasks=p.n * p.c) as (k, task):
        src, dst = k.tensor("src", io.src), k.tensor("dst", io.dst)
        with k.loop(p.h) as y, k.loop(0, p.w, step=s.step) as x:
            at = (task // p.c, task % p.c, y, x)
            dst.store(src.load(*at, lanes=1), *at)
    return module.program(io, lambda w: w.reshape(-1))

def why_not(p, cpu):
    return None if p.depth == 1 else "not the identity"

template = KernelTemplate("mimic", Schedule, why_not, lambda p, cpu: Schedule(), build)
'''
SPACE = """
from kernels.conv.mimic import Schedule
from search_spaces.space import Space

def space(p, cpu):
    return Space(Schedule, {"layout": ["NCHW"], "step": [1, 2]})
"""


def test_an_algorithm_is_two_files(tmp_path: Path) -> None:
    """Discovered, searched, refused as wrong and reported, with nothing else changed."""
    (tmp_path / "kernels/conv").mkdir(parents=True)
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "kernels/conv/mimic.py").write_text(ALGORITHM)
    (tmp_path / "search_spaces/mimic.py").write_text(SPACE)
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        from tuner.database import Database
        from tuner.budget import Budget
        from tuner.fastrun import fast_run
        from kernels.core.problem import ConvProblem

        if __name__ == "__main__":
            p = ConvProblem.parse("conv 1x1x8x8 1x1x1 s1 p0")
            with Database({str(tmp_path / "records.db")!r}) as database:
                fast_run([(p, 1)], database, Budget(trials=12), algorithms=["mimic"])
                for r in database.records():
                    print(r.algorithm, r.outcome)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTRUN_ALGORITHMS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mimic correctness" in done.stdout
    assert "naive correct" in done.stdout


def test_the_smallest_template_is_small() -> None:
    """naive.py is the worked example for newcomers."""
    lines = (ROOT / "kernels/conv/naive.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 45


def test_packages_have_docstrings() -> None:
    for package in MAY_IMPORT:
        assert importlib.import_module(package).__doc__
