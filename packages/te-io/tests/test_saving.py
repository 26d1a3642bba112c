"""What save_safetensors writes, and that it never damages what was there."""

import errno
import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import te_tensor as te
from te_io import FormatError, load_metadata, load_safetensors, save_safetensors

# Each code of the format, the dtype that has it, and the bytes of an element.
CODES = [
    ("BOOL", np.bool_, 1),
    ("U8", np.uint8, 1),
    ("I8", np.int8, 1),
    ("U16", np.uint16, 2),
    ("I16", np.int16, 2),
    ("U32", np.uint32, 4),
    ("I32", np.int32, 4),
    ("U64", np.uint64, 8),
    ("I64", np.int64, 8),
    ("F16", np.float16, 2),
    ("F32", np.float32, 4),
    ("F64", np.float64, 8),
    ("C64", np.complex64, 8),
    ("BF16", ml_dtypes.bfloat16, 2),
    ("F8_E4M3", ml_dtypes.float8_e4m3fn, 1),
    ("F8_E5M2", ml_dtypes.float8_e5m2, 1),
    ("F8_E8M0", ml_dtypes.float8_e8m0fnu, 1),
]
# What the library's own NumPy reader gives; it knows no 8-bit floats.
READABLE = [case for case in CODES if not case[0].startswith("F8")]


def header_of(path: Path) -> dict:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 + length :]


