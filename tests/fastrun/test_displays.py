"""What notebooks show of problems, schedules, records, plans and databases."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule, templates
from fastrun.tuner.networks.targets import Target
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import Standing
from fastrun.tuner.terminal.board import shortened
from fastrun.tuner.terminal.display import final_table, network_sums, screen
from tests.support.algorithms import first_taken
from tests.support.records import record
from tests.tuner.records.test_network_record import network_record


class Cells(HTMLParser):
    """The text of a card's cells; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title, self.facts = "", list[str]()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open.append(tag)
        if tag == "td":
            self.facts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] == "td":
            self.facts[-1] += data
        else:
            self.title += data


def shown(thing: Any) -> tuple[str, dict[str, str]]:
    """The title and the facts of what Jupyter would show."""
    text = thing._repr_html_()
    assert len(text) < 4000
    cells = Cells(text)
    return cells.title, dict(zip(cells.facts[::2], cells.facts[1::2], strict=True))


def test_a_final_without_a_verdict_shows_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"heuristic": (2e-3,) * 12, "layer times": (1e-3,) * 12}  # of one process
    final_table(screen(), network_record(samples=samples), naive=0.1)
    told = capsys.readouterr().out
    assert "layer times" in told
    assert "2.00x" in told
    assert "nan" not in told


def test_what_others_have_written_is_no_html() -> None:
    text = card("<b>", {"<script>": "a & b", "nothing": "", "none": None})
    assert "<b>" not in text
    assert "<script>" not in text
    cells = Cells(text)
    assert (cells.title, cells.facts) == ("<b>", ["<script>", "a & b"])


def test_a_problem() -> None:
    text = "conv 1x64x56x56 128x3x3 s2 p1 g2 bias"
    title, facts = shown(ConvProblem.parse(text))
    assert title == text
    assert facts["filters"] == "128 of 32x3x3, 144 KiB"
    assert facts["output"] == "1 x 128 channels of 28x28, 392 KiB"
    assert facts["work"].startswith("57.8 MFLOP, 42.8 FLOP per byte")


@pytest.mark.parametrize("name", templates())
def test_a_schedule_of_every_algorithm(name: str) -> None:
    texts = "conv 1x32x14x14 32x3x3 s1 p1 bias", "conv 1x32x14x14 32x3x3 s1 p0 bias b1"
    template = templates()[name]
    p = first_taken(template, texts, Cpu.host())
    if p is None:
        pytest.skip(f"{name} can do none of the problems")
    schedule = template.heuristic(p, Cpu.host())
    title, facts = shown(schedule)
    body = ", ".join(f"{field}={value}" for field, value in facts.items())
    assert title == name
    assert parse_schedule(f"{name}({body})") == (template, schedule)


def test_a_record() -> None:
    title, facts = shown(record())
    assert title == record().problem
    assert facts["time"] == "1.50 ms per call, 3 samples of 1.00 ms to 3.00 ms"
    assert facts["error"] == "1.0e-07 rms, 1.0e-06 at most"
    _, facts = shown(record(samples=(), outcome=Outcome.RUNTIME, reason="<gone>", errors=None))
    assert facts["outcome"] == "runtime: <gone>"
    assert not {"time", "error"} & facts.keys()


def test_a_plan() -> None:
    cpu = Cpu.host()
    graph = optimise(load_network("squeezenet1.1"))
    plan, _ = make_plan(graph, heuristic_choices(cpu), cpu)
    title, facts = shown(plan)
    assert title == f"plan of {plan.network}"
    tasks = [int(fact.split()[0]) for fact in facts.values() if "tasks" in fact]
    assert sum(tasks) == len(plan.forms)


def test_a_database(tmp_path: Path) -> None:
    with Database(tmp_path / "a & b.db") as database:
        database.add(record())
        database.add(record(7, (), outcome=Outcome.TIMEOUT, errors=None))
        title, facts = shown(database)
        assert title == str(tmp_path / "a & b.db")
        assert facts["records"] == "2, of 1 problem on 1 machine, from 0 runs"
        assert "1 timeout" in facts["outcomes"]
        table = database.frame(outcome="correct")
        assert list(table["schedule"]) == [record().schedule]
        assert "mr" in database.frame(parameters=True)


def test_what_was_not_measured_is_left_out_of_sums(capsys: pytest.CaptureFixture[str]) -> None:
    problem = ConvProblem.parse("conv 1x8x8x8 8x3x3 s1 p1")
    slow, fast = record(samples=[2e-3] * 5), record(samples=[1e-3] * 5)
    target = Target("net", ((problem, 3),))
    network_sums(screen(), target, [Standing(problem, 3, None, slow, fast)])
    told = " ".join(capsys.readouterr().out.split())
    assert told == (
        "net, all 3 convolutions: heuristic 6.00 ms, best 3.00 ms: 2.00x over the heuristic"
    )
    samples = {"heuristic": (2e-3,) * 12, "layer times": (1e-3,) * 12}
    final_table(screen(), network_record(samples=samples), naive=float("nan"))
    assert "naive" not in capsys.readouterr().out


def test_problems_that_differ_at_their_ends_look_different_on_a_narrow_board() -> None:
    texts = [f"conv 1x128x28x28 128x3x3 s1 p1 bias {end}" for end in ("relu", "add relu", "add")]
    short = [shortened(text, 30) for text in texts]
    assert len(set(short)) == 3
    assert {len(text) for text in short} == {30}
    assert shortened(texts[0], len(texts[0])) == texts[0]
