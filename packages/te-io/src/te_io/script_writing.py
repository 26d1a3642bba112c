"""TorchScript archives, written without PyTorch: classes, pickles and tensors in a zip.

The modules stand in data.pkl as nested objects, their classes and the code of `forward` in
code/__torch__.py, constants in constants.pkl, the elements of tensors in data/ and constants/.
"""

from __future__ import annotations

import keyword
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from te_tensor import Tensor
from te_tensor.dtypes import Array, DType

from .errors import FormatError
from .torch_names import STORAGES
from .writing import little_endian_bytes

#: The format's version; in older ones `div` and `gelu` meant something else, and loading would
#: put that in their place (caffe2/serialize/versions.h).
_VERSION = b"10\n"
_ROOT = "archive"
#: Where elements begin, so that readers can map them.
_ALIGNMENT = 64
_STORAGE_OF: dict[DType, str] = {dtype: name for name, dtype in STORAGES.items()}


@dataclass(frozen=True)
class StateTensor:
    """A tensor of a module: a parameter, or a buffer."""

    tensor: Tensor
    is_parameter: bool

    @property
    def array(self) -> Array:
        """Its elements."""
        return self.tensor.data


@dataclass(frozen=True)
class Forward:
    """The method `forward` of the root module, as code."""

    #: The types of the arguments, by name.
    arguments: Mapping[str, str]
    result_type: str
    #: The lines of its body.
    body: Sequence[str]


@dataclass
class _Node:
    """A module of the tree that dotted names make."""

    class_name: str
    tensors: dict[str, StateTensor] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)

    def below(self) -> Iterator[_Node]:
        """This module and all below it."""
        yield self
        for child in self.children.values():
            yield from child.below()


def attribute(owner: str, name: str) -> str:
    """Code for an attribute, whose name need not be an identifier.

    Example:
        >>> attribute(attribute("self", "layers"), "0")
        'getattr(self.layers, "0")'
    """
    if is_plain(name):
        return f"{owner}.{name}"
    return f"getattr({owner}, {quoted(name)})"


def is_plain(name: str) -> bool:
    """Whether a name can stand in code as it is."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def has_marks(text: str) -> bool:
    """Whether a text has quotes, backslashes or control characters, which code can't hold."""
    return re.search(r'["\\\x00-\x1f\x7f]', text) is not None


def quoted(text: str) -> str:
    """Code for a text without such marks."""
    return f'"{text}"'


