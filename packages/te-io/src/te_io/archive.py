"""Safetensors archives open for reading: a file, bytes, or the shards that an index names.

The safetensors library checks a file before a tensor of it is touched. The data are then mapped
into memory: a tensor costs nothing until it is used, and then no more than the bytes in use.
"""

from __future__ import annotations

import io
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from te_tensor import Tensor, dtypes, from_numpy
from te_tensor.dtypes import Array, DType

from .errors import FormatError, UnknownTensorError
from .header import MAX_HEADER, Entry, Header, header_length, json_object, parse_header
from .state_dict import State

#: Where an archive comes from: a path, its bytes, or a file opened for reading bytes.
Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

#: What is added to the name of an archive for the name of its index.
INDEX_SUFFIX = ".index.json"

#: Up to this length a refused header is read again, to name the tensor at fault.
_SMALL_HEADER = 1_000_000

#: The start of the name of a source that has none.
_NAMELESS = "<bytes>"


class SafetensorsArchive(Mapping[str, Tensor]):
    """A safetensors archive, open for reading: a mapping from names to tensors.

    `open_safetensors` makes one. Tensors lie on the mapped file: asking for one costs nothing, and
    using it, or a slice of it, costs only the bytes in use. They can't be written to, and stay
    valid when the archive is closed. Names of tied tensors give the same Tensor.

    Attributes:
        name: the name of the file or of the index, "<bytes>" for bytes.
        metadata: the texts that stand beside the tensors.
        tied: from each further name of a tied tensor to the one that it is stored under.

    Raises:
        FormatError: a name is both stored and tied.

    Example:
        >>> from te_io import open_safetensors, save_safetensors
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"weight": np.arange(6.0).reshape(3, 2)}, path)
        >>> with open_safetensors(path) as archive:
        ...     print(list(archive), archive.shapes["weight"], archive["weight"][1:].tolist())
        ['weight'] (3, 2) [[2.0, 3.0], [4.0, 5.0]]
    """

    def __init__(self, name: str, files: list[SafetensorsFile], chosen: list[set[str]]) -> None:
        self.name = name
        self.metadata: dict[str, str] = {}
        self._files = files
        #: The file that stores a name, for those that are stored.
        self._places: dict[str, SafetensorsFile] = {}
        self.tied: dict[str, str] = {}
        self._given: dict[str, Tensor] = {}
        for file, names in zip(files, chosen, strict=True):
            self.metadata = {**file.header.metadata, **self.metadata}
            self._places.update({name: file for name in file.header.entries if name in names})
            for further, stored in file.header.tied.items():
                if stored in names:
                    self.tied[further] = stored
        for further in self.tied:
            if further in self._places:
                raise FormatError("is both stored and tied", file=name, tensor=further)

    # -- what it holds --------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name.

        Raises:
            UnknownTensorError: there is none; a KeyError.
            FormatError: its bytes can't be a tensor.
            ValueError: the archive is closed.
        """
        stored = self.tied.get(name, name)
        if stored not in self._given:
            self._given[stored] = from_numpy(self._file_of(stored).view(stored))
        return self._given[stored]

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self.tied

    def __len__(self) -> int:
        return len(self._places) + len(self.tied)

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self.tied

    def entry(self, name: str) -> Entry:
        """Dtype and shape of a tensor, and its place in its file; no tensor is read.

        Raises:
            UnknownTensorError: there is none of this name.
        """
        stored = self.tied.get(name, name)
        return self._file_of(stored).header.entries[stored]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes by name."""
        return {name: self.entry(name).shape for name in self}

    @property
    def dtypes(self) -> dict[str, DType]:
        """The dtypes by name."""
        return {name: self.entry(name).dtype for name in self}

    def read(self, name: str) -> Tensor:
        """The tensor of this name, read into memory of its own.

        Raises:
            UnknownTensorError: there is none.
            FormatError: its bytes can't be a tensor, or the file was cut.
            OSError: it can't be read.
        """
        stored = self.tied.get(name, name)
        return from_numpy(self._file_of(stored).read(stored))

    def read_all(self) -> State:
        """Every tensor in memory of its own; tied ones are the same under each of their names."""
        state = {name: self.read(name) for name in self._places}
        state.update({name: state[stored] for name, stored in self.tied.items()})
        return state

    def _file_of(self, stored: str) -> SafetensorsFile:
        try:
            return self._places[stored]
        except KeyError:
            raise UnknownTensorError(
                f"there is no such tensor among {len(self)}", file=self.name, tensor=stored
            ) from None

    # -- its end --------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files; tensors that were given out stay valid."""
        self._given.clear()
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SafetensorsArchive({self.name!r}, {len(self)} tensors)"


