"""Layers and the whole block against PyTorch, in value and gradient."""

import math

import numpy as np
import pytest
import torch

import te_nn as nn
import te_tensor as te


def copy_from(ours, theirs):
    ours.load_state_dict({k: v.detach().numpy() for k, v in theirs.state_dict().items()})


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (nn.Linear(5, 3), torch.nn.Linear(5, 3), (2, 4, 5)),
        (nn.Linear(5, 3, bias=False), torch.nn.Linear(5, 3, bias=False), (5,)),
        (nn.LayerNorm((3, 5)), torch.nn.LayerNorm((3, 5)), (2, 3, 5)),
        (nn.LayerNorm(5, eps=0.1), torch.nn.LayerNorm(5, eps=0.1), (2, 5)),
    ],
)
def test_layers_interchange(ours, theirs, shape):
    copy_from(ours, theirs)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    ours(a).exp().sum().backward()
    theirs(b).exp().sum().backward()
    assert np.allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-4, rtol=1e-4)
    for name, parameter in theirs.named_parameters():
        mine = dict(ours.named_parameters())[name].grad.numpy()
        assert np.allclose(mine, parameter.grad.numpy(), atol=1e-4, rtol=1e-4)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})


def test_embedding_interchanges():
    ours, theirs = nn.Embedding(7, 3, padding_idx=2), torch.nn.Embedding(7, 3, padding_idx=2)
    copy_from(ours, theirs)
    indices = np.array([[0, 2, 2], [6, 6, 6]])
    ours(te.Tensor(indices)).exp().sum().backward()
    theirs(torch.tensor(indices)).exp().sum().backward()
    assert np.allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_cross_entropy_loss(options):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 5, 2)), rng.integers(0, 5, (4, 2))
    labels[0, 0] = -100
    weight = rng.uniform(0.5, 2, 5)
    a, b = te.Tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    ours = nn.CrossEntropyLoss(te.Tensor(weight), **options)(a, te.Tensor(labels))
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weight), **options)(b, torch.tensor(labels))
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item())
    assert np.allclose(a.grad.numpy(), b.grad.numpy())


class TorchBlock(torch.nn.Module):
    """The block as its formulas say it, in plain PyTorch, float64."""

    def __init__(self, ours, function):
        super().__init__()
        self.heads, self.function, self.norm = ours.self_attn.num_heads, function, ours.norm
        self.values = {
            name: torch.tensor(p.numpy().astype(np.float64), requires_grad=True)
            for name, p in ours.named_parameters()
        }

    def linear(self, name, x):
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]

    def normed(self, name, x):
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)

    def attend(self, x, mask, distance):
        batch, length, width = x.shape

        def split(name):
            projected = self.linear(f"self_attn.{name}", x)
            return projected.reshape(batch, length, self.heads, -1).transpose(1, 2)

        q, k, v = split("q_proj"), split("k_proj"), split("v_proj")
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        allowed = torch.ones_like(scores, dtype=torch.bool)
        if distance is not None:
            if distance.ndim == 3:
                distance = distance[:, None]
            reachable = torch.isfinite(distance)
            finite = torch.where(reachable, distance, 0.0)
            phi = finite**2 if self.function == "gaussian" else torch.log1p(finite)
            scores = scores - self.values["self_attn.nl_oob.slopes"] * phi
            allowed = allowed & reachable
        if mask is not None and mask.dtype == torch.bool:
            allowed = allowed & mask
        elif mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores.masked_fill(~allowed, -1e300), -1)
        weights = weights * allowed  # rows that may attend to nothing are zero
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.linear("self_attn.o_proj", mixed)

    def forward(self, x, mask=None, distance=None):
        def feed(x):
            return self.linear("linear2", torch.nn.functional.gelu(self.linear("linear1", x)))

        if self.norm == "pre":
            x = x + self.attend(self.normed("norm1", x), mask, distance)
            return x + feed(self.normed("norm2", x))
        x = self.normed("norm1", x + self.attend(x, mask, distance))
        return self.normed("norm2", x + feed(x))


B, S, D, H = 3, 7, 8, 2


