"""The cache of compiled objects on disk, and the folder where the toolkit keeps its files."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.forks import ONCE
from fastrun.kernels.core.program import Program, digest_of
from fastrun.kernels.native.compile import PIPELINE, compile_object, llvm_version


def cache_root() -> Path:
    """Where objects and the default database live: $FASTRUN_CACHE or the user's cache folder.

    A user without a home has the root folder instead, which usually cannot be written.
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

    A file holds the SHA-256 of its name and payload, then the payload. A file that does not match
    is compiled again, never executed. The same holds for a file that another user could have
    written: it must belong to this user or to root, who alone may write it. Files appear whole
    (`os.replace`), so processes may share the folder. A read-only folder is only read.

    Beside objects there are the digests of programs' texts, by the programs' keys. So a program
    whose object is here need not be written again.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root() / "objects"

    def object(self, ir: str, cpu: Cpu, portable: bool = False) -> bytes:
        """Machine code of `ir` for `cpu`, as `compile_object`, from the cache if it is there.

        Raises:
            CompileError: the IR does not parse or verify.
        """
        path = self.path(ir, cpu, portable)
        cached = self._read(path)
        if cached is not None:
            return cached
        with ONCE:
            # Another thread may have built it in the meantime.
            cached = self._read(path)
            if cached is not None:
                return cached
            built = compile_object(ir, cpu, portable)
            self._write(path, built)
            return built

    def path(self, ir: str, cpu: Cpu, portable: bool = False) -> Path:
        """The file for this IR, processor and LLVM version."""
        return self._path(digest_of(ir), cpu, portable)

    def _path(self, digest: str, cpu: Cpu, portable: bool = False) -> Path:
        pipeline = f"{PIPELINE}, portable" if portable else PIPELINE
        parts = (digest, cpu.triple, cpu.name, cpu.features, llvm_version(), pipeline)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.root / key[:2] / f"{key}.o"

    def named(self, program: Program) -> Program:
        """The program with its digest. Its text is written only if its key is not known here.

        Raises:
            ScheduleError: the text cannot be written.
        """
        if program.digest:
            return program
        path = self.root / program.key[:2] / f"{program.key}.digest"
        known = self._read(path) if program.key else None
        digest = known.decode() if known else digest_of(program.ir)
        if program.key and not known:
            self._write(path, digest.encode())
        return replace(program, digest=digest)

    def found(self, program: Program, cpu: Cpu) -> bytes | None:
        """The object of a named program if it is there, so that nothing needs to be compiled."""
        return self._read(self._path(program.digest, cpu))

    def missing(self, programs: Iterable[Program], cpu: Cpu) -> list[str]:
        """The texts of the named programs whose objects are not there."""
        return [x.ir for x in programs if self.found(x, cpu) is None]

    def holds(self, ir: str, cpu: Cpu) -> bool:
        """Whether the object is there."""
        return self._read(self.path(ir, cpu)) is not None

    def writable(self) -> bool:
        """Whether objects can probably be stored: the folder exists and may be written."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.root, os.W_OK | os.X_OK)

    def _read(self, path: Path) -> bytes | None:
        try:
            # Something else in the place of a file, such as a pipe, must not block.
            with open(
                path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
            ) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    return None
                if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
                    warnings.warn(
                        f"other users may have written code in {self.root}: it is compiled again "
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
            # After a full or read-only disk the next start compiles again; nothing else is lost.
            return


def _digest(path: Path, payload: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + payload).digest()
