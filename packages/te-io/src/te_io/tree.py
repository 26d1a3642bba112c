"""State dicts of any nesting as JSON and tensors, and back: exact, and without pickle.

Numbers, texts, None, lists and dicts stand in JSON as themselves; what JSON has no form for is an
object with one key that begins with "$":

    {"$tensor": name}, {"$array": name}, {"$scalar": name}    a Tensor, an ndarray, a NumPy number
    {"$float": "nan"}, "inf" or "-inf"
    {"$tuple": [...]}
    {"$dict": [[key, value], ...]}    a dict whose keys are numbers, or begin with "$"

A float is written with the digits that give it back to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import numpy as np

from te_tensor import Tensor

from .errors import FormatError
from .state_dict import State, tensors_of


def encode(state: object, name: str, file: str | None = None) -> tuple[Any, State]:
    """A state as what JSON can hold, and the tensors in it.

    Args:
        state: Tensors, ndarrays, numbers, texts, None, and lists, tuples and dicts of these.
        name: what errors should call it.
        file: the file that errors should name.

    Returns:
        The tree, and the tensors by the path that they stand under: "state.0.mean".

    Raises:
        FormatError: it holds something else, or itself.

    Example:
        >>> tree, tensors = encode({"lr": 0.1, "mean": [np.ones(2)]}, "optimizer")
        >>> tree, list(tensors)
        ({'lr': 0.1, 'mean': [{'$array': 'mean.0'}]}, ['mean.0'])
    """
    tensors: State = {}
    try:
        return _encode(state, "", _Place(name, file, tensors)), tensors
    except RecursionError:
        raise FormatError(f"the state of {name} is nested too deeply", file=file) from None


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `encode` was given.

    Args:
        tree: the tree.
        tensors: the tensors by path.

    Raises:
        FormatError: the tree is none, or names a tensor that isn't there.

    Example:
        >>> decode({"$tuple": [1, {"$float": "inf"}]}, {})
        (1, inf)
    """
    try:
        return _decode(tree, tensors)
    except RecursionError:
        raise FormatError("is nested too deeply") from None


class _Place:
    """Where tensors go, and what errors say."""

    def __init__(self, name: str, file: str | None, tensors: State) -> None:
        self.name = name
        self.file = file
        self.tensors = tensors

    def put(self, path: str, array: Any) -> str:
        """Keep a tensor under its path, or one like it where that is taken."""
        key = path or "value"
        while key in self.tensors:
            key += "'"
        self.tensors.update(tensors_of({key: array}, self.file))
        return key

    def error(self, path: str, value: object) -> FormatError:
        where = f"{self.name}'s state" + (f" at {path!r}" if path else "")
        return FormatError(
            f"{where} is {type(value).__name__}: expected Tensors, arrays, numbers, texts, None, "
            "lists, tuples and dicts",
            file=self.file,
        )


def _encode(value: Any, path: str, place: _Place) -> Any:
    def below(key: object, item: Any) -> Any:
        return _encode(item, f"{path}.{key}" if path else str(key), place)

    if isinstance(value, Tensor):
        return {"$tensor": place.put(path, value)}
    if isinstance(value, np.ndarray):
        return {"$array": place.put(path, value)}
    if isinstance(value, np.generic):
        return {"$scalar": place.put(path, np.asarray(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        items = [below(i, item) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return _encode_dict(value, below, path, place)
    raise place.error(path, value)


def _encode_dict(
    value: Mapping[Any, Any], below: Callable[[object, Any], Any], path: str, place: _Place
) -> Any:
    for key in value:
        if not isinstance(key, (str, int)):
            raise place.error(f"{path}.{key!r} (a key)", key)
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: below(key, item) for key, item in value.items()}
    return {"$dict": [[key, below(key, item)] for key, item in value.items()]}


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tags = [key for key in tree if key.startswith("$")]
    if not tags:
        return {key: _decode(item, tensors) for key, item in tree.items()}
    try:
        ((tag, content),) = tree.items()
        return _DECODERS[tag](content, tensors)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"has {tags[0]!r} with {str(tree)[:80]}: no such value") from None


def _decode_dict(pairs: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    decoded = {key: _decode(item, tensors) for key, item in pairs}
    if len(decoded) != len(pairs):
        raise ValueError
    return decoded


def _decode_float(text: Any, tensors: Mapping[str, Tensor]) -> float:
    value = float(text)
    if not isinstance(text, str) or isfinite(value):
        raise ValueError
    return value


def _decode_scalar(name: Any, tensors: Mapping[str, Tensor]) -> Any:
    if tensors[name].ndim:
        raise ValueError
    return tensors[name].data[()]


def _decode_tuple(items: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    if not isinstance(items, list):
        raise ValueError
    return tuple(_decode(items, tensors))


_DECODERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$tensor": lambda name, tensors: tensors[name],
    "$array": lambda name, tensors: tensors[name].data,
    "$scalar": _decode_scalar,
    "$float": _decode_float,
    "$tuple": _decode_tuple,
    "$dict": _decode_dict,
}
