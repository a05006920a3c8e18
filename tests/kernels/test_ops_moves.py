"""Channel shuffles and halos, in every layout and vector width."""

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.native.library import Library
from fastrun.kernels.ops import halo, shuffle
from fastrun.kernels.ops.halo import ZeroHalo
from fastrun.kernels.ops.shuffle import Shuffle
from tests.kernels.test_ops import HALO, LAYOUTS, normal
from tests.support.execution import ENTRY, Guarded, execute
from tests.support.lanes import CPUS, cpus

SHAPE = (2, 21, 5, 7)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("channels", [1, 16, 29, 58])
def test_shuffle_of_two_tensors(channels: int, cpu: Cpu) -> None:
    src = Placement(NHWC, 2, 3 * channels, 3, 37).part(channels, channels)
    add = Placement(NHWC, 2, channels, 3, 37, HALO)
    dst = Placement(NHWC, 2, 2 * channels, 3, 37, HALO)
    x, y = normal(2, channels, 3, 37), normal(2, channels, 3, 37) + 1
    program = shuffle.build(Shuffle(), cpu, src, dst, add)
    found = execute(program, {"x": x, "add": y}, threads=2)
    assert np.array_equal(found[:, ::2], x)
    assert np.array_equal(found[:, 1::2], y)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_shuffle_of_planes(cpu: Cpu) -> None:
    x = normal(2, 12, 4, 19)
    program = shuffle.build(
        Shuffle(3), cpu, Placement(NCHW, 2, 12, 4, 19), Placement(NCHW, 2, 12, 4, 19, HALO)
    )
    truth = x.reshape(2, 3, 4, 4, 19).swapaxes(1, 2).reshape(x.shape)
    assert np.array_equal(execute(program, {"x": x}), truth)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("margins", [(1, 1, 1, 1), (2, 0, 0, 1), (0, 1, 0, 0), (0, 0, 3, 0)])
def test_zero_halo(layout: Layout, margins: tuple[int, int, int, int]) -> None:
    place = Placement(layout, *SHAPE, margins)
    program = halo.build(ZeroHalo(), CPUS[1], place, place)
    buffer = np.full(place.size, 7, np.float32)
    guarded = Guarded(buffer)
    library = Library(compile_object(program.ir, Cpu.host()), ["zero_halo"])
    pointers = (0, 0, 0, 0, guarded.inner.ctypes.data, 0, 0)
    ENTRY(library.address("zero_halo"))(*pointers, 0, program.stages[0].tasks)
    assert guarded.intact()
    buffer = guarded.inner
    assert (place.halo_of(buffer) == 0).all()
    assert (place.unpack(buffer) == 7).all()
