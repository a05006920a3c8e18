"""Reorders between element types and halos of them, in every layout and vector width."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32, S8, U8, DType
from fastrun.kernels.core.layout import NCHW, NHWC, Halo, Layout, Placement
from fastrun.kernels.core.scales import Quantisation, scales, table
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.compile import compile_assembly, compile_object
from fastrun.kernels.native.library import Library
from fastrun.kernels.ops import halo, reorder
from fastrun.kernels.ops.halo import ZeroHalo
from fastrun.kernels.ops.reorder import Reorder
from tests.kernels.test_ops import HALO, LAYOUTS, NO_HALO
from tests.support.execution import ENTRY, Guarded, execute
from tests.support.lanes import CPUS, cpus
from tests.support.typed import DST, SRC, values, with_scales

HALOS = [(NO_HALO, NO_HALO), (HALO, NO_HALO), (NO_HALO, HALO), (HALO, HALO)]
SHAPES = [
    (2, 37, 5, 7),
    (1, 3, 9, 19),
    (1, 16, 12, 16),
    (1, 70, 3, 65),
    (1, 1, 1, 1),
    (1, 4, 2, 33),
]
TYPES = [(F32, U8), (U8, F32), (U8, U8), (F32, BF16), (BF16, F32), (BF16, BF16), (F32, F16)]


def converted(x: np.ndarray, before: DType, after: DType) -> np.ndarray:
    """Elements of one type as elements of the other, in float32 arithmetic."""
    if before == after:
        return x
    if after is U8:
        steps = np.rint(x / np.float32(DST.scale)) + np.float32(DST.zero)
        return np.clip(steps, 0, 255).astype(np.uint8)
    if before is U8:
        return (x.astype(np.float32) - np.float32(SRC.zero)) * np.float32(SRC.scale)
    return after.decode(after.encode(x))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_every_type_in_every_layout(cpu: Cpu) -> None:
    """Each pair of layouts with some types; tails in both directions, with gaps between rows."""
    cases = list(product(LAYOUTS, LAYOUTS, range(2)))
    for number, (a, b, _) in enumerate(cases, CPUS.index(cpu)):
        (before, after), shape = TYPES[number % len(TYPES)], SHAPES[number % len(SHAPES)]
        ha, hb = HALOS[number % len(HALOS)]
        src = Placement(a.of(before), *shape, ha, zero=7 if before is U8 else 0)
        dst = Placement(b.of(after), *shape, hb)
        x = values(before, *shape)
        program = reorder.build(Reorder(), cpu, src, dst)
        for threads in (1, 3):
            found = execute(program, with_scales(x=x), threads)
            assert np.array_equal(found, converted(x, before, after)), f"{src} to {dst}"


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_table(cpu: Cpu) -> None:
    entries = np.random.default_rng(1).permutation(256).astype(np.uint8)
    for number, (a, b) in enumerate(product(LAYOUTS[:4], LAYOUTS[:4])):
        shape = SHAPES[number % len(SHAPES)]
        src, dst = Placement(a.of(U8), *shape), Placement(b.of(U8), *shape, HALO)
        x = values(U8, *shape)
        program = reorder.build(Reorder(lookup=True), cpu, src, dst)
        found = execute(program, with_scales(x=x, weights=entries), threads=2)
        assert np.array_equal(found, entries[x])


@pytest.mark.parametrize("dtype", [F32, U8, BF16])
def test_parts_of_larger_tensors(dtype: DType) -> None:
    """The other channels stay as they are; `execute` checks it."""
    shape, cpu = (1, 24, 3, 17), CPUS[2]
    x = values(dtype, *shape)
    for a, b in product(LAYOUTS[:4], LAYOUTS[:4]):
        src = Placement(a.of(dtype), 1, 40, 3, 17, HALO).part(16, 24)
        dst = Placement(b.of(U8 if dtype is U8 else F32), 1, 56, 3, 17).part(8, 24)
        found = execute(reorder.build(Reorder(), cpu, src, dst), with_scales(x=x), threads=2)
        assert np.array_equal(found, converted(x, dtype, dst.dtype))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_quantising_rounds_ties_to_even_and_knows_all_floats(cpu: Cpu) -> None:
    special = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -0.0, 0.0]
    ties = (np.arange(-700, 700) + 0.5) * 0.037
    near = np.float32(ties) * (1 + np.arange(-2, 3)[:, None] * np.float32(2**-24))
    x = np.concatenate([special, ties, near.reshape(-1)]).astype(np.float32).reshape(1, 1, 1, -1)
    place = Placement(NCHW, *x.shape)
    program = reorder.build(Reorder(), cpu, place, Placement(NCHW.of(U8), *x.shape))
    found = execute(program, with_scales(x=x)).reshape(-1)
    assert np.array_equal(found[:8], [0, 255, 0, 255, 0, *[DST.zero] * 3])
    assert np.array_equal(found[8:], converted(x.reshape(-1)[8:], F32, U8))
    exact = Quantisation(0.25, 3)
    found = execute(program, {**with_scales(x=x), "packed_bias": scales(SRC, exact)}).reshape(-1)
    assert np.array_equal(found, exact.stored(x.reshape(-1)))


def test_tables_have_the_value_in_float64() -> None:
    src, dst = Quantisation(0.5, 128), Quantisation(1.0, 3)
    found = table(src, dst)
    assert found[128:136].tolist() == [3, 3, 4, 5, 5, 5, 6, 7]  # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2
    assert (found[:122] == 0).all()
    assert table(src, dst, lambda x: np.log(x)).tolist()[127:131] == [0, 0, 2, 3]


def test_scales_that_are_refused() -> None:
    for scale in (0.0, -1.0, np.nan, np.inf, 1e-45):
        with pytest.raises(ValueError, match="no scale"):
            Quantisation(scale)
    with pytest.raises(ValueError, match="outside of u8"):
        Quantisation(1.0, 256)


def test_reorders_that_are_refused() -> None:
    def place(dtype: DType) -> Placement:
        return Placement(NHWC.of(dtype), 1, 8, 2, 2)

    for before, after in ((U8, BF16), (S8, F32), (U8, S8)):
        with pytest.raises(ScheduleError, match="no reorder"):
            reorder.build(Reorder(), CPUS[0], place(before), place(after))
    with pytest.raises(ScheduleError, match="u8"):
        reorder.build(Reorder(lookup=True), CPUS[0], place(F32), place(U8))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_halo_of_zero_points(layout: Layout) -> None:
    margins: Halo = (2, 1, 0, 3)
    place = Placement(layout.of(U8), 2, 21, 5, 7, margins, zero=131)
    program = halo.build(ZeroHalo(), CPUS[1], place, place)
    guarded = Guarded(np.full(place.size, 7, np.uint8))
    library = Library(compile_object(program.ir, Cpu.host()), ["zero_halo"])
    ENTRY(library.address("zero_halo"))(
        0, 0, 0, 0, guarded.inner.ctypes.data, 0, 0, 0, program.stages[0].tasks
    )
    assert guarded.intact()
    assert (place.halo_of(guarded.inner) == 131).all()
    assert (place.unpack(guarded.inner) == 7).all()


def test_other_processors_can_run_them() -> None:
    """Instructions that a target lacks would end the process."""
    for cpu in (Cpu.avx2(), Cpu.avx512(), Cpu.neon()):
        place = Placement(NHWC.of(U8), 1, 24, 5, 5)
        for spec, dst in ((Reorder(lookup=True), place), (Reorder(), Placement(NCHW, 1, 24, 5, 5))):
            assert compile_assembly(reorder.build(spec, cpu, place, dst).ir, cpu)
