"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is on the disk, or never.

    Args:
        path: the file to replace or make. A link is followed.

    Returns:
        A context manager that gives the file. Leaving it with an exception removes the file.

    Raises:
        OSError: something can't be written, or something other than a file is there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "data")
        >>> with replacing(path) as file:
        ...     file.write(b"whole")
        5
        >>> path.read_bytes()
        b'whole'
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file, and nothing to replace", os.fspath(path))
    temporary = target.with_name(f".te-io-{secrets.token_hex(8)}.tmp")
    file = temporary.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system opens folders (not Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't
            raise
    finally:
        os.close(descriptor)
