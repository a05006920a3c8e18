"""Winners that come with the package: which are shipped, and when a network runs them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun import load
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.store import exchange, pretuned
from tests.support.graph_models import model, node, normal
from tests.support.records import placed, record

CPU = Cpu.host()
P = ConvProblem.parse("conv 1x32x12x12 48x3x3 s1 p1 bias")
TEMPLATE, USUAL = heuristic_choice(P, CPU)
HEURISTIC, OTHER = TEMPLATE.text(USUAL), TEMPLATE.text(replace(USUAL, unroll=2 * USUAL.unroll))


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


def test_other_code_than_was_measured_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"toolchain": toolchain().replace("kernels ", "kernels 0"), "ir_hash": "gone"}
    ship(tmp_path, [final(HEURISTIC, 1e-3, **old), final(OTHER, 0.8e-3, **old)], monkeypatch)
    assert pretuned.pretuned(P, CPU, 1, HEURISTIC) is None


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
