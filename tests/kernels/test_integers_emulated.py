"""Kernels of integers for AArch64 give the exact outputs, executed by an emulator."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.quantised import trial_operands
from fastrun.kernels.native.compile import compile_assembly
from fastrun.kernels.registry import templates

EMULATOR, CROSS = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")

_MAIN = """
#include <stdio.h>
#include <stdlib.h>
static void *whole(const char *name, size_t size) {
    char *x = calloc(size, 1);
    FILE *file = fopen(name, "rb");
    if (file) fread(x, 1, size, file), fclose(file);
    return x;
}
int main(void) {
    void *src = whole("src", SIZE), *w = whole("weights", SIZE), *bias = whole("bias", SIZE);
    void *add = whole("add", SIZE), *dst = whole("dst", SIZE);
    void *shared = whole("shared", SIZE);
    STAGES
    FILE *out = fopen("out", "wb");
    return fwrite(dst, 1, SIZE, out) != SIZE || fclose(out);
}
"""


def main_of(program: Program) -> str:
    """A C program that runs the stages on operands from files."""
    signature, calls, text = "void *, " * 7 + "long, long", "", _MAIN
    for stage in program.stages:
        text = f"void {stage.symbol}({signature});\n{text}"
        calls += f"    {stage.symbol}(src, w, bias, add, dst, shared, 0, 0, {stage.tasks});\n"
    return text.replace("    STAGES\n", calls).replace("SIZE", str(1 << 16))


@pytest.mark.slow
@pytest.mark.skipif(not (EMULATOR and CROSS), reason="no emulator of AArch64, or no compiler")
@pytest.mark.parametrize(
    ("kind", "bits"),
    [("sdot", 8), ("sdot", 9), ("usdot", 8), ("usdot", 9), ("packed", 5), ("fma", 8), ("fma", 9)],
)
def test_neon(kind: str, bits: int, tmp_path: Path) -> None:
    cpu = replace(Cpu.neon(), features="+dotprod,+i8mm")
    p = ConvProblem.parse(f"conv 1x20x6x5 24x3x3 s1 p1 g2 bias add relu u8s{bits}>u8")
    if kind == "fma":
        p = ConvProblem.parse(f"conv 1x20x6x5 20x3x3 s1 p1 g20 bias add relu u8s{bits}>u8")
    template = templates()["depthwise" if kind == "fma" else "direct"]
    assert kind == "fma" or kind in [dot.name for dot in dots(p.precision, cpu)]
    small = {"tile_w": 2, "cols": 2} if kind == "packed" else {}
    schedule = replace(template.heuristic(p, cpu), dot=kind, **small)
    program = template.program(p, schedule, cpu)
    operands, scales = trial_operands(p, seed=1)
    sums = scales.sums(p, operands["x"], operands["weights"], operands["bias"])
    files = {
        "src": program.io.src.pack(operands["x"]),
        "weights": program.pack_weights(operands["weights"]),
        "bias": scales.operand(p, operands["weights"], operands["bias"]),
        "add": program.io.add.pack(operands["add"]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.tobytes())
    (tmp_path / "main.c").write_text(main_of(program))
    (tmp_path / "kernel.s").write_text(compile_assembly(program.ir, cpu))
    build = [CROSS or "", "-static", "-march=armv8.6-a", "main.c", "kernel.s", "-o", "run"]
    subprocess.run(build, cwd=tmp_path, check=True)
    subprocess.run([EMULATOR or "", "-cpu", "max", "./run"], cwd=tmp_path, check=True)
    found = np.fromfile(tmp_path / "out", np.uint8)[: program.io.dst.size + READ_SLACK]
    expected = scales.stored(p, sums, operands["add"])
    assert np.array_equal(program.io.dst.unpack(found[: program.io.dst.size]), expected)
