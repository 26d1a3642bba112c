"""Weights of PyTorch's and Hugging Face's transformers in te_nn: the same outputs."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch

import te_nn as nn
import te_tensor as te
from te_io import load_into_module, presets

D, HEADS, FF = 16, 4, 24


def assert_same(ours: te.Tensor, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def inputs() -> tuple[te.Tensor, torch.Tensor]:
    x = np.random.default_rng(0).standard_normal((2, 5, D)).astype(np.float32)
    return te.from_numpy(x), torch.from_numpy(x)


def state_of(module: torch.nn.Module, in_out: bool = False) -> dict[str, np.ndarray]:
    """A state dict with random biases and norms, which begin as constants."""
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(0.3 * rng.standard_normal(parameter.shape)))
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return {n: a.T if in_out and a.ndim == 2 else a for n, a in state.items()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("in_out", [False, True])
def test_multi_head_attention(bias, in_out):
    theirs = torch.nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=True)
    ours = nn.MultiHeadAttention(D, HEADS, bias=bias)
    load_into_module(ours, state_of(theirs, in_out), rename=presets.TORCH, transpose=in_out)
    x, y = inputs()
    assert_same(ours(x), theirs(y, y, y)[0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer(tmp_path, norm_first):
    theirs = torch.nn.TransformerEncoderLayer(
        D, HEADS, FF, activation="gelu", batch_first=True, norm_first=norm_first
    ).eval()
    state_of(theirs)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "f")
    ours = nn.TransformerBlock(D, FF, HEADS, norm="pre" if norm_first else "post")
    load_into_module(ours, tmp_path / "f", rename=presets.TORCH)
    x, y = inputs()
    assert_same(ours(x), theirs(y))


def test_encoder():
    layer = torch.nn.TransformerEncoderLayer(D, HEADS, FF, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()

    class Stack(nn.Module):
        def __init__(self):
            self.layers = nn.ModuleList(
                nn.TransformerBlock(D, FF, HEADS, norm="post", activation="relu") for _ in range(3)
            )

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    ours = Stack()
    load_into_module(ours, state_of(theirs), rename=presets.TORCH)
    x, y = inputs()
    assert_same(ours(x), theirs(y))


class BertLayer(torch.nn.Module):
    """A layer of BERT under Hugging Face's names (post-norm, GELU by erf)."""

    def __init__(self):
        super().__init__()
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        names = {
            "attention_self_query": linear(D, D),
            "attention_self_key": linear(D, D),
            "attention_self_value": linear(D, D),
            "attention_output_dense": linear(D, D),
            "attention_output_LayerNorm": norm(D, 1e-12),
            "intermediate_dense": linear(D, FF),
            "output_dense": linear(FF, D),
            "output_LayerNorm": norm(D, 1e-12),
        }
        self.parts = torch.nn.ModuleDict(names)

    def forward(self, x):
        parts = self.parts

        def heads(name):
            return parts[f"attention_self_{name}"](x).unflatten(-1, (HEADS, -1)).transpose(1, 2)

        attended = torch.nn.functional.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value")
        )
        attended = parts["attention_output_dense"](attended.transpose(1, 2).flatten(2))
        x = parts["attention_output_LayerNorm"](x + attended)
        hidden = torch.nn.functional.gelu(parts["intermediate_dense"](x))
        return parts["output_LayerNorm"](x + parts["output_dense"](hidden))


@pytest.mark.parametrize(("start", "target"), [("", "layers"), ("bert.", "blocks")])
def test_bert(start, target):
    theirs = torch.nn.Sequential(BertLayer(), BertLayer())
    state = {}
    for name, array in state_of(theirs).items():
        number, path = re.fullmatch(r"(\d)\.parts\.(.*)", name).groups()
        path = re.sub(
            r"^(attention)_(self|output)_|^(intermediate|output)_",
            lambda m: ".".join(filter(None, m.groups())) + ".",
            path,
        )
        state[f"{start}encoder.layer.{number}.{path}"] = array
    assert f"{start}encoder.layer.1.attention.output.LayerNorm.weight" in state

    class Model(nn.Module):
        def __init__(self):
            blocks = nn.ModuleList(
                nn.TransformerBlock(D, FF, HEADS, norm="post", layer_norm_eps=1e-12)
                for _ in range(2)
            )
            setattr(self, target, blocks)

        def forward(self, x):
            for block in getattr(self, target):
                x = block(x)
            return x

    ours = Model()
    load_into_module(ours, state, rename=presets.hugging_face_bert(target))
    x, y = inputs()
    assert_same(ours(x), theirs(y))
