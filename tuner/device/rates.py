"""What a device's processor can do at best, so that times can be told as shares of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastrun.kernels.codegen.builder import Module
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Io, Stage
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.native.flat import Blob
from fastrun.tuner.device.canary import DeviceCanary
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.crew import Crew, Walk, stages_at
from fastrun.tuner.device.identity import Identity
from fastrun.tuner.device.session import READ, RUN, Child, Session, kernel_library
from fastrun.tuner.device.support import kernel
from fastrun.tuner.machine.probe import (
    STREAMS,
    MachineReport,
    fma_loop,
    fma_operations,
    levels,
    of_machine,
    read_loop,
    read_passes,
    save,
)
from fastrun.tuner.measure.timing import calibrate
from fastrun.tuner.records.record import now

_Key = tuple[str, int]

_BLOCK, _BLOCKS = 1e-3, 8
_ENOUGH = 0.2  # seconds of blocks, on a device where one call takes long
_READINGS = 20  # of the canary
_SECONDS = 60.0


def report_of(session: Session, identity: Identity) -> MachineReport:
    """The device's report, from the file of its kind of machine or measured now.

    Rates of dot products and of moves are not measured there.
    """
    cpu, cores = identity.cpu, identity.cores
    if stored := of_machine(cpu.fingerprint, cpu.cores):
        return stored
    loops = dict[tuple[str, int], tuple[Module, Sequence[int], int, int]]()
    for level, floats in levels(cpu).items():
        for streams in (1, STREAMS):
            passes = read_passes(floats)
            module = read_loop(cpu, floats, streams, passes)
            loops[level, streams] = module, cores[-1:], 4 * floats, 4 * floats * passes
    for name, some in (("one", cores[-1:]), ("all", cores)):
        tasks = 8 * len(some)
        loop = fma_loop(cpu, tasks)
        loops[name, 0] = loop, some, 8 * cpu.lanes, fma_operations(cpu, tasks)
    rates = _rates(session, cpu, loops)
    canary, child = DeviceCanary(session, cpu), Child(session, _SECONDS)
    noise = sorted(canary.deviation(child) for _ in range(_READINGS))[_READINGS * 9 // 10]
    read = {n: {level: rates[level, n] for level in levels(cpu)} for n in (1, STREAMS)}
    report = MachineReport(
        machine=cpu.fingerprint,
        model=cpu.model,
        cores=cpu.cores,
        peak=rates["one", 0],
        peak_all=max(rates["one", 0], rates["all", 0]),
        dots={},
        read=read[1],
        read_streams=read[STREAMS],
        moves={},
        moves_all={},
        noise=noise,
        time=now(),
    )
    save(report)
    return report


def _rates(
    session: Session, cpu: Cpu, loops: Mapping[_Key, tuple[Module, Sequence[int], int, int]]
) -> dict[_Key, float]:
    """Work per second of each loop: its module, cores, bytes of src, and the work of a call."""
    none = Placement(NCHW, 1, 1, 1, 1)
    programs = [
        module.program(Io(none, none, none), lambda weights: weights)
        for module, *_ in loops.values()
    ]
    objects = compile_all([(program.ir, cpu) for program in programs])
    found = dict[_Key, float]()
    for (key, (_, cores, size, work)), program, code in zip(
        loops.items(), programs, objects, strict=True
    ):
        blob = kernel(code, kernel_library(session.machine))
        found[key] = work / _seconds(session, cpu, blob, program.stages, cores, size)
    return found


def _seconds(
    session: Session,
    cpu: Cpu,
    blob: Blob,
    stages: Sequence[Stage],
    cores: Sequence[int],
    src_bytes: int,
) -> float:
    """The seconds of a call in the fastest block; src begins with a vector of 0.5, then has ones.

    (The loop of multiply-adds takes its factors and summands from there.)
    """
    crew = Crew(Child(session, _SECONDS), cores)
    local = 1 << 16
    memory = crew.child.map(src_bytes + local * len(cores))
    (code,) = crew.child.files([session.put(blob.code)], [len(blob.code)], [READ | RUN])
    one = int(np.float32(1).view(np.uint32))
    halves = np.full(cpu.lanes, 0.5, np.float32).tobytes()
    fill = session.function("fill")
    crew.child.ask(Operations().call(fill, memory, src_bytes, one).poke(memory, halves))
    places = [memory, 0, 0, 0, 0, 0]
    locals_ = [memory + src_bytes + t * local for t in range(len(cores))]
    walk = Walk(crew, stages_at(blob, code, stages), places, locals_, _SECONDS)
    repeats, each = calibrate(walk.calls, _BLOCK)
    blocks = min(_BLOCKS, math.ceil(_ENOUGH / (repeats * each)))
    return min(walk.calls(repeats) for _ in range(blocks)) / repeats
