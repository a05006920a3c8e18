"""The measured properties of this machine: peak arithmetic, rates of its caches, noise.

Shares of peak refer to this measured peak. That of a data sheet means little, because clocks vary
and virtual machines share caches.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Index, Kernel, Module, Tile, fma
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, Array, Placement
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.whole_file import write_whole
from fastrun.kernels.native.cache import ObjectCache, cache_root
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.tuner.machine.dot_rates import dot_rates, kinds
from fastrun.tuner.machine.move_rates import Rates, move_rates
from fastrun.tuner.measure.canary import canary
from fastrun.tuner.measure.timing import calibrate
from fastrun.tuner.records.record import now

STREAMS = 4  # places that are read in turn, because one does not keep memory busy

_LOADS = 8  # vectors that a step of the reading loop reads
_FMA_STEPS = 4096  # steps of a task of the arithmetic loop
# Many short blocks instead of a few long ones, so that the best of them is undisturbed.
_BLOCK = 1e-3  # seconds
_BLOCKS = 20
_READ_ONCE = 1 << 17  # floats that a call reads at least, so that the call itself does not count


@dataclass(frozen=True)
class MachineReport:
    """Measured properties of a machine.

    `peak` and `peak_all` are FLOP/s of float32 fused multiply-adds on one core and on all `cores`,
    `dots` the operations/s of one core in each kind of dot product of small types,
    those in tile registers by the names of their instructions.
    `read` and `read_streams` are the bytes/s that one core reads from L1, L2, L3 and DRAM, at one
    place and at several places in turn. `moves` and `moves_all` are the bytes/s of one core and of
    all cores that move tensors into other layouts, as in `tuner.machine.move_rates`. `noise` is the
    ninetieth percentile of the canary: the share by which short work is commonly delayed.
    """

    machine: str
    model: str
    cores: int
    peak: float
    peak_all: float
    dots: Mapping[str, float] = field(hash=False)
    read: Mapping[str, float] = field(hash=False)
    read_streams: Mapping[str, float] = field(hash=False)
    moves: Rates = field(hash=False)
    moves_all: Rates = field(hash=False)
    noise: float
    time: str

    @property
    def relative(self) -> Mapping[str, float]:
        """The rates of kinds of dot products as multiples of that of float32, on one core."""
        return {kind: rate / self.peak for kind, rate in self.dots.items()}

    def peak_of(self, threads: int, dot: str = "") -> float:
        """FLOP/s of `threads` threads, each on its own core.

        With a kind of dot product, its operations/s; one that was not measured counts as float32.
        """
        share = self.dots.get(dot, self.peak) / self.peak
        return share * (self.peak if threads == 1 else self.peak_all * threads / self.cores)


def probe(refresh: bool = False) -> MachineReport:
    """This machine's report, from its file or measured now, which takes about eight seconds.

    There is a file for each machine and number of cores; `refresh` measures again. So does a file
    that lacks a kind of dot product, since an earlier version or another program wrote it.
    """
    cpu = Cpu.host()
    stored = None if refresh else on_file()
    if stored and kinds(cpu) <= stored.dots.keys():
        return stored
    report = _measure(cpu)
    save(report)
    return report


def on_file() -> MachineReport | None:
    """The report from the file; None if there is none."""
    cpu = Cpu.host()
    return of_machine(cpu.fingerprint, cpu.cores)


def of_machine(fingerprint: str, cores: int) -> MachineReport | None:
    """The report of a kind of machine from its file; None if there is none."""
    return _stored(_path(fingerprint, cores))


def known_machines(fingerprint: str) -> list[MachineReport]:
    """The reports on file of machines whose fingerprint begins so, other machines' too."""
    paths = sorted(cache_root().glob(f"machine-{glob.escape(fingerprint)}*.json"))
    return [report for report in map(_stored, paths) if report]


def _stored(path: Path) -> MachineReport | None:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    names = {f.name for f in fields(MachineReport)}
    if not isinstance(stored, dict) or stored.keys() != names:
        return None
    return MachineReport(**stored)


def _path(fingerprint: str, cores: int) -> Path:
    return cache_root() / f"machine-{fingerprint}-{cores}.json"


def _measure(cpu: Cpu) -> MachineReport:
    cores = sorted(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores[-1]})
    try:
        # This thread is thread 0. The other threads get the other cores.
        order = [cores[-1], *cores[:-1]]
        noise = sorted(canary() for _ in range(50))[45]
        floats = levels(cpu)
        memory = _lines(max(floats.values()))
        sizes = [4 * count for count in floats.values()]
        return MachineReport(
            machine=cpu.fingerprint,
            model=cpu.model,
            cores=len(cores),
            peak=peak_flops(cpu, order[:1]),
            peak_all=peak_flops(cpu, order),
            dots=dot_rates(cpu, order[:1]),
            read={level: read_rate(cpu, memory[:n], 1) for level, n in floats.items()},
            read_streams={
                level: read_rate(cpu, memory[:n], STREAMS) for level, n in floats.items()
            },
            moves=move_rates(cpu, sizes, order[:1]),
            moves_all=move_rates(cpu, sizes, order),
            noise=noise,
            time=now(),
        )
    finally:
        os.sched_setaffinity(0, before)


