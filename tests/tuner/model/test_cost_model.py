"""The cost model: what it learns from records, and what it proposes for other shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice, parse_schedule, templates
from fastrun.search_spaces.space import space_for
from fastrun.tuner.model import cost_model
from fastrun.tuner.model import features as features_
from fastrun.tuner.model import rates as rates_
from fastrun.tuner.model.cost_model import CostModel, Times, times
from fastrun.tuner.model.features import ALGORITHMS, NAMES, rows
from fastrun.tuner.model.rates import Rates, nearest
from fastrun.tuner.model.trees import Growth
from fastrun.tuner.records.record import Outcome, Stage
from tests.support.records import record

CPU = Cpu.avx512()
parse = ConvProblem.parse
SHAPES = [parse(f"conv 1x{c}x{s}x{s} {c}x1x1 s1 p0 bias") for c in (32, 64, 128) for s in (7, 14)]
NEW = parse("conv 1x96x28x28 96x1x1 s1 p0 bias")
FEW = Growth(trees=60, depth=4)


def law(p: ConvProblem, text: str) -> float:
    """Seconds that fall with the unrolling, and are most in NHWC."""
    _, s = parse_schedule(text)
    return p.flops / 1e11 * (1 + 1 / s.unroll) * (1.5 if s.layout == "NHWC" else 1.0)


def by_law(p: ConvProblem) -> Times:
    template, _ = heuristic_choice(p, CPU)
    spaces = list(islice(iter(space_for(template.name, p, CPU)), 0, 4000, 37))
    texts = [template.text(s) for s in spaces]
    return Times(p, CPU, texts, [law(p, text) for text in texts])


@pytest.fixture(scope="module")
def model() -> CostModel:
    return CostModel.learnt([by_law(p) for p in SHAPES], FEW)


def test_it_proposes_what_is_fast_on_other_shapes(model: CostModel) -> None:
    found = model.proposals(NEW, CPU, 3)
    assert len(found) == 3
    for text in found:
        name, s = parse_schedule(text)
        assert name.name in ALGORITHMS
        assert space_for(name.name, NEW, CPU).broken_rule(s) is None
    best = parse_schedule(found[0])[1]
    assert best.unroll >= 16
    assert best.layout != "NHWC"


def test_expected_times_differ_as_measured_ones_do(model: CostModel) -> None:
    texts = by_law(NEW).schedules[:50]
    expected = model.logarithms(NEW, texts, CPU).mean(axis=0)
    rest = expected - np.log([law(NEW, text) for text in texts])
    assert np.exp(np.abs(rest - rest.mean()).mean()) < 1.15


def test_how_fast_the_machine_was_explains_nothing() -> None:
    """Half of the shapes were measured on a slow day: they say the same but for ties of trees."""
    data = [by_law(p) for p in SHAPES]
    slow = [replace(group, seconds=[3 * s for s in group.seconds]) for group in data]
    texts = by_law(NEW).schedules[:50]
    usual, disturbed = (
        CostModel.learnt(x, FEW).logarithms(NEW, texts, CPU) for x in (data, [*data[:3], *slow[3:]])
    )
    assert usual - usual[:, :1] == pytest.approx(disturbed - disturbed[:, :1], abs=0.05)


def test_the_heuristic_s_choice_stays_unless_a_gain_is_expected(model: CostModel) -> None:
    template, s = heuristic_choice(NEW, CPU)
    slow = template.text(replace(s, unroll=1, layout="NHWC"))
    assert model.choice(NEW, CPU, slow) != slow
    best = model.proposals(NEW, CPU, 1)[0]
    assert model.choice(NEW, CPU, best) == best


def test_it_stays_where_the_models_disagree(
    model: CostModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, s = heuristic_choice(NEW, CPU)
    slow = template.text(replace(s, unroll=1, layout="NHWC"))
    monkeypatch.setattr(cost_model, "_CAUTION", 1e3)
    assert model.choice(NEW, CPU, slow) == slow


def test_proposals_of_one_layout(model: CostModel) -> None:
    found = model.proposals(NEW, CPU, 5, layout="NHWC")
    assert {parse_schedule(text)[1].layout for text in found} == {"NHWC"}
    assert model.proposals(NEW, CPU, layout="NCHW16c>NCHW8c") == []


def test_other_types_have_no_proposals(model: CostModel) -> None:
    assert model.proposals(replace(NEW, types="u8s8>u8"), CPU) == []


def test_every_feature_is_finite_for_every_algorithm_and_processor() -> None:
    shapes = (
        "conv 1x3x9x9 8x3x3 s2 p1",
        "conv 1x24x5x5 24x3x3 s1 p1 g24 relu",
        "conv 2x16x7x7 40x1x1 s1 p0 bias add",
        "conv 1x12x6x6 12x3x3 s1 p2 d2 g3",
        "conv 1x192x7x7 384x1x1 s1 p0",
        "conv 1x32x20x20 32x5x5 s2 p2",
    )
    tiles = replace(CPU, features="+amx-tile,+amx-bf16,+amx-int8,+avx512bf16")
    for cpu in (CPU, Cpu.avx2(), Cpu.neon(), tiles):
        for p in map(parse, shapes):
            for name in ALGORITHMS:
                template = templates()[name]
                if template.refusal(p, cpu) is None:
                    schedules = [template.heuristic(p, cpu)]
                    schedules += islice(iter(space_for(name, p, cpu)), 20)
                    found = rows(p, [(name, s) for s in schedules], cpu)
                    assert found.shape == (len(schedules), len(NAMES))
                    assert np.isfinite(found).all()


def features(p: ConvProblem, name: str) -> dict[str, float]:
    """Those of the heuristic's schedule of an algorithm."""
    [row] = rows(p, [(name, templates()[name].heuristic(p, CPU))], CPU)
    return dict(zip(NAMES, map(float, row), strict=True))


