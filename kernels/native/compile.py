"""Compile the text of a kernel to machine code."""

from __future__ import annotations

import llvmlite.binding as llvm

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.forks import ONCE

# Part of the cache's key, since other passes make other objects.
PIPELINE = "O3 by function"


class CompileError(RuntimeError):
    """LLVM refused the IR. Always a defect of a kernel generator."""


def llvm_version() -> str:
    """The LLVM that compiles, such as `22.1.0`."""
    return ".".join(map(str, llvm.llvm_version_info))


def compile_object(ir: str, cpu: Cpu, portable: bool = False) -> bytes:
    """Machine code (an ELF object) of `ir` for `cpu`, uncached.

    With `portable` it is of the small code model and can be linked to run elsewhere. LLVM may end
    the process over code for other processors.

    Raises:
        CompileError: the IR does not parse or verify.
    """
    with ONCE:
        machine = _target_machine(cpu, "small" if portable else "jitdefault")
        return bytes(machine.emit_object(_optimised(ir, machine)))


def compile_assembly(ir: str, cpu: Cpu) -> str:
    """The assembly text of `ir` for `cpu`.

    Raises:
        CompileError: the IR does not parse or verify.
    """
    with ONCE:
        machine = _target_machine(cpu)
        return str(machine.emit_assembly(_optimised(ir, machine)))


def _target_machine(cpu: Cpu, model: str = "jitdefault") -> llvm.TargetMachine:
    if cpu.triple == llvm.get_process_triple():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        llvm.initialize_native_asmparser()  # for other systems of this architecture
    target = llvm.Target.from_triple(cpu.triple)
    return target.create_target_machine(
        cpu=cpu.name, features=cpu.features, opt=3, reloc="pic", codemodel=model
    )


def _optimised(ir: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """-O3 of each function, without the transformations that would undo the generator's choices.

    These are loop unrolling, loop vectorisation and SLP. The passes of -O3 over a whole module,
    mostly inlining, find nothing to do in kernels and would take a third of the time.
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
