"""Sequentials as one node of the graph, beside the same layers one by one."""

import copy

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import container, recordings
from te_tensor.machine import runs_programs

pytestmark = pytest.mark.skipif(not runs_programs(), reason="no AVX-512 here")


@pytest.fixture(autouse=True)
def _no_recordings():
    recordings.forget()
    yield
    recordings.forget()


def perceptron():
    return nn.Sequential(
        *(nn.Linear(7, 20), nn.GELU(), nn.Linear(20, 33, bias=False), nn.LayerNorm(33), nn.SiLU()),
        *(nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 3)),
    )


def digits():
    return nn.Sequential(
        *(nn.Conv2D(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Conv2D(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def odd_images():
    return nn.Sequential(
        nn.Sequential(nn.Conv2D(3, 8, (3, 2), padding="same", bias=False), nn.SiLU()),
        *(nn.MaxPool2D(2), nn.GELU("tanh")),
        *(nn.Conv2D(8, 6, 3, padding=2, dilation=2, groups=2), nn.ReLU()),
    )


def sequences():
    return nn.Sequential(
        *(nn.Conv1D(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1D(6, 7, 3), nn.GELU()),
        *(nn.Flatten(), nn.Linear(7 * 18, 5)),
    )


def used_twice():
    layer = nn.Linear(9, 9)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.SiLU(), layer)


def flattened_first():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU())


def ends_with_a_pool():
    return nn.Sequential(nn.Conv2D(2, 5, 3), nn.MaxPool2D(2))


MODELS = {
    perceptron: (21, 7),
    digits: (29, 1, 8, 8),
    odd_images: (19, 3, 9, 7),
    sequences: (16, 4, 20),
    used_twice: (2, 5, 9),
    flattened_first: (6, 3, 4),
    ends_with_a_pool: (40, 2, 6, 6),
}
each = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def step(model, x, *, needs_grad=True):
    """The result, all gradients, and what made the result."""
    model.zero_grad()
    x = te.Tensor(x, requires_grad=needs_grad)
    out = model(x)
    weights = np.linspace(-1, 1, out.size, dtype=np.float32).reshape(out.shape)
    (out * te.Tensor(weights)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}
    arrays = {name: None if g is None else g.numpy().copy() for name, g in grads.items()}
    return {"": out.numpy().copy(), **arrays}, type(out.creator).__name__


def layer_by_layer(model, x, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "run_recorded", lambda *given: None)
        found, creator = step(model, x, **options)
    assert creator != "Replay"
    return found


def assert_alike(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        if array is None:
            assert found[name] is None
            continue
        finite = array[np.isfinite(array)]
        scale = max(1.0, np.abs(finite).max(initial=0))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=tolerance * scale)


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@each
def test_every_model(build, threads):
    te.manual_seed(0)
    model, x = build(), numbers(MODELS[build])
    for seed in (1, 2):
        found, creator = step(model, x)
        assert creator == "Replay"
        assert_alike(found, layer_by_layer(model, x))
        again, _ = step(model, x)
        for name, array in found.items():
            assert np.array_equal(array, again[name])
        x = numbers(MODELS[build], seed)
    first, creator = step(model, x, needs_grad=False)
    assert creator == "Replay"
    assert_alike(first, layer_by_layer(model, x, needs_grad=False))


@pytest.mark.parametrize("count", [8, 15, 16, 17, 33, 70])
def test_batches_that_fill_vectors_or_do_not(count, threads):
    te.manual_seed(0)
    model, x = digits(), numbers((count, 1, 8, 8))
    found, creator = step(model, x)
    assert creator == "Replay"
    assert_alike(found, layer_by_layer(model, x))


@each
def test_frozen_parameters(build):
    te.manual_seed(0)
    model, x = build(), numbers(MODELS[build])
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad = bool(number % 2)
    found, creator = step(model, x)
    assert creator == "Replay"
    assert_alike(found, layer_by_layer(model, x))
    assert any(array is None for array in found.values())


@each
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1e30, 1e-40])
def test_unusual_numbers(build, number):
    te.manual_seed(0)
    model, x = build(), numbers(MODELS[build])
    x[3 % len(x), ..., -1] = number
    with np.errstate(all="ignore"):
        assert_alike(step(model, x)[0], layer_by_layer(model, x))
        x = numbers(MODELS[build])
        next(model.parameters())[0, ..., 0] = number
        assert_alike(step(model, x)[0], layer_by_layer(model, x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2D(3, 1, 5, padding=1), (16, 3, 6, 6)),
        (lambda: nn.Conv1D(7, 1, 2, padding=2), (17, 7, 24)),
        (lambda: nn.Conv2D(4, 4, 3, padding=1, groups=4), (16, 4, 8, 8)),
        (lambda: nn.Conv2D(4, 32, 2, padding=1, groups=4), (8, 4, 13, 6)),
        (lambda: nn.Conv2D(8, 8, 3, padding=1, groups=8), (40, 8, 16, 16)),
        (lambda: nn.Conv2D(32, 32, 3, padding=1), (64, 32, 12, 12)),
    ],
)
def test_groups_and_single_outputs(layer, shape, threads):
    te.manual_seed(0)
    model, x = nn.Sequential(layer(), nn.SiLU()), numbers(shape)
    for _ in range(3):
        found, creator = step(model, x)
        assert creator == "Replay"
        assert_alike(found, layer_by_layer(model, x))


