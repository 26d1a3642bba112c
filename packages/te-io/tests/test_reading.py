"""What load_safetensors gives back, and that it refuses every file that isn't as it must be."""

import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import te_tensor as te
from te_io import (
    FormatError,
    load_metadata,
    load_safetensors,
    py_load_safetensors,
    save_safetensors,
)

DTYPES = sorted(te.dtypes.ALL, key=str)


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def archive(header: object, data: bytes = b"") -> bytes:
    """The bytes of a file with this header, given as bytes or as what JSON can hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = archive(
    {
        "__metadata__": {"epoch": "20"},
        "a": entry("F32", [2], 0, 8),
        "b": entry("U8", [3], 8, 11),
        "c": entry("BOOL", [], 11, 12),
    },
    struct.pack("<ff", 1, 2) + b"\3\4\5" + b"\1",
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (), (0,), (3, 0, 2), (1, 1, 5)])
@pytest.mark.parametrize("through", ["path", "bytes"])
def test_round_trip(tmp_path, dtype, shape, through):
    rng = np.random.default_rng(0)
    count = int(np.prod(shape))
    if dtype == np.bool_:
        array = rng.integers(0, 2, shape).astype(bool)
    else:  # any bits, NaNs and infinities among them
        array = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape)
    path = tmp_path / "f"
    save_safetensors({"x": te.from_numpy(array)}, path)
    loaded = load_safetensors(path if through == "path" else path.read_bytes())["x"]
    assert isinstance(loaded, te.Tensor)
    assert (loaded.dtype, loaded.shape) == (dtype, shape)
    assert loaded.numpy().tobytes() == array.tobytes()


def test_sources(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(GOOD)
    with path.open("rb") as file:
        opened = load_safetensors(file)
    sources = [path, str(path), GOOD, bytearray(GOOD), memoryview(GOOD), io.BytesIO(GOOD)]
    for state in [opened, *map(load_safetensors, sources)]:
        assert {name: tensor.tolist() for name, tensor in state.items()} == {
            "a": [1, 2],
            "b": [3, 4, 5],
            "c": True,
        }
    for source in sources[:-1]:
        assert load_metadata(source) == {"epoch": "20"}


def test_other_sources(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(GOOD)
    for wrong in [3, None, [GOOD]]:
        with pytest.raises(TypeError, match="expected a path, bytes"):
            load_safetensors(wrong)
    with path.open(encoding="latin-1") as file, pytest.raises(TypeError, match="reading bytes"):
        load_safetensors(file)


def test_tensors_own_memory_that_can_be_written(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(GOOD)
    for source in [path, GOOD]:
        state = load_safetensors(source)
        with state["a"].lock() as array:
            array[:] = 7
        assert state["b"].tolist() == [3, 4, 5]
    assert path.read_bytes() == GOOD


def test_files_of_the_library(tmp_path):
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.float16([1.5]),
        "i": np.int64([-1, 2]),
        "z": np.zeros((0, 4)),
        "s": np.array(True),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "f", metadata={"format": "np"})
    loaded = load_safetensors(tmp_path / "f")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array, strict=True)
    assert load_metadata(tmp_path / "f") == {"format": "np"}


def test_the_original_marks_slopes_as_trainable(tmp_path):
    state = {
        "nl_oob.slopes": np.ones((1, 2, 1, 1), np.float32),
        "block.self_attn.nl_oob.slopes": np.ones((1, 2, 1, 1), np.float32),
        "nl_oob.config": np.array(1),
        "rounded.nl_oob.slopes": np.ones((1, 2, 1, 1), np.int64),  # integers have no gradients
        "linear.weight": np.zeros((2, 3), np.float32),
    }
    save_safetensors(state, tmp_path / "f")
    loaded = py_load_safetensors((tmp_path / "f").read_bytes(), True)
    assert {name for name, tensor in loaded.items() if tensor.requires_grad} == {
        "nl_oob.slopes",
        "block.self_attn.nl_oob.slopes",
    }
    assert loaded["linear.weight"].shape == (3, 2)


def test_the_original_function_gives_names_of_te_nn(tmp_path):
    state = {"net.mha.linear_q.weight": np.ones((2, 3)), "net.self_attn.k_proj.bias": np.ones(2)}
    save_safetensors({**state, "mha.nl_oob.slopes": np.ones(2)}, tmp_path / "f")
    loaded = py_load_safetensors(tmp_path / "f")
    assert set(loaded) == {
        "net.self_attn.q_proj.weight",
        "net.self_attn.k_proj.bias",
        "self_attn.nl_oob.slopes",
    }
    assert loaded["self_attn.nl_oob.slopes"].requires_grad


# -- bad files ------------------------------------------------------------------------------

EIGHT = bytes(8)
PLAIN = json.dumps(entry("F32", [2], 0, 8))
TIED = "te_io.tied"

BAD = {
    # what, its bytes, and what the message must say
    "empty": (b"", "it has 0 bytes, expected at least 8"),
    "seven bytes": (bytes(7), "it has 7 bytes"),
    "zeros": (bytes(64), "EOF while parsing"),
    "text": (b"this is no safetensors file at all", "header length of"),
    "zip": (b"PK\x03\x04" + bytes(60), "no safetensors file"),
    "pickle": (pickle.dumps({"a": [1.0] * 20}), "no safetensors file"),
    "header beyond the file": (struct.pack("<Q", 3) + b"{}", "length of 3, expected at most 2"),
    "header beyond everything": (struct.pack("<Q", 2**64 - 1) + b"{}", "18446744073709551615"),
    "no JSON": (archive(b"{nope}"), "invalid JSON"),
    "not UTF-8": (archive(b'{"\xff":1}'), "UTF-8"),
    "a list": (archive([]), "expected"),
    "bytes after the JSON": (archive(b"{}\0\0"), "trailing characters"),
    "deeply nested": (archive(b'{"a":' + b"[" * 100_000), "recursion limit"),
    "half a number": (archive(b'{"a":{"dtype":"F32","shape":[2'), "EOF"),
    "cut short": (GOOD[:-1], "tensor 'c': ends at byte .* cut short"),
    "bytes left over": (GOOD + b"\0", "not fully covered"),
    "overlap": (
        archive({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "invalid offset.*`b`",
    ),
    "gap": (
        archive({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, bytes(20)),
        "invalid offset.*`b`",
    ),
    "backward": (archive({"a": entry("F32", [2], 8, 0)}, EIGHT), "tensor 'a'.* -8 bytes"),
    "unknown dtype": (
        archive({"a": entry("F33", [2], 0, 8)}, EIGHT),
        "tensor 'a': has dtype 'F33': expected one of BOOL, ",
    ),
    "dtype without an array": (
        archive({"a": entry("F4", [2], 0, 1)}, b"\0"),
        "tensor 'a': has dtype 'F4': expected one of BOOL, ",
    ),
    "dtype in small letters": (archive({"a": entry("f32", [2], 0, 8)}, EIGHT), "dtype 'f32'"),
    "shape too large": (
        archive({"a": entry("F32", [3], 0, 8)}, EIGHT),
        r"tensor 'a': has shape \(3,\) of F32, which is 12 bytes, and 8 bytes in the file",
    ),
    "negative shape": (archive({"a": entry("F32", [-2], 0, 8)}, EIGHT), "tensor 'a'.*from 0 up"),
    "shape of fractions": (archive({"a": entry("F32", [2.0], 0, 8)}, EIGHT), "tensor 'a'.*whole"),
    "shape that overflows": (
        archive({"a": entry("F32", [2**62, 2**62], 0, 8)}, EIGHT),
        "tensor 'a': has shape",
    ),
    "empty and too long": (archive({"a": entry("F32", [0, 2**62], 0, 0)}), "tensor 'a': has shape"),
    "empty and longer": (archive({"a": entry("F32", [0, 2**63], 0, 0)}), "tensor 'a': has shape"),
    "too many axes": (archive({"a": entry("F32", [1] * 80, 0, 4)}, bytes(4)), "tensor 'a'"),
    "no dtype": (archive({"a": {"shape": [], "data_offsets": [0, 0]}}), "tensor 'a': lacks"),
    "three offsets": (
        archive({"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1, 1]}}, b"\0"),
        "tensor 'a': lacks",
    ),
    "an entry that is text": (archive({"a": "F32"}), "tensor 'a': lacks"),
    "a name twice": (archive(f'{{"a":{PLAIN},"a":{PLAIN}}}'.encode(), EIGHT), "'a' twice"),
    "a metadata key twice": (
        archive(f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{PLAIN}}}'.encode(), EIGHT),
        "'k' twice",
    ),
    "metadata twice": (archive(b'{"__metadata__":{},"__metadata__":{}}'), "__metadata__"),
    "metadata of numbers": (archive({"__metadata__": {"a": 1}}), "expected a string"),
    "metadata that is a list": (archive({"__metadata__": ["a"]}), "invalid"),
    "a bool of 2": (
        archive({"a": entry("BOOL", [2], 0, 2)}, b"\1\2"),
        "bool of 2: expected 0 or 1",
    ),
    "tied: no JSON": (archive({"__metadata__": {TIED: "{"}}), f"{TIED}.* damaged"),
    "tied: a list": (archive({"__metadata__": {TIED: "[]"}}), f"{TIED}.* damaged"),
    "tied: nested": (archive({"__metadata__": {TIED: "[" * 100_000}}), f"{TIED}.* damaged"),
    "tied: to nothing": (archive({"__metadata__": {TIED: '{"b":"a"}'}}), "'b': is tied to 'a'"),
    "tied: no name": (
        archive({"__metadata__": {TIED: '{"b":["a"]}'}, "a": entry("U8", [1], 0, 1)}, b"\0"),
        "'b': is tied to",
    ),
    "tied: to itself": (
        archive({"__metadata__": {TIED: '{"a":"a"}'}, "a": entry("U8", [1], 0, 1)}, b"\0"),
        "'a': is tied to",
    ),
    "tied: twice": (
        archive({"__metadata__": {TIED: '{"b":"a","b":"a"}'}, "a": entry("U8", [1], 0, 1)}, b"\0"),
        "'b' twice",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path, kind):
    content, words = BAD[kind]
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        load_safetensors(path)
    assert caught.value.file == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(FormatError, match=words) as caught:
        load_safetensors(content)
    assert caught.value.file == "<bytes>"


def test_a_file_without_the_fault_is_accepted():
    """So that the tests above can't pass because of something else in their files."""
    assert load_safetensors(archive({"a": entry("F32", [2], 0, 8)}, EIGHT))["a"].tolist() == [0, 0]
    assert load_safetensors(archive(f'{{"a":{PLAIN}}}'.encode(), EIGHT))["a"].shape == (2,)
    tied = archive({"__metadata__": {TIED: '{"b":"a"}'}, "a": entry("U8", [1], 0, 1)}, b"\0")
    assert set(load_safetensors(tied)) == {"a", "b"}
    assert load_metadata(archive({"__metadata__": None})) == {}


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_file_cut_anywhere_is_refused(tmp_path, length):
    path = tmp_path / "cut"
    path.write_bytes(GOOD[:length])
    for read in [load_safetensors, load_metadata]:
        with pytest.raises(FormatError) as caught:
            read(path)
        assert caught.value.file == str(path)
        with pytest.raises(FormatError):
            read(GOOD[:length])


