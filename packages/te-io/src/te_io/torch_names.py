"""What the pickles of PyTorch may name.

The lists are all there is: a name that isn't on them is refused, or becomes an inert object.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sized
from functools import partial
from typing import Any, Literal, TypeAlias

from te_tensor import dtypes
from te_tensor.dtypes import DType

from .errors import FormatError
from .pickle_values import Limits, Name, OpaqueObject, check_key
from .torch_tensors import TENSOR_MAKERS, Make, Storage, rebuild_from_type, wrong_arguments

#: What to do with a name that isn't on the list: refuse the file, or put an inert object there.
OnUnknown: TypeAlias = Literal["raise", "opaque"]

#: The dtypes of the elements of storages, by the names of these.
STORAGES: dict[str, DType] = {
    "BoolStorage": dtypes.bool_,
    "ByteStorage": dtypes.uint8,
    "CharStorage": dtypes.int8,
    "ShortStorage": dtypes.int16,
    "IntStorage": dtypes.int32,
    "LongStorage": dtypes.int64,
    "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16,
    "FloatStorage": dtypes.float32,
    "DoubleStorage": dtypes.float64,
    "ComplexFloatStorage": dtypes.complex64,
}
#: Storages of bytes, whose tensors say themselves what they are.
_UNTYPED = ("torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage")
_UNSUPPORTED_STORAGES = {
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "quantized (qint8)",
    "QInt32Storage": "quantized (qint32)",
    "QUInt8Storage": "quantized (quint8)",
    "QUInt4x2Storage": "quantized (quint4x2)",
    "QUInt2x4Storage": "quantized (quint2x4)",
}
_DTYPES: dict[str, DType] = {
    "bool": dtypes.bool_,
    **{dtype.name: dtype for dtype in dtypes.ALL if dtype != dtypes.bool_},
}
_UNSUPPORTED_DTYPES = (
    *("complex32", "complex128", "qint8", "qint32", "quint8", "quint4x2", "quint2x4"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2", "bits8", "bits16", "bits1x8"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)
#: Names of functions that make what no Tensor can be.
_UNSUPPORTED_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass without a storage",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device of its own",
}
#: Gives the storage of a key, with elements of a dtype (bytes, if that is None), so many of them,
#: and the part that is meant: its first element and length, None for all.
ReadStorage: TypeAlias = Callable[[str, DType | None, int, tuple[int, int] | None], Storage]


class TorchNames:
    """What names and persistent ids in a pickle stand for: the answers for a `PickleMachine`.

    Args:
        read_storage: gives the storages.
        limits: how much may be used.
        on_unknown: what to do with names that aren't on the list.
        scripts: whether names under `__torch__`, classes of TorchScript, stand for inert objects.
        dry: make no tensors: the storages are only asked for.

    Raises:
        ValueError: on_unknown is something else.
    """

    def __init__(
        self,
        read_storage: ReadStorage,
        limits: Limits,
        on_unknown: OnUnknown = "raise",
        *,
        scripts: bool = False,
        dry: bool = False,
    ) -> None:
        if on_unknown not in ("raise", "opaque"):
            raise ValueError(f"on_unknown is {on_unknown!r}: expected 'raise' or 'opaque'")
        self._read_storage = read_storage
        self.limits = limits
        self._opaque = on_unknown == "opaque"
        self._scripts = scripts
        self._values: dict[str, object] = {
            **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
            **{name: Name(name) for name in _NAMES_ONLY},
            **{name: Name(name, partial(make, limits)) for name, make in _CALLABLES.items()},
        }
        if dry:
            makers = (*TENSOR_MAKERS, "torch._tensor._rebuild_from_type_v2")
            self._values |= {name: Name(name, lambda _: None) for name in makers}

    def find(self, name: str) -> object:
        """What a name stands for.

        Raises:
            FormatError: it isn't on the list, and `on_unknown` is "raise".
        """
        if name in self._values:
            return self._values[name]
        if self._opaque or (self._scripts and name.startswith("__torch__.")):
            return OpaqueObject(name)
        if name in _UNSUPPORTED_KINDS:
            raise FormatError(
                f"is {_UNSUPPORTED_KINDS[name]} ({name}): te-tensor has no such tensor"
            )
        raise FormatError(
            f"names {name}, which isn't on the list of what may be made; on_unknown='opaque' puts "
            "an inert object in its place"
        )

    def load_persistent(self, persistent_id: object) -> Storage:
        """The storage that a persistent id stands for.

        Raises:
            FormatError: it is no id of a storage, or the storage can't be read.
        """
        match persistent_id:
            case ("storage", Name(name=kind), str(key), str(place), int(count), *view):
                pass
            case _:
                raise FormatError("has a persistent id that is none of a storage")
        if kind not in _STORAGE_NAMES:
            raise FormatError(f"has a storage of type {kind}, which is none")
        dtype = _STORAGE_NAMES[kind]
        if isinstance(dtype, str):
            raise FormatError(f"is {dtype} ({kind}): te-tensor has no such dtype")
        if place == "meta":
            raise FormatError("is a meta tensor, which has no values")
        if count < 0:
            raise FormatError(f"has a storage of {count} elements")
        match view:
            case [] | [None]:
                return self._read_storage(key, dtype, count, None)
            case [(str(), int(start), int(length))]:
                return self._read_storage(key, dtype, count, (start, length))
            case _:
                raise FormatError("has a persistent id with a view that is none")


# -- other values ---------------------------------------------------------------------------


def _copies(limits: Limits, values: Sized) -> None:
    """Count what copying a container costs: a few bytes may ask for it again and again."""
    limits.take(memory=64 * len(values), opcodes=len(values))


def _entries(limits: Limits, name: str, arguments: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The entries that a dict of some kind is to have."""
    match arguments:
        case ():
            return []
        case (dict(given),):
            _copies(limits, given)
            return list(given.items())
        case (list(given),):
            _copies(limits, given)
            entries = []
            for entry in given:
                match entry:
                    case (key, value):
                        check_key(key, limits)
                        entries.append((key, value))
                    case _:
                        raise wrong_arguments(name, arguments)
            return entries
    raise wrong_arguments(name, arguments)


