"""A file of torch.save into a dict: untouched, and with every element read once.

The engine checks the checksums of the file, which PyTorch doesn't; "unverified" leaves that out.
"""

from __future__ import annotations

import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .loading import FEATURES, Size

SIZES = {"500 MB": Size(119, False), "500 MB, each element read": Size(119, True)}
#: Where PyTorch has the data of a member start.
ALIGNMENT = 64
_PADDING = 0x4246

_folders: list[tempfile.TemporaryDirectory[str]] = []


def write_file(tensors: int) -> Path:
    """A file as torch.save writes it, made without PyTorch; gone when the process ends."""
    _folders.append(tempfile.TemporaryDirectory())
    path = Path(_folders[-1].name, "model.pt")
    with zipfile.ZipFile(path, "w") as file:
        _add(file, "data.pkl", _pickle(tensors))
        _add(file, "byteorder", b"little")
        for i in range(tensors):
            values = np.random.default_rng(i).standard_normal((FEATURES, FEATURES), np.float32)
            _add(file, f"data/{i}", values.tobytes())
        _add(file, "version", b"3\n")
    return path


def _add(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"model/{name}")
    assert file.fp is not None
    end = file.fp.tell() + 30 + len(info.filename) + 4
    padding = -end % ALIGNMENT
    info.extra = struct.pack("<2H", _PADDING, padding) + bytes(padding)
    file.writestr(info, content)


def _pickle(tensors: int) -> bytes:
    """A dict of matrices by name, in opcodes."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    features = number(FEATURES)
    entries = []
    for i in range(tensors):
        kind = b"ctorch\nFloatStorage\n"
        storage = text("storage") + kind + text(str(i)) + text("cpu") + number(FEATURES**2)
        place = number(0) + features * 2 + b"\x86" + features + number(1) + b"\x86"
        arguments = b"((" + storage + b"tQ" + place + b"\x89ccollections\nOrderedDict\n)Rt"
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
        entries.append(text(f"layers.{i}.weight") + rebuild + arguments + b"R")
    return b"\x80\x02}(" + b"".join(entries) + b"u."


def _step(load: Callable[[Path], dict[str, Any]], size: Size) -> Callable[[], object]:
    path = write_file(size.tensors)
    if not size.read:
        return lambda: load(path)
    return lambda: sum(float(np.asarray(array).sum()) for array in load(path).values())


def tensor_engine(size: Size, **options: Any) -> Callable[[], object]:
    import te_io

    return _step(partial(te_io.load_torch, **options), size)


def torch(size: Size, **options: Any) -> Callable[[], object]:
    import torch

    return _step(partial(torch.load, weights_only=True, **options), size)


CONTESTANTS = {
    "tensor-engine": tensor_engine,
    "tensor-engine unverified": partial(tensor_engine, verify=False),
    "torch": torch,
    "torch mapped": partial(torch, mmap=True),
}
