"""IR text -> machine code, kept in a content-addressed cache; objects -> callable addresses."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import llvmlite.binding as llvm

from kernels.core.cpu import Cpu

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
    machine = _target_machine(cpu)
    return bytes(machine.emit_object(_optimised(ir, machine)))


def compile_assembly(ir: str, cpu: Cpu) -> str:
    """The assembly text of `ir` for `cpu`.

    Raises:
        CompileError: the IR does not parse or verify.
    """
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
    """Where objects and the default database live: $FASTRUN_CACHE or the user's cache folder."""
    explicit = os.environ.get("FASTRUN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(explicit) if explicit else Path(base) / "fastrun"


class ObjectCache:
    """Objects on disk, named by what they were made from.

    A file is the payload behind its own SHA-256; one that does not match is built again, never
    executed. Files appear whole (`os.replace`), so processes may share the folder. A folder that
    cannot be written is used as far as it can be read.
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
        built = compile_object(ir, cpu)
        self._write(path, built)
        return built

    def path(self, ir: str, cpu: Cpu) -> Path:
        """The file for this IR, processor and LLVM version."""
        parts = (ir, cpu.triple, cpu.name, cpu.features, llvm_version(), PIPELINE)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.root / key[:2] / f"{key}.o"

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, payload = stored[:32], stored[32:]
        return payload if hashlib.sha256(payload).digest() == digest else None

    @staticmethod
    def _write(path: Path, payload: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(file.name, path)
        except OSError:
            # A full or read-only disk costs the next start a compilation, nothing else.
            return


class Library:
    """An object loaded into this process. Addresses are valid while the library lives."""

    _jit: llvm.LLJIT | None = None
    _loaded = 0

    def __init__(self, payload: bytes, symbols: Sequence[str]) -> None:
        if Library._jit is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            Library._jit = llvm.create_lljit_compiler()
        Library._loaded += 1
        builder = llvm.JITLibraryBuilder().add_object_img(payload).add_current_process()
        for symbol in symbols:
            builder.export_symbol(symbol)
        self._tracker = builder.link(Library._jit, f"library{Library._loaded}")

    def address(self, symbol: str) -> int:
        """The address of an exported function."""
        return int(self._tracker[symbol])
