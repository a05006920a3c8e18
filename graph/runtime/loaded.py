"""Code and packed weights of a network: the part that its clones share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.build.memory import Lifetime, allocate
from fastrun.graph.build.steps import Arrangement, NumpyStep, Step
from fastrun.graph.core.model import Array
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.weights import Common, Weights
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import pack_bias, pack_channels
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.precompile import precompile

# Gives the packed weights of a step. Several plans of a network may share them.
Packed = Callable[[Step], Array]


@dataclass(frozen=True)
class Loaded:
    """A network's code and packed weights.

    `offsets` are places in an arena of `arena` bytes: of all buffers, then of the workspaces of
    all steps. `packed` has the addresses of each step's weights and bias, 0 for none.
    """

    arrangement: Arrangement
    threads: int
    offsets: Sequence[int]
    arena: int
    libraries: Mapping[str, Library]
    weights: Weights
    packed: Sequence[tuple[int, int]]
    plan: Plan

    @classmethod
    def of(
        cls,
        arrangement: Arrangement,
        cpu: Cpu,
        threads: int,
        plan: Plan,
        packed: Packed = Step.packed,
        common: Common | None = None,
    ) -> Loaded:
        """Compile the kernels that the object cache lacks; pack the weights in the order of use.

        Packed weights that are in `common` already are used there.

        Raises:
            CompileError: LLVM refuses a kernel.
        """
        libraries = _libraries(arrangement, cpu)
        offsets, arena = _arena(arrangement)
        block = Weights(common)
        pairs, light = [], list[Step | NumpyStep]()
        for step in arrangement.steps:
            if isinstance(step, NumpyStep):
                pairs.append((0, 0))
                light.append(step)
                continue
            weights = with_table(step, offsets, packed(step))
            bias = None if step.bias is None else pack_bias(step.bias)
            pairs.append((block.put(weights), block.put(bias)))
            light.append(replace(step, weights=None, bias=None))
        arrangement = replace(arrangement, steps=tuple(light))
        return cls(arrangement, threads, offsets, arena, libraries, block, pairs, plan)


def _libraries(arrangement: Arrangement, cpu: Cpu) -> dict[str, Library]:
    """The compiled kernels by the digests of their IR."""
    cache = ObjectCache()
    programs = {step.program.digest: step.program for step in arrangement.kernels}
    found = {digest: cache.found(program, cpu) for digest, program in programs.items()}
    precompile([programs[x].ir for x, built in found.items() if built is None], cpu, cache)
    return {
        digest: Library(
            found[digest] or cache.object(program.ir, cpu), [x.symbol for x in program.stages]
        )
        for digest, program in programs.items()
    }


def with_table(step: Step, offsets: Sequence[int], weights: Array) -> Array:
    """The packed weights, behind where the channels lie that a step gathers from several buffers.

    These places are relative to its input.
    """
    if not step.gathered:
        return weights
    src, size = offsets[step.src], step.program.io.src.dtype.bytes()
    table = pack_channels([(offsets[buffer] - src) // size + at for buffer, at in step.gathered])
    return np.concatenate([table.view(weights.dtype), weights])


def _arena(arrangement: Arrangement) -> tuple[list[int], int]:
    """Offsets of the buffers and of the steps' workspaces, and the size of the arena in bytes."""
    shared = [
        Lifetime(step.program.shared_bytes if isinstance(step, Step) else 0, i, i)
        for i, step in enumerate(arrangement.steps)
    ]
    return allocate([*arrangement.buffers, *shared])
