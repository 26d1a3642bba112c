"""The directory of a zip archive, read strictly: one meaning for every byte.

PKWARE's APPNOTE.TXT lets members repeat, overlap and contradict the directory, and readers that
resolve that in different ways have been played off against each other. Here such archives are
refused, as is whatever PyTorch doesn't write. Sizes come from the directory: local headers may
leave them to what follows the data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .errors import FormatError
from .pickle_values import Limits
from .torch_source import Content

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_LONGEST_COMMENT = 0xFFFF
#: Stands in a field of 32 bits for a number that stands among the extra fields.
_ELSEWHERE = 0xFFFFFFFF
_ZIP_64 = 1
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF_8 = 0x2041, 0x800
#: What a member takes once its entry is read, in bytes.
_COST = 512


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        path: its path, root folder included.
        stored: whether its bytes stand in the archive as they are.
        checksum: the CRC-32 of its bytes.
        packed: how many bytes it takes in the archive.
        size: how many it has.
        header: where its local header starts.
        start: where its bytes start.
    """

    path: str
    stored: bool
    checksum: int
    packed: int
    size: int
    header: int
    start: int


class ZipArchive:
    """A zip archive as PyTorch writes them: all in one root folder.

    Args:
        content: its bytes.
        limits: how much may be used.
        verify: check the checksums of members.

    Attributes:
        members: the members by their paths below the root folder.

    Raises:
        FormatError: it is damaged, ambiguous, or of another form.
    """

    def __init__(self, content: Content, limits: Limits, *, verify: bool = True) -> None:
        self._content = content
        self._limits = limits
        self._verify = verify
        self.members: dict[str, Member] = {}
        roots = set()
        places = []
        for member in _read_directory(content.bytes):
            limits.take(memory=_COST)
            root, slash, name = member.path.partition("/")
            if not slash or set(name.split("/")) & {".", ".."} or "\\" in name:
                raise FormatError(f"has a member {member.path!r}: expected a path below one folder")
            if name in self.members:
                raise FormatError(f"has the member {name} twice")
            roots.add(root)
            places.append((member.header, member.start + member.packed))
            if name and not name.endswith("/"):  # a folder, as other programs add them
                self.members[name] = member
        if len(roots) != 1:
            shown = ", ".join(map(repr, sorted(roots)[:4])) or "none"
            raise FormatError(f"has {len(roots)} root folders ({shown}): expected one")
        places.sort()
        for (_, end), (start, _) in pairwise(places):
            if start < end:
                raise FormatError(f"has members that overlap at byte {start}")

    def read(self, name: str) -> bytes:
        """All bytes of a member, unpacked.

        Raises:
            FormatError: there is no such member, or it is damaged or too large.
        """
        member = self._member(name)
        self._limits.take(memory=member.size)
        packed = self._content.bytes[member.start : member.start + member.packed]
        content = bytes(packed) if member.stored else _unpacked(packed, name, member.size)
        self._check(name, zlib.crc32(content))
        return content

    def place(self, name: str) -> tuple[int, int]:
        """Where in the file the bytes of a member stand that isn't packed: start and length.

        Raises:
            FormatError: there is no such member, it is packed, or damaged.
        """
        member = self._member(name)
        if not member.stored:
            raise FormatError(
                f"has the member {name} compressed: expected tensors to be stored as they are"
            )
        if self._verify:
            self._check(name, self._content.checksum(member.start, member.size))
        return member.start, member.size

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise FormatError(f"has no member {name}")
        return self.members[name]

    def _check(self, name: str, checksum: int) -> None:
        expected = self.members[name].checksum
        if self._verify and checksum != expected:
            raise FormatError(
                f"has the member {name} damaged: its CRC-32 is {checksum:08x}, expected "
                f"{expected:08x}; verify=False reads files that were written without checksums"
            )


def _unpacked(packed: memoryview, name: str, size: int) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise FormatError(f"has the member {name} damaged: {error}") from None
    if len(content) != size or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"has the member {name} damaged: it isn't of the {size} bytes expected")
    return content


# -- the directory --------------------------------------------------------------------------


def _read_directory(data: memoryview) -> Iterator[Member]:
    count, start, end = _find_directory(data)
    for _ in range(count):
        member, start = _read_entry(data, start, end)
        yield member
    if start != end:
        raise FormatError(f"has {end - start} bytes behind the {count} entries of its directory")


