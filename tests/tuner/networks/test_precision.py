"""Mixed precision: what rounding costs, the front of plans, and the choice within a limit."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.plan.choices import Choice, heuristic_choices
from fastrun.graph.plan.form import GUESSED
from fastrun.graph.plan.settled import settled
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.network import calibrated, quantise
from fastrun.graph.quantise.sensitivity import losses
from fastrun.graph.reference import interpreter as reference
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.precision import print_front, too_few
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.networks.pictures import Preparation
from fastrun.tuner.precision import tune
from fastrun.tuner.precision.front import allowed_types, front
from fastrun.tuner.precision.search import choose_precision, share_lost
from fastrun.tuner.precision.tune import as_labelled, examples, shared_out, worthwhile_bits
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.store.database import Database
from tests.graph.test_networks_run import residual
from tests.support.graph_models import model, node, normal
from tests.support.quantised_graphs import normal_inputs
from tests.tuner.networks.test_loading import measured

CPU = Cpu.host()
CHOOSE = functools.cache(heuristic_choices(CPU))


@functools.cache
def plain() -> Graph:
    return optimise(load_network(residual()))


DATA = [normal_inputs(plain(), seed) for seed in (1, 2)]


@functools.cache
def advised() -> Advised:
    return calibrated(plain(), DATA, (8, 4))


def rms(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - truth).mean() / np.square(truth).mean()))


def test_the_loss_of_a_tensor_is_what_rounding_it_does() -> None:
    network = advised()
    graph, found = network.graph, losses(network, DATA, CPU)
    truth = replace(graph, grids={})
    rounded = replace(truth, grids={"d": replace(graph.grids["d"], exact=True)})
    places = [*network.changed("w5")]
    assert len(places) == 2
    narrow = {x: network.rounded[4].constants[x] for x in places}
    lighter = replace(truth, constants={**graph.constants, **narrow})
    for one, loss in ((rounded, found.tensors["d"]), (lighter, found.weights["w5", "u8s4"])):
        each = [rms(reference.run(one, x)["y"], reference.run(truth, x)["y"]) ** 2 for x in DATA]
        # Kernels of float32 round some values to the other side of a tie.
        assert loss == pytest.approx(np.mean(each), rel=0.15)
    assert found.weights["w5", "u8s4"] > 10 * found.weights["w5", "u8s8"]


def test_what_calibrates_does_not_judge() -> None:
    assert shared_out(1) == ([0], [0])
    assert [sorted(x) for x in shared_out(5)] == [[0, 2, 4], [1, 3]]
    calibrating, judging = shared_out(601)
    assert len(calibrating) == 128
    assert not set(calibrating) & set(judging)
    assert len({*judging}) == len(judging) == 601 - 128
    # The first few are spread over all.
    assert {i // 121 for i in judging[:8]} == {i // 121 for i in calibrating[:8]} == {*range(5)}


def test_bits_are_offered_where_they_are_faster() -> None:
    assert worthwhile_bits(Cpu.avx2()) == [8, 7, 6, 5, 4]
    assert worthwhile_bits(replace(Cpu.avx2(), features="+avxvnni")) == [8]


def test_a_front_goes_from_float32_to_the_fastest_and_its_losses_add_up() -> None:
    network = advised()
    graph, found = network.graph, front(network, losses(network, DATA, CPU), CHOOSE, GUESSED)
    points = found.points
    assert points[0].loss == points[0].layers == 0
    assert points[-1].layers == found.whole.layers == 4
    assert found.whole is points[-1]
    assert {x.types[:4] for x in found.whole.plan.forms.values() if x.integers} == {"u8s8"}
    for point, faster in pairwise(points):
        assert (point.loss, -point.seconds) < (faster.loss, -faster.seconds)
    first, *_, last = points
    another = found.between(first, last)
    assert another
    assert first.loss < another.loss < last.loss
    assert first.seconds > another.seconds > last.seconds
    for point in (*points, another):
        exact = settled(network, point.plan)
        bytes_ = {x for x, form in point.plan.forms.items() if form.writes.dtype is U8}
        assert bytes_ <= exact.grids.keys()
        assert all(grid.exact for grid in exact.grids.values())
        x = DATA[0]
        lost = rms(reference.run(exact, x)["y"], reference.run(replace(graph, grids={}), x)["y"])
        assert lost == pytest.approx(point.loss**0.5, rel=0.7, abs=1e-9)


def test_the_fastest_within_the_limit_is_chosen() -> None:
    graph = advised()
    found = losses(graph, DATA, CPU)
    chosen = choose_precision(graph, found, DATA, None, 1.0, CHOOSE, GUESSED, CPU, 1)
    seconds = [one.seconds for one in chosen.validated]
    assert chosen.chosen == seconds.index(min(seconds))
    assert chosen.validated[0].error == chosen.validated[0].lost == 0
    # All labels are what float32 says, but for the first.
    labels = np.concatenate([reference.run(plain(), x)["y"].argmax(1) for x in DATA])
    labels[0] += 1
    right = functools.partial(as_labelled, labels.reshape(len(DATA), -1))
    strict = choose_precision(graph, found, DATA, right, 0.0, CHOOSE, GUESSED, CPU, 1)
    assert strict.labelled
    assert strict.validated[strict.chosen].lost <= 0
    with pytest.raises(InputError, match="no examples"):
        choose_precision(graph, found, [], None, 0.0, CHOOSE, GUESSED, CPU, 1)


def test_labels_must_fit_what_an_output_names() -> None:
    scores = [np.float32([[1, 3, 2], [5, 4, 0]])]
    assert as_labelled(np.array([[1, 2]]), scores).tolist() == [True, False]
    assert as_labelled(np.array([[1, 2], [1, 1]]), scores).tolist() == [True, False]
    with pytest.raises(InputError, match="3 labels do not fit 2 classes that are named"):
        as_labelled(np.array([[1, 2, 0]]), scores)
    with pytest.raises(InputError, match="a number for each class"):
        as_labelled(np.array([[0, 0]]), [scores[0][:, :1]])


def test_a_share_at_the_limit_keeps_it() -> None:
    truth, found = np.arange(1000) < 993, np.arange(1000) < 988
    assert truth.mean() - found.mean() > 0.005
    assert share_lost(truth, found) == 0.005
    assert share_lost(found, truth) == -0.005


def test_an_output_without_classes_is_judged_by_its_error() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "y")]
    weights = {"w": normal(8, 4, 3, 3), "v": normal(1, 8, 1, 1)}
    graph = optimise(load_network(model(nodes, weights, shape=(1, 4, 8, 8))))
    data = [normal_inputs(graph, seed) for seed in (1, 2)]
    network = calibrated(graph, data, (8,))
    found = losses(network, data, CPU)
    chosen = choose_precision(network, found, data, None, 1e-6, CHOOSE, GUESSED, CPU, 1)
    assert chosen.chosen == chosen.validated[0].lost == 0
    assert all(one.lost == one.error > 0 for one in chosen.validated[1:])


def test_a_layer_may_have_sixteen_bits_where_that_loses_less() -> None:
    """Where bytes cost too much, 16 bits stay, which cost next to nothing."""
    network = advised().each(convolve_dense)
    found = losses(network, DATA, CPU)
    assert found.layers.keys() == {name for name, _ in found.weights}
    dear = replace(found, tensors=dict.fromkeys(found.tensors, 1e3))

    def halved(p: ConvProblem) -> list[str]:
        return ["f32f16"] if p.groups == 1 and not p.types else []

    def choose(p: ConvProblem) -> list[Choice]:
        return [
            replace(choice, guessed=False, seconds=choice.seconds / (1 + (p.types == "f32f16")))
            for choice in CHOOSE(p)
        ]

    base, *others = front(network, dear, choose, GUESSED, halved).points
    assert not base.types
    sixteen = next(point for point in others if not point.layers)
    assert set(sixteen.types.values()) == {"f32f16"}
    assert 0 < sixteen.loss < 1e-4
    # The network that is built has them at the same nodes, and nowhere else.
    exact = settled(network, sixteen.plan)
    one = dict([next(iter(sixteen.types.items()))])
    plan, _ = make_plan(exact, choose, CPU, rounded=halved, allowed=allowed_types(one))
    names = {node.output: node.name for node in exact.nodes}
    types = {names[x]: form.types for x, form in plan.forms.items() if form.types}
    assert types == one


def test_without_time_the_least_is_measured_and_validated() -> None:
    graph = advised()
    found = losses(graph, DATA, CPU, seconds=0)
    assert found == losses(graph, DATA[:1], CPU)
    hurried = choose_precision(graph, found, DATA, None, 0.0, CHOOSE, GUESSED, CPU, 1, ends=0)
    assert 2 <= len(hurried.validated) <= 3
    assert hurried.validated[0].layers == 0
    assert hurried.validated[-1].layers == hurried.validated[-1].of


def test_without_time_few_examples_calibrate_and_judge() -> None:
    data = [normal_inputs(plain(), seed) for seed in range(30)]
    some = calibrated(plain(), data, (8,), seconds=0).graph
    scales = {name: some.grids[name].scale for name in some.grids.keys() - some.constants.keys()}
    for count in (8, 30):  # by squared errors, as there is no time to look at outputs
        full = quantise(plain(), data[:count], ranges="mse", rounding="nearest").grids
        assert (scales == {name: full[name].scale for name in scales}) == (count == 8)
    found = losses(advised(), data, CPU, seconds=0)
    hurried = choose_precision(advised(), found, data, None, 0.0, CHOOSE, GUESSED, CPU, 1, ends=0)
    assert hurried.samples == 50  # in batches of two


X = np.arange(5 * 3 * 33 * 29).reshape(5, 3, 33, 29)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "examples.npz: nothing for input 'x'"),
        ({"x": X[..., 1:]}, "examples.npz: .* give Nx3x33x29"),
        ({"x": X[:1]}, r"examples.npz: 1 examples are less than a batch \(2"),
        ({"x": X, "labels": np.zeros(5)}, "labels are numbers of classes, not float64"),
        ({"x": X, "labels": np.arange(4)}, r"labels of the shape \(4,\) for 5 examples"),
        ({"x": X, "labels": 5 * np.arange(5)}, "label [0-9]+: the network has the classes 0 to"),
        ({"x": X, "labels": np.arange(5) - 1}, "label -1: the network has the classes 0 to"),
    ],
)
def test_examples_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "examples.npz", **arrays)
    with pytest.raises(InputError, match=message):
        examples(plain(), tmp_path / "examples.npz", Preparation())


def test_examples_come_in_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "examples.npz", x=X, labels=np.arange(5))
    data, labels = examples(plain(), tmp_path / "examples.npz", Preparation())
    assert [batch["x"].shape for batch in data] == [(2, 3, 33, 29)] * 2
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3]
    assert np.array_equal(np.concatenate([batch["x"] for batch in data]), X[:4])


def test_examples_of_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X[:1])
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "b.png")
    (one,), labels = examples(plain(), tmp_path, Preparation(mean=(0.0,), std=(255.0,)))
    assert labels is None
    assert np.array_equal(one["x"][0], X[0])
    assert one["x"][1].max((1, 2)).tolist() == [1, 0, 0]


def test_a_front_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = advised()
    found = losses(graph, DATA, CPU)
    chosen = choose_precision(graph, found, DATA, None, 0.5, CHOOSE, GUESSED, CPU, 1)
    chosen.save(tmp_path / "a" / "front.json")
    document = json.loads((tmp_path / "a" / "front.json").read_text())
    assert document["validated"][document["chosen"]]["lost"] <= 0.5
    print_front(document)
    shown = capsys.readouterr().out
    assert "4 examples" in shown
    assert "agreement" in shown
    assert f"{len(document['expected'])} plans" in shown


def test_too_few_examples_for_a_limit_are_told() -> None:
    document = {"chosen": 0, "samples": 192, "validated": [{"lost": 0.0}, {"lost": 1 / 192}]}
    told = "within 0.5 % none of 192 examples may change: give 400 or more, of which half calibrate"
    assert too_few(document, 0.005) == told
    assert too_few(document, 0.006) == ""
    assert too_few({**document, "chosen": 1}, 0.005) == ""
    # Each example has several answers.
    assert too_few({**document, "validated": [{"lost": 0.001}]}, 0.005) == ""


def test_bytes_without_a_rectifier_take_the_times_of_those_with_one() -> None:
    p = ConvProblem.parse("conv 2x20x9x8 20x3x3 s1 p1 u8s8>u8")
    known = measured(replace(p, activation="relu"))
    missing: list[ConvProblem] = []
    with Database("sqlite://") as database:
        database.add(known)
        choose = stored_choices(database, CPU, 1, NO_LIMITS, missing=missing.append)
        assert choose(p)[0].schedule == known.schedule
        assert not missing
        choose(replace(p, types=""))
        choose(replace(p, activation="tanh"))
    assert missing == [replace(p, types=""), replace(p, activation="tanh")]


@pytest.mark.slow
def test_the_chosen_network_is_written_with_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "front_file", lambda *_: Path("front.json"))
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "y")]
    onnx.save(model(nodes, {"w": normal(8, 4, 3, 3)}, shape=(1, 4, 8, 8)), "net.onnx")
    Path("data").mkdir()
    np.save("data/x.npy", normal(3, 4, 8, 8))
    np.save("x.npy", normal(1, 4, 8, 8))
    words = "net.onnx --calibrate data --max-loss 100% --trials 1 --db r.db -o out.onnx"
    assert main(["tune", *words.split()]) == 0
    said = capsys.readouterr()
    assert "1 example" in said.out
    assert "no current measurement" not in said.err
    command = "fastrun run out.onnx --plan out.plan --input FILE"
    assert f"next: `{command}`" in said.out
    assert main(command.replace("FILE", "x.npy").split()[1:]) == 0
    assert Path("front.json").exists()
