"""Memory for large operands."""

from __future__ import annotations

import contextlib
import mmap


def private_pages(size: int) -> mmap.mmap:
    """`size` zeroed bytes, made of huge pages where the system grants them.

    A forked process has a copy of its own: Python's default is one memory for both.

    Raises:
        MemoryError: more than this process may have.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes of operands") from error
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
