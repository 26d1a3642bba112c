"""Bad input to normalization, its rule about shards, and its running statistics."""

import numpy as np
import pytest

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


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
