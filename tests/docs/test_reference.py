"""The reference says what the code says, and every public name says what it is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "docs" / "reference"
GENERATOR = runpy.run_path(str(HERE / "generate.py"))


@pytest.mark.parametrize("package", GENERATOR["PACKAGES"])
def test_every_public_name_has_a_docstring(package: str) -> None:
    assert not list(GENERATOR["undocumented"](package))


def test_the_stored_pages_are_up_to_date() -> None:
    pages = GENERATOR["pages"]()
    assert {path.name for path in HERE.glob("*.md")} == set(pages)
    for name, text in pages.items():
        assert (HERE / name).read_text() == text, f"{name} is old: `make docs` writes it anew"


def test_undocumented_names_are_found(tmp_path: Path) -> None:
    """Functions, classes, methods; not those that a base class or a contract explains."""
    package = tmp_path / "fastrun/package"
    package.mkdir(parents=True)
    (package / "shapes.py").write_text(
        '"""Shapes."""\n'
        "class Shape:\n"
        '    """A shape."""\n'
        "    def area(self): ...\n"
        "class Square(Shape):\n"
        '    """A square."""\n'
        "    def area(self): return 1\n"
        "    def _side(self): ...\n"
        "def measure(): ...\n"
    )
    finder = GENERATOR["undocumented"]
    root = finder.__globals__["ROOT"]
    finder.__globals__["ROOT"] = tmp_path
    try:
        assert [name.removeprefix("fastrun.package.shapes.") for name in finder("package")] == [
            "Shape.area",
            "measure",
        ]
    finally:
        finder.__globals__["ROOT"] = root
