"""Conversions between a caller's element types and float32."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32, DType
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.ops.convert import BY_NUMPY_NAME, convert
from tests.support.execution import ENTRY
from tests.support.lanes import CPUS, cpus

INTEGERS = [name for name in BY_NUMPY_NAME if "int" in name]
GENTLE = np.array([0.0, 1.75, -1.75, 126.9, -127.9, 127.0, 0.5, -0.5, 3.0], np.float32)


class _AtTheEnd:
    """Memory of which the next page cannot be touched."""

    def __init__(self, nbytes: int) -> None:
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        forbidden = ctypes.c_void_p(first + size)
        assert ctypes.CDLL(None).mprotect(forbidden, mmap.PAGESIZE, 0) == 0
        self.bytes = np.frombuffer(self._memory, np.uint8, nbytes, size - nbytes)


def ran(program: Program, x: np.ndarray, dst: DType, size: int) -> np.ndarray:
    library = Library(ObjectCache().object(program.ir, Cpu.host()), ["convert"])
    source, target = _AtTheEnd(x.nbytes), _AtTheEnd(dst.bytes(size))
    source.bytes[:] = x.reshape(-1).view(np.uint8)
    addresses = [a.bytes.ctypes.data for a in (source, target)]
    entry = ENTRY(library.address("convert"))
    entry(addresses[0], 0, 0, 0, addresses[1], 0, 0, 0, program.stages[0].tasks)
    return target.bytes.view(dst.numpy).copy()


def converted(x: np.ndarray, src: DType, dst: DType, cpu: Cpu) -> np.ndarray:
    views = [replace(Strided.row_major(x.shape), dtype=t) for t in (src, dst)]
    return ran(convert(cpu, *views), x, dst, x.size).reshape(x.shape)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_every_half_becomes_its_number(cpu: Cpu) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = converted(bits, F16, F32, cpu)
    np.testing.assert_array_equal(found, bits.view(np.float16).astype(np.float32))
    assert (np.signbit(found) == (bits >> 15 == 1)).all()
    np.testing.assert_array_equal(converted(bits, BF16, F32, cpu), BF16.decode(bits))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_numbers_become_the_nearest_half(cpu: Cpu) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = halves[np.isfinite(halves)].astype(np.float32)
    # Middles between neighbours, and the numbers next to these.
    between = (exact[:-1] + exact[1:]) / 2
    ends = np.float32([np.inf, -np.inf, np.nan, 65519.9, 65520, 65521, 1e30, 1e-30, -1e-40, -0.0])
    x = np.concatenate([exact, between, np.nextafter(between, np.float32(np.inf)),
                        np.nextafter(between, np.float32(-np.inf)), ends])  # fmt: skip
    found = converted(x, F32, F16, cpu)
    with np.errstate(over="ignore"):
        truth = x.astype(np.float16)
    np.testing.assert_array_equal(found, truth)
    assert (np.signbit(found) == np.signbit(x))[~np.isnan(x)].all()


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("name", [*INTEGERS, "float64"])
def test_numbers_go_both_ways(name: str, cpu: Cpu) -> None:
    kind = BY_NUMPY_NAME[name]
    draw = np.random.default_rng(3)
    if kind.is_float:
        x = np.concatenate([draw.standard_normal(99), [1e300, 1 + 2.0**-24, np.nan]])
    else:
        low, high = np.iinfo(name).min, np.iinfo(name).max
        x = draw.integers(low, high, 103, dtype=name, endpoint=True)
        x[:2] = low, high
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(converted(x, kind, F32, cpu), x.astype(np.float32))
    least = 0 if name[0] == "u" else -np.inf
    given = np.tile(np.maximum(GENTLE, least).astype(np.float32), 5)
    np.testing.assert_array_equal(converted(given, F32, kind, cpu), given.astype(name))
    if not kind.is_float:
        wild = np.float32([np.nan, 1e30, -1e30])
        np.testing.assert_array_equal(
            converted(wild, F32, kind, cpu), np.array([0, high, low], name)
        )


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", [(2, 3, 5, 37), (1, 300), (1,)])
def test_views_with_gaps(shape: tuple[int, ...], cpu: Cpu) -> None:
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    inner = Strided.row_major(tuple(n + 2 for n in shape)).slice(
        (1,) * len(shape), shape, (1,) * len(shape)
    )
    src = replace(Strided.row_major(shape), dtype=BY_NUMPY_NAME["uint8"])
    found = ran(convert(cpu, src, inner), x, F32, inner.extent)
    np.testing.assert_array_equal(inner.view(found), x)
    inner.view(found)[...] = 0
    assert not found.any()
    turned = inner.transpose(tuple(reversed(range(len(shape)))))
    back = replace(Strided.row_major(turned.shape), dtype=src.dtype)
    content = np.zeros(inner.extent, np.float32)
    inner.view(content)[...] = x
    found = ran(convert(cpu, turned, back), content, back.dtype, x.size)
    np.testing.assert_array_equal(found.reshape(turned.shape), x.T)


def test_two_other_types_are_refused() -> None:
    half = replace(Strided.row_major((3,)), dtype=F16)
    with pytest.raises(ScheduleError, match="f16 cannot be converted to f16"):
        convert(Cpu.host(), half, half)
