"""What README and docs show exists: commands, links, problems, schedules, snippets of Python."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule
from fastrun.main import parsers
from tests.support.commands import fresh_cache

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str = "") -> list[str]:
    return [text for kind, text in FENCED.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """Whole lines of code blocks without their remarks, two blanks away, and spans in backticks."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    lines = [re.split(r"\s{2,}", line)[0] for line in lines]
    lines = [part.strip() for line in lines for part in line.split("&&")]
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text()))
    found = [line.removeprefix(".venv/bin/") for line in [*lines, *spans]]
    return [c for c in found if re.match(r"(fastrun|make|python) \S", c) and "..." not in c]


def shown(program: str) -> list[object]:
    return [
        pytest.param(command, id=f"{page.name}: {command}")
        for page in PAGES
        for command in dict.fromkeys(commands(page))
        if command.startswith(program + " ")
    ]


def test_commands_were_found() -> None:
    assert len(shown("fastrun")) >= 30
    assert len(shown("make")) >= 5
    assert len(shown("python")) >= 5


@pytest.mark.parametrize("command", shown("fastrun"))
def test_fastrun_knows_the_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    parser, names = parsers()
    words = shlex.split(command.replace("NAME", "direct"))[1:]
    if words == ["--version"] or (words[0] == "help" and words[1] in ("COMMAND", *names)):
        return
    if words[1:] == ["--help"] and words[0] in ("COMMAND", *names):
        return
    if len(words) == 1 and words[0] in names:
        return  # a command by its name, in running text
    parser.parse_args(words)


@pytest.mark.parametrize("command", shown("make"))
def test_make_has_the_target(command: str) -> None:
    targets = re.findall(r"^([\w./]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(command.split()[1:]) <= set(targets)


@pytest.mark.parametrize("command", shown("python"))
def test_python_finds_what_it_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    if words[0] != "-m":
        assert (ROOT / words[0]).exists()
        return
    if words[1].endswith("benchmarks.unseen"):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = importlib.import_module(words[1])
    if not words[1].startswith("fastrun.benchmarks."):
        paths = [word for word in words[2:] if "/" in word]
        assert all((ROOT / path).exists() for path in paths)
        return
    with pytest.raises(SystemExit):
        module.main(["--help"])
    options = {word for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)", FENCED.sub("", page.read_text())):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What links to a page's headings look like, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_problems_and_schedules_are_ours(page: Path) -> None:
    text = page.read_text()
    for problem in re.findall(r"conv \d[^'\"`\n)]*", text):
        ConvProblem.parse(problem)
    for schedule in re.findall(r"\b[a-z_]+\(layout=[^)\n]*\)", text):
        parse_schedule(schedule)


def test_the_problem_and_the_schedule_of_the_readme_make_a_kernel() -> None:
    readme = (ROOT / "README.md").read_text()
    (problem,) = re.findall(r"^conv .*$", readme, re.MULTILINE)
    (schedule,) = re.findall(r"^\w+\(layout=.*\)$", readme, re.MULTILINE)
    template, parsed = parse_schedule(schedule)
    template.program(ConvProblem.parse(problem), parsed, Cpu.avx512())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_import_what_exists(page: Path) -> None:
    for snippet in blocks(page, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module != "fastrun.kernels.conv.rows":
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in [*PAGES[1:], *REFERENCE]:
        assert f"]({page.relative_to(ROOT)})" in readme


def test_the_map_names_every_file_and_no_other() -> None:
    page = (ROOT / "docs" / "layout.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 25
    for folder, text in rows:
        named = set(re.findall(r"`(\w+)`", text))
        files = {path.stem for path in (ROOT / folder).glob("*.py")}
        assert files - {"__init__", "__main__"} <= named, folder
        assert named <= {path.stem for path in (ROOT / folder).rglob("*")} | {"__init__"}, folder


def test_every_machine_with_results_has_a_row() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for folder in (ROOT / "results").iterdir():
        assert f"`results/{folder.name}/`" in page


def test_the_tutorials_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_cache(tmp_path / "cache", monkeypatch)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    snippets = blocks(ROOT / "docs" / "tutorial.md", "python")
    assert len(snippets) == 3
    for i, snippet in enumerate(snippets):
        script = tmp_path / f"snippet{i}.py"
        script.write_text(snippet)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
