"""Doors: what may import what; and an algorithm in two files."""

import ast
import functools
import importlib
import os
import subprocess
import sys
import textwrap
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.search_spaces.space import space_for

ROOT = Path(__file__).parents[2]
ROOMS = (
    *(
        "kernels/core",
        "kernels/codegen",
        "kernels/native",
        "kernels/conv",
        "kernels/ops",
        "kernels",
    ),
    "search_spaces",
    *("graph/core", "graph/reference", "graph/frontend", "graph/zoo", "graph/passes"),
    *("graph/plan", "graph/build", "graph/runtime", "graph"),
    *("tuner/records", "tuner/measure", "tuner/store", "tuner/machine", "tuner/search"),
    *("tuner/remote", "tuner/networks", "tuner/terminal", "tuner/report", "tuner"),
    "benchmarks",
    "fastrun",
)
"""The folders of the toolkit, lowest first. A file imports from its own folder and lower ones."""

NOT_OF_NETWORKS = ("records", "measure", "store", "machine", "search", "remote")
"""What in `tuner` serves those who tune anything else: it imports nothing of `graph`."""

ONLY_HERE = {
    "llvmlite": {"kernels/native/compile.py", "kernels/native/library.py",
                 "kernels/native/assembly.py", "kernels/core/cpu.py"},
    "optuna": {f"tuner/search/{name}.py" for name in (
        "samplers", "gaussian_process", "sampler_choice", "parameters", "study", "storage",
        "options", "problem_search")},
    "optuna_dashboard": {"tuner/search/storage.py"},
    "distributed": {"tuner/remote/fleet.py", "tuner/remote/station.py"},
    "sqlalchemy": {"tuner/store/database.py", "tuner/store/connection.py",
                   "tuner/store/schema.py"},
    "matplotlib": {f"tuner/report/{name}.py" for name in ("style", "plots", "layer_plots")},
    "rich": {"tuner/terminal/display.py", "tuner/terminal/board.py"},
    "threadpoolctl": {"tuner/measure/cores.py"},
    "jinja2": {"tuner/report/page.py"},
    "PIL": {"tuner/networks/pictures.py"},
}  # fmt: skip


def sources() -> list[Path]:
    """Every file of the toolkit, each once: the folders in `fastrun/` are links."""
    tops = dict.fromkeys(room.split("/")[0] for room in ROOMS)
    found = (path for top in tops for path in sorted((ROOT / top).rglob("*.py")))
    return [path for path in found if not any(parent.is_symlink() for parent in path.parents)]


def module(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("fastrun", *words) if words[0] != "fastrun" else words).removesuffix(
        ".__init__"
    )


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """What a file imports anywhere in it: of ours the files, of others the package."""
    ours, found = {module(p) for p in sources()}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ours else str(node.module) for name in names}
    return frozenset(x if x in ours else x.split(".")[0] for x in found)


def room(name: str) -> str:
    """The folder of a module, as `ROOMS` names it."""
    words = name.removeprefix("fastrun.").replace(".", "/")
    inside = [r for r in ROOMS if words == r or words.startswith(f"{r}/")]
    return max(inside, key=len, default="fastrun")


def test_imports_go_down() -> None:
    for path in sources():
        mine = ROOMS.index(room(module(path)))
        for other in imports(path):
            if other.startswith("fastrun"):
                assert ROOMS.index(room(other)) <= mine, f"{module(path)} imports {other}"


def test_no_circle_of_files() -> None:
    graph = {module(path): imports(path) - {module(path)} for path in sources()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' - '.join(error.args[1])}")


def test_measuring_and_searching_know_no_networks() -> None:
    for path in sources():
        if room(module(path)) in {f"tuner/{name}" for name in NOT_OF_NETWORKS}:
            above = {name for name in imports(path) if name.startswith("fastrun.graph")}
            assert not above, f"{module(path)} imports {above}"


@pytest.mark.parametrize("library", ONLY_HERE)
def test_libraries_stay_in_their_files(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if library in imports(path) and "benchmarks" not in path.parts
    }
    assert users <= ONLY_HERE[library]


def test_kernels_import_is_light() -> None:
    code = (
        "import sys, fastrun.kernels.registry as r; r.templates();"
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
from fastrun.kernels.codegen.builder import Module
from fastrun.kernels.core.template import KernelTemplate

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
from fastrun.kernels.conv.mimic import Schedule
from fastrun.search_spaces.space import Space

def space(p, cpu):
    return Space(Schedule, {"layout": ["NCHW"], "step": [1, 2]})
"""


def test_an_algorithm_is_two_files(tmp_path: Path) -> None:
    """Discovered, searched, refused as wrong and reported, with nothing else changed."""
    (tmp_path / "kernels/conv").mkdir(parents=True)
    (tmp_path / "search_spaces/conv").mkdir(parents=True)
    (tmp_path / "kernels/conv/mimic.py").write_text(ALGORITHM)
    (tmp_path / "search_spaces/conv/mimic.py").write_text(SPACE)
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        from fastrun.tuner.store.database import Database
        from fastrun.tuner.search.budget import Budget
        from fastrun.tuner.search.fastrun import fast_run
        from fastrun.tuner.search.options import SearchOptions
        from fastrun.kernels.core.problem import ConvProblem

        if __name__ == "__main__":
            p = ConvProblem.parse("conv 1x1x8x8 1x1x1 s1 p0")
            with Database({str(tmp_path / "records.db")!r}) as database:
                options = SearchOptions(algorithms=["mimic"])
                fast_run([(p, 1)], database, Budget(trials=12), options=options)
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
    for room in ROOMS:
        package = room.replace("/", ".")
        assert importlib.import_module(
            package if room == "fastrun" else f"fastrun.{package}"
        ).__doc__
