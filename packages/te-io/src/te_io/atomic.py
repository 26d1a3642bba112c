"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
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
    temporary = _temporary(target)
    with _naming(path):
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


@contextmanager
def making(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill that takes the name `path` once it is on the disk, or never.

    Args:
        path: the folder to make; nothing may be there. Bring the files in it to the disk
            (`replacing` does).

    Returns:
        A context manager that gives the folder, under another name beside `path`. Leaving it
        with an exception removes the folder.

    Raises:
        OSError: something can't be written, or something is there.
    """
    target = Path(path)
    temporary = _temporary(target)
    with _naming(path):
        temporary.mkdir()
    try:
        yield temporary
        _sync_folder(temporary)
        if target.exists():  # an empty folder would be replaced silently
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(target.parent)


def removing(folder: Path) -> None:
    """Remove a folder, which is gone as a whole before any file in it is.

    Args:
        folder: the folder.

    Raises:
        OSError: it can't be removed.
    """
    temporary = _temporary(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors name the file that was asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def _temporary(target: Path) -> Path:
    """A name beside `target` that nothing else has, and that no reader takes for an archive."""
    return target.with_name(f".te-io-{secrets.token_hex(8)}.tmp")


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
