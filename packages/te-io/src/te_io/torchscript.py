"""TorchScript archives, read as data: what their modules hold, and the text of their code.

An archive is a zip of pickles, tensors and code in a subset of Python. The root module is in
data.pkl, as nested objects whose classes are in code/; only the code says which tensors are
parameters and which are buffers. The code is searched for that, and never run.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from te_tensor import Tensor

from .errors import FormatError
from .pickle_values import Limits, OpaqueObject
from .torch_container import TorchZip
from .torch_source import opened

#: The line that begins a class, and those in it that say what its attributes are.
_CLASS = re.compile(r"class (\w+)\((\w+)\):$")
_LINE = re.compile(r"[^\n]+")
_LISTED = re.compile(r"  __(parameters|buffers)__ = (\[.*\])$")
_QUOTED = re.compile(r'"([^"]*)"')
_FINAL = re.compile(r"  (\w+) : Final\[.*\] = (.+)$")
#: Longer values of constants, and texts with escapes, are left in the code.
_LONGEST_VALUE = 1000
_CODE = "code/"
#: What a class, a module or an attribute takes once it is found, in bytes.
_COST = 256


@dataclass(frozen=True)
class ScriptArchive:
    """What a TorchScript archive holds.

    Attributes:
        parameters: parameters by their path through the modules.
        buffers: buffers by path.
        attributes: all else that modules hold, by path: numbers, texts, lists, plain tensors.
        constants: what the code calls `CONSTANTS.c0`, `CONSTANTS.c1` …, by those names.
        final: constants that stand in the code of a class (`Final`), by path, where plain.
        modules: the full name of each module's class, by path; "" is the root.
        extra_files: files that were saved along, by name.
        code: the text of the code, by path.
        tensors: parameters and buffers in the order of `state_dict`.
    """

    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    extra_files: dict[str, bytes] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether the modules were frozen: their tensors have no names, and are constants."""
        return not self.tensors and any(isinstance(x, Tensor) for x in self.constants.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers, module by module, as PyTorch orders them.

        Raises:
            FormatError: the modules were frozen, so that there are no names.
        """
        if self.frozen:
            raise FormatError(
                f"holds frozen modules: the names of its {len(self.constants)} tensors are lost; "
                "load_torchscript gives them as constants"
            )
        return dict(self.tensors)


def load_torchscript(
    path_or_bytes: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    *,
    verify: bool = True,
    max_memory: int = 1 << 27,
    max_depth: int = 256,
    max_opcodes: int = 4_000_000,
) -> ScriptArchive:
    """Read a TorchScript archive (`torch.jit.save`, of scripted or traced modules).

    Tensors lie on the mapped file, as `load_torch` says. Names that tch, PyTorch's Rust binding,
    gave to the tensors of a VarStore have "|" where paths have dots; they are given with dots.

    Args:
        path_or_bytes: a path, the bytes of a file, or a file opened for reading bytes.
        verify: check the checksums of members, which reads the whole file once.
        max_memory: bytes that may be used beside the tensors' own.
        max_depth: how deep modules and containers may be nested.
        max_opcodes: steps that the pickles may have, and elements that they may come to.

    Returns:
        What the archive holds.

    Raises:
        FormatError: the file is damaged, of another format, or costs too much.
        OSError: it can't be read.

    Example:
        >>> archive = load_torchscript("silero_vad.jit")  # doctest: +SKIP
        >>> archive.buffers["_model.stft.forward_basis_buffer"].shape  # doctest: +SKIP
        (258, 1, 256)
    """
    limits = Limits(max_memory, max_depth, max_opcodes)
    with opened(path_or_bytes) as content:
        container = TorchZip(content, limits, verify=verify)
        if not container.is_torchscript:
            raise FormatError("is no TorchScript archive (it has no constants.pkl): use load_torch")
        return read_script(container, limits)


def read_script(container: TorchZip, limits: Limits) -> ScriptArchive:
    """What is in a TorchScript archive that is open.

    Args:
        container: the archive.
        limits: how much may be used.

    Raises:
        FormatError: it is damaged, or costs too much.
    """
    found = ScriptArchive()
    archive = container.archive
    for name in archive.members:
        if name.startswith("extra/"):
            found.extra_files[name.removeprefix("extra/")] = archive.read(name)
        elif name.startswith(_CODE) and name.endswith(".py"):
            limits.take(memory=archive.members[name].size)  # once as bytes, once as text
            found.code[name.removeprefix(_CODE)] = _text(name, archive.read(name))
    constants = container.load("constants.pkl", "constants")
    if not isinstance(constants, tuple):
        raise FormatError("has constants that are no tuple")
    found.constants.update({f"c{i}": value for i, value in enumerate(constants)})
    root = container.load("data.pkl", "data")
    if not isinstance(root, OpaqueObject):
        raise FormatError(f"holds a {type(root).__name__}: expected a module")
    classes: dict[str, _Class] = {}
    for path, text in found.code.items():
        classes.update(_parse(path, text, limits))
    _collect(root, classes, found, limits)
    return found


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FormatError(f"has code in {name} that is no text") from None


# -- classes --------------------------------------------------------------------------------


@dataclass
class _Class:
    """What the code of a class says of its attributes."""

    is_module: bool
    parameters: dict[str, None] = field(default_factory=dict)
    buffers: dict[str, None] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)


_OTHER = _Class(is_module=False)


def _parse(path: str, text: str, limits: Limits) -> Iterator[tuple[str, _Class]]:
    """The classes in a file of code, by full name."""
    module = path.removesuffix(".py").replace("/", ".")
    found = None
    for line in (match[0] for match in _LINE.finditer(text)):
        if match := _CLASS.match(line):
            limits.take(memory=_COST)
            found = _Class(match[2] == "Module")
            yield f"{module}.{match[1]}", found
        elif found is None:
            continue
        elif match := _LISTED.match(line):
            limits.take(memory=_COST * line.count('"'))
            names = dict.fromkeys(_QUOTED.findall(match[2]))
            if match[1] == "parameters":
                found.parameters = names
            else:
                found.buffers = names
        elif (match := _FINAL.match(line)) and (value := _literal(match[2])) is not None:
            limits.take(memory=_COST + len(line))
            found.final[match[1]] = value


def _literal(text: str) -> Any:
    """A plain value, None where it is none."""
    if len(text) > _LONGEST_VALUE or "\\" in text:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


# -- modules --------------------------------------------------------------------------------


def _collect(
    root: OpaqueObject, classes: dict[str, _Class], found: ScriptArchive, limits: Limits
) -> None:
    """Sort what modules hold: of each its parameters, its buffers, the rest, then its children."""
    if root.name not in classes:
        raise FormatError(f"has no code of {root.name}, which would say what is a parameter")
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        kind = classes[module.name]
        if not isinstance(module.state, dict) or not all(type(x) is str for x in module.state):
            raise FormatError(f"has a {module.name} without attributes")
        # A few modules in many places, or long names, may come to much.
        places = (*kind.final, *kind.parameters, *kind.buffers, *module.state)
        limits.take(
            memory=_COST + sum(_COST + len(prefix) + len(name) for name in places),
            opcodes=len(places),
        )
        found.modules[prefix.removesuffix(".")] = module.name
        found.final.update({prefix + name: value for name, value in kind.final.items()})
        for target, names in ((found.parameters, kind.parameters), (found.buffers, kind.buffers)):
            for name in names:
                _add_tensor(target, found, prefix + name, module.state.get(name))
        children = []
        for name, value in module.state.items():
            if isinstance(value, OpaqueObject) and classes.get(value.name, _OTHER).is_module:
                children.append((f"{prefix}{name}.", value))
            elif name not in kind.parameters and name not in kind.buffers:
                found.attributes[f"{prefix}{name}"] = value
        waiting += reversed(children)


def _add_tensor(target: dict[str, Tensor], found: ScriptArchive, path: str, value: object) -> None:
    if value is None:  # a bias that isn't there
        return
    path = path.replace("|", ".")  # in a VarStore, where dots may not stand
    if not isinstance(value, Tensor):
        raise FormatError(f"is a {type(value).__name__}: expected a tensor", tensor=path)
    if path in found.tensors:
        raise FormatError("has its name twice", tensor=path)
    target[path] = found.tensors[path] = value
