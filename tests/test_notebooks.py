"""Every notebook runs from top to bottom with a small budget, and is stored as it was run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

nbformat = pytest.importorskip(
    "nbformat", reason="nbclient is not installed: notebooks are not run"
)
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_a_small_budget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_BUDGET", "quick")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(read(path), timeout=120, resources=resources).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_was_run(path: Path) -> None:
    """In one go, from the top, without errors; or not run at all."""
    cells = code(path)
    outputs = [output for cell in cells for output in cell.outputs]
    if not any(cell.execution_count for cell in cells):
        assert not outputs
        return
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_the_idea_takes_a_hundred_lines() -> None:
    (path,) = (ROOT / "notebooks").glob("00_*.ipynb")
    lines = [line for cell in code(path) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 100
    assert not [line for line in lines if line.startswith(("from tuner", "import tuner"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_long_functions_live_in_the_packages(path: Path) -> None:
    for cell in code(path):
        if cell.source.startswith("%%writefile"):
            continue  # a file, which happens to be shown here
        lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} is longer than ten lines"
