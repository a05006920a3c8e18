"""Element types: float32 is the default, not an assumption."""

import numpy as np

from fastrun.kernels.codegen.builder import Index, Kernel, Module, fma
from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.layout import NHWC, Placement
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from tests.support.execution import ENTRY

F64, INT4 = DType("f64", 64, "float64", "double"), DType("i4", 4, "uint8", "i4")


def test_sizes() -> None:
    assert (F32.bytes(3), F64.bytes(3), INT4.bytes(3)) == (12, 24, 2)
    assert (F32.count(64), F64.count(64), INT4.count(64)) == (16, 8, 128)
    assert (whole_lines(17), whole_lines(17, F64), whole_lines(17, INT4)) == (32, 24, 128)


def test_a_kernel_of_doubles() -> None:
    """Loads, register tiles, constants, shuffles and stores, in a placement with a halo."""
    cpu = Cpu.host()
    where = Placement(NHWC.of(F64), 1, 7, 2, 3, (1, 1, 0, 0))
    module = Module(cpu)

    @module.stage("third", where.h)
    def write_third(k: Kernel, y: Index) -> None:
        src, dst = k.tensor("src", where), k.tensor("dst", where)
        acc = k.tile(1, 1, 4, F64)
        with k.loop(where.w) as column:
            for first, count in ((0, 4), (4, 3)):
                acc[0, 0] = src.load_first(count, 0, 0, y, column, first, lanes=4)
                third = k.splat(k.shuffle(acc[0, 0], acc[0, 0], [0]), 4)
                value = fma(acc[0, 0], acc[0, 0], third * (1 / 3))
                dst.store_first(value.max(0.1), count, 0, 0, y, column, first)

    program = module.program(Io(where, where, where))

    x = np.random.default_rng(0).standard_normal((1, 7, 2, 3))
    given, found = where.pack(x), np.zeros(where.size)
    library = Library(ObjectCache().object(program.ir, cpu), ["third"])
    pointers = [array.ctypes.data for array in (given, *[found] * 6)]
    ENTRY(library.address("third"))(*pointers, 0, where.h)
    thirds = np.concatenate([x[:, [0] * 4], x[:, [4] * 3]], axis=1) / 3
    np.testing.assert_allclose(where.unpack(found), np.maximum(x * x + thirds, 0.1), rtol=1e-13)
    assert not where.halo_of(found).any()


def test_views_keep_their_element_type() -> None:
    where = Placement(NHWC.of(F64), 1, 4, 2, 3)
    view = Strided.of(where).transpose((0, 1, 3, 2, 4)).part(4, 1, 2)
    assert view.buffer.dtype == F64
    x = np.arange(24.0)
    assert np.array_equal(view.view(x)[0, 0, 1], x.reshape(2, 3, 4)[:, 1, 1:3])