def values(dtype: type, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Small powers of two, which every dtype holds exactly; True and False for bool."""
    numbers = 2.0 ** (np.arange(int(np.prod(shape))) % 3)
    if dtype is np.bool_:
        numbers = numbers > 1
    return np.asarray(numbers).reshape(shape).astype(dtype)


def test_the_table_of_dtypes_is_whole():
    assert {np.dtype(dtype) for _, dtype, _ in CODES} == set(te.dtypes.ALL)


@pytest.mark.parametrize(("code", "dtype", "width"), CODES, ids=[c[0] for c in CODES])
def test_header_and_bytes_of_each_dtype(tmp_path, code, dtype, width):
    array = values(dtype)
    save_safetensors({"x": array}, tmp_path / "f")
    assert header_of(tmp_path / "f") == {
        "x": {"dtype": code, "shape": [2, 3], "data_offsets": [0, 6 * width]}
    }
    assert data_of(tmp_path / "f") == array.tobytes()


@pytest.mark.parametrize(("code", "dtype", "width"), READABLE, ids=[c[0] for c in READABLE])
def test_the_library_reads_each_dtype(tmp_path, code, dtype, width):
    array = values(dtype)
    save_safetensors({"x": array}, tmp_path / "f")
    read = safetensors.numpy.load_file(tmp_path / "f")["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(("code", "dtype", "width"), CODES, ids=[c[0] for c in CODES])
def test_the_library_makes_the_same_file(tmp_path, code, dtype, width):
    arrays = {"b": values(dtype), "a": values(dtype, (4,))}
    save_safetensors(arrays, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == safetensors.numpy.save(arrays)


AWKWARD = {
    "transposed": lambda a: a.T,
    "every second": lambda a: a[:, ::2],
    "reversed": lambda a: a[::-1, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[0], (5, 4)),
    "inner slice": lambda a: a[1:, 1:3],
    "fortran": np.asfortranarray,
    "0-d": lambda a: a[1, 2],
    "0-d array": lambda a: a[1, 2].reshape(()),
    "empty": lambda a: a[:0],
    "empty inside": lambda a: a[:, :0],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian transposed": lambda a: a.astype(a.dtype.newbyteorder(">")).T,
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype),
}


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.complex64])
def test_awkward_memory_is_written_as_it_shows(tmp_path, kind, dtype):
    array = np.asarray(AWKWARD[kind](np.arange(1, 13).reshape(3, 4).astype(dtype)))
    save_safetensors({"x": array, "y": np.ones(2, np.float32)}, tmp_path / "f")
    read = safetensors.numpy.load_file(tmp_path / "f")
    assert read["x"].shape == array.shape
    np.testing.assert_array_equal(read["x"], array)
    np.testing.assert_array_equal(read["y"], 1)


@pytest.mark.parametrize("kind", ["transposed", "every second", "broadcast"])
def test_awkward_bfloat16(tmp_path, kind):
    array = AWKWARD[kind](np.arange(12, dtype=np.float32).reshape(3, 4).astype(te.bfloat16))
    save_safetensors({"x": array}, tmp_path / "f")
    assert data_of(tmp_path / "f") == np.ascontiguousarray(array).tobytes()


def test_views_of_tensors(tmp_path):
    x = te.Tensor(np.arange(12.0, dtype=np.float32).reshape(3, 4), requires_grad=True)
    save_safetensors({"turned": x.T, "part": x[1:, ::3], "whole": x}, tmp_path / "f")
    read = safetensors.numpy.load_file(tmp_path / "f")
    np.testing.assert_array_equal(read["turned"], np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [[4, 7], [8, 11]])


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path):
    state = {code: values(dtype, (3,)) for code, dtype, _ in CODES}
    save_safetensors(state, tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    for code, _, width in CODES:
        assert header_of(tmp_path / "f")[code]["data_offsets"][0] % width == 0
    with safetensors.safe_open(tmp_path / "f", framework="np") as file:
        assert set(file.keys()) == set(state)


def test_no_tensors_at_all(tmp_path):
    save_safetensors({}, tmp_path / "f")
    assert safetensors.numpy.load_file(tmp_path / "f") == {}
    assert load_safetensors(tmp_path / "f") == {}


def test_names_in_any_language(tmp_path):
    save_safetensors({"größe.重み": np.ones(1)}, tmp_path / "f", metadata={"é": "ü"})
    assert list(safetensors.numpy.load_file(tmp_path / "f")) == ["größe.重み"]
    assert load_metadata(tmp_path / "f") == {"é": "ü"}


# -- tied tensors ---------------------------------------------------------------------------


def test_tied_tensors_are_written_once_and_come_back_under_every_name(tmp_path):
    weight = te.randn(100, 10)
    state = {"head.weight": weight, "embedding.weight": weight.detach(), "bias": te.zeros(3)}
    save_safetensors(state, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size < 2 * weight.nbytes
    assert set(header_of(tmp_path / "f")) == {"__metadata__", "embedding.weight", "bias"}

    loaded = load_safetensors(tmp_path / "f")
    assert set(loaded) == set(state)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    np.testing.assert_array_equal(loaded["head.weight"].numpy(), weight.numpy())
    assert load_metadata(tmp_path / "f") == {}

    save_safetensors(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "f").read_bytes()


def test_three_names_and_turned_weights_stay_tied(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    save_safetensors({"c.weight": array, "a.weight": array, "b.weight": array[:]}, tmp_path / "f")
    loaded = load_safetensors(tmp_path / "f", transpose=True)
    assert loaded["a.weight"] is loaded["b.weight"] is loaded["c.weight"]
    np.testing.assert_array_equal(loaded["b.weight"].numpy(), array.T)


def test_views_that_differ_are_not_tied(tmp_path):
    a = np.arange(16.0).reshape(4, 4)
    state = {
        "all": a,
        "turned": a.T,
        "rows": a[:2],
        "flat": a.reshape(16),
        "bits": a.view(np.int64),
        "later": a[1:3],
        "empty": a[:0],
        "empty too": a[:0],
    }
    save_safetensors(state, tmp_path / "f")
    assert set(header_of(tmp_path / "f")) == set(state)  # no metadata: nothing is tied
    for name, tensor in load_safetensors(tmp_path / "f").items():
        np.testing.assert_array_equal(tensor.numpy(), state[name], strict=True)


# -- the same bytes -------------------------------------------------------------------------


def test_the_order_of_the_dict_does_not_matter(tmp_path):
    tied = np.arange(4.0)
    state = {"b": tied, "a": np.ones(3, np.int8), "d": tied, "c": np.float32([[1]])}
    texts = {"z": "1", "a": "2"}
    save_safetensors(state, tmp_path / "one", metadata=texts)
    backwards = dict(reversed(state.items()))
    save_safetensors(backwards, tmp_path / "two", metadata=dict(reversed(texts.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_process_writes_the_same_bytes(tmp_path):
    program = (
        "import sys, numpy as np, te_io\n"
        "shared = np.arange(3.0)\n"
        "state = {n: shared if n in 'ae' else np.full(2, ord(n)) for n in 'abcdefgh'}\n"
        "te_io.save_safetensors(state, sys.argv[1], metadata={c: c for c in 'xyzw'})\n"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


# -- metadata -------------------------------------------------------------------------------


def test_metadata_comes_back(tmp_path):
    texts = {"format": "pt", "": "empty key", "note": 'quotes " and \n lines'}
    save_safetensors({"x": np.ones(1)}, tmp_path / "f", metadata=texts)
    assert load_metadata(tmp_path / "f") == texts
    with safetensors.safe_open(tmp_path / "f", framework="np") as file:
        assert file.metadata() == texts


@pytest.mark.parametrize("texts", [{"a": 1}, {1: "a"}, {"a": None}, {"te_io.tied": "{}"}])
def test_metadata_must_be_text(tmp_path, texts):
    with pytest.raises(FormatError, match="metadata"):
        save_safetensors({"x": np.ones(1)}, tmp_path / "f", metadata=texts)
    assert list(tmp_path.iterdir()) == []


# -- what can't be written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x": np.ones(2, np.complex128)}, "tensor 'x': .*complex128"),
        ({"x": np.array(["a"])}, "tensor 'x': .*<U1"),
        ({"x": np.array([None])}, r"tensor 'x': .*dtype\('O'\)"),
        ({"x": [1.0, 2.0]}, "tensor 'x': is list: expected a Tensor or an ndarray"),
        ({1: np.ones(2)}, "name is 1: expected a str"),
        ({"__metadata__": np.ones(2)}, "tensor '__metadata__'"),
        ({"\ud800": np.ones(2)}, "no Unicode text"),
    ],
)
def test_tensors_that_cannot_be_written(tmp_path, state, words):
    with pytest.raises(FormatError, match=words) as caught:
        save_safetensors({"fine": np.ones(1), **state}, tmp_path / "f.safetensors")
    assert caught.value.file == str(tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thing", [3, [np.ones(1)], np.ones(1), te.ones(1), None])
def test_only_modules_and_dicts_are_saved(tmp_path, thing):
    with pytest.raises(TypeError, match="expected a module"):
        save_safetensors(thing, tmp_path / "f")


def test_a_header_over_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr("te_io.header.MAX_HEADER", 64)
    with pytest.raises(FormatError, match=r"header would have .* expected at most 64"):
        save_safetensors({"a": np.ones(1), "b": np.ones(1)}, tmp_path / "f")


# -- atomic ---------------------------------------------------------------------------------


class Broken(Exception):
    """Stands for anything that goes wrong."""


def fail(*arguments, **options):
    raise Broken


@pytest.fixture
def earlier(tmp_path) -> Path:
    """A folder that holds nothing but a good file."""
    path = tmp_path / "model.safetensors"
    save_safetensors({"x": np.arange(3.0)}, path)
    return path


def assert_untouched(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(load_safetensors(path)["x"].numpy(), np.arange(3.0))


def test_a_file_is_replaced(earlier):
    save_safetensors({"y": np.ones(5)}, earlier)
    assert list(load_safetensors(earlier)) == ["y"]
    assert list(earlier.parent.iterdir()) == [earlier]


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [Broken, OSError(errno.ENOSPC, "no space"), KeyboardInterrupt])
def test_a_failing_call_leaves_the_earlier_file(earlier, monkeypatch, call, error):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(os, call, broken)
    with pytest.raises((Broken, OSError, KeyboardInterrupt)):
        save_safetensors({"y": np.ones(5)}, earlier)
    monkeypatch.undo()
    assert_untouched(earlier)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_failing_write_leaves_the_earlier_file(earlier, monkeypatch, written):
    """The header, the first or the second tensor can't be written."""
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, written

        def write(self, content):
            if self.left == 0:
                raise OSError(errno.ENOSPC, "no space")
            self.left -= 1
            return self.file.write(content)

        def __enter__(self):
            return self

        def __exit__(self, *reason):
            self.file.close()

    def open_full(path, mode="r", *arguments):
        file = opened(path, mode, *arguments)
        return Full(file) if "x" in mode else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="no space"):
        save_safetensors({"y": np.ones(5), "z": np.ones(5)}, earlier)
    monkeypatch.undo()
    assert_untouched(earlier)


