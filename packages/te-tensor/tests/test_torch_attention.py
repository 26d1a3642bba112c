"""Attention beside PyTorch's, which holds all scores at once."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import te_tensor as te

torch.set_num_threads(1)


def draw(*shape, seed=0, low=-1.0, dtype="float32"):
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(dtype)


def compare(ours, theirs, *arrays, rtol):
    mine = [te.Tensor(a, requires_grad=True) for a in arrays]
    other = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    result, expected = ours(*mine), theirs(*other)
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=rtol, atol=rtol)
    grad = draw(*result.shape, seed=9, dtype=result.dtype)
    result.backward(grad)
    expected.backward(torch.from_numpy(grad))
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=rtol)


SIZES = [(1, 1, 1, 1, 1, 1), (2, 3, 5, 7, 4, 4), (2, 2, 9, 6, 3, 5), (2, 4, 128, 128, 16, 16)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scaled_dot_product_attention(sizes, kind, dtype):
    batch, heads, rows, columns, width, out = sizes
    mask = np.random.default_rng(3).random((batch, 1, rows, columns)) < 0.7
    mask[..., 0] = True  # torch gives NaN to a row that may attend to nothing
    mask = mask if kind == "boolean" else draw(rows, columns, dtype=dtype, seed=4)
    given = mask if kind in ("boolean", "additive") else None
    compare(
        lambda q, k, v: te.attention(q, k, v, mask=given, causal=kind == "causal"),
        lambda q, k, v: F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if given is None else torch.from_numpy(given),
            is_causal=kind == "causal",
        ),
        draw(batch, heads, rows, width, dtype=dtype),
        draw(batch, heads, columns, width, dtype=dtype, seed=1),
        draw(batch, heads, columns, out, dtype=dtype, seed=2),
        rtol=1e-10 if dtype == "float64" else 1e-4,
    )


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_heads(key_heads):
    compare(
        te.attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        draw(2, 4, 5, 8, dtype="float64"),
        draw(2, key_heads, 7, 8, dtype="float64", seed=1),
        draw(2, key_heads, 7, 8, dtype="float64", seed=2),
        rtol=1e-10,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias_function", ["logarithmic", "gaussian"])
@pytest.mark.parametrize("shape", [(40, 50), (2, 40, 50), (2, 4, 40, 50)], ids=str)
def test_distance_bias(shape, bias_function, dtype):
    def theirs(q, k, v, distance, slopes):
        distance = distance[:, None] if distance.ndim == 3 else distance
        phi = torch.log1p(distance) if bias_function == "logarithmic" else distance**2
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 - slopes * phi
        return torch.softmax(scores, -1) @ v

    compare(
        lambda q, k, v, d, s: te.attention(
            q, k, v, distance=d, slopes=s, bias_function=bias_function
        ),
        theirs,
        draw(2, 4, 40, 8, dtype=dtype),
        draw(2, 4, 50, 8, dtype=dtype, seed=1),
        draw(2, 4, 50, 8, dtype=dtype, seed=2),
        draw(*shape, low=0, dtype=dtype, seed=3),
        draw(1, 4, 1, 1, dtype=dtype, seed=4),
        rtol=1e-10 if dtype == "float64" else 1e-3,
    )
