"""Files of PyTorch, read without PyTorch and without running anything that they bring."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO, TypeAlias

from te_tensor import Tensor

from .errors import FormatError
from .pickle_values import Limits, OpaqueObject
from .state_dict import State
from .torch_container import LegacyFile, TorchZip
from .torch_names import OnUnknown
from .torch_source import Content, opened
from .torchscript import ScriptArchive, read_script

#: A path, the bytes of a file, or a file opened for reading bytes.
TorchSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_ZIP = b"PK"
#: What an entry of a state dict takes, in bytes.
_COST = 128
#: The names that programs save a state dict under.
_USUAL = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network"),
    *("weights", "params", "ema"),
)


def load_torch(
    path_or_bytes: TorchSource,
    *,
    on_unknown: OnUnknown = "raise",
    verify: bool = True,
    max_memory: int = 1 << 27,
    max_depth: int = 256,
    max_opcodes: int = 4_000_000,
) -> Any:
    """Read what `torch.save` wrote: `.pt`, `.pth`, `.ckpt`, in any of its formats since 2017.

    Nothing that the file names is imported or called: pickles are run by a machine that knows a
    short list of names, and makes what they stand for itself. A file that needs more is refused,
    unless `on_unknown` is "opaque".

    Tensors lie on the mapped file where it stores them aligned, as all but legacy files do: they
    cost nothing until they are used. They can be written to, which leaves the file as it is; the
    file must not be cut while they are in use. Tensors that shared a storage share memory, and
    what was one tensor under several names is one. Attributes that tensors were given, and hooks,
    are left out.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes.
        on_unknown: "raise" refuses files with names that aren't on the list; "opaque" puts an
            `OpaqueObject` where such an object was, and runs nothing.
        verify: check the checksums of zip archives, which reads the whole file once. Files saved
            with `torch.serialization.set_crc32_options(False)` have none.
        max_memory: bytes that may be used beside the tensors' own; those of tensors that show
            more elements than they store (expanded ones) count.
        max_depth: how deep containers may be nested.
        max_opcodes: steps that the pickles may have, and elements that they may come to.

    Returns:
        What was saved: dicts (OrderedDict, defaultdict, Counter), lists, tuples, sets, numbers,
        texts, bytes and Tensors. Parameters are Tensors with `requires_grad`, sizes are tuples,
        dtypes are te-tensor's, devices are their names. Of TorchScript archives, the state dict.

    Raises:
        FormatError: the file is damaged, of another format, has what te-tensor has no tensors for,
            names what isn't on the list, or costs too much.
        OSError: it can't be read.

    Example:
        >>> import pickle
        >>> load_torch(pickle.dumps(print))
        Traceback (most recent call last):
        te_io.errors.FormatError: <bytes>: names builtins.print, which isn't on the list of what \
may be made; on_unknown='opaque' puts an inert object in its place
        >>> checkpoint = load_torch("checkpoint.pt")  # doctest: +SKIP
        >>> checkpoint["epoch"], checkpoint["model"]["linear.weight"].shape  # doctest: +SKIP
        (20, (3, 2))
    """
    with opened(path_or_bytes) as content:
        return _load(content, Limits(max_memory, max_depth, max_opcodes), on_unknown, verify)


def load_torch_state_dict(
    path_or_bytes: TorchSource,
    key: str | None = None,
    *,
    on_unknown: OnUnknown = "raise",
    verify: bool = True,
    max_memory: int = 1 << 27,
    max_depth: int = 256,
    max_opcodes: int = 4_000_000,
) -> State:
    """Find the state dict in a file of PyTorch.

    A state dict is a dict of Tensors by name, a dict of such dicts (names are joined by dots), a
    list of pairs of name and Tensor, the state dict of a TorchScript archive, or, with
    `on_unknown="opaque"`, a module that was saved whole.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes.
        key: where it is in what was saved: "model", or "callbacks.ema.state_dict". By default what
            has one of the usual names ("state_dict", "model_state_dict", "model", "module", "net",
            "network", "weights", "params", "ema"); without those the whole, if it is a state dict,
            or else the only entry that is one.
        on_unknown: as `load_torch`.
        verify: as `load_torch`.
        max_memory: as `load_torch`.
        max_depth: as `load_torch`.
        max_opcodes: as `load_torch`.

    Returns:
        Tensors by name.

    Raises:
        FormatError: as `load_torch`; or there is no state dict, or there are several.
        OSError: as `load_torch`.

    Example:
        >>> load_torch_state_dict("checkpoint.pt", "model")["weight"].shape  # doctest: +SKIP
        (3, 2)
    """
    with opened(path_or_bytes) as content:
        limits = Limits(max_memory, max_depth, max_opcodes)
        return _find_state(_load(content, limits, on_unknown, verify), key, limits)


def read_everything(path: str | os.PathLike[str]) -> Any:
    """All that a file of PyTorch holds, with inert objects for classes that aren't known.

    Args:
        path: the file.

    Returns:
        What `load_torch` gives; of a TorchScript archive, a `ScriptArchive`.

    Raises:
        FormatError: the file is damaged, of another format, has what te-tensor has no tensors for,
            or costs too much.
        OSError: it can't be read.
    """
    with opened(path) as content:
        return _read(content, Limits(1 << 27, 256, 4_000_000), "opaque", verify=True)


def _load(content: Content, limits: Limits, on_unknown: OnUnknown, verify: bool) -> Any:
    loaded = _read(content, limits, on_unknown, verify)
    return loaded.state_dict() if isinstance(loaded, ScriptArchive) else loaded


def _read(content: Content, limits: Limits, on_unknown: OnUnknown, verify: bool) -> Any:
    if bytes(content.bytes[:2]) != _ZIP:
        return LegacyFile(content, limits).load(on_unknown)
    container = TorchZip(content, limits, verify=verify)
    if container.is_torchscript:
        return read_script(container, limits)
    return container.load("data.pkl", "data", on_unknown)


# -- state dicts ----------------------------------------------------------------------------


def _find_state(loaded: Any, key: str | None, limits: Limits) -> State:
    """The state dict at a key, or the only one there is."""
    if key is not None:
        return _by_name(list(_tensors(_entry(loaded, key, key), "", limits)))
    entries = loaded if isinstance(loaded, dict) else {}
    found = _state_dicts({name: entries[name] for name in _USUAL if name in entries}, limits)
    if not found:
        try:
            pairs = list(_tensors(loaded, "", limits))
        except FormatError as error:
            found = _state_dicts(entries, limits)
            if not found:
                raise FormatError(f"has no state dict: {error}") from None
        else:
            return _by_name(pairs)
    if len(found) > 1:
        raise FormatError(f"has several state dicts: give one of the keys {_listed(found)}")
    return _by_name(found.popitem()[1])


def _state_dicts(entries: dict[Any, Any], limits: Limits) -> dict[str, list[tuple[str, Tensor]]]:
    """The tensors of those entries that are state dicts, and not empty."""
    found = {}
    for name, value in entries.items():
        with suppress(FormatError):
            if pairs := list(_tensors(value, "", limits)):
                found[str(name)] = pairs
    return found


def _by_name(pairs: list[tuple[str, Tensor]]) -> State:
    state: State = {}
    for name, tensor in pairs:
        if name in state:
            raise FormatError("has its name twice", tensor=name)
        state[name] = tensor
    return state


def _entry(value: Any, key: str, whole: str) -> Any:
    """What stands at a key with dots, each of which may be part of a name too."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        for name, inner in value.items():
            if isinstance(name, str) and name and key.startswith(f"{name}."):
                return _entry(inner, key[len(name) + 1 :], whole)
    names = f"there are {_listed(value)}" if isinstance(value, dict) else "there are no keys"
    raise FormatError(f"has nothing at the key {whole!r}: where {key!r} was looked for, {names}")