class SafetensorsFile:
    """One safetensors file, or bytes that are one, whose header has been checked.

    Args:
        file: open for reading; closed by `close`, or when this is forgotten.
        name: what errors should call it.
        library_check: has the safetensors library check offsets, gaps and the form of the header.
        writable: map the file so that tensors can be written to, which leaves the file as it is.

    Raises:
        FormatError: the file is damaged or of another format.
        OSError: it can't be read.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        library_check: Callable[[], object],
        *,
        writable: bool = False,
    ) -> None:
        self.file = file
        self.name = name
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = header_length(file.read(8), size, name)
        try:
            library_check()
        except SafetensorError as error:
            if length <= _SMALL_HEADER:
                _name_culprit(file.read(length), size, name)
            raise FormatError(
                f"is damaged, or no safetensors file ({size} bytes, {8 + length} of them header): "
                f"{error}",
                file=name,
            ) from None
        self.header: Header = parse_header(file.read(length), size, name)
        self._buffer = _mapped(file, writable)
        weakref.finalize(self, file.close)

    def view(self, name: str) -> Array:
        """A tensor on the mapped file; read where it can't be mapped or used in place.

        Args:
            name: one that the header has.

        Raises:
            FormatError: its bytes can't be a tensor, or the file was cut.
            OSError: it can't be read.
            ValueError: the file is closed.
        """
        if self.file.closed:
            raise ValueError(f"{self.name} is closed: ask for tensors before")
        entry = self.header.entries[name]
        if self._buffer is None or not entry.nbytes or sys.byteorder == "big":
            return self.read(name)
        try:
            flat = np.frombuffer(self._buffer, np.uint8, entry.nbytes, entry.start)
        except ValueError:  # the file was cut before it was mapped
            raise self._cut_short(name) from None
        if flat.ctypes.data % entry.dtype.alignment:  # a header that isn't padded
            return self.read(name)
        return self._checked(self._shaped(flat, name), name)

    def read(self, name: str) -> Array:
        """A tensor in memory of its own.

        Args:
            name: one that the header has.

        Raises:
            FormatError: its bytes can't be a tensor, or the file was cut.
            OSError: it can't be read.
            ValueError: the file is closed.
        """
        entry = self.header.entries[name]
        flat = np.empty(entry.nbytes, np.uint8)
        array = self._shaped(flat, name)
        self.file.seek(entry.start)
        if self.file.readinto(flat) != flat.size:  # type: ignore[attr-defined]
            raise self._cut_short(name)
        if sys.byteorder == "big":
            array.byteswap(inplace=True)
        return self._checked(array, name)

    def close(self) -> None:
        """Close the file. The mapping goes with the last tensor on it."""
        self.file.close()
        self._buffer = None

    def _shaped(self, flat: Array, name: str) -> Array:
        entry = self.header.entries[name]
        try:
            return flat.view(entry.dtype).reshape(entry.shape)
        except (OverflowError, ValueError) as error:  # more axes, or longer, than NumPy has
            raise FormatError(
                f"has shape {entry.shape}: {error}", file=self.name, tensor=name
            ) from None

    def _checked(self, array: Array, name: str) -> Array:
        if array.dtype == dtypes.bool_:
            greatest = array.view(np.uint8).max(initial=0)
            if greatest > 1:
                raise FormatError(
                    f"has a bool of {greatest}: expected 0 or 1", file=self.name, tensor=name
                )
        return array

    def _cut_short(self, name: str) -> FormatError:
        return FormatError("the file was cut short while it was read", file=self.name, tensor=name)


def _mapped(file: BinaryIO, writable: bool) -> mmap.mmap | memoryview | None:
    """The content of a file as memory; None where it can't be, and tensors must be read."""
    if isinstance(file, io.BytesIO):
        return None if writable else memoryview(file.getvalue())
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    try:
        return mmap.mmap(file.fileno(), 0, access=access)
    except (OSError, ValueError):  # some network file systems can't; an empty file isn't mapped
        return None


