"""Recurrent layers over whole sequences beside PyTorch's, in value and gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import te_tensor as te

torch.set_num_threads(1)

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-9, "atol": 1e-11}}


def reference(name, x, weights, states, *, batch_first, reverse, nonlinearity):
    """PyTorch's layer on these tensors: the output and the last states."""
    options = {"nonlinearity": nonlinearity} if name == "rnn" else {}
    layer = getattr(torch.nn, name.upper())(
        x.shape[2],
        weights[1].shape[1],
        bias=len(weights) > 2,
        batch_first=batch_first,
        dtype=x.dtype,
        **options,
    )
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"][: len(weights)]
    axis = 1 if batch_first else 0
    first = tuple(s[None] for s in states)
    output, last = torch.func.functional_call(
        layer,
        dict(zip(names, weights, strict=True)),
        (x.flip(axis) if reverse else x, first if name == "lstm" else first[0]),
    )
    last = last if name == "lstm" else (last,)
    return output.flip(axis) if reverse else output, *(s[0] for s in last)


def compare(name, arrays, count, upstream, dtype, *, nonlinearity="tanh", **options):
    """Hold outputs and all gradients equal; arrays: x, the states, the weights."""
    mine = [te.Tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
    other = [torch.tensor(np.array(a, dtype), requires_grad=True) for a in arrays]
    extra = {"nonlinearity": nonlinearity} if name == "rnn" else {}
    states = dict(zip(("h0", "c0"), mine[1 : 1 + count], strict=False))
    results = getattr(te, name)(mine[0], *mine[1 + count :], **states, **options, **extra)
    expected = reference(
        name,
        other[0],
        other[1 + count :],
        other[1 : 1 + count],
        nonlinearity=nonlinearity,
        **options,
    )
    for a, b in zip(results, expected, strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), **TOLERANCE[dtype])
    used = [(a, b, g) for a, b, g in zip(results, expected, upstream, strict=True) if g is not None]
    sum(((a * te.Tensor(g, dtype=dtype)).sum() for a, _, g in used), te.zeros(())).backward()
    sum((b * torch.tensor(np.array(g, dtype))).sum() for _, b, g in used).backward()
    for place, (a, b) in enumerate(zip(mine, other, strict=True)):
        np.testing.assert_allclose(
            a.grad.numpy(), b.grad.numpy(), **TOLERANCE[dtype], err_msg=f"gradient of input {place}"
        )


def make(name, rng, *, steps, batch, width, hidden, bias, batch_first):
    """x, the states and the weights; and a gradient for each output."""
    rows, count = GATES[name] * hidden, 2 if name == "lstm" else 1
    shapes = [(batch, steps, width) if batch_first else (steps, batch, width)]
    shapes += [(batch, hidden)] * count + [(rows, width), (rows, hidden)]
    shapes += [(rows,)] * 2 if bias else []
    arrays = [rng.uniform(-1, 1, shape) for shape in shapes]
    upstream = [rng.uniform(-1, 1, (*shapes[0][:2], hidden))]
    upstream += [rng.uniform(-1, 1, (batch, hidden)) for _ in range(count)]
    return arrays, count, upstream


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(GATES)),
    steps=st.integers(1, 9),
    batch=st.integers(1, 7),
    width=st.integers(1, 5),
    hidden=st.integers(1, 5),
    bias=st.booleans(),
    batch_first=st.booleans(),
    reverse=st.booleans(),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    dtype=st.sampled_from(["float32", "float64"]),
    kernels=st.sampled_from(["auto", "numpy"]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
    unused=st.sampled_from([None, 0, 1]),
)
def test_sequences(
    name, steps, batch, width, hidden, bias, batch_first, reverse, nonlinearity, dtype, kernels,
    threads, seed, unused,
):  # fmt: skip
    te.set_num_threads(threads)
    te.set_kernels(kernels)
    rng = np.random.default_rng(seed)
    arrays, count, upstream = make(
        name,
        rng,
        steps=steps,
        batch=batch,
        width=width,
        hidden=hidden,
        bias=bias,
        batch_first=batch_first,
    )
    if unused is not None:
        upstream[unused] = None
    compare(
        name,
        arrays,
        count,
        upstream,
        dtype,
        batch_first=batch_first,
        reverse=reverse,
        nonlinearity=nonlinearity,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", sorted(GATES))
def test_long_sequences_in_threads(name, batch_first, dtype, threads):
    rng = np.random.default_rng(0)
    arrays, count, upstream = make(
        name, rng, steps=90, batch=9, width=12, hidden=16, bias=True, batch_first=batch_first
    )
    arrays[1 + count :] = [0.5 * a for a in arrays[1 + count :]]
    compare(name, arrays, count, upstream, dtype, batch_first=batch_first, reverse=batch_first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(GATES))
def test_without_rows_or_with_one_step(name, dtype):
    for steps, batch in ((1, 3), (4, 0)):
        arrays, count, upstream = make(
            name,
            np.random.default_rng(0),
            steps=steps,
            batch=batch,
            width=2,
            hidden=3,
            bias=True,
            batch_first=False,
        )
        compare(name, arrays, count, upstream, dtype, batch_first=False, reverse=False)


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("name", sorted(GATES))
def test_extremes(name, kernels):
    """Gates that saturate, and values that aren't finite, give what PyTorch gives."""
    te.set_kernels(kernels)
    rng = np.random.default_rng(0)
    arrays, count, _ = make(
        name, rng, steps=3, batch=7, width=1, hidden=2, bias=True, batch_first=False
    )
    arrays[0][...] = np.array([1e30, -1e30, 1e3, -1e3, np.inf, -np.inf, np.nan])[:, None]
    results = getattr(te, name)(
        te.Tensor(arrays[0], dtype="float32"),
        *(te.Tensor(a, dtype="float32") for a in arrays[1 + count :]),
        h0=te.Tensor(arrays[1], dtype="float32"),
    )
    states = [torch.tensor(arrays[1], dtype=torch.float32)]
    states += [torch.zeros_like(states[0])] * (count - 1)
    expected = reference(
        name,
        torch.tensor(arrays[0], dtype=torch.float32),
        [torch.tensor(a, dtype=torch.float32) for a in arrays[1 + count :]],
        states,
        batch_first=False,
        reverse=False,
        nonlinearity="tanh",
    )
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-5, atol=1e-6)
