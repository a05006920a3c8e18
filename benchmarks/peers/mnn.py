"""MNN: models converted by its own converter, run at high precision (float32)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, shapes

title = "MNN"
packages = ("MNN",)

# The extension module is imported directly: MNN.tools would install a package and send reports.
_CONVERT = "import _tools, sys; _tools.mnnconvert(sys.argv)"


def load(
    model: onnx.ModelProto,
    threads: int,
    inner: bool = False,
    config: Mapping[str, str] | None = None,
    hints: Mapping[int, int] | None = None,
) -> Session:
    """As `Engine.load`; `config` has further entries of a session's, `hints` those of MNN."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        onnx.save(model, source)
        _convert(source, target, inner)
        outputs = [v.name for v in model.graph.output]
        further = {"numThread": threads, **(config or {})}
        return Session(target, list(shapes(model)), outputs, inner, further, hints or {})


class Session:
    """A session of an interpreter. (MNN 3.6's modules misread the input of some pooling layers.)

    A session reuses the memory of its inputs for later layers, so `call` writes them again, as
    users of a network must. In a model of a single layer there is no later layer.
    """

    def __init__(
        self,
        path: Path,
        inputs: list[str],
        outputs: list[str],
        inner: bool,
        config: Mapping[str, Any],
        hints: Mapping[int, int],
    ) -> None:
        self._inputs, self._outputs, self._inner = inputs, outputs, inner
        with _quiet():
            import MNN

            self._interpreter = MNN.Interpreter(str(path))
            for hint, value in hints.items():
                self._interpreter.setSessionHint(hint, value)
            whole = {"backend": "CPU", "precision": "high", **config}
            self._session = self._interpreter.createSession(whole)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        find = self._interpreter.getSessionInput
        self._bound = [
            (find(self._session, name), _tensor(np.ascontiguousarray(inputs[name])))
            for name in self._inputs
        ]
        self._write()
        self._interpreter.runSession(self._session)
        return [self._result(name) for name in self._outputs]

    def call(self) -> None:
        if not self._inner:
            self._write()
        self._interpreter.runSession(self._session)

    def _write(self) -> None:
        for target, source in self._bound:
            target.copyFrom(source)

    def _result(self, name: str) -> Array:
        output = self._interpreter.getSessionOutput(self._session, name)
        shape = tuple(output.getShape())
        host = _tensor(np.zeros(shape, np.float32))
        output.copyToHostTensor(host)
        return np.array(host.getData(), np.float32).reshape(shape)


def _tensor(array: Array) -> Any:
    """A tensor of MNN on the host, in row-major order (NCHW)."""
    import MNN

    order = MNN.Tensor_DimensionType_Caffe
    return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, order)


def _convert(source: Path, target: Path, inner: bool) -> None:
    options = {
        "-f": "ONNX",
        "--modelFile": str(source),
        "--MNNModel": str(target),
        "--bizCode": "none",
        # 0: inputs and outputs have the internal layout.
        "--keepInputFormat": str(int(not inner)),
    }
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, *words], capture_output=True, text=True, check=False
    )
    if done.returncode or not target.exists():
        raise LoadError(f"MNN cannot convert the model (exit status {done.returncode})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the lines that native code prints when it is loaded."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
