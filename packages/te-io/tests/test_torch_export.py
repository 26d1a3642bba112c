"""Exported archives under PyTorch: every rule, on every sample of its operation, and the graph."""

import numpy as np
import pytest
import torch

import te_tensor as te
from te_io import export_torchscript
from te_io.script_rules import RULES, rule
from te_tensor.operation import REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

#: What only training needs.
OF_TRAINING = {
    *("BatchNorm", "BCEWithLogits", "CrossEntropy", "Dropout", "HuberLoss", "L1Loss", "MSELoss"),
    "NLLLoss",
}


class Calls:
    """A module that calls a function, with tensors by name."""

    def __init__(self, function, parameters=None, buffers=None):
        self.function = function
        self.parameters = parameters or {}
        self.buffers = buffers or {}

    def __call__(self, *inputs, **named):
        return self.function(*inputs, **named)

    def named_parameters(self):
        return self.parameters.items()

    def state_dict(self):
        return {**self.parameters, **self.buffers}


def to_torch(tensor):
    if tensor.dtype == te.bfloat16:
        return torch.from_numpy(tensor.astype("float32").numpy().copy()).bfloat16()
    return torch.from_numpy(np.array(tensor.data))


def assert_same(ours, theirs, tolerance=1e-5):
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, (tuple, list)):
        assert type(ours) is type(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, tolerance)
        return
    assert str(theirs.dtype) == f"torch.{ours.dtype}"
    found = theirs.detach().to(torch.float64).numpy()
    np.testing.assert_allclose(ours.astype("float64").numpy(), found, tolerance, tolerance)


def check(path, function, examples, others=(), tolerance=1e-5, **options):
    """Export, and compare on the examples and on others."""
    module = function if isinstance(function, Calls) else Calls(function)
    export_torchscript(module, tuple(examples), path, **options)
    loaded = torch.jit.load(path)
    for inputs in (examples, *others):
        with torch.no_grad():
            assert_same(module(*inputs), loaded(*map(to_torch, inputs)), tolerance)
    return loaded


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.pt")


def samples():
    for kind in RULES:
        for number, sample in enumerate(kind.samples):
            if not sample.kwargs.get("dropout"):
                yield pytest.param(kind, sample, id=f"{kind.__name__}-{number}")


@pytest.mark.parametrize(("kind", "sample"), list(samples()))
def test_rules_on_samples(kind, sample, path):
    inputs = [te.Tensor(array) for array in sample.arrays()]
    axes = [None] * len(inputs)
    check(
        path,
        lambda *x: te.Tensor.apply(kind(*sample.args, **sample.kwargs), *x),
        inputs,
        batch_axes=axes,
        tolerance=1e-9,
    )


def test_operations_without_a_rule():
    assert {kind.__name__ for kind in REGISTRY.values() if kind not in RULES} == OF_TRAINING


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(-1, 4),
        lambda x: x.reshape(x.shape[0], 12) + 1,
        lambda x: x.reshape(x.shape[0] * 3, 4).sum(axis=0, keepdims=True).expand(x.shape[0], 4),
        lambda x: x[-1] + x[0, 1] * x[x.shape[0] - 1, None, 2:3],
        lambda x: x[::-1, ..., 1:][1:],
        lambda x: x[:, ::-2, -3:-1],
        lambda x: x[..., None, 2, 1],
        lambda x: x[:, [2, 0, 0], np.array([1, 1, 3])],
        lambda x: x[:, np.array([True, False, True])],
        lambda x: te.concat([x, x, te.ones(x.shape[0], 1, 4)], axis=1),
        lambda x: te.concat([te.zeros(1, 3, 4), x]).split([1, x.shape[0]])[1],
        lambda x: te.stack([x, te.zeros(*x.shape)], axis=1),
        lambda x: x.split(2, axis=1),
        lambda x: (x.split(2, axis=2)[1], [x, x.T], {"sum": x.sum(), "mean": x.mean(axis=(0, 2))}),
        lambda x: x.permute(2, 0, 1) @ te.full((3, 2), 0.5),
        lambda x: x / x.max() - x.min(axis=-1, keepdims=True) ** 2,
        lambda x: te.where(te.full((3, 1), True), x, 0.0).clip(-0.2, 0.3),
        lambda x: te.pad(x, ((1, 2), (0, 1)), mode="reflect"),
        lambda x: x,
        lambda x: te.ones(3),
    ],
)
def test_lengths_follow_the_batch(function, path):
    draw = te.Generator(0)
    others = [(te.randn(size, 3, 4, generator=draw),) for size in (1, 2, 7)]
    check(path, function, (te.randn(4, 3, 4, generator=draw),), others)


class Swish(te.Operation):
    """x·sigmoid(beta·x), from outside."""

    def __init__(self, beta):
        self.beta = beta

    def forward(self, x):
        return x / (1 + np.exp(-self.beta * x))


def test_rules_of_ones_own(path, monkeypatch):
    def swish(call):
        x, beta = call.inputs[0], call.attribute("beta")
        return f"torch.mul({x}, torch.sigmoid(torch.mul({x}, {beta})))"

    monkeypatch.setitem(RULES, Swish, None)  # so that it goes again
    assert rule(Swish)(swish) is RULES[Swish]
    check(path, lambda x: te.Tensor.apply(Swish(2), x), [te.randn(3)], [[te.randn(5)]])


