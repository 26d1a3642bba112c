"""The bytes of a PyTorch file, mapped where they can be."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from te_tensor.dtypes import Array

from .errors import FormatError

#: Bytes that are read at once to be summed up.
_CHUNK = 1 << 18
#: NumPy's elements stand at multiples of their width, which is at most this.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Content:
    """The bytes of a file.

    Args:
        name: what errors call it.
        bytes: the bytes, writable: of a mapped file, a page that is written to becomes a copy.
        file: the file they are mapped from, if they are.
    """

    name: str
    bytes: memoryview
    file: BinaryIO | None

    def array(self, start: int, size: int) -> Array:
        """Some of the bytes, as memory that tensors can be views of; read if not aligned.

        Args:
            start: the first of them.
            size: how many; they must be there.

        Raises:
            FormatError: they are no longer there.
        """
        if not size:
            return np.empty(0, np.uint8)
        array = np.frombuffer(self.bytes, np.uint8, size, start)
        if array.ctypes.data % _ALIGNMENT == 0:
            return array
        if self.file is None:
            return array.copy()
        own = np.empty(size, np.uint8)  # read, so that no page of the mapping takes memory too
        self.file.seek(start)
        self._fill(own.data)
        return own

    def checksum(self, start: int, size: int) -> int:
        """The CRC-32 of some of the bytes; a mapped file is read, so that it takes no memory.

        Args:
            start: the first of them.
            size: how many.

        Raises:
            FormatError: they are no longer there.
        """
        if self.file is None:
            return zlib.crc32(self.bytes[start : start + size])
        total = 0
        buffer = memoryview(bytearray(min(size, _CHUNK)))
        self.file.seek(start)
        for place in range(0, size, _CHUNK):
            chunk = buffer[: size - place]
            self._fill(chunk)
            total = zlib.crc32(chunk, total)
        return total

    def _fill(self, buffer: memoryview) -> None:
        """Read as many bytes as there is room for."""
        assert self.file is not None
        if self.file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise FormatError("was cut short while it was read")


@contextmanager
def opened(source: object) -> Iterator[Content]:
    """The bytes of a source; `FormatError`s raised inside name it.

    Args:
        source: a path, bytes, or a file opened for reading bytes.

    Returns:
        A context manager that gives them. What was mapped stays mapped while it is in use.

    Raises:
        TypeError: source is something else.
        FormatError: it is no regular file.
        OSError: it can't be read.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise FormatError("is not a regular file", file=str(path))
        with path.open("rb") as file, _naming(str(path)):
            yield Content(str(path), *_mapped(file))
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, content = "<bytes>", bytearray(source)
    elif hasattr(source, "read"):
        name, read = str(getattr(source, "name", "<file>")), source.read()
        if not isinstance(read, bytes):
            raise TypeError(f"the file gives {type(read).__name__}: open it for reading bytes")
        content = bytearray(read)
    else:
        raise TypeError(
            f"got {type(source).__name__}: expected a path, bytes, or a file opened for reading "
            "bytes"
        )
    with _naming(name):
        yield Content(name, memoryview(content), None)


def _mapped(file: BinaryIO) -> tuple[memoryview, BinaryIO | None]:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)), file
    except (OSError, ValueError):  # some network file systems can't; nothing can map an empty file
        return memoryview(bytearray(file.read())), None


@contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        error.file = error.file or file
        raise
