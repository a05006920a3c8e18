"""Functions and branches written out: names, attributes, opsets; and names that we make up."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import model, node, normal

X = normal(1, 4, 8, 8)
HEAD = '<ir_version: 10, opset_import: ["" : {}, "my" : 1]>\ng (float[1,4,8,8] x) => (float[] y) '


def result(m: onnx.ModelProto, x: Array = X) -> Array:
    """Before and after the passes."""
    graph = import_onnx(m)
    (plain,) = run(graph, {"x": x}).values()
    (optimised,) = run(optimise(graph), {"x": x}).values()
    np.testing.assert_allclose(optimised, plain, rtol=1e-5, atol=1e-6)
    return plain


def called(body: str, functions: str, opset: int = 18) -> Array:
    return result(parser.parse_model(f"{HEAD.format(opset)} {{ {body} }}\n{functions}"))


def branch(nodes: list[onnx.NodeProto], output: str, **weights: float) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "branch", [], [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()],
    )  # fmt: skip


def choice(inside: onnx.GraphProto, output: str) -> onnx.NodeProto:
    return node("If", "yes", output, then_branch=inside, else_branch=branch([], "x"))


YES = {"yes": np.array(True)}


@pytest.mark.parametrize("as_node", [False, True])
def test_branches_may_use_the_same_names(as_node: bool) -> None:
    def times(x: str, factor: float) -> onnx.GraphProto:
        product = node("Mul", f"{x} w", "p")
        if not as_node:
            return branch([product], "p", w=factor)
        value = helper.make_tensor("v", 1, [], [factor])
        return branch([node("Constant", "", "w", value=value), product], "p")

    m = model([choice(times("x", 2), "a"), choice(times("a", 10), "y")], YES)
    np.testing.assert_allclose(result(m), 20 * X, rtol=1e-6)


def test_branches_in_branches_hide_and_see_what_is_around() -> None:
    inner = branch([node("Mul", "p w", "q"), node("Add", "q x", "p2")], "p2", w=3)
    outer = branch([node("Mul", "x w", "p"), choice(inner, "r"), node("Add", "r w", "o")], "o", w=5)
    m = model([choice(outer, "p"), node("Add", "p w", "y")], {**YES, "w": np.float32(7)})
    np.testing.assert_allclose(result(m), 15 * X + X + 12, rtol=1e-5)


def test_a_branch_may_return_what_is_around_it_or_one_value_twice() -> None:
    twice = branch([node("Neg", "x", "n")], "n")
    twice.output.append(onnx.ValueInfoProto(name="n"))
    m = model([node("If", "yes", "a b", then_branch=twice, else_branch=twice),
               choice(branch([], "a"), "c"), node("Add", "b c", "y")], YES)  # fmt: skip
    np.testing.assert_allclose(result(m), -2 * X)


ONE = '<domain: "my", opset_import: ["" : {}{}]>\n'.format


@pytest.mark.parametrize("opsets", [(18, 17), (17, 18), (18, 11), (11, 18)])
def test_a_function_has_opsets_of_its_own(opsets: tuple[int, int]) -> None:
    ours, its = opsets
    axes = "<axes = [2, 3]> (a)" if its < 18 else "(a, where)"
    where = "where = Constant <value_ints = [2, 3]> ()" if its >= 18 else ""
    function = f"f (a) => (b) {{ {where} c = ReduceMean {axes} b = Sub (a, c) }}"
    found = called("y = my.f (x)", ONE(its, "") + function, ours)
    np.testing.assert_allclose(found, X - X.mean((2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "functions", "expected"),
    [
        ("z = my.f <alpha = 0.3> (x) y = my.f (z)",
         ONE(18, "")
         + "f <alpha: float = 0.7> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }",
         np.where(X < 0, 0.21 * X, X)),
        ("y = my.f (x)",
         ONE(18, "") + "f <alpha> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }",
         np.where(X < 0, 0.01 * X, X)),
        ("z = my.f (x) y = my.f (z)",
         ONE(18, ', "my" : 1') + "f (a) => (b) { c = my.h (a) b = my.h (c) }\n"
         + ONE(18, "") + "h (a) => (c) { b = Constant <value = float {1.5}> () c = Mul (a, b) }",
         1.5**4 * X),
        ("x1 = Neg (x) y = my.f (x1, x)",
         ONE(18, "") + "f (x, b) => (y) { x1 = Neg (x) z = Sub (x1, b) y = Identity (z) }", 0 * X),
        ("low = Constant <value = float {0.1}> () y = my.f (x, low)",
         ONE(18, "") + "f (a, low, high) => (b) { b = Clip (a, low, high) }",
         np.maximum(X, np.float32(0.1))),
        ("y, z = my.f (x)", ONE(18, "") + "f (a) => (a, b) { b = Neg (a) }", X),
        ("y = my.f <alpha = 0.5> (x)",
         ONE(18, "") + """f <alpha> (a) => (b) {
             s = Shape (a) r = Size (s) four = Constant <value = int64 {4}> () q = Equal (r, four)
             b = If (q) <then_branch = t () => (u) { u = LeakyRelu <alpha: float = @alpha> (a) },
                         else_branch = e () => (v) { v = Neg (a) }> }""",
         np.where(X < 0, 0.5 * X, X)),
    ],
    ids=["default", "no default", "nested", "names", "optional", "input is output", "if inside"],
)  # fmt: skip
def test_functions(body: str, functions: str, expected: Array) -> None:
    np.testing.assert_allclose(called(body, functions), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "functions", "message"),
    [
        ("y = my.f (x)", ONE(18, ', "my" : 1') + "f (a) => (b) { c = my.f (a) b = my.f (c) }",
         "without end"),
        ("y = my.f (x)", ONE(18, "") + "f (a) => (b) { b = Add (a, x) }", "nothing computes"),
        ("y = my.f (x, x)", ONE(18, "") + "f (a) => (b) { b = Neg (a) }", "fewer operands"),
        ("y = my.f (x)", ONE(18, "") + "f (a) => (b) { b = Neg (a) b = Exp (a) }", "twice"),
        ("y = my.f (x)", ONE(5, "") + "f (a) => (b) { b = Neg (a) }", "older than 7"),
        ("y = my.f (x)", ONE(18, "") + "f (a) => (b) { b = Neg <alpha = 1> (a) }", "alpha"),
    ],
)  # fmt: skip
def test_impossible_functions(body: str, functions: str, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        called(body, functions)
    assert "\n" not in str(caught.value)


def test_a_name_that_we_would_make_up_may_be_taken() -> None:
    names = ["y.1", "y.2", "y/mean", "y/mean.1", "y.scale", "y.weights", "y.bias"]
    for taken in names:
        nodes = [node("Neg", "x", taken), node("Softmax", taken, "s", axis=1),
                 node("InstanceNormalization", "s one one", "y")]  # fmt: skip
        m = model([*nodes], {"one": np.ones(4, np.float32)}, opset=11)
        plain = model(nodes, {"one": np.ones(4, np.float32)}, opset=11)
        for changed in plain.graph.node:
            changed.input[:] = ["n" if x == taken else x for x in changed.input]
            changed.output[:] = ["n" if x == taken else x for x in changed.output]
        np.testing.assert_array_equal(result(m), result(plain))


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_own_domain_of_onnx_has_two_names(domain: str) -> None:
    nodes = [node("Shape", "x", "s"), node("Reshape", "x s", "r"), node("Neg", "r", "y")]
    for one in nodes:
        one.domain = domain
    m = model(nodes)
    m.opset_import[0].domain = "ai.onnx" if not domain else ""
    np.testing.assert_array_equal(result(m), -X)


def test_two_values_of_one_name_are_an_error() -> None:
    repeated = model([node("Neg", "x", "a"), node("Exp", "x", "a"), node("Relu", "a", "y")])
    weight = model([node("Neg", "x", "w"), node("Relu", "w", "y")], {"w": np.ones(1, np.float32)})
    for m in (repeated, weight):
        with pytest.raises(GraphError, match=r"'[aw]'.* damaged"):
            import_onnx(m)


def test_what_no_output_needs_is_left_out() -> None:
    """Unsupported operators, open sizes and types other than tensors may be there."""
    nodes = [node("Neg", "x", "y"), node("Det", "open", "d"), node("SequenceLength", "many", "n")]
    m = model(nodes)
    m.graph.input.append(helper.make_tensor_value_info("open", 1, ["h", "w"]))
    m.graph.input.append(helper.make_tensor_sequence_value_info("many", 1, None))
    m.graph.input.append(helper.make_tensor_value_info("ids", 7, ["n"]))
    graph = import_onnx(m)
    assert (graph.inputs, graph.unread) == (("x",), ("open", "many", "ids"))
    assert len(graph.nodes) == 1
    m.opset_import[0].version = 99
    with pytest.raises(UnsupportedError, match="opset 99 is newer"):
        import_onnx(m)