def test_batch_of_one_as_example(path):
    check(path, lambda x: x.reshape(x.shape[0] * 2, -1), (te.randn(1, 4),), [(te.randn(6, 4),)])


def test_batch_on_another_axis(path):
    others = [(te.randn(3, 9), te.randn(9, 3), te.randn(3, 1))]
    check(
        path,
        lambda x, y, z: (x.T + y) @ z,
        (te.randn(3, 4), te.randn(4, 3), te.randn(3, 1)),
        others,
        batch_axes=[1, 0, None],
    )


def test_state_has_its_names_and_is_shared(path):
    weight = te.randn(4, 3, requires_grad=True)
    parameters = {"layers.0.weight": weight, "head.in": te.randn(2, 4)}
    buffers = {
        "tied": weight.detach(),
        "layers.count": te.Tensor(7),
        "layers.0.off": te.zeros(0),
        "é.a b": te.ones(2),
    }
    module = Calls(lambda x: x @ weight.T @ parameters["head.in"].T, parameters, buffers)
    loaded = check(path, module, (te.randn(2, 3),), [(te.randn(5, 3),)])
    state = loaded.state_dict()
    assert set(state) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert_same(tensor, state[name])
    assert state["tied"].data_ptr() == state["layers.0.weight"].data_ptr()
    assert {n for n, p in loaded.named_parameters()} >= {"layers.0.weight", "head.in"}
    assert dict(loaded.named_parameters())["layers.0.weight"].requires_grad
    assert "layers.count" in dict(loaded.named_buffers())
    with torch.no_grad():
        getattr(loaded.layers, "0").weight.zero_()
        assert not loaded(torch.ones(2, 3)).any()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtypes(path, dtype):
    weight = te.randn(4, 3).astype(dtype)
    module = Calls(lambda x: te.linear(x, weight).gelu().softmax(-1) * 2, {"weight": weight})
    tolerance = {"float64": 1e-9, "bfloat16": 1e-2, "float16": 1e-3}[dtype]
    x = te.randn(5, 3).astype(dtype)
    export_torchscript(module, x, path)
    loaded = torch.jit.load(path)
    theirs = loaded(to_torch(x.astype("float32")).to(getattr(torch, dtype)))
    assert_same(module(x), theirs, tolerance)


def test_integers_and_arguments_by_name(path):
    table = te.randn(10, 4)

    def forward(*, tokens, offset):
        return te.embedding(tokens, table) + offset.astype("float32").sum(axis=1, keepdims=True)

    inputs = {"tokens": np.arange(3, dtype=np.int32), "offset": te.ones(3, 2, dtype="int64")}
    module = Calls(forward, {"table": table})
    export_torchscript(module, inputs, path)
    loaded = torch.jit.load(path)
    tokens, offset = torch.tensor([9, 1], dtype=torch.int32), torch.tensor([[1, 2], [3, 4]])
    ours = forward(tokens=te.Tensor(tokens.numpy()), offset=te.Tensor(offset.numpy()))
    assert_same(ours, loaded(offset=offset, tokens=tokens))
    assert_same(ours, loaded(tokens, offset))


def test_arguments_that_are_tuples(path):
    def forward(x, pair):
        left, (right,) = pair
        return x + left, (right.T * 2,)

    inputs = (te.randn(4, 3), (te.randn(4, 1), [te.randn(3, 4)]))
    export_torchscript(Calls(forward), inputs, path, batch_axes=[0, 0, 1])
    x, left, right = torch.randn(6, 3), torch.randn(6, 1), torch.randn(3, 6)
    one, (other,) = torch.jit.load(path)(x, (left, (right,)))
    assert torch.equal(one, x + left)
    assert torch.equal(other, right.T * 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "additive", "rows"])
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_attention(path, causal, mask, axes):
    rng = np.random.default_rng(0)

    def inputs(batch):
        shape = (batch, 4, 5, 6)[4 - axes :] if axes != 3 else (batch, 5, 6)
        distance = np.abs(rng.standard_normal(shape))
        distance[..., 1, :] = distance[..., 0, 2] = np.inf
        masks = {
            "bool": rng.random((batch, 1, 1, 6)) < 0.5,
            "additive": np.where(rng.random((batch, 1, 5, 6)) < 0.5, 0.0, -np.inf),
            "rows": rng.random((batch, 4, 5, 6)) < 0.2,
        }
        given = [rng.standard_normal((batch, h, s, 8)) for h, s in ((4, 5), (2, 6), (2, 6))]
        return [te.Tensor(a) for a in (*given, distance, masks.get(mask, np.zeros((batch, 1))))]

    def forward(q, k, v, distance, given):
        return te.attention(
            *(q, k, v),
            mask=None if mask is None else given,
            causal=causal,
            offset=1,
            distance=distance,
            slopes=np.array([1.0, 0.5, 0.1, 2.0]),
            rates=np.array([1.0, 2.0, 0.5, 1.0]) if axes == 4 else None,
            bias_function=["gaussian", "logarithmic", "alibi", "gaussian"],
        )

    batched = [0, 0, 0, None if axes == 2 else 0, 0]
    others = [inputs(size) for size in (1, 3)]
    check(path, forward, inputs(2), others, tolerance=1e-9, batch_axes=batched)
