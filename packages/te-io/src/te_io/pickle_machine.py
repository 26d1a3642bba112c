"""A machine for pickles that imports nothing, and calls nothing but what it was given.

A pickle is a program: its opcodes may name any callable of any module and have it called, and
Python's unpickler imports what they name (https://docs.python.org/3/library/pickle.html warns of
it; CVE-2025-32434 is what became of a reader that was meant to be careful). Here a name is looked
up by a function of the caller's, which answers from a list; nothing is ever looked up in a module.
The standard library's `pickletools` decodes the opcodes, and what they mean stands below. Opcodes
that only protocol 0 writes, that name classes in other ways, or that no file needs, are refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

from .errors import FormatError
from .pickle_values import Limits, Name, OpaqueObject, check_key

#: Bytes that an opcode may take for what it pushes: a slot on the stack and a small object.
_SMALL = 48
#: … and those that make a container, an entry of the memo, or call something.
_ENTRY, _CONTAINER, _CALL = 96, 256, 512
#: The longest line of a pickle: two names of a GLOBAL, or a number.
_LONGEST_LINE = 4096
#: Whole numbers of more bits can't be printed (Python limits the digits), and no file has them.
_MOST_BITS = 8192


class PickleStream(io.BytesIO):
    """The bytes of one or more pickles. No line of it is read further than a name could go."""

    def readline(self, size: int | None = -1, /) -> bytes:
        """The next line.

        Raises:
            FormatError: there is no end of a line within reach.
        """
        line = super().readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise FormatError(
                "is cut short or damaged: a name or a number in its pickle has no end"
            )
        return line


class PickleMachine:
    """Runs the opcodes of pickles.

    Args:
        stream: where the pickles stand; each `run` reads one and leaves the next.
        find: gives what a full name stands for: a `Name`, an `OpaqueObject` or a plain value.
        load_persistent: gives what a persistent id stands for.
        limits: how much this may cost.
    """

    def __init__(
        self,
        stream: PickleStream,
        find: Callable[[str], object],
        load_persistent: Callable[[object], object],
        limits: Limits,
    ) -> None:
        self._stream = stream
        self._find = find
        self._load_persistent = load_persistent
        self._limits = limits

    def run(self) -> Any:
        """What the next pickle makes; `check_structure` says whether it is fit to be used.

        Raises:
            FormatError: it is damaged, costs too much, or uses what it may not.
        """
        self._stack: list[Any] = []
        self._frames: list[list[Any]] = []  # what stood on the stack before each MARK
        self._memo: dict[int, Any] = {}
        stream, limits = self._stream, self._limits
        try:
            while (code := stream.read(1)) != b".":
                handler, decode, cost = _TABLE[code]
                limits.opcodes -= 1
                limits.memory -= cost
                if limits.opcodes < 0 or limits.memory < 0:
                    limits.take()  # says which
                handler(self, decode(stream) if decode else None)
            return self._stack.pop()
        except FormatError as error:
            if code in _CALLS:
                error.tensor = error.tensor or self._path()
            raise
        except KeyError:
            if code not in _TABLE:
                raise _refusal(code) from None
            raise self._damaged("takes from its memo what isn't there") from None
        except IndexError:
            raise self._damaged("takes from its stack what isn't there") from None
        except ValueError as error:  # of the decoder: what is there isn't what must be
            raise self._damaged(f"can't be decoded ({error})") from None

    def _damaged(self, reason: str) -> FormatError:
        return FormatError(
            f"is cut short or damaged: its pickle {reason}, before byte {self._stream.tell()}"
        )

    def _path(self) -> str | None:
        """Where in the structure the machine is, by the keys that wait for their values."""
        path = []
        for frame in [*self._frames, self._stack]:
            # The key is followed by its value so far: a container, or callables without arguments.
            keys = [value for value in frame[-3:] if type(value) is str]
            path += [key[:100] for key in keys[-1:]]
        return ".".join(path) or None

    def _pop_frame(self) -> list[Any]:
        """What was pushed since the last MARK."""
        values, self._stack = self._stack, self._frames.pop()
        return values

    # -- what the opcodes do --------------------------------------------------------------

    def _check_protocol(self, protocol: int) -> None:
        if protocol > pickle.HIGHEST_PROTOCOL:
            raise FormatError(
                f"has a pickle of protocol {protocol}: expected at most {pickle.HIGHEST_PROTOCOL}"
            )

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_number(self, value: int) -> None:
        if value.bit_length() > _MOST_BITS:
            raise FormatError(
                f"has a number of {value.bit_length()} bits: more than any file needs"
            )
        self._stack.append(value)

    def _push_text(self, value: str | bytes | bytearray) -> None:
        self._limits.take(memory=sys.getsizeof(value))
        self._stack.append(value)

    def _push_python_2_text(self, value: str) -> None:
        """Python 2 had one type for texts and bytes: UTF-8 is text."""
        content = value.encode("latin-1")  # as it stands in the file
        try:
            self._push_text(content.decode())
        except UnicodeDecodeError:
            self._push_text(content)

    def _mark(self, _: None) -> None:
        self._frames.append(self._stack)
        self._stack = []

    def _pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._frames.pop()

    def _pop_mark(self, _: None) -> None:
        self._pop_frame()

    def _duplicate(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple_of_frame(self, _: None) -> None:
        values = self._pop_frame()
        self._stack.append(tuple(values))

    def _tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) < count:
            raise IndexError
        self._stack[-count:] = [values]

    def _list_of_frame(self, _: None) -> None:
        values = self._pop_frame()
        self._stack.append(values)

    def _dict_of_frame(self, _: None) -> None:
        values = self._pop_frame()
        self._stack.append({})
        self._set(values)

    def _frozenset_of_frame(self, _: None) -> None:
        values = self._pop_frame()
        for value in values:
            check_key(value, self._limits)
        self._stack.append(frozenset(values))

    # -- filling containers ---------------------------------------------------------------

    def _append_one(self, _: None) -> None:
        self._append([self._stack.pop()])

    def _append_frame(self, _: None) -> None:
        self._append(self._pop_frame())

    def _append(self, values: list[Any]) -> None:
        match self._stack[-1]:
            case list() as target:
                target += values
            case OpaqueObject(items=items):
                items += values
            case other:
                raise FormatError(f"appends to a {type(other).__name__}: expected a list")

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_frame(self, _: None) -> None:
        self._set(self._pop_frame())

    def _set(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise FormatError("sets an entry without a value")
        match self._stack[-1]:
            case dict() as target:
                pass
            case OpaqueObject(entries=target):
                pass
            case other:
                raise FormatError(f"sets entries of a {type(other).__name__}: expected a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            check_key(key, self._limits)
            target[key] = value

    def _add_frame(self, _: None) -> None:
        values = self._pop_frame()
        match self._stack[-1]:
            case set() as target:
                for value in values:
                    check_key(value, self._limits)
                    target.add(value)
            case OpaqueObject(items=items):
                items += values
            case other:
                raise FormatError(f"adds elements to a {type(other).__name__}: expected a set")

    # -- names and calls ------------------------------------------------------------------

    def _find_on_stack(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FormatError("takes a name from something that is no text")
        self._find_name(f"{module}.{name}")

    def _find_name(self, name: str) -> None:
        if len(name) > 2 * _LONGEST_LINE:
            raise FormatError(f"has a name of {len(name)} characters")
        self._stack.append(self._find(name))

    def _find_persistent(self, _: None) -> None:
        persistent_id = self._stack.pop()
        self._stack.append(self._load_persistent(persistent_id))

    def _reduce(self, _: None) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise FormatError(f"calls something with a {type(arguments).__name__} for arguments")
        self._stack.append(call(callee, arguments))

    def _new_object(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(_new(kind, arguments))

    def _new_object_with_keywords(self, _: None) -> None:
        keywords, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise FormatError(f"makes an object with a {type(arguments).__name__} for arguments")
        self._stack.append(_new(kind, (*arguments, keywords)))

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        match target, state:
            case OpaqueObject(), _:
                target.state = state
            case OrderedDict(), dict():
                _set_attributes(target, state)
            case _:
                raise FormatError(f"gives a state to a {type(target).__name__}, which has none")


def call(callee: object, arguments: tuple[Any, ...]) -> object:
    """Call what may be called; an opaque name gives an opaque object.

    Args:
        callee: what a pickle would have called.
        arguments: with what.

    Raises:
        FormatError: it is nothing that may be called, or refuses the arguments.
    """
    match callee:
        case Name(call=function) if function is not None:
            return function(arguments)
        case Name(name=name):
            raise FormatError(f"calls {name}, which is only a name and must not be called")
        case OpaqueObject(name=name, arguments=None):
            return OpaqueObject(name, arguments)
        case _:
            raise FormatError(f"calls a {type(callee).__name__}, which must not be called")


def _new(kind: object, arguments: object) -> OpaqueObject:
    match kind, arguments:
        case OpaqueObject(name=name, arguments=None), tuple():
            return OpaqueObject(name, arguments)
        case Name(name=name), _:
            raise FormatError(f"makes an object of {name}, which is only called or named")
        case _:
            raise FormatError(f"makes an object of a {type(kind).__name__}, which is no class")


def _set_attributes(target: OrderedDict[Any, Any], state: dict[Any, Any]) -> None:
    """What PyTorch hangs onto a state dict (`_metadata`), never in place of a method."""
    for name, value in state.items():
        if not isinstance(name, str) or hasattr(OrderedDict, name):
            raise FormatError(f"sets {reprlib.repr(name)} of an OrderedDict, which isn't its own")
        setattr(target, name, value)


def _refusal(code: bytes) -> FormatError:
    if not code:
        return FormatError("is cut short: its pickle has no end")
    if code in _NAMES:
        return FormatError(
            f"has the opcode {_NAMES[code]} in its pickle: this reader doesn't run it, as PyTorch "
            "never writes it"
        )
    return FormatError(f"has {code!r} in its pickle, which is no opcode")


# -- the table of opcodes -------------------------------------------------------------------

_Handler: TypeAlias = Callable[[PickleMachine, Any], None]


def _constant(value: object) -> _Handler:
    return lambda machine, _: machine._push(value)


def _empty(kind: Callable[[], object]) -> _Handler:
    return lambda machine, _: machine._push(kind())


def _tuple_of(count: int) -> _Handler:
    return lambda machine, _: machine._tuple_of(count)


def _read_name(stream: PickleStream) -> str:
    """Module and name, a line each; `pickletools` would take backslashes in them for escapes."""
    module, name = stream.readline()[:-1], stream.readline()[:-1]
    return f"{module.decode()}.{name.decode()}"


def _nothing(machine: PickleMachine, _: object) -> None:
    """For frames, which help to read ahead."""


_M = PickleMachine
#: What an opcode does, and the most bytes that it takes.
_MEANINGS: dict[str, tuple[_Handler, int]] = {
    "PROTO": (_M._check_protocol, 0),
    "FRAME": (_nothing, 0),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), (_M._push, _SMALL)),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), (_M._push_number, _SMALL)),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), (_M._push_text, _SMALL)),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), (_M._push_text, _SMALL)),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), (_M._push_python_2_text, _SMALL)),
    "BYTEARRAY8": (_M._push_text, _SMALL),
    "NONE": (_constant(None), _SMALL),
    "NEWTRUE": (_constant(True), _SMALL),
    "NEWFALSE": (_constant(False), _SMALL),
    "EMPTY_TUPLE": (_constant(()), _SMALL),
    "EMPTY_LIST": (_empty(list), _ENTRY),
    "EMPTY_DICT": (_empty(dict), _CONTAINER),
    "EMPTY_SET": (_empty(set), _CONTAINER),
    "MARK": (_M._mark, _ENTRY),
    "POP": (_M._pop, 0),
    "POP_MARK": (_M._pop_mark, 0),
    "DUP": (_M._duplicate, _SMALL),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), (_M._put, _ENTRY)),
    "MEMOIZE": (_M._memoize, _ENTRY),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), (_M._get, _SMALL)),
    "TUPLE": (_M._tuple_of_frame, _ENTRY),
    "TUPLE1": (_tuple_of(1), _ENTRY),
    "TUPLE2": (_tuple_of(2), _ENTRY),
    "TUPLE3": (_tuple_of(3), _ENTRY),
    "LIST": (_M._list_of_frame, _ENTRY),
    "DICT": (_M._dict_of_frame, _CONTAINER),
    "FROZENSET": (_M._frozenset_of_frame, _CONTAINER),
    "APPEND": (_M._append_one, _SMALL),
    "APPENDS": (_M._append_frame, _SMALL),
    "SETITEM": (_M._set_item, _ENTRY),
    "SETITEMS": (_M._set_frame, _SMALL),
    "ADDITEMS": (_M._add_frame, _SMALL),
    "GLOBAL": (_M._find_name, _CONTAINER),
    "STACK_GLOBAL": (_M._find_on_stack, _CONTAINER),
    "BINPERSID": (_M._find_persistent, _CONTAINER),
    "REDUCE": (_M._reduce, _CALL),
    "NEWOBJ": (_M._new_object, _CALL),
    "NEWOBJ_EX": (_M._new_object_with_keywords, _CALL),
    "BUILD": (_M._build, _CONTAINER),
}
#: The opcodes that give other code something to do.
_CALLS = frozenset((b"c", b"\x93", b"Q", b"R", b"\x81", b"\x92"))
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


def _decoder(opcode: pickletools.OpcodeInfo) -> Callable[[PickleStream], Any] | None:
    if opcode.name == "GLOBAL":
        return _read_name
    return opcode.arg.reader if opcode.arg else None


#: By the byte that stands for it: what an opcode does, what decodes its argument, what it costs.
_TABLE: dict[bytes, tuple[_Handler, Callable[[PickleStream], Any] | None, int]] = {
    opcode.code.encode("latin-1"): (
        _MEANINGS[opcode.name][0],
        _decoder(opcode),
        _MEANINGS[opcode.name][1],
    )
    for opcode in pickletools.opcodes
    if opcode.name in _MEANINGS
}
