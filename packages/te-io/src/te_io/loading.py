"""Archives of any format that te-io reads, and how they get into modules."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from te_tensor import Tensor, dtypes
from te_tensor.dtypes import Array

from .archive import INDEX_SUFFIX, Source, open_archive
from .errors import FormatError
from .pickle_values import OpaqueObject
from .presets import RUST, Preset
from .safetensors import load_safetensors
from .state_dict import (
    Loadable,
    Rename,
    State,
    load_state,
    rename_function,
    rename_tensors,
    select_prefix,
    tensors_of,
    turn_weights,
)
from .torch_archive import load_torch_state_dict, read_everything
from .torchscript import ScriptArchive

#: What files of PyTorch begin with: zip archives (TorchScript too), and pickles.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was in a file: its name, "safetensors" or "PyTorch", tensors and texts by name."""

    name: str | None
    format: str
    tensors: State
    metadata: dict[str, str]


def load_any(source: Source, *, key: str | None = None) -> Loaded:
    """The tensors of a file of a format that its content shows.

    Args:
        source: a path, bytes, or a file opened for reading bytes.
        key: where in a PyTorch file the state dict is; found by itself if there is only one.

    Returns:
        The tensors, on the mapped file where that can be.

    Raises:
        TypeError: source is something else.
        FormatError: it is damaged or of another format, or key is given for safetensors.
        OSError: it can't be read.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        source = _Named(source)
    if _is_torch(source):
        plain = isinstance(source, (str, os.PathLike))
        name = str(source) if plain else getattr(source, "name", "<bytes>")
        return Loaded(name, "PyTorch", load_torch_state_dict(source, key), {})
    with open_archive(source) as archive:
        if key is not None:
            raise FormatError(
                f"is a safetensors archive, in which there is no key {key!r}: keys are for "
                "PyTorch files",
                file=archive.name,
            )
        return Loaded(archive.name, "safetensors", dict(archive), archive.metadata)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a file holds, whether or not it is a state dict.

    Attributes:
        format: "safetensors" or "PyTorch".
        tensors: the tensors, wherever they stand.
        opaque: how many objects there are of classes that aren't read.
    """

    format: str
    tensors: list[Tensor]
    opaque: int


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Read a whole file, which may hold several state dicts, or none.

    Args:
        path: a file of safetensors or of PyTorch. Classes that aren't known are no error.

    Returns:
        What is in it.

    Raises:
        FormatError: it is damaged or of another format.
        OSError: it can't be read.
    """
    if not _is_torch(path):
        loaded = load_any(path)
        return Contents(loaded.format, list(loaded.tensors.values()), 0)
    tensors: list[Tensor] = []
    opaque, seen, waiting = 0, set(), [read_everything(path)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
            continue
        if id(value) in seen:  # a few containers may stand in very many places
            continue
        seen.add(id(value))
        match value:
            case dict():
                waiting += value.values()
            case list() | tuple() | set() | frozenset():
                waiting += value
            case ScriptArchive():
                waiting += [value.tensors, value.attributes, value.constants]
            case OpaqueObject():
                opaque += 1
                waiting += [value.arguments, value.state, value.items, value.entries]
    return Contents("PyTorch", tensors, opaque)


class _Named(io.BytesIO):
    """The content of a file that someone else opened, under its name."""

    def __init__(self, file: BinaryIO) -> None:
        if not hasattr(file, "read"):
            raise TypeError(
                f"got {type(file).__name__}: expected a path, bytes, a file opened for reading "
                "bytes, or a dict"
            )
        content = file.read()
        if not isinstance(content, bytes):
            raise TypeError(f"the file gives {type(content).__name__}: open it for reading bytes")
        super().__init__(content)
        self.name = str(getattr(file, "name", "<file>"))


def _is_torch(source: Source) -> bool:
    """Whether a source begins like a file of PyTorch, and not like a safetensors header."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:9])
    elif isinstance(source, io.BytesIO):
        head = source.getvalue()[:9]
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file() or path.name.endswith(INDEX_SUFFIX):
            return False
        with path.open("rb") as file:
            head = file.read(9)
    else:
        return False
    return head.startswith((_ZIP, _PICKLE)) and head[8:] != b"{"


