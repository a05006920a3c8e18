"""Fill the object cache on all cores: a network has many kernels, and LLVM uses one core.

LLVM's Python binding compiles one module at a time in a process, so there is a process for each
core: `python -m fastrun.kernels.native.precompile` compiles a pickled list from its input.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.cache import ObjectCache

# Bytes of IR from which another process is worth its start, a third of a second.
WORTHWHILE = 500_000


def precompile(irs: Sequence[str], cpu: Cpu, cache: ObjectCache, share: int = WORTHWHILE) -> None:
    """Compile what the cache lacks, with at least `share` bytes of IR for each process.

    An object that another process fails to compile stays missing: the object is then compiled when
    it is needed, which shows the error. If no other process can be started, all is compiled here.
    If the cache cannot be written, nothing is compiled, and a warning says so.

    Raises:
        CompileError: LLVM refuses one of the kernels that are compiled here.
    """
    missing = [ir for ir in dict.fromkeys(irs) if not cache.holds(ir, cpu)]
    if not missing:
        return
    if not cache.writable():
        warnings.warn(
            f"{cache.root} cannot be written: kernels are compiled again by every process "
            "(FASTRUN_CACHE names another folder)",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    missing.sort(key=len, reverse=True)
    cores = len(os.sched_getaffinity(0)) if _python() else 1
    processes = max(1, min(cores, len(missing), sum(map(len, missing)) // max(1, share)))
    own, *others = (missing[i::processes] for i in range(processes))
    helpers = list[subprocess.Popen[bytes]]()
    try:
        with contextlib.suppress(OSError):  # the system allows no more processes
            for part in others:
                helpers.append(_helper(pickle.dumps((part, cpu, cache.root))))
        for ir in own:
            cache.object(ir, cpu)
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()


def _python() -> bool:
    """Whether `sys.executable` is Python, and not a program that embeds it."""
    return Path(sys.executable or "").name.startswith("python")


def _helper(work: bytes) -> subprocess.Popen[bytes]:
    # The helper finds modules where this process does; the current folder only if it is listed.
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    command = [sys.executable, "-P", "-m", "fastrun.kernels.native.precompile"]
    # In memory, since there may be no folder for temporary files.
    with open(os.memfd_create("kernels"), "w+b") as file:
        file.write(work)
        file.seek(0)
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    given, target, root = pickle.load(sys.stdin.buffer)
    for text in given:
        ObjectCache(root).object(text, target)