class _Doubled(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_inherits_does_what_it_says():
    te.manual_seed(0)
    model = _Doubled(_Doubled(nn.Linear(7, 8), nn.ReLU()), nn.Linear(8, 3))
    x = te.Tensor(numbers((9, 7)))
    wanted = (model[0][0](x).relu() * 2).numpy() @ model[1].weight.numpy().T + model[1].bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), 2 * wanted, rtol=1e-4, atol=1e-5)


def test_checkpoints_run_as_usual():
    te.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 8), nn.ReLU())
    found = []
    for run in (lambda x: te.checkpoint(model, x), model):
        model.zero_grad()
        x = te.Tensor(numbers((9, 7)), requires_grad=True)
        out = run(x)
        out.sum().backward()
        found.append([out.numpy(), x.grad.numpy(), *(p.grad.numpy() for p in model.parameters())])
    assert type(out.creator).__name__ == "Replay"
    for ours, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_views_alone_run_as_usual():
    for model in (
        nn.Sequential(nn.Flatten(), nn.Flatten()),
        nn.Sequential(nn.Flatten(0, 1), nn.Flatten()),
    ):
        x = te.ones(2, 3, 4, requires_grad=True)
        model(x).sum().backward()
        assert (x.grad.numpy() == 1).all()


def test_hooks_of_parameters_are_called_in_the_usual_order():
    te.manual_seed(0)
    model, x = digits(), numbers((16, 1, 8, 8))
    calls = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: calls.append(name))
    assert step(model, x)[1] == "Replay"
    recorded = calls.copy()
    calls.clear()
    layer_by_layer(model, x)
    assert recorded == calls


def test_what_is_put_on_a_layer_is_not_kept():
    model, x = perceptron(), numbers((9, 7))
    model[0].note = te.ones(3)
    assert step(model, x)[1] != "Replay"
    assert not recordings._kept


def test_models_that_are_alike_share_a_recording():
    x = numbers((21, 7))
    models = [perceptron(), perceptron(), copy.deepcopy(perceptron())]
    for model in models:
        found, creator = step(model, x)
        assert creator == "Replay"
        assert_alike(found, layer_by_layer(model, x))
    assert len(recordings._kept) == 1


def test_forwards_before_backwards():
    te.manual_seed(0)
    model = digits()
    inputs = [numbers((16, 1, 8, 8), seed) for seed in range(3)]
    outs = [model(te.Tensor(x)) for x in inputs]
    for out in outs:
        (out * out).sum().backward(retain_graph=True)
    twice = outs[0]
    (twice * twice).sum().backward()
    found = [p.grad.numpy().copy() for p in model.parameters()]
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "run_recorded", lambda *given: None)
        for x in (*inputs, inputs[0]):
            out = model(te.Tensor(x))
            (out * out).sum().backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        wanted = parameter.grad.numpy()
        assert np.abs(ours - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_is_changed_in_between():
    te.manual_seed(0)
    model, x = digits(), numbers((16, 1, 8, 8))
    assert step(model, x)[1] == "Replay"
    model[0].padding = (0, 0)
    model[3].padding = (2, 2)  # 6 x 6, 3 x 3, 5 x 5, 2 x 2
    found, creator = step(model, x)
    assert creator == "Replay"
    assert_alike(found, layer_by_layer(model, x))
    model.load_state_dict({name: 2 * t for name, t in model.state_dict().items()})
    assert_alike(step(model, x)[0], layer_by_layer(model, x))
    setattr(model, "1", nn.SiLU())
    found, creator = step(model, x)
    assert creator == "Replay"
    assert_alike(found, layer_by_layer(model, x))
    model.eval()
    model.train()
    assert step(model, x)[1] == "Replay"


class _Twice(nn.ReLU):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(7, 7), nn.Dropout(0.5), nn.Linear(7, 3)),
        lambda: nn.Sequential(nn.Linear(7, 7), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(7, 7), _Twice()),
        lambda: nn.Sequential(nn.Linear(7, 7)),
        lambda: nn.Sequential(nn.ReLU(), nn.SiLU()),
        lambda: nn.Sequential(),
    ],
)
def test_other_layers_run_as_usual(model):
    te.manual_seed(0)
    model, x = model(), numbers((9, 7))
    out = model(te.Tensor(x))
    assert type(out.creator).__name__ != "Replay"
    assert out.shape[0] == 9


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Sequential(nn.Conv2D(2, 4, 3, stride=2), nn.ReLU()), (16, 2, 9, 9)),
        (lambda: nn.Sequential(nn.Conv2D(2, 4, 3), nn.MaxPool2D(3)), (16, 2, 9, 9)),
        (lambda: nn.Sequential(nn.Conv2D(2, 4, 3), nn.ReLU()), (7, 2, 9, 9)),
        (lambda: nn.Sequential(nn.Conv2D(2, 4, 3), nn.ReLU()), (2, 9, 9)),
        (lambda: nn.Sequential(nn.Conv2D(2, 4, 3), nn.ReLU()), (8, 2, 150, 150)),
    ],
)
def test_other_images_run_as_usual(model, shape):
    te.manual_seed(0)
    model, x = model(), numbers(shape)
    for _ in range(2):
        out = model(te.Tensor(x))
        assert type(out.creator).__name__ != "Replay"
        out.sum().backward()


