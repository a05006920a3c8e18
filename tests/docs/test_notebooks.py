"""Every notebook runs from top to bottom with a small budget, and is stored as it was run."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="nbclient is not installed: notebooks are not run")
pytest.importorskip("ipykernel")

import nbformat

from notebooks.run import execute, flaws, main, read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PEERS = ("onnxruntime", "openvino", "torch", "ncnn", "MNN")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_a_small_budget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_BUDGET", "quick")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # What tqdm says where ipywidgets is not installed.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    found = list(flaws(execute(read(path))))
    if path.stem == "09_other_engines" and not any(map(find_spec, PEERS)):
        found.remove("has no figure")
    assert found == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_was_run(path: Path) -> None:
    """In one go, from the top, without errors; or not run at all."""
    if any(cell.execution_count or cell.outputs for cell in code(path)):
        assert list(flaws(read(path))) == []


PIXEL = """import base64
from IPython.display import Image
Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="))
"""


def test_a_failure_is_named_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, source in (("fails", "1 / 0"), ("tells", f"print('{ROOT}/x')"), ("good", PIXEL)):
        paths.append(tmp_path / f"{name}.ipynb")
        cells = [nbformat.v4.new_code_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), paths[-1])
    assert main([str(path) for path in paths]) == 1
    told = capsys.readouterr()
    assert "ZeroDivisionError" in told.out
    assert f"shows this machine's folder {ROOT}" in told.out
    assert told.err == "not stored: fails.ipynb, tells.ipynb\n"
    assert [len(code(path)[0].outputs) for path in paths] == [0, 0, 1]


def test_the_idea_takes_a_hundred_lines() -> None:
    (path,) = (ROOT / "notebooks").glob("00_*.ipynb")
    lines = [line for cell in code(path) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 100
    assert not [line for line in lines if line.startswith(("from fastrun.t", "import fastrun.t"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_long_functions_live_in_the_packages(path: Path) -> None:
    for cell in code(path):
        if cell.source.startswith("%%writefile"):
            continue  # a file, which happens to be shown here
        lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} is longer than ten lines"
