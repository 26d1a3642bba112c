"""Whatever runs an update rule, and however it is cut: the same bits."""

import copy
from contextlib import suppress

import numpy as np
import pytest

import te_tensor as te
from te_optim import EMA, SGD, Adagrad, Adam, AdamW, RMSProp, clip_gradients
from te_tensor.machine import runs

KINDS = {
    "sgd": lambda **k: SGD(0.1, **k),
    "momentum": lambda **k: SGD(0.1, 0.9, **k),
    "nesterov": lambda **k: SGD(0.1, 0.9, 0.1, True, **k),
    "dampened": lambda **k: SGD(0.1, 0.9, dampening=0.5, **k),
    "adam": lambda **k: Adam(0.1, **k),
    "adam with decay": lambda **k: Adam(0.1, weight_decay=0.1, amsgrad=True, **k),
    "adamw": lambda **k: AdamW(0.1, amsgrad=True, **k),
    "rmsprop": lambda **k: RMSProp(0.1, momentum=0.5, centered=True, **k),
    "rmsprop with decay": lambda **k: RMSProp(0.1, weight_decay=0.1, **k),
    "adagrad": lambda **k: Adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.1, **k),
}
#: Shapes that are gathered, cut and neither.
SHAPES = [(3,), (100,), (2, 2), (), (0,), (41,), (30, 7)]


def kernels_here():
    """All that can be chosen on this machine."""
    before, found = te.kernel_info()["kernels"], ["numpy"]
    for choice in ("avx2", "avx512"):
        with suppress(OSError):
            te.set_kernels(choice)
            found.append(choice)
    te.set_kernels(before)
    return found


KERNELS = kernels_here()
#: How the work is done: kernels, threads, and the elements of a task.
WAYS = [
    *((kernels, 1, 64) for kernels in KERNELS),
    *(("auto", 2, 64), ("auto", 3, 100), ("auto", 2, 1 << 20)),
]


def leaves(dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape) for shape in shapes]
    return [te.Tensor(value, dtype=dtype, requires_grad=True) for value in values]


def train(optimizer, tensors, steps=4):
    rng = np.random.default_rng(1)
    for step in range(steps):
        for place, tensor in enumerate(tensors):
            grad = rng.standard_normal(tensor.shape)
            tensor.grad = None if (step, place) == (1, 2) else grad
        optimizer.step()
    return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_same_bits(kind, dtype, monkeypatch):
    found = []
    for kernels, threads, length in WAYS:
        te.set_kernels(kernels)
        te.set_num_threads(threads)
        monkeypatch.setattr("te_optim.direct.SHORTEST", length)
        tensors = leaves(dtype)
        found.append(train(KINDS[kind](parameters=tensors), tensors))
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_may_come_and_go(kind):
    tensors, others = leaves(), leaves()
    optimizer, reference = KINDS[kind](parameters=tensors), KINDS[kind](parameters=others)
    for kernels in (*KERNELS, *KERNELS):
        te.set_kernels(kernels)
        assert train(optimizer, tensors) == train(reference, others)
    te.set_kernels("numpy")
    others = leaves()
    reference = KINDS[kind](parameters=others)
    wanted = [train(reference, others) for _ in range(2 * len(KERNELS))]
    assert [tensor.numpy().tobytes() for tensor in tensors] == wanted[-1]


@pytest.mark.skipif(not runs(), reason="kernels don't run here")
def test_kernels_are_used_where_they_can_be():
    tensors = leaves()
    optimizer = Adam(parameters=tensors)
    train(optimizer, tensors)
    assert all(run._direct is not None for run in optimizer._plan.runs)


@pytest.mark.skipif(len(KERNELS) < 3, reason="there is one kind of kernels here, or none")
def test_another_choice_of_kernels_holds_from_the_next_step_on():
    tensors = leaves()
    optimizer, ema = Adam(parameters=tensors), EMA(tensors)
    codes = []
    for kernels in ("avx2", "avx512"):
        te.set_kernels(kernels)
        train(optimizer, tensors, 1)
        ema.update()
        directs = [optimizer._plan.runs[0]._direct, ema._direct]
        codes.append([direct._batch.program for direct in directs])
    assert all(one is not other for one, other in zip(*codes, strict=True))


def test_parameters_in_another_order_in_memory():
    values = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float32)
    across = te.from_numpy(np.asfortranarray(values))
    across.requires_grad = True
    (along,) = leaves(shapes=[(30, 7)])
    with along.lock() as array:
        array[...] = values
    train(Adam(parameters=[across]), [across])
    train(Adam(parameters=[along]), [along])
    assert np.array_equal(across.numpy(), along.numpy())


def test_settings_that_change_the_formula():
    tensors = leaves()
    optimizer = SGD(0.1, parameters=tensors)
    for momentum, nesterov, decay in [(0, False, 0), (0.9, False, 0.1), (0.9, True, 0), (0, 0, 0)]:
        optimizer.groups[0] |= {
            "momentum": momentum,
            "nesterov": bool(nesterov),
            "weight_decay": decay,
        }
        train(optimizer, tensors, 1)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in tensors)
    optimizer.groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.step()


def test_a_copy_leaves_the_original_alone():
    tensors = leaves()
    optimizer, ema = Adam(parameters=tensors), EMA(tensors, 0.5)
    train(optimizer, tensors, 1)
    ema.update()
    others, again = copy.deepcopy((optimizer, ema))
    kept = [average.copy() for average in ema._averages]
    train(others, others._tensors, 2)
    again.update()
    assert all(np.array_equal(a, b) for a, b in zip(ema._averages, kept, strict=True))
    assert not np.array_equal(again._averages[1], kept[1])
    assert np.array_equal(again._averages[1], (kept[1] + again._tensors[1].numpy()) / 2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_averages(dtype, monkeypatch):
    found = []
    for kernels, threads, length in WAYS:
        te.set_kernels(kernels)
        te.set_num_threads(threads)
        monkeypatch.setattr("te_optim.direct.SHORTEST", length)
        tensors = leaves(dtype)
        ema, optimizer = EMA(tensors, 0.9), SGD(0.1, parameters=tensors)
        for _ in range(3):
            train(optimizer, tensors, 1)
            ema.update()
        found.append([average.tobytes() for average in ema._averages])
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-25, 1e-16, 1.0, 1e16, 1e30])
@pytest.mark.parametrize("size", [1000, 1024, 5000, 100_001])
def test_norms_of_any_size(scale, size):
    (w,) = leaves(shapes=[size])
    grad = (np.random.default_rng(0).standard_normal(size) * scale).astype(np.float32)
    w.grad = grad
    wanted = np.sqrt(np.square(grad, dtype=np.float64).sum())
    assert clip_gradients([w], 1e38) == pytest.approx(wanted, rel=1e-6)