def test_products_are_those_that_the_algorithm_makes() -> None:
    """Strassen makes seven of eight. A filter in parts has further channels and fewer taps."""
    large = parse("conv 1x192x14x14 384x1x1 s1 p0")
    assert features(large, "strassen")["products"] == pytest.approx(math.log2(7 / 8))
    assert features(large, "pointwise")["products"] == 0
    strided = parse("conv 1x64x28x28 64x3x3 s2 p1")
    found, s = features(strided, "winograd"), templates()["winograd"].heuristic(strided, CPU)
    assert found["filter_parts"] == 2  # two by two of them
    tiles = math.prod(math.ceil(14 / m) * (m + 1) for m in (s.mh, s.mw))
    assert found["products"] == pytest.approx(math.log2(4 * tiles / (14 * 14 * 9)))
    dilated = parse("conv 1x64x20x20 64x3x3 s1 p18 d18")
    assert features(dilated, "direct")["taps_met"] < 0.3
    assert features(strided, "direct")["taps_met"] > 0.9


def test_a_machine_gets_the_model_of_one_whose_caches_are_as_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert nearest(CPU) == "zen4"
    slow = Rates(l2=0.8, l3=0.2, memory=0.1, tiles=0.0)
    monkeypatch.setattr(rates_, "rates_of", lambda cpu: slow)
    assert nearest(CPU) == "xeon-amx"


def test_where_l3_is_slow_reading_again_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    p = parse("conv 1x512x14x14 512x3x3 s1 p1")
    template = templates()["direct"]
    s = template.heuristic(p, CPU)
    few, many = ((template.name, replace(s, rows=n, oc_outer=False)) for n in (14, 1))

    def expected(l3: float) -> float:
        rates = Rates(l2=1.0, l3=l3, memory=0.05, tiles=0.0)
        monkeypatch.setattr(features_, "rates_of", lambda cpu: rates)
        once, again = rows(p, [few, many], CPU)[:, NAMES.index("expected")]
        return float(again - once)

    assert expected(0.1) > expected(1.0) > 0


def test_a_model_knows_the_algorithms_of_its_data(model: CostModel, tmp_path: Path) -> None:
    assert model.algorithms == ("pointwise",)
    model.save(tmp_path / "model.npz")
    assert CostModel.load(tmp_path / "model.npz").algorithms == ("pointwise",)
    usual = direct_text = templates()["direct"].text(templates()["direct"].heuristic(NEW, CPU))
    assert model.choice(NEW, CPU, usual) == direct_text
    assert model.among(["direct"]).proposals(NEW, CPU) == []


