"""Functions on inputs without elements, values and gradients beside PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import te_tensor as te

#: By name: the shapes of the inputs, ours, PyTorch's.
EMPTY = {
    "abs": ([(0, 3)], te.abs, torch.abs),
    "add": ([(0, 3), (3,)], te.add, torch.add),
    "add rows": ([(4, 0), (4, 1)], te.add, torch.add),
    "where": (
        [(0, 3), (1, 3)],
        lambda x, y: te.where(np.ones((0, 3), bool), x, y),
        lambda x, y: torch.where(torch.ones(0, 3, dtype=bool), x, y),
    ),
    "clip": ([(2, 0)], lambda x: te.clip(x, 0, 1), lambda x: x.clip(0, 1)),
    "maximum": ([(2, 0), (1,)], te.maximum, torch.maximum),
    "cumsum": ([(2, 0)], lambda x: te.cumsum(x, 1), lambda x: x.cumsum(1)),
    "max of none": ([(0, 3)], lambda x: te.max(x, 1), lambda x: x.amax(1)),
    "softmax": ([(0, 3)], te.softmax, lambda x: x.softmax(-1)),
    "prelu": ([(0, 3), (3,)], te.prelu, F.prelu),
    "matmul": ([(0, 3), (3, 2)], te.matmul, torch.matmul),
    "matmul of nothing": ([(2, 0), (0, 4)], te.matmul, torch.matmul),
    "matmul batch": ([(0, 2, 3), (3, 4)], te.matmul, torch.matmul),
    "linear": ([(0, 3), (2, 3), (2,)], te.linear, F.linear),
    "linear of nothing": ([(4, 0), (2, 0), (2,)], te.linear, F.linear),
    "linear of nothing, three axes": ([(4, 2, 0), (2, 0), (2,)], te.linear, F.linear),
    "linears": (
        [(0, 3), (2, 3), (4, 3)],
        lambda x, a, b: te.concat(te.linears(x, [a, b]), 1),
        lambda x, a, b: torch.cat([F.linear(x, a), F.linear(x, b)], 1),
    ),
    "linears of nothing": (
        [(2, 4, 0), (1, 0), (3, 0)],
        lambda x, a, b: te.concat(te.linears(x, [a, b]), -1),
        lambda x, a, b: torch.cat([F.linear(x, a), F.linear(x, b)], -1),
    ),
    "concat": ([(0, 3), (2, 3)], lambda *x: te.concat(x), lambda *x: torch.cat(x)),
    "stack": ([(0, 3), (0, 3)], lambda *x: te.stack(x, 1), lambda *x: torch.stack(x, 1)),
    "split": ([(4, 0)], lambda x: te.split(x, 3)[1], lambda x: x.split(3)[1]),
    "expand": ([(1, 0)], lambda x: te.expand(x, (3, 0)), lambda x: x.expand(3, 0)),
    "gather": ([(4, 0)], lambda x: x[[0, 0, 2]], lambda x: x[[0, 0, 2]]),
    "embedding": (
        [(4, 3)],
        lambda w: te.embedding(np.zeros((2, 0), "int64"), w),
        lambda w: F.embedding(torch.zeros(2, 0, dtype=torch.int64), w),
    ),
    "pad": ([(0, 3)], lambda x: te.pad(x, [(1, 2)]), lambda x: F.pad(x, (1, 2))),
    "pad to something": ([(2, 0)], lambda x: te.pad(x, [(1, 2)]), lambda x: F.pad(x, (1, 2))),
    "conv1d": ([(0, 3, 5), (2, 3, 2), (2,)], te.conv1d, F.conv1d),
    "conv2d": ([(0, 3, 5, 5), (2, 3, 2, 2), (2,)], te.conv2d, F.conv2d),
    "max_pool2d": ([(0, 3, 4, 4)], lambda x: te.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2)),
    "avg_pool2d": ([(0, 3, 4, 4)], lambda x: te.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d": (
        [(0, 3, 4, 4)],
        lambda x: te.adaptive_avg_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 2),
    ),
    "layer_norm": (
        [(0, 3), (3,), (3,)],
        lambda x, w, b: te.layer_norm(x, 3, w, b),
        lambda x, w, b: F.layer_norm(x, (3,), w, b),
    ),
    "rms_norm": (
        [(0, 3), (3,)],
        lambda x, w: te.rms_norm(x, 3, w),
        lambda x, w: F.rms_norm(x, (3,), w),
    ),
    "group_norm": (
        [(0, 4, 2), (4,), (4,)],
        lambda x, w, b: te.group_norm(x, 2, w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
    ),
    "batch_norm": (
        [(0, 3), (3,), (3,)],
        lambda x, w, b: te.batch_norm(x, te.zeros(3), te.ones(3), w, b),
        lambda x, w, b: F.batch_norm(x, torch.zeros(3), torch.ones(3), w, b),
    ),
    "l1_loss": ([(0, 3), (0, 3)], lambda *x: te.l1_loss(*x, "sum"),
                lambda *x: F.l1_loss(*x, reduction="sum")),
    "huber_loss": ([(0,), (0,)], lambda *x: te.huber_loss(*x, "sum"),
                   lambda *x: F.huber_loss(*x, reduction="sum")),
    "bce_with_logits": (
        [(0, 3)],
        lambda x: te.bce_with_logits(x, np.zeros((0, 3), "f4"), reduction="sum"),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.zeros(0, 3), reduction="sum"),
    ),
    "nll_loss": (
        [(0, 3)],
        lambda x: te.nll_loss(x, np.zeros(0, "int64"), reduction="sum"),
        lambda x: F.nll_loss(x, torch.zeros(0, dtype=torch.int64), reduction="sum"),
    ),
    "cross_entropy": (
        [(0, 3)],
        lambda x: te.cross_entropy(x, np.zeros(0, "int64"), reduction="sum"),
        lambda x: F.cross_entropy(x, torch.zeros(0, dtype=torch.int64), reduction="sum"),
    ),
    "attention batch": (
        [(0, 2, 3, 4)] * 3, te.attention, F.scaled_dot_product_attention),
    "attention queries": (
        [(1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 4)], te.attention, F.scaled_dot_product_attention),
    "lstm": (
        [(5, 0, 3), (8, 3), (8, 2)],
        lambda x, ih, hh: te.lstm(x, ih, hh)[0],
        lambda x, ih, hh: torch.zeros(5, 0, 2) + x.sum() * 0 + ih.sum() * 0 + hh.sum() * 0,
    ),
    "gru": (
        [(5, 0, 3), (6, 3), (6, 2)],
        lambda x, ih, hh: te.gru(x, ih, hh)[0],
        lambda x, ih, hh: torch.zeros(5, 0, 2) + x.sum() * 0 + ih.sum() * 0 + hh.sum() * 0,
    ),
    "rotary": (
        [(0, 4)],
        lambda x: te.rotary(x, np.ones((0, 2), "f4"), np.zeros((0, 2), "f4")),
        lambda x: x * 1,
    ),
    "dropout": ([(0, 4)], lambda x: te.dropout(x, 0.5), lambda x: F.dropout(x, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_inputs_without_elements(name):
    shapes, ours, theirs = EMPTY[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    tensors = [te.Tensor(array, requires_grad=True) for array in arrays]
    references = [torch.tensor(array, requires_grad=True) for array in arrays]
    found, wanted = ours(*tensors), theirs(*references)
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), rtol=1e-6)
    found.sum().backward()
    wanted.sum().backward()
    for tensor, reference in zip(tensors, references, strict=True):
        expected = np.zeros(tensor.shape) if reference.grad is None else reference.grad.numpy()
        actual = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
