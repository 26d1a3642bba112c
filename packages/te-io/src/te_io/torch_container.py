"""The containers of PyTorch: zip archives, and what `torch.save` wrote before version 1.6."""

from __future__ import annotations

import re
import reprlib
import struct
import sys
from typing import Any

import numpy as np

from te_tensor.dtypes import DType

from .errors import FormatError
from .pickle_machine import PickleMachine, PickleStream
from .pickle_values import Limits, check_structure
from .torch_names import OnUnknown, TorchNames
from .torch_source import Content
from .torch_tensors import Memory, Storage
from .zip_directory import ZipArchive

#: What the first pickle of a legacy file holds, and the second.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TAR_MARK = slice(257, 262)
_COUNT = struct.Struct("<q")
#: The names of storages: numbers in a row, or addresses in memory.
_KEY = re.compile(r"[0-9]{1,20}", re.ASCII)
#: The most of a legacy file that is taken for its pickles, in parts of `max_memory`.
_PART = 8


class TorchZip:
    """A zip archive of `torch.save` or of TorchScript.

    Args:
        content: its bytes.
        limits: how much may be used.
        verify: check the checksums of members.

    Raises:
        FormatError: it is damaged or of another form.
    """

    def __init__(self, content: Content, limits: Limits, *, verify: bool = True) -> None:
        self._content = content
        self._limits = limits
        self.archive = ZipArchive(content, limits, verify=verify)
        self._memories: dict[str, Memory] = {}
        order = self.archive.read("byteorder") if "byteorder" in self.archive.members else b"little"
        if order not in (b"little", b"big"):
            raise FormatError(f"has the byte order {order[:20]!r}: expected little or big")
        self._swapped = order.decode() != sys.byteorder
        if "data.pkl" not in self.archive.members:
            raise FormatError("is a zip archive, but none of PyTorch: it has no data.pkl")

    @property
    def is_torchscript(self) -> bool:
        """Whether it is a program rather than what `torch.save` was given."""
        return "constants.pkl" in self.archive.members

    def load(self, name: str, folder: str, on_unknown: OnUnknown = "raise") -> Any:
        """What a pickle in the archive holds.

        Args:
            name: the member that is the pickle.
            folder: where its storages are: "data" or "constants".
            on_unknown: what to do with names that aren't on the list.

        Raises:
            FormatError: it is damaged, costs too much, or uses what it may not.
        """

        def read(
            key: str, dtype: DType | None, count: int, part: tuple[int, int] | None
        ) -> Storage:
            return storage_on(self._memory(folder, key), dtype, count, part)

        names = TorchNames(read, self._limits, on_unknown, scripts=self.is_torchscript)
        stream = PickleStream(self.archive.read(name))
        value = PickleMachine(stream, names.find, names.load_persistent, self._limits).run()
        if stream.read(1):
            raise FormatError(f"has something behind the pickle in {name}")
        check_structure(value, self._limits, names=on_unknown == "opaque")
        return value

    def _memory(self, folder: str, key: str) -> Memory:
        if not _KEY.fullmatch(key):
            raise FormatError(f"has a storage named {key[:100]!r}: expected a number")
        member = f"{folder}/{key}"
        if member not in self._memories:
            data = self._content.array(*self.archive.place(member))
            self._memories[member] = Memory(data, self._swapped)
        return self._memories[member]


def storage_on(
    memory: Memory, dtype: DType | None, count: int, part: tuple[int, int] | None = None
) -> Storage:
    """A storage of as many elements as there are bytes for; less than one element may be left.

    Args:
        memory: where they are.
        dtype: what they are; bytes if None.
        count: how many of them the memory should have.
        part: the first of those that are meant, and how many; all if None.

    Raises:
        FormatError: there are more or fewer.
    """
    width = 1 if dtype is None else dtype.itemsize
    if memory.data.size // width != count:
        raise FormatError(
            f"has a storage of {memory.data.size} bytes: expected {count} elements of {width} bytes"
        )
    first, length = part or (0, count)
    if first < 0 or length < 0 or first + length > count:
        raise FormatError(
            f"has a view of {length} elements from {first} on in a storage of {count}"
        )
    return Storage(memory, dtype, first * width, length * width)


# -- before version 1.6 ---------------------------------------------------------------------