def _name_culprit(text: bytes, size: int, name: str) -> None:
    """Raise if our own look finds the tensor that is at fault, which the library seldom names."""
    try:
        parse_header(text, size, name)
    except FormatError as error:
        if error.tensor is not None:
            raise


# -- sources --------------------------------------------------------------------------------


def open_archive(source: Source, *, writable: bool = False) -> SafetensorsArchive:
    """An archive, open for reading, all of whose headers have been checked.

    Args:
        source: a path, bytes, or a file opened for reading bytes. The path of an index
            ("….index.json") opens its shards, and so does that of an archive that isn't there
            itself while its index is.
        writable: give tensors that can be written to, which leaves the file as it is.

    Raises:
        TypeError: source is something else.
        FormatError: it is damaged or of another format.
        OSError: it can't be read.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        index = Path(f"{path}{INDEX_SUFFIX}")
        if path.name.endswith(INDEX_SUFFIX):
            return _open_shards(path, writable)
        if not path.exists() and index.is_file():
            return _open_shards(index, writable)
        return _whole(_open_file(path, writable))
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, content = _NAMELESS, bytes(source)
    elif hasattr(source, "read"):
        name, content = str(getattr(source, "name", "<file>")), source.read()
        if not isinstance(content, bytes):
            raise TypeError(f"the file gives {type(content).__name__}: open it for reading bytes")
    else:
        raise TypeError(
            f"got {type(source).__name__}: expected a path, bytes, or a file opened for reading "
            "bytes"
        )
    file = io.BytesIO(content)
    return _whole(SafetensorsFile(file, name, lambda: _library_reads(content), writable=writable))


def _whole(file: SafetensorsFile) -> SafetensorsArchive:
    return SafetensorsArchive(file.name, [file], [set(file.header.entries)])


def _open_file(path: Path, writable: bool) -> SafetensorsFile:
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise FormatError("is not a regular file", file=str(path))
    file = path.open("rb")
    try:
        return SafetensorsFile(file, str(path), lambda: _library_opens(path), writable=writable)
    except BaseException:
        file.close()
        raise


def _library_opens(path: Path) -> None:
    with safe_open(path, framework="numpy"):
        pass


def _library_reads(content: bytes) -> None:
    deserialize(content)  # type: ignore[no-untyped-call]


# -- shards ---------------------------------------------------------------------------------


def read_index(path: Path) -> dict[str, str]:
    """From each tensor to the name of the file, in the same folder, that stores it.

    Args:
        path: an index file, "….index.json".

    Raises:
        FormatError: it is damaged, or names files elsewhere.
        OSError: it can't be read.
    """
    name = str(path)
    if path.exists() and not path.is_file():
        raise FormatError("is not a regular file", file=name)
    with path.open("rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise FormatError(f"has more than {MAX_HEADER} bytes: that is no index", file=name)
    try:
        weight_map = json_object(text, name).get("weight_map")
    except (RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"is no index: {error}", file=name) from None
    if not isinstance(weight_map, dict):
        raise FormatError("is no index: it has no weight_map", file=name)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_name(shard):
            raise FormatError(
                f"is in {shard!r}: expected the name of a file in the index's folder",
                file=name,
                tensor=tensor,
            )
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether a name stands for a file in a folder, on any system, and not for one elsewhere."""
    return name not in ("", ".", "..") and not any(letter in name for letter in "/\\:\0")


def _open_shards(path: Path, writable: bool) -> SafetensorsArchive:
    wanted: dict[str, set[str]] = {}
    for tensor, shard in read_index(path).items():
        wanted.setdefault(shard, set()).add(tensor)
    files: list[SafetensorsFile] = []
    with ExitStack() as opened:
        for shard, tensors in wanted.items():
            file = _open_file(path.with_name(shard), writable)
            opened.callback(file.close)
            files.append(file)
            missing = sorted(tensors - set(file.header.entries))
            if missing:
                raise FormatError(
                    f"isn't in {shard}, where {path.name} says that it is",
                    file=str(path),
                    tensor=missing[0],
                )
        archive = SafetensorsArchive(str(path), files, list(wanted.values()))
        opened.pop_all()
    return archive
