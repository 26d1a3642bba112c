"""Any file that te-io reads as safetensors, and what differs between two files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from te_tensor import Tensor, dtypes
from te_tensor.dtypes import Array, DType, as_dtype

from .archive import INDEX_SUFFIX
from .errors import FormatError
from .header import checked_metadata
from .loading import Loaded, load_any
from .presets import RUST
from .state_dict import State, names_to_turn, tensors_of
from .writing import parse_size, separate_tied, write_archive

#: Elements that are compared at once.
_BLOCK = 1 << 20

#: Endings of what only PyTorch writes.
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".ot", ".jit")


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    transpose: bool = False,
    dtype: str | DType | None = None,
    key: str | None = None,
    max_shard_size: int | str | None = None,
    with_torch: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write the tensors of a PyTorch or safetensors file to a safetensors file.

    The source is mapped into memory where its format allows; tensors are cast and turned one by
    one while they are written.

    Args:
        source: the file to read: safetensors, the index of its shards, or PyTorch's.
        target: the file to write, whole or not at all.
        transpose: the source is one of the Rust original's kind, with weights of Linear layers
            stored `[in, out]`: turn them, as `load_safetensors` says, and give its names those of
            te_nn (`presets.RUST`), which stay as they are.
        dtype: the dtype to store all floats in, such as "bfloat16"; others stay as they are.
        key: where in a PyTorch file the state dict is; found by itself if there is only one.
        max_shard_size: as in `save_safetensors`.
        with_torch: let PyTorch unpickle the source, which runs whatever code the file brings.
        progress: told the bytes written so far and those that there are.

    Raises:
        FormatError: the source is damaged or of another format, or can't be stored so; two of its
            names become one.
        OSError: something can't be read or written.
        ValueError: a size or a dtype is none.
        ModuleNotFoundError: with_torch is set, and PyTorch isn't installed.

    Example:
        >>> import tempfile
        >>> from te_io import load_safetensors, save_safetensors
        >>> wide, small = Path(tempfile.mkdtemp(), "wide"), Path(tempfile.mkdtemp(), "small")
        >>> save_safetensors({"weight": np.ones((2, 3))}, wide)
        >>> convert_file(wide, small, dtype="bfloat16")
        >>> load_safetensors(small)["weight"].dtype.name
        'bfloat16'
    """
    name = os.fspath(target)
    if name.endswith((*_TORCH_SUFFIXES, INDEX_SUFFIX)):
        raise FormatError("has the name of another format: expected ….safetensors", file=name)
    if max_shard_size is not None:
        parse_size(max_shard_size)
    wanted = None if dtype is None else _float_dtype(dtype)
    loaded = load_with_torch(source, key=key) if with_torch else load_any(source, key=key)
    if transpose:
        loaded = replace(loaded, tensors=RUST.apply(loaded.tensors, in_out=True, file=loaded.name))
    stored, tied = _changed(loaded, transpose, wanted)
    total = sum(tensor.nbytes for tensor in stored.values())
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total)

    texts = checked_metadata(loaded.metadata, name)
    write_archive(
        stored, tied, target, metadata=texts, max_shard_size=max_shard_size, progress=advance
    )


def _float_dtype(dtype: str | DType) -> DType:
    try:
        wanted = as_dtype(dtype)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if wanted not in dtypes.FLOATS:
        names = ", ".join(sorted(known.name for known in dtypes.FLOATS))
        raise ValueError(f"dtype is {wanted}: expected one of {names}")
    return wanted


# -- changes on the way ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Changed:
    """A tensor that is cast and turned when it is written."""

    name: str
    file: str | None
    tensor: Tensor
    dtype: DType
    turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[::-1] if self.turned else self.tensor.shape

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @contextmanager
    def lock(self, write: bool) -> Iterator[Array]:
        with self.tensor.lock(write=write) as array:
            yield self._cast(array.T if self.turned else array)

    def _cast(self, array: Array) -> Array:
        if array.dtype == self.dtype:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(self.dtype)
            lost = np.isfinite(array) & ~np.isfinite(cast)
        if lost.any():
            raise FormatError(
                f"has {array[lost].flat[0]!s}, which is beyond {self.dtype}",
                file=self.file,
                tensor=self.name,
            )
        return cast


def _changed(
    loaded: Loaded, transpose: bool, dtype: DType | None
) -> tuple[dict[str, _Changed], dict[str, str]]:
    """What is to be stored, and the names tied to it."""
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    turned = names_to_turn(shapes, file=loaded.name) if transpose else set()
    stored, tied = separate_tied(loaded.tensors)
    # An embedding that is a Linear's weight too is no longer, where only one of them is turned.
    parted = [name for name, first in tied.items() if (name in turned) != (first in turned)]
    for name in parted:
        del tied[name]
        stored[name] = loaded.tensors[name]
    changed = {}
    for name, tensor in stored.items():
        kept = dtype is None or tensor.dtype not in dtypes.FLOATS
        target = tensor.dtype if dtype is None or kept else dtype
        changed[name] = _Changed(name, loaded.name, tensor, target, name in turned)
    return changed, tied


# -- with PyTorch ---------------------------------------------------------------------------


