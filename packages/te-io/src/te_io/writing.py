"""Writing safetensors archives, one file or several, whole or not at all.

The safetensors library is not asked to: its NumPy side ignores strides, lacks dtypes and writes in
place. Tensors are asked for one by one while they are written, so that what makes them on the way
(a cast, a transposition) holds no more than one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from te_tensor.dtypes import Array

from .archive import INDEX_SUFFIX, read_index
from .atomic import replacing
from .errors import FormatError
from .header import Described, header_bytes
from .state_dict import State

#: Bytes handed to the system at once, between two reports of progress.
_CHUNK = 1 << 24

_SUFFIX = ".safetensors"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

#: Called with the number of bytes that were written.
Progress = Callable[[int], object]


class Storable(Described, Protocol):
    """What can be written: a Tensor, or what gives its elements when they are wanted."""

    def lock(self, write: bool) -> AbstractContextManager[Array]:
        """The elements, which no other thread changes meanwhile."""
        ...


def separate_tied(tensors: State) -> tuple[State, dict[str, str]]:
    """The tensors to store, and from each name that needs no storage the one that has its tensor.

    Names are tied where they stand for the same elements of the same memory.

    Returns:
        Both sorted by name; of several names for one tensor the first is stored.
    """
    stored: State = {}
    tied: dict[str, str] = {}
    kept: dict[tuple[Any, ...], str] = {}
    for name in sorted(tensors):
        array = tensors[name].data
        place = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
        if array.size and place in kept:
            tied[name] = kept[place]
        else:
            kept[place] = name
            stored[name] = tensors[name]
    return stored, tied


def parse_size(size: int | str) -> int:
    """A number of bytes, as it is or as a text: "500MB" is 500 000 000, "2GiB" is 2·2^30.

    Raises:
        ValueError: it is no size above 0.

    Example:
        >>> parse_size("1.5kB"), parse_size("1KiB")
        (1500, 1024)
    """
    given = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?)B?\s*", size)
        units = {**_UNITS, **_BINARY_UNITS}
        unit = match[2].replace("k", "K") if match else "?"
        if match is None or unit not in units:
            raise ValueError(f"size is {given!r}: expected bytes, or a text such as '500MB'")
        size = int(float(match[1]) * units[unit])
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"size is {given!r}: expected bytes above 0, or a text such as '500MB'")
    return int(size)


def write_archive(
    tensors: Mapping[str, Storable],
    tied: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    max_shard_size: int | str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write an archive, as `save_safetensors` says.

    Args:
        tensors: what is to be stored, by name.
        tied: from further names of stored tensors to those in `tensors`.
        path: the file to write.
        metadata: what `header.checked_metadata` gave.
        max_shard_size: bytes of tensors in a file, or a text; None for one file.
        progress: told the bytes that were written.

    Raises:
        ValueError: max_shard_size is no size.
        FormatError: something can't be stored; path has the name of an index.
        OSError: something can't be written.
    """
    name = os.fspath(path)
    if name.endswith(INDEX_SUFFIX):
        raise FormatError("has the name of an index: expected that of an archive", file=name)
    if max_shard_size is not None:
        shards = _cut(tensors, parse_size(max_shard_size))
        if len(shards) > 1:
            _write_shards(shards, tied, Path(path), metadata, progress)
            return
    target = Path(os.path.realpath(path))
    index = target.with_name(target.name + INDEX_SUFFIX)
    shards_before = _shards_of(index)
    _write_file(tensors, tied, path, metadata, progress)
    if shards_before:  # from here on the file is the archive; the index goes while its shards stand
        _remove([index, *(shard for shard in shards_before if shard != target)])


def _write_file(
    tensors: Mapping[str, Storable],
    tied: Mapping[str, str],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    progress: Progress | None,
) -> None:
    # Wide elements first, so that each tensor starts at a multiple of its element's width; then by
    # name.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = header_bytes({n: tensors[n] for n in names}, metadata, tied, os.fspath(path))
    with replacing(path) as file:
        file.write(header)
        for name in names:
            with tensors[name].lock(write=False) as array:
                content = little_endian_bytes(array)
                for begin in range(0, len(content), _CHUNK):
                    part = content[begin : begin + _CHUNK]
                    file.write(part)
                    if progress is not None:
                        progress(len(part))


def little_endian_bytes(array: Array) -> memoryview:
    """The elements in C order, as bytes; a copy only where memory isn't so already."""
    array = np.ascontiguousarray(array)
    if array.dtype.isnative == (sys.byteorder == "big"):
        array = array.byteswap()
    return array.reshape(-1).view(np.uint8).data  # as uint8: ml_dtypes have no buffer of their own


# -- shards ---------------------------------------------------------------------------------


def _cut(tensors: Mapping[str, Storable], most: int) -> list[dict[str, Storable]]:
    """The tensors by name in shards of at most so many bytes; a larger tensor stands alone."""
    shards: list[dict[str, Storable]] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].nbytes
    return shards


def _write_shards(
    shards: list[dict[str, Storable]],
    tied: Mapping[str, str],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Write the shards under names that are free, and then the index, which makes them count.

    The archive that was there is whole until the index takes its place; its files go then.
    """
    path = Path(os.path.realpath(path))
    index = path.with_name(path.name + INDEX_SUFFIX)
    before = [path] * path.is_file() + _shards_of(index)
    names = _free_names(path, len(shards))
    content = _index(shards, names)
    try:
        for name, tensors in zip(names, shards, strict=True):
            own = {further: stored for further, stored in tied.items() if stored in tensors}
            _write_file(tensors, own, path.with_name(name), metadata, progress)
        with replacing(index) as file:
            file.write(content)
    except BaseException:
        if not (index.is_file() and index.read_bytes() == content):
            _remove(path.with_name(name) for name in names)
        raise
    _remove(before)


def _index(shards: list[dict[str, Storable]], names: list[str]) -> bytes:
    sizes = [tensor.nbytes for tensors in shards for tensor in tensors.values()]
    weight_map = {
        tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors
    }
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _free_names(path: Path, number: int) -> list[str]:
    """Names for shards: "model-00001-of-00003.safetensors", or with a "-2" before if taken."""
    stem = path.name.removesuffix(_SUFFIX)
    for attempt in count(1):
        start = stem if attempt == 1 else f"{stem}-{attempt}"
        names = [f"{start}-{i:05}-of-{number:05}{_SUFFIX}" for i in range(1, number + 1)]
        if not any(path.with_name(name).exists() for name in names):
            return names
    raise AssertionError("count ends")


def _shards_of(index: Path) -> list[Path]:
    """The files that an index names; none where there is no index that can be relied on."""
    try:
        shards = set(read_index(index).values())
    except (FormatError, OSError):
        return []
    return [index.with_name(shard) for shard in sorted(shards)]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()
