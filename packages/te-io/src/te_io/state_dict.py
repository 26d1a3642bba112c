"""State dicts: where they come from, how their names and weights are made to fit, how they go in.

te-io knows modules only by the methods named here, whichever package they come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from te_tensor import Tensor, as_tensor, from_numpy
from te_tensor.dtypes import Array

from .errors import FormatError

State: TypeAlias = dict[str, Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
#: How names of an archive become those of a module: `rename_tensors` says what each kind does.
Rename: TypeAlias = Callable[[str], str] | Mapping[str, str] | Sequence[tuple[str, str]]


class HasStateDict(Protocol):
    """Anything that can be saved."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """References to the tensors, by name."""
        ...


class Loadable(HasStateDict, Protocol):
    """Anything that can be saved and loaded: a module."""

    def load_state_dict(self, state: State, /, *, strict: bool = ...) -> object:
        """Take the values over, or raise and change nothing."""
        ...


def tensors_of(
    source: HasStateDict | Mapping[str, Tensor | Array], file: str | None = None
) -> State:
    """The state dict of a module, or a dict of arrays as one; nothing is copied.

    Args:
        source: a module, or a dict of Tensors and ndarrays.
        file: the file that errors should name.

    Returns:
        Tensors on the memory of those given.

    Raises:
        TypeError: source is neither.
        FormatError: a name or a value can't stand in a state dict.

    Example:
        >>> tensors_of({"scale": np.ones((2, 3))})["scale"].shape
        (2, 3)
    """
    entries = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(entries, Mapping):
        raise TypeError(
            f"got {type(source).__name__}: expected a module (something with state_dict) or a "
            "dict of Tensors or ndarrays"
        )
    return {name: _tensor(name, value, file) for name, value in entries.items()}


def _tensor(name: object, value: object, file: str | None) -> Tensor:
    if not isinstance(name, str):
        raise FormatError(f"a tensor's name is {name!r}: expected a str", file=file)
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise FormatError(
            f"is {type(value).__name__}: expected a Tensor or an ndarray", file=file, tensor=name
        )
    try:
        return as_tensor(value)
    except TypeError as error:
        raise FormatError(str(error), file=file, tensor=name) from None


def select_prefix(state: State, prefix: str, file: str | None = None) -> State:
    """The tensors that stand under a prefix, under the names that follow it.

    Args:
        state: the tensors by name.
        prefix: the path of a part of the model, such as "encoder.layers.0"; a dot at its end may
            be left out. "" takes everything.
        file: the file that errors should name.

    Raises:
        FormatError: no name stands under the prefix.

    Example:
        >>> state = {"head.bias": from_numpy(np.zeros(1)), "body.bias": from_numpy(np.ones(1))}
        >>> list(select_prefix(state, "head"))
        ['bias']
    """
    if not prefix:
        return dict(state)
    path = prefix if prefix.endswith(".") else f"{prefix}."
    chosen = {name.removeprefix(path): t for name, t in state.items() if name.startswith(path)}
    if not chosen:
        heads = sorted({name.partition(".")[0] for name in state})
        shown = ", ".join(heads[:8]) + (", …" if len(heads) > 8 else "")
        raise FormatError(
            f"no tensor's name begins with {path!r}: names begin with {shown or 'nothing'}",
            file=file,
        )
    return chosen


def rename_tensors(state: State, rename: Rename | None, file: str | None = None) -> State:
    r"""The same tensors under other names.

    Args:
        state: the tensors by name.
        rename: a function of the old name; or a dict from old names to new ones, where names that
            are not in it stay; or a list of pairs (regular expression, replacement), applied one
            after the other with `re.sub`.
        file: the file that errors should name.

    Raises:
        TypeError: rename is something else, or gives something other than a str.
        ValueError: a regular expression is none.
        FormatError: two names become one.

    Example:
        >>> state = {"mha.linear_q.weight": from_numpy(np.eye(2))}
        >>> list(rename_tensors(state, [(r"^mha\.", "self_attn."), (r"linear_(\w)", r"\1_proj")]))
        ['self_attn.q_proj.weight']
    """
    if rename is None:
        return dict(state)
    function = rename_function(rename)
    renamed: State = {}
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        new = function(name)
        if not isinstance(new, str):
            raise TypeError(f"rename gave {new!r} for {name!r}: expected a str")
        if new in renamed:
            raise FormatError(
                f"rename gives {new!r} for {origin[new]!r} and for {name!r}: expected different "
                "names",
                file=file,
            )
        renamed[new], origin[new] = tensor, name
    return renamed


def rename_function(rename: Rename) -> Callable[[str], Any]:
    """What `rename_tensors` does with each name.

    Args:
        rename: as there.

    Returns:
        A function from the old name to the new one.

    Raises:
        TypeError: rename is something else.
        ValueError: a regular expression is none.
    """
    if isinstance(rename, Mapping):
        table = rename
        return lambda name: table.get(name, name)
    if callable(rename):
        return rename
    try:
        pairs = [(re.compile(pattern), replacement) for pattern, replacement in rename]
    except re.error as error:
        raise ValueError(
            f"rename has the pattern {error.pattern!r}, which is no regular expression: {error}"
        ) from None
    except (TypeError, ValueError):
        raise TypeError(
            f"rename is {rename!r}: expected a function, a dict, or pairs (regular expression, "
            "replacement)"
        ) from None

    def substitute(name: str) -> str:
        for pattern, replacement in pairs:
            name = pattern.sub(replacement, name)
        return name

    return substitute


#: Names that tables of vectors go by: embedding, word_embeddings, embed_tokens, tok_emb, wte, wpe.
_EMBEDDING = re.compile(r"(^|\.)([^.]*embed[^.]*|([^.]*_)?emb|wte|wpe)$", re.IGNORECASE)


def turn_weights(
    state: State,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    file: str | None = None,
) -> State:
    """An archive's Linear weights from `[in, out]`, as some programs store them, to `[out, in]`.

    Turned are tensors with two axes whose name ends in "weight", save those that are no weight of
    a Linear. What is known decides, in this order:

    1. The bias beside it. A Linear's bias is as long as its output, so it shows how the weight is
       stored; embeddings have none. Where it shows `[out, in]`, turning would be wrong, and raises.
    2. The module's shape, if there is a module and the weight isn't square: what fits only when
       turned is turned, and nothing else.
    3. The name: an embedding's stays (its last part before "weight" contains "embed", is or ends
       in "emb", or is "wte" or "wpe"), any other is turned.

    So with a module, only a square embedding of an unusual name can be taken for a Linear.

    Args:
        state: the tensors by name.
        shapes: the shapes that the module wants.
        file: the file that errors should name.

    Returns:
        The tensors, those that are turned as contiguous copies. What was tied stays tied.

    Raises:
        FormatError: a bias shows that a weight is stored `[out, in]` already.

    Example:
        >>> state = {"linear.weight": from_numpy(np.zeros((2, 3)))}
        >>> turn_weights(state)["linear.weight"].shape
        (3, 2)
    """
    names = names_to_turn({name: t.shape for name, t in state.items()}, shapes, file)
    turned: dict[int, Tensor] = {}
    result: State = {}
    for name, tensor in state.items():
        if name in names:
            if id(tensor) not in turned:
                turned[id(tensor)] = from_numpy(np.ascontiguousarray(tensor.data.T))
            tensor = turned[id(tensor)]
        result[name] = tensor
    return result


def names_to_turn(
    stored: Shapes, wanted: Shapes | None = None, file: str | None = None
) -> set[str]:
    """The names of the weights that `turn_weights` turns, from shapes alone.

    Args:
        stored: the shapes in the archive.
        wanted: the shapes that the module wants.
        file: the file that errors should name.

    Raises:
        FormatError: a bias shows that a weight is stored `[out, in]` already.
    """
    return {
        name
        for name, shape in stored.items()
        if len(shape) == 2
        and name.endswith("weight")
        and _stored_in_out(name, stored, wanted, file)
    }


def _stored_in_out(name: str, stored: Shapes, wanted: Shapes | None, file: str | None) -> bool:
    rows, columns = stored[name]
    path = name.removesuffix("weight")
    bias = stored.get(f"{path}bias", ())
    outputs = bias[0] if len(bias) == 1 else None
    if rows != columns:
        if outputs == rows:
            raise FormatError(
                f"has shape {(rows, columns)} and a bias of {rows}, so it is stored [out, in]: "
                "transpose=True expects [in, out]",
                file=file,
                tensor=name,
            )
        if wanted is not None and name in wanted:
            return tuple(wanted[name]) == (columns, rows)
    return outputs == columns or not _EMBEDDING.search(path.rstrip("._"))


def load_state(
    module: Loadable, state: State, strict: bool = True, file: str | None = None
) -> None:
    """Have a module take a state dict over, and name the file where it refuses.

    Args:
        module: the module to load into; it decides what strict means.
        state: the tensors, under the module's names.
        strict: raise on missing and unexpected names too, not only on wrong shapes.
        file: the file that errors should name.

    Raises:
        TypeError: the module has no `load_state_dict`.
        FormatError: the module refused; it is unchanged.
    """
    if not hasattr(module, "load_state_dict"):
        raise TypeError(
            f"got a module of type {type(module).__name__}: expected something with load_state_dict"
        )
    try:
        module.load_state_dict(state, strict=strict)
    except (KeyError, RuntimeError, ValueError) as error:
        # str(KeyError) would put quotes around the message
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise FormatError(reason, file=file) from error
