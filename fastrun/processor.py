"""What is said of a processor."""

from __future__ import annotations

from fastrun.kernels.core.cpu import Cpu


def features(cpu: Cpu) -> set[str]:
    """LLVM's names of the features that the processor has."""
    return {f[1:] for f in cpu.features.split(",") if f.startswith("+")}


def shortcoming(cpu: Cpu) -> str:
    """What makes every kernel slow on this processor; '' if nothing does."""
    if cpu.fma:
        return ""
    return (
        "no fused multiply-add (machines with AVX2 have it): results are right, but all kernels "
        "are slow; a virtual machine may hide the feature"
    )