def test_nothing_is_left_where_nothing_was(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Broken):
        save_safetensors({"y": np.ones(5)}, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_whole_and_on_the_disk_before_it_is_renamed(earlier, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        mode = os.fstat(descriptor).st_mode
        calls.append("folder" if stat.S_ISDIR(mode) else f"file of {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def noted_replace(source, target):
        assert Path(source).parent == Path(target).parent
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save_safetensors({"y": np.ones(500)}, earlier)
    expected = [f"file of {earlier.stat().st_size}", "rename"]
    assert calls == expected + (["folder"] if hasattr(os, "O_DIRECTORY") else [])


def test_a_folder_that_cannot_be_synced(earlier, monkeypatch):
    """Some file systems refuse to sync folders: that is no failure, a broken disk is."""
    fsync = os.fsync
    number = errno.EINVAL

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "sync")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    save_safetensors({"y": np.ones(5)}, earlier)
    assert list(load_safetensors(earlier)) == ["y"]
    number = errno.EIO
    if hasattr(os, "O_DIRECTORY"):
        with pytest.raises(OSError, match="sync"):
            save_safetensors({"z": np.ones(5)}, earlier)


def test_a_bad_state_leaves_the_earlier_file(earlier):
    with pytest.raises(FormatError):
        save_safetensors({"y": np.ones(5), "z": "text"}, earlier)
    assert_untouched(earlier)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder(earlier):
    earlier.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save_safetensors({"y": np.ones(5)}, earlier)
    finally:
        earlier.parent.chmod(0o700)
    assert_untouched(earlier)


def test_a_folder_that_refuses_new_files(earlier, monkeypatch):
    """As above, where the tests run as root."""

    def refuse(path, mode="r", *arguments):
        raise PermissionError(errno.EACCES, "no new files", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="no new files"):
        save_safetensors({"y": np.ones(5)}, earlier)
    monkeypatch.undo()
    assert_untouched(earlier)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_safetensors({"y": np.ones(5)}, tmp_path / "missing" / "f")


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError):
        save_safetensors({"y": np.ones(5)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        save_safetensors({"y": np.ones(5)}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_is_followed(earlier, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    link = other / "link"
    link.symlink_to(earlier)
    save_safetensors({"y": np.ones(5)}, link)
    assert link.is_symlink()
    assert list(load_safetensors(earlier)) == ["y"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        save_safetensors({"y": np.ones(5)}, tmp_path / "f")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
        (tmp_path / "f").chmod(0o664)
        save_safetensors({"y": np.ones(5)}, tmp_path / "f")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o664
    finally:
        os.umask(mask)
