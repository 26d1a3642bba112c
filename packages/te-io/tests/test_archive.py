"""Archives that are opened, not loaded: what they tell, what they cost; and shards."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import te_tensor as te
from te_io import (
    FormatError,
    UnknownTensorError,
    load_into_module,
    load_metadata,
    load_safetensors,
    open_safetensors,
    save_safetensors,
)
from te_io.writing import parse_size


@pytest.fixture
def path(tmp_path) -> Path:
    shared = np.arange(4.0)
    state = {
        "w": te.Tensor(np.arange(12).reshape(4, 3), dtype="bfloat16"),
        "b": shared,
        "tied": shared,
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "one": np.array(7, np.float32),
    }
    save_safetensors(state, tmp_path / "model.safetensors", metadata={"epoch": "20"})
    return tmp_path / "model.safetensors"


# -- opening --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_what_an_archive_tells(path, kind):
    sources = {"path": path, "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes())}
    with open_safetensors(sources[kind]) as archive:
        assert set(archive) == set(archive.keys()) == {"w", "b", "tied", "flags", "none", "one"}
        assert len(archive) == 6
        assert "w" in archive and "x" not in archive and 3 not in archive
        assert archive.shapes["w"] == (4, 3)
        assert archive.dtypes["w"] == te.bfloat16
        assert archive.shapes["tied"] == (4,)
        assert archive.metadata == {"epoch": "20"}
        assert archive["w"][1:3, ::2].tolist() == [[3, 5], [6, 8]]
        assert archive["one"].item() == 7
        assert archive["none"].shape == (0, 3)
        assert archive["flags"].tolist() == [True, False]
        assert archive["tied"] is archive["b"] is archive.get("b")
        assert "6 tensors" in repr(archive)
        assert archive.read("w").writable
        assert not archive["w"].writable
    assert archive.get("x") is None


def test_an_unknown_name(path):
    with open_safetensors(path) as archive:
        for look in (archive.__getitem__, archive.read, archive.entry):
            with pytest.raises(UnknownTensorError, match="'x': there is no such tensor") as caught:
                look("x")
            assert isinstance(caught.value, KeyError)
            assert str(caught.value).startswith(f"{path}: tensor 'x'")


def test_after_it_is_closed(path):
    with open_safetensors(path) as archive:
        kept = archive["w"]
    assert kept.tolist()[3] == [9, 10, 11]
    for look in (archive.__getitem__, archive.read):
        with pytest.raises(ValueError, match="closed"):
            look("w")
    assert archive.shapes["w"] == (4, 3)


def test_writing_to_loaded_tensors_leaves_the_file(path):
    before = path.read_bytes()
    for options in ({}, {"mmap": True}, {"mmap": False}):
        state = load_safetensors(path, **options)
        with state["b"].lock() as array:
            array[:] = 7
        assert state["tied"].tolist() == [7] * 4
        assert state["w"].tolist()[0] == [0, 1, 2]
    assert path.read_bytes() == before
    assert load_safetensors(path)["b"].tolist() == [0, 1, 2, 3]


def test_mapped_tensors_have_locks_and_marks_of_their_own(path):
    """A change to one is no change to another of the same file."""
    state = load_safetensors(path)
    x = te.Tensor([1.0, 2.0, 3.0, 4.0], dtype="float64", requires_grad=True)
    product = (x * state["b"]).sum()
    with state["one"].lock() as array:
        array[...] = 0
    product.backward()
    assert x.grad.tolist() == [0, 1, 2, 3]
    product = (x * state["b"]).sum()
    with state["b"].lock() as array:
        array[...] = 0
    with pytest.raises(RuntimeError):
        product.backward()


def test_saving_over_a_file_that_is_mapped(path):
    """Loaded tensors keep their values, also those that are saved to their own file."""
    state = load_safetensors(path)
    with open_safetensors(path) as archive:
        save_safetensors({"w": state["w"], "new": state["b"][1:]}, path)
        assert archive["b"].tolist() == state["b"].tolist() == [0, 1, 2, 3]
    again = load_safetensors(path)
    assert again["w"].tolist() == state["w"].tolist()
    assert again["new"].tolist() == [1, 2, 3]


def test_a_header_that_is_not_padded(tmp_path):
    """Other writers don't align: such tensors are read, not mapped."""
    header = b'{"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}'
    for spaces in range(8):
        text = header + b" " * spaces
        content = len(text).to_bytes(8, "little") + text + np.array([1.5, 2.5]).tobytes()
        (tmp_path / "f").write_bytes(content)
        for x in (open_safetensors(tmp_path / "f")["x"], load_safetensors(content)["x"]):
            assert x.tolist() == [1.5, 2.5]
            assert x.data.flags.aligned


def test_where_nothing_can_be_mapped(path, monkeypatch):
    """As on some network file systems."""

    def refuse(*arguments, **options):
        raise OSError("no such device")

    monkeypatch.setattr("te_io.archive.mmap.mmap", refuse)
    with open_safetensors(path) as archive:
        assert archive["w"][3].tolist() == [9, 10, 11]
    assert load_safetensors(path)["b"].tolist() == [0, 1, 2, 3]


