"""Files of PyTorch, kept as text, read without it; make_assets.py says what is in them."""

import base64
import io
import os
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_io import (
    FormatError,
    OpaqueObject,
    load_torch,
    load_torch_state_dict,
    load_torchscript,
)

ASSETS = Path(__file__).parent / "assets"
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.float32([10, 20])


def asset(name: str) -> bytes:
    return base64.b64decode((ASSETS / f"{name}.pt.b64").read_bytes())


def same(tensor: te.Tensor, array: np.ndarray) -> None:
    assert isinstance(tensor, te.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def same_linear(state: dict) -> None:
    assert list(state) == ["linear.weight", "linear.bias"]
    same(state["linear.weight"], WEIGHT)
    same(state["linear.bias"], BIAS)


@pytest.fixture
def file(tmp_path):
    """Writes an asset to a file."""

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.pt"
        path.write_bytes(asset(name))
        return path

    return write


# -- structures -----------------------------------------------------------------------------


def test_a_state_dict():
    same_linear(load_torch(asset("state_dict")))
    same_linear(load_torch_state_dict(asset("state_dict")))


def test_a_nested_state_dict():
    loaded = load_torch(asset("nested"))
    assert list(loaded) == ["epoch", "model"]
    assert loaded["epoch"] == 3
    same(loaded["model"]["linear"]["weight"], WEIGHT)
    for key in [None, "model"]:
        (name,) = state = load_torch_state_dict(asset("nested"), key)
        assert name == "linear.weight"
        same(state[name], WEIGHT)
    assert list(load_torch_state_dict(asset("nested"), "model.linear")) == ["weight"]


def test_an_archive_with_numbers_of_64_bits(monkeypatch):
    """What is larger than 4 GiB, or has more than 65,535 members, is written so."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 16)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(asset("state_dict"))) as old,
        zipfile.ZipFile(content, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert b"PK\6\6" in content.getvalue()  # the end of a directory in 64 bits
    assert b"\xff\xff\xff\xff" in content.getvalue()  # an entry whose numbers are elsewhere
    same_linear(load_torch(content.getvalue()))


def test_a_list_of_pairs():
    loaded = load_torch(asset("pairs"))
    assert [type(pair) for pair in loaded] == [tuple, tuple]
    same_linear(dict(loaded))
    same_linear(load_torch_state_dict(asset("pairs")))


@pytest.mark.parametrize("name", ["values", "values4"])
def test_values_that_are_no_tensors(name):
    loaded = load_torch(asset(name))
    expected = {
        "none": None,
        "truth": (True, False),
        "whole": [0, 255, 65535, -1, 2**40, -(2**80)],
        "real": [0.5, float("inf")],
        "text": "Grüße",
        "bytes": b"\x00\xff",
        "set": {1, "a"},
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "counter": Counter("aab"),
        "default": defaultdict(list, x=[1]),
        "size": (2, 3),
        "dtype": te.bfloat16,
        "device": "cuda:1",
        3: {(0, 1): "key"},
    }
    assert loaded == expected
    assert [type(value) for value in loaded.values()] == [type(v) for v in expected.values()]
    assert loaded["default"]["new"] == []


# -- tensors --------------------------------------------------------------------------------


def test_every_dtype():
    loaded = load_torch(asset("dtypes"))
    assert {tensor.dtype for tensor in loaded.values()} == te.dtypes.ALL
    for name, tensor in loaded.items():
        assert str(tensor.dtype) == name.removeprefix("torch.")
        values = np.float32([0, 1, 2])
        if tensor.dtype == te.float8_e8m0fnu:  # which has no zero
            values[0] = 2.0**-127
        same(tensor, values.astype(tensor.dtype))


def check_views(views: dict) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    pair = np.arange(3, dtype=np.float32)
    same(views["base"], base)
    same(views["turned"], base.T)
    same(views["part"], base[1:, ::2])
    same(views["expanded"], np.float32([[1, 2]] * 3))
    same(views["scalar"], np.array(7))
    same(views["empty"], np.zeros((0, 3), np.float32))
    same(views["conjugate"], (pair - 1j * (pair + 1)).astype(np.complex64))
    same(views["negative"], -(pair + 1))
    assert views["tied"][0] is views["tied"][1] is views["parameter"]
    assert views["parameter"].requires_grad
    assert not views["base"].requires_grad
    # views of one buffer: what is written to one shows in the others
    with views["base"].lock() as array:
        array[1, 2] = 99
    assert views["turned"].data[2, 1] == 99
    assert views["part"].data[0, 1] == 99


@pytest.mark.parametrize("mapped", [True, False])
def test_views(file, mapped):
    path = file("views")
    check_views(load_torch(path if mapped else path.read_bytes()))
    assert path.read_bytes() == asset("views")  # writing to tensors left the file alone


def test_a_legacy_file(file):
    for source in [file("legacy"), asset("legacy")]:
        loaded = load_torch(source)
        same(loaded["linear.weight"], WEIGHT)
        check_views(loaded["views"])


def test_a_big_endian_file():
    loaded = load_torch(asset("big_endian"))
    same(loaded["float"], np.arange(3, dtype=np.float32))
    same(loaded["long"], np.arange(3))
    same(loaded["bf16"], np.ones(2, te.bfloat16))
    same(loaded["uint16"], np.uint16([1, 258]))
    same(loaded["complex"], np.complex64([1 + 2j]))


def test_sources(file):
    path = file("state_dict")
    content = path.read_bytes()
    with path.open("rb") as opened:
        same_linear(load_torch(opened))
    sources = [path, str(path), content, bytearray(content), memoryview(content)]
    for source in sources:
        same_linear(load_torch(source))
        same_linear(load_torch_state_dict(source))
    same_linear(load_torch(io.BytesIO(content)))
    for wrong in [3, None, [content]]:
        with pytest.raises(TypeError, match="expected a path, bytes"):
            load_torch(wrong)


def test_tensors_outlive_the_file(file):
    path = file("state_dict")
    state = load_torch(path)
    if os.name == "posix":  # elsewhere a file can't be removed while it is mapped
        path.unlink()
    same_linear(state)


def test_tensors_lie_on_the_file_and_on_storages_of_their_own(file):
    """A change of one tensor is no change of another that happens to stand in the same file."""
    state = load_torch(file("state_dict"))
    weight, bias = state["linear.weight"], state["linear.bias"]
    assert type(te.storage.owner(weight._array).base).__name__ in ("mmap", "memoryview")
    weight.requires_grad = bias.requires_grad = True
    loss = (weight * weight).sum()
    with bias.lock() as array:
        array += 1
    loss.backward()
    np.testing.assert_array_equal(weight.grad.numpy(), 2 * WEIGHT)


# -- TorchScript ----------------------------------------------------------------------------


def test_a_traced_module(file):
    same_linear(load_torch(file("simple_linear")))
    archive = load_torchscript(file("simple_linear"))
    same_linear(archive.state_dict())
    assert list(archive.parameters) == ["linear.weight", "linear.bias"]
    assert archive.modules["linear"].endswith(".Linear")
    assert "def forward" in next(iter(archive.code.values()))
    assert not archive.frozen


def test_a_scripted_module():
    archive = load_torchscript(asset("scripted"))
    assert list(archive.tensors) == [
        *("scale", "running", "first.weight", "second.weight", "second.bias")
    ]
    assert list(archive.buffers) == ["running"]
    assert list(archive.parameters) == ["scale", "first.weight", "second.weight", "second.bias"]
    assert archive.tensors["first.weight"] is archive.tensors["second.weight"]
    assert archive.tensors["scale"].item() == 2
    same(archive.attributes["plain"], np.arange(4, dtype=np.float32))
    assert archive.attributes["table"] == {"a": 1, "b": 2}
    assert archive.attributes["rates"] == [8000, 16000]
    assert archive.attributes["training"] is True
    assert archive.final["size"] == 7
    assert archive.final["second.in_features"] == 2
    assert archive.extra_files == {"notes.txt": b"hello"}
    assert set(archive.modules) == {"", "first", "second", "act"}


def test_a_frozen_module():
    archive = load_torchscript(asset("frozen"))
    assert archive.frozen
    assert archive.tensors == {}
    same(archive.constants["c0"], WEIGHT)
    same(archive.constants["c1"], BIAS)
    for read in [archive.state_dict, lambda: load_torch(asset("frozen"))]:
        with pytest.raises(FormatError, match="names of its 2 tensors are lost; load_torchscript"):
            read()


def test_a_var_store():
    for state in [load_torch(asset("varstore")), load_torch_state_dict(asset("varstore"))]:
        assert list(state) == ["fc.weight", "norm.running_mean"]
        same(state["fc.weight"], WEIGHT)
    archive = load_torchscript(asset("varstore"))
    assert list(archive.buffers) == ["norm.running_mean"]


def test_torchscript_only():
    with pytest.raises(FormatError, match=r"<bytes>: is no TorchScript archive .*use load_torch"):
        load_torchscript(asset("state_dict"))


# -- what isn't known -----------------------------------------------------------------------


def test_a_whole_module_is_refused_by_name():
    with pytest.raises(FormatError, match=r"names __main__\.SimpleLinear.*on_unknown='opaque'"):
        load_torch(asset("module"))


def test_a_whole_module_as_an_inert_object():
    module = load_torch(asset("module"), on_unknown="opaque")
    assert isinstance(module, OpaqueObject)
    assert (module.name, module.arguments) == ("__main__.SimpleLinear", ())
    assert repr(module).startswith("OpaqueObject('__main__.SimpleLinear', state: training, ")
    linear = module.state["_modules"]["linear"]
    assert linear.name == "torch.nn.modules.linear.Linear"
    assert linear.state["in_features"] == 3
    same(linear.state["_parameters"]["weight"], WEIGHT)
    same_linear(load_torch_state_dict(asset("module"), on_unknown="opaque"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_unknown": "ignore"}, "on_unknown is 'ignore': expected 'raise' or 'opaque'"),
        ({"max_depth": 0}, "max_depth is 0: expected a whole number of at least 1"),
        ({"max_memory": 0.5}, "max_memory is 0.5"),
    ],
)
def test_options(options, words):
    with pytest.raises(ValueError, match=words):
        load_torch(asset("state_dict"), **options)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_memory": 1000}, "more than 1000 bytes .*: max_memory allows more"),
        ({"max_depth": 2}, "more than 2 deep: max_depth allows more"),
        ({"max_opcodes": 50}, "more than 50 steps: max_opcodes allows more"),
    ],
)
@pytest.mark.parametrize("name", ["nested", "simple_linear"])
def test_limits(limit, words, name):
    with pytest.raises(FormatError, match=words):
        load_torch(asset(name), **limit)
    load_torch(asset(name), max_memory=50_000, max_depth=5, max_opcodes=500)


# -- finding a state dict -------------------------------------------------------------------


def test_keys():
    content = asset("nested")
    with pytest.raises(FormatError, match=r"<bytes>: has nothing at the key 'ema': .*'epoch', 'mo"):
        load_torch_state_dict(content, "ema")
    with pytest.raises(FormatError, match=r"at the key 'model\.x': where 'x' .* there are 'linear"):
        load_torch_state_dict(content, "model.x")
    with pytest.raises(FormatError, match="is a int: expected a tensor"):
        load_torch_state_dict(content, "epoch")


def test_no_state_dict(file):
    path = file("values")
    with pytest.raises(FormatError, match=r"has no state dict: .*expected a tensor") as caught:
        load_torch_state_dict(path)
    assert caught.value.file == str(path)


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "missing")
    with pytest.raises(FormatError, match="not a regular file"):
        load_torch(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatError, match="not a regular file"):
            load_torch(tmp_path / "pipe")
