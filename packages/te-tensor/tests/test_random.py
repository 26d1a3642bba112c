"""Generators, random tensors and dropout."""

import threading

import numpy as np
import pytest

import te_tensor as te


def test_the_same_seed_gives_the_same_numbers():
    def draw():
        return [te.rand(5), te.randn(5), te.randint(0, 100, (5,)), te.dropout(te.ones(50))]

    te.manual_seed(3)
    first = draw()
    te.manual_seed(3)
    second = draw()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    third = draw()
    for a, b in zip(first, third, strict=True):
        assert (a != b).numpy().any()


def test_other_seeds_give_other_numbers():
    draws = {te.rand(4, generator=te.Generator(s)).numpy().tobytes() for s in range(50)}
    draws |= {te.rand(4, generator=te.Generator(2**32 * s)).numpy().tobytes() for s in range(1, 9)}
    assert len(draws) == 58
    assert te.Generator().get_state() != te.Generator().get_state()


def test_state():
    te.manual_seed(5)
    te.rand(3)
    state = te.get_rng_state()
    assert state == (5, 1)
    a = te.rand(3)
    te.set_rng_state(state)
    np.testing.assert_array_equal(a.numpy(), te.rand(3).numpy())


@pytest.mark.parametrize("state", [5, (1,), (1, 2, 3), ("a", 1), None, (-1, 0), (0, -1)])
def test_bad_states_raise_and_change_nothing(state):
    before = te.get_rng_state()
    with pytest.raises(ValueError, match="state is"):
        te.set_rng_state(state)
    assert te.get_rng_state() == before


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_bad_seeds_raise(seed):
    with pytest.raises(ValueError, match=f"seed is {seed!r}"):
        te.manual_seed(seed)
    with pytest.raises(ValueError, match=f"seed is {seed!r}"):
        te.Generator(seed)


def test_numpy_integers_are_seeds():
    assert te.Generator(np.int64(3)).get_state() == (3, 0)


def test_threads_never_share_a_draw():
    generator = te.Generator(0)
    keys = []

    def work():
        for _ in range(500):
            keys.append(generator.next_key())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(keys)) == 2000


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_rand(dtype):
    x = te.rand(200, 500, dtype=dtype)
    assert x.dtype.name == dtype
    values = x.numpy().astype("float64")
    assert values.min() >= 0
    assert values.max() < 1  # the upper bound is left out, also where values are rounded
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(values.var() - 1 / 12) < 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_randn(dtype):
    values = te.randn(400, 250, dtype=dtype).numpy().astype("float64")
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.2


def test_randint():
    x = te.randint(-2, 3, (1000,))
    assert x.dtype == te.int64
    assert set(x.tolist()) == {-2, -1, 0, 1, 2}
    assert te.randint(0, 5, 3, dtype="int8").shape == (3,)
    assert te.randint(0, 1, ()).item() == 0


def test_elements_are_independent():
    a = te.rand(1000).numpy()
    b = te.rand(1000).numpy()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.15


# -- dropout ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p, dtype):
    x = te.ones(300, 400, dtype=dtype)
    y = te.dropout(x, p).numpy().astype("float64")
    assert set(np.unique(y)) == {0.0, float(np.asarray(np.float32(1 / (1 - p)), x.dtype))} or (
        np.allclose(np.unique(y), [0, 1 / (1 - p)], rtol=1e-3)
    )
    assert abs((y == 0).mean() - p) < 0.01
    assert abs(y.mean() - 1) < 0.03


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7, 3), (700, 800)])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_dropout_uses_one_mask_in_both_directions(shape, layout, threads):
    values = np.asarray(np.random.default_rng(0).uniform(1, 2, shape), "float32", order=layout)
    x = te.from_numpy(values)
    x.requires_grad = True
    y = te.dropout(x, 0.4)
    y.backward(np.ones(shape))
    kept = y.numpy() != 0
    np.testing.assert_array_equal(x.grad.numpy() != 0, kept)
    np.testing.assert_allclose(y.numpy(), values * x.grad.numpy(), rtol=1e-6)
    assert np.allclose(x.grad.numpy()[kept], 1 / 0.6)


def test_dropout_of_nothing_and_everything():
    x = te.randn(50, requires_grad=True)
    assert te.dropout(x, 0.0) is x
    assert te.dropout(x, 0.9, training=False) is x
    y = te.dropout(x, 1.0)
    assert not y.numpy().any()
    y.sum().backward()
    assert not x.grad.numpy().any()


def test_dropout_does_not_depend_on_threads_or_layout():
    results = []
    for count in (1, 2, 3):
        te.set_num_threads(count)
        results.append(te.dropout(te.ones(700, 800), 0.5, generator=te.Generator(1)).numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_dropout_blocks_do_not_repeat():
    y = te.dropout(te.ones(1 << 19), 0.5).numpy().reshape(-1, 1 << 15)
    assert len({row.tobytes() for row in y}) == len(y)


def test_dropout_follows_a_generator_or_the_seed():
    x = te.ones(100)
    a = te.dropout(x, 0.5, generator=te.Generator(4))
    b = te.dropout(x, 0.5, generator=te.Generator(4))
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    te.manual_seed(4)
    np.testing.assert_array_equal(te.dropout(x, 0.5).numpy(), a.numpy())
    assert (te.dropout(x, 0.5) != a).numpy().any()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_bad_probabilities_raise(p):
    with pytest.raises(ValueError, match=f"probability is {p}"):
        te.dropout(te.ones(2), p)
    with pytest.raises(ValueError, match=f"probability is {p}"):
        te.dropout(te.ones(2), p, training=False)
