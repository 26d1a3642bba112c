"""The header of a safetensors file: https://github.com/huggingface/safetensors#format.

A file is the length of the header (8 bytes, little-endian), the header (JSON: for each tensor its
dtype, shape and place; texts under "__metadata__"), and the bytes of the tensors, little-endian
and in C order, without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from te_tensor import dtypes
from te_tensor.dtypes import DType, as_dtype

from .errors import FormatError

#: The longest header that the format allows, in bytes.
MAX_HEADER = 100_000_000

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


class Described(Protocol):
    """What the header says of a tensor: a Tensor, or what will become one."""

    @property
    def dtype(self) -> DType:
        """The dtype to store."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        ...

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: what it is, and at which byte of the file it starts."""

    dtype: DType
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the tensors."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    tied: dict[str, str]


# -- writing --------------------------------------------------------------------------------


def checked_metadata(metadata: Mapping[str, str] | None, file_name: str) -> dict[str, str]:
    """The metadata that someone gave, by name, if they can be stored.

    Raises:
        FormatError: they can't.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise FormatError(
                f"metadata {key!r} is {value!r}: expected a str for a str", file=file_name
            )
        if key == TIED:
            raise FormatError(f"metadata {key!r} is kept for tied tensors", file=file_name)
    return dict(sorted((metadata or {}).items()))


def header_bytes(
    tensors: Mapping[str, Described],
    metadata: Mapping[str, str],
    tied: Mapping[str, str],
    file_name: str,
) -> bytes:
    """The length and the header, padded so that the data start at a multiple of 8.

    Args:
        tensors: the tensors in the order that they are stored in.
        metadata: what `checked_metadata` gave.
        tied: from each further name of a tensor to the one that it is stored under.
        file_name: the file that errors should name.

    Raises:
        FormatError: a name, a dtype or a text can't be stored.
    """
    texts = {**metadata, TIED: json.dumps(dict(sorted(tied.items())))} if tied else metadata
    header: dict[str, Any] = {_METADATA: texts} if texts else {}
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


# -- reading --------------------------------------------------------------------------------


def header_length(prefix: bytes, size: int, file_name: str) -> int:
    """The length of the header, from the first 8 bytes of a file of this size.

    Raises:
        FormatError: the file can't hold such a header.
    """
    if len(prefix) < 8:
        raise FormatError(
            f"is no safetensors file: it has {size} bytes, expected at least 8", file=file_name
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(
            f"is cut short, or no safetensors file: it starts with a header length of {length}, "
            f"expected at most {min(MAX_HEADER, size - 8)}",
            file=file_name,
        )
    return int(length)


def parse_header(text: bytes, size: int, file_name: str) -> Header:
    """What a header says, held against the size of its file.

    Repeated names, dtypes and tied names are checked here only. Places are checked once more: the
    file may have been replaced since the library looked.

    Args:
        text: the header, without its length.
        size: bytes in the file.
        file_name: the file that errors should name.

    Raises:
        FormatError: something in it is wrong.
    """
    try:
        header = json_object(text, file_name)
        metadata = header.pop(_METADATA, None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is no text")
    except (AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"has a damaged header: {error}", file=file_name) from None
    data_start = 8 + len(text)
    entries = {
        name: _entry(name, value, data_start, size, file_name) for name, value in header.items()
    }
    tied = _tied_names(metadata.pop(TIED, "{}"), entries, file_name)
    return Header(entries, metadata, tied)


def json_object(text: bytes | str, file_name: str) -> dict[str, Any]:
    """A JSON object, of which no key may stand twice.

    Raises:
        FormatError: a key stands twice.
        ValueError: it is no JSON object.
        RecursionError: it is nested too deeply.
    """

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


def _entry(name: str, value: Any, data_start: int, size: int, file_name: str) -> Entry:
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
    entry = Entry(_DTYPES[code], shape, data_start + begin)
    if entry.nbytes != end - begin:
        raise error(
            f"has shape {shape} of {code}, which is {entry.nbytes} bytes, and "
            f"{end - begin} bytes in the file"
        )
    if data_start + end > size:
        raise error(f"ends at byte {data_start + end}, but the file has {size}: it is cut short")
    return entry


def _tied_names(text: str, entries: Mapping[str, Entry], file_name: str) -> dict[str, str]:
    try:
        tied = json_object(text, file_name)
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