def load_into_module(
    module: Loadable,
    source: Source | Mapping[str, Tensor | Array],
    *,
    transpose: bool = False,
    prefix: str = "",
    strict: bool = True,
    rename: Rename | Preset | None = None,
) -> None:
    """Put the tensors of an archive into a module, all of them or none.

    Parameters keep their identity, dtype and `requires_grad`: an optimizer that holds them goes on,
    and `nl_oob.slopes` stays trainable.

    Args:
        module: anything with `state_dict` and `load_state_dict`.
        source: a path, bytes, a file opened for reading bytes, or a dict of tensors. Its content
            shows whether it is a safetensors archive or a file of PyTorch.
        transpose: the archive stores weights of Linear layers as `[in, out]`, as the Rust original
            does: turn them. Turned are tensors with two axes whose name ends in "weight" and that
            fit the module only when turned. Where a weight is square, so that its shape can't
            tell, it is turned if it has a bias or its name isn't an embedding's (`turn_weights`).
        prefix: what the module's names stand under in the archive ("encoder.layers.0"); tensors
            elsewhere in the archive are left alone.
        strict: raise on missing and unexpected names; False loads the names that both have.
        rename: how the archive's names, after the prefix, become the module's: a function, a dict
            from old to new, a list of (regular expression, replacement), or one of `presets`.

    Raises:
        TypeError: something given is of a wrong kind.
        ValueError: `rename` holds what is no regular expression.
        FormatError: the archive is damaged or doesn't fit the module, which is unchanged. The
            module's own error, which lists all names and shapes that don't fit, is its cause.
        OSError: it can't be read.

    Example:
        >>> import te_tensor as te
        >>> class Scale:
        ...     def __init__(self):
        ...         self.factor = te.zeros(2)
        ...     def state_dict(self):
        ...         return {"factor": self.factor}
        ...     def load_state_dict(self, state, strict=True):
        ...         self.factor[...] = state["factor"]
        >>> scale = Scale()
        >>> archive = {"old.gain": te.ones(2)}
        >>> load_into_module(scale, archive, prefix="old", rename={"gain": "factor"})
        >>> scale.factor.tolist()
        [1.0, 1.0]
    """
    if isinstance(source, Mapping):
        name, state = None, tensors_of(source)
    else:
        loaded = load_any(source)
        name, state = loaded.name, loaded.tensors
    state = select_prefix(state, prefix, name)
    if isinstance(rename, Preset):
        state = rename.apply(state, in_out=transpose, file=name)
    else:
        state = rename_tensors(state, rename, name)
    if transpose:
        wanted = {key: tensor.shape for key, tensor in module.state_dict().items()}
        state = turn_weights(state, wanted, name)
    load_state(module, state, strict, name)


def py_load_safetensors(data: Source, transpose: bool = False) -> State:
    """`load_safetensors` under the name that the Rust original gives it.

    The original's names become those of te_nn (`presets.RUST`), which stay as they are. As there,
    distance-bias slopes (`nl_oob.slopes`) come marked as trainable.

    Args:
        data: the bytes of a file, or its path.
        transpose: turn Linear weights that are stored `[in, out]`.

    Returns:
        Tensors by name.

    Raises:
        TypeError: as `load_safetensors`.
        FormatError: as `load_safetensors`; or two names become one.
        OSError: as `load_safetensors`.

    Example:
        >>> import tempfile
        >>> import te_tensor as te
        >>> from te_io import save_safetensors
        >>> path = Path(tempfile.mkdtemp(), "rust.safetensors")
        >>> save_safetensors({"mha.linear_q.weight": te.zeros(2, 3)}, path)
        >>> state = py_load_safetensors(path.read_bytes(), True)
        >>> {name: tensor.shape for name, tensor in state.items()}
        {'self_attn.q_proj.weight': (3, 2)}
    """
    name = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    state = RUST.apply(load_safetensors(data, transpose=transpose), file=name)
    for name, tensor in state.items():
        if f".{name}".endswith(".nl_oob.slopes") and tensor.dtype in dtypes.FLOATS:
            tensor.requires_grad = True
    return state


def py_load_safetensors_into_module(
    data: Source, transpose: bool, module: Loadable, root: str = ""
) -> None:
    """`load_into_module` under the name and with the order of arguments of the Rust original.

    The original's names become the module's (`presets.RUST`); those that the module has itself
    stay as they are.

    Args:
        data: the bytes of a file, or its path.
        transpose: turn Linear weights that are stored `[in, out]`.
        module: the module to load into.
        root: what the module's names stand under in the archive.

    Raises:
        TypeError: as `load_into_module`.
        FormatError: as `load_into_module`.
        OSError: as `load_into_module`.

    Example:
        >>> import tempfile
        >>> import te_tensor as te
        >>> from te_io import save_safetensors
        >>> class Query:
        ...     def __init__(self):
        ...         self.weight = te.zeros(3, 2)
        ...     def state_dict(self):
        ...         return {"self_attn.q_proj.weight": self.weight}
        ...     def load_state_dict(self, state, strict=True):
        ...         self.weight[...] = state["self_attn.q_proj.weight"]
        >>> path, query = Path(tempfile.mkdtemp(), "rust.safetensors"), Query()
        >>> save_safetensors({"net.mha.linear_q.weight": te.ones(2, 3)}, path)
        >>> py_load_safetensors_into_module(path.read_bytes(), True, query, "net")
        >>> query.weight.tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    own = module.state_dict() if hasattr(module, "state_dict") else {}
    renamed = rename_function(RUST.rename)

    def name_in_module(name: str) -> str:
        theirs = name not in own and renamed(name) in own
        return renamed(name) if theirs else name

    load_into_module(module, data, transpose=transpose, prefix=root, rename=name_in_module)