def _ordered_dict(limits: Limits, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    return OrderedDict(_entries(limits, "collections.OrderedDict", arguments))


def _dict(limits: Limits, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(_entries(limits, "builtins.dict", arguments))


def _counter(limits: Limits, arguments: tuple[Any, ...]) -> Counter[Any]:
    return Counter(dict(_entries(limits, "collections.Counter", arguments)))


def _default_dict(limits: Limits, arguments: tuple[Any, ...]) -> defaultdict[Any, Any]:
    """With the factory where that makes an empty container; others are left out."""
    match arguments:
        case (None | Name() | OpaqueObject() as factory, *entries):
            make = _FACTORIES.get(getattr(factory, "name", None))
            return defaultdict(make, _entries(limits, "collections.defaultdict", tuple(entries)))
    raise wrong_arguments("collections.defaultdict", arguments)


def _list(limits: Limits, arguments: tuple[Any, ...]) -> list[Any]:
    match arguments:
        case ():
            return []
        case (list(values) | tuple(values) | set(values),):
            _copies(limits, values)
            return list(values)
    raise wrong_arguments("builtins.list", arguments)


def _set(limits: Limits, arguments: tuple[Any, ...]) -> set[Any]:
    values = _list(limits, arguments)
    for value in values:
        check_key(value, limits)
    return set(values)


def _long(limits: Limits, arguments: tuple[Any, ...]) -> int:
    match arguments:
        case (int(value),):
            return value
    raise wrong_arguments("builtins.long", arguments)


def _size(limits: Limits, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """torch.Size is a tuple of whole numbers, and becomes one."""
    values = _list(limits, arguments)
    if all(type(value) is int for value in values):
        return tuple(values)
    raise wrong_arguments("torch.Size", arguments)


def _device(limits: Limits, arguments: tuple[Any, ...]) -> str:
    """A device becomes its name, "cuda:0": te-tensor has none but the CPU."""
    match arguments:
        case (str(kind),):
            return kind
        case (str(kind), int(index)):
            return f"{kind}:{index}"
    raise wrong_arguments("torch.device", arguments)


def _encode(limits: Limits, arguments: tuple[Any, ...]) -> bytes:
    """How bytes are written by protocols that have no opcode for them."""
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            limits.take(memory=len(text))
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise FormatError("has bytes that are none") from None
    raise wrong_arguments("_codecs.encode", arguments)


def _typed_list(limits: Limits, arguments: tuple[Any, ...]) -> list[Any]:
    match arguments:
        case (list(values),):
            return values
    raise wrong_arguments("torch.jit._pickle.build_list", arguments)


def _restore_type_tag(limits: Limits, arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (value, str()):
            return value
    raise wrong_arguments("torch.jit._pickle.restore_type_tag", arguments)


_BUILTINS: dict[str, Make] = {"set": _set, "list": _list, "dict": _dict, "long": _long}
#: All that a pickle can have called.
_CALLABLES: dict[str, Make] = {
    **TENSOR_MAKERS,
    "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "_codecs.encode": _encode,
    **{f"builtins.{name}": make for name, make in _BUILTINS.items()},
    **{f"__builtin__.{name}": make for name, make in _BUILTINS.items()},  # Python 2
    **{
        f"torch.jit._pickle.build_{kind}list": _typed_list
        for kind in ("int", "double", "bool", "tensor")
    },
    "torch.jit._pickle.restore_type_tag": _restore_type_tag,
}
#: From the name of a storage type to its dtype; None for bytes, a text for what isn't supported.
_STORAGE_NAMES: dict[str, DType | str | None] = {
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    **{f"torch.{name}": kind for name, kind in _UNSUPPORTED_STORAGES.items()},
    **dict.fromkeys(_UNTYPED, None),
}
#: Names that may stand in a pickle, and are never called.
_NAMES_ONLY = (*_STORAGE_NAMES, "torch.Tensor", *(f"torch.{name}" for name in _UNSUPPORTED_DTYPES))
_FACTORIES: dict[str | None, Callable[[], Any]] = {
    "collections.OrderedDict": OrderedDict,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set)
    },
}