def make_distance(kind, rng):
    shape = {"S": (S, S), "B": (B, S, S), "H": (B, H, S, S)}[kind[0]]
    distance = rng.uniform(0, 3, shape)
    if "inf" in kind:
        distance[rng.uniform(size=shape) < 0.3] = np.inf
    if "dead" in kind:
        distance[..., 2, :] = np.inf
    return distance


def make_mask(kind, rng):
    if kind == "padding":
        return np.arange(S) < rng.integers(2, S, (B, 1, 1, 1))
    if kind == "pairs":
        return rng.uniform(size=(S, S)) < 0.6
    if kind == "dead":
        mask = rng.uniform(size=(B, H, S, S)) < 0.6
        mask[1, :, 3] = False
        return mask
    return rng.standard_normal((B, 1, S, S)) if kind == "additive" else None


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("function", ["gaussian", "logarithmic"])
@pytest.mark.parametrize("distance", [None, "S", "B", "H", "S inf", "B inf", "H inf", "S dead"])
@pytest.mark.parametrize("mask", [None, "padding", "pairs", "dead", "additive"])
def test_block_with_nl_oob(norm, function, distance, mask):
    rng = np.random.default_rng(0)
    te.manual_seed(0)
    block = nn.TransformerBlock(D, 16, H, function, norm=norm)
    reference = TorchBlock(block, function)
    x = rng.standard_normal((B, S, D))
    upstream = rng.standard_normal((B, S, D))
    d = None if distance is None else make_distance(distance, rng)
    m = make_mask(mask, rng)
    a = te.Tensor(x, dtype="float32", requires_grad=True)
    b = torch.tensor(x, requires_grad=True)
    da = None if d is None else te.Tensor(d, dtype="float32", requires_grad=True)
    db = None if d is None else torch.tensor(d, requires_grad=True)
    ours = block(a, mask=m, distance=da)
    theirs = reference(b, None if m is None else torch.tensor(m), db)
    ours.backward(upstream)
    theirs.backward(torch.tensor(upstream))

    def close(mine, other):
        return np.allclose(mine.numpy(), other.detach().numpy(), atol=2e-5, rtol=2e-4)

    assert close(ours, theirs)
    assert close(a.grad, b.grad)
    for name, parameter in block.named_parameters():
        if d is None and "slopes" in name:
            assert parameter.grad is None
        else:
            assert close(parameter.grad, reference.values[name].grad), name
    if d is not None:
        assert close(da.grad, db.grad)


def test_attention_as_torch_has_it():
    theirs = torch.nn.MultiheadAttention(D, H, batch_first=True)
    ours = nn.MultiHeadAttention(D, H)
    packed, packed_bias = theirs.in_proj_weight.detach(), theirs.in_proj_bias.detach()
    state = {"o_proj.weight": theirs.out_proj.weight, "o_proj.bias": theirs.out_proj.bias}
    for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = slice(place * D, (place + 1) * D)
        state[f"{name}.weight"], state[f"{name}.bias"] = packed[rows], packed_bias[rows]
    ours.load_state_dict({k: v.detach().numpy() for k, v in state.items()})
    rng = np.random.default_rng(0)
    query, memory = (rng.standard_normal((2, n, D)).astype(np.float32) for n in (3, 5))
    expected, _ = theirs(*(torch.tensor(x) for x in (query, memory, memory)))
    actual = ours(te.Tensor(query), te.Tensor(memory))
    assert np.allclose(actual.numpy(), expected.detach().numpy(), atol=1e-6)


def test_block_as_torch_has_it():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        D, H, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    ours = nn.TransformerBlock(D, 16, H)
    state = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    for part in ("weight", "bias"):
        packed = np.split(state.pop(f"self_attn.in_proj_{part}"), 3)
        for name, value in zip(("q_proj", "k_proj", "v_proj"), packed, strict=True):
            state[f"self_attn.{name}.{part}"] = value
        state[f"self_attn.o_proj.{part}"] = state.pop(f"self_attn.out_proj.{part}")
    ours.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((2, S, D)).astype(np.float32)
    assert np.allclose(ours(te.Tensor(x)).numpy(), theirs(torch.tensor(x)).detach(), atol=1e-5)
