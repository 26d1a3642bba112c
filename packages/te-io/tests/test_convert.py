"""Files into other files, and what differs between two."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_io import FormatError, convert_file, load_metadata, load_safetensors, save_safetensors
from te_io.convert import compare
from te_io.loading import load_any


@pytest.fixture
def path(tmp_path) -> Path:
    tied = np.arange(12, dtype=np.float32).reshape(4, 3)
    state = {
        "linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "linear.bias": np.zeros(3, np.float32),
        "embedding.weight": tied,
        "head.weight": tied,
        "half": np.ones(2, np.float16),
        "count": np.array(3),
        "flag": np.array([True]),
    }
    save_safetensors(state, tmp_path / "in.safetensors", metadata={"epoch": "20"})
    return tmp_path / "in.safetensors"


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_safetensors(path).items()}


def test_a_copy_is_the_same_bytes(path):
    target = path.with_name("out.safetensors")
    convert_file(path, target)
    assert target.read_bytes() == path.read_bytes()


def test_into_itself(path):
    before = path.read_bytes()
    convert_file(path, path)
    assert path.read_bytes() == before
    convert_file(path, path, dtype="float16")
    assert load_safetensors(path)["linear.weight"].dtype == te.float16


@pytest.mark.parametrize("dtype", ["bfloat16", te.float16, "float32", "float8_e5m2", "float64"])
def test_floats_are_cast(path, dtype):
    target = path.with_name("out.safetensors")
    convert_file(path, target, dtype=dtype)
    found, given = load_safetensors(target), load_safetensors(path)
    for name, tensor in given.items():
        wanted = tensor.astype(dtype) if tensor.dtype in te.dtypes.FLOATS else tensor
        assert found[name].dtype == wanted.dtype
        assert found[name].tolist() == wanted.tolist()
    assert found["head.weight"] is found["embedding.weight"]
    assert load_metadata(target) == {"epoch": "20"}


def test_numbers_beyond_the_dtype(tmp_path):
    array = np.array([[1, math.inf], [math.nan, 70_000]], np.float32)
    save_safetensors({"fine": np.ones(2), "x": array}, tmp_path / "in")
    with pytest.raises(FormatError, match=r"tensor 'x': has 70000\.0, which is beyond float16"):
        convert_file(tmp_path / "in", tmp_path / "out", dtype="float16")
    assert os.listdir(tmp_path) == ["in"]  # noqa: PTH208
    convert_file(tmp_path / "in", tmp_path / "out", dtype="bfloat16")
    found = load_safetensors(tmp_path / "out")["x"].astype("float32").numpy()
    assert found[0].tolist() == [1, math.inf] and math.isnan(found[1, 0])


def test_weights_are_turned(path):
    target = path.with_name("out.safetensors")
    convert_file(path, target, transpose=True)
    given, found = arrays(path), arrays(target)
    for name in given:
        turned = name in ("linear.weight", "head.weight")
        np.testing.assert_array_equal(found[name], given[name].T if turned else given[name])
    convert_file(target, path, transpose=False)
    with pytest.raises(FormatError, match=r"'linear\.weight'.* stored \[out, in\]"):
        convert_file(target, path, transpose=True)


def test_names_of_the_original_become_ours(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {
        "mha.linear_q.weight": weight,
        "norm1.gamma": weight[0],
        "self_attn.k_proj.bias": weight[1],
    }
    save_safetensors(state, tmp_path / "rust")
    convert_file(tmp_path / "rust", tmp_path / "ours", transpose=True)
    found = arrays(tmp_path / "ours")
    assert set(found) == {"self_attn.q_proj.weight", "norm1.weight", "self_attn.k_proj.bias"}
    np.testing.assert_array_equal(found["self_attn.q_proj.weight"], weight.T)
    convert_file(tmp_path / "rust", tmp_path / "same")
    assert set(arrays(tmp_path / "same")) == set(state)
    save_safetensors({**state, "self_attn.q_proj.weight": weight}, tmp_path / "both")
    with pytest.raises(FormatError, match=r"both: rename gives 'self_attn\.q_proj\.weight'"):
        convert_file(tmp_path / "both", tmp_path / "new", transpose=True)


def test_shards(path):
    target = path.with_name("out.safetensors")
    convert_file(path, target, max_shard_size="48B")
    assert target.with_name("out.safetensors.index.json").exists()
    assert compare(load_any(path).tensors, load_any(target).tensors) == []
    again = path.with_name("again.safetensors")
    convert_file(target, again)
    assert again.read_bytes() == path.read_bytes()


def test_progress(path):
    told = []
    target = path.with_name("out.safetensors")
    convert_file(path, target, dtype="bfloat16", progress=lambda *numbers: told.append(numbers))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done) and set(totals) == {done[-1]}
    assert done[-1] == sum(
        t.nbytes for n, t in load_any(target).tensors.items() if n != "head.weight"
    )


@pytest.mark.parametrize("name", ["out.pt", "out.ckpt", "out.safetensors.index.json"])
def test_names_of_other_formats(path, name):
    with pytest.raises(FormatError, match="name of another format"):
        convert_file(path, path.with_name(name))


@pytest.mark.parametrize(
    "options", [{"dtype": "int8"}, {"dtype": "float7"}, {"max_shard_size": "5XB"}]
)
def test_what_is_no_option(path, options):
    with pytest.raises(ValueError, match="expected"):
        convert_file(path, path.with_name("out"), **options)
    assert not path.with_name("out").exists()


def test_keys_are_for_pytorch_files(path):
    with pytest.raises(FormatError, match="no key 'model'"):
        convert_file(path, path.with_name("out"), key="model")


PEAK = """
import sys
from te_io import convert_file