def test_flipped_bits_are_refused_or_read(tmp_path):
    """Whatever bit is wrong in the header, nothing but a FormatError comes out."""
    refused = 0
    for place in range(len(GOOD) - 12):
        for bit in range(8):
            content = bytearray(GOOD)
            content[place] ^= 1 << bit
            try:
                load_safetensors(content)
            except FormatError:
                refused += 1
    assert refused > 4 * (len(GOOD) - 12)


def test_a_header_over_the_cap(tmp_path):
    """A long header in a longer file: refused before it is read."""
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)  # takes no room on the disk where files may have holes
    with pytest.raises(FormatError, match="length of 100000001, expected at most 100000000"):
        load_safetensors(path)


def test_a_file_replaced_between_the_looks(tmp_path, monkeypatch):
    """The library sees a good file, and we another one."""
    monkeypatch.setattr("te_io.archive._library_opens", lambda path: None)
    path = tmp_path / "f"
    for kind, (content, _) in BAD.items():
        if kind in ("bytes left over", "overlap", "gap"):  # harmless to read
            continue
        path.write_bytes(content)
        with pytest.raises(FormatError):
            load_safetensors(path)


def test_a_file_cut_while_it_is_read(tmp_path):
    path = tmp_path / "f"
    save_safetensors({"x": np.ones(100_000)}, path)

    class Shrinking(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:-1])

    from te_io.archive import SafetensorsFile

    file = SafetensorsFile(Shrinking(path.read_bytes()), "f", lambda: None)
    with pytest.raises(FormatError, match="tensor 'x': the file was cut short"):
        file.read("x")


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        load_metadata(str(tmp_path / "missing"))
    with pytest.raises(FormatError, match="not a regular file"):
        load_safetensors(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatError, match="not a regular file"):
            load_safetensors(tmp_path / "pipe")


def test_the_error_says_everything_and_survives_pickling():
    error = FormatError("is wrong", file="f", tensor="t")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "f: tensor 't': is wrong"
    assert (copy.file, copy.tensor, copy.reason) == ("f", "t", "is wrong")
    assert isinstance(error, ValueError)
    assert str(FormatError("is wrong", file="f")) == "f: is wrong"


def test_a_name_that_stands_for_a_file():
    file = io.BytesIO(b"")
    with pytest.raises(FormatError, match=r"^<file>: "):
        load_safetensors(file)
    # a real file carries its own name
    with Path(__file__).open("rb") as file, pytest.raises(FormatError, match="test_reading"):
        load_safetensors(file)
