"""Averages of parameters."""

import numpy as np
import pytest

import te_tensor as te
from te_optim import EMA

SHAPES = [(3,), (2, 2), (), (0,), (300,)]


def leaves(rng, dtype="float32"):
    values = [rng.standard_normal(shape) for shape in SHAPES]
    return [te.Tensor(value, dtype=dtype, requires_grad=True) for value in values]


def move(rng, tensors):
    for tensor in tensors:
        with tensor.lock() as array:
            array[...] += rng.standard_normal(array.shape).astype(array.dtype)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_formula(warmup):
    rng = np.random.default_rng(0)
    tensors = leaves(rng, "float64")
    ema = EMA(tensors, 0.9, warmup=warmup)
    expected = [tensor.numpy().copy() for tensor in tensors]
    for update in range(5):
        move(rng, tensors)
        ema.update()
        decay = min(0.9, (1 + update) / (10 + update)) if warmup else 0.9
        expected = [
            decay * a + (1 - decay) * t.numpy() for a, t in zip(expected, tensors, strict=True)
        ]
    before = [tensor.numpy().copy() for tensor in tensors]
    with ema.average_parameters():
        for tensor, wanted in zip(tensors, expected, strict=True):
            assert np.allclose(tensor.numpy(), wanted, rtol=1e-13)
    assert all(np.array_equal(t.numpy(), b) for t, b in zip(tensors, before, strict=True))


def test_parameters_come_back_after_an_error():
    rng = np.random.default_rng(0)
    tensors = leaves(rng)
    ema = EMA(tensors)
    move(rng, tensors)
    before = [tensor.numpy().copy() for tensor in tensors]
    with pytest.raises(KeyError), ema.average_parameters():
        raise KeyError
    assert all(np.array_equal(t.numpy(), b) for t, b in zip(tensors, before, strict=True))


def test_store_copy_and_restore_by_hand():
    (w,) = [te.Tensor([4.0], requires_grad=True)]
    ema = EMA([w], 0.5)
    with pytest.raises(RuntimeError, match="store"):
        ema.restore()
    w[0] = 0.0
    ema.update()
    ema.store()
    ema.copy_to()
    assert w.item() == 2
    ema.restore()
    assert w.item() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resuming_gives_the_same_bits(dtype):
    rng = np.random.default_rng(0)
    tensors = leaves(rng, dtype)
    ema = EMA(tensors, 0.99, warmup=True)
    for _ in range(3):
        move(rng, tensors)
        ema.update()
    resumed = EMA(tensors, 0.5, warmup=True)
    resumed.load_state_dict(ema.state_dict())
    for _ in range(3):
        move(rng, tensors)
        ema.update()
        resumed.update()
    for one, other in zip(
        ema.state_dict()["averages"], resumed.state_dict()["averages"], strict=True
    ):
        assert one.dtype == (te.float32)
        assert np.array_equal(one.numpy(), other.numpy())


def test_averages_of_small_floats_move_in_float32():
    w = te.Tensor([1.0], dtype="bfloat16", requires_grad=True)
    ema = EMA([w], 0.999)
    w[0] = 2.0
    for _ in range(100):
        ema.update()
    assert ema.state_dict()["averages"][0].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


def test_a_state_that_does_not_fit_changes_nothing():
    tensors = leaves(np.random.default_rng(0))
    ema = EMA(tensors)
    good = ema.state_dict()
    before = str(good)
    for bad in (
        {},
        5,
        {**good, "decay": 1.0},
        {**good, "updates": -1},
        {**good, "averages": good["averages"][:2]},
        {**good, "averages": [np.zeros(t.shape, int) for t in tensors]},
    ):
        with pytest.raises(ValueError, match="expected"):
            ema.load_state_dict(bad)
        assert str(ema.state_dict()) == before


def test_bad_settings_are_named():
    tensors = leaves(np.random.default_rng(0))
    for make, given in (
        (lambda: EMA(tensors, 1.0), "decay is 1.0"),
        (lambda: EMA(tensors, float("nan")), "decay is nan"),
        (lambda: EMA(tensors, warmup=1), "warmup is 1"),
        (lambda: EMA([]), "no parameters"),
        (lambda: EMA(tensors * 2), "twice"),
    ):
        with pytest.raises(ValueError, match=given):
            make()
    with pytest.raises(TypeError, match="int64"):
        EMA([te.zeros(2, dtype="int64")])


def test_read_only_memory_changes_nothing():
    fixed = te.from_numpy(np.broadcast_to(np.ones(1, "float32"), (2,)))
    w = te.Tensor([1.0], requires_grad=True)
    ema = EMA([w, fixed], 0.5)
    w[0] = 3.0
    ema.update()
    with pytest.raises(ValueError, match="read-only"):
        ema.copy_to()
    assert w.item() == 3
