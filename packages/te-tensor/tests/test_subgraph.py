"""Shards and checkpoints give what the function gives, in value and gradient."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest

import te_tensor as te


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return te.Tensor(values, requires_grad=True)


def direct(function, *inputs):
    return function(*inputs)


def in_shards(count):
    def run(function, *inputs):
        return te.shard(function, *inputs, shards=count)

    run.__name__ = f"{count} shards"
    return run


def checkpoint_in_shards(function, *inputs):
    return te.shard(lambda *parts: te.checkpoint(function, *parts), *inputs, shards=2)


def shards_in_checkpoint(function, *inputs):
    return te.checkpoint(lambda *all_: te.shard(function, *all_, shards=3), *inputs)


def shards_in_shards(function, *inputs):
    return te.shard(lambda *parts: te.shard(function, *parts, shards=2), *inputs, shards=2)


def checkpoint_twice(function, *inputs):
    return te.checkpoint(lambda *all_: te.checkpoint(function, *all_), *inputs)


RUNNERS = [
    *(in_shards(count) for count in (1, 2, 3, 5, 9)),
    te.checkpoint,
    checkpoint_in_shards,
    shards_in_checkpoint,
    shards_in_shards,
    checkpoint_twice,
]


def gradients(runner, build, leaves):
    """The outputs, and the gradients of their weighted sum."""
    for tensor in leaves:
        tensor.zero_grad()
    outputs = build(runner)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((output * (i + 1.5)).sum() for i, output in enumerate(outputs))
    total.backward()
    found = [None if t.grad is None else t.grad.numpy().copy() for t in leaves]
    return [output.numpy() for output in outputs], found


def assert_same(runner, build, leaves):
    expected, wanted = gradients(direct, build, leaves)
    actual, found = gradients(runner, build, leaves)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)
    for a, b in zip(wanted, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
class TestGradients:
    def test_captured_leaves(self, runner, batch):
        x, w, b = leaf(batch, 4), leaf(3, 4, seed=1), leaf(3, seed=2)
        assert_same(runner, lambda r: r(lambda x: te.linear(x, w, b).tanh(), x), [x, w, b])

    def test_captured_computed_weights(self, runner, batch):
        x, w = leaf(batch, 4), leaf(4, 4, seed=1)

        def build(run):
            scaled = (w * 2).exp()
            y = run(lambda x: (x @ scaled).tanh() @ scaled, x)
            return y, scaled  # read outside too

        assert_same(runner, build, [x, w])

    def test_an_input_that_is_captured_too(self, runner, batch):
        x = leaf(batch, 4)
        assert_same(runner, lambda r: r(lambda part: part * x.sum() + part, x), [x])

    def test_several_inputs_and_outputs(self, runner, batch):
        x, y, w = leaf(batch, 2, 3), leaf(batch, seed=1), leaf(3, seed=2)

        def function(x, y):
            return x @ w, y * y, x * 2

        assert_same(runner, lambda r: r(function, x, y), [x, y, w])

    def test_an_input_without_gradient_and_other_arguments(self, runner, batch):
        x, w = leaf(batch, 3), leaf(3, seed=1)
        labels = te.Tensor(np.arange(batch) % 3)

        def function(x, labels, scale):
            return te.cross_entropy(x * w * scale, labels, reduction="none")

        assert_same(runner, lambda r: r(function, x, labels, 2.0), [x, w])

    def test_outputs_that_are_inputs_or_unused(self, runner, batch):
        x, y = leaf(batch, 2), leaf(batch, 2, seed=1)
        assert_same(runner, lambda r: r(lambda x, y: (x, x * 3), x, y), [x])

    def test_in_a_larger_graph(self, runner, batch):
        x, w = leaf(batch, 4), leaf(4, 4, seed=1)

        def build(run):
            h = (x @ w).tanh()
            h = run(lambda h: h @ w, h)
            return run(lambda h: (h @ w).exp(), h) + h

        assert_same(runner, build, [x, w])


def test_another_axis():
    x, w = leaf(2, 5, 3), leaf(3, 3, seed=1)

    def build(run):
        if run is direct:
            return x @ w
        return te.shard(lambda part: part @ w, x, axis=-2, shards=2)

    assert_same(in_shards(2), build, [x, w])


def test_slices_differ_by_at_most_one_and_come_in_order():
    sizes = []
    x = te.arange(11, dtype="float64")
    y = te.shard(lambda part: sizes.append(len(part)) or part * 2, x, shards=4)
    assert sorted(sizes) == [2, 3, 3, 3]
    assert y.tolist() == [2.0 * n for n in range(11)]


def test_each_shard_has_its_thread_and_the_caller_has_the_first():
    x = te.arange(3, dtype="float64")

    def run():
        names = {}
        te.shard(lambda p: names.update({p[0].item(): threading.get_ident()}) or p, x, shards=3)
        return names

    seen = [run() for _ in range(5)]
    assert all(names == seen[0] for names in seen)
    assert seen[0][0.0] == threading.get_ident()
    assert len(set(seen[0].values())) == 3


@pytest.mark.parametrize(
    ("threads", "elements", "expected"), [(1, 1 << 15, 1), (2, 1 << 15, 2), (2, 8, 1)]
)
def test_the_default_number_of_shards(threads, elements, expected):
    te.set_num_threads(threads)
    calls = []
    te.shard(lambda part: calls.append(1) or part * 2, te.ones(elements))
    assert len(calls) == expected


def test_the_graph_has_one_node():
    x, w = leaf(4, 2), leaf(2, seed=1)
    y = te.shard(lambda part: (part * w).exp().tanh(), x, shards=2)
    assert type(y.creator).__name__ == "Shard"
    assert y.inputs[0] is x and y.inputs[1] is w and len(y.inputs) == 2


def test_captured_tensors_come_in_the_order_of_first_use():
    x, a, b = leaf(4, 2), leaf(2, seed=1), leaf(2, seed=2)
    y = te.shard(lambda part: part * b + a + b, x, shards=2)
    assert [t is s for t, s in zip(y.inputs, (x, b, a), strict=True)] == [True] * 3


def test_no_grad_and_tracing():
    x, w = leaf(4, 2), leaf(2, seed=1)
    with te.no_grad():
        assert not te.shard(lambda part: part * w, x, shards=2).requires_grad
        assert not te.checkpoint(lambda x: x * w, x).requires_grad
    with te.trace():
        assert type(te.shard(lambda part: part * w, x, shards=2).creator).__name__ == "Mul"
        assert type(te.checkpoint(lambda x: x * w, x).creator).__name__ == "Mul"
    seen = []
    with te.no_grad():
        te.shard(lambda part: seen.append(te.is_grad_enabled()) or part, x, shards=2)
    assert seen == [False, False]


@pytest.mark.parametrize("runner", [in_shards(2), in_shards(3)])
def test_retain_graph(runner):
    x, w = leaf(5, 4), leaf(4, 4, seed=1)
    y = runner(lambda part: (part @ w).tanh(), x).sum()
    y.backward(retain_graph=True)
    first = w.grad.numpy().copy(), x.grad.numpy().copy()
    y.backward()
    assert np.array_equal(w.grad.numpy(), 2 * first[0])
    assert np.array_equal(x.grad.numpy(), 2 * first[1])
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


@pytest.mark.parametrize("runner", [in_shards(2), te.checkpoint])
def test_a_change_after_forward_raises(runner):
    x, w = leaf(4, 2), leaf(2, seed=1)
    y = runner(lambda part: part * w, x).sum()
    with w.lock() as array:
        array += 1
    with pytest.raises(RuntimeError, match="changed"):
        y.backward()


@pytest.mark.parametrize("runner", [in_shards(3), checkpoint_in_shards, shards_in_checkpoint])
def test_dropout_is_the_same_in_forward_and_backward(runner):
    x = te.ones(9, 50, dtype="float64", requires_grad=True)
    y = runner(lambda part: te.dropout(part, 0.5), x)
    y.backward(np.ones(y.shape))
    assert np.array_equal(x.grad.numpy(), y.numpy())
    assert 0.3 < (y.numpy() == 0).mean() < 0.7


def test_dropout_is_keyed_by_seed_call_and_shard():
    x = te.ones(4, 50)

    def draw(seed):
        te.manual_seed(seed)
        return [te.shard(lambda p: te.dropout(p, 0.5), x, shards=2).numpy() for _ in range(2)]

    first, again, other = draw(1), draw(1), draw(2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])  # another call
    assert not np.array_equal(first[0][:2], first[0][2:])  # another shard


def test_what_draws_nothing_moves_no_generator():
    te.manual_seed(3)
    state = te.get_rng_state()
    te.shard(lambda part: part * 2, te.ones(4), shards=2)
    assert te.get_rng_state() == state


@pytest.mark.parametrize("threads", [2, 3])
def test_same_threads_same_bits(threads):
    te.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x = te.Tensor(rng.standard_normal((7, 64, 64)).astype("float32"))
    w = te.Tensor(rng.standard_normal((64, 64)).astype("float32"), requires_grad=True)
    results = set()
    for _ in range(20):
        w.zero_grad()
        te.manual_seed(0)
        y = te.shard(lambda part: te.dropout((part @ w).tanh(), 0.1) @ w, x)
        y.sum().backward()
        results.add((y.numpy().tobytes(), w.grad.numpy().tobytes()))
    assert len(results) == 1


def test_a_failing_shard():
    x = te.arange(6, dtype="float64")
    finished = []

    def function(part):
        first = part[0].item()
        if first >= 2:
            raise ValueError(f"shard with {first}")
        finished.append(first)
        return part

    with pytest.raises(ValueError, match=r"shard with 2\.0") as caught:
        te.shard(function, x, shards=3)
    assert any("shards" in note for note in caught.value.__notes__)
    assert finished == [0.0]
    assert te.shard(lambda part: part + 1, x, shards=3).tolist() == [1.0, 2, 3, 4, 5, 6]


def test_a_failing_backward():
    class Broken(te.Operation):
        def forward(self, x):
            return x * 1

        def backward(self, grad):
            raise ArithmeticError("broken")

    x = leaf(4)
    y = te.shard(lambda part: te.Tensor.apply(Broken(), part), x, shards=2)
    with pytest.raises(ArithmeticError, match="broken"):
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize(
    ("call", "error", "given"),
    [
        (lambda x: te.shard(lambda p: p.sum(), x, shards=2), ValueError, "()"),
        (lambda x: te.shard(lambda p: p[:1], x, shards=2), ValueError, "(1, 2)"),
        (lambda x: te.shard(lambda p: 3, x, shards=2), TypeError, "int"),
        (lambda x: te.checkpoint(lambda p: [p], x), TypeError, "list"),
        (lambda x: te.shard(lambda p, q: p, x, te.ones(3), shards=2), ValueError, "(3,)"),
        (lambda x: te.shard(lambda: 1), TypeError, "no tensor"),
        (lambda x: te.shard(lambda p: p, x, axis=2), IndexError, "axis is 2"),
        (lambda x: te.shard(lambda p: p, x, shards=0), ValueError, "shards is 0"),
        (lambda x: te.shard(lambda p: p, x, shards=1.5), ValueError, "1.5"),
    ],
)
def test_bad_input_is_named(call, error, given):
    with pytest.raises(error) as caught:
        call(te.ones(4, 2))
    assert given in str(caught.value)


def test_shards_that_disagree():
    x = te.arange(4, dtype="float64")
    with pytest.raises(ValueError, match="something else in another"):
        te.shard(lambda p: p if p[0].item() == 0 else p.astype("float32"), x, shards=2)


def test_a_checkpoint_that_reads_something_else_the_second_time():
    x, a, b = leaf(2), leaf(2, seed=1), leaf(2, seed=2)
    weights = [b, a]
    y = te.checkpoint(lambda x: x * weights.pop(), x)
    with pytest.raises(RuntimeError, match="ran again"):
        y.sum().backward()


def test_users_threads_at_once():
    x, w = leaf(8, 16), leaf(16, 16, seed=1)
    expected = gradients(direct, lambda r: r(lambda p: (p @ w).tanh(), x), [x])[1][0]
    failures = []

    def work():
        own = te.Tensor(x.numpy(), requires_grad=True)
        for _ in range(20):
            own.zero_grad()
            y = te.shard(lambda p: (p @ te.Tensor(w.numpy())).tanh(), own, shards=3)
            (y * 1.5).sum().backward()
            if not np.allclose(own.grad.numpy(), expected, atol=1e-12):
                failures.append(own.grad.numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_the_child_of_a_fork_computes():
    program = """
        import os, warnings
        import numpy as np
        import te_tensor as te
        te.set_num_threads(2)
        x = te.ones(4, 3, requires_grad=True)
        run = lambda: te.shard(lambda p: p * 2, x, shards=2).sum().backward()
        run()
        warnings.simplefilter("ignore")
        child = os.fork()
        if not child:
            x.zero_grad()
            run()
            os._exit(0 if (x.grad.numpy() == 2).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


@pytest.mark.parametrize("runner", [in_shards(2), te.checkpoint], ids=["shard", "checkpoint"])
def test_backward_lets_go(runner):
    x, w = leaf(4, 3), leaf(3, seed=1)
    inner = []

    def function(part):
        h = (part * w).tanh()
        if h.creator is not None:  # a checkpoint has a graph in backward only
            inner.append(weakref.ref(h.creator))
        return h

    y = runner(function, x)
    y.sum().backward()
    gc.collect()
    assert inner
    assert all(reference() is None for reference in inner)
    assert y.inputs == ()
