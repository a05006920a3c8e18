"""A measurer whose kernels run on a device without Python.

Kernels are compiled here, for the processor that the device says it has. Machine code, operands and
packed weights are sent, each once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.device.bench import DeviceBench
from fastrun.tuner.device.identity import environment, identify
from fastrun.tuner.device.rates import report_of
from fastrun.tuner.device.reach import DeviceError, way_to
from fastrun.tuner.device.session import Session
from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import ProcessLimits
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.operands import Scratch
from fastrun.tuner.measure.sandbox import Compiler
from fastrun.tuner.records.environment import Environment


class Device(Measurer):
    """A device as a measurer, for `fast_run`. A context manager.

    `name` is `exec:COMMAND`, `ssh:user@board` or `adb:SERIAL`. `on` are the cores of the device to
    be used; by default those of the fastest type. `warnings` are what should be known, a line each.

    Raises:
        ConnectionError: the device cannot be used.
        ValueError: more threads than cores.
    """

    def __init__(
        self,
        name: str,
        threads: int = 1,
        regime: str = "hot",
        limits: ProcessLimits | None = None,
        on: Sequence[int] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastrun-device-")
        start = way_to(name, Path(self._folder.name))
        session = Session(start)
        try:
            identity = identify(session, on)
            if threads > len(identity.cores):
                raise DeviceError(
                    f"{threads} threads, but {len(identity.cores)} cores of one type on the device"
                )
            self._environment = environment(session, identity)
        except BaseException:
            session.close()
            raise
        self.warnings, self._identity, self._session = identity.warnings, identity, session
        here = name.startswith("exec:")  # perhaps on this machine
        ours = Cores.split(threads) if here else Cores((), sorted(os.sched_getaffinity(0)))
        super().__init__(threads, regime, limits, cores=ours, cpu=identity.cpu)
        turn = {"turn": ours.timing_turn} if here else {}
        cores = identity.cores[-threads:]
        self._bench = DeviceBench(start, session, identity.cpu, cores, **turn)

    @cached_property
    def report(self) -> MachineReport:
        """What was measured of the device's processor, now or earlier; ask before a run begins."""
        return report_of(self._session, self._identity)

    def _open(self, stack: ExitStack) -> None:
        stack.callback(self._folder.cleanup)
        self.sandbox = stack.enter_context(self._bench)
        if self.cores.timing:
            stack.enter_context(self.cores.keep_clear())
        self._scratch = stack.enter_context(Scratch())
        self.compiler = stack.enter_context(
            Compiler(self.cores, self.cpu, self.limits, portable=True)
        )

    def forget(self, *problems: Problem) -> None:
        """Delete the operands of these problems; of all, here and on the device, if none is given.

        Files on the device have no problem: those of several may be the same.
        """
        super().forget(*problems)
        if not problems:
            self._bench.forget()

    def environments(self) -> Iterator[Environment]:
        """The device as it was when it was connected."""
        if not self._yielded:
            self._yielded = True
            yield self._environment