def load_with_torch(source: str | os.PathLike[str], *, key: str | None = None) -> Loaded:
    """Have PyTorch unpickle a file. This runs whatever code the file brings: trust its author.

    Args:
        source: the path of a file that `torch.load` or `torch.jit.load` reads.
        key: the name of the state dict in what was saved, with dots between levels; "" or None
            for the thing itself.

    Raises:
        ModuleNotFoundError: PyTorch isn't installed.
        FormatError: PyTorch can't read it, or there is no state dict.
    """
    try:
        torch: Any = import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            'with_torch needs PyTorch: python -m pip install "te-io[torch]"', name="torch"
        ) from None
    name = os.fspath(source)
    Path(source).open("rb").close()  # an OSError of its own if it can't be read
    try:
        if _is_torchscript(source):
            saved: Any = torch.jit.load(name, map_location="cpu")
        else:
            saved = torch.load(name, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling raises anything
        raise FormatError(f"PyTorch can't read it: {error}", file=name) from error
    return Loaded(name, "PyTorch", _torch_tensors(saved, key, name), {})


def _is_torchscript(path: str | os.PathLike[str]) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _torch_tensors(saved: Any, key: str | None, file: str) -> State:
    for part in key.split(".") if key else ():
        if not isinstance(saved, Mapping) or part not in saved:
            raise FormatError(f"has no {key!r}: {_keys(saved)}", file=file)
        saved = saved[part]
    if hasattr(saved, "state_dict"):
        saved = saved.state_dict()
    if not isinstance(saved, Mapping):
        raise FormatError(f"holds a {type(saved).__name__}: expected a state dict", file=file)
    arrays = {}
    for name, value in saved.items():
        if not hasattr(value, "detach"):
            raise FormatError(
                f"holds a {type(value).__name__} under {name!r}: expected a state dict, or the "
                f"key of one ({_keys(saved)})",
                file=file,
            )
        arrays[name] = _torch_array(value, name, file)
    return tensors_of(arrays, file)


def _keys(saved: Any) -> str:
    if not isinstance(saved, Mapping):
        return f"it is a {type(saved).__name__}"
    shown = ", ".join(map(str, list(saved)[:8])) + (", …" if len(saved) > 8 else "")
    return f"it has {shown or 'nothing'}"


def _torch_array(tensor: Any, name: str, file: str) -> Array:
    """A tensor of PyTorch as an ndarray, on its memory where it is contiguous."""
    torch: Any = import_module("torch")
    try:
        dtype = as_dtype(str(tensor.dtype).removeprefix("torch."))
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        flat: Array = plain.reshape(-1).view(torch.uint8).numpy()
        return flat.view(dtype).reshape(tuple(tensor.shape))
    except (RuntimeError, TypeError, ValueError) as error:
        raise FormatError(str(error), file=file, tensor=str(name)) from None


# -- comparing ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """How two files differ in one tensor.

    Attributes:
        name: the tensor.
        what: "only in the first", "only in the second", "shape", "dtype" or "values".
        first: what the first has: a shape or a dtype.
        second: what the second has.
        greatest: the greatest absolute difference of two elements; NaN where one of them is NaN;
            None where the shapes differ.
    """

    name: str
    what: str
    first: str = ""
    second: str = ""
    greatest: float | None = None


def compare(first: State, second: State) -> list[Difference]:
    """Everything in which two state dicts differ, by name; empty if they hold the same.

    Args:
        first: tensors by name.
        second: tensors by name.

    Example:
        >>> from te_tensor import from_numpy
        >>> a, b = {"w": from_numpy(np.zeros(2))}, {"w": from_numpy(np.array([0.0, 0.5]))}
        >>> [(d.name, d.what, d.greatest) for d in compare(a, b)]
        [('w', 'values', 0.5)]
    """
    found = []
    for name in sorted({*first, *second}):
        if name not in second or name not in first:
            where, tensor = ("first", first.get(name)) if name in first else ("second", None)
            tensor = second[name] if tensor is None else tensor
            found.append(Difference(name, f"only in the {where}", str(tensor.shape)))
            continue
        a, b = first[name], second[name]
        if a.shape != b.shape:
            found.append(Difference(name, "shape", str(a.shape), str(b.shape)))
            continue
        greatest = _greatest_difference(a.data, b.data)
        if a.dtype != b.dtype:
            found.append(Difference(name, "dtype", str(a.dtype), str(b.dtype), greatest))
        elif greatest != 0:
            found.append(Difference(name, "values", greatest=greatest))
    return found


def _greatest_difference(a: Array, b: Array) -> float:
    """The greatest |a - b|; 0 where both are NaN or the same infinity."""
    greatest = 0.0
    a, b = a.reshape(-1), b.reshape(-1)
    for begin in range(0, a.size, _BLOCK):
        parts = [x[begin : begin + _BLOCK] for x in (a, b)]
        if parts[0].dtype == parts[1].dtype and parts[0].tobytes() == parts[1].tobytes():
            continue
        wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
        x, y = (part.astype(wide) for part in parts)
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(x - y)
        distance[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
        greatest = float(np.maximum(greatest, distance.max(initial=0)))  # NaN stays
    return greatest