def test_who_looks_at_operations_sees_them():
    te.manual_seed(0)
    model, x = perceptron(), te.Tensor(numbers((21, 7)))
    with te.profile() as seen:
        model(x)
    assert "Linear" in str(seen)
    with te.no_grad():
        assert model(x).creator is None
    assert not recordings._kept
    calls = []
    handle = model[1].register_forward_hook(lambda *given: calls.append(given))
    model(x)
    assert calls
    handle.remove()
    assert type(model(x).creator).__name__ == "Replay"
    assert type(model(te.Tensor(numbers((7, 21))).transpose(0, 1)).creator).__name__ != "Replay"
    model[1].seen = []
    assert type(model(x).creator).__name__ != "Replay"
    wide = perceptron().to("float64")
    assert wide(te.Tensor(numbers((21, 7)).astype(np.float64))).dtype == np.float64


def test_errors_are_those_of_the_layers():
    model = digits()
    for _ in range(2):
        with pytest.raises(ValueError, match="conv2d") as error:
            model(te.ones(16, 3, 8, 8))
        assert any("0" in note for note in error.value.__notes__)
    assert step(model, numbers((16, 1, 8, 8)))[1] == "Replay"


def test_ever_new_shapes_run_as_usual():
    te.manual_seed(0)
    model = perceptron()
    creators = [step(model, numbers((n, 7)))[1] for n in range(2, 60)]
    made = creators.count("Replay")
    assert creators[:8] == ["Replay"] * 8 and 8 <= made < 12
    assert len(recordings._kept) == made
    # Shapes that come again and again are recorded all the same.
    assert {step(model, numbers((3, 7)))[1] for _ in range(40)} == {"Replay"}
    assert step(model, numbers((70, 7)))[1] == "Replay"
    assert step(perceptron(), numbers((71, 7)))[1] == "Replay"


def test_many_layers():
    te.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(600) for layer in (nn.Linear(3, 3), nn.SiLU())])
    x = numbers((5, 3))
    found, creator = step(model, x)
    assert creator == "Replay"
    assert_alike(found, layer_by_layer(model, x))


def test_training_learns():
    te.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = te.Tensor(rng.integers(0, 2, 64))
    images = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    images[:, 0, :4] += labels.numpy()[:, None, None]
    model, loss_function = digits(), nn.CrossEntropyLoss()
    losses = []
    for _ in range(30):
        model.zero_grad()
        loss = loss_function(model(te.Tensor(images)), labels)
        loss.backward()
        with te.no_grad():
            for parameter in model.parameters():
                parameter[...] = parameter - 0.05 * parameter.grad
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


CHANGES = {
    "append": lambda model: model.append(nn.Tanh()),
    "extend": lambda model: model.extend([nn.SiLU(), nn.ReLU()]),
    "insert": lambda model: model.insert(1, nn.LayerNorm(7)),
    "another layer": lambda model: model.__setitem__(0, nn.Linear(5, 7, bias=False)),
    "another activation": lambda model: model.__setitem__(1, nn.SiLU()),
    "delete": lambda model: model.__delitem__(1),
    "delete some": lambda model: model.__delitem__(slice(1, 3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_sequential_that_changes(change):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.GELU(), nn.Linear(7, 5))
    x = numbers((9, 5))
    before, creator = step(model, x)
    assert creator == "Replay"
    CHANGES[change](model)
    found, creator = step(model, x)
    assert creator == "Replay" or change in ("append",)  # tanh has no recording
    assert_alike(found, layer_by_layer(model, x))
    assert not np.array_equal(before[""], found[""])
    part = model[:2]
    assert_alike(step(part, x)[0], layer_by_layer(part, x))
