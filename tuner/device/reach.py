"""Ways to a device: a command, ssh or adb. Each sends the runner if it is missing, and starts it.

A device is named `exec:COMMAND`, `ssh:user@board` or `adb:SERIAL`. ssh and adb know who may do
what; no port is opened.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastrun.tuner.device.channel import Channel, LostError
from fastrun.tuner.device.runner import runner

_MACHINES = {
    "x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64",
    "riscv64": "riscv64",
}  # fmt: skip
_PATIENCE = 20.0  # seconds for a runner to say hello, and for a shell to answer

KINDS = ("exec", "ssh", "adb")

STARTED = ("x86_64", "aarch64", "riscv64")
"""The machines that there are runners for."""

Start = Callable[[], Channel]
"""Starts a runner on the device, in the folder of its files."""


class DeviceError(ConnectionError):
    """The device cannot be used. The message is one line and says what to do."""


def way_to(name: str, folder: Path) -> Start:
    """How the runner of a device is started; `folder` is for files of `exec:`.

    Raises:
        DeviceError: the name is that of no device.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest:
        raise DeviceError(
            f"{name!r} names no device: use exec:COMMAND, ssh:user@board or adb:SERIAL"
        )
    if kind == "exec":
        words = shlex.split(rest)
        return _Exec(words if "{}" in words else [*words, "{}"], folder).start
    if kind == "ssh":
        options = ("-T", "-oBatchMode=yes", "-oServerAliveInterval=5")
        return _Shell(("ssh", *options, rest), '"${XDG_CACHE_HOME:-$HOME/.cache}/fastrun"').start
    return _Shell(("adb", "-s", rest, "shell", "-T"), "/data/local/tmp/fastrun").start


@cache
def _runner(machine: str) -> bytes:
    return runner(machine)


class _Exec:
    """A command with `{}` in the place of the runner's path; the first runner that answers counts.

    So `exec:qemu-aarch64` finds out that the other runners are none for it.
    """

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self._words, self._folder, self._machines = words, folder, tuple(STARTED)

    def start(self) -> Channel:
        refusals = []
        for machine in self._machines:
            program = self._folder / f"runner-{machine}"
            if not program.exists():
                program.write_bytes(_runner(machine))
                program.chmod(0o700)
            command = [str(program) if word == "{}" else word for word in self._words]
            try:
                channel = Channel(command, machine, _PATIENCE, self._folder)
            except (LostError, OSError) as error:
                refusals.append(f"{machine}: {error}")
                continue
            self._machines = (machine,)
            return channel
        asked = shlex.join(self._words).replace("'{}'", "RUNNER")
        raise DeviceError(f"no runner answers to `{asked}` ({'; '.join(refusals)})")


@dataclass(frozen=True)
class _Shell:
    """A program that runs shell commands on the device, and a folder there in the shell's words."""

    words: tuple[str, ...]
    folder: str

    def start(self) -> Channel:
        said = self._say("uname -m").decode(errors="replace").strip()
        if said not in _MACHINES:
            raise DeviceError(
                f"the device is a {said or 'machine that does not say what it is'}: there are "
                f"runners for {', '.join(STARTED)}"
            )
        machine = _MACHINES[said]
        content = _runner(machine)
        path = f"{self.folder}/runner-{hashlib.sha256(content).hexdigest()[:16]}"
        here = self._say(f"mkdir -p {self.folder}; test -x {path} && echo here || echo not")
        if here.strip() != b"here":
            # It appears whole or not at all.
            put = f"cat > {path}.new && chmod 700 {path}.new && mv {path}.new {path} && echo here"
            if self._say(put, content).strip() != b"here":
                raise DeviceError(f"the runner cannot be stored in {self.folder} of the device")
        start = f"cd {self.folder} && exec {path}"
        return Channel([*self.words, start], machine, _PATIENCE)

    def _say(self, command: str, given: bytes = b"") -> bytes:
        """The output of a shell command on the device."""
        with tempfile.TemporaryFile() as file:
            file.write(given)
            file.seek(0)
            try:
                done = subprocess.run(
                    [*self.words, command], stdin=file, capture_output=True, timeout=_PATIENCE,
                    check=False,
                )  # fmt: skip
            except FileNotFoundError:
                raise DeviceError(
                    f"the program `{self.words[0]}` is needed to reach the device"
                ) from None
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"`{shlex.join(self.words)}` does not answer within {_PATIENCE:.0f} s"
                ) from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1][:200] if lines else f"it ended with {done.returncode}"
            raise DeviceError(f"`{shlex.join(self.words)}` cannot reach the device: {why}")
        return done.stdout
