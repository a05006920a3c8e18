"""Functions that no compiler writes: system calls, the start of a program, a new thread.

They are machine code, because LLVM has no assembler here for processors other than this one. The
comments are what `objdump` shows of them. A device's processor is `x86_64`, `aarch64` or
`riscv64`.
"""

from __future__ import annotations

import struct

from fastrun.kernels.native.flat import Stub

# Relocations of a call: on AArch64, on x86-64 and on RISC-V.
_CALL26, _PLT32, _CALL_PLT = 283, 4, 19


def _words(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


STUBS: dict[str, dict[str, Stub]] = {
    "x86_64": {
        # mov %rdi,%rax; mov %rsi,%rdi; mov %rdx,%rsi; mov %rcx,%rdx; mov %r8,%r10; mov %r9,%r8;
        # mov 8(%rsp),%r9; syscall; ret
        "syscall": Stub(bytes.fromhex("4889f84889f74889d64889ca4d89c24d89c84c8b4c24080f05c3")),
        # xor %ebp,%ebp; mov %rsp,%rdi; and $-16,%rsp; call main
        "start": Stub(bytes.fromhex("31ed4889e74883e4f0e800000000"), {"main": (10, _PLT32, -4)}),
        # mov %rcx,%r8; mov $56,%eax; syscall; test %eax,%eax; jnz out; xor %ebp,%ebp;
        # mov %r8,%rdi; call *%rdx; xor %edi,%edi; mov $60,%eax; syscall; out: ret
        "thread": Stub(
            bytes.fromhex("4989c8b8380000000f0585c0751031ed4c89c7ffd231ffb83c0000000f05c3")
        ),
        # push %rbx; mov %rdx,%r8; mov %edi,%eax; mov %esi,%ecx; cpuid; mov %eax,(%r8);
        # mov %ebx,4(%r8); mov %ecx,8(%r8); mov %edx,12(%r8); pop %rbx; ret
        "cpuid": Stub(bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")),
        # xor %ecx,%ecx; xgetbv; ret
        "xgetbv": Stub(bytes.fromhex("31c90f01d0c3")),
    },
    "aarch64": {
        # mov x8,x0; mov x0,x1; mov x1,x2; mov x2,x3; mov x3,x4; mov x4,x5; mov x5,x6; svc 0; ret
        "syscall": Stub(
            _words(0xAA0003E8, 0xAA0103E0, 0xAA0203E1, 0xAA0303E2, 0xAA0403E3, 0xAA0503E4,
                   0xAA0603E5, 0xD4000001, 0xD65F03C0)
        ),
        # mov x29,xzr; mov x0,sp; and sp,x0,-16; bl main
        "start": Stub(
            _words(0xAA1F03FD, 0x910003E0, 0x927CEC1F, 0x94000000), {"main": (12, _CALL26, 0)}
        ),
        # mov x8,220; svc 0; cbnz x0,out; mov x29,xzr; mov x0,x3; blr x2; mov x8,93; mov x0,xzr;
        # svc 0; out: ret
        "thread": Stub(
            _words(0xD2801B88, 0xD4000001, 0xB50000E0, 0xAA1F03FD, 0xAA0303E0, 0xD63F0040,
                   0xD2800BA8, 0xAA1F03E0, 0xD4000001, 0xD65F03C0)
        ),
        # mrs x0,midr_el1; ret
        "midr": Stub(_words(0xD5380000, 0xD65F03C0)),
        # One instruction of each feature, and ret: sdot, fmla of halves, smmla, bfdot.
        "dotprod": Stub(_words(0x4E809400, 0xD65F03C0)),
        "fullfp16": Stub(_words(0x4E400C00, 0xD65F03C0)),
        "i8mm": Stub(_words(0x4E80A400, 0xD65F03C0)),
        "bf16": Stub(_words(0x6E40FC00, 0xD65F03C0)),
    },
    "riscv64": {
        # mv a7,a0; mv a0,a1; mv a1,a2; mv a2,a3; mv a3,a4; mv a4,a5; mv a5,a6; ecall; ret
        "syscall": Stub(
            _words(0x00050893, 0x00058513, 0x00060593, 0x00068613, 0x00070693, 0x00078713,
                   0x00080793, 0x00000073, 0x00008067)
        ),
        # li s0,0; mv a0,sp; andi sp,sp,-16; call main
        "start": Stub(
            _words(0x00000413, 0x00010513, 0xFF017113, 0x00000097, 0x000080E7),
            {"main": (12, _CALL_PLT, 0)},
        ),
        # li a7,220; ecall; bnez a0,out; li s0,0; mv a0,a3; jalr a2; li a7,93; li a0,0; ecall;
        # out: ret
        "thread": Stub(
            _words(0x0DC00893, 0x00000073, 0x00051E63, 0x00000413, 0x00068513, 0x000600E7,
                   0x05D00893, 0x00000513, 0x00000073, 0x00008067)
        ),
        # csrr a0,vlenb; ret
        "vlenb": Stub(_words(0xC2202573, 0x00008067)),
    },
}  # fmt: skip
"""Functions by name: `syscall(number, ...)` answers like the kernel, with -errno for an error.

`start` begins a program and gives `main` the address of its arguments. `thread(flags, stack, f, x)`
calls f(x) in a new thread. `cpuid(leaf, sub, out)` writes four words. `vlenb()` gives the bytes of
a vector register. Those with the name of one of LLVM's features execute an instruction of that
feature.
"""

NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "mmap": 9, "munmap": 11, "madvise": 28, "exit": 60,
        "pread64": 17, "sched_yield": 24, "wait4": 61, "kill": 62, "rt_sigaction": 13,
        "prctl": 157, "sched_setaffinity": 203, "sched_getaffinity": 204, "clock_gettime": 228,
        "exit_group": 231, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
        "chdir": 80, "getdents64": 217, "getpid": 39, "ppoll": 271, "dup3": 292, "pipe2": 293,
        "prlimit64": 302, "seccomp": 317, "clone": 56, "futex": 202, "rt_sigreturn": 15,
        "arch_prctl": 158,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "mmap": 222, "munmap": 215, "madvise": 233,
        "exit": 93, "pread64": 67, "sched_yield": 124, "wait4": 260, "kill": 129,
        "rt_sigaction": 134, "prctl": 167, "sched_setaffinity": 122, "sched_getaffinity": 123,
        "clock_gettime": 113, "exit_group": 94, "openat": 56, "mkdirat": 34, "unlinkat": 35,
        "renameat": 38, "chdir": 49, "getdents64": 61, "getpid": 172, "ppoll": 73, "dup3": 24,
        "pipe2": 59, "prlimit64": 261, "seccomp": 277, "clone": 220, "futex": 98,
        "rt_sigreturn": 139,
    },
}  # fmt: skip
"""Numbers of Linux's system calls."""

# Younger processors share their numbers. RISC-V has renameat2 alone, whose flags are 0 here.
NUMBERS["riscv64"] = {**NUMBERS["aarch64"], "renameat": 276}