def test_no_file_is_left_open(path):
    """It would be a ResourceWarning, which is an error here."""
    assert open_safetensors(path)["b"].tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError):
        open_safetensors(path)


# -- what it costs --------------------------------------------------------------------------

MEMORY = """
import sys
from time import perf_counter
from te_io import load_into_module, load_safetensors, open_safetensors

def megabytes():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmRSS:")[1].split()[0]) / 1024

before, times = megabytes(), []
for _ in range(3):  # other programs may take the processor
    begin = perf_counter()
    archive = open_safetensors(sys.argv[1])
    shapes, one = archive.shapes, archive["t7"]
    state = load_safetensors(sys.argv[1])
    times.append(perf_counter() - begin)
seconds, added = min(times), megabytes() - before
assert one[100:110].tolist() == [0] * 10
touched = megabytes() - before
assert float(state["t3"].sum().item()) == 0
one_tensor = megabytes() - before
print(seconds, added, touched, one_tensor)
"""


def sparse(path: Path, number: int, size: int) -> None:
    """A file of zeros, which takes no room on the disk where files may have holes."""
    header = {
        f"t{i}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(number)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + number * size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
@pytest.mark.parametrize(
    ("number", "allowed"),
    [pytest.param(10, 16, id="100MB"), pytest.param(50, 50, id="500MB", marks=pytest.mark.slow)],
)
def test_opening_takes_no_time_and_no_memory(tmp_path, number, allowed):
    sparse(tmp_path / "f", number, 10_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, added, touched, one_tensor = map(float, done.stdout.split())
    assert seconds < 0.1
    assert added < allowed
    assert touched - added < 3
    assert one_tensor - touched < 25  # 10 MB, and what the sum itself takes


# -- shards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("7", 7),
        ("7B", 7),
        ("500MB", 500_000_000),
        ("500 MB ", 500_000_000),
        ("0.5G", 500_000_000),
        ("2GiB", 2 << 30),
        ("3kB", 3000),
        ("4Ki", 4096),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("size", ["", "MB", "5XB", "-5MB", "0", 0, -1, 1.5, True, None, "5 5"])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="expected bytes"):
        parse_size(size)


def shards_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


@pytest.fixture
def sharded(tmp_path) -> Path:
    shared = np.arange(5.0)
    state = {f"t{i}": np.full(3, i, np.float32) for i in range(6)}
    state.update({"u": shared, "tied": shared, "large": np.ones(100), "none": np.zeros(0)})
    save_safetensors(
        state, tmp_path / "model.safetensors", metadata={"epoch": "20"}, max_shard_size=30
    )
    return tmp_path


def test_shards(sharded):
    names = sorted(path.name for path in sharded.iterdir())
    assert names[-1] == "model.safetensors.index.json"
    assert names[:-1] == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]
    weight_map = shards_of(sharded)
    assert set(weight_map) == {"t0", "t1", "t2", "t3", "t4", "t5", "tied", "large", "none"}
    sizes = {}
    for path in sharded.glob("*.safetensors"):
        for name, array in safetensors.numpy.load_file(path).items():
            assert weight_map[name] == path.name
            sizes.setdefault(path.name, {})[name] = array.nbytes
    assert all(sum(size.values()) <= 30 or len(size) == 1 for size in sizes.values())
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6 * 12 + 40 + 800}


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_reading_shards(sharded, name):
    state = load_safetensors(sharded / name)
    assert {key for key in state if key.startswith("t")} == {*(f"t{i}" for i in range(6)), "tied"}
    assert state["t4"].tolist() == [4, 4, 4]
    assert state["tied"] is state["u"]
    assert state["large"].shape == (100,)
    assert load_metadata(sharded / name) == {"epoch": "20"}
    with open_safetensors(sharded / name) as archive:
        assert archive.shapes["u"] == (5,)
        assert archive["t2"][1:].tolist() == [2, 2]


def test_shards_go_into_a_module(sharded):
    class Holder:
        def __init__(self):
            self.tensor = te.zeros(3)

        def state_dict(self):
            return {"t4": self.tensor}

        def load_state_dict(self, state, strict=True):
            self.tensor = state["t4"]

    holder = Holder()
    load_into_module(holder, sharded / "model.safetensors", strict=False)
    assert holder.tensor.tolist() == [4, 4, 4]


def test_all_that_fits_is_one_file(tmp_path):
    save_safetensors({"a": np.ones(2), "b": np.ones(2)}, tmp_path / "f", max_shard_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_shards_are_the_same_whatever_the_order(tmp_path):
    state = {"b": np.ones(3), "a": np.zeros(2), "c": np.ones(1)}
    for name, given in (("one", state), ("two", dict(reversed(state.items())))):
        (tmp_path / name).mkdir()
        save_safetensors(given, tmp_path / name / "m.safetensors", max_shard_size="24B")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shards_replace_what_was_there(sharded):
    """Other shards, one file, and shards again: the files of the former archive go."""
    path = sharded / "model.safetensors"
    loaded = load_safetensors(path)
    save_safetensors({"x": np.ones(2), "y": np.ones(2)}, path, max_shard_size=16)
    assert sorted(f.name for f in sharded.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert set(load_safetensors(path)) == {"x", "y"}
    save_safetensors({"x": np.zeros(2), "y": np.zeros(2)}, path, max_shard_size=16)
    assert sorted(f.name for f in sharded.iterdir())[0].startswith("model-2-00001")
    assert load_safetensors(path)["x"].tolist() == [0, 0]
    assert loaded["large"].tolist() == [1] * 100
    save_safetensors({"x": np.ones(2)}, path)
    assert set(load_safetensors(path)) == {"x"}
    save_safetensors({"p": np.ones(2), "q": np.ones(2)}, path, max_shard_size=16)
    assert set(load_safetensors(path)) == {"p", "q"}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "1kB"}])