def test_a_model_corrects_one_before_it(model: CostModel) -> None:
    """Data of a machine on which unrolling does not matter; the first model's is not at hand."""
    group = by_law(SHAPES[0])
    flat = [1.5 if "NHWC" in text else 1.0 for text in group.schedules]
    later = CostModel.learnt([replace(group, seconds=flat)], FEW, before=model)
    texts = [x for x in by_law(NEW).schedules if "NHWC" not in x][:50]
    was, now = (m.logarithms(NEW, texts, CPU).mean(axis=0) for m in (model, later))
    assert now.std() < 0.6 * was.std()
    assert [len(x.leaves) for x in later.members] == [2 * FEW.trees] * len(model.members)


def test_what_was_measured_together_is_together() -> None:
    p = SHAPES[0]
    template, s = heuristic_choice(p, CPU)
    text, other = template.text(s), template.text(replace(s, unroll=1))
    usual = {"problem": str(p), "machine": CPU.fingerprint, "threads": 1, "run": "a"}
    records = [
        record(**usual, schedule=text, samples=(3e-6, 3e-6), stage=Stage.RACE),
        record(**usual, schedule=other, samples=(5e-6, 5e-6), stage=Stage.RACE),
        record(**usual, schedule=text, samples=(2e-6, 2e-6)),
        record(**usual, schedule=other, samples=(4e-6, 4e-6)),
        record(**{**usual, "run": "b"}, schedule=text, samples=(1e-6, 1e-6)),  # nothing beside it
        record(**{**usual, "threads": 2}, schedule=other, samples=(1e-6, 1e-6)),
        record(**usual, schedule=template.text(replace(s, unroll=2)), samples=(),
               outcome=Outcome.TIMEOUT),
        record(**usual, schedule=template.text(replace(s, unroll=4)), samples=(9e-6,)),
        record(**{**usual, "machine": "0" * 16}, schedule=text, samples=(1e-6, 1e-6)),
        record(**usual, schedule="pointwise(gone=1)", samples=(1e-6, 1e-6)),
    ]  # fmt: skip
    raced, screened = times(records, [CPU])
    found = [dict(zip(x.schedules, x.seconds, strict=True)) for x in (raced, screened)]
    assert found == [{text: 3e-6, other: 5e-6}, {text: 2e-6, other: 4e-6}]


def test_a_model_of_other_features_is_refused(model: CostModel, tmp_path: Path) -> None:
    file = tmp_path / "model.npz"
    model.save(file)
    texts = model.proposals(NEW, CPU, 3)
    again = CostModel.load(file).logarithms(NEW, texts, CPU)
    assert np.array_equal(again, model.logarithms(NEW, texts, CPU))
    with np.load(file) as arrays:
        changed = {**arrays, "names": np.array(["other"])}
    np.savez(file, **changed)
    with pytest.raises(ValueError, match="other features"):
        CostModel.load(file)


def test_a_model_of_fewer_features_is_read(model: CostModel, tmp_path: Path) -> None:
    """Features that were added since do not matter to it."""
    file = tmp_path / "model.npz"
    model.save(file)
    with np.load(file) as arrays:
        asked = sorted({*arrays["features"].ravel()})
        fewer = {**arrays, "names": arrays["names"][asked]}
    fewer["features"] = np.searchsorted(asked, fewer["features"])
    np.savez(file, **fewer)
    texts = model.proposals(NEW, CPU, 3)
    again = CostModel.load(file).logarithms(NEW, texts, CPU)
    assert np.array_equal(again, model.logarithms(NEW, texts, CPU))


@pytest.mark.parametrize("features", ["", "+amx-tile,+amx-bf16,+avx512bf16"])
def test_the_shipped_model_tells_good_schedules_from_bad_ones(features: str) -> None:
    p = parse("conv 1x64x56x56 64x3x3 s1 p1 bias relu")
    template, s = heuristic_choice(p, CPU)
    bad = replace(s, mh=1, mw=2, nr_tiles=8, layout="NHWC")
    texts = [template.text(s), template.text(bad)]
    cpu = replace(CPU, features=features)
    good, worse = CostModel.shipped(cpu).logarithms(p, texts, cpu).mean(axis=0)
    assert good + math.log(1.2) < worse < math.inf
