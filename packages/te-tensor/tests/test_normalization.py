"""Bad input to normalization, its rule about shards, and its running statistics."""

import numpy as np
import pytest

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


def batch(*shape, **options):
    return te.batch_norm(t(*shape), training=True, **options)


ERRORS = {
    "batch rank": (lambda: batch(3), ValueError, ["batch_norm", "x (3,)", "(N, C, …)"]),
    "batch scalar": (lambda: batch(), ValueError, ["x ()"]),
    "batch weight": (lambda: batch(2, 3, weight=t(2)), ValueError, ["weight (2,)", "x (2, 3)"]),
    "batch bias": (lambda: batch(2, 3, weight=t(3), bias=t(1)), ValueError, ["bias (1,)"]),
    "batch bias alone": (lambda: batch(2, 3, bias=t(3)), ValueError, ["bias without a weight"]),
    "batch of one": (lambda: batch(1, 3), ValueError, ["(1, 3)", "more than one value"]),
    "batch of none": (lambda: batch(0, 3), ValueError, ["(0, 3)", "more than one value"]),
    "batch running": (
        lambda: batch(2, 3, running_mean=t(2)), ValueError, ["running_mean (2,)", "(2, 3)"]),
    "batch running variance": (
        lambda: batch(2, 3, running_var=t(4)), ValueError, ["running_var (4,)"]),
    "batch no statistics": (
        lambda: te.batch_norm(t(2, 3)), ValueError, ["no running statistics", "training=True"]),
    "batch statistics": (
        lambda: te.batch_norm(t(2, 3), t(2), t(3)), ValueError, ["mean (2,)", "x (2, 3)"]),
    "batch integers": (
        lambda: te.batch_norm(t(2, 3, dtype="int64"), training=True), TypeError, ["int64"]),
    "batch widths": (
        lambda: batch(2, 3, weight=t(3, dtype="float64")),
        TypeError, ["x float32", "weight float64"]),
    "group": (lambda: te.group_norm(t(2, 6), 4), ValueError, ["(2, 6)", "4 groups", "divides"]),
    "group zero": (lambda: te.group_norm(t(2, 6), 0), ValueError, ["0 groups"]),
    "group rank": (lambda: te.group_norm(t(6), 2), ValueError, ["group_norm", "x (6,)"]),
    "group weight": (
        lambda: te.group_norm(t(2, 6), 2, t(2)), ValueError, ["weight (2,)", "(2, 6)"]),
    "group bias alone": (
        lambda: te.group_norm(t(2, 6), 2, None, t(6)), ValueError, ["bias without a weight"]),
    "group integers": (lambda: te.group_norm(t(2, 6, dtype="int32"), 2), TypeError, ["int32"]),
    "rms": (lambda: te.rms_norm(t(2, 3), 4), ValueError, ["rms_norm", "(2, 3)", "(4,)"]),
    "rms nothing": (lambda: te.rms_norm(t(2, 3), ()), ValueError, ["()"]),
    "rms weight": (lambda: te.rms_norm(t(2, 3), 3, t(2)), ValueError, ["(2,)", "(3,)"]),
    "rms integers": (lambda: te.rms_norm(t(2, 3, dtype="int64"), 3), TypeError, ["int64"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{caught.value!r} doesn't hold {missing}"


def test_batch_norm_in_training_raises_inside_shard():
    te.set_num_threads(2)
    x, mean = te.randn(8, 3), te.zeros(3)
    with pytest.raises(RuntimeError, match="inside shard: it couples the batch"):
        te.shard(lambda x: te.batch_norm(x, mean, te.ones(3), training=True), x, shards=2)
    assert mean.tolist() == [0, 0, 0]
    by_parts = te.shard(lambda x: te.batch_norm(x, mean, te.ones(3)), x, shards=2)
    assert by_parts.tolist() == te.batch_norm(x, mean, te.ones(3)).tolist()
    te.shard(lambda x: te.group_norm(x, 3), x, shards=2)


def test_bad_input_leaves_the_running_statistics():
    mean, var = te.zeros(3), te.ones(3)
    with pytest.raises(ValueError, match="weight"):
        te.batch_norm(te.randn(4, 3), mean, var, te.ones(2), training=True)
    assert mean.tolist() == [0, 0, 0] and var.tolist() == [1, 1, 1]


def test_running_statistics_move_by_the_momentum():
    x = np.random.default_rng(0).standard_normal((50, 3)).astype("float32")
    mean, var = te.zeros(3), te.ones(3)
    te.batch_norm(te.Tensor(x), mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean.numpy(), 0.25 * x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var.numpy(), 0.75 + 0.25 * x.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_round_once(dtype):
    x = te.randn(6, 4, 5).astype(dtype)
    for function in (
        lambda x: te.batch_norm(x, training=True),
        lambda x: te.group_norm(x, 2),
        lambda x: te.rms_norm(x, 5, eps=1e-3),
    ):
        result = function(x)
        assert result.dtype == x.dtype
        assert result.tolist() == function(x.astype("float32")).astype(dtype).tolist()
