"""The permission to use tile registers (AMX), which Linux gives to processes that ask.

Their eight kilobytes per thread are saved only for such a process. In others the first instruction
on tiles is illegal. Forked children inherit the permission, new programs ask anew (Linux,
`Documentation/arch/x86/xstate.rst`).
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18
"""The system call of x86-64, its command and the part of a thread's state that is asked for."""


@functools.cache  # asking twice does no harm
def permitted() -> bool:
    """Whether this process may use tile registers from now on, if the processor has them.

    Systems that refuse are those without this call, and those in which a thread's stack for signals
    is too small for the tiles.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(ARCH_PRCTL, REQUEST, TILE_DATA) == 0)
