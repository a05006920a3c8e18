"""Code that uses tile registers, for processors that have them (AMX)."""

import platform

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure import confine

needs_tiles = pytest.mark.skipif(
    "+amx-tile" not in Cpu.host().features, reason="needs tile registers"
)

DECLARATIONS = """
@configuration = private constant [64 x i8] c"\\01CONFIGURATION", align 64
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.x86.tilerelease()
""".replace(
    "CONFIGURATION",
    "\\00" * 15 + "\\40\\00" * 8 + "\\00" * 16 + "\\10" * 8 + "\\00" * 8,
)

BODY = """%room = alloca [1024 x i8], align 64
call void @llvm.x86.ldtilecfg(ptr @configuration)
call void @llvm.x86.tilezero(i8 0)
call void @llvm.x86.tilestored64(i8 0, ptr %room, i64 64)
call void @llvm.x86.tilerelease()
"""
"""Zeroes a tile and stores it."""

needs_refusal = pytest.mark.skipif(
    platform.machine() != "x86_64" or not confine.available(), reason="needs seccomp of x86-64"
)

REFUSING = """
import errno
from fastrun.kernels.core.tiles import ARCH_PRCTL
from fastrun.tuner.measure import confine
refused = confine._calls([ARCH_PRCTL], confine._REFUSE | errno.EPERM)
load = (confine._LOAD, 0, 0, confine._NUMBER)
assert confine._install([load, *refused, (confine._RETURN, 0, 0, confine._ALLOW)])
"""
"""Python after which the system refuses tile registers to the process."""
