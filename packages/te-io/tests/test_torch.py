"""Files that PyTorch writes and reads."""

import pytest
import safetensors.torch
import torch

import te_tensor as te
from te_io import load_into_module, load_metadata, load_safetensors, save_safetensors

CODES = {
    torch.bool: te.bool_,
    torch.uint8: te.uint8,
    torch.int8: te.int8,
    torch.uint16: te.uint16,
    torch.int16: te.int16,
    torch.uint32: te.uint32,
    torch.int32: te.int32,
    torch.uint64: te.uint64,
    torch.int64: te.int64,
    torch.float16: te.float16,
    torch.bfloat16: te.bfloat16,
    torch.float32: te.float32,
    torch.float64: te.float64,
    torch.complex64: te.complex64,
    torch.float8_e4m3fn: te.float8_e4m3fn,
    torch.float8_e5m2: te.float8_e5m2,
    torch.float8_e8m0fnu: te.float8_e8m0fnu,
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def example(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[1.0, 2.0, 4.0], [0.5, 1.0, 8.0]]).to(dtype)


def test_every_dtype_is_here():
    assert set(CODES.values()) == set(te.dtypes.ALL)


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_what_torch_writes(tmp_path, dtype):
    tensor = example(dtype)
    safetensors.torch.save_file({"x": tensor}, tmp_path / "f", metadata={"format": "pt"})
    loaded = load_safetensors(tmp_path / "f")["x"]
    assert loaded.dtype == CODES[dtype]
    assert loaded.shape == (2, 3)
    assert loaded.numpy().tobytes() == bits(tensor)
    assert load_metadata(tmp_path / "f") == {"format": "pt"}


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_what_torch_reads(tmp_path, dtype):
    tensor = example(dtype)
    array = load_safetensors(safetensors.torch.save({"x": tensor}))["x"].numpy()
    save_safetensors({"x": array, "turned": array.T}, tmp_path / "f")
    read = safetensors.torch.load_file(tmp_path / "f")
    assert read["x"].dtype == dtype
    assert bits(read["x"]) == bits(tensor)
    assert bits(read["turned"].T) == bits(tensor)


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_the_same_bytes(tmp_path, dtype):
    state = {"b": example(dtype), "a": example(dtype)[0]}
    content = safetensors.torch.save(state)
    save_safetensors(load_safetensors(content), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == content


def test_a_model_with_tied_weights_goes_back_to_torch(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(7, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    model, other = Model(), Model()
    weight = model.embedding.weight.detach().numpy()
    save_safetensors({"embedding.weight": weight, "head.weight": weight}, tmp_path / "f")
    safetensors.torch.load_model(other, tmp_path / "f")
    assert torch.equal(other.head.weight, model.head.weight)


def test_a_refusing_torch_module_is_reported():
    """Any module with the two methods will do, a foreign one too."""
    with pytest.raises(ValueError, match="Missing key"):
        load_into_module(torch.nn.Linear(2, 3), {})
