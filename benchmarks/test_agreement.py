"""That contestants compute the same: `python -m pytest benchmarks` from the repository's root."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .blocks.common import Size
from .contestant import load
from .machine import missing

OURS = "tensor-engine"
SMALL = Size(3, 20, 32, 64, 4)
LARGE = Size(8, 256, 512, 2048, 8)
STEPS = 5


def peers(work: str) -> list[Any]:
    """Each peer of a work; one that isn't installed is skipped."""
    found = []
    for name in load(work).CONTESTANTS:
        if name != OURS:
            module = missing(name)
            skip = pytest.mark.skipif(module is not None, reason=f"{module} isn't installed")
            found.append(pytest.param(name, marks=skip))
    return found


def arrays(result: Any) -> list[np.ndarray]:
    """What a step returned, one result or several, as arrays."""
    parts = result if isinstance(result, tuple) else (result,)
    plain = (part.detach() if hasattr(part, "detach") else part for part in parts)
    return [part.numpy() if hasattr(part, "numpy") else np.asarray(part) for part in plain]


def assert_close(ours: np.ndarray, theirs: np.ndarray, name: str = "") -> None:
    """Within 1e-3 of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    assert np.isfinite(ours).all(), name
    assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max(), name


def results(work: str, contestant: str, size: Any) -> list[np.ndarray]:
    module: ModuleType = load(work)
    step: Callable[[], object] = module.CONTESTANTS[contestant](size)
    return arrays(step())


def assert_same_results(work: str, contestant: str, size: Any) -> None:
    ours, theirs = (results(work, name, size) for name in (OURS, contestant))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("contestant", peers("attention"))
def test_attention_and_its_gradients(contestant: str, both: bool) -> None:
    assert_same_results("attention", contestant, load("attention").Size(300, 2, 3, both))


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("contestant", peers("block_inference"))
def test_block(contestant: str, size: Size) -> None:
    assert_same_results("block_inference", contestant, size)


@pytest.mark.parametrize("contestant", peers("loading"))
def test_loading(contestant: str) -> None:
    assert_same_files("loading", contestant)


@pytest.mark.parametrize("contestant", peers("loading_torch"))
def test_loading_files_of_torch(contestant: str) -> None:
    assert_same_files("loading_torch", contestant)


def assert_same_files(work: str, contestant: str) -> None:
    module = load(work)
    ours, theirs = (module.CONTESTANTS[n](module.Size(2, False))() for n in (OURS, contestant))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.numpy(), np.asarray(theirs[name]))


@pytest.mark.parametrize("what", ["inference", "forward", "both"])
@pytest.mark.parametrize("contestant", peers("lstm"))
def test_lstm_and_its_gradients(contestant: str, what: str) -> None:
    assert_same_results("lstm", contestant, load("lstm").Size(20, 16, 64, what))


@pytest.mark.parametrize("work", ["softmax", "layer_norm", "gelu", "sum", "exp"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("contestant", peers("exp"))
def test_single_functions(contestant: str, work: str, backward: bool) -> None:
    assert_same_results(work, contestant, backward)


@pytest.mark.skipif(missing("torch") is not None, reason="torch isn't installed")
def test_small_operations() -> None:
    gradients = load("small_ops").gradients
    ours, theirs = (arrays(gradients(library, 50)()) for library in ("te_tensor", "torch"))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("contestant", peers("products"))
def test_products(contestant: str) -> None:
    assert_same_results("products", contestant, (70, 50, 60))


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("contestant", peers("block_training"))
def test_gradients_of_the_block(contestant: str, size: Size) -> None:
    ours, theirs = (
        importlib.import_module(f".blocks.{name}_block", __package__).gradients(size)
        for name in ("te", contestant)
    )
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        if name == "self_attn.k_proj.bias":
            continue  # softmax doesn't see it: its gradient is rounding alone
        assert_close(gradient, theirs[name], name)


@pytest.mark.parametrize("contestant", peers("block_training"))
def test_losses_of_training(contestant: str) -> None:
    """Adam, too, does the same."""
    losses = []
    for name in (OURS, contestant):
        step = load("block_training").CONTESTANTS[name](SMALL)
        losses.append([float(arrays(step())[0]) for _ in range(STEPS)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("contestant", peers("minilm"))
def test_minilm(contestant: str) -> None:
    assert_same_results("minilm", contestant, SMALL)


@pytest.mark.parametrize("contestant", peers("generation"))
def test_generation(contestant: str) -> None:
    """The very same tokens."""
    ours, theirs = (
        results("generation", name, Size(1, 40, 32, 64, 4)) for name in (OURS, contestant)
    )
    assert ours[0].tolist() == theirs[0].tolist()


@pytest.mark.parametrize("contestant", peers("stack_training"))
def test_losses_of_a_stack(contestant: str) -> None:
    losses = []
    for name in (OURS, contestant):
        step = load("stack_training").CONTESTANTS[name](SMALL)
        losses.append([float(arrays(step())[0]) for _ in range(STEPS)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("work", "contestant"),
    [
        pytest.param(work, *peer.values, marks=peer.marks)
        for work in ("molecules", "mpi")
        for peer in peers(work)
    ],
)
def test_losses_of_the_molecules(work: str, contestant: str) -> None:
    ours, theirs = (load(work).CONTESTANTS[name](5)() for name in (OURS, contestant))
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("contestant", peers("optimizers"))
def test_steps_of_optimizers(contestant: str, optimizer: str) -> None:
    job = load("optimizers").Job(optimizer, 3, (16, 16))
    steps = [load("optimizers").CONTESTANTS[name](job) for name in (OURS, contestant)]
    for _ in range(STEPS):
        ours, theirs = (arrays(step())[0] for step in steps)
    assert_close(ours, theirs)


@pytest.mark.skipif(missing("torch") is not None, reason="torch isn't installed")
def test_gradients_of_the_molecules() -> None:
    import torch

    import te_tensor as te

    work = load("molecules")
    batch = work.batches(1)[0]
    ours, theirs = work.te_model(), work.torch_model()
    elements, distance, target = (te.from_numpy(array) for array in batch)
    te.mse_loss(ours(elements, distance), target).backward()
    elements, distance, target = (torch.from_numpy(array) for array in batch)
    torch.nn.functional.mse_loss(theirs(elements, distance), target).backward()
    for one, other in zip(ours.blocks, theirs.blocks, strict=True):
        gradients = other.gradients()
        for name, parameter in one.named_parameters():
            if name != "self_attn.k_proj.bias":
                assert_close(parameter.grad.data, gradients[name], name)
    for name in ("embedding.weight", "norm.weight", "readout.weight"):
        one = dict(ours.named_parameters())[name].grad.data
        assert_close(one, dict(theirs.named_parameters())[name].grad.numpy(), name)