def anonymous():
    with open("/proc/self/status") as file:
        return int(file.read().split("RssAnon:")[1].split()[0]) / 1024

before, most = anonymous(), 0
def progress(done, total):
    global most
    most = max(most, anonymous() - before)
convert_file(*sys.argv[1:3], dtype="bfloat16", progress=progress)
print(most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
def test_memory_of_one_tensor_is_enough(tmp_path):
    tensors = {f"t{i}": np.ones((1000, 1000), np.float32) for i in range(15)}
    save_safetensors(tensors, tmp_path / "in")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # of 60 MB read and 30 MB written


# -- what kind of file it is ----------------------------------------------------------------


def test_content_decides(tmp_path, path, monkeypatch):
    asked = []

    def reader(source, key=None):
        asked.append((source, key))
        return {"x": te.ones(1)}

    monkeypatch.setattr("te_io.loading.load_torch_state_dict", reader)
    for content in (b"PK\x03\x04" + bytes(20), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", b"\x80\x04."):
        (tmp_path / "f.safetensors").write_bytes(content)
        assert load_any(tmp_path / "f.safetensors", key="k").format == "PyTorch"
        assert asked.pop() == (tmp_path / "f.safetensors", "k")
        assert load_any(content).tensors["x"].tolist() == [1]
        assert asked.pop() == (content, None)
        with (tmp_path / "f.safetensors").open("rb") as file:
            assert load_any(file).name == str(tmp_path / "f.safetensors")
        assert asked.pop()[0].read() == content
    # a safetensors header whose length begins with the byte of a pickle
    text = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(0x80)
    content = len(text).to_bytes(8, "little") + text + b"\7"
    assert content[0] == 0x80
    assert load_any(content).tensors["x"].tolist() == [7]
    assert load_any(path).format == "safetensors"
    assert not asked


def test_sources_that_are_none(tmp_path):
    with pytest.raises(TypeError, match="expected a path, bytes"):
        load_any(3)
    with (tmp_path / "f").open("w+") as file, pytest.raises(TypeError, match="reading bytes"):
        load_any(file)
    with pytest.raises(FileNotFoundError):
        load_any(tmp_path / "missing.pt")
    with pytest.raises(FormatError, match="not a regular file"):
        load_any(tmp_path)


# -- comparing ------------------------------------------------------------------------------


def states(a, b):
    return {"x": te.from_numpy(np.asarray(a))}, {"x": te.from_numpy(np.asarray(b))}


@pytest.mark.parametrize(
    ("a", "b", "what", "greatest"),
    [
        ([1.0, 2.0], [1.0, 2.5], "values", 0.5),
        ([1.0, math.nan], [1.0, math.nan], None, 0),
        ([math.inf, 1.0], [math.inf, 1.0], None, 0),
        ([math.inf], [-math.inf], "values", math.inf),
        ([1.0, 2.0], [math.nan, 2.0], "values", math.nan),
        ([3, -3], [3, 4], "values", 7),
        ([True, False], [True, True], "values", 1),
        ([0.0], [-0.0], None, 0),
        (np.complex64([1j]), np.complex64([1]), "values", math.sqrt(2)),
        (np.float32([1, 2]), np.float64([1, 2]), "dtype", 0),
        (np.float32([1, 2]), np.float64([1, 3]), "dtype", 1),
        (np.zeros((0, 2)), np.zeros((0, 2)), None, 0),
        (np.zeros((2, 1)), np.zeros((1, 2)), "shape", None),
        (np.arange(6.0).reshape(2, 3).T, np.arange(6.0).reshape(2, 3).T.copy(), None, 0),
    ],
)
def test_differences(a, b, what, greatest):
    found = compare(*states(a, b))
    assert [d.what for d in found] == ([] if what is None else [what])
    if found:
        assert found[0].greatest == pytest.approx(greatest, nan_ok=True)


def test_the_greatest_is_found_in_any_block(monkeypatch):
    monkeypatch.setattr("te_io.convert._BLOCK", 3)
    a = np.zeros(10)
    for place in range(10):
        b = a.copy()
        b[place] = place + 1
        assert compare(*states(a, b))[0].greatest == place + 1
    b[0] = math.nan
    assert math.isnan(compare(*states(a, b))[0].greatest)


def test_names_on_one_side():
    found = compare({"a": te.ones(2), "c": te.ones(1)}, {"b": te.ones(3), "c": te.ones(1)})
    assert [(d.name, d.what, d.first) for d in found] == [
        ("a", "only in the first", "(2,)"),
        ("b", "only in the second", "(3,)"),
    ]
