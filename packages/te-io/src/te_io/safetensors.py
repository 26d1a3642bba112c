"""Safetensors: opening, loading and saving. `archive` reads, `writing` writes, `header` both."""

from __future__ import annotations

import os
from collections.abc import Mapping

from te_tensor import Tensor
from te_tensor.dtypes import Array

from .archive import SafetensorsArchive, Source, open_archive
from .header import checked_metadata
from .state_dict import HasStateDict, State, tensors_of, turn_weights
from .writing import separate_tied, write_archive

#: Windows refuses to replace a file that is mapped, so there files are read.
_MAPS = os.name != "nt"


def open_safetensors(path_or_bytes: Source) -> SafetensorsArchive:
    """Open an archive and look into it, or take single tensors, without reading the rest.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes. The path
            of an index ("model.safetensors.index.json") opens all its shards, and so does
            "model.safetensors" where only the index is there.

    Returns:
        A mapping from names to Tensors, which is a context manager: see SafetensorsArchive. The
        tensors lie on the mapped file and can't be written to.

    Raises:
        TypeError: it is something else.
        FormatError: the file is damaged, is of another format, or has a dtype that te-tensor
            doesn't.
        OSError: it can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import te_tensor as te
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"weight": te.ones(1000, 10), "bias": te.zeros(10)}, path)
        >>> with open_safetensors(path) as archive:
        ...     shapes = archive.shapes
        ...     row = archive["weight"][7]
        >>> shapes, row.shape
        ({'bias': (10,), 'weight': (1000, 10)}, (10,))
    """
    return open_archive(path_or_bytes)


def load_safetensors(
    path_or_bytes: Source, *, transpose: bool = False, mmap: bool | None = None
) -> State:
    """Load all tensors of an archive.

    A file is mapped into memory, copy on write: loading takes no time, a tensor costs memory once
    it is used, and writing to one leaves the file as it is. A program that writes to the file in
    place (`save_safetensors` doesn't) would change the tensors, or end this process if it made
    the file shorter; `mmap=False` reads everything at once instead.

    Args:
        path_or_bytes: what `open_safetensors` takes.
        transpose: the file stores weights of Linear layers as `[in, out]`: turn them. Turned are
            tensors with two axes whose name ends in "weight", save those that are an embedding's
            by their name; `turn_weights` has the rule. `load_into_module` knows more, and decides
            by the shapes of the module.
        mmap: map the file or read it; by default it is mapped, save on Windows, which refuses to
            replace files that are mapped.

    Returns:
        Tensors by name, in the order of the file, which can be written to; then further names of
        tied tensors, which stand for the same Tensor.

    Raises:
        FormatError: the file is damaged, is of another format, or has a dtype that te-tensor
            doesn't; a weight is `[out, in]` already, though transpose is set.
        OSError: it can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import te_tensor as te
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"linear.weight": te.zeros(2, 3)}, path)
        >>> load_safetensors(path, transpose=True)["linear.weight"].shape
        (3, 2)
        >>> load_safetensors(path.read_bytes())["linear.weight"].shape
        (2, 3)
    """
    mapped = _MAPS if mmap is None else mmap
    with open_archive(path_or_bytes, writable=True) as archive:
        state = dict(archive) if mapped else archive.read_all()
        return turn_weights(state, file=archive.name) if transpose else state


def load_metadata(path_or_bytes: Source) -> dict[str, str]:
    """Read the texts stored beside the tensors; no tensor is read.

    Args:
        path_or_bytes: what `open_safetensors` takes.

    Returns:
        What `save_safetensors` was given as metadata.

    Raises:
        TypeError: path_or_bytes is something else.
        FormatError: the file is damaged or of another format.
        OSError: it can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import te_tensor as te
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"weight": te.ones(2)}, path, metadata={"epoch": "20"})
        >>> load_metadata(path)
        {'epoch': '20'}
    """
    with open_archive(path_or_bytes) as archive:
        return archive.metadata


def save_safetensors(
    module_or_dict: HasStateDict | Mapping[str, Tensor | Array],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write tensors to a file, whole or not at all.

    The file is written under another name in the same folder, brought to the disk and then
    renamed: whatever goes wrong, a file that was there before is intact. Tensors of any strides
    and byte order are written as what they show. Names for one and the same memory (tied tensors)
    are stored once, and the metadata entry "te_io.tied" lets `load_safetensors` give all of them.
    The same tensors and metadata always make the same bytes, whatever the order of the dict.

    What doesn't fit into `max_shard_size` becomes "model-00001-of-00003.safetensors" and so on,
    beside an index, "model.safetensors.index.json", written last. An archive that was there, in
    one file or several, is whole until then; its files are removed afterwards.

    Args:
        module_or_dict: a module, or a dict of Tensors and ndarrays.
        path: the file to write. A link is followed; permissions of an existing file are kept.
        metadata: texts by name to store beside the tensors.
        max_shard_size: the most bytes of tensors in a file, as a number or a text such as
            "500MB"; a larger tensor has a file of its own. None writes one file.

    Raises:
        TypeError: module_or_dict is neither a module nor a dict.
        ValueError: max_shard_size is no size.
        FormatError: a name, a value, a dtype or the metadata can't be stored; path ends in
            ".index.json", as only an index may.
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import te_tensor as te
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_safetensors({"weight": te.ones(2, 3)}, path, metadata={"epoch": "20"})
        >>> load_safetensors(path)["weight"].shape, load_metadata(path)
        ((2, 3), {'epoch': '20'})
    """
    file_name = os.fspath(path)
    stored, tied = separate_tied(tensors_of(module_or_dict, file_name))
    texts = checked_metadata(metadata, file_name)
    write_archive(stored, tied, path, metadata=texts, max_shard_size=max_shard_size)