class LegacyFile:
    """What `torch.save` wrote before version 1.6: pickles in a row, then the storages.

    The storages follow the pickle that needs them, each as a count of elements whose width only
    that pickle knows. So it is run twice: once to learn of the storages, once with them.

    Args:
        content: the bytes of the file.
        limits: how much may be used, by both runs together.

    Raises:
        FormatError: it is damaged or of another form.
    """

    def __init__(self, content: Content, limits: Limits) -> None:
        self._content = content
        self._limits = limits
        self._head = limits.max_memory // _PART
        self._stream = PickleStream(content.bytes[: self._head])
        if bytes(content.bytes[_TAR_MARK]) == b"ustar":
            raise FormatError(
                "is a tar archive, as PyTorch wrote them before 2017: expected a later format"
            )
        if bytes(content.bytes[:1]) != b"\x80" or self._plain() != _MAGIC:
            start = bytes(content.bytes[:8])
            raise FormatError(f"is no file of torch.save: it starts with {start!r}")
        if (version := self._plain()) != _PROTOCOL:
            raise FormatError(f"is of version {reprlib.repr(version)}: expected {_PROTOCOL}")
        match self._plain():
            case {"little_endian": bool(little)}:
                self._swapped = little != (sys.byteorder == "little")
            case _:
                raise FormatError("doesn't say the order of its bytes")

    def load(self, on_unknown: OnUnknown = "raise") -> Any:
        """What the file holds.

        Args:
            on_unknown: what to do with names that aren't on the list.

        Raises:
            FormatError: it is damaged, costs too much, or uses what it may not.
        """
        start = self._stream.tell()
        memories = self._memories(on_unknown)

        def read(
            key: str, dtype: DType | None, count: int, part: tuple[int, int] | None
        ) -> Storage:
            return storage_on(memories[key], dtype, count, part)

        self._stream.seek(start)
        value = self._run(TorchNames(read, self._limits, on_unknown))
        check_structure(value, self._limits, names=on_unknown == "opaque")
        return value

    def _memories(self, on_unknown: OnUnknown) -> dict[str, Memory]:
        """The memory of each storage; the stream stands before the object."""
        sizes: dict[str, tuple[int, int]] = {}  # of each: its elements, and the bytes of one

        def note(
            key: str, dtype: DType | None, count: int, part: tuple[int, int] | None
        ) -> Storage:
            size = (count, 1 if dtype is None else dtype.itemsize)
            if sizes.setdefault(key, size) != size:
                raise FormatError(f"has the storage {key[:100]!r} in two sizes")
            return Storage(_NOTHING, dtype, 0, 0)

        self._run(TorchNames(note, self._limits, on_unknown, dry=True))
        keys = self._plain()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise FormatError("has no list of its storages")
        if set(keys) != sizes.keys() or len(keys) != len(sizes):
            raise FormatError("lists other storages than it uses")
        memories = {}
        place = self._stream.tell()
        for key in keys:
            count, width = sizes[key]
            start, place = place + _COUNT.size, place + _COUNT.size + count * width
            if place > len(self._content.bytes):
                raise FormatError(
                    f"is cut short: it has {len(self._content.bytes)} bytes, expected at least "
                    f"{place}"
                )
            (stored,) = _COUNT.unpack_from(self._content.bytes, start - _COUNT.size)
            if stored != count:
                raise FormatError(f"has a storage of {stored} elements: expected {count}")
            data = self._content.array(start, count * width)
            memories[key] = Memory(data, self._swapped)
        if place != len(self._content.bytes):
            raise FormatError(
                f"has {len(self._content.bytes) - place} bytes behind the last of its storages"
            )
        return memories

    def _plain(self) -> Any:
        """The next pickle, which may hold plain values only."""
        value = self._run(TorchNames(_no_storage, self._limits))
        check_structure(value, self._limits)
        return value

    def _run(self, names: TorchNames) -> Any:
        machine = PickleMachine(self._stream, names.find, names.load_persistent, names.limits)
        try:
            return machine.run()
        except FormatError:
            if self._stream.tell() < self._head:
                raise
            raise FormatError(
                f"has pickles of more than {self._head} bytes: max_memory allows more"
            ) from None


_NOTHING = Memory(np.empty(0, np.uint8))


def _no_storage(key: str, dtype: DType | None, count: int, part: tuple[int, int] | None) -> Storage:
    raise FormatError(f"has the storage {key[:100]!r} where no tensor is expected")
