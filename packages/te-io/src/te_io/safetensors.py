"""The safetensors format: https://github.com/huggingface/safetensors#format.

A file is the length of the header (8 bytes, little-endian), the header (JSON: for each tensor its
dtype, shape and place; texts under "__metadata__"), and the bytes of the tensors, little-endian
and in C order, without gaps.

Files are checked by the safetensors library before a tensor is read. Header and data are read and
written here, because the library's NumPy side ignores strides, lacks dtypes and writes in place.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from te_tensor import Tensor, dtypes, from_numpy
from te_tensor.dtypes import Array, DType, as_dtype

from .atomic import replacing
from .errors import FormatError
from .state_dict import (
    HasStateDict,
    State,
    tensors_of,
    turn_weights,
)

#: Where an archive comes from: a path, its bytes, or a file opened for reading bytes.
Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

#: The longest header that the format allows, in bytes.
MAX_HEADER = 100_000_000

#: Up to this length a refused header is read again, to name the tensor at fault.
_SMALL_HEADER = 1_000_000

#: The metadata entry that lists tied tensors: a JSON object from each further name to the name
#: that the tensor is stored under.
TIED = "te_io.tied"

_METADATA = "__metadata__"
_DTYPES: dict[str, DType] = {
    "BOOL": dtypes.bool_,
    "U8": dtypes.uint8,
    "I8": dtypes.int8,
    "U16": dtypes.uint16,
    "I16": dtypes.int16,
    "U32": dtypes.uint32,
    "I32": dtypes.int32,
    "U64": dtypes.uint64,
    "I64": dtypes.int64,
    "F8_E4M3": dtypes.float8_e4m3fn,
    "F8_E5M2": dtypes.float8_e5m2,
    "F8_E8M0": dtypes.float8_e8m0fnu,
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
    "F32": dtypes.float32,
    "F64": dtypes.float64,
    "C64": dtypes.complex64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


# -- saving ---------------------------------------------------------------------------------


def save_safetensors(
    module_or_dict: HasStateDict | Mapping[str, Tensor | Array],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a file, whole or not at all.

    The file is written under another name in the same folder, brought to the disk and then
    renamed: whatever goes wrong, a file that was there before is intact. Tensors of any strides
    and byte order are written as what they show. Names for one and the same memory (tied tensors)
    are stored once, and the metadata entry "te_io.tied" lets `load_safetensors` give all of them.
    The same tensors and metadata always make the same bytes, whatever the order of the dict.

    Args:
        module_or_dict: a module, or a dict of Tensors and ndarrays.
        path: the file to write. A link is followed; permissions of an existing file are kept.
        metadata: texts by name to store beside the tensors.

    Raises:
        TypeError: module_or_dict is neither a module nor a dict.
        FormatError: a name, a value, a dtype or the metadata can't be stored.
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> import te_tensor as te
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"weight": te.ones(2, 3)}, path, metadata={"epoch": "20"})
        >>> load_safetensors(path)["weight"].shape, load_metadata(path)
        ((2, 3), {'epoch': '20'})
    """
    file_name = os.fspath(path)
    tensors = tensors_of(module_or_dict, file_name)
    stored, tied = _separate_tied(tensors)
    # Wide elements first, so that each tensor starts at a multiple of its element's width; then by
    # name, which is the order that they come in.
    names = sorted(stored, key=lambda name: -stored[name].dtype.itemsize)
    texts = _checked_metadata(metadata, file_name)
    if tied:
        texts[TIED] = json.dumps(tied)
    header = _header_bytes({name: stored[name] for name in names}, texts, file_name)
    with replacing(path) as file:
        file.write(header)
        for name in names:
            with stored[name].lock(write=False) as array:  # not while another thread changes it
                file.write(_little_endian_bytes(array))


