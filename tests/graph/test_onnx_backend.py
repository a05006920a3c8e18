"""Our backend under the onnx package's own conformance runner, and by hand."""

from __future__ import annotations

import contextlib
import unittest
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx.backend.base import BackendRep

from fastrun.graph.core.errors import InputError, UnsupportedError
from fastrun.graph.onnx_backend import Backend, Prepared
from tests.support.agreement import assert_close
from tests.support.graph_models import model, node, normal

pytestmark = pytest.mark.slow

# How many cases there are at least, and how many at most are refused as unsupported. The nine
# networks of the category Real are left out: all their weights are equal, so that they prove next
# to nothing. Older versions of the package, from 1.19 on, have fewer cases.
CASES = {"Node": 1600, "Simple": 23, "PyTorchConverted": 82, "PyTorchOperator": 35}
REFUSED = {"Node": 56, "Simple": 3, "PyTorchConverted": 0, "PyTorchOperator": 0}

WRONG_IN_ONNX = (
    # The length of an axis is not rounded before it is used, unlike in the tensor that results.
    "resize_downsample_scales_(linear|cubic)_align_corners",
    # Every step is rounded to 11 bits there; the last bit is then chance.
    "attention_4d_causal_fp16",
    # The reference implementation gives float32.
    "dequantizelinear_e4m3fn_float16",
)


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """The runner counts its own exception for this, swallowed, as a success."""
    try:
        yield
    except UnsupportedError as error:
        raise unittest.SkipTest(str(error)) from None


class Skipping(BackendRep):
    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def run(self, inputs: Sequence[Any], **kwargs: Any) -> tuple[Any, ...]:
        with skipping():
            return self._prepared.run(inputs)


class SkippingBackend(Backend):
    @classmethod
    def is_compatible(cls, *_: Any, **__: Any) -> bool:
        return True  # else the runner swallows its exception

    @classmethod
    def prepare(cls, *arguments: Any, **kwargs: Any) -> Any:
        with skipping():
            return Skipping(super().prepare(*arguments, **kwargs))


@pytest.fixture(scope="module")
def cases() -> dict[str, type[unittest.TestCase]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = onnx.backend.test.BackendTest(SkippingBackend, __name__)
    found: dict[str, type[unittest.TestCase]] = runner.exclude("|".join(WRONG_IN_ONNX)).test_cases
    return found


@pytest.mark.parametrize("category", CASES)
def test_conformance(category: str, cases: dict[str, type[unittest.TestCase]]) -> None:
    case = cases[f"OnnxBackend{category}ModelTest"]
    result = unittest.TestResult()
    for name in sorted(vars(case)):
        if name.startswith("test_") and name.endswith("_cpu"):
            case(name).run(result)
    assert not [f"{test.id()}: {trace}" for test, trace in result.errors + result.failures]
    assert all(reason and "\n" not in reason for _, reason in result.skipped)
    assert result.testsRun >= CASES[category]
    assert len(result.skipped) <= REFUSED[category]


def double(*shape: int | str) -> onnx.ModelProto:
    return model([node("Add", "x x", "y")], shape=shape)


def test_a_model_is_prepared_once_and_run_often() -> None:
    prepared = Backend.prepare(double(2, 3), threads=2)
    for seed in range(2):
        x = normal(2, 3, seed=seed)
        (y,) = prepared.run([x])
        assert np.array_equal(y, x + x)


def test_open_sizes_are_those_of_the_inputs() -> None:
    prepared = Backend.prepare(double(2, "length"))
    for length in (3, 5):
        x = normal(2, length)
        (y,) = prepared.run([x])
        assert np.array_equal(y, x + x)


def test_weights_may_be_inputs_and_change() -> None:
    convolution = model([node("Conv", "x w", "y")])
    convolution.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (6, 4, 1, 1))
    )
    prepared = Backend.prepare(convolution)
    x = normal(1, 4, 8, 8)
    for seed in range(2):
        w = normal(6, 4, 1, 1, seed=seed)
        (y,) = prepared.run([x, w])
        assert_close(y, np.einsum("oc,nchw->nohw", w[..., 0, 0], x))


def test_a_single_node() -> None:
    a, b = normal(3, 4), normal(4, 5)
    (y,) = Backend.run_node(node("MatMul", "a b", "y"), [a, b])
    assert_close(y, a @ b)
    (y,) = Backend.run_node(node("Squeeze", "a", "y", axes=[0]), [a[None]], opset_version=11)
    assert np.array_equal(y, a)
    with pytest.raises(InputError, match="1 inputs are given: the node has 2"):
        Backend.run_node(node("MatMul", "a b", "y"), [a])


def test_what_cannot_be_run_is_said_at_once() -> None:
    unsupported = model([node("Bernoulli", "x", "y")], shape=(3, 3))
    assert not Backend.is_compatible(unsupported)
    assert Backend.is_compatible(double(2, 3))
    with pytest.raises(UnsupportedError, match="'y' \\(Bernoulli\\)"):
        Backend.prepare(unsupported)
    with pytest.raises(UnsupportedError, match="no device 'CUDA'"):
        Backend.prepare(double(2, 3), "CUDA")
    with pytest.raises(InputError, match="2 inputs are given: the model has 1"):
        Backend.run_model(double(2, 3), [normal(2, 3)] * 2)
