"""Fill the object cache on all cores: a network's kernels are many, and LLVM uses one core.

LLVM's Python binding compiles one module at a time in a process, so the others are processes:
`python -m kernels.codegen.precompile FILE` compiles what a file of this module's lists.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kernels.codegen.jit import ObjectCache
from kernels.core.cpu import Cpu

# Bytes of IR from which on another process, which takes a third of a second to start, pays.
WORTHWHILE = 500_000


def precompile(irs: Sequence[str], cpu: Cpu, cache: ObjectCache, share: int = WORTHWHILE) -> None:
    """Compile what the cache lacks, `share` bytes of IR or more per process.

    What another process fails to do is left undone: whoever needs the object compiles it then and
    learns what is wrong with it.

    Raises:
        CompileError: LLVM refuses one of the kernels that are compiled here.
    """
    missing = [ir for ir in dict.fromkeys(irs) if not cache.path(ir, cpu).exists()]
    missing.sort(key=len, reverse=True)
    cores = len(os.sched_getaffinity(0))
    processes = max(1, min(cores, len(missing), sum(map(len, missing)) // max(1, share)))
    parts = [missing[i::processes] for i in range(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        helpers = []
        for number, part in enumerate(parts[1:]):
            work = Path(folder, str(number))
            work.write_bytes(pickle.dumps((part, cpu, cache.root)))
            command = [sys.executable, "-m", "kernels.codegen.precompile", str(work)]
            quiet = subprocess.DEVNULL
            helpers.append(subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet))
        try:
            for ir in parts[0] if parts else []:
                cache.object(ir, cpu)
        finally:
            for helper in helpers:
                helper.wait()


if __name__ == "__main__":
    given, target, root = pickle.loads(Path(sys.argv[1]).read_bytes())
    for text in given:
        ObjectCache(root).object(text, target)
