"""Operators on bytes for AArch64 give what they give elsewhere, executed by an emulator."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.program import Program
from fastrun.kernels.native.compile import compile_assembly
from fastrun.kernels.ops import pool, reorder
from fastrun.kernels.ops.pool import Pool
from fastrun.kernels.ops.reorder import Reorder
from tests.kernels.test_integers_emulated import CROSS, EMULATOR, main_of
from tests.kernels.test_ops import pooled
from tests.support.typed import DST, values, with_scales

SHAPE = (1, 37, 5, 19)


def emulated(program: Program, folder: Path, **operands: np.ndarray) -> np.ndarray:
    """What a program of one stage leaves in dst."""
    files = {"bias": with_scales()["packed_bias"], "weights": operands.get("weights", np.zeros(0))}
    files |= {"src": program.io.src.pack(operands["x"])}
    for name, content in files.items():
        (folder / name).write_bytes(np.ascontiguousarray(content).tobytes())
    (folder / "main.c").write_text(main_of(program))
    (folder / "kernel.s").write_text(compile_assembly(program.ir, Cpu.neon()))
    build = [CROSS or "", "-static", "-march=armv8.6-a", "main.c", "kernel.s", "-o", "run"]
    subprocess.run(build, cwd=folder, check=True)
    subprocess.run([EMULATOR or "", "-cpu", "max", "./run"], cwd=folder, check=True)
    dst = program.io.dst
    return dst.unpack(np.fromfile(folder / "out", dst.dtype.numpy)[: dst.size])


@pytest.mark.slow
@pytest.mark.skipif(not (EMULATOR and CROSS), reason="no emulator of AArch64, or no compiler")
def test_neon(tmp_path: Path) -> None:
    cpu, x, wide = Cpu.neon(), values(U8, *SHAPE), values(F32, *SHAPE)
    wide[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    nhwc, nchw = Placement(NHWC.of(U8), *SHAPE), Placement(NCHW.of(U8), *SHAPE)
    entries = np.random.default_rng(1).permutation(256).astype(np.uint8)
    program = reorder.build(Reorder(lookup=True), cpu, nhwc, nchw)
    assert np.array_equal(emulated(program, tmp_path, x=x, weights=entries), entries[x])
    program = reorder.build(Reorder(), cpu, Placement(NCHW, *SHAPE), nhwc)
    steps = np.clip(np.rint(wide / np.float32(DST.scale)) + DST.zero, 0, 255)
    steps[0, 0, 0, 0] = 0
    assert np.array_equal(emulated(program, tmp_path, x=wide), steps)
    spec = Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    program = pool.build(spec, cpu, nhwc, Placement(NHWC.of(U8), 1, 37, 3, 10))
    assert np.array_equal(emulated(program, tmp_path, x=x), pooled(spec, x, 3, 10))
