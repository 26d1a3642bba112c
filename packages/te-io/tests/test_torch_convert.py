"""Files that PyTorch itself unpickles, where that is asked for."""

import sys

import numpy as np
import pytest
import torch

import te_tensor as te
from te_io import FormatError, cli, convert_file, load_safetensors
from te_io.convert import load_with_torch


class Foreign:
    """What no safe reader accepts; unpickling it imports this module."""


def state() -> dict[str, torch.Tensor]:
    weight = torch.arange(6.0).reshape(2, 3)
    return {
        "weight": weight,
        "tied": weight,
        "turned": weight.T,
        "half": torch.tensor([1.5]).bfloat16(),
        "conj": torch.tensor([1 + 2j]).conj(),
        "none": torch.zeros(0, 3),
        "flag": torch.tensor(True),
    }


def check(loaded: dict[str, te.Tensor]) -> None:
    assert loaded["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert loaded["tied"].tolist() == loaded["weight"].tolist()
    assert loaded["half"].dtype == te.bfloat16 and loaded["half"].tolist() == [1.5]
    assert loaded["conj"].tolist() == [1 - 2j]
    assert loaded["none"].shape == (0, 3)
    assert loaded["flag"].item() is True


@pytest.mark.parametrize("zip_", [True, False])
def test_what_only_torch_unpickles(tmp_path, zip_):
    saved = {"model": state(), "more": Foreign()}
    torch.save(saved, tmp_path / "f.pt", _use_new_zipfile_serialization=zip_)
    convert_file(tmp_path / "f.pt", tmp_path / "out", key="model", with_torch=True)
    loaded = load_safetensors(tmp_path / "out")
    check(loaded)
    assert loaded["tied"] is loaded["weight"]
    with pytest.raises(FormatError, match=r"holds a dict under 'model'.*it has model, more"):
        load_with_torch(tmp_path / "f.pt")
    for key in ("other", "model.weight.x"):
        with pytest.raises(FormatError, match=f"has no '{key}'"):
            load_with_torch(tmp_path / "f.pt", key=key)


def test_a_whole_module(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "f.pt")
    tensors = load_with_torch(tmp_path / "f.pt").tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    module = torch.nn.Linear(3, 2)
    torch.jit.trace(module, torch.zeros(1, 3)).save(str(tmp_path / "f.pt"))
    tensors = load_with_torch(tmp_path / "f.pt").tensors
    np.testing.assert_array_equal(tensors["weight"].numpy(), module.weight.detach().numpy())


def test_what_torch_does_not_read(tmp_path, capsys):
    (tmp_path / "f.pt").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(FormatError, match="PyTorch can't read it"):
        load_with_torch(tmp_path / "f.pt")
    with pytest.raises(FileNotFoundError):
        load_with_torch(tmp_path / "missing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FormatError, match="holds a list: expected a state dict"):
        load_with_torch(tmp_path / "list.pt")
    torch.save({"x": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "wide.pt")
    with pytest.raises(FormatError, match=r"tensor 'x': .*complex128"):
        load_with_torch(tmp_path / "wide.pt")
    assert cli.main(["convert", "--with-torch", str(tmp_path / "f.pt"), str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_verify_takes_any_number_of_state_dicts(tmp_path, capsys):
    model, ema = torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(2, 3).state_dict()
    path = tmp_path / "f.pt"
    torch.save({"model": model, "ema": ema, "epoch": [3, (torch.zeros(2),)]}, path)
    assert cli.main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: whole, PyTorch, 5 tensors, 80 bytes\n"
    assert cli.main(["verify", str(path), "--key", "ema"]) == 0
    assert capsys.readouterr().out == f"{path}: whole, PyTorch, 2 tensors, 36 bytes\n"
    assert cli.main(["verify", str(path), "--key", "best"]) == 2
    assert "nothing at the key 'best'" in capsys.readouterr().err
    content = path.read_bytes()
    place = content.index(ema["weight"].numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert cli.main(["verify", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_torch(tmp_path, monkeypatch, capsys):
    torch.save(state(), tmp_path / "f.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["convert", "--with-torch", str(tmp_path / "f.pt"), str(tmp_path / "o")]) == 2
    assert 'pip install "te-io[torch]"' in capsys.readouterr().err
