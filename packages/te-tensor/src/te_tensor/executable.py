"""Memory that holds machine code."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform

from . import memory


class Code:
    """Machine code in memory that can be run, and no longer written.

    It stays until the process ends: a thread may be inside it.

    Args:
        code: the bytes.

    Raises:
        OSError: the system lets no memory be first written and then run.
    """

    def __init__(self, code: bytes) -> None:
        pages = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE)
        pages.write(code)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pages))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if protect(self.address, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "the system forbids to run code made at run time")


def from_listing(listing: str) -> bytes:
    """The bytes of a listing: each line has some in hexadecimal, and the instruction they are."""
    return bytes.fromhex("".join(line.split()[0] for line in listing.split("\n") if line))


def possible() -> bool:
    """Whether machine code of x86-64, with the System V calling convention, has a chance here."""
    return (
        os.name == "posix" and platform.machine() in ("x86_64", "AMD64") and memory.DATA_COMES_FIRST
    )
