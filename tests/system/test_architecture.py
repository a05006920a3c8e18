"""What may import what; which libraries are declared."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.search_spaces.space import space_for

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *(
        "kernels/core",
        "kernels/codegen",
        "kernels/native",
        "kernels/conv",
        "kernels/ops",
        "kernels/attention",
        "kernels",
    ),
    "search_spaces",
    *("graph/core", "graph/reference", "graph/frontend", "graph/zoo", "graph/to_onnx"),
    *("graph/passes", "graph/plan", "graph/build", "graph/runtime", "graph", "graph/quantise"),
    *("tuner/records", "tuner/measure", "tuner/store", "tuner/machine", "tuner/model"),
    *("tuner/search", "tuner/remote", "tuner/device", "tuner/networks", "tuner/pytorch"),
    "tuner/precision",
    *("tuner/terminal", "tuner/report"),
    "tuner",
    "benchmarks",
    "fastrun",
)
"""The folders of the toolkit, lowest first. A file imports from its own folder and lower ones."""

EXCEPTIONS = {
    # `import tuner` in a script offers the names of `fastrun`, each imported when it is used.
    ("fastrun.tuner", "fastrun"),
    # `summary.plot()`: a summary draws itself.
    ("fastrun.tuner.search.summary", "fastrun.tuner.report.plots"),
    ("fastrun.tuner.search.summary", "fastrun.tuner.report.style"),
}

NOT_OF_NETWORKS = ("records", "measure", "store", "machine", "model", "search", "remote", "device")
"""Folders of `tuner` that can tune other things than networks: they import nothing of `graph`."""

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
    "matplotlib": {f"tuner/report/{name}.py" for name in ("style", "plots", "layer_plots")}
                  | {"benchmarks/accuracy/rendered.py"},
    "rich": {f"tuner/terminal/{x}.py" for x in ("display", "live", "board", "phases")},
    "onnx_ir": {"tuner/pytorch/conversion.py"},
    "threadpoolctl": {"tuner/measure/cores.py"},
    "jinja2": {"tuner/report/page.py"},
    "PIL": {"tuner/networks/pictures.py", "benchmarks/accuracy/rendered.py",
            "benchmarks/accuracy/photos.py"},
}  # fmt: skip

OPTIONAL = {"timm", "ipython", "tvm"}
"""Libraries that are used where they are installed, and that no extra asks for."""

NAMED = {"cv2": ["opencv-python-headless"]}
"""Distributions, by what is imported, of libraries that tests do not need installed."""


@functools.cache
def sources() -> list[Path]:
    """Every file of the toolkit once: the folders in `fastrun/` are links to those beside it."""
    tops = dict.fromkeys(folder.split("/")[0] for folder in FOLDERS)
    found = (path for top in tops for path in sorted((ROOT / top).rglob("*.py")))
    return [path for path in found if not any(parent.is_symlink() for parent in path.parents)]


def module(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("fastrun", *words) if words[0] != "fastrun" else words).removesuffix(
        ".__init__"
    )


@functools.cache
def modules() -> frozenset[str]:
    return frozenset(map(module, sources()))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """What a file imports, at any depth: names of our modules, and of other packages."""
    ours, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ours else str(node.module) for name in names}
    return frozenset(x if x in ours else x.split(".")[0] for x in found)


def folder(name: str) -> str:
    """The folder of a module, as `FOLDERS` names it."""
    words = name.removeprefix("fastrun.").replace(".", "/")
    inside = [f for f in FOLDERS if words == f or words.startswith(f"{f}/")]
    return max(inside, key=len, default="fastrun")


def test_imports_go_down() -> None:
    for path in sources():
        mine = FOLDERS.index(folder(module(path)))
        for other in imports(path):
            if other.startswith("fastrun") and (module(path), other) not in EXCEPTIONS:
                assert FOLDERS.index(folder(other)) <= mine, f"{module(path)} imports {other}"


def test_no_circle_of_files() -> None:
    graph = {module(path): imports(path) - {module(path)} for path in sources()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' - '.join(error.args[1])}")


def test_measuring_and_searching_know_no_networks() -> None:
    for path in sources():
        if folder(module(path)) in {f"tuner/{name}" for name in NOT_OF_NETWORKS}:
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


def declared() -> dict[str, set[str]]:
    """The files that the comments of `pyproject.toml` name, by distribution."""
    found: dict[str, set[str]] = {}
    text = (ROOT / "pyproject.toml").read_text()
    for name, comment in re.findall(r'^    "([\w-]+)\S*",\s*# (.*)$', text, re.MULTILINE):
        found.setdefault(name.lower(), set()).update(re.findall(r"\b[\w/]+(?:/|\.py)", comment))
    return found


def test_declared_libraries_are_imported_where_the_comment_says() -> None:
    for name, places in declared().items():
        for place in places:
            assert (ROOT / place).exists(), f"pyproject.toml: {name}: there is no {place}"


def test_every_library_that_is_imported_is_declared() -> None:
    distributions = NAMED | packages_distributions()
    known = {*declared(), *OPTIONAL}
    for path in sources():
        for name in imports(path) - sys.stdlib_module_names:
            if not name.startswith("fastrun"):
                owners = {x.lower().replace("_", "-") for x in distributions.get(name, [name])}
                assert owners & known, f"{module(path)} imports {name}, which is not declared"


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


def test_the_smallest_template_is_small() -> None:
    """naive.py is the worked example for newcomers."""
    lines = (ROOT / "kernels/conv/naive.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 46


def test_packages_have_docstrings() -> None:
    for name in FOLDERS:
        package = name.replace("/", ".")
        assert importlib.import_module(
            package if name == "fastrun" else f"fastrun.{package}"
        ).__doc__
