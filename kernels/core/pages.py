"""Memory for large operands."""

from __future__ import annotations

import contextlib
import mmap


def private_pages(size: int) -> mmap.mmap:
    """`size` zeroed bytes, made of huge pages where the system grants them.

    A forked process gets a copy. (By default, Python would share the memory with it.)

    Raises:
        MemoryError: the process may not have so much memory.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes of operands") from error
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
