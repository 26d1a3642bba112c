"""Files that must be refused, and the process that tries them under limits of memory and time.

`python hostile.py` reads every one of them and prints what came of it, a JSON object a line.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import signal
import struct
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from te_io import load_torch, load_torch_state_dict

ASSETS = Path(__file__).parent / "assets"
#: What a case may take, beside what the process takes before.
MEMORY, SECONDS = 256 << 20, 5
#: A file that none of the cases may make.
TRACE = Path("hostile-trace")


class Case(NamedTuple):
    """Bytes to read, what the error must say, and options; "state_dict" chooses the reader."""

    content: Callable[[], bytes]
    words: str
    options: dict[str, Any] = {}


def asset(name: str) -> bytes:
    return base64.b64decode((ASSETS / f"{name}.pt.b64").read_bytes())


# -- pickles, put together from opcodes -----------------------------------------------------

STOP = b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(dotted: str) -> bytes:
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def calls(dotted: str, *arguments: bytes) -> bytes:
    return name(dotted) + items(*arguments) + b"R"


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 2) -> bytes:
    return items(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def shape(*lengths: int) -> bytes:
    return items(*map(number, lengths))


def tensor(
    at: bytes | None = None,
    offset: bytes = number(0),
    size: bytes = shape(2),
    stride: bytes = shape(1),
    grad: bytes = b"\x89",
    *more: bytes,
) -> bytes:
    start = (storage() if at is None else at, offset, size, stride, grad, b"}")
    return calls("torch._utils._rebuild_tensor_v2", *start, *more)


def entry(value: bytes) -> bytes:
    """A dict with one entry."""
    return b"}" + text("weight") + value + b"s"


DATA = struct.pack("<2f", 1, 2)


def archive(
    root: bytes | None = None,
    data: bytes = DATA,
    *,
    pack: tuple[str, ...] = (),
    more: dict[str, bytes] | None = None,
    folder: str = "archive",
) -> bytes:
    """An archive of `torch.save`, or of TorchScript where `more` has constants."""
    members = {
        "data.pkl": b"\x80\x02" + (entry(tensor()) if root is None else root) + STOP,
        "byteorder": b"little",
        "data/0": data,
        **(more or {}),
    }
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # of members that are there twice
        for member, content in members.items():
            path = member[1:] if member.startswith("/") else f"{folder}/{member}"
            method = zipfile.ZIP_DEFLATED if member in pack else zipfile.ZIP_STORED
            file.writestr(path, content, method)
    return buffer.getvalue()


def legacy(
    root: bytes,
    keys: list[Any],
    stored: bytes,
    magic: int = 0x1950A86A20F9469CFC6C,
    version: object = 1001,
    system: object = None,
) -> bytes:
    system = {"little_endian": True} if system is None else system
    heads = [pickle.dumps(value, 2) for value in (magic, version, system)]
    return b"".join([*heads, b"\x80\x02" + root + STOP, pickle.dumps(keys, 2), stored])


def record(count: int = 2, data: bytes = DATA) -> bytes:
    return struct.pack("<q", count) + data


def script(data: bytes, code: str, constants: bytes = b")") -> bytes:
    more = {"constants.pkl": b"\x80\x02" + constants + STOP, "code/__torch__.py": code.encode()}
    return archive(data, more=more)


def changed(content: bytes, old: bytes, new: bytes, which: int = 0) -> bytes:
    """The bytes with one occurrence of `old` replaced; -1 means the last."""
    place = -1
    if which < 0:
        place = content.rfind(old)
    for _ in range(which + 1):
        place = content.index(old, place + 1)
    assert place >= 0
    return content[:place] + new + content[place + len(old) :]


def patched(content: bytes, signature: bytes, at: int, new: bytes, which: int = 0) -> bytes:
    """The bytes with a field behind a signature replaced."""
    place = -1
    for _ in range(which + 1):
        place = content.index(signature, place + 1)
    return content[: place + at] + new + content[place + at + len(new) :]


# -- programs -------------------------------------------------------------------------------


class Evil:
    """Runs a command when it is unpickled the usual way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'echo x > "{TRACE}"',)


def evil(protocol: int) -> bytes:
    return pickle.dumps({"weight": Evil()}, protocol)[:-1]


def evil_pickle(protocol: int) -> bytes:
    return archive(evil(protocol)[2 if protocol > 1 else 0 :])


FOREIGN = (
    *("os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.getattr"),
    *("__builtin__.eval", "builtins.__import__", "subprocess.Popen", "torch.load", "sys.modules"),
    *("torch.hub.load", "torch.jit.load", "torch.storage._load_from_bytes", "nt.system"),
    *("copyreg._reconstructor", "functools.partial", "operator.attrgetter", "typing.Any"),
    *("numpy.core.multiarray._reconstruct", "omegaconf.dictconfig.DictConfig", "__main__.x"),
    *("torch.nn.modules.linear.Linear", "collections.OrderedDict.__init__", "builtins.frozenset"),
    *("torch._utils._rebuild_tensor_v2.__globals__", "torch.serialization._get_layout"),
    *("__torch__.Net", "torch.utils._config_module.install_config_module", "builtins.bytearray"),
)
KINDS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor",
    "_rebuild_nested_tensor": "a nested tensor",
}


