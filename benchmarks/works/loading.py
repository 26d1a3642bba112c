"""A safetensors file into a dict: untouched, and with every element read once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Size(NamedTuple):
    """How many matrices of 1024×1024 in float32, and whether all of them are read."""

    tensors: int
    read: bool


SIZES = {"500 MB": Size(119, False), "500 MB, each element read": Size(119, True)}
FEATURES = 1024

_folders: list[tempfile.TemporaryDirectory[str]] = []


def write_file(tensors: int) -> Path:
    """A file that any of the contestants could have written; gone when the process ends."""
    _folders.append(tempfile.TemporaryDirectory())
    path = Path(_folders[-1].name, "model.safetensors")
    nbytes = 4 * FEATURES**2
    header = {
        f"layers.{i}.weight": {
            "dtype": "F32",
            "shape": [FEATURES, FEATURES],
            "data_offsets": [i * nbytes, (i + 1) * nbytes],
        }
        for i in range(tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i in range(tensors):
            rng = np.random.default_rng(i)
            file.write(rng.standard_normal((FEATURES, FEATURES), np.float32).data)
    return path


def _step(load: Callable[[Path], dict[str, Any]], size: Size) -> Callable[[], object]:
    path = write_file(size.tensors)

    def total(arrays: Iterable[Any]) -> float:
        return sum(float(np.asarray(array).sum()) for array in arrays)

    return lambda: total(load(path).values()) if size.read else load(path)


def tensor_engine(size: Size) -> Callable[[], object]:
    import te_io

    return _step(te_io.load_safetensors, size)


def safetensors_numpy(size: Size) -> Callable[[], object]:
    import safetensors.numpy

    return _step(safetensors.numpy.load_file, size)


def safetensors_torch(size: Size) -> Callable[[], object]:
    import safetensors.torch

    return _step(safetensors.torch.load_file, size)


CONTESTANTS = {
    "tensor-engine": tensor_engine,
    "safetensors.numpy": safetensors_numpy,
    "safetensors.torch": safetensors_torch,
}
