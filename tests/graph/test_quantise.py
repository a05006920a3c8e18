"""Quantising a network: what is quantised, ranges, rounding, equalisation, the written file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import GraphError, InputError, UnsupportedError
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Conv, Gemm
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.quantise.channels import linked
from fastrun.graph.quantise.equalise import equalised
from fastrun.graph.quantise.network import calibrated, quantise
from fastrun.graph.quantise.observe import Histogram
from fastrun.graph.quantise.patches import Filters, Moments
from fastrun.graph.quantise.ranges import activation_grid
from fastrun.graph.quantise.rounding import compensated, fitted_scales, nearest, whole_scales
from fastrun.graph.quantise.scope import find_scope
from fastrun.graph.quantise.simulate import differences, simulated
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.dtype import S8, U8
from tests.support.graph_models import batch_norm, model, node, normal
from tests.support.peer import by_onnxruntime


def network() -> onnx.ModelProto:
    """Convolutions, a depthwise one, a residual sum, a concatenation, pools, a dense layer."""
    nodes = [
        node("Conv", "x w0", "c0", pads=[1] * 4),
        node("BatchNormalization", "c0 scale shift mean variance", "n0"),
        node("Relu", "n0", "r0"),
        node("Conv", "r0 w1", "c1", pads=[1] * 4, group=8),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2"),
        node("Add", "c2 r0", "s"),
        node("Relu", "s", "r2"),
        node("MaxPool", "r0", "m", kernel_shape=[3, 3], pads=[1] * 4),
        node("Concat", "r2 m", "k", axis=1),
        node("Conv", "k w3", "c3", strides=[2, 2]),
        node("Sigmoid", "c3", "g"),
        node("GlobalAveragePool", "g", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc", "y"),
    ]
    weights = {
        **{"w0": normal(8, 4, 3, 3), "w1": normal(8, 1, 3, 3), "w2": normal(8, 8, 1, 1)},
        **{"b2": normal(8), "w3": normal(6, 16, 1, 1), "fc": normal(6, 5), **batch_norm(8)},
    }
    return model(nodes, weights)


def inputs(count: int, seed: int = 0) -> list[dict[str, Array]]:
    return [{"x": normal(1, 4, 8, 8, seed=100 * seed + i)} for i in range(count)]


def graph() -> Graph:
    return optimise(import_onnx(network()))


def test_layers_and_the_tensors_between_them_are_quantised() -> None:
    scope = find_scope(graph())
    assert [type(n.op) for n in scope.layers] == [Conv] * 4 + [Gemm]
    together = [{*names} for names in scope.groups]
    # The parts of the concatenation share a grid, and what the pool in front of it reads.
    assert together == [{"f", "p"}, {"c3"}, {"k", "s", "m", "n0"}, {"c1"}, {"x"}]
    assert scope.ends == {"n0", "y"}


def test_outputs_that_layers_read_are_rounded_behind() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "a v", "y")]
    m = model(nodes, {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1)})
    m.graph.output.append(onnx.helper.make_empty_tensor_value_info("a"))
    g = optimise(import_onnx(m))
    q = quantise(g, inputs(2))
    assert "a" not in q.grids
    assert q.grids.keys() >= {"x", "a.rounded"}
    found, plain = run(q, inputs(1)[0]), run(g, inputs(1)[0])
    assert np.abs(found["a"] - plain["a"]).max() < 0.2


def test_what_stays_in_float32() -> None:
    g = graph()
    first = g.nodes[0].name
    kept = quantise(g, inputs(2), keep=[first])
    assert "x" not in kept.grids
    assert g.nodes[0].inputs[1] not in kept.grids
    with pytest.raises(GraphError, match="has no node 'nobody' to keep"):
        quantise(g, inputs(2), keep=["nobody"])
    with pytest.raises(
        GraphError, match="has no convolution or dense layer 'y' to keep in float32"
    ):
        quantise(import_onnx(model([node("Relu", "x", "y")])), inputs(1), keep=["y"])
    phases = model(
        [node("ConvTranspose", "x w", "y", strides=[2, 2])], {"w": normal(64, 2, 4, 4)},
        shape=(1, 64, 3, 3),
    )  # fmt: skip
    with pytest.raises(GraphError, match=r"layer 'y' to keep in float32: give 'y\.conv'"):
        quantise(optimise(import_onnx(phases)), inputs(1), keep=["y"])
    shared = model([node("Conv", "x w", "c"), node("Add", "c w", "y")], {"w": normal(4, 4, 1, 1)})
    with pytest.raises(UnsupportedError, match="no convolution or dense layer"):
        quantise(optimise(import_onnx(shared)), inputs(1))
    with pytest.raises(UnsupportedError, match="no convolution or dense layer"):
        quantise(import_onnx(model([node("Relu", "x", "y")])), inputs(1))
    with pytest.raises(GraphError, match="is quantised already"):
        quantise(kept, inputs(1))


def test_values_that_are_not_finite_are_refused() -> None:
    m = model([node("Log", "x", "l"), node("Conv", "l w", "y")], {"w": normal(4, 4, 1, 1)})
    with pytest.raises(InputError, match="'l' has values that are not finite"):
        quantise(optimise(import_onnx(m)), inputs(1))


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_onnxruntime_runs_the_file_within_a_step(rounding: str) -> None:
    q = quantise(graph(), inputs(4), rounding=rounding)
    written = export_onnx(q)
    onnx.checker.check_model(written, full_check=True)
    # A step of the last tensor that is rounded changes y by a step times a weight.
    step = q.grids["f"].scale * np.abs(q.constants["fc"]).sum(0).max()
    fake = simulated(q)
    for x in inputs(6, seed=1):
        truth = run(q, x)["y"]
        found = by_onnxruntime(written, x)
        assert found
        assert np.abs(found["y"] - truth).max() <= 1.01 * step
        assert np.abs(run(fake, x)["y"] - truth).max() <= 1.01 * step
    close = differences(graph(), q, inputs(6, seed=1))["y"]
    assert close.sqnr > 20
    assert close.agreement is not None


@pytest.mark.parametrize(
    ("bits", "largest", "at_the_ends"), [(8, 127, 127), (7, 63, 63), (4, 7, 127)]
)
def test_bits_are_of_the_weights_between_first_and_last(
    bits: int, largest: int, at_the_ends: int
) -> None:
    q = quantise(graph(), inputs(2), bits=bits)
    for n in find_scope(graph()).layers:
        name = q.producers[n.output].inputs[1]
        stored = q.grids[name].stored(q.constants[name], 1 if name == "fc" else 0)
        limit = at_the_ends if n.output in ("n0", "y") else largest
        assert limit / 2 < np.abs(stored.astype(int)).max() <= limit
        assert q.grids[name].dtype is S8


def test_calibrated_grids_are_advice() -> None:
    advised = calibrated(graph(), inputs(3), (8, 6))
    g = advised.graph
    assert g.grids.keys() >= {"x", "c1", "fc"}
    assert not any(grid.exact for grid in g.grids.values())
    x = inputs(1, seed=1)[0]
    np.testing.assert_allclose(run(g, x)["y"], run(graph(), x)["y"], rtol=1e-6)
    for bits, rounded in advised.rounded.items():
        own = quantise(graph(), inputs(3), bits=bits)
        assert rounded.nodes == g.nodes
        for name in ("fc", *advised.changed("fc")):
            np.testing.assert_array_equal(rounded.constants[name], own.constants[name])


def test_mean_outputs_are_kept() -> None:
    """With four bits of nearest rounding the correction of the bias shows."""
    m = model([node("Conv", "x w", "c"), node("Conv", "c v", "d"), node("Conv", "d u", "y")],
              {x: normal(4, 4, 1, 1, seed=i) for i, x in enumerate("wvu")})  # fmt: skip
    g = optimise(import_onnx(m))
    data = [{"x": 3 + normal(1, 4, 8, 8, seed=i)} for i in range(16)]
    q = quantise(g, data, bits=4, rounding="nearest")
    truth, found = (np.mean([run(n, x)["y"] for x in data], (0, 1, 3, 4)) for n in (g, q))
    plain = replace(q, constants={**q.constants, **{
        q.producers[y].inputs[2]: np.zeros(4, np.float32) for y in "cdy"}})  # fmt: skip
    uncorrected = np.mean([run(plain, x)["y"] for x in data], (0, 1, 3, 4))
    assert np.abs(found - truth).max() < 0.2 * np.abs(uncorrected - truth).max()


def histogram(values: Array, parts: int = 3) -> Histogram:
    found = Histogram()
    for part in np.array_split(values, parts):
        found.add(part.astype(np.float32))
    return found


def test_histograms_grow_with_their_values() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=1000) * s for s in (0.001, 1, 100)])
    found = histogram(values)
    assert found.counts.sum() == 3000
    assert found.low == np.float32(values.min())
    assert found.high == np.float32(values.max())
    width = np.diff(found.values[:2])[0]
    assert width < 2 * np.abs(values).max() * 2 / len(found.values)
    np.testing.assert_allclose(np.dot(found.counts, found.values), values.sum(), atol=3000 * width)
    assert histogram(np.zeros(5)).counts.sum() == 0


def test_ranges_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    uniform = histogram(rng.uniform(-1, 3, 100_000))
    for method in ("minmax", "percentile", "mse"):
        grid = activation_grid(uniform, method)
        assert grid.scale == pytest.approx(4 / 255, rel=0.02)
        assert grid.zero == pytest.approx(64, abs=2)
        assert grid.dtype is U8
    outliers = histogram(np.append(rng.normal(size=1_000_000), 100.0))
    scale = {m: activation_grid(outliers, m).scale for m in ("minmax", "percentile", "mse")}
    assert scale["minmax"] == pytest.approx(105 / 255, rel=0.02)
    assert scale["percentile"] < 0.1 * scale["minmax"]
    assert scale["mse"] < 0.8 * scale["minmax"]
    positive = activation_grid(histogram(rng.uniform(1, 2, 1000)), "mse")
    assert positive.zero == 0
    assert positive.contains(0.0)
    assert activation_grid(histogram(np.zeros(9)), "mse") == Grid(1.0, 0, U8)


def layer(groups: int, filters: int, depth: int) -> tuple[Array, Array]:
    """Weights, and second moments of inputs that are positive and correlated."""
    rng = np.random.default_rng([groups, filters, depth])
    mixing = rng.standard_normal((groups, depth, depth)) / depth**0.5 + 1 / depth
    x = np.maximum(rng.standard_normal((groups, 4000, depth)) @ mixing, 0)
    weights = rng.standard_normal((groups, filters, depth)) * depth**-0.5
    return weights.astype(np.float32), (x.transpose(0, 2, 1) @ x / 4000).astype(np.float32)


def squared(errors: Array, moments: Array) -> float:
    return float(np.einsum("gok,gkl,gol->", errors, moments, errors))


@pytest.mark.parametrize("shape", [(1, 16, 150), (24, 1, 9), (2, 8, 36)])
def test_errors_that_are_made_up_for_are_smaller(shape: tuple[int, int, int]) -> None:
    weights, moments = layer(*shape)
    for bits, gain in ((4, 0.7), (8, 0.7)):
        largest = 2 ** (bits - 1) - 1
        whole = whole_scales(weights, largest)
        plain = nearest(weights, whole, largest) * whole[..., None] - weights
        scales = fitted_scales(weights, moments, largest)
        integers = compensated(weights, scales, moments, 4000, largest)
        assert np.abs(integers).max() <= largest
        np.testing.assert_array_equal(integers, np.rint(integers))
        made_up = integers * scales[..., None] - weights
        assert squared(made_up, moments) < gain * squared(plain, moments)


def test_rounding_without_information_is_to_nearest() -> None:
    """Independent inputs leave nothing to make up for; neither do inputs that are always 0."""
    weights, moments = layer(1, 4, 20)
    scales = whole_scales(weights, 7)
    for known in (np.eye(20, dtype=np.float32)[None], np.zeros_like(moments)):
        found = compensated(weights, scales, known, 100, 7)
        np.testing.assert_array_equal(found, nearest(weights, scales, 7))


LAYERS = (
    ("Conv", (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", (8, 2, 3, 3), {"group": 2}),
    ("Conv", (8, 1, 3, 3), {"group": 4, "pads": [1] * 4}),
    ("Gemm", (4, 6), {}),
    ("Gemm", (6, 4), {"transB": 1}),
)


@pytest.mark.parametrize(("operator", "shape", "attributes"), LAYERS)
def test_patches_are_what_filters_see(
    operator: str, shape: tuple[int, ...], attributes: dict[str, object]
) -> None:
    x = normal(2, 4, 8, 8) if operator == "Conv" else normal(64, 4)
    m = model([node(operator, "x w", "y", **attributes)], {"w": normal(*shape)}, shape=x.shape)
    g = import_onnx(m)
    [n] = g.nodes
    filters = Filters(n, shape)
    weights = filters.matrices(g.constants["w"])
    np.testing.assert_array_equal(filters.weights(weights), g.constants["w"])
    grid = Grid(0.05, 128, U8)
    moments = Moments(filters, grid, second=True)
    moments.add(filters.patches(x, 10_000, np.random.default_rng(0)))
    for values, mean in ((x, moments.mean), (grid.rounded(x), moments.rounded_mean)):
        y = run(g, {"x": values.astype(np.float32)})["y"]
        means = y.mean(axis=tuple(i for i in range(y.ndim) if i != 1))
        found = np.einsum("gok,gk->go", weights, mean).reshape(-1)
        np.testing.assert_allclose(found, means, atol=1e-5)
    assert moments.second is not None
    power = np.einsum("gok,gkl,gol->go", weights, moments.second, weights).reshape(-1)
    np.testing.assert_allclose(power, (y**2).mean(axis=tuple(i for i in range(y.ndim) if i != 1)),
                               rtol=1e-3)  # fmt: skip


def uneven(activation: str) -> Graph:
    """Three convolutions, the middle one depthwise, whose channels have ranges of 1 to 1000."""
    range_ = np.float32(10) ** np.linspace(-3, 0, 8, dtype=np.float32)
    nodes = [
        node("Conv", "x w0 b0", "c0"),
        node(activation, "c0", "r0"),
        node("Conv", "r0 w1", "c1", group=8, pads=[1] * 4),
        node(activation, "c1", "r1"),
        node("Conv", "r1 w2", "y"),
    ]
    weights = {
        "w0": normal(8, 4, 1, 1) * range_.reshape(-1, 1, 1, 1),
        "b0": normal(8) * range_,
        "w1": normal(8, 1, 3, 3) / 3,
        "w2": normal(5, 8, 1, 1) / range_.reshape(-1, 1, 1) / 20,
    }
    return optimise(import_onnx(model(nodes, weights)))


def test_equalisation_leaves_the_network_as_it_is_and_its_channels_even() -> None:
    g, data = uneven("Relu"), inputs(8)
    even = equalised(find_scope(g), data)
    x = inputs(1, seed=3)[0]
    np.testing.assert_allclose(run(even, x)["y"], run(g, x)["y"], rtol=1e-5, atol=1e-6)

    def spread(n: Graph) -> float:
        middle = run(replace(n, outputs=("c0",)), x)["c0"].max((0, 2, 3))
        return float(middle.max() / middle.min())

    assert spread(even) < 0.1 * spread(g)
    q = quantise(g, data)
    assert differences(g, q, inputs(4, seed=3))["y"].sqnr > 15
    # A function that is not linear for positive factors is left alone.
    curved = find_scope(uneven("Sigmoid"))
    assert equalised(curved, data) is curved.graph


def branched(tail: str = "Relu") -> Graph:
    """Uneven channels that are pooled, concatenated, added, moved and read by several layers."""
    range_ = np.float32(10) ** np.linspace(-2, 0, 8, dtype=np.float32)
    uneven_rows, uneven_columns = range_.reshape(-1, 1, 1, 1), range_.reshape(1, -1, 1, 1)
    nodes = [
        node("Conv", "x w0", "c0"),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1", "c1"),
        node("Relu", "c1", "r1"),
        node("Add", "r1 r0", "s"),
        node("MaxPool", "r0", "m", kernel_shape=[3, 3], pads=[1] * 4),
        node("Concat", "s m", "k", axis=1),
        node("Reshape", "k five", "k5"),
        node("Transpose", "k5", "k6", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "k6 four", "u"),
        node("Resize", "u _ scales", "d", mode="nearest"),
        node("Conv", "d w2", "c2", group=16),
        node(tail, "c2", "r2"),
        node("Slice", "r2 starts ends axes", "t"),
        node("Conv", "t w3", "y"),
    ]
    weights = {
        "five": np.array([1, 2, 8, 8, 8]),
        "four": np.array([1, 16, 8, 8]),
        "w0": normal(8, 4, 1, 1) * uneven_rows,
        "w1": normal(8, 8, 1, 1) * uneven_rows / uneven_columns,
        "scales": np.array([1, 1, 2, 2], np.float32),
        "w2": normal(16, 1, 3, 3) / 3,
        "starts": np.array([4]),
        "ends": np.array([16]),
        "axes": np.array([1]),
        "w3": normal(5, 12, 1, 1) / np.tile(uneven_columns, (1, 2, 1, 1))[:, 4:] / 20,
    }
    return optimise(import_onnx(model(nodes, weights)))


def test_channels_keep_one_factor_through_branches() -> None:
    g, data = branched(), inputs(8)
    scope = find_scope(g)
    channels = linked(scope)
    assert len(channels.layers) == 4
    free = {name for name in channels.labels if channels.of(name) is not None}
    assert {"c0", "s", "m", "k", "d", "c2", "t"} <= free
    assert not free & {*g.inputs, *g.outputs}
    labels = channels.labels
    np.testing.assert_array_equal(labels["s"], labels["c0"])  # they are added
    np.testing.assert_array_equal(labels["k"], np.tile(labels["c0"], 2))
    np.testing.assert_array_equal(labels["t"], labels["c2"][4:])
    np.testing.assert_array_equal(labels["d"], labels["k"].reshape(2, 8).T.reshape(-1))
    x = inputs(1, seed=3)[0]
    even = equalised(scope, data)
    np.testing.assert_allclose(run(even, x)["y"], run(g, x)["y"], rtol=1e-5, atol=1e-6)
    assert differences(g, quantise(g, data), inputs(4, seed=3))["y"].sqnr > 32


def test_channels_between_others_stay_as_they_are() -> None:
    channels = linked(find_scope(branched("Sigmoid")))
    assert channels.of("t") is None
    assert channels.of("k") is not None


def test_the_written_file_is_read_as_it_was_made() -> None:
    q = quantise(graph(), inputs(4))
    again = optimise(import_onnx(export_onnx(q)))
    assert not [n for n in again.nodes if "uantize" in n.label]
    for x in inputs(2, seed=1):
        np.testing.assert_allclose(run(again, x)["y"], run(q, x)["y"], rtol=0, atol=1e-6)
