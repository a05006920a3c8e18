"""Accuracy: counts, intervals, comparisons, and the tasks' data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest

from fastrun.benchmarks import accuracy
from fastrun.benchmarks.accuracy.ocr import decoded
from fastrun.benchmarks.accuracy.rendered import ALPHABET, as_input, picture, random_text
from fastrun.benchmarks.accuracy.score import Score, mcnemar, scores, wilson
from fastrun.benchmarks.accuracy.task import CALIBRATION, TEST, Sample, classified, draws
from fastrun.benchmarks.peers import Array


class Fixed:
    """A session that answers with its input times a factor, plus an offset for some inputs."""

    def __init__(self, factor: float = 1.0, wrong: tuple[int, ...] = ()) -> None:
        self._factor, self._wrong = factor, wrong

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        [(name, x)] = inputs.items()
        y = x * self._factor
        return [y[:, ::-1] if int(name) in self._wrong else y]

    def call(self) -> None:
        raise AssertionError("nothing is timed")


def labelled(count: int) -> list[Sample]:
    x = np.array([[3.0, 1.0]], np.float32)
    return [Sample({str(i): x}, classified(0)) for i in range(count)]


def test_answers_are_counted_and_paired_with_float32() -> None:
    others = {"better": Fixed(), "other": Fixed(wrong=(1, 2, 5))}
    found = scores(labelled(10), Fixed(wrong=(0, 1)), others)
    better, other = found["better"], found["other"]
    assert (better.right, better.labelled, better.only_wrong, better.only_right) == (10, 10, 0, 2)
    assert (other.right, other.only_wrong, other.only_right) == (7, 2, 1)
    assert other.agreement == pytest.approx(0.7)
    assert better.agreement == pytest.approx(0.8)


def test_noise_is_relative_to_the_outputs_of_float32() -> None:
    found = scores(labelled(4), Fixed(), {"scaled": Fixed(1.01), "same": Fixed()})
    assert found["scaled"].sqnr == pytest.approx(40, abs=1e-3)
    assert found["same"].sqnr == math.inf


def test_a_sample_without_a_known_answer_is_compared_only() -> None:
    score = Score()
    y = np.array([[1.0, 2.0]], np.float32)
    score.add(Sample({}), [y], [y])
    assert (score.labelled, score.positions, score.agreement) == (0, 1, 1.0)
    assert math.isnan(score.accuracy)
    assert math.isnan(score.p_value)
    assert all(map(math.isnan, score.interval))


def test_every_position_of_an_output_is_compared() -> None:
    score = Score()
    exact = np.eye(4, dtype=np.float32)[None]
    found = exact.copy()
    found[0, 1] = found[0, 2]
    score.add(Sample({}), [found], [exact])
    assert (score.agreeing, score.positions) == (3, 4)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (20, 20, 0.8389, 1.0),  # by hand: 1 / (1 + z^2 / n)
        (0, 20, 0.0, 0.1611),
        (81, 263, 0.2553, 0.3662),  # R. G. Newcombe, 1998, table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1.0), (5, 5, 1.0), (9, 1, 22 / 1024), (0, 6, 2 / 64)]
)
def test_mcnemar_counts_coins(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(p)


def test_many_samples_do_not_overflow() -> None:
    assert mcnemar(2000, 2400) == pytest.approx(1.8e-9, rel=0.1)


def test_rendered_lines_depend_on_their_seed_alone() -> None:
    def line(kind: int, i: int) -> tuple[str, Array]:
        draw = draws(kind, i)
        text = random_text(draw)
        return text, as_input(picture(text, draw), 48, 320, draw)

    (text, x), (again, y), (other, z) = line(TEST, 3), line(TEST, 3), line(CALIBRATION, 3)
    assert text == again != other
    np.testing.assert_array_equal(x, y)
    assert x.shape == z.shape == (1, 3, 48, 320)
    assert 4 <= len(text) <= 14
    assert set(text) <= set(ALPHABET)
    ink = x[0, 0] < -0.1
    assert 50 < ink.sum() < 0.4 * ink.size
    assert not ink[:, -1].any()


def test_repetitions_count_once_and_blanks_not() -> None:
    classes = [0, 1, 1, 0, 1, 2, 2, 0, 0, 3]
    scores = np.eye(4, dtype=np.float32)[classes][None]
    assert decoded(scores, ["", "a", "b", "c"]) == "aabc"


def test_an_untrained_network_has_inputs_and_no_answers() -> None:
    task = accuracy.task("squeezenet1.1")
    first, second = itertools.islice(task.samples(), 2)
    assert first.right is None
    seen = [*task.calibration, first.inputs, second.inputs]
    assert len({feeds["input"].tobytes() for feeds in seen}) == len(seen)
    [again] = itertools.islice(task.samples(), 1)
    np.testing.assert_array_equal(first.inputs["input"], again.inputs["input"])


@pytest.mark.slow
@pytest.mark.parametrize("name", accuracy.NAMES)
def test_task_has_data_for_its_network(name: str) -> None:
    if reason := accuracy.missing(name):
        pytest.skip(reason)
    task = accuracy.task(name)
    samples = [*itertools.islice(task.samples(), 10)]
    tested = {x.tobytes() for s in samples for x in s.inputs.values()}
    assert len(tested) == len(samples)
    assert not tested & {x.tobytes() for feeds in task.calibration for x in feeds.values()}
    assert all(sample.right for sample in samples)
    [value] = task.model.graph.input
    shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    assert all(feeds[value.name].shape == shape for feeds in task.calibration)
