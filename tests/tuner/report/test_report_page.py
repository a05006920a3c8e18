"""The report in a browser: no errors, nothing wider than the window, in light and dark mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrun.tuner.report.network_times import BENCHED
from fastrun.tuner.report.page import write_report
from fastrun.tuner.store.database import Database
from tests.support import synthetic
from tests.support.browser import Browser, find_browser
from tests.support.synthetic import records
from tests.tuner.report.test_report import MACHINE, NETWORK, PROBLEMS

# Elements wider than the window that are not inside a scrolling element.
STICKS_OUT = """[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".wide") && !e.closest("svg"))
  .map(e => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.width && box.right > document.documentElement.clientWidth + 1)
  .map(([e]) => e.tagName + " " + e.textContent.trim().slice(0, 40))"""
SCROLLS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium installed: nobody looks at the report")
    with Browser(path, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    with Database(folder / "records.db") as database:
        for r in records([p for p, _ in PROBLEMS], trials=60):
            database.add(r)
        database.add_network(synthetic.final(MACHINE.machine))
        (folder / BENCHED).write_text(json.dumps(synthetic.bench(MACHINE.machine, NETWORK.name)))
        return write_report(database, [NETWORK], folder, MACHINE, threads=1, regime="hot")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_looks_right(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.complaints.clear()
    browser.open(page, width, 844, scheme)
    assert browser.complaints == []
    assert not browser.ask(SCROLLS)
    assert browser.ask(STICKS_OUT) == []
    assert (max(browser.ask(BACKGROUND)) < 80) == (scheme == "dark")
    figures = browser.ask("[...document.querySelectorAll('svg')].map(e => e.clientWidth)")
    assert len(figures) >= 10
    assert min(figures) > 300
    assert "as a whole" in browser.ask("document.querySelector('main h2').textContent")


def test_a_bad_page_is_noticed(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><img src=missing.png>"
        "<p style='width: 50rem'>wide</p><script>nobody()</script>"
    )
    browser.complaints.clear()
    browser.open(bad, 390, 844, "light")
    assert any("missing.png" in c or "ERR_FILE_NOT_FOUND" in c for c in browser.complaints)
    assert any("Uncaught" in c for c in browser.complaints)
    assert browser.ask(SCROLLS)
    assert browser.ask(STICKS_OUT)
