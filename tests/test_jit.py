"""Machine code from IR, and a cache that is never trusted blindly."""

import ctypes
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from kernels.codegen.builder import Module, fma
from kernels.codegen.facts import facts
from kernels.codegen.jit import CompileError, Library, ObjectCache, compile_object
from kernels.codegen.precompile import precompile
from kernels.core.cpu import Cpu
from kernels.core.layout import Io
from kernels.core.problem import ConvProblem
from kernels.core.template import Program, heuristic_choice, templates

CPU = Cpu.host()
P = ConvProblem.parse("conv 1x64x14x14 64x3x3 s1 p1 bias relu")


def tiny_program() -> Program:
    module = Module(CPU)
    with module.stage("double", tasks=1) as (k, _):
        x = k.argument("src", 1).load(0)
        k.argument("dst", 1).store(fma(x, k.const(2.0), k.const(0.0)), 0)
    io = Io.of(P, "NCHW")
    return module.program(io, lambda w: w.reshape(-1))


def test_cache_returns_what_was_compiled(tmp_path: Path) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    first = cache.object(program.ir, CPU)
    assert cache.object(program.ir, CPU) == first
    assert Library(first, ["double"]).address("double")


@pytest.mark.parametrize("damage", [b"", b"junk", b"\0" * 4096])
def test_a_damaged_entry_is_built_again_and_never_used(tmp_path: Path, damage: bytes) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    good = cache.object(program.ir, CPU)
    path = cache.path(program.ir, CPU)
    path.write_bytes(damage)
    assert cache.object(program.ir, CPU) == good
    assert path.read_bytes()[32:] == good


def test_a_truncated_entry_is_built_again(tmp_path: Path) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    good = cache.object(program.ir, CPU)
    path = cache.path(program.ir, CPU)
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.object(program.ir, CPU) == good


def test_the_key_is_the_code_and_the_processor(tmp_path: Path) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    assert cache.path(program.ir, CPU) != cache.path(program.ir + "\n; more", CPU)
    assert cache.path(program.ir, CPU) != cache.path(program.ir, Cpu.avx2())


def test_a_cache_that_cannot_be_written_still_compiles(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert ObjectCache(blocked / "objects").object(tiny_program().ir, CPU)


def _compile(root: Path) -> bytes:
    return ObjectCache(root).object(tiny_program().ir, CPU)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        objects = set(pool.map(_compile, [tmp_path] * 8))
    assert len(objects) == 1
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".o"]


def test_bad_ir_is_a_compile_error_in_one_line() -> None:
    with pytest.raises(CompileError) as error:
        compile_object("define void @f( {", CPU)
    assert "\n" not in str(error.value)


def test_default_schedules_do_not_spill_on_avx2() -> None:
    """No stack references in the hot loop, for every tuned algorithm that can do the layer."""
    cpu = Cpu.avx2()
    for template in templates().values():
        if template.baseline or template.why_not(P, cpu) is not None:
            continue
        found = facts(template.program(P, template.heuristic(P, cpu), cpu), cpu)
        assert found.fmas, template.name
        assert found.stack_references == 0, f"{template.name}:\n{found.hot_loop}"
        assert found.vector_registers <= cpu.registers


def test_facts_see_spills() -> None:
    """A tile that needs 30 of 16 registers is found out."""
    module = Module(Cpu.avx2())
    with module.stage("greedy", tasks=1) as (k, _):
        acc, a = k.tile(30, 1), k.argument("src", 1)
        acc.fill(k.const(0.0))
        with k.loop(100) as i:
            x = a.load(i)
            for cell in acc:
                acc[cell] = fma(x, x, acc[cell])
        for i, _ in acc:
            k.argument("dst", 8).store(acc[i, 0], i)
    found = facts(module.program(Io.of(P, "NCHW"), lambda w: w), Cpu.avx2())
    assert found.fmas == 30
    assert found.stack_references > 0


def test_heuristic_choice_is_never_a_baseline() -> None:
    template, schedule = heuristic_choice(P, CPU)
    assert not template.baseline
    assert template.program(P, schedule, CPU).ir


def test_precompiling_fills_the_cache_from_several_processes(tmp_path: Path) -> None:
    cpu, cache = Cpu.host(), ObjectCache(tmp_path)
    head = f'target triple = "{cpu.triple}"\n'
    irs = [f"{head}define i64 @f() {{ ret i64 {i} }}" for i in range(5)]
    before = cache.object(irs[0], cpu)
    precompile(irs, cpu, cache, share=1)
    assert all(cache.path(ir, cpu).exists() for ir in irs)
    assert cache.object(irs[0], cpu) == before
    for i, ir in enumerate(irs):
        library = Library(cache.object(ir, cpu), ["f"])
        assert ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("f"))() == i


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core compiles all by itself")
def test_precompiling_leaves_what_other_processes_cannot_do(tmp_path: Path) -> None:
    cpu, cache = Cpu.host(), ObjectCache(tmp_path)
    good = f'target triple = "{cpu.triple}"\ndefine i64 @f() {{ ret i64 1 }}' + "; long" * 99
    precompile([good, "nonsense"], cpu, cache, share=1)
    assert cache.path(good, cpu).exists()
    with pytest.raises(CompileError):
        precompile(["nonsense"], cpu, cache)
    precompile([], cpu, cache)
