"""ncnn: models converted by its tool pnnx; all optimisations but types smaller than float32."""

from __future__ import annotations

import importlib.metadata
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, shapes
from fastrun.kernels.core.cpu import Cpu

title = "ncnn"
packages = ("ncnn", "pnnx")

_NARROW = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed")


def load(
    model: onnx.ModelProto,
    threads: int,
    inner: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Session:
    """As `Engine.load`, with further options of ncnn's."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        convert(Path(folder))
        return Session(Path(folder) / "model.ncnn", list(shapes(model)), threads, inner, more)


class Session:
    """A net with pools that keep memory between calls, as in ncnn's own benchmark."""

    def __init__(
        self,
        stem: Path,
        inputs: list[str],
        threads: int,
        inner: bool,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        import ncnn

        self._inputs, self._inner = inputs, inner
        # Attributes are freed in this order: all memory must be back in the pools before they are.
        self._bound: list[Any] = []
        self._net = ncnn.Net()
        self._pools = (ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator())
        options = self._net.opt
        options.num_threads = threads
        options.blob_allocator, options.workspace_allocator = self._pools
        for name in _NARROW:
            setattr(options, f"use_{name}", False)
        for name, value in (more or {}).items():
            setattr(options, name, value)
        self._net.opt = options
        if self._net.load_param(f"{stem}.param") or self._net.load_model(f"{stem}.bin"):
            raise LoadError("ncnn cannot read what pnnx wrote: a layer is not supported")
        self._outputs = list(self._net.output_names())

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self._bound = [self._mat(inputs[name]) for name in self._inputs]
        return [self._array(mat) for mat in self._extract()]

    def call(self) -> None:
        self._extract()

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Tensors inside the net, by their names in its file, for these inputs."""
        self._bound = [self._mat(inputs[name]) for name in self._inputs]
        # An extractor keeps no tensor that has been read, so each takes a new one.
        return {name: self._array(self._extract([name])[0]) for name in names}

    def _extract(self, names: Sequence[str] = ()) -> list[Any]:
        extractor = self._net.create_extractor()
        for i, mat in enumerate(self._bound):
            extractor.input(f"in{i}", mat)
        # Type 1 leaves an output in its internal layout.
        found = [extractor.extract(name, int(self._inner)) for name in names or self._outputs]
        if any(status for status, _ in found):
            raise LoadError("ncnn cannot run the model: a layer is not supported")
        return [mat for _, mat in found]

    def _mat(self, array: Array) -> Any:
        import ncnn

        if len(array) != 1:
            raise LoadError("ncnn has no batches")
        mat = ncnn.Mat(array[0]).clone()
        return ncnn.convert_packing(mat, self._pack(array.shape[1])) if self._inner else mat

    @staticmethod
    def _pack(c: int) -> int:
        """The number of channels in a block between the layers of a net."""
        widths = (w for w in (16, 8, 4) if w <= Cpu.host().lanes and c % w == 0)
        return next(widths, 1)

    @staticmethod
    def _array(mat: Any) -> Array:
        import ncnn

        plain = mat if mat.elempack == 1 else ncnn.convert_packing(mat, 1)
        return np.array(plain.numpy(), np.float32)[None]


def convert(folder: Path) -> None:
    """Turn model.onnx into model.ncnn.param and .bin; pnnx is a program inside its package.

    Raises:
        LoadError: it cannot.
    """
    program = importlib.metadata.distribution("pnnx").locate_file("pnnx/pnnx")
    done = subprocess.run(
        [str(program), "model.onnx", "fp16=0"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / "model.ncnn.bin").exists():
        raise LoadError(f"pnnx cannot convert the model (exit status {done.returncode})")