def _listed(names: Iterable[object]) -> str:
    shown = [repr(name) for name in islice(names, 9)]
    return ", ".join(shown[:8]) + (", …" if shown[8:] else "") or "none"


def _tensors(value: Any, path: str, limits: Limits) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a state dict of any form, by their names joined by dots."""
    limits.take(memory=_COST + len(path))  # a few dicts in many places, or long names
    match value:
        case Tensor() if path:
            yield path.removesuffix("."), value
        case dict() if all(isinstance(name, str) for name in value):
            for name, inner in value.items():
                yield from _tensors(inner, f"{path}{name}.", limits)
        case [(str(), Tensor()), *_]:
            for pair in value:
                match pair:
                    case (str(name), Tensor() as tensor):
                        yield path + name, tensor
                    case _:
                        raise _no_state(pair, path)
        case OpaqueObject(state={"_parameters": dict(), "_buffers": dict(), "_modules": dict()}):
            yield from _module_tensors(value.state, path, limits)
        case _:
            raise _no_state(value, path)


def _module_tensors(
    state: dict[str, Any], path: str, limits: Limits
) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict()` of a torch.nn.Module that was saved whole would give."""
    hidden = state.get("_non_persistent_buffers_set", set())
    if not isinstance(hidden, set):
        raise _no_state(hidden, path)
    for name, tensor in [*state["_parameters"].items(), *state["_buffers"].items()]:
        if tensor is not None and name not in hidden:
            yield from _tensors(tensor, f"{path}{name}.", limits)
    for name, module in state["_modules"].items():
        if module is not None:
            yield from _tensors(module, f"{path}{name}.", limits)


def _no_state(value: object, path: str) -> FormatError:
    kind = value.name if isinstance(value, OpaqueObject) else type(value).__name__
    return FormatError(f"is a {kind}: expected a tensor", tensor=path.removesuffix(".") or None)
