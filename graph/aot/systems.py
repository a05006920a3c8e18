"""Exports for other systems than Linux with a usual C library.

Android's libraries name its C library, and its code leaves a register alone. macOS and Windows get
objects: the system's own linker makes a program of them. What these need of the system is a handful
of functions in one C file that is written beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.processors import without_tiles

_RENAMED = (
    "open", "lseek", "mmap", "munmap", "madvise", "close", "pthread_create", "pthread_join",
    "clock_gettime", "sched_yield", "syscall", "getauxval",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """A system: LLVM's names of it by architecture, all of them if none is given.

    One that gets objects has a `suffix` for them, and `libraries` to link them with. Else its
    library names those that are `needed`, and the system is a Linux, which can be asked for tile
    registers (`kernels.core.tiles`); code for the others goes without.
    """

    triples: dict[str, str]
    suffix: str = ""
    libraries: str = ""
    needed: tuple[str, ...] = ()

    def of(self, cpu: Cpu) -> Cpu | None:
        """The same processor under this system; None if it has none of that architecture."""
        if not self.triples:
            return cpu
        triple = self.triples.get(cpu.machine)
        if triple is None:
            return None
        return replace(without_tiles(cpu) if self.suffix else cpu, triple=triple)


LINUX = "linux"
SYSTEMS = {
    LINUX: System({}),
    # Of Android 10 on. This name reserves x18 for the system.
    "android": System(
        {x: f"{x}-unknown-linux-android29" for x in ("aarch64", "x86_64")}, needed=("libc.so",),
    ),
    "macos": System(
        {"x86_64": "x86_64-apple-macosx10.15.0", "aarch64": "aarch64-apple-macosx11.0.0"},
        "o", "-lpthread",
    ),
    "windows": System(
        {"x86_64": "x86_64-pc-windows-gnu"}, "obj", "",
    ),
}  # fmt: skip
"""The systems by name."""


def with_glue(ir: str, prefix: str) -> str:
    """The interface with the functions of `glue` in the place of those of a Unix C library.

    None of them has a variable list of arguments, which some systems pass in another way.
    """
    ir = re.sub(rf"@({'|'.join(_RENAMED)})\(", rf"@{prefix}_os_\1(", ir)
    ir = ir.replace("call i64 (i64, ...) @", "call i64 @").replace("call i32 (ptr, i32, ...) @",
                                                                   "call i32 @")  # fmt: skip
    ir = ir.replace("_os_syscall(i64, ...)", "_os_syscall(i64, ptr, i64, i64, ptr, ptr, i64)")
    return ir.replace("_os_open(ptr, i32, ...)", "_os_open(ptr, i32)")


def glue(prefix: str) -> str:
    """The C file with what the objects need of the system."""
    return _GLUE.replace("OS", f"{prefix}_os")


_GLUE = r"""/* What the objects of this export need of the system. Compile it with the program. */
#include <stdint.h>

struct OS_time { int64_t seconds, nanoseconds; };

/* Huge pages are Linux's. */
int32_t OS_madvise(void *at, int64_t size, int32_t advice) {
    (void)at, (void)size, (void)advice;
    return 0;
}

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

/* Handles of files have 32 bits at most. */
static HANDLE OS_handle(int32_t file) { return (HANDLE)(intptr_t)file; }

int32_t OS_open(const char *path, int32_t flags) {
    HANDLE file = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    (void)flags;
    return (int32_t)(intptr_t)file;
}

int64_t OS_lseek(int32_t file, int64_t to, int32_t from) {
    LARGE_INTEGER size;
    (void)to, (void)from;
    return GetFileSizeEx(OS_handle(file), &size) ? size.QuadPart : -1;
}

