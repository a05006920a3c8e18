"""Reads the tensors of a PyTorch checkpoint without PyTorch.

The file has the format of PyTorch before 1.6 (protocol 1001): pickles of the structure, then each
storage as its number of elements and their bytes. Only tensors are read; a pickle that names
anything else is refused, so a file cannot run code.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import ModelFileError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TYPES: dict[str, type[Any]] = {"FloatStorage": np.float32, "LongStorage": np.int64}


@dataclass(frozen=True)
class _Tensor:
    key: str
    kind: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors by name.

    Raises:
        ModelFileError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            if pickle.load(file) != _MAGIC or pickle.load(file) != _PROTOCOL:
                raise pickle.UnpicklingError("another format")
            pickle.load(file)  # sizes of types
            tensors: dict[str, _Tensor] = _Reader(file).load()
            kinds = {tensor.key: tensor.kind for tensor in tensors.values()}
            storages = {key: _storage(file, _TYPES[kinds[key]]) for key in pickle.load(file)}
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a checkpoint of PyTorch's old format: {error}") from None
    return {name: _array(storages[tensor.key], tensor) for name, tensor in tensors.items()}


def _storage(file: IO[bytes], dtype: type[Any]) -> NDArray[Any]:
    (count,) = np.frombuffer(file.read(8), np.int64)
    return np.frombuffer(file.read(int(count) * np.dtype(dtype).itemsize), dtype)


def _array(storage: NDArray[Any], tensor: _Tensor) -> NDArray[Any]:
    size = storage.itemsize
    strides = [size * stride for stride in tensor.strides]
    # numpy checks that this lies in the storage.
    return np.ndarray(tensor.shape, storage.dtype, storage, size * tensor.first, strides).copy()


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few names that a checkpoint of tensors needs."""
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
        }
        if module == "torch" and name in _TYPES:
            return name
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Sequence[Any]) -> tuple[str, str]:
        """The key and the type of a storage."""
        return pid[2], pid[1]


def _rebuilt(
    storage: tuple[str, str], first: int, shape: Sequence[int], strides: Sequence[int], *_: object
) -> _Tensor:
    return _Tensor(*storage, first, tuple(shape), tuple(strides))