def _separate_tied(tensors: State) -> tuple[State, dict[str, str]]:
    """The tensors to store, and from each name that needs no storage the one that has its tensor.

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


def _checked_metadata(metadata: Mapping[str, str] | None, file_name: str) -> dict[str, str]:
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise FormatError(
                f"metadata {key!r} is {value!r}: expected a str for a str", file=file_name
            )
        if key == TIED:
            raise FormatError(f"metadata {key!r} is kept for tied tensors", file=file_name)
    return dict(sorted((metadata or {}).items()))


def _header_bytes(tensors: State, metadata: dict[str, str], file_name: str) -> bytes:
    """The length and the header, padded so that the data start at a multiple of 8."""
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        if name == _METADATA:
            raise FormatError("this name is kept for metadata", file=file_name, tensor=name)
        code = _CODES.get(as_dtype(tensor.dtype))
        if code is None:
            raise FormatError(f"has dtype {tensor.dtype}", file=file_name, tensor=name)
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{error.object[error.start]!r} in a name or in the metadata is no Unicode text",
            file=file_name,
        ) from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise FormatError(
            f"the header would have {len(text)} bytes: expected at most {MAX_HEADER}",
            file=file_name,
        )
    return struct.pack("<Q", len(text)) + text


def _little_endian_bytes(array: Array) -> memoryview:
    """The elements in C order, as bytes; a copy only where memory isn't so already."""
    array = np.ascontiguousarray(array)
    if array.dtype.isnative == (sys.byteorder == "big"):
        array = array.byteswap()
    return array.reshape(-1).view(np.uint8).data  # as uint8: ml_dtypes have no buffer of their own


# -- reading --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of an archive: what it is, and at which byte of the file it starts."""

    dtype: DType
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive whose header has been checked."""

    file: BinaryIO
    name: str
    entries: dict[str, _Entry]
    metadata: dict[str, str]
    tied: dict[str, str]

    def read(self, name: str) -> Tensor:
        """A tensor that owns its memory."""
        entry = self.entries[name]
        try:
            array = np.empty(entry.shape, entry.dtype)
        except (OverflowError, ValueError) as error:  # more axes, or longer, than NumPy has
            raise self._error(f"has shape {entry.shape}: {error}", name) from None
        content = array.reshape(-1).view(np.uint8)
        self.file.seek(entry.start)
        if self.file.readinto(content) != content.size:  # type: ignore[attr-defined]
            raise self._error("the file was cut short while it was read", name)
        if entry.dtype == dtypes.bool_ and content.max(initial=0) > 1:
            raise self._error(f"has a bool of {content.max()}: expected 0 or 1", name)
        if sys.byteorder == "big":
            array.byteswap(inplace=True)
        return from_numpy(array)

    def read_all(self) -> State:
        """Every tensor; tied ones under each of their names."""
        state = {name: self.read(name) for name in self.entries}
        state.update({name: state[stored] for name, stored in self.tied.items()})
        return state

    def _error(self, reason: str, tensor: str) -> FormatError:
        return FormatError(reason, file=self.name, tensor=tensor)


def load_safetensors(path_or_bytes: Source, *, transpose: bool = False) -> State:
    """Read all tensors of a file.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes.
        transpose: the file stores weights of Linear layers as `[in, out]`: turn them. Turned are
            tensors with two axes whose name ends in "weight", save those that are an embedding's
            by their name; `turn_weights` has the rule. `load_into_module` knows more, and decides
            by the shapes of the module.

    Returns:
        Tensors by name, each with memory of its own, in the order of the file; then further names
        of tied tensors, which stand for the same Tensor.

    Raises:
        FormatError: the file is damaged, is of another format, or has a dtype that te-tensor
            doesn't; a weight is `[out, in]` already, though transpose is set.
        OSError: it can't be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"linear.weight": np.zeros((2, 3))}, path)
        >>> load_safetensors(path, transpose=True)["linear.weight"].shape
        (3, 2)
        >>> load_safetensors(path.read_bytes())["linear.weight"].shape
        (2, 3)
    """
    with opened(path_or_bytes) as archive:
        state = archive.read_all()
        return turn_weights(state, file=archive.name) if transpose else state


def load_metadata(path_or_bytes: Source) -> dict[str, str]:
    """Read the texts stored beside the tensors; no tensor is read.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes.

    Returns:
        What `save_safetensors` was given as metadata.

    Raises:
        FormatError: the file is damaged or of another format.
        OSError: it can't be read.
    """
    with opened(path_or_bytes) as archive:
        return archive.metadata


@contextmanager
def opened(source: Source) -> Iterator[Archive]:
    """An archive, open for reading, whose header has been checked.

    Args:
        source: a path, bytes, or a file opened for reading bytes.

    Returns:
        A context manager that gives the archive.

    Raises:
        FormatError: it is damaged or of another format.
        OSError: it can't be read.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise FormatError("is not a regular file", file=str(path))
        with path.open("rb") as file:
            yield _check(file, str(path), lambda: _library_opens(path))
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, content = "<bytes>", bytes(source)
    elif hasattr(source, "read"):
        name, content = str(getattr(source, "name", "<file>")), source.read()
        if not isinstance(content, bytes):
            raise TypeError(f"the file gives {type(content).__name__}: open it for reading bytes")
    else:
        raise TypeError(
            f"got {type(source).__name__}: expected a path, bytes, or a file opened for reading "
            "bytes"
        )
    yield _check(io.BytesIO(content), name, lambda: _library_reads(content))


