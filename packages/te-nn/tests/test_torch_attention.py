"""Attention and blocks over drawn options, beside PyTorch's own, in value and gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_nn as nn
import te_tensor as te

drawn = settings(max_examples=40, derandomize=True, deadline=None)


def close(ours, theirs, tolerance=2e-5):
    theirs = theirs.detach().numpy()
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=tolerance * scale, rtol=2e-4)


def linear(layer, x):
    bias = None if layer.bias is None else torch.tensor(layer.bias.numpy())
    return F.linear(x, torch.tensor(layer.weight.numpy()), bias)


@st.composite
def problems(draw):
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    return {
        "batch": draw(st.integers(1, 3)),
        "rows": draw(st.integers(1, 9)),
        "columns": draw(st.none() | st.integers(1, 9)),
        "heads": heads,
        "kv_heads": draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0])),
        "head_dim": draw(st.sampled_from([2, 4, 8])),
        "bias": draw(st.booleans()),
        "mask": draw(st.sampled_from([None, "boolean", "additive", "padding"])),
        "causal": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def make_mask(kind, batch, rows, columns, rng):
    if kind == "additive":
        return rng.standard_normal((batch, 1, rows, columns)).astype(np.float32)
    if kind is None:
        return None
    shape = (batch, 1, 1, columns) if kind == "padding" else (rows, columns)
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True  # PyTorch gives NaN to a row that may attend to nothing
    return mask


@drawn
@given(problems())
def test_attention(problem):
    rng = np.random.default_rng(problem["seed"])
    te.manual_seed(problem["seed"])
    batch, rows, heads = problem["batch"], problem["rows"], problem["heads"]
    width = heads * problem["head_dim"]
    layer = nn.MultiHeadAttention(width, heads, kv_heads=problem["kv_heads"], bias=problem["bias"])
    crossed = problem["columns"] is not None
    columns = problem["columns"] if crossed else rows
    x = rng.standard_normal((batch, rows, width)).astype(np.float32)
    memory = rng.standard_normal((batch, columns, width)).astype(np.float32)
    mask = make_mask(problem["mask"], batch, rows, columns, rng)
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    given_memory = (te.Tensor(memory),) if crossed else ()
    ours = layer(a, *given_memory, mask=mask, causal=problem["causal"])

    source = torch.tensor(memory) if crossed else b

    def split(projection, x, count):
        return linear(projection, x).unflatten(-1, (count, -1)).transpose(1, 2)

    bias = torch.zeros(rows, columns)
    if problem["causal"]:
        bias = torch.zeros(rows, columns).masked_fill(
            ~torch.ones(rows, columns, dtype=torch.bool).tril(), -torch.inf
        )
    if mask is not None and mask.dtype == bool:
        bias = bias + torch.zeros(mask.shape).masked_fill(~torch.tensor(mask), -torch.inf)
    elif mask is not None:
        bias = bias + torch.tensor(mask)
    mixed = F.scaled_dot_product_attention(
        split(layer.q_proj, b, heads),
        split(layer.k_proj, source, problem["kv_heads"]),
        split(layer.v_proj, source, problem["kv_heads"]),
        attn_mask=bias,
        enable_gqa=True,
    )
    theirs = linear(layer.o_proj, mixed.transpose(1, 2).flatten(2))
    close(ours, theirs)
    upstream = rng.standard_normal(x.shape).astype(np.float32)
    ours.backward(upstream)
    theirs.backward(torch.tensor(upstream))
    close(a.grad, b.grad, 1e-4)


def torch_state(ours):
    """A block's state under the names of TransformerEncoderLayer."""
    state = {k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()}
    for part in ("weight", "bias"):
        if f"self_attn.o_proj.{part}" not in state:
            continue
        packed = [state.pop(f"self_attn.{p}_proj.{part}") for p in "qkv"]
        state[f"self_attn.in_proj_{part}"] = torch.cat(packed)
        state[f"self_attn.out_proj.{part}"] = state.pop(f"self_attn.o_proj.{part}")
    return state


