"""Every command once, every mistake in one line."""

import io
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import COMMANDS, main, parsers
from fastrun.tuner.measure import measurer as remeasure
from fastrun.tuner.networks.targets import Target, merged, read_target
from fastrun.tuner.records.record import Conditions, Outcome, Record
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import Progress
from fastrun.tuner.search.problem_search import ProblemSearch
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import standings
from fastrun.tuner.terminal.board import Board
from fastrun.tuner.terminal.display import screen, standings_table
from tests.support.commands import fresh_cache, short_finals
from tests.support.forking import interruptible
from tests.support.synthetic import PEAK, records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
P = "conv 1x8x8x8 8x3x3 s1 p1"
OTHER = "conv 1x8x8x8 8x1x1 s1 p0 bias"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own, with a problem tuned in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        fresh_cache(folder, patch)
        done = subprocess.run(
            [sys.executable, "-m", "fastrun", "tune", P, "--trials", "3"],
            capture_output=True, text=True, cwd=ROOT, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "tune.txt").write_text(done.stderr + done.stdout)
        yield folder


@pytest.fixture
def run(cache: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:
            code = int(str(leaving.code or 0))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_help_is_light() -> None:
    code = (
        "import sys; from fastrun.main import main\n"
        "try: main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'optuna', 'pandas', 'matplotlib', 'onnx', 'rich', 'sqlalchemy', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_every_file_is_a_command() -> None:
    files = {path.stem for path in (ROOT / "fastrun" / "commands").glob("*.py")}
    assert {name.replace("-", "_") for name in COMMANDS} == files - {"__init__"}


def test_best_needs_no_search_or_plots(cache: Path) -> None:
    code = (
        "import sys; from fastrun.main import main\n"
        f"assert main(['best', {P!r}]) == 0\n"
        "heavy = {'optuna', 'pandas', 'matplotlib', 'onnx', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_without_arguments_it_says_what_there_is(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    before, after = ("doctor", "tune", "best", "show", "plan"), ("run", "bench", "report", "db")
    for command in (*before, *after, "demo"):
        assert re.search(rf"^ +{command} +\w", out, re.MULTILINE), command


def test_tune_tells_what_happens_in_plain_lines(cache: Path) -> None:
    lines = (cache / "tune.txt").read_text().splitlines()
    events = [line for line in lines if re.match(r"\[ +\d+\.\d s\] ", line)]
    assert any("baseline naive" in line for line in events)
    assert any("new best" in line for line in events)
    assert any(line.startswith(P) and line.rstrip().endswith(_VERDICTS) for line in lines)
    assert any("stored in" in line for line in lines[-5:])
    assert "\x1b" not in "".join(lines)


def test_tune_ends_with_commands_that_parse(cache: Path) -> None:
    last = (cache / "tune.txt").read_text().splitlines()[-2:]
    commands = re.findall("`fastrun (.*?)`", "".join(last))
    assert [command.split()[0] for command in commands] == ["show", "report"]
    for command in commands:
        words = shlex.split(command)
        assert words[1] == P
        parsers()[0].parse_args(words)


_VERDICTS = ("not searched", "faster", "tie", "heuristic", "unsure")


def test_policies_that_do_not_measure(run: Run, cache: Path) -> None:
    with Database() as database:
        before = database.info().records
    code, out, _ = run("tune", P, OTHER, "--policy", "cached")
    assert code == 0
    assert re.search(rf"{P} .* measured", out)
    assert re.search(rf"{OTHER} .* heuristic ", out)
    code, out, _ = run("tune", P, "--policy", "model")
    assert code == 0
    assert "cost model" in out
    code, out, _ = run("tune", P, "--policy", "heuristic")
    assert code == 0
    assert re.search(rf"{P} .* heuristic ", out)
    with Database() as database:
        assert database.info().records == before


def test_best(run: Run) -> None:
    code, out, _ = run("best", P)
    assert code == 0
    assert "measured" in out
    code, out, _ = run("best", P, "--json")
    document = json.loads(out)
    (row,) = document["problems"]
    assert row["problem"] == P
    assert row["from"] == "measured"
    assert 0 < row["best"] <= row["naive"]
    assert document["best"] == pytest.approx(row["best"])


def test_best_of_a_network_that_was_never_measured(run: Run) -> None:
    code, out, _ = run("best", "squeezenet1.1", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["best"] is None
    assert sum(row["count"] for row in document["problems"]) == 26
    assert {row["from"] for row in document["problems"]} == {"heuristic"}


def test_show_takes_a_kernel_apart(run: Run) -> None:
    code, out, _ = run("show", P)
    assert code == 0
    for word in ("MFLOP", "naive(", "not pointwise", "hot loop", "stack reference", "predicted"):
        assert word in out, word
    assert "#APP" not in out  # the marks of inline assembly
    assert re.search(r"measured +[\d.]+ [mun]s, .* of peak", out)


def test_show_of_an_algorithm_and_of_a_schedule(run: Run) -> None:
    code, out, _ = run("show", P, "naive")
    assert code == 0
    assert "naive(layout=NCHW)" in out
    code, again, _ = run("show", P, "--schedule", "naive(layout=NCHW)", "--measure")
    assert code == 0
    assert "[given]" in again
    assert "15 samples" in again


def test_show_says_when_a_kernel_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong, crashed or too slow: what was measured of it is no measurement."""
    usual = remeasure.remeasure

    def wrong(*arguments: Any) -> Record:
        reason = "an output is off by 3.4 of their rms;\nlimit 0.001"
        none: dict[str, Any] = {"samples": (), "processes": (), "rounds": ()}
        return replace(usual(*arguments), outcome=Outcome.CORRECTNESS, reason=reason, **none)

    monkeypatch.setattr(remeasure, "remeasure", wrong)
    code, out, error = run("show", P, "--schedule", "naive(layout=NCHW)", "--measure")
    assert code != 0
    assert "measured" not in out
    assert error.strip().count("\n") == 0
    assert "(correctness): an output is off by 3.4 of their rms; limit 0.001" in error


def test_show_prints_code_alone(run: Run) -> None:
    code, out, _ = run("show", P, "naive", "--ir")
    assert code == 0
    assert "define void @naive" in out
    assert "hot loop" not in out
    code, out, _ = run("show", P, "naive", "--asm")
    assert code == 0
    assert "naive:" in out


def test_show_lists_a_network(run: Run) -> None:
    code, out, _ = run("show", "squeezenet1.1")
    assert code == 0
    assert "26 convolutions, 18 distinct" in out


def test_doctor(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("processor", "caches", "GFLOP/s on one core", "GB/s", "noise"):
        assert word in out, word


def test_report(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("report", "--out", tmp_path / "deep" / "er")
    assert code == 0
    page = Path(out.removeprefix("report: ").strip())
    assert page == tmp_path / "deep" / "er" / "report.html"
    assert P in page.read_text()


def test_database_commands(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("db", "info")
    assert code == 0
    count = int(re.search(r"(\d+) records of 1 problem on 1 machine", out)[1])  # type: ignore[index]
    for name in ("all.json", "all.csv", "all.jsonl", "all.jsonl.gz"):
        code, out, _ = run("db", "export", tmp_path / name)
        assert (code, out) == (0, f"{count} records in {tmp_path / name}\n")
    copy = tmp_path / "copy.db"
    code, out, _ = run("db", "import", tmp_path / "all.jsonl.gz", "--db", copy)
    assert (code, out) == (0, f"{count} new records in {copy}\n")
    code, out, _ = run("db", "merge", copy)
    assert code == 0
    assert out.startswith("0 new records")


def test_demo_ends_with_the_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is a tiny one here; everything else is what `make demo` runs."""
    tiny = Target("resnet18", ((ConvProblem.parse(OTHER), 2),))
    short_finals(monkeypatch)
    monkeypatch.setattr("fastrun.commands.demo.read_target", {"resnet18": tiny}.__getitem__)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("demo", "--trials", "2", "--db", tmp_path / "demo.db")
    assert code == 0
    assert "all 2 convolutions: naive" in out
    page = out.splitlines()[-1].removeprefix("report: ")
    assert page.startswith("reports/")
    assert Path(page).is_file()


def test_interrupt_ends_in_order(cache: Path, tmp_path: Path) -> None:
    words = ["-m", "fastrun", "tune", P, "--seconds", "600", "--db", str(tmp_path / "cut.db")]
    running = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=interruptible,
    )  # fmt: skip
    assert running.stderr
    # Outcomes come in batches, the naive loop's before or after the first best.
    awaited = {"baseline naive", "new best"}
    for line in running.stderr:
        awaited -= {words for words in awaited if words in line}
        if not awaited:
            break
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert "interrupted: run the same command again" in out
    assert "Traceback" not in err
    with Database(tmp_path / "cut.db") as database:
        assert database.info().records >= 2


def test_a_closed_pipe_is_no_mistake(cache: Path) -> None:
    command = f"{sys.executable} -m fastrun show '{P}' naive --ir | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "text.db").write_text("This is no database, but it is long enough to be one.\n" * 9)
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    (tmp_path / "bad.jsonl").write_text('{"problem": 1}\n')
    (tmp_path / "a file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["tun", P], "did you mean 'tune'"),
        (["tune"], "TARGET"),
        (["tune", "resnet19"], "did you mean resnet18"),
        (["tune", "no/such/file"], "no file called"),
        (["tune", "{0}/cut.onnx"], "cut.onnx"),
        (["tune", "conv 1x8x8"], "not a problem"),
        (["tune", "conv 1x8x8x8 8x3x3 q1"], "at 'q1' expected"),
        (["tune", "conv 1x8x8x8 8x9x9"], "does not fit"),
        (["tune", P, "--threads", "9999"], "9999 threads"),
        (["tune", P, "--seconds", "-1"], "not a positive number"),
        (["tune", P, "--trials", "0"], "at least 1"),
        (["tune", P, "--algorithms", "magic"], "no algorithm 'magic'"),
        (["tune", P, "--policy", "guess"], "invalid choice"),
        (["tune", P, "--db", "{0}/text.db"], "is not a database"),
        (["tune", P, "--db", "nosuch://x"], "nosuch"),
        (["best", P, "--pretty"], "did you mean --pareto"),
        (["tune", P, "--secnods=3"], "did you mean --seconds"),
        (["doctor", "resnet18"], "`fastrun doctor` takes no 'resnet18'"),
        (["best", P, "--db", "{0}/missing.db"], "no database at"),
        (["show", P, "magic"], "no algorithm 'magic'"),
        (["show", P, "depthwise"], "depthwise cannot do"),
        (["show", P, "--schedule", "naive(layout=NHWC)"], "NCHW"),
        (["show", P, "--schedule", "naive(mr=1)"], "no field 'mr'"),
        (["show", P, "direct", "--schedule", "naive(layout=NCHW)"], "no schedule of direct"),
        (["report", "conv 1x8x8x8 8x2x2"], "`fastrun tune` first"),
        (["report", "--threads", "1", "--regime", "cold-weights"], "`fastrun tune` first"),
        (["report", P, "--out", "{0}/a file"], "a file"),
        (["db"], "ACTION"),
        (["db", "export", "{0}/x.xyz"], "no format"),
        (["db", "export", "{0}/no/x.csv"], "cannot write"),
        (["db", "import", "{0}/bad.jsonl"], "line 1"),
        (["db", "import", "{0}/missing.jsonl"], "cannot read"),
        (["db", "merge", "{0}/missing.db"], "no database at"),
    ],
)
def test_mistakes_take_one_line(run: Run, files: Path, command: list[str], words: str) -> None:
    code, _, err = run(*(word.format(files) for word in command))
    assert code == 2
    assert err.startswith("fastrun: error: ")
    assert err.count("\n") == 1
    assert words in err


def test_defects_keep_their_trace(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, shapes: object) -> Target:
        raise KeyError(text)

    monkeypatch.setattr("fastrun.commands.best.read_target", broken)
    with pytest.raises(KeyError):
        run("best", P)


def test_targets_are_merged_and_keep_their_own_counts() -> None:
    network, one = read_target("squeezenet1.1"), read_target(str(ConvProblem.parse(P)))
    problem = network.problems[1][0]
    again = read_target(str(problem))
    assert network.is_network
    assert not one.is_network
    both = dict(merged([network, one, again]))
    assert len(both) == len(network.problems) + 1
    assert both[problem] == dict(network.problems)[problem] + 1


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_wider_than_the_terminal(width: int, tmp_path: Path) -> None:
    problems = [(ConvProblem.parse("conv 1x128x112x112 1000x3x3 s1 p1 bias add hardswish"), 12)]
    text = io.StringIO()
    console = Console(file=text, width=width, height=24, force_terminal=True, color_system=None)
    with Database(tmp_path / "made-up.db") as database:
        for record in records([problems[0][0]], trials=4):
            database.add(record)
        search = ProblemSearch(*problems[0], Cpu.host())
        search.replay(database.records())
        found = standings(database, problems, Conditions.here())
        newest = database.records()[-1]
    standings_table(console, found, PEAK)
    with Board(console, "a network: 1 problem", Budget(seconds=9.0)) as board:
        board(Progress("search", [search], newest, 5, 1.0, 8.0))
        board(Progress("done", [search], None, 5, 9.0, 0.0))
    shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text.getvalue())
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", shown)) <= width
    assert "0:08 left" in shown


def test_no_color_is_honoured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen().print("faster", style="bold green")
    assert "\x1b[1;32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    screen().print("faster", style="bold green")
    assert "32m" not in capsys.readouterr().out
