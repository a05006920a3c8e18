"""Winners that come with the package: which are shipped, and when a network runs them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun import load
from fastrun.benchmarks import pretuned as renewed
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.search_spaces.untried import Untried
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.store import exchange, pretuned
from fastrun.tuner.store.database import Database
from tests.support.graph_models import model, node, normal
from tests.support.records import placed, record

CPU = Cpu.host()
P = ConvProblem.parse("conv 1x32x12x12 48x3x3 s1 p1 bias")
TEMPLATE, USUAL = heuristic_choice(P, CPU)


def neighbour(p: ConvProblem) -> str:
    """A schedule one step from the heuristic's."""
    template, usual = heuristic_choice(p, CPU)
    return template.text(next(Untried(space_for(template.name, p, CPU), 0).neighbours(usual)))


HEURISTIC, OTHER = TEMPLATE.text(USUAL), neighbour(P)


def final(schedule: str, seconds: float, threads: int = 1, **fields: object) -> Record:
    """Three processes, four rounds each, of a final on this machine."""
    usual: dict[str, object] = {
        "problem": str(P),
        "machine": CPU.fingerprint,
        "toolchain": toolchain(),
        "threads": threads,
        "stage": Stage.FINAL,
        "run": "final",
        "heuristic": schedule == HEURISTIC,
        **placed(12, 3),
    }
    samples = [seconds * (1 + 0.001 * (i % 3)) for i in range(12)]
    return record(schedule=schedule, samples=samples, **usual | fields)


def ship(folder: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretuned, "FOLDER", folder)
    exchange.write(folder / f"{pretuned.kind(CPU)}.jsonl.gz", "jsonl", records, [])


def test_only_surely_faster_winners_in_the_same_layouts_are_shipped() -> None:
    usual, better = final(HEURISTIC, 1e-3), final(OTHER, 0.8e-3)
    moved = TEMPLATE.text(replace(USUAL, layout="NHWC"))
    assert list(pretuned.worth_shipping([usual, better])) == [(usual, better)]
    for none in (
        [usual, final(OTHER, 0.99e-3)],
        [usual, final(moved, 0.5e-3)],
        [better],
        [usual, replace(better, stage=Stage.RACE)],
        [usual, replace(better, run="another")],
    ):
        assert list(pretuned.worth_shipping(none)) == []


def test_they_count_for_the_same_heuristic_processor_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path, [final(HEURISTIC, 1e-3, 2), final(OTHER, 0.8e-3, 2)], monkeypatch)
    found = pretuned.pretuned(P, CPU, 2, HEURISTIC)
    assert found is not None
    assert found[1].schedule == OTHER
    assert pretuned.pretuned(P, CPU, 1, HEURISTIC) is None
    assert pretuned.pretuned(P, CPU, 2, OTHER) is None
    assert pretuned.pretuned(P, replace(CPU, name="another"), 2, HEURISTIC) is None


@pytest.mark.parametrize("machine", [CPU.fingerprint, "0" * 16])
def test_other_code_than_was_measured_does_not_run(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine that measured it, and on another of its kind."""
    old: dict[str, object] = {"toolchain": toolchain().replace("kernels ", "kernels 0")}
    of_today = {
        text: TEMPLATE.program(P, parse_schedule(text)[1], CPU).ir_hash
        for text in (HEURISTIC, OTHER)
    }
    for name, found in (("same", True), ("other", False)):
        (folder := tmp_path / name).mkdir()
        hashes = of_today if found else dict.fromkeys(of_today, "gone")
        made = [
            final(text, seconds, **old, machine=machine, ir_hash=hashes[text])
            for text, seconds in ((HEURISTIC, 1e-3), (OTHER, 0.8e-3))
        ]
        ship(folder, made, monkeypatch)
        assert (pretuned.pretuned(P, CPU, 1, HEURISTIC) is not None) == found


def test_the_file_is_made_anew_of_what_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A winner over another heuristic goes, one of a database comes, others stay."""
    q = ConvProblem.parse("conv 1x32x20x20 48x3x3 s1 p1 bias")
    template, usual = heuristic_choice(q, CPU)
    fast = neighbour(q)
    other = {"problem": "conv 1x32x30x30 48x3x3 s1 p1 bias"}  # whose heuristic differs
    before = [final(HEURISTIC, 1e-3), final(OTHER, 0.8e-3)]
    gone = [final(fast, 1e-3, **other, heuristic=True), final(HEURISTIC, 0.8e-3, **other)]
    gone[1] = replace(gone[1], heuristic=False)
    ship(tmp_path, [*before, *gone], monkeypatch)
    new = {"problem": str(q)}
    with Database(tmp_path / "tuned.db") as database:
        database.add(final(template.text(usual), 1e-3, **new, heuristic=True))
        database.add(final(fast, 0.7e-3, **new))
    assert renewed.main([str(tmp_path / "tuned.db"), "--write"]) == 0
    assert "2 winners before, 2 now" in capsys.readouterr().out
    records, _ = exchange.read(pretuned.file_for(CPU))
    assert {r.problem for r in records} == {str(P), str(q)}


def test_a_network_runs_them_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path))
    weights = {"w": normal(48, 32, 3, 3), "b": normal(48)}
    convolution = node("Conv", "x w b", "y", pads=[1, 1, 1, 1])
    net = model([convolution], weights, shape=(1, 32, 12, 12))
    ship(tmp_path, [], monkeypatch)
    with pytest.warns(UserWarning, match="nothing is tuned here: running by heuristics"):
        usual = load(net)
    pretuned._shipped.cache_clear()
    ship(tmp_path, [final(HEURISTIC, 1e-3), final(OTHER, 0.8e-3)], monkeypatch)
    with pytest.warns(UserWarning, match="1 of 1 convolution of .* run by winners that come"):
        found = load(net)
    assert [form.algorithm for form in found.plan.forms.values()] == [OTHER]
    assert [form.algorithm for form in usual.plan.forms.values()] == [HEURISTIC]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_rule = load(net, policy="heuristic")
    assert str(by_rule.plan) == str(usual.plan)
    pretuned._shipped.cache_clear()


def test_what_is_shipped_is_surely_faster_by_its_own_records() -> None:
    files = [*pretuned.FOLDER.glob("*.jsonl.gz")]
    assert files
    for file in files:
        records, _ = exchange.read(file)
        pairs = [*pretuned.worth_shipping(records)]
        assert 2 * len(pairs) == len(records)
        assert all(speedup_interval(*pair)[0] > pretuned.SURELY for pair in pairs)