@drawn
@given(
    norm=st.sampled_from(["pre", "post"]),
    activation=st.sampled_from(["gelu", "relu"]),
    eps=st.sampled_from([1e-5, 1e-12, 1e-3]),
    layers=st.integers(1, 3),
    final_norm=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    padded=st.booleans(),
    causal=st.booleans(),
    bias=st.booleans(),
)
def test_stacks(norm, activation, eps, layers, final_norm, batch, length, padded, causal, bias):
    te.manual_seed(0)
    ours = nn.TransformerEncoder(
        *(layers, 8, 12, 2), norm=norm, activation=activation, layer_norm_eps=eps,
        final_norm=final_norm, causal=causal, bias=bias,
    )  # fmt: skip
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(
            *(8, 2, 12), dropout=0.0, activation=activation, layer_norm_eps=eps,
            batch_first=True, norm_first=norm == "pre", bias=bias,
        ),
        layers,
        norm=torch.nn.LayerNorm(8, eps, bias=bias) if final_norm else None,
        enable_nested_tensor=False,
    )  # fmt: skip
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        other.load_state_dict(torch_state(one))
    rng = np.random.default_rng(length)
    x = rng.standard_normal((batch, length, 8)).astype(np.float32)
    real = np.arange(length) < rng.integers(1, length + 1, (batch, 1)) if padded else None
    later = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    found = ours(a, mask=None if real is None else real[:, None, None])
    expected = theirs(
        b, mask=later, src_key_padding_mask=None if real is None else torch.tensor(~real)
    )
    close(found, expected, 5e-5)
    found.exp().sum().backward()
    expected.exp().sum().backward()
    close(a.grad, b.grad, 1e-3)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        close(one.linear1.weight.grad, other.linear1.weight.grad, 1e-3)
        close(one.self_attn.o_proj.weight.grad, other.self_attn.out_proj.weight.grad, 1e-3)


@pytest.mark.parametrize("length", [5, 70])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_without_biases(norm, length):
    te.manual_seed(0)
    ours = nn.TransformerBlock(16, 32, 2, norm=norm, activation="relu", bias=False)
    theirs = torch.nn.TransformerEncoderLayer(
        *(16, 2, 32), dropout=0.0, batch_first=True, norm_first=norm == "pre", bias=False
    )
    for layer in (ours.norm1, ours.norm2):
        with layer.weight.lock() as array:
            array[...] = te.rand(16).numpy() + 0.5
    theirs.load_state_dict(torch_state(ours))
    x = te.randn(2, length, 16, requires_grad=True)
    with te.no_grad():
        for _ in range(3):  # the third time by a plan
            planned = ours(x)
    a = torch.tensor(x.numpy(), requires_grad=True)
    found, expected = ours(x), theirs(a)
    close(planned, expected)
    close(found, expected)
    upstream = np.random.default_rng(0).standard_normal(x.shape).astype("float32")
    found.backward(upstream)
    expected.backward(torch.tensor(upstream))
    close(x.grad, a.grad, 1e-4)
    for part in ("linear1", "linear2", "norm1", "norm2"):
        close(getattr(ours, part).weight.grad, getattr(theirs, part).weight.grad, 1e-4)
    close(ours.self_attn.o_proj.weight.grad, theirs.self_attn.out_proj.weight.grad, 1e-4)


@pytest.mark.parametrize("activation", ["silu", "swiglu"])
def test_gated_activations(activation):
    te.manual_seed(0)
    block = nn.TransformerBlock(8, 12, 2, activation=activation)
    x = torch.tensor(te.randn(2, 3, 8).numpy())
    hidden = linear(block.linear1, x)
    if activation == "swiglu":
        first, second = hidden.chunk(2, dim=-1)
        hidden = F.silu(first) * second
    else:
        hidden = F.silu(hidden)
    expected = linear(block.linear2, hidden)
    close(block._feed_forward(te.Tensor(x.numpy()), te.zeros(2, 3, 8)), expected)
