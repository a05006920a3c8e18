"""IR text -> machine code, kept in a content-addressed cache; objects -> callable addresses."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import llvmlite.binding as llvm

from kernels.core.cpu import Cpu
from kernels.core.forks import ONCE, once

# Part of the cache's key: objects made by other passes are others.
PIPELINE = "O3 by function"


class CompileError(RuntimeError):
    """LLVM refused the IR. Always a defect of a kernel generator."""


def llvm_version() -> str:
    """The LLVM that compiles, such as `22.1.0`."""
    return ".".join(map(str, llvm.llvm_version_info))


def compile_object(ir: str, cpu: Cpu) -> bytes:
    """Machine code (an ELF object) of `ir` for `cpu`, uncached.

    Raises:
        CompileError: the IR does not parse or verify.
    """
    with ONCE:
        machine = _target_machine(cpu)
        return bytes(machine.emit_object(_optimised(ir, machine)))


def compile_assembly(ir: str, cpu: Cpu) -> str:
    """The assembly text of `ir` for `cpu`.

    Raises:
        CompileError: the IR does not parse or verify.
    """
    with ONCE:
        machine = _target_machine(cpu)
        return str(machine.emit_assembly(_optimised(ir, machine)))


def _target_machine(cpu: Cpu) -> llvm.TargetMachine:
    if cpu.triple == llvm.get_process_triple():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(cpu.triple)
    return target.create_target_machine(cpu=cpu.name, features=cpu.features, opt=3, reloc="pic")


def _optimised(ir: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """-O3 of each function, without the transformations that would undo the generator's choices.

    Those are loop unrolling, loop vectorisation and SLP. What -O3 does to a module as a whole,
    inlining above all, has nothing to find in kernels and takes a third of the time.
    """
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as error:
        raise CompileError(str(error).splitlines()[0]) from error
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_unrolling = tuning.loop_vectorization = False
    tuning.slp_vectorization = tuning.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, tuning)
    pipeline = passes.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            pipeline.run(function, passes)
    return module


def cache_root() -> Path:
    """Where objects and the default database live: $FASTRUN_CACHE or the user's cache folder.

    Who has no home has the root folder for one, where most may not write.
    """
    if explicit := os.environ.get("FASTRUN_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "fastrun")
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else "/", ".cache", "fastrun")


class ObjectCache:
    """Objects on disk, named by what they were made from.

    A file is the payload behind a SHA-256 of its name and itself; one that does not match is built
    again, never executed. Nor is what somebody else may have written: a file must be this user's
    or root's, and nobody else may write it. Files appear whole (`os.replace`), so processes may
    share the folder. A folder that cannot be written is used as far as it can be read.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root() / "objects"

    def object(self, ir: str, cpu: Cpu) -> bytes:
        """Machine code of `ir` for `cpu`, from the cache where it is there.

        Raises:
            CompileError: the IR does not parse or verify.
        """
        path = self.path(ir, cpu)
        cached = self._read(path)
        if cached is not None:
            return cached
        with ONCE:
            # Another thread may have built it in the meantime.
            cached = self._read(path)
            if cached is not None:
                return cached
            built = compile_object(ir, cpu)
            self._write(path, built)
            return built

    def path(self, ir: str, cpu: Cpu) -> Path:
        """The file for this IR, processor and LLVM version."""
        parts = (ir, cpu.triple, cpu.name, cpu.features, llvm_version(), PIPELINE)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.root / key[:2] / f"{key}.o"

    def holds(self, ir: str, cpu: Cpu) -> bool:
        """Whether nothing need be compiled for this."""
        return self._read(self.path(ir, cpu)) is not None

    def writable(self) -> bool:
        """Whether objects can be kept, as far as that can be known before."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.root, os.W_OK | os.X_OK)

    def _read(self, path: Path) -> bytes | None:
        try:
            # What takes the place of a file, such as a pipe, must not make us wait.
            with open(
                path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
            ) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    return None
                if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
                    warnings.warn(
                        f"others may have written code in {self.root}: it is compiled anew "
                        "(FASTRUN_CACHE names another folder)",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    return None
                stored = file.read()
        except OSError:
            return None
        digest, payload = stored[:32], stored[32:]
        return payload if digest == _digest(path, payload) else None

    @staticmethod
    def _write(path: Path, payload: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    file.write(_digest(path, payload) + payload)
                    file.flush()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError:
            # A full or read-only disk costs the next start a compilation, nothing else.
            return


def _digest(path: Path, payload: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + payload).digest()


class Library:
    """An object loaded into this process. Addresses are valid while the library lives."""

    _numbers = itertools.count()

    def __init__(self, payload: bytes, symbols: Sequence[str]) -> None:
        builder = llvm.JITLibraryBuilder().add_object_img(payload).add_current_process()
        for symbol in symbols:
            builder.export_symbol(symbol)
        with ONCE:
            self._tracker = builder.link(_jit(), f"library{next(Library._numbers)}")

    def address(self, symbol: str) -> int:
        """The address of an exported function."""
        return int(self._tracker[symbol])


@once
def _jit() -> llvm.LLJIT:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()