def on_stack(*parts: str) -> bytes:
    return b"".join(map(text, parts)) + b"\x93"


def nested(make: bytes, depth: int = 200_000) -> bytes:
    return b")" + make * depth


def shared(make: Callable[[bytes], bytes], depth: int = 60) -> bytes:
    """Each level holds the one below twice."""
    levels = [make(b"h" + bytes([i])) + b"q" + bytes([i + 1]) for i in range(depth)]
    return b")q\x00" + b"".join(levels)


def twice_in_tuple(below: bytes) -> bytes:
    return below * 2 + b"\x86"


def twice_in_list(below: bytes) -> bytes:
    return b"](" + below * 2 + b"e"


def twice_in_dict(below: bytes) -> bytes:
    return b"}(" + text("a") + below + text("b") + below + b"u"


def colliding(count: int) -> bytes:
    """A dict whose keys, tuples of two numbers, would all have one hash if nothing stopped it."""
    keys = b"".join(items(number(i), number(i + 1)) + b"N" for i in range(count))
    return b"}(" + keys + b"u"


def overlapping() -> bytes:
    """Two members on the same bytes: the second starts inside the first."""
    inner = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 8, 8, 8, 0) + b"r/data/0" + DATA
    content = archive(data=inner, folder="r")
    place = content.index(inner)
    second = struct.pack(
        *("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(DATA), 8, 8, 8),
        *(0, 0, 0, 0, 0, place),
    )
    return with_entry(content, second + b"r/data/1").replace(b"r/data/0" + DATA, b"r/data/1" + DATA)


def with_entry(content: bytes, added: bytes) -> bytes:
    """An archive with one more entry in its directory."""
    end = content.rindex(b"PK\5\6")
    fields = list(struct.unpack_from("<4s4H2LH", content, end))
    fields[3:6] = fields[3] + 1, fields[4] + 1, fields[5] + len(added)
    return content[:end] + added + struct.pack("<4s4H2LH", *fields)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def bomb(size: int = 1 << 28) -> bytes:
    """A pickle of so many zeros, packed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    chunk = bytes(1 << 20)
    packed = b"".join(packer.compress(chunk) for _ in range(size >> 20)) + packer.flush()
    member = b"r/data.pkl"
    local = struct.pack(
        *("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), size, len(member), 0)
    )
    start = local + member + packed
    central = struct.pack(
        *("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), size, len(member)),
        *(0, 0, 0, 0, 0, 0),
    )
    return with_entry(
        start + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, len(start), 0), central + member
    )


MODULE = 'class Net(Module):\n  __parameters__ = ["a", ]\n  __buffers__ = []\n'
NET = name("__torch__.Net") + b")\x81"

CASES: dict[str, Case] = {
    # -- foreign names ----------------------------------------------------------------------
    **{
        f"command by protocol {protocol}": Case(
            lambda protocol=protocol: evil_pickle(protocol),
            "names .*system" if protocol else "opcode",
        )
        for protocol in range(6)
    },
    **{
        f"name {dotted}": Case(
            lambda dotted=dotted: archive(entry(calls(dotted, text("x")))),
            f"tensor 'weight': names {dotted}, which isn't on the list",
        )
        for dotted in FOREIGN
    },
    **{
        f"name {dotted} without a call": Case(
            lambda dotted=dotted: archive(entry(name(dotted))), f"names {dotted}"
        )
        for dotted in FOREIGN[:4]
    },
    "name on the stack": Case(lambda: archive(on_stack("os", "system")), "names os.system"),
    "name with dots": Case(lambda: archive(on_stack("torch", "os.system")), "torch.os.system"),
    "name with escapes": Case(lambda: archive(b"co\\ps\nsystem\n"), r"names o.+ps\.system"),
    "name that is no UTF-8": Case(lambda: archive(b"c\xff\nx\n"), "can't be decoded"),
    "name of no text": Case(lambda: archive(b"K\1K\2\x93"), "something that is no text"),
    "name without end": Case(lambda: archive(b"c" + b"a" * 100_000), "has no end"),
    "long name": Case(lambda: archive(on_stack("a" * 99_999, "b")), "name of 100001 characters"),
    "legacy: command": Case(lambda: legacy(evil(2)[2:], [], b""), "names .*system"),
    "legacy: command before the object": Case(lambda: evil(2) + STOP, "names .*system"),
    "legacy: command after the object": Case(lambda: legacy(b"}", [Evil()], b""), "names .*system"),
    "TorchScript: command": Case(lambda: script(evil(2)[2:], MODULE), "names .*system"),
    "TorchScript: command in constants": Case(
        lambda: script(NET + b"}b", MODULE, evil(2)[2:]), "names .*system"
    ),
    "class by INST": Case(lambda: archive(b"(ios\nsystem\n"), "opcode INST"),
    "class by OBJ": Case(lambda: archive(b"(" + name("collections.OrderedDict") + b"o"), "OBJ"),
    "extension": Case(lambda: archive(b"\x82\x01"), "opcode EXT1"),
    "persistent id as text": Case(lambda: archive(b"P0\n"), "opcode PERSID"),
    "buffer from elsewhere": Case(lambda: archive(b"\x97"), "opcode NEXT_BUFFER"),
    "object of a function": Case(
        lambda: archive(name("collections.OrderedDict") + b")\x81"), "makes an object of collec"
    ),
    "object of a number": Case(lambda: archive(b"K\1)\x81"), "makes an object of a int"),
    "object with keywords": Case(
        lambda: archive(name("torch.Size") + b")}\x92"), "makes an object of torch.Size"
    ),
    # -- names that are only names ----------------------------------------------------------
    "call of a storage type": Case(
        lambda: archive(entry(calls("torch.FloatStorage", number(1 << 40)))),
        "calls torch.FloatStorage, which is only a name",
    ),
    "call of UntypedStorage": Case(
        lambda: archive(calls("torch.storage.UntypedStorage", number(8))), "only a name"
    ),
    "call of Tensor": Case(lambda: archive(calls("torch.Tensor", number(8))), "only a name"),
    "call of a dtype": Case(lambda: archive(calls("torch.float32")), "calls a .*must not be"),
    "call of a text": Case(lambda: archive(text("x") + b")R"), "calls a str"),
    "call with a list": Case(lambda: archive(name("torch.Size") + b"]R"), "with a list for arg"),
    "name as a value": Case(
        lambda: archive(entry(name("torch.FloatStorage"))), "holds torch.FloatStorage by itself"
    ),
    "storage as a value": Case(lambda: archive(entry(storage())), "holds a Storage by itself"),
    "tensor of a subclass by a function that isn't on the list": Case(
        lambda: archive(
            calls("torch._tensor._rebuild_from_type_v2", name("os.system"), name("torch.Tensor"))
        ),
        "names os.system",
    ),
    "tensor of a type by a function that makes none": Case(
        lambda: archive(
            calls(
                *("torch._tensor._rebuild_from_type_v2", name("collections.OrderedDict")),
                *(name("torch.Tensor"), b")", b"}"),
            )
        ),
        "calls torch._tensor._rebuild_from_type_v2 with",
    ),
    "attribute in place of a method": Case(
        lambda: archive(calls("collections.OrderedDict") + b"}" + text("items") + b"K\1sb"),
        "sets 'items' of an OrderedDict",
    ),
    "state of a tensor": Case(lambda: archive(tensor() + b"}b"), "gives a state to a Tensor"),
    "other encoding": Case(
        lambda: archive(calls("_codecs.encode", text("x"), text("bz2"))), "_codecs.encode with"
    ),
    # -- tensors ----------------------------------------------------------------------------
    "negative offset": Case(lambda: archive(entry(tensor(None, number(-1)))), "has offset -1"),
    "offset too large": Case(
        lambda: archive(entry(tensor(None, number(1)))), "reaches past the 2 elements"
    ),
    "offset far too large": Case(lambda: archive(tensor(None, number(1 << 62))), "reaches past"),
    "offset beyond numbers": Case(lambda: archive(tensor(None, number(1 << 80))), "has offset"),
    "offset of a text": Case(lambda: archive(tensor(None, text("0"))), "v2 with .Storage, str"),
    "offset that is true": Case(lambda: archive(tensor(None, b"\x88")), "whole numbers"),
    "negative size": Case(lambda: archive(tensor(size=shape(-2))), r"shape \(-2,\)"),
    "size too large": Case(lambda: archive(tensor(size=shape(3))), "reaches past"),
    "size far too large": Case(lambda: archive(tensor(size=shape(1 << 62))), "too large"),
    "sizes whose product overflows": Case(
        lambda: archive(tensor(size=shape(1 << 32, 1 << 32), stride=shape(0, 0))), "too large"
    ),
    "empty with a size that overflows": Case(
        lambda: archive(tensor(size=shape(0, 1 << 62), stride=shape(1, 1))), "too large"
    ),
    "empty past the end": Case(
        lambda: archive(tensor(None, number(3), shape(0))), "reaches past the 2"
    ),
    "negative stride": Case(lambda: archive(tensor(stride=shape(-1))), r"strides \(-1,\)"),
    "stride too large": Case(lambda: archive(tensor(stride=shape(2))), "reaches past"),
    "stride far too large": Case(lambda: archive(tensor(stride=shape(1 << 62))), "too large"),
    "more strides than axes": Case(
        lambda: archive(tensor(stride=shape(1, 1))), "1 axes and 2 strides"
    ),
    "many axes": Case(
        lambda: archive(tensor(size=shape(*[1] * 65), stride=shape(*[1] * 65))), "65 axes"
    ),
    "expanded past the cap": Case(
        lambda: archive(tensor(size=shape(1 << 40), stride=shape(0))),
        "tensor.* more than 134217728 bytes|needs more than 134217728 bytes",
    ),
    "expanded past the cap together": Case(
        lambda: archive(
            b"](" + tensor(size=shape(1 << 20), stride=shape(0)) * 40 + b"e",
        ),
        "needs more than 134217728 bytes",
    ),
    "more elements than bytes": Case(
        lambda: archive(tensor(storage(count=3), size=shape(3))),
        "has a storage of 8 bytes: expected 3 elements of 4",
    ),
    "fewer elements than bytes": Case(
        lambda: archive(tensor(storage(count=1), size=shape(1))), "expected 1 elements of 4"
    ),
    "negative count": Case(lambda: archive(tensor(storage(count=-1))), "of -1 elements"),
    "enormous count": Case(lambda: archive(tensor(storage(count=1 << 70))), "expected 1180"),
    "storage without a file": Case(lambda: archive(tensor(storage(key="7"))), "no member data/7"),
    "storage elsewhere": Case(
        lambda: archive(tensor(storage(key="../data/0"))), "storage named '../data/0': expected a"
    ),
    "storage at an absolute path": Case(
        lambda: archive(tensor(storage(key="/etc/passwd"))), "storage named '/etc/passwd'"
    ),
    "storage of another type": Case(
        lambda: archive(tensor(storage("torch.Tensor"))), "storage of type torch.Tensor"
    ),
    "persistent id of a text": Case(lambda: archive(text("0") + b"Q"), "none of a storage"),
    "persistent id of another kind": Case(lambda: archive(items(text("module")) + b"Q"), "none of"),
    "bytes without a dtype": Case(
        lambda: archive(tensor(storage("torch.storage.UntypedStorage", count=8))), "and no dtype"
    ),
    "a bool of 2": Case(
        lambda: archive(tensor(storage("torch.BoolStorage")), b"\1\2"), "has a bool of 2"
    ),
    "integers with a gradient": Case(
        lambda: archive(tensor(storage("torch.LongStorage"), grad=b"\x88"), bytes(16)),
        "needs a gradient and is of int64",
    ),
    "conjugate of reals": Case(
        lambda: archive(
            tensor(None, number(0), shape(2), shape(1), b"\x89", b"}" + text("conj") + b"\x88s")
        ),
        "marked as the conjugate of float32",
    ),
    "unknown mark": Case(
        lambda: archive(
            tensor(None, number(0), shape(2), shape(1), b"\x89", b"}" + text("twice") + b"\x88s")
        ),
        "further properties",
    ),
    "complex128": Case(
        lambda: archive(entry(tensor(storage("torch.ComplexDoubleStorage")))),
        "tensor 'weight': is complex128",
    ),
    "quantized storage": Case(
        lambda: archive(tensor(storage("torch.QInt8Storage"))), r"is quantized \(qint8\)"
    ),
    "meta storage": Case(
        lambda: archive(
            items(text("storage"), name("torch.FloatStorage"), text("0"), text("meta"), number(2))
            + b"Q"
        ),
        "is a meta tensor",
    ),
    "dtype that te-tensor lacks": Case(
        lambda: archive(
            calls(
                *(
                    "torch._utils._rebuild_tensor_v3",
                    storage("torch.storage.UntypedStorage", "0", 8),
                ),
                *(number(0), shape(1), shape(1), b"\x89", b"}", name("torch.complex32")),
            )
        ),
        "has dtype torch.complex32",
    ),
    **{
        f"tensor by {function}": Case(
            lambda function=function: archive(entry(calls(f"torch._utils.{function}", b"N"))),
            f"tensor 'weight': is {kind}",
        )
        for function, kind in KINDS.items()
    },
    # -- bombs ------------------------------------------------------------------------------
    "nested tuples": Case(lambda: archive(nested(b"\x85")), "nests containers more than 256"),
    "nested lists": Case(
        lambda: archive(b"]" * 200_000 + b"a" * 199_999), "nests containers more than 256"
    ),
    "nested dicts": Case(
        lambda: archive(b"}K\1" * 100_000 + b"N" + b"s" * 100_000), "nests containers more than 256"
    ),
    "nested objects": Case(
        lambda: archive(nested(b"q\0" + name("a.B") + b"h\0\x85R", 50_000)),
        "nests containers|needs more than",
        {"on_unknown": "opaque"},
    ),
    "nested tuples as a key": Case(
        lambda: archive(b"}" + nested(b"\x85") + b"Ns"), "has a tuple for a key"
    ),
    "nested tuples in a set": Case(
        lambda: archive(calls("builtins.set", b"]" + nested(b"\x85") + b"a")), "has a tuple for"
    ),
    "nested tuples in a frozenset": Case(
        lambda: archive(b"(" + nested(b"\x85") + b"\x91"), "has a tuple for"
    ),
    "nested types of a tensor": Case(
        lambda: archive(
            name("torch._tensor._rebuild_from_type_v2")
            + b"q\0"
            + items(
                b"h\0", name("torch.Tensor"), items(b"h\0", name("torch.Tensor"), b")", b"N"), b"N"
            )
            + b"R"
        ),
        "_rebuild_from_type_v2 with",
    ),
    "list that contains itself": Case(lambda: archive(b"]q\0h\0a"), "list that contains itself"),
    "dict that contains itself": Case(lambda: archive(b"}q\0K\1h\0s"), "dict that contains itself"),
    "tuple that contains itself": Case(
        lambda: archive(b"]q\0h\0\x85q\1ah\1"), "that contains itself"
    ),
    "object that contains itself": Case(
        lambda: archive(name("a.B") + b")\x81q\0h\0b"),
        "OpaqueObject that contains itself",
        {"on_unknown": "opaque"},
    ),
    "attributes that contain themselves": Case(
        lambda: archive(calls("collections.OrderedDict") + b"q\0}" + text("_a") + b"h\0sb"),
        "OrderedDict that contains itself",
    ),
    "tuples that share tuples": Case(lambda: archive(shared(twice_in_tuple)), "so many places"),
    "lists that share lists": Case(lambda: archive(shared(twice_in_list)), "so many places"),
    "dicts that share dicts": Case(lambda: archive(shared(twice_in_dict)), "so many places"),
    "tuples that share tuples as a key": Case(
        lambda: archive(shared(twice_in_tuple) + b"}h\x3cNs"), "has a tuple for a key"
    ),
    "keys whose hashes are slow": Case(lambda: archive(colliding(100_000)), "max_opcodes"),
    "key of many bits": Case(lambda: archive(b"}" + number(1 << 64) + b"Ns"), "64 bits for a key"),
    "tensor for a key": Case(lambda: archive(b"}" + tensor() + b"Ns"), "a Tensor for a key"),
    "list for a key": Case(lambda: archive(b"}]Ns"), "a list for a key"),
    "many sets": Case(lambda: archive(b"(" + b"\x8f" * 1_000_000 + b"t"), "max_memory"),
    "many marks": Case(lambda: archive(b"(" * 2_000_000), "max_memory"),
    "many numbers": Case(lambda: archive(b"(" + b"K\1" * 5_000_000 + b"t"), "max_memory|max_opc"),
    "many calls": Case(
        lambda: archive(name("collections.OrderedDict") + b"q\0(" + b"h\0)R" * 1_000_000 + b"t"),
        "max_memory",
    ),
    "nothing, many times": Case(lambda: archive(b"N0" * 5_000_000 + b"N"), "max_opcodes|max_mem"),
    "entries of the memo": Case(
        lambda: archive(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(3_000_000))),
        "max_memory",
    ),
    "copies of a list": Case(
        lambda: archive(
            b"](" + b"N" * 100_000 + b"eq\0(" + (name("builtins.list") + b"h\0\x85R") * 1000 + b"t"
        ),
        "max_memory|max_opcodes",
    ),
    "copies of a text": Case(
        lambda: archive(
            text("x" * 1_000_000)
            + b"q\0("
            + (name("_codecs.encode") + b"h\0" + text("latin1") + b"\x86R") * 1000
            + b"t"
        ),
        "max_memory",
    ),
    "copies of names": Case(
        lambda: archive(text("x" * 8000) + b"q\0(" + b"h\0h\0\x93" * 100_000 + b"t"),
        "name of 16001 characters",
        {"on_unknown": "opaque"},
    ),
    "index of the memo past memory": Case(
        lambda: archive(b"Nr" + struct.pack("<I", 1 << 25) + b"0h\7"), "memo what isn't there"
    ),
    "text longer than the file": Case(
        lambda: archive(b"\x8d" + struct.pack("<Q", 1 << 60)), "cut short or damaged"
    ),
    "bytes longer than the file": Case(lambda: archive(b"B\xff\xff\xff\xff"), "cut short or damag"),
    "number of many bits": Case(
        lambda: archive(b"\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20)), "bits: more than"
    ),
    "number of many digits": Case(lambda: archive(b"L" + b"9" * 4000 + b"L\n"), "bits: more than"),
    "number without end": Case(lambda: archive(b"I" + b"9" * 100_000), "has no end"),
    "deflated pickle past the cap": Case(bomb, "needs more than 134217728 bytes"),
    # -- pickles that are damaged -----------------------------------------------------------
    "pickle of a later protocol": Case(lambda: archive(b"\x80\x06N"), "protocol 6"),
    "no opcode": Case(lambda: archive(b"\xff"), "no opcode"),
    "empty stack": Case(lambda: archive(b""), "stack what isn't there"),
    "tuple of too few": Case(lambda: archive(b"N\x87"), "stack what isn't there"),
    "frame without a mark": Case(lambda: archive(b"t"), "stack what isn't there"),
    "append to a tuple": Case(lambda: archive(b")Na"), "appends to a tuple"),
    "set in a list": Case(lambda: archive(b"]NNs"), "sets entries of a list"),
    "entry without a value": Case(lambda: archive(b"}(Nu"), "entry without a value"),
    "elements of a list": Case(lambda: archive(b"](N\x90"), "adds elements to a list"),
    "text that is no UTF-8": Case(lambda: archive(b"X\1\0\0\0\xff"), "can't be decoded"),
    "something behind the pickle": Case(lambda: archive(b"N.N"), "behind the pickle"),
    "pickle without an end": Case(
        lambda: archive(more={"data.pkl": b"\x80\x02N"}), "its pickle has no end"
    ),
    # -- archives ---------------------------------------------------------------------------
    "compressed storage": Case(lambda: archive(pack=("data/0",)), "data/0 compressed"),
    "member twice": Case(
        lambda: with_entry(
            archive(), archive()[archive().index(b"PK\1\2") : archive().index(b"PK\1\2") + 62]
        ),
        "data.pkl twice",
    ),
    "two roots": Case(lambda: archive(more={"/other/data/1": DATA}), "2 root folders"),
    "no root": Case(lambda: archive(more={"/loose": b""}), "'loose': expected a path below"),
    "path upwards": Case(lambda: archive(more={"../../x": b""}), "expected a path below"),
    "path with backslashes": Case(lambda: archive(more={"a\\b": b""}), "expected a path below"),
    "bad CRC of the pickle": Case(
        lambda: changed(archive(), text("weight"), text("height")), "data.pkl damaged: its CRC-32"
    ),
    "bad CRC of a storage": Case(lambda: changed(archive(), DATA, DATA[::-1]), "data/0 damaged"),
    "bad CRC of code": Case(
        lambda: changed(script(NET + b"}b", MODULE), b"__buffers__", b"__Buffers__"), "CRC-32"
    ),
    "damaged deflated pickle": Case(
        lambda: patched(archive(pack=("data.pkl",)), b"archive/data.pkl", 20, b"\xff" * 8),
        "data.pkl damaged",
    ),
    "size of a deflated pickle too small": Case(
        lambda: patched(archive(pack=("data.pkl",)), b"PK\1\2", 24, struct.pack("<L", 9)),
        "isn't of the 9 bytes",
    ),
    "size of a deflated pickle too large": Case(
        lambda: patched(archive(pack=("data.pkl",)), b"PK\1\2", 24, struct.pack("<L", 9999)),
        "isn't of the 9999 bytes",
    ),
    "size of a stored member": Case(
        lambda: patched(archive(), b"PK\1\2", 24, struct.pack("<L", 9)), "of a wrong size"
    ),
    "member past the end": Case(
        lambda: patched(archive(), b"PK\1\2", 20, struct.pack("<2L", 1 << 30, 1 << 30)), "cut short"
    ),
    "member of 64-bit size without it": Case(
        lambda: patched(archive(), b"PK\1\2", 20, b"\xff" * 8), "without its sizes"
    ),
    "member that isn't there": Case(
        lambda: patched(archive(), b"PK\1\2", 42, struct.pack("<L", 5)), "where its directory says"
    ),
    "member far away": Case(
        lambda: patched(archive(), b"PK\1\2", 42, struct.pack("<L", 1 << 30)), "where its directory"
    ),
    "member under another name": Case(
        lambda: changed(archive(), b"archive/data/0", b"archive/data/1"), "where its directory says"
    ),
    "members that overlap": Case(overlapping, "members that overlap"),
    "encrypted member": Case(lambda: patched(archive(), b"PK\1\2", 8, b"\1\0"), "encrypted"),
    "unknown compression": Case(lambda: patched(archive(), b"PK\1\2", 10, b"\x0e\0"), "method 14"),
    "member on another disk": Case(
        lambda: patched(archive(), b"PK\1\2", 34, b"\1\0"), "damaged at"
    ),
    "archive of several parts": Case(lambda: patched(archive(), b"PK\5\6", 4, b"\1\0"), "several"),
    "more entries than there are": Case(
        lambda: patched(archive(), b"PK\5\6", 8, b"\xff\xff\xff\xff"), "damaged at byte"
    ),
    "fewer entries than there are": Case(
        lambda: patched(archive(), b"PK\5\6", 8, b"\1\0\1\0"), "bytes behind the 1 entries"
    ),
    "something before the archive": Case(lambda: b"PK" + archive(), "put before it"),
    "something behind the archive": Case(lambda: archive() + b"x", "behind the end"),
    "directory elsewhere": Case(
        lambda: patched(archive(), b"PK\5\6", 16, struct.pack("<L", 0)), "put before it"
    ),
    "end of the directory in a comment": Case(
        lambda: archive()[:-2] + struct.pack("<H", 22) + archive()[-22:], "put before it"
    ),
    "name that is no text": Case(
        lambda: patched(
            patched(archive(), b"PK\1\2", 8, b"\0\x08").replace(
                b"archive/data.pkl", b"\xffrchive/data.pkl"
            ),
            *(b"PK\1\2", 8, b"\0\x08"),
        ),
        "name is no text",
    ),
    "no data.pkl": Case(
        lambda: archive().replace(b"data.pkl", b"date.pkl"), "none of PyTorch: it has no data.pkl"
    ),
    "unknown byte order": Case(lambda: archive(more={"byteorder": b"mixed"}), "byte order b'mixed"),
    "view of a storage too large": Case(
        lambda: archive(
            items(*(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu")))[:-1]
            + number(2)
            + items(text("1"), number(1), number(2))
            + b"tQ"
        ),
        "view of 2 elements from 1 on",
    ),
    # -- legacy -----------------------------------------------------------------------------
    "legacy: nothing": Case(lambda: b"", "is no file of torch.save"),
    "legacy: text": Case(lambda: b"weights", "starts with b'weights'"),
    "legacy: safetensors": Case(lambda: struct.pack("<Q", 2) + b"{}", "is no file of torch.save"),
    "legacy: other pickle": Case(lambda: pickle.dumps({"a": 1}, 2), "is no file of torch.save"),
    "legacy: tar": Case(tar, "is a tar archive"),
    "legacy: other magic": Case(lambda: legacy(b"}", [], b"", magic=7), "no file of torch.save"),
    "legacy: other version": Case(lambda: legacy(b"}", [], b"", version=1002), "version 1002"),
    "legacy: no byte order": Case(lambda: legacy(b"}", [], b"", system={}), "order of its bytes"),
    "legacy: no keys": Case(lambda: legacy(b"}", 1, b""), "no list of its storages"),
    "legacy: other keys": Case(
        lambda: legacy(tensor(), ["1"], record()), "other storages than it uses"
    ),
    "legacy: keys twice": Case(lambda: legacy(tensor(), ["0", "0"], record() * 2), "other storag"),
    "legacy: keys of tuples": Case(lambda: legacy(tensor(), [("0",)], record()), "no list of its"),
    "legacy: other count": Case(lambda: legacy(tensor(), ["0"], record(3)), "of 3 elements: exp"),
    "legacy: negative count": Case(lambda: legacy(tensor(), ["0"], record(-2)), "of -2 elements"),
    "legacy: cut short": Case(
        lambda: legacy(tensor(), ["0"], record()[:-1]), "is cut short: it has .* expected at least"
    ),
    "legacy: enormous": Case(
        lambda: legacy(tensor(storage(count=1 << 60)), ["0"], record(1 << 60)), "is cut short"
    ),
    "legacy: bytes left over": Case(
        lambda: legacy(tensor(), ["0"], record() + b"x"), "1 bytes behind the last"
    ),
    "legacy: storage in two sizes": Case(
        lambda: legacy(items(tensor(), tensor(storage(count=3))), ["0"], record()), "in two sizes"
    ),
    "legacy: storages before the object": Case(
        lambda: b"\x80\x02" + storage() + STOP, "where no tensor is expected"
    ),
    "legacy: nested tuples": Case(lambda: legacy(nested(b"\x85"), [], b""), "more than 256 deep"),
    "legacy: long text": Case(
        lambda: legacy(text("x" * (1 << 24)), [], b""), "pickles of more than 16777216 bytes"
    ),
    "legacy: many sets": Case(
        lambda: legacy(b"(" + b"\x8f" * 1_000_000 + b"t", [], b""), "max_memory"
    ),
    # -- TorchScript ------------------------------------------------------------------------
    "TorchScript: no code": Case(lambda: script(NET + b"}b", ""), "no code of __torch__.Net"),
    "TorchScript: no module": Case(lambda: script(b"N", MODULE), "holds a NoneType"),
    "TorchScript: no state": Case(lambda: script(NET + b"Nb", MODULE), "without attributes"),
    "TorchScript: parameter of a number": Case(
        lambda: script(NET + b"}" + text("a") + b"K\1sb", MODULE), "tensor 'a': is a int"
    ),
    "TorchScript: a name twice": Case(
        lambda: script(
            NET + b"}(" + text("a|b") + tensor() + text("a.b") + tensor() + b"ub",
            MODULE.replace('"a", ', '"a|b", "a.b", '),
        ),
        "tensor 'a.b': has its name twice",
    ),
    "TorchScript: module that contains itself": Case(
        lambda: script(NET + b"q\0}" + text("a") + b"h\0sb", MODULE), "contains itself"
    ),
    "TorchScript: nested modules": Case(
        lambda: script((NET + b"}" + text("a")) * 1000 + b"N" + b"sb" * 1000, MODULE),
        "nests containers more than 256",
    ),
    "TorchScript: many classes": Case(
        lambda: archive(
            NET + b"}b",
            more={
                "constants.pkl": b"\x80\x02)" + STOP,
                "code/__torch__.py": b"class A(Module):\n" * 1_000_000,
            },
            pack=("code/__torch__.py",),
        ),
        "max_memory",
    ),
    "TorchScript: many modules of many constants": Case(
        lambda: script(
            NET + b"q\0}(" + b"".join(text(str(i)) + NET + b"}b" for i in range(5000)) + b"ub",
            MODULE + "".join(f"  x{i} : Final[int] = 1\n" for i in range(5000)),
        ),
        "max_memory|max_opcodes",
    ),
    "TorchScript: long names of modules in modules": Case(
        lambda: script(
            (NET + b"}" + text("x" * 400_000)) * 100 + NET + b"}b" + b"sb" * 100, MODULE
        ),
        "max_memory",
    ),
    "state dict: long names in dicts in dicts": Case(
        lambda: archive((b"}" + text("x" * 200_000)) * 200 + tensor() + b"s" * 200),
        "max_memory",
        {"state_dict": True},
    ),
    "state dict: a dict in many places": Case(
        lambda: archive(
            tensor()
            + b"q\0}("
            + b"".join(text(f"k{i}") + b"h\0" for i in range(2000))
            + b"uq\1}("
            + b"".join(text(f"{i:0>1000}") + b"h\1" for i in range(900))
            + b"u"
        ),
        "max_memory",
        {"state_dict": True},
    ),
    "state dict: modules that are none": Case(
        lambda: archive(
            NET
            + b"}("
            + b"".join(text(f"_{x}") + b"}" for x in ("parameters", "buffers", "modules"))
            + text("_non_persistent_buffers_set")
            + b"Nub"
        ),
        "has no state dict: is a NoneType",
        {"state_dict": True, "on_unknown": "opaque"},
    ),
    "TorchScript: code that is no text": Case(
        lambda: changed(script(NET + b"}b", "#?"), b"#?", b"#\xff"), "CRC-32"
    ),
    "TorchScript: code that is no text, with its checksum": Case(
        lambda: archive(
            NET + b"}b", more={"constants.pkl": b")" + STOP, "code/__torch__.py": b"\xff"}
        ),
        "code in code/__torch__.py that is no text",
    ),
    "TorchScript: constants that are no tuple": Case(
        lambda: script(NET + b"}b", MODULE, b"]"), "constants that are no tuple"
    ),
}

#: Files that must not be read when they are cut anywhere.
CUT = {
    "zip": lambda: archive(),
    "legacy": lambda: legacy(entry(tensor()), ["0"], record()),
    "TorchScript": lambda: script(NET + b"}" + text("a") + tensor() + b"sb", MODULE),
    "torch.save": lambda: asset("state_dict"),
    "torch.save, legacy": lambda: asset("legacy"),
    "torch.jit.save": lambda: asset("simple_linear"),
}


# -- the process ----------------------------------------------------------------------------


@contextmanager
def limits() -> Iterator[None]:
    """Little memory beyond what the process has, and little time, where the system can say so."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ModuleNotFoundError, OSError):
        yield
        return

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)


