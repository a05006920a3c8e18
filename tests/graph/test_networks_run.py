"""Small networks, run natively in all kinds of layouts, against the float64 interpreter."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import InputError, UnsupportedError
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, Choose, heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.conv import direct, planar
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from tests.support.execution import relative_error
from tests.support.graph_models import batch_norm, model, node, normal

pytestmark = pytest.mark.slow

CPU = Cpu.host()
TOLERANCE = 2e-5
CHANNEL_LAYOUTS = ("NHWC", "NCHW4c", "NCHW8c", "NCHW16c")


def conv(x: str, y: str, w: str, pad: int = 0, **attributes: object) -> onnx.NodeProto:
    return node("Conv", f"{x} {w}", y, pads=[pad] * 4, **attributes)


def weights(oc: int, c: int, k: int, seed: int = 0) -> np.ndarray:
    return normal(oc, c, k, k, seed=seed) * np.float32((c * k * k) ** -0.5)


def residual() -> onnx.ModelProto:
    """Halos of several widths, a strided shortcut, a residual, pools, a dense layer."""
    nodes = [
        conv("x", "a", "w7", 3, strides=[2, 2]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        conv("c", "d", "w3", 1),
        node("Relu", "d", "e"),
        conv("e", "f", "w5", 2),
        node("Add", "f c", "g"),
        node("Relu", "g", "h"),
        conv("h", "i", "w1", strides=[2, 2]),
        node("GlobalAveragePool", "i", "j"),
        node("Flatten", "j", "k"),
        node("Gemm", "k fc bias", "y", transB=1),
    ]
    constants = {
        "w7": weights(20, 3, 7), "w3": weights(20, 20, 3), "w5": weights(20, 20, 5),
        "w1": weights(24, 20, 1), "fc": normal(10, 24), "bias": normal(10),
    }  # fmt: skip
    return model(nodes, constants, shape=(2, 3, 33, 29))


def concatenations() -> onnx.ModelProto:
    """Aligned, unaligned and repeated parts, concatenations of concatenations, slices of them."""
    nodes = [
        conv("x", "a", "wa"),
        conv("x", "b", "wb", 1),
        node("Concat", "a b", "ab", axis=1),
        conv("ab", "c", "wc", 1),
        node("Concat", "c ab a", "d", axis=1),
        node("Slice", "d s0 e0 one", "p"),
        node("Slice", "d s1 e1 one", "q"),
        node("Concat", "q p", "r", axis=1),
        conv("r", "s", "wr", 1),
        node("Add", "s p", "y"),
    ]
    constants = {
        "wa": weights(16, 4, 1), "wb": weights(21, 4, 3), "wc": weights(7, 37, 3),
        "wr": weights(19, 41, 3), "one": np.array([1]), "s0": np.array([3]), "e0": np.array([22]),
        "s1": np.array([37]), "e1": np.array([59]),
    }  # fmt: skip
    nodes[5].input[3], nodes[6].input[3] = "one", "one"
    return model(nodes, constants)


def shuffled() -> onnx.ModelProto:
    """Two ShuffleNet units, the first strided."""
    nodes, constants = [], {}
    for name, oc, c, k, groups in [
        ("l1", 4, 4, 3, 4), ("l2", 13, 4, 1, 1), ("r1", 13, 4, 1, 1), ("r2", 13, 13, 3, 13),
        ("r3", 13, 13, 1, 1), ("s1", 13, 13, 1, 1), ("s2", 13, 13, 3, 13), ("s3", 13, 13, 1, 1),
        ("last", 20, 26, 1, 1),
    ]:  # fmt: skip
        constants[name] = weights(oc, c // groups, k, seed=len(constants))
    two = [2, 2]
    nodes += [conv("x", "a", "l1", 1, strides=two, group=4), conv("a", "left", "l2")]
    nodes += [conv("x", "b", "r1"), conv("b", "c", "r2", 1, strides=two, group=13)]
    nodes += [conv("c", "right", "r3"), *shuffle("left right", "u")]
    nodes += [
        node("Split", "u", "v w", axis=1, num_outputs=2),
        conv("w", "d", "s1"),
        node("Relu", "d", "e"),
        conv("e", "f", "s2", 1, group=13),
        conv("f", "g", "s3"),
        *shuffle("v g", "h"),
        conv("h", "y", "last"),
    ]
    constants |= {"split": np.array([1, 2, 13, 4, 4]), "join": np.array([1, 26, 4, 4])}
    return model(nodes, constants, opset=18)


def shuffle(parts: str, y: str) -> list[onnx.NodeProto]:
    return [
        node("Concat", parts, f"{y}.c", axis=1),
        node("Reshape", f"{y}.c split", f"{y}.s"),
        node("Transpose", f"{y}.s", f"{y}.t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", f"{y}.t join", y),
    ]


def excited() -> onnx.ModelProto:
    """Depthwise convolution, squeeze and excitation, activations that no convolution takes."""
    nodes = [
        conv("x", "a", "up"),
        node("HardSwish", "a", "b"),
        conv("b", "c", "dw", 2, group=24),
        node("LeakyRelu", "c", "d", alpha=0.2),
        node("ReduceMean", "d axes", "e"),
        conv("e", "f", "s1"),
        node("Relu", "f", "g"),
        conv("g", "h", "s2"),
        node("Sigmoid", "h", "i"),
        node("Mul", "d i", "j"),
        conv("j", "k", "down"),
        node("Mul", "scale k", "l"),
        node("Sub", "l shift", "m"),
        node("Tanh", "m", "n"),
        node("Add", "n x", "y"),
    ]
    constants = {
        "up": weights(24, 4, 1), "dw": weights(24, 1, 5), "s1": weights(6, 24, 1),
        "s2": weights(24, 6, 1), "down": weights(4, 24, 1), "axes": np.array([2, 3]),
        "scale": normal(4, 1, 1), "shift": np.float32(0.25),
    }  # fmt: skip
    return model(nodes, constants, opset=18)


def preactivated() -> onnx.ModelProto:
    """As in DenseNet: each result is concatenated with all earlier ones, after normalisation."""
    nodes, constants, c = [], {}, 4
    names = "x"
    for i in range(3):
        parameters = {f"{k}{i}": v for k, v in batch_norm(c, seed=i).items()}
        constants |= parameters
        nodes += [
            node("BatchNormalization", f"{names} {' '.join(parameters)}", f"n{i}"),
            node("Relu", f"n{i}", f"r{i}"),
            conv(f"r{i}", f"g{i}", f"w{i}", 1),
            node("Concat", f"{names} g{i}", f"c{i}", axis=1),
        ]
        constants[f"w{i}"] = weights(12, c, 3, seed=i)
        names, c = f"c{i}", c + 12
    nodes += [node("GlobalMaxPool", "c2", "p"), node("Flatten", "p", "q")]
    return model([*nodes, node("Softmax", "q", "y", axis=1)], constants)


def reshaped() -> onnx.ModelProto:
    """Reshapes between convolutions, of tensors with and without halos; a 1-D convolution."""
    nodes = [
        conv("x", "a", "wa", 1),
        node("Reshape", "a flat", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c w1", "d", pads=[2, 2]),
        node("Reshape", "d image", "e"),
        conv("e", "f", "we", 1),
        conv("e", "g", "wg"),
        node("Concat", "f g e", "y", axis=1),
    ]
    constants = {
        "wa": weights(6, 4, 3), "w1": normal(6, 6, 5) * np.float32(0.2), "we": weights(5, 6, 3),
        "wg": weights(3, 6, 1), "flat": np.array([1, 6, 64]), "image": np.array([1, 6, 8, 8]),
    }  # fmt: skip
    return model(nodes, constants)


def reworked() -> onnx.ModelProto:
    """Operators that know axes instead of channels, between convolutions."""
    nodes = [
        conv("x", "a", "wa", 1),
        node("Transpose", "a", "b", perm=[0, 1, 3, 2]),
        node("Pad", "b pads", "c", mode="reflect"),
        conv("c", "d", "wd", 1),
        node("Slice", "d starts ends axes steps", "e"),
        node("ConvTranspose", "e wt bias", "f", strides=[2, 2], pads=[1] * 4),
        node("Concat", "f rows f", "g", axis=2),
        conv("g", "h", "wh"),
        node("Resize", "h _ scales", "i", mode="linear"),
        node("LRN", "i", "j", size=3),
        node("PRelu", "j slope", "k"),
        node("Softmax", "k", "l", axis=1),
        node("ReduceSum", "l last", "m", keepdims=1),
        node("Mul", "l m", "n"),
        node("MatMul", "n matrix", "o"),
        node("ReduceMax", "o last", "p", keepdims=0),
        node("Concat", "p other", "q", axis=1),
        node("Gather", "q picked", "y", axis=1),
    ]
    constants = {
        "wa": weights(6, 4, 3), "wd": weights(9, 6, 3), "wt": weights(9, 7, 3), "bias": normal(7),
        "rows": normal(1, 7, 2, 9), "wh": weights(5, 7, 1), "slope": normal(5, 1, 1),
        "pads": np.array([0, 0, 2, 1, 0, 0, 1, 2]), "starts": np.array([1, 8]),
        "ends": np.array([11, -100]), "axes": np.array([2, 3]), "steps": np.array([2, -2]),
        "scales": np.array([1, 1, 1.5, 2], np.float32), "last": np.array([3]),
        "matrix": normal(18, 11), "other": normal(1, 3, 30), "picked": np.array([7, 0, 2]),
    }  # fmt: skip
    return model(nodes, constants, opset=18)


def decoded() -> onnx.ModelProto:
    """Maps enlarged, framed and cropped between convolutions of channels that leave a rest."""
    nodes = [
        conv("x", "a", "wa", 1),
        node("Resize", "a _ twice", "b", mode="linear"),
        conv("b", "c", "wb", 1),
        node("Resize", "c _ uneven", "d", mode="nearest"),
        node("Pad", "d frame", "e", mode="reflect"),
        conv("e", "f", "wc"),
        node("Pad", "f crop", "g"),
        conv("g", "y", "wd", 1),
    ]
    constants = {
        "wa": weights(19, 4, 3), "wb": weights(21, 19, 3), "wc": weights(21, 21, 3),
        "wd": weights(5, 21, 3), "twice": np.float32([1, 1, 2, 2]),
        "uneven": np.float32([1, 1, 1.5, 2.5]), "frame": np.array([0, 0, 2, 1, 0, 0, 1, 3]),
        "crop": np.array([0, 0, -1, 2, 0, 0, 1, -2]),
    }  # fmt: skip
    return model(nodes, constants)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        residual,
        concatenations,
        shuffled,
        excited,
        preactivated,
        reshaped,
        reworked,
        decoded,
    )
}


def only(*layouts: str) -> Choose:
    """Direct convolution between these layouts, planar where both are NCHW; all equally fast."""
    return priced(layouts, lambda: 1e-6)


def shaken(seed: int, cpu: Cpu = CPU) -> Choose:
    """Any layouts, at random prices, so that plans mix them."""
    prices = random.Random(seed)
    return priced(("NCHW", *CHANNEL_LAYOUTS), lambda: prices.uniform(1e-6, 1e-4), cpu)


def priced(layouts: Sequence[str], price: Callable[[], float], cpu: Cpu = CPU) -> Choose:
    def choose(p: ConvProblem) -> list[Choice]:
        found = []
        for src, dst in itertools.product(layouts, layouts):
            template = planar.template if dst == "NCHW" else direct.template
            if dst == "NCHW" != src:
                continue
            schedule = replace(template.heuristic(p, cpu), layout=f"{src}>{dst}")
            if template is planar.template:
                schedule = replace(schedule, layout="NCHW")
            if p.groups == 1 or {src, dst} <= {"NCHW", "NHWC"}:
                pair = Layout(src), Layout(dst)
                found.append(Choice(template.text(schedule), *pair, price()))
        return found

    return choose


def check(proto: onnx.ModelProto, choose: Choose, threads: int = 1, cpu: Cpu = CPU) -> Executable:
    """Compare two runs on different inputs; the second must not see the first."""
    truth, graph = load_network(proto), optimise(load_network(proto))
    plan, arrangement = make_plan(graph, choose, cpu)
    executable = Executable.of(arrangement, cpu, threads, plan)
    for seed in range(2):
        x = normal(*executable.inputs["x"], seed=seed)
        expected = reference.run(truth, {"x": x})
        found = executable.run({"x": x})
        assert found.keys() == expected.keys() == executable.outputs.keys()
        for name, value in expected.items():
            assert found[name].shape == value.shape == executable.outputs[name]
            assert relative_error(found[name], value) < TOLERANCE
    return executable


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_by_heuristic(name: str, threads: int) -> None:
    check(NETWORKS[name](), heuristic_choices(CPU), threads)


@pytest.mark.parametrize("layouts", [("NCHW",), ("NCHW", "NHWC"), ("NCHW", "NCHW8c")], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_in_one_layout(name: str, layouts: tuple[str, ...]) -> None:
    check(NETWORKS[name](), only(*layouts))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NETWORKS)
def test_in_mixed_layouts(name: str, seed: int) -> None:
    check(NETWORKS[name](), shaken(seed))


def test_prices_do_mix_layouts_and_moves_are_steps() -> None:
    graph = optimise(load_network(concatenations()))
    plan, arrangement = make_plan(graph, shaken(0), CPU)
    assert len({form.writes for form in plan.forms.values()}) > 2
    assert any(step.work == "reorder" for step in arrangement.steps)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW16c"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_finite_leaves_no_trace(name: str, layout: str) -> None:
    """Neither halos nor padding channels may keep values of an earlier run in the arena."""
    graph = optimise(load_network(NETWORKS[name]()))
    plan, arrangement = make_plan(graph, only("NCHW", layout), CPU)
    executable = Executable.of(arrangement, CPU, 1, plan)
    x = normal(*graph.shape("x"))
    clean = executable.run({"x": x})["y"]
    poisoned = executable.run({"x": np.full_like(x, np.nan)})["y"]
    assert np.isnan(poisoned).any()
    assert np.array_equal(executable.run({"x": x})["y"], clean)


@pytest.mark.parametrize("layout", CHANNEL_LAYOUTS)
def test_wide_halos_stay_zero_from_run_to_run(layout: str) -> None:
    """No step zeroes them; tensors of equal halos take turns, and those of others lie elsewhere."""
    nodes = [conv("x", "t0", "first")]
    nodes += [conv(f"t{i}", f"t{i + 1}", "next", d, dilations=[d, d]) for i, d in
              enumerate([3, 3, 5, 3, 5, 5])]  # fmt: skip
    nodes += [conv("t6", "y", "last")]
    constants = {"first": weights(20, 4, 1), "next": weights(20, 20, 3), "last": weights(8, 20, 1)}
    network = check(model(nodes, constants), only("NCHW", layout))
    assert not any(step.work == "halo" for step in network.steps)
    x, other = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1) * np.float32(1e3)
    clean = network.run({"x": x})["y"]
    network.run({"x": other})
    network.run({"x": np.full_like(x, np.inf)})
    assert np.array_equal(network.run({"x": x})["y"], clean)
    assert np.array_equal(network.clone().run({"x": x})["y"], clean)


def test_aligned_concatenation_copies_nothing() -> None:
    nodes = [
        conv("x", "a", "wa"), conv("x", "b", "wb", 1), node("Concat", "a b", "c", axis=1),
        conv("c", "y", "wc"),
    ]  # fmt: skip
    constants = {"wa": weights(16, 4, 1), "wb": weights(32, 4, 3), "wc": weights(8, 48, 1)}
    for layout in CHANNEL_LAYOUTS:
        executable = check(model(nodes, constants), only("NCHW", layout))
        works = [row["work"] for row in executable.profile(1)]
        assert works.count("reorder") <= 2  # of the network's input and output
        assert "Concat" not in works


def test_inputs_and_outputs_may_be_any_tensors() -> None:
    """An input, a constant, a tensor that others read, one that is a part of another."""
    nodes = [
        conv("x", "a", "w", 1),
        node("Concat", "a x", "b", axis=1),
        node("Relu", "b", "y"),
        node("Identity", "x", "z"),
        node("Neg", "w", "fixed"),
    ]
    proto = model(nodes, {"w": weights(8, 4, 3)})
    for name in ("a", "b", "z", "fixed"):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    for layout in CHANNEL_LAYOUTS:
        check(proto, only("NCHW", layout))


def test_a_network_may_do_nothing() -> None:
    executable = check(model([node("Flatten", "x", "y")]), heuristic_choices(CPU))
    assert executable.profile() == []
    assert executable.seconds() == 0


def test_runs_that_are_timed_have_the_inputs_of_the_first() -> None:
    """Times would be those of other numbers, and subnormal ones take ten times as long."""
    executable = check(residual(), heuristic_choices(CPU))
    expected = executable.run({"x": normal(2, 3, 33, 29, seed=3)})["y"]
    executable.seconds(3)
    executable.profile(2)
    np.testing.assert_array_equal(executable._context.results()["y"], expected)


def test_clones_share_weights_and_nothing_else() -> None:
    first = check(residual(), heuristic_choices(CPU))
    second = first.clone()
    x, other = (normal(2, 3, 33, 29, seed=seed) for seed in (3, 4))
    expected = first.run({"x": x})["y"]
    second.run({"x": other})
    assert np.array_equal(second.run({"x": x})["y"], expected)
    assert first.memory == second.memory
    assert first._loaded is second._loaded


@pytest.mark.parametrize("threads", [1, 2])
def test_clones_run_in_several_python_threads(threads: int) -> None:
    first = check(concatenations(), heuristic_choices(CPU), threads)
    inputs = [{"x": normal(1, 4, 8, 8, seed=seed)} for seed in range(4)]
    expected = [first.run(x)["y"] for x in inputs]
    clones = [first, *(first.clone() for _ in inputs[1:])]

    def work(i: int) -> bool:
        return all(np.array_equal(clones[i].run(inputs[i])["y"], expected[i]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_one_executable_serves_several_python_threads() -> None:
    network = check(excited(), heuristic_choices(CPU), 2)
    inputs = [{"x": normal(1, 4, 8, 8, seed=seed)} for seed in range(4)]
    expected = [network.run(x)["y"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda x: network.run(x)["y"], inputs))
            assert all(map(np.array_equal, found, expected))


def test_profile_names_what_ran() -> None:
    executable = check(residual(), heuristic_choices(CPU))
    rows = executable.profile(3)
    assert abs(sum(row["share"] for row in rows) - 1) < 1e-6
    assert {"max pool", "Conv + relu", "Gemm", "reorder"} <= {row["work"] for row in rows}
    assert all(row["seconds"] >= 0 for row in rows)
    assert executable.seconds(3) > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 4, 8, 8), np.float32), "z": np.zeros(1)}, "no input 'z'.*are x"),
        ({"x": np.zeros((1, 4, 8, 9), np.float32)}, r"\(1, 4, 8, 9\) instead of \(1, 4, 8, 8\)"),
        ({"x": np.zeros((1, 4, 8, 8))}, "float64: give it as float32"),
        ({"x": [1, 2]}, "a list, not a numpy array"),
    ],
)
def test_wrong_inputs_are_refused_in_a_line(inputs: dict[str, np.ndarray], message: str) -> None:
    graph = optimise(load_network(reshaped()))
    plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    with pytest.raises(InputError, match=message):
        Executable.of(arrangement, CPU, 1, plan).run(inputs)


def test_what_cannot_be_run_is_named() -> None:
    for nodes, message in [
        ([node("Bernoulli", "x", "y")], "'y' \\(Bernoulli\\)"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            make_plan(optimise(load_network(model(nodes))), heuristic_choices(CPU), CPU)
