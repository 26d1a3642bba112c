"""Clipping of gradients."""

import numpy as np
import pytest

import te_tensor as te
from te_optim import clip_grad_value, clip_gradients


def leaves(*values):
    return [te.Tensor(value, requires_grad=True) for value in values]


def test_non_finite_gradients_can_raise():
    tensors = leaves([1.0, 2.0], [3.0])
    tensors[0].grad, tensors[1].grad = [float("inf"), 1.0], [4.0]
    with pytest.raises(FloatingPointError, match="inf"):
        clip_gradients(tensors, 1.0, error_if_nonfinite=True)
    assert tensors[1].grad.item() == 4
    assert clip_gradients(tensors, 1.0) == float("inf")


@pytest.mark.parametrize(
    ("max_norm", "options", "given"),
    [
        (-1.0, {}, "max_norm is -1.0"),
        (float("nan"), {}, "max_norm is nan"),
        (float("-inf"), {}, "max_norm is -inf"),
        (1.0, {"norm_type": 0}, "norm_type is 0"),
        (1.0, {"norm_type": float("nan")}, "norm_type is nan"),
    ],
)
def test_bad_clipping_is_named(max_norm, options, given):
    with pytest.raises(ValueError, match=f"{given}: expected a number .* 0 and of at most inf"):
        clip_gradients([], max_norm, **options)


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_a_norm_is_measured_and_nothing_changed(value):
    (w,) = leaves([0.0, 0.0])
    w.grad = [3.0, value]
    norm = clip_gradients([w], float("inf"))
    assert norm == pytest.approx(value, nan_ok=True)
    assert w.grad.tolist() == pytest.approx([3.0, value], nan_ok=True)
    if value != 1e30:
        with pytest.raises(FloatingPointError, match="expected a finite one"):
            clip_gradients([w], float("inf"), error_if_nonfinite=True)


def test_the_infinity_norm_sees_every_nan():
    tensors = leaves([1.0], [1.0])
    tensors[0].grad, tensors[1].grad = [1.0], [float("nan")]
    with pytest.raises(FloatingPointError, match="nan"):
        clip_gradients(tensors, 1.0, norm_type=float("inf"), error_if_nonfinite=True)


def test_clipping_nothing():
    assert clip_gradients(leaves([1.0]), 1.0) == 0


def test_threads_change_no_bits():
    norms = []
    for threads in (1, 2, 3):
        te.set_num_threads(threads)
        (w,) = leaves(np.zeros(100_000))
        w.grad = np.random.default_rng(0).standard_normal(100_000)
        norms.append(clip_gradients([w], 1.0))
    assert norms[0] == norms[1] == norms[2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_norms_are_added_in_float64(dtype):
    tensors = [te.zeros(n, dtype=dtype, requires_grad=True) for n in (4, 60)]
    for tensor in tensors:
        tensor.grad = np.full(tensor.shape, 1e4)
    expected = float(tensors[0].grad.numpy()[0]) * 8
    assert clip_gradients(tensors, 1e30) == pytest.approx(expected, rel=1e-12)
    assert clip_gradients(tensors, 8.0) == pytest.approx(expected, rel=1e-12)
    assert clip_gradients(tensors, 1e30) == pytest.approx(8, rel=1e-2)


def test_clipping_counts_as_a_change():
    (w,) = leaves([3.0, 4.0])
    w.grad = [3.0, 4.0]
    gradient = w.grad
    gradient.requires_grad = True
    loss = (gradient * gradient).sum()
    clip_gradients([w], 1.0)
    with pytest.raises(RuntimeError, match="Mul"):
        loss.backward()


def test_values_of_nothing():
    clip_grad_value(leaves([1.0]), 1.0)
    with pytest.raises(ValueError, match=r"clip_value is -1\.0"):
        clip_grad_value(leaves([1.0]), -1.0)
    with pytest.raises(TypeError, match="list"):
        clip_grad_value([[1.0]], 1.0)