def attempt(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What comes of reading a file."""
    options = dict(options)
    reader = load_torch_state_dict if options.pop("state_dict", False) else load_torch
    return outcome_of(lambda: reader(path, **options))


def outcome_of(action: Callable[[], object]) -> dict[str, Any]:
    """What comes of something: the kind of the error, its words, the seconds it took."""
    begin = time.perf_counter()
    try:
        with limits():
            action()
    except BaseException as error:
        outcome = {"kind": type(error).__name__, "words": str(error)[:2000]}
    else:
        outcome = {"kind": "accepted", "words": ""}
    return {**outcome, "seconds": time.perf_counter() - begin, "trace": TRACE.exists()}


def main() -> None:
    path = Path("hostile.pt")
    print(json.dumps({"case": "memory", **outcome_of(lambda: bytes(MEMORY * 5 // 4))}), flush=True)
    for title, case in CASES.items():
        path.write_bytes(case.content())
        print(json.dumps({"case": title, **attempt(path, case.options)}), flush=True)
    for title, make in CUT.items():
        whole = make()
        load_torch(whole)
        path.write_bytes(whole)
        accepted = []
        for length in reversed(range(len(whole))):
            os.truncate(path, length)
            if attempt(path, {})["kind"] != "FormatError":
                accepted.append(length)
        print(json.dumps({"case": f"cut: {title}", "accepted": accepted}), flush=True)


if __name__ == "__main__":
    main()