def _find_directory(data: memoryview) -> tuple[int, int, int]:
    """How many entries the directory has, where it starts, and where it ends."""
    tail = bytes(data[-_END.size - _LONGEST_COMMENT :])
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < _END.size:
        raise FormatError("is cut short: a zip archive without the end of its directory")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment != len(tail):
        raise FormatError("has something behind the end of its directory")
    end = len(data) - len(tail) + place
    locator = end - _END_64_LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\6\7":
        _, disk, end, disks = _END_64_LOCATOR.unpack_from(data, locator)
        if disks != 1 or end != locator - _END_64.size or bytes(data[end : end + 4]) != b"PK\6\6":
            raise FormatError("has a damaged end of its directory")
        *_, disk, first_disk, here, count, size, start = _END_64.unpack_from(data, end)
    if disk or first_disk or here != count:
        raise FormatError("is one part of an archive of several")
    if start + size != end:
        raise FormatError(
            f"has a directory of {size} bytes at byte {start} and its end at byte {end}: it is cut "
            "short, or something was put before it"
        )
    return count, start, end


def _read_entry(data: memoryview, start: int, end: int) -> tuple[Member, int]:
    """A member, and where the next entry starts."""
    if end - start < _ENTRY.size or bytes(data[start : start + 4]) != b"PK\1\2":
        raise FormatError(f"has a directory that is damaged at byte {start}")
    fields = _ENTRY.unpack_from(data, start)
    _, _, _, flags, method, _, _, checksum, packed, size, *lengths, disk, _, _, header = fields
    name_length, extra_length, comment_length = lengths
    name_start = start + _ENTRY.size
    extra_start = name_start + name_length
    following = extra_start + extra_length + comment_length
    if following > end or disk:
        raise FormatError(f"has a directory that is damaged at byte {start}")
    raw = bytes(data[name_start:extra_start])
    extra = bytes(data[extra_start : extra_start + extra_length])
    size, packed, header = _widened((size, packed, header), extra)
    try:
        path = raw.decode("utf-8" if flags & _UTF_8 else "cp437")
    except UnicodeDecodeError:
        raise FormatError(f"has a member whose name is no text: {raw[:100]!r}") from None
    if flags & _ENCRYPTED:
        raise FormatError(f"has the member {path!r} encrypted")
    if method not in (_STORED, _DEFLATED):
        raise FormatError(f"has the member {path!r} compressed by method {method}: expected 0 or 8")
    begin = _data_start(data, header, raw, method)
    if begin + packed > end or (method == _STORED and packed != size):
        raise FormatError(f"has the member {path!r} cut short, or of a wrong size")
    return Member(path, method == _STORED, checksum, packed, size, header, begin), following


def _widened(numbers: tuple[int, ...], extra: bytes) -> tuple[int, ...]:
    """Size, packed size and place, from the extra fields where they don't fit 32 bits."""
    place = 0
    wide = b""
    while place + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, place)
        place += _EXTRA.size
        if kind == _ZIP_64:
            wide = extra[place : place + length]
        place += length
    words = [wide[i : i + 8] for i in range(0, len(wide), 8)]
    found = []
    for number in numbers:
        if number == _ELSEWHERE:
            word = words.pop(0) if words else b""
            if len(word) != 8:
                raise FormatError("has an entry of its directory without its sizes")
            number = int.from_bytes(word, "little")
        found.append(number)
    return tuple(found)


def _data_start(data: memoryview, header: int, name: bytes, method: int) -> int:
    """Where the bytes of a member start, by its local header, which must agree."""
    if header + _LOCAL.size > len(data):
        raise FormatError(f"has no member {name[:100]!r} where its directory says")
    fields = _LOCAL.unpack_from(data, header)
    signature, local_method = fields[0], fields[3]
    name_length: int = fields[-2]
    extra_length: int = fields[-1]
    name_start = header + _LOCAL.size
    local_name = bytes(data[name_start : name_start + name_length])
    if signature != b"PK\3\4" or local_name != name or local_method != method:
        raise FormatError(f"has no member {name[:100]!r} where its directory says")
    return name_start + name_length + extra_length