def levels(cpu: Cpu) -> dict[str, int]:
    """Numbers of floats that fit each cache but no nearer one, and one that exceeds all caches."""
    sizes = {"L1": cpu.l1 // 2, "L2": cpu.l2 // 2}
    if cpu.l3:
        # A share of it, because other cores and other virtual machines use the cache too.
        sizes["L3"] = max(2 * cpu.l2, cpu.usable_l3 // 4)
    sizes["DRAM"] = max(4 * cpu.usable_l3, 8 * cpu.l2, 64 << 20)
    unit = cpu.lanes * _LOADS
    return {level: size // 4 // unit * unit for level, size in sizes.items()}


def peak_flops(cpu: Cpu, cores: Sequence[int]) -> float:
    """FLOP/s of independent fused multiply-adds in registers, with a thread on each of `cores`."""
    tasks = 8 * len(cores)
    # x -> x / 2 + 1 converges to 2, so that neither overflow nor denormals slow it down.
    src = np.repeat(np.array([0.5, 1.0], np.float32), cpu.lanes)
    chains = _chains(cpu)
    loop = _Loop(fma_loop(cpu, tasks), src, chains * cpu.lanes, cores)
    return fma_operations(cpu, tasks) / loop.seconds()


def fma_operations(cpu: Cpu, tasks: int) -> int:
    """The operations of a call of `fma_loop`."""
    return 2 * tasks * _FMA_STEPS * _chains(cpu) * cpu.lanes


def read_rate(cpu: Cpu, memory: Array, streams: int) -> float:
    """Bytes/s of one core that reads `memory` from end to end, at `streams` places in turn."""
    passes = read_passes(memory.size)
    loop = _Loop(read_loop(cpu, memory.size, streams, passes), memory, _LOADS * cpu.lanes)
    return 4 * memory.size * passes / loop.seconds()


def read_passes(floats: int) -> int:
    """How often a call reads so many floats, so that the call itself does not count."""
    return math.ceil(_READ_ONCE / floats)


def fma_loop(cpu: Cpu, tasks: int) -> Module:
    """A stage of multiply-adds. src holds a vector of factors and a vector of summands."""
    module = Module(cpu)

    @module.stage("fma", tasks)
    def write_fma(k: Kernel, _: Index) -> None:
        acc = k.tile(1, _chains(cpu))
        acc.fill(k.const(1.0))
        operands = k.argument("src", cpu.lanes)
        factor, summand = operands.load(0), operands.load(1)
        with k.loop(_FMA_STEPS):
            for cell in acc:
                acc[cell] = fma(acc[cell], factor, summand)
        _store(acc)

    return module


def read_loop(cpu: Cpu, floats: int, streams: int, passes: int) -> Module:
    """A stage whose tasks read src from end to end."""
    lanes, width, part = cpu.lanes, _LOADS // streams, floats // streams
    module = Module(cpu)

    @module.stage("read", passes)
    def write_read(k: Kernel, _: Index) -> None:
        acc = k.tile(streams, width)
        acc.fill(k.const(0.0))
        # The compiler would remove a pass if it saw that the pass repeats the one before.
        src = k.argument("src", part, lanes * width, lanes).opaque()
        with k.loop(part // (lanes * width)) as i:
            for s, v in acc:
                acc[s, v] = acc[s, v] + src.load(s, i, v)
        _store(acc)

    return module


def _chains(cpu: Cpu) -> int:
    """The number of sums: enough to hide the latency of two units, and few enough for registers."""
    return min(12, cpu.registers - 4)


def _store(acc: Tile) -> None:
    """Store the sums in the thread's workspace, so that the compiler does not remove them."""
    out = Buffer(acc.k, "%local", (acc.lanes,))
    for n, cell in enumerate(acc):
        out.store(acc[cell], n)


class _Loop:
    """A module of one stage, ready to be timed. Every thread stores `out` floats."""

    def __init__(self, module: Module, src: Array, out: int, cores: Sequence[int] = ()) -> None:
        none = Placement(NCHW, 1, 1, 1, 1)
        program = module.program(Io(none, none, none), lambda weights: weights)
        symbols = [stage.symbol for stage in program.stages]
        library = Library(ObjectCache().object(program.ir, module.cpu), symbols)
        self._runner = Runner(library, program.stages, cores)
        self._threads = max(1, len(cores))
        self._src, self._local = src, np.zeros((self._threads, out), np.float32)
        self._buffers = Buffers(
            src=src.ctypes.data, weights=0, bias=0, add=0, dst=0, shared=0,
            local=tuple(row.ctypes.data for row in self._local),
        )  # fmt: skip

    def seconds(self) -> float:
        """The seconds of a call in the fastest block."""
        repeats, _ = calibrate(self._calls, _BLOCK)
        return min(self._calls(repeats) for _ in range(_BLOCKS)) / repeats

    def _calls(self, repeats: int) -> float:
        return self._runner.run(self._buffers, self._threads, repeats)


def _lines(floats: int) -> Array:
    """Ones that begin at a cache line. Otherwise half of all vectors would cross one."""
    whole = np.ones(floats + 16, np.float32)
    skipped = -whole.ctypes.data % 64 // 4
    return whole[skipped : skipped + floats]


def save(report: MachineReport) -> None:
    """Keep a report in the file of its machine, if the folder can be written."""
    path = _path(report.machine, report.cores)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(report), indent=1))
    except OSError:
        # If it cannot be stored, the report is measured again next time.
        return
