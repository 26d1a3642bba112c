"""Modules of te_nn as TorchScript archives, run by PyTorch at batch sizes it never saw."""

import numpy as np
import pytest
import torch

import te_nn as nn
import te_tensor as te
from te_io import FormatError, export_torchscript, load_into_module, load_torchscript
from te_nn import distances

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SIZES = (1, 2, 4, 9)


def to_torch(tensor):
    return torch.from_numpy(np.array(tensor.data))


def assert_same(ours, theirs):
    if isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-5)


def check(tmp_path, module, inputs, **options):
    """Export at batch size 4; compare outputs and state at others.

    Args:
        tmp_path: a folder.
        module: the module.
        inputs: gives the arguments by name for a batch size.
        **options: of the export.
    """
    path = tmp_path / "model.pt"
    given = inputs(4)
    before = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    export_torchscript(module.eval(), given if len(given) > 1 else given["x"], path, **options)
    loaded = torch.jit.load(path)
    for size in SIZES:
        arguments = inputs(size)
        with torch.no_grad():
            theirs = loaded(*map(to_torch, arguments.values()))
        assert_same(module(**arguments), theirs)
    assert list(loaded.state_dict()) == list(before) == list(load_torchscript(path).tensors)
    for name, array in before.items():
        np.testing.assert_array_equal(module.state_dict()[name].numpy(), array)
    return loaded


def rows(*shape):
    return lambda size: {"x": te.randn(size, *shape)}


@pytest.fixture(autouse=True)
def seeded():
    te.manual_seed(3)


def mlp():
    return nn.Sequential(
        *(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.5), nn.Linear(16, 3)),
        nn.LogSoftmax(-1),
    )


def network_of_images():
    network = nn.Sequential(
        nn.Conv2D(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2D(8),
        nn.PReLU(8),
        nn.MaxPool2D(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2D(8, 8, 3, groups=4, padding_mode="reflect", padding=1),
        nn.GroupNorm(2, 8),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2D(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    network(te.randn(6, 3, 14, 15) * 2 + 1)  # running statistics other than the first ones
    return network


def test_mlp(tmp_path):
    loaded = check(tmp_path, mlp(), rows(6))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == set(loaded.state_dict())
    frozen, x = torch.jit.freeze(loaded.eval()), torch.randn(3, 6)
    torch.testing.assert_close(frozen(x), loaded(x))
    loaded(x).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_images(tmp_path):
    loaded = check(tmp_path, network_of_images(), rows(3, 14, 15))
    assert "1.running_var" in dict(loaded.named_buffers())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent(tmp_path, kind, batch_first):
    module = kind(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    shape = (lambda size: (size, 6, 3)) if batch_first else (lambda size: (6, size, 3))
    check(tmp_path, module, lambda size: {"x": te.randn(*shape(size))})


def test_recurrent_with_a_state(tmp_path):
    module = nn.LSTM(3, 5, batch_first=True)
    given = te.randn(2, 6, 3), (te.randn(1, 2, 5), te.randn(1, 2, 5))
    export_torchscript(module, given, tmp_path / "model.pt", batch_axes=[0, 1, 1])
    loaded = torch.jit.load(tmp_path / "model.pt")
    x, h, c = te.randn(4, 6, 3), te.randn(1, 4, 5), te.randn(1, 4, 5)
    with torch.no_grad():
        theirs = loaded(to_torch(x), (to_torch(h), to_torch(c)))
    assert_same(module(x, (h, c)), theirs)


def block_inputs(shared):
    def inputs(size):
        distance = np.abs(np.random.default_rng(size).standard_normal((size, 5, 5)))
        distance[:, 0] = distance[:, 1, 3] = np.inf  # row 0 may attend to nothing
        x = te.randn(size, 5, 16)
        return {"x": x, "distance": te.Tensor((distance[0] if shared else distance), dtype=x.dtype)}

    return inputs


BLOCKS = {
    "logarithmic": {"nl_oob_config": nn.BiasFunction.LOGARITHMIC, "nl_oob_max_scale": 2.0},
    "gaussian": {"nl_oob_config": "gaussian", "norm": "post", "activation": "relu"},
    "causal": {"nl_oob_config": "gaussian", "causal": True, "bias": False},
    "grouped": {"nl_oob_config": "alibi", "kv_heads": 2, "activation": "silu"},
    "kerple": {"nl_oob_config": "kerple-log", "activation": "swiglu"},
    "heads": {"nl_oob_config": ["gaussian", "logarithmic", "logarithmic", "alibi"]},
    "rotary": {"nl_oob_config": "logarithmic", "rope": nn.Rotary(4), "dropout": 0.1},
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("shared", [False, True])
def test_transformer_block(tmp_path, name, shared):
    block = nn.TransformerBlock(16, 32, 4, **BLOCKS[name])
    check(tmp_path, block, block_inputs(shared), batch_axes=[0, None] if shared else 0)


def test_encoder_with_tokens_and_padding(tmp_path):
    class Classifier(nn.Module):
        def __init__(self):
            self.embedding = nn.Embedding(20, 16)
            self.encoder = nn.TransformerEncoder(2, 16, 32, 4, "gaussian", final_norm=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x, mask):
            hidden = self.embedding(x)
            mixed = self.encoder(hidden, mask=mask, distance=distances.sequence(7))
            return {"classes": self.head(mixed[:, 0]), "hidden": mixed.mean(axis=1)}

    def inputs(size):
        rng = np.random.default_rng(size)
        mask = rng.random((size, 1, 1, 7)) < 0.7
        return {"x": te.Tensor(rng.integers(0, 20, (size, 7))), "mask": te.Tensor(mask)}

    module = Classifier().eval()
    export_torchscript(module, inputs(2), tmp_path / "m.pt")
    loaded = torch.jit.load(tmp_path / "m.pt")
    for size in SIZES:
        given = inputs(size)
        with torch.no_grad():
            theirs = loaded(*map(to_torch, given.values()))
        for name, ours in module(**given).items():
            assert_same(ours, theirs[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(tmp_path, dtype):
    module = nn.TransformerBlock(16, 32, 4).eval().to(dtype)
    x = te.randn(4, 5, 16)
    export_torchscript(module, x.astype(dtype), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    with torch.no_grad():
        theirs = loaded(to_torch(x).to(getattr(torch, dtype)))
    assert theirs.dtype == getattr(torch, dtype)
    ours = module(x.astype(dtype)).astype("float64").numpy()
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(ours, theirs.double().numpy(), tolerance, tolerance)


def test_archive_goes_back_into_a_module(tmp_path):
    module, other = mlp().eval(), mlp().eval()
    export_torchscript(module, te.randn(2, 6), tmp_path / "model.pt")
    load_into_module(other, load_torchscript(tmp_path / "model.pt").tensors)
    x = te.randn(3, 6)
    assert other(x).tolist() == module(x).tolist()


def test_training_mode_is_refused_and_changes_nothing(tmp_path):
    network = network_of_images()
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    with pytest.raises(FormatError, match=r"tensor '1\.\w+': forward changes it.*eval"):
        export_torchscript(network, te.randn(4, 3, 14, 15), tmp_path / "model.pt")
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])
    with pytest.raises(FormatError, match=r"model\.pt: operation Dropout has no rule"):
        export_torchscript(mlp(), te.randn(4, 6), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="expected") as caught:
        export_torchscript(nn.Linear(3, 4), te.randn(2, 5), path)
    assert "batch size 2" in caught.value.__notes__[-1]
    assert path.read_bytes() == b"earlier"