/* Fresh memory; a file is read into the memory that is there, since it cannot be mapped into it. */
void *OS_mmap(void *at, int64_t size, int32_t protection, int32_t flags, int32_t file,
              int64_t offset) {
    char *to = at;
    (void)protection, (void)flags, (void)offset;
    if (file == -1) {
        to = VirtualAlloc(NULL, (size_t)size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
        return to ? to : (void *)(intptr_t)-1;
    }
    while (size > 0) {
        DWORD part = size > 1 << 30 ? 1 << 30 : (DWORD)size, got = 0;
        if (!ReadFile(OS_handle(file), to, part, &got, NULL) || !got) return (void *)(intptr_t)-1;
        to += got;
        size -= got;
    }
    return at;
}

int32_t OS_munmap(void *at, int64_t size) {
    (void)size;
    return VirtualFree(at, 0, MEM_RELEASE) ? 0 : -1;
}

int32_t OS_close(int32_t file) { return CloseHandle(OS_handle(file)) ? 0 : -1; }

int32_t OS_pthread_create(void **handle, void *attributes, void *function, void *argument) {
    (void)attributes;
    *handle = CreateThread(NULL, 0, (LPTHREAD_START_ROUTINE)(intptr_t)function, argument, 0, NULL);
    return *handle ? 0 : -1;
}

int32_t OS_pthread_join(void *handle, void **result) {
    (void)result;
    WaitForSingleObject(handle, INFINITE);
    return CloseHandle(handle) ? 0 : -1;
}

int32_t OS_clock_gettime(int32_t clock, struct OS_time *time) {
    LARGE_INTEGER count, rate;
    (void)clock;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    time->seconds = count.QuadPart / rate.QuadPart;
    time->nanoseconds = count.QuadPart % rate.QuadPart * 1000000000 / rate.QuadPart;
    return 0;
}

int32_t OS_sched_yield(void) { return SwitchToThread(), 0; }

/* Of Windows 8 and later; asked for by name, since not every tool chain has a library of them. */
static void (*OS_function(const char *name))(void) {
    return (void (*)(void))GetProcAddress(GetModuleHandleA("kernelbase.dll"), name);
}

static void OS_wait(void *at, int32_t seen) {
    typedef BOOL(WINAPI * wait)(void *, void *, SIZE_T, DWORD);
    ((wait)OS_function("WaitOnAddress"))(at, &seen, sizeof seen, INFINITE);
}

static void OS_wake(void *at) {
    typedef void(WINAPI * wake)(void *);
    ((wake)OS_function("WakeByAddressAll"))(at);
}

#else
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/sysctl.h>
#include <time.h>
#include <unistd.h>

/* The system's own futex, as its C++ library uses it. */
extern int __ulock_wait(uint32_t operation, void *at, uint64_t value, uint32_t microseconds);
extern int __ulock_wake(uint32_t operation, void *at, uint64_t value);

int32_t OS_open(const char *path, int32_t flags) {
    (void)flags;
    return open(path, O_RDONLY | O_CLOEXEC);
}

int64_t OS_lseek(int32_t file, int64_t to, int32_t from) { return lseek(file, to, from); }

/* The flags given are Linux's. */
void *OS_mmap(void *at, int64_t size, int32_t protection, int32_t flags, int32_t file,
              int64_t offset) {
    int own = MAP_PRIVATE | (flags & 16 ? MAP_FIXED : 0) | (flags & 32 ? MAP_ANON : 0);
    return mmap(at, (size_t)size, protection, own, file, offset);
}

int32_t OS_munmap(void *at, int64_t size) { return munmap(at, (size_t)size); }

int32_t OS_close(int32_t file) { return close(file); }

int32_t OS_pthread_create(void **handle, void *attributes, void *function, void *argument) {
    (void)attributes;
    return pthread_create((pthread_t *)handle, NULL, (void *(*)(void *))function, argument);
}

int32_t OS_pthread_join(void *handle, void **result) {
    return pthread_join((pthread_t)handle, result);
}

int32_t OS_clock_gettime(int32_t clock, struct OS_time *time) {
    struct timespec now;
    (void)clock;
    clock_gettime(CLOCK_MONOTONIC, &now);
    time->seconds = now.tv_sec;
    time->nanoseconds = now.tv_nsec;
    return 0;
}

int32_t OS_sched_yield(void) { return sched_yield(); }

/* The bits of Linux's HWCAP for NEON and, where there are some, dot products. */
int64_t OS_getauxval(int64_t kind) {
    int dot = 0;
    size_t size = sizeof dot;
    (void)kind;
    sysctlbyname("hw.optional.arm.FEAT_DotProd", &dot, &size, NULL, 0);
    return 1 << 1 | (dot ? 1 << 20 : 0);
}

static void OS_wait(void *at, int32_t seen) { __ulock_wait(1, at, (uint32_t)seen, 0); }
static void OS_wake(void *at) { __ulock_wake(1 | 0x100, at, 0); }
#endif

/* Linux's futex: operation 128 waits while a word has a value, 129 wakes all who wait. The calls
   that place threads on cores are missing here: they fail. */
int64_t OS_syscall(int64_t number, void *at, int64_t operation, int32_t value, void *a, void *b,
                   int64_t c) {
    (void)a, (void)b, (void)c;
    if (number != 202 && number != 98) return -1;
    if (operation == 128) OS_wait(at, value);
    else OS_wake(at);
    return 0;
}
"""