def _library_opens(path: Path) -> None:
    with safe_open(path, framework="numpy"):
        pass


def _library_reads(content: bytes) -> None:
    deserialize(content)  # type: ignore[no-untyped-call]


def _check(file: BinaryIO, name: str, library_check: Callable[[], object]) -> Archive:
    """The archive in a file that is as it must be.

    Args:
        file: the file.
        name: what to call it in errors.
        library_check: has the safetensors library check offsets, gaps and the form of the header.

    Raises:
        FormatError: it is not.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise FormatError(
            f"is no safetensors file: it has {size} bytes, expected at least 8", file=name
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(
            f"is cut short, or no safetensors file: it starts with a header length of {length}, "
            f"expected at most {min(MAX_HEADER, size - 8)}",
            file=name,
        )
    try:
        library_check()
    except SafetensorError as error:
        if length <= _SMALL_HEADER:
            _name_culprit(file, name, length, size)
        raise FormatError(
            f"is damaged, or no safetensors file ({size} bytes, {8 + length} of them header): "
            f"{error}",
            file=name,
        ) from None
    return _parse(file, name, length, size)


def _name_culprit(file: BinaryIO, name: str, length: int, size: int) -> None:
    """Raise if our own look finds the tensor that is at fault, which the library seldom names."""
    try:
        _parse(file, name, length, size)
    except FormatError as error:
        if error.tensor is not None:
            raise


def _parse(file: BinaryIO, name: str, length: int, size: int) -> Archive:
    """The archive with the header of this length.

    Repeated names, dtypes and tied names are checked here only. Places are checked once more: the
    file may have been replaced since the library looked.
    """
    file.seek(8)
    try:
        header = _json_object(file.read(length), name)
        metadata = header.pop(_METADATA, None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is no text")
    except (AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"has a damaged header: {error}", file=name) from None
    entries = {key: _entry(key, value, 8 + length, size, name) for key, value in header.items()}
    tied = _tied_names(metadata.pop(TIED, "{}"), entries, name)
    return Archive(file, name, entries, metadata, tied)


def _json_object(text: bytes | str, file_name: str) -> dict[str, Any]:
    """A JSON object, of which no key may stand twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"has {key!r} twice in its header", file=file_name)
            found[key] = value
        return found

    parsed = json.loads(text, object_pairs_hook=unique)
    if not isinstance(parsed, dict):
        raise ValueError(f"{type(parsed).__name__} instead of an object")
    return parsed


def _entry(name: str, value: Any, data_start: int, size: int, file_name: str) -> _Entry:
    def error(reason: str) -> FormatError:
        return FormatError(reason, file=file_name, tensor=name)

    try:
        code, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise error("lacks dtype, shape or data_offsets in the header") from None
    if not isinstance(code, str) or code not in _DTYPES:
        raise error(f"has dtype {code!r}: expected one of {', '.join(_DTYPES)}")
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise error(f"has shape {shape} and place {begin, end}: expected whole numbers from 0 up")
    dtype = _DTYPES[code]
    if prod(shape) * dtype.itemsize != end - begin:
        raise error(
            f"has shape {shape} of {code}, which is {prod(shape) * dtype.itemsize} bytes, and "
            f"{end - begin} bytes in the file"
        )
    if data_start + end > size:
        raise error(f"ends at byte {data_start + end}, but the file has {size}: it is cut short")
    return _Entry(dtype, shape, data_start + begin)


def _tied_names(text: str, entries: Mapping[str, _Entry], file_name: str) -> dict[str, str]:
    try:
        tied = _json_object(text, file_name)
    except (RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"has metadata {TIED!r} that is damaged: {error}", file=file_name
        ) from None
    for name, stored in tied.items():
        if name in entries or not isinstance(stored, str) or stored not in entries:
            raise FormatError(
                f"is tied to {stored!r} in metadata {TIED!r}: expected a name that isn't stored, "
                "tied to one that is",
                file=file_name,
                tensor=name,
            )
    return tied
