"""no_grad, enable_grad, detect_anomaly, trace, use_generator."""

import asyncio
import threading

import numpy as np
import pytest

import te_tensor as te


@pytest.fixture
def x():
    return te.Tensor([1.0, 2.0], requires_grad=True)


def test_no_grad_records_nothing(x):
    with te.no_grad():
        assert not te.is_grad_enabled()
        y = x * 2
    assert te.is_grad_enabled()
    assert (y.requires_grad, y.creator, y.inputs) == (False, None, ())
    assert (x * 2).requires_grad


def test_no_grad_saves_nothing(x):
    seen = []

    class Look(te.Operation):
        def forward(self, a):
            self.save(a)
            seen.append((self.saved, self.needs_grad))
            return a + 1

    with te.no_grad():
        te.Tensor.apply(Look(), x)
    assert seen == [((), (False,))]


def test_nesting(x):
    with te.no_grad():
        with te.enable_grad():
            assert (x * 2).requires_grad
            with te.no_grad():
                assert not (x * 2).requires_grad
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert te.is_grad_enabled()


def test_one_setting_entered_twice(x):
    setting = te.no_grad()
    with setting:
        with setting:
            assert not te.is_grad_enabled()
        assert not te.is_grad_enabled()
    assert te.is_grad_enabled()


def test_an_error_ends_the_mode():
    with pytest.raises(KeyError), te.no_grad():
        raise KeyError
    assert te.is_grad_enabled()


def test_decorators(x):
    @te.no_grad()
    def double(t, *, factor=2):
        """Doc."""
        return t * factor

    @te.enable_grad()
    def triple(t):
        return t * 3

    assert not double(x, factor=4).requires_grad
    assert double(x, factor=4).tolist() == [4.0, 8.0]
    assert (double.__name__, double.__doc__) == ("double", "Doc.")
    with te.no_grad():
        assert triple(x).requires_grad
    assert te.is_grad_enabled()


def test_a_decorated_function_that_calls_itself():
    @te.no_grad()
    def count(n):
        assert not te.is_grad_enabled()
        return 0 if n == 0 else 1 + count(n - 1)

    assert count(5) == 5
    assert te.is_grad_enabled()


def test_threads_have_modes_of_their_own():
    inside, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with te.no_grad():
            inside.set()
            leave.wait(10)
            seen.append(te.is_grad_enabled())

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait(10)
    assert te.is_grad_enabled()
    leave.set()
    worker.join(10)
    assert seen == [False]


def test_a_decorated_function_in_many_threads():
    wrong = []

    @te.no_grad()
    def work():
        for _ in range(200):
            if te.is_grad_enabled():
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert te.is_grad_enabled()


def test_coroutines_have_modes_of_their_own():
    async def without():
        with te.no_grad():
            await asyncio.sleep(0.01)
            return te.is_grad_enabled()

    async def ordinary():
        await asyncio.sleep(0.005)
        return te.is_grad_enabled()

    async def both():
        return await asyncio.gather(without(), ordinary())

    assert asyncio.run(both()) == [False, True]


def test_backward_inside_no_grad(x):
    y = (x * x).sum()
    with te.no_grad():
        y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


# -- anomalies ----------------------------------------------------------------------------


def test_detect_anomaly_names_the_first_operation_forward():
    x = te.Tensor([-1.0, 1.0], requires_grad=True)
    assert np.isnan((x.log() * 2).numpy()[0])  # without it, nothing is said
    with te.detect_anomaly(), pytest.raises(FloatingPointError, match=r"forward of Log made a NaN"):
        (x.log() * 2).sum()


def test_detect_anomaly_names_the_operation_backward():
    x = te.Tensor([0.0, 1.0], requires_grad=True)
    with te.detect_anomaly():
        y = (x * 0).sqrt().sum()
        with pytest.raises(FloatingPointError, match="backward of Mul made a NaN") as caught:
            y.backward()
    assert "(x * 0).sqrt()" in str(caught.value)  # the line that applied it
    assert "test_modes.py" in str(caught.value)


def test_detect_anomaly_checks_every_output():
    class Two(te.Operation):
        def forward(self, x):
            return x, x * np.nan

    with te.detect_anomaly(), pytest.raises(FloatingPointError, match="forward of Two"):
        te.Tensor.apply(Two(), te.ones(2))


def test_detect_anomaly_says_what_was_given():
    x = te.Tensor([1.0, np.nan])
    with (
        te.detect_anomaly(),
        pytest.raises(FloatingPointError, match="forward of Mul was given a NaN as input 1, which"),
    ):
        te.ones(2) * x


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2"])
def test_detect_anomaly_in_small_floats(dtype):
    with te.detect_anomaly(), pytest.raises(FloatingPointError, match="Log"):
        te.Tensor([-1.0], dtype=dtype).log()


def test_detect_anomaly_lets_the_rest_pass():
    with te.detect_anomaly():
        x = te.Tensor([1.0, np.inf], requires_grad=True)
        (x * 2).sum().backward()
        te.Tensor([1, 2]).sum()
    assert x.grad.tolist() == [2.0, 2.0]


# -- tracing ------------------------------------------------------------------------------


def test_trace_records_without_gradients():
    x = te.Tensor([1.0])
    with te.trace():
        y = x.exp() * 2
    assert type(y.creator).__name__ == "Mul"
    assert type(y.inputs[0].creator).__name__ == "Exp"
    assert y.inputs[0].inputs == (x,)
    assert not y.requires_grad
    assert y.is_leaf
    assert (x * 2).creator is None


def test_trace_inside_no_grad(x):
    with te.no_grad(), te.trace():
        y = x * 2
    assert y.creator is not None
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match="needs no gradient"):
        y.backward(np.ones(2))


def test_trace_leaves_gradients_alone(x):
    with te.trace():
        y = (x * x).sum()
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_a_traced_result_may_become_a_leaf():
    with te.trace():
        y = te.Tensor([1.0, 2.0]).exp()
    y.requires_grad = True
    (y * 3).sum().backward()
    assert y.grad.tolist() == [3.0, 3.0]


# -- generators ---------------------------------------------------------------------------


def test_use_generator():
    te.manual_seed(1)
    before = te.get_rng_state()
    with te.use_generator(te.Generator(7)):
        first = te.randn(5)
        te.dropout(te.ones(5))
        te.manual_seed(8)  # the one in force
    assert te.get_rng_state() == before
    np.testing.assert_array_equal(first.numpy(), te.randn(5, generator=te.Generator(7)).numpy())


def test_use_generator_as_decorator():
    generator = te.Generator(7)

    @te.use_generator(generator)
    def draw():
        return te.randn(3)

    a, b = draw(), draw()
    assert (a != b).numpy().all()  # one generator, going on
    assert generator.get_state() == (7, 2)


def test_a_nan_that_would_be_added_in_place_is_found():
    w = te.Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    zeros, ones = te.zeros(2, 2), te.ones(2, 2)
    with te.detect_anomaly():
        roots = (zeros @ w).sqrt().sum()  # of infinite gradient: 0 times that is NaN
        total = (ones @ w).sum() + roots
        with pytest.raises(FloatingPointError, match="backward of MatMul"):
            total.backward()
