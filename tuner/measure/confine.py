"""Filters of system calls for the processes that compile and run kernels.

They are filters of Linux's seccomp in the classic BPF form. A process that compiles may not start
processes. A process that runs kernels may read files and start threads, write only to its pipes,
send signals only to itself, and use no network. Systems without seccomp confine nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable, Sequence

# System calls and their numbers on x86-64 and on AArch64; - means that there is none.
_PROCESSES = """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281
"""
_HARMLESS = """
read 0 63, pread64 17 67, readv 19 65, close 3 57, lseek 8 62, fstat 5 80, stat 4 -, lstat 6 -,
newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents64 217 61, getcwd 79 17, dup 32 23, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233,
brk 12 214, membarrier 324 283, futex 202 98, set_robust_list 273 99, get_robust_list 274 100,
rseq 334 293, set_tid_address 218 96, gettid 186 178, getpid 39 172, getppid 110 173,
getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, sched_yield 24 124,
sched_getaffinity 204 123, sched_setaffinity 203 122, getcpu 309 168, getrandom 318 278,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
clock_nanosleep 230 115, nanosleep 35 101, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, sigaltstack 131 132,
pause 34 -, restart_syscall 219 128, exit 60 93, exit_group 231 94, uname 63 160, sysinfo 99 179,
getrusage 98 165, times 100 153, getrlimit 97 163
"""
_HOSTILE = """
socket 41 198, socketpair 53 199, connect 42 203, bind 49 200, listen 50 201, accept 43 202,
accept4 288 242, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, tkill 200 130, rt_sigqueueinfo 129 138,
rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424, pidfd_getfd 438 438,
unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, rmdir 84 -,
link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, truncate 76 45, ftruncate 77 46,
fallocate 285 47, memfd_create 319 279, shmget 29 194, io_uring_setup 425 425, bpf 321 280,
setsid 112 157, setpgid 109 154, setuid 105 146, setgid 106 144, mount 165 40, umount2 166 39,
pivot_root 155 41, chroot 161 51, unshare 272 97, setns 308 268, reboot 169 142
"""
_EXAMINED = """
write 1 64, writev 20 66, kill 62 129, tgkill 234 131, open 2 -, openat 257 56, clone 56 220,
clone3 435 435, fcntl 72 25, prlimit64 302 261, seccomp 317 277
"""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit code

_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in what the filter sees

_THREAD = 0x10000  # of the flags of clone
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DUPLICATE, _FLAGS, _DUPLICATE_CLOEXEC = 0, (1, 2, 3), 1030  # commands of fcntl

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
# The filter applies to all threads. Without the second flag some Linux versions slow down the
# memory accesses of a filtered process, which would falsify times.
_TSYNC, _SPEC_ALLOW = 1, 4

_Checks = list[tuple[int, int, int, int]]


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def available() -> bool:
    """Whether the system has filters, and the numbers of its calls are known here."""
    if platform.machine() not in _MACHINES:
        return False
    action = ctypes.c_uint32(_KILL)
    number = _numbers(_EXAMINED)["seccomp"]
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(number, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0)


def unconfined() -> str:
    """A warning if the system has no filters; '' if it has."""
    return "" if available() else "this system has no seccomp filters: kernels are not confined"


def forbid_processes() -> bool:
    """From now on kill this process if it starts another process or program.

    Returns whether the system supports that.
    """
    return _install([*_process_checks(), (_RETURN, 0, 0, _ALLOW)])


def only_compute() -> bool:
    """From now on allow this process only what a kernel needs, and writes to files 1 and 2.

    Plainly hostile calls kill it. Opening a file for writing is denied. All other calls are
    answered as unknown to the system. Returns whether the system supports that.
    """
    return _install(_process_checks() + _computing_checks())


def _install(checks: _Checks) -> bool:
    if not available():
        return False
    instructions = (_Instruction * len(checks))(*(_Instruction(*c) for c in checks))
    program = _Program(len(checks), instructions)
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    number, flags = _numbers(_EXAMINED)["seccomp"], _TSYNC | _SPEC_ALLOW
    return bool(libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(program)) == 0)


def _process_checks() -> _Checks:
    """Checks against new processes; the number of the call stays loaded."""
    examined = _numbers(_EXAMINED)
    checks: _Checks = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _MACHINES[platform.machine()][1]),
        (_RETURN, 0, 0, _KILL),  # the calls of another architecture have other numbers
        (_LOAD, 0, 0, _NUMBER),
        # The flags of clone3 lie in memory, which a filter cannot read. The C library falls back on
        # clone.
        *_calls([examined["clone3"]], _REFUSE | errno.ENOSYS),
        *_calls(_numbers(_PROCESSES).values(), _KILL),
    ]
    thread: _Checks = [(_IF_ANY_BIT, 0, 1, _THREAD), (_RETURN, 0, 0, _ALLOW)]
    return checks + _examine(examined["clone"], 0, thread, _KILL)


def _computing_checks() -> _Checks:
    examined = _numbers(_EXAMINED)
    checks = _calls(_numbers(_HARMLESS).values(), _ALLOW)
    checks += _calls(_numbers(_HOSTILE).values(), _KILL)
    for name in ("write", "writev"):
        checks += _examine(examined[name], 0, _among((1, 2)), _REFUSE | errno.EBADF)
    for name in ("kill", "tgkill"):
        checks += _examine(examined[name], 0, _among((os.getpid(),)), _KILL)
    for name, flags in (("open", 1), ("openat", 2)):
        if name in examined:
            reads: _Checks = [(_IF_ANY_BIT, 1, 0, _WRITES), (_RETURN, 0, 0, _ALLOW)]
            checks += _examine(examined[name], flags, reads, _REFUSE | errno.EACCES)
    commands = (_DUPLICATE, *_FLAGS, _DUPLICATE_CLOEXEC)
    checks += _examine(examined["fcntl"], 1, _among(commands), _REFUSE | errno.EPERM)
    asks: _Checks = [  # reads limits, sets none: both halves of the pointer to new ones are zero
        (_IF_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _ARGUMENTS + 2 * 8 + 4),
        (_IF_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
    ]
    checks += _examine(examined["prlimit64"], 2, asks, _REFUSE | errno.EPERM)
    return [*checks, (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]


def _calls(numbers: Iterable[int], action: int) -> _Checks:
    """Answer these calls with `action`, whatever their arguments."""
    return [c for n in numbers for c in ((_IF_EQUAL, 0, 1, n), (_RETURN, 0, 0, action))]


def _examine(number: int, argument: int, tests: _Checks, otherwise: int) -> _Checks:
    """Answer a call by tests of the lower half of an argument, then with `otherwise`."""
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    block = [load, *tests, (_RETURN, 0, 0, otherwise)]
    return [(_IF_EQUAL, 0, len(block), number), *block]


def _among(values: Sequence[int]) -> _Checks:
    last = len(values) - 1
    tests = [(_IF_EQUAL, last - i, int(i == last), value) for i, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, _ALLOW)]


def _numbers(table: str) -> dict[str, int]:
    """The numbers of this machine's calls, by name."""
    column, _ = _MACHINES[platform.machine()]
    rows = [entry.split() for entry in table.split(",")]
    return {name: int(numbers[column]) for name, *numbers in rows if numbers[column] != "-"}
