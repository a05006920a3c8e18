"""Machine code from IR, and a cache that is never trusted blindly."""

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from fastrun.kernels.codegen.builder import Index, Kernel, Module, fma
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.native.assembly import facts
from fastrun.kernels.native.cache import ObjectCache, cache_root
from fastrun.kernels.native.compile import CompileError, compile_object
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.precompile import precompile
from fastrun.kernels.registry import applicable, heuristic_choice, templates
from tests.support.forking import child, code

CPU = Cpu.host()
P = ConvProblem.parse("conv 1x64x14x14 64x3x3 s1 p1 bias relu")


def tiny_program() -> Program:
    module = Module(CPU)

    @module.stage("double", tasks=1)
    def write_double(k: Kernel, _: Index) -> None:
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


def test_an_object_under_the_name_of_another_is_built_again(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    good, other = tiny_program().ir, tiny_program().ir.replace("double", "triple")
    right = cache.object(good, CPU)
    cache.object(other, CPU)
    cache.path(other, CPU).replace(cache.path(good, CPU))
    assert cache.object(good, CPU) == right


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_have_written_is_never_used(tmp_path: Path, mode: int) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    good = cache.object(program.ir, CPU)
    path = cache.path(program.ir, CPU)
    path.chmod(mode)
    with pytest.warns(RuntimeWarning, match="other users may have written code in .*FASTRUN_CACHE"):
        assert cache.object(program.ir, CPU) == good
    assert cache.holds(program.ir, CPU)
    assert not path.stat().st_mode & 0o022


def test_what_another_user_owns_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    cache.object(program.ir, CPU)
    monkeypatch.setattr("fastrun.kernels.native.cache.os.geteuid", lambda: 4711)
    if os.getuid() == 0:
        os.chown(cache.path(program.ir, CPU), 4712, -1)
    with pytest.warns(RuntimeWarning, match="other users may have written"):
        assert not cache.holds(program.ir, CPU)


def test_the_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache, program = ObjectCache(tmp_path / "objects"), tiny_program()
        cache.object(program.ir, CPU)
    finally:
        os.umask(before)
    for path in (tmp_path / "objects").rglob("*"):
        assert not path.stat().st_mode & 0o022


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


@pytest.mark.parametrize(
    "put", [os.mkfifo, _folder, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(p)]
)
def test_what_is_no_file_is_passed_over(tmp_path: Path, put: Callable[[Path], None]) -> None:
    cache, program = ObjectCache(tmp_path), tiny_program()
    path = cache.path(program.ir, CPU)
    path.parent.mkdir(parents=True)
    put(path)
    # In a child, which may wait for ever.
    assert code(child(lambda: not cache.holds(program.ir, CPU))) == 0
    assert cache.object(program.ir, CPU)
    assert len(list(path.parent.iterdir())) == 1


def test_a_full_disk_leaves_no_half_written_files(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert cache.object(tiny_program().ir, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"FASTRUN_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"FASTRUN_CACHE": "a/b", "HOME": "/h"}, "a/b"),
        ({"FASTRUN_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/fastrun"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/fastrun"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h/"}, "/h/.cache/fastrun"),
        ({"HOME": ""}, "/.cache/fastrun"),
        ({"HOME": "relative"}, "/.cache/fastrun"),
        ({}, "/.cache/fastrun"),
    ],
)
def test_the_cache_has_a_place_in_every_environment(
    environment: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("FASTRUN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(root)


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
    for template in applicable(P, cpu):
        if template.baseline:
            continue
        found = facts(template.program(P, template.heuristic(P, cpu), cpu), cpu)
        assert found.fmas, template.name
        assert found.stack_references == 0, f"{template.name}:\n{found.hot_loop}"
        assert found.vector_registers <= cpu.registers


@pytest.mark.parametrize("bits", [8, 6])
def test_default_schedules_of_integers_hardly_spill_on_avx2(bits: int) -> None:
    """A group of channels takes several registers beside the tile."""
    cpu, p = Cpu.avx2(), ConvProblem.parse(f"conv 1x64x14x14 128x1x1 s1 p0 bias u8s{bits}>u8")
    template = templates()["pointwise"]
    found = facts(template.program(p, template.heuristic(p, cpu), cpu), cpu)
    assert found.fmas
    assert found.stack_references <= found.fmas / 4, found.hot_loop


def test_facts_see_spills() -> None:
    """A tile that needs 30 of 16 registers is found out."""
    module = Module(Cpu.avx2())

    @module.stage("greedy", tasks=1)
    def write_greedy(k: Kernel, _: Index) -> None:
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


def several(number: int) -> list[str]:
    head = f'target triple = "{CPU.triple}"\n'
    return [f"{head}define i64 @f() {{ ret i64 {i} }}" for i in range(number)]


@pytest.mark.parametrize("program", ["/usr/sbin/uwsgi", "", None, "/nowhere/python3"])
def test_an_embedded_python_compiles_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    cache = ObjectCache(tmp_path)
    precompile(several(2), CPU, cache, share=1)
    assert cache.holds(several(2)[0], CPU) or cache.holds(several(2)[1], CPU)
    if program != "/nowhere/python3":
        assert all(cache.holds(ir, CPU) for ir in several(2))


def test_a_program_that_embeds_python_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "server"
    server.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    server.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(server))
    precompile(several(4), CPU, ObjectCache(tmp_path / "objects"), share=1)
    assert not (tmp_path / "started").exists()


def test_other_processes_take_no_modules_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    cache = ObjectCache(tmp_path / "objects")
    precompile(several(4), CPU, cache, share=1)
    assert all(cache.holds(ir, CPU) for ir in several(4))
    assert not (tmp_path / "run").exists()


def test_without_a_place_to_keep_code_a_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ObjectCache(tmp_path / "file" / "objects")
    with pytest.warns(RuntimeWarning, match="cannot be written.*FASTRUN_CACHE"):
        precompile(several(4), CPU, cache, share=1)


def test_an_exception_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[subprocess.Popen[bytes]]()

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"])
            started.append(self)

    def interrupted(ir: str, cpu: Cpu) -> bytes:
        raise KeyboardInterrupt

    cache = ObjectCache(tmp_path)
    monkeypatch.setattr("fastrun.kernels.native.precompile.subprocess.Popen", Popen)
    monkeypatch.setattr(cache, "object", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompile(several(4), CPU, cache, share=1)
    assert all(process.poll() is not None for process in started)