def write_script(
    file: BinaryIO,
    class_name: str,
    state: Mapping[str, StateTensor],
    forward: Forward,
    constants: Sequence[Array],
    path: str,
) -> None:
    """Write an archive; the same contents always give the same bytes.

    Args:
        file: where to write.
        class_name: the name of the root module's class.
        state: parameters and buffers by dotted name. Those on the same memory share it again when
            they are loaded.
        forward: the code.
        constants: what the code calls `CONSTANTS.c0` and so on.
        path: the file's name, for errors.

    Raises:
        FormatError: a dtype that TorchScript has no storage for, or names that can't stand
            together.
    """
    root = _tree(class_name, state, path)
    data, of_constants = _Pickle(path), _Pickle(path)
    data.module(root)
    of_constants.tensors(constants)
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", data.finished())
        for folder, pickle in (("data", data), ("constants", of_constants)):
            for key, array in enumerate(pickle.storages):
                _add(archive, f"{folder}/{key}", little_endian_bytes(array))
        _add(archive, "code/__torch__.py", _code(root, forward).encode())
        _add(archive, "constants.pkl", of_constants.finished())
        _add(archive, "byteorder", b"little")
        _add(archive, "version", _VERSION)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """A member without a date, whose content begins at a multiple of the alignment."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 0  # otherwise the bytes would depend on the system
    assert archive.fp is not None
    begin = archive.fp.tell() + 30 + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, content)


# -- classes --------------------------------------------------------------------------------


def _tree(class_name: str, state: Mapping[str, StateTensor], path: str) -> _Node:
    """The modules that dotted names stand for."""
    taken: set[str] = set()
    root = _Node(_free_name(class_name, taken))
    for name, tensor in state.items():
        *owners, last = name.split(".")
        node = root
        for depth, owner in enumerate(owners):
            if owner not in node.children:
                wanted = "_".join([class_name, *owners[: depth + 1]])
                node.children[owner] = _Node(_free_name(wanted, taken))
            node = node.children[owner]
        node.tensors[last] = tensor
    for node in root.below():
        for name in (*node.tensors, *node.children):
            both = name in node.tensors and name in node.children
            if not name or both or has_marks(name) or name in ("training", "forward"):
                raise FormatError(
                    "can't be the name of an attribute in TorchScript", file=path, tensor=name
                )
    return root


def _free_name(wanted: str, taken: set[str]) -> str:
    """A class name like the one that is wanted."""
    plain = re.sub(r"\W", "_", wanted, flags=re.ASCII)
    plain = plain if is_plain(plain) else f"Module_{plain}"
    name, number = plain, 1
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    taken.add(name)
    return name


def _code(root: _Node, forward: Forward) -> str:
    """The classes of all modules; only the root has a method."""
    lines = []
    for node in root.below():
        kinds = {"parameters": True, "buffers": False}
        lines.append(f"class {node.class_name}(Module):")
        for kind, is_parameter in kinds.items():
            names = [n for n, t in node.tensors.items() if t.is_parameter is is_parameter]
            listed = "".join(f"{quoted(name)}, " for name in names)
            lines.append(f"  __{kind}__ = [{listed}]")
        types = dict.fromkeys(node.tensors, "Tensor") | {"training": "bool"}
        types |= {name: f"__torch__.{child.class_name}" for name, child in node.children.items()}
        for name, kind in types.items():
            plain = f"{name} : {kind}"
            lines.append(
                f"  {plain if is_plain(name) else f'__annotations__[{quoted(name)}] = {kind}'}"
            )
        if node is root:
            arguments = "".join(f", {name}: {kind}" for name, kind in forward.arguments.items())
            owner = f"self: __torch__.{node.class_name}"
            lines.append(f"  def forward({owner}{arguments}) -> {forward.result_type}:")
            lines += [f"    {line}" for line in forward.body]
        lines.append("")
    return "\n".join(lines)


# -- pickles --------------------------------------------------------------------------------


class _Pickle:
    """A pickle of modules and tensors, in protocol 2 (the opcodes of Python's `pickletools`).

    Args:
        path: the file's name, for errors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        #: What the storages hold; the keys are places in this list.
        self.storages: list[Array] = []
        self._keys: dict[object, int] = {}
        self._parts = [b"\x80\x02"]

    def finished(self) -> bytes:
        """The whole pickle."""
        return b"".join([*self._parts, b"."])

    def module(self, node: _Node) -> None:
        """An object of the module's class, with its tensors and children as attributes."""
        self._parts.append(b"c__torch__\n" + node.class_name.encode() + b"\n)\x81}(")
        for name, tensor in node.tensors.items():
            self._text(name)
            self._tensor(tensor.array, tensor.is_parameter and tensor.tensor.requires_grad)
        self._text("training")
        self._parts.append(b"\x89")
        for name, child in node.children.items():
            self._text(name)
            self.module(child)
        self._parts.append(b"ub")

    def tensors(self, arrays: Sequence[Array]) -> None:
        """A tuple of tensors."""
        self._parts.append(b"(")
        for array in arrays:
            self._tensor(array, False)
        self._parts.append(b"t")

    def _tensor(self, array: Array, requires_grad: bool) -> None:
        storage = _STORAGE_OF.get(array.dtype)
        if storage is None:
            raise FormatError(
                f"holds a tensor of {array.dtype}: TorchScript stores "
                + ", ".join(dtype.name for dtype in _STORAGE_OF),
                file=self.path,
            )
        self._parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        self._storage(array, storage)
        self._integers([0])
        strides = [1] * array.ndim
        for axis in reversed(range(array.ndim - 1)):
            strides[axis] = strides[axis + 1] * max(array.shape[axis + 1], 1)
        for lengths in (array.shape, strides):
            self._parts.append(b"(")
            self._integers(lengths)
            self._parts.append(b"t")
        self._parts.append(b"\x88" if requires_grad else b"\x89")
        self._parts.append(b"ccollections\nOrderedDict\n)RtR")

    def _storage(self, array: Array, kind: str) -> None:
        """The storage of an array; one that came before is fetched from the pickle's memory."""
        key = self._keys.setdefault(memory_of(array), len(self.storages))
        if key < len(self.storages):
            self._parts.append(b"j" + struct.pack("<I", key))
            return
        self.storages.append(array)
        self._parts.append(b"(")
        self._text("storage")
        self._parts.append(f"ctorch\n{kind}\n".encode())
        self._text(str(key))
        self._text("cpu")
        self._integers([array.size])
        self._parts.append(b"tQr" + struct.pack("<I", key))

    def _text(self, text: str) -> None:
        encoded = text.encode()
        self._parts.append(b"X" + struct.pack("<I", len(encoded)) + encoded)

    def _integers(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            short = -(1 << 31) <= number < 1 << 31
            self._parts.append(
                b"J" + struct.pack("<i", number)
                if short
                else b"\x8a\x08" + struct.pack("<q", number)
            )


def memory_of(array: Array) -> object:
    """What tells whether two arrays are the same elements in the same memory."""
    return array.ctypes.data, array.shape, array.strides, array.dtype
