"""The text form of a problem, and the shapes it implies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrun.kernels.core import reference
from fastrun.kernels.core.problem import ACTIVATIONS, ConvProblem, ProblemError
from fastrun.kernels.core.reference import convolve


@st.composite
def problems(draw: st.DrawFn) -> ConvProblem:
    small = st.integers(1, 4)
    groups = draw(small)
    return ConvProblem(
        n=draw(small),
        c=groups * draw(small),
        h=draw(st.integers(13, 40)),
        w=draw(st.integers(13, 40)),
        oc=groups * draw(small),
        kernel=(draw(small), draw(small)),
        stride=(draw(small), draw(small)),
        padding=(draw(small), draw(small), draw(small), draw(small)),
        dilation=(draw(small), draw(small)),
        groups=groups,
        bias=draw(st.booleans()),
        add=draw(st.booleans()),
        activation=draw(st.sampled_from(["", *ACTIVATIONS])),
    )


@given(problems())
def test_text_round_trips(p: ConvProblem) -> None:
    assert ConvProblem.parse(str(p)) == p


@given(problems())
def test_output_shape_is_the_reference_s(p: ConvProblem) -> None:
    y = convolve(p, np.zeros((p.n, p.c, p.h, p.w)), np.zeros(p.weight_shape))
    assert y.shape == (p.n, p.oc, p.oh, p.ow)


def test_text_is_short_where_pairs_are_equal() -> None:
    text = "conv 1x64x56x56 64x3x3 s1 p1 bias relu"
    assert str(ConvProblem.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected conv"),
        ("gemm 1x2x3x4 5x6x7", "expected conv"),
        ("conv 1x2x3 5x1x1", "'1x2x3'"),
        ("conv 1x2x3x4 5x1", "'5x1'"),
        ("conv 1x2x3x4 5x1x1 q7", "'q7'"),
        ("conv 1x2x3x4 5x1x1 s1 s2", "'s2'"),
        ("conv 1x2x3x4 5x1x1 p1,2,3", "'p1,2,3'"),
        ("conv 1x2x3x4 5x1x1 elu", "'elu'"),
        ("conv 1x2x3x4 5x1x1 leaky1.5", "'leaky1.5'"),
        ("conv 1x2x3x4 5x1x1 leaky0.", "'leaky0.'"),
        ("conv 1x2x3x4 5x9x9", "does not fit"),
        ("conv 1x4x9x9 6x1x1 g4", "groups"),
        ("conv 1x0x9x9 6x1x1", "at least 1"),
        ("conv 1x4x9x9 6x1x1 s0", "at least 1"),
        ("conv 99999999999x1x1x1 1x1x1", "'99999999999x1x1x1'"),
    ],
)
def test_bad_text_is_refused_in_one_line_at_the_token(text: str, named: str) -> None:
    with pytest.raises(ProblemError) as error:
        ConvProblem.parse(text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("room", [1, 60, 200, reference._PATCHES])
def test_reference_against_the_definition(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven plain loops on one small problem with everything unequal, cut in blocks of any size."""
    monkeypatch.setattr(reference, "_PATCHES", room)
    p = ConvProblem.parse("conv 2x4x5x6 6x2x3 s2x1 p1,0,2,1 d1x2 g2")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal(p.weight_shape)
    y = np.zeros((p.n, p.oc, p.oh, p.ow))
    for n, oc, oy, ox in np.ndindex(*y.shape):
        for c, ky, kx in np.ndindex(p.group_c, *p.kernel):
            iy = oy * p.stride[0] + ky * p.dilation[0] - p.padding[0]
            ix = ox * p.stride[1] + kx * p.dilation[1] - p.padding[1]
            if 0 <= iy < p.h and 0 <= ix < p.w:
                y[n, oc, oy, ox] += (
                    x[n, oc // p.group_oc * p.group_c + c, iy, ix] * w[oc, c, ky, kx]
                )
    np.testing.assert_allclose(convolve(p, x, w), y, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "conv"),
    [
        ("matmul 1x196x768 768x3072 bias gelu", "conv 1x768x1x196 3072x1x1 s1 p0 bias gelu"),
        ("matmul 49x64 64x10 bias add", "conv 1x64x1x49 10x1x1 s1 p0 bias add"),
        ("matmul 4x7x16 16x16 u8s8>u8", "conv 4x16x1x7 16x1x1 s1 p0 u8s8>u8"),
    ],
)
def test_a_product_is_a_convolution(text: str, conv: str) -> None:
    assert str(ConvProblem.parse(text)) == conv


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("matmul 4x8", "expected matmul"),
        ("matmul 4x8 9x3", "at '9x3' expected a matrix of 8 rows"),
        ("matmul 4x8x1x2 2x3", "expected MxK"),
        ("matmul 4x8 8x3 s2", "a product has no stride"),
        ("matmul 4x8 8x3 bias bias", "bias to be given once"),
        ("matmul 4x8 8x3 swish", "at 'swish' expected .bias"),
    ],
)
def test_impossible_products(text: str, why: str) -> None:
    with pytest.raises(ProblemError, match=why):
        ConvProblem.parse(text)