def test_one_file_replaces_shards(sharded, options):
    """Nothing is left that a reader of the index would take for the archive."""
    (sharded / "other.safetensors").write_bytes(b"is none of its shards")
    path = sharded / "model.safetensors"
    loaded = load_safetensors(path)
    save_safetensors({"x": np.ones(2)}, path, **options)
    assert sorted(f.name for f in sharded.iterdir()) == ["model.safetensors", "other.safetensors"]
    assert set(load_safetensors(path)) == {"x"}
    assert loaded["large"].tolist() == [1] * 100


def test_one_file_in_place_of_its_own_only_shard(tmp_path):
    path, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": path.name}}))
    save_safetensors({"x": np.ones(2)}, path)
    assert list(tmp_path.iterdir()) == [path]


def test_one_file_leaves_what_is_no_index(tmp_path):
    (tmp_path / "m.index.json").write_text('{"pages": 3}')
    save_safetensors({"x": np.ones(2)}, tmp_path / "m")
    assert (tmp_path / "m.index.json").read_text() == '{"pages": 3}'


def test_a_failing_file_leaves_the_shards(sharded, monkeypatch):
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_safetensors({"x": np.ones(2)}, sharded / "model.safetensors")
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 16}])
def test_an_index_is_not_overwritten(sharded, options):
    index = sharded / "model.safetensors.index.json"
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    with pytest.raises(ValueError, match="name of an index: expected that of an archive"):
        save_safetensors({"x": np.ones(2), "y": np.ones(2)}, index, **options)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


def test_a_failing_shard_leaves_what_was_there(sharded, monkeypatch):
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    state = {"a": np.ones(3), "b": np.ones(3), "c": np.array(["text"])}
    with pytest.raises(FormatError):
        save_safetensors(state, sharded / "model.safetensors", max_shard_size=24)
    replaced, calls = os.replace, []

    def third_time(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # that of the index
            raise OSError("no space")
        replaced(*arguments)

    monkeypatch.setattr(os, "replace", third_time)
    with pytest.raises(OSError, match="no space"):
        save_safetensors(
            {"a": np.ones(3), "b": np.ones(3)}, sharded / "model.safetensors", max_shard_size=24
        )
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


BAD_INDEX = {
    "no JSON": ("{", "is no index"),
    "a list": ("[]", "is no index"),
    "nested": ("[" * 100_000, "is no index"),
    "no map": ("{}", "has no weight_map"),
    "a map of numbers": ('{"weight_map": {"t0": 3}}', "'t0': is in 3: expected the name"),
    "twice": ('{"weight_map": {"t0": "a", "t0": "b"}}', "'t0' twice"),
    "a missing tensor": (
        '{"weight_map": {"zz": "model-00001-of-00005.safetensors"}}',
        "'zz': isn't in model-00001",
    ),
    "no tensor of that file": (
        '{"weight_map": {"t5": "model-00001-of-00005.safetensors"}}',
        "'t5': isn't in",
    ),
    **{
        f"outside: {name}": (json.dumps({"weight_map": {"t0": name}}), "expected the name of a")
        for name in [
            "../model-00001-of-00005.safetensors",
            "/etc/passwd",
            "sub/file",
            "..",
            ".",
            "",
            "C:file",
            "a\\b",
            "a\0b",
        ]
    },
}


@pytest.mark.parametrize("kind", BAD_INDEX)
def test_a_bad_index(sharded, kind):
    text, words = BAD_INDEX[kind]
    index = sharded / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(FormatError, match=words) as caught:
        load_safetensors(index)
    assert str(caught.value).startswith(str(sharded))


def test_only_what_the_index_names_is_loaded(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"t0": "model-00003-of-00005.safetensors"}}')
    shard = shards_of(sharded)["t0"]
    tensors = load_safetensors(sharded / shard)
    name = next(iter(tensors))
    index.write_text(json.dumps({"weight_map": {name: shard}}))
    assert list(load_safetensors(index)) == [name]


def test_a_missing_or_damaged_shard(sharded):
    shard = sharded / shards_of(sharded)["t5"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=shard.name):
        load_safetensors(sharded / "model.safetensors")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_safetensors(sharded / "model.safetensors")


def test_an_index_that_is_no_file(tmp_path):
    (tmp_path / "m.safetensors.index.json").mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        load_safetensors(tmp_path / "m.safetensors.index.json")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "m.safetensors")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "other.safetensors.index.json")
