"""Hooks, retained gradients, and `grad`: what they see, when, and what they change."""

import gc
import threading
import weakref

import numpy as np
import pytest

import te_tensor as te


def leaf(*values):
    return te.Tensor(list(values), dtype="float32", requires_grad=True)


# -- hooks on tensors ---------------------------------------------------------------------


def test_a_leafs_hook_sees_the_sum_of_all_its_uses_once():
    x, seen = leaf(1.0, 2.0), []
    x.register_hook(lambda grad: seen.append(grad.tolist()))
    (x * 2 + x * x + x).sum().backward()
    assert seen == [[5.0, 7.0]]
    assert x.grad.tolist() == [5.0, 7.0]


def test_a_results_hook_sees_the_sum_and_changes_what_follows():
    x, seen = leaf(2.0), []
    y = x * 3
    y.register_hook(lambda grad: seen.append(grad.tolist()))
    y.register_hook(lambda grad: grad * 10)
    (y * y + y).backward()
    assert seen == [[13.0]]
    assert x.grad.tolist() == [390.0]


def test_hooks_run_in_order_and_can_be_removed():
    x = leaf(1.0)
    first = x.register_hook(lambda grad: grad + 1)
    second = x.register_hook(lambda grad: grad * 2)
    (x * 1).backward()
    assert x.grad.tolist() == [4.0]
    first.remove()
    first.remove()
    x.zero_grad()
    (x * 1).backward()
    assert x.grad.tolist() == [2.0]
    second.remove()
    x.zero_grad()
    with x.register_hook(lambda grad: -grad):
        (x * 1).backward()
    assert x.grad.tolist() == [-1.0]
    (x * 1).backward()
    assert x.grad.tolist() == [0.0]


def test_a_hook_that_keeps_its_gradient_keeps_its_values():
    x, kept = leaf(1.0), []
    x.register_hook(kept.append)
    for _ in range(3):
        (x * 2).backward()
    assert [g.tolist() for g in kept] == [[2.0]] * 3
    assert x.grad.tolist() == [6.0]


def test_a_hook_on_the_root():
    x = leaf(3.0)
    x.register_hook(lambda grad: grad * 5)
    x.backward()
    assert x.grad.tolist() == [5.0]
    y = x * 2
    y.register_hook(lambda grad: grad * 7)
    x.zero_grad()
    y.backward()
    assert x.grad.tolist() == [70.0]


def test_one_output_of_several():
    class Both(te.Operation):
        def forward(self, x):
            return x + 1, x * 2

        def backward(self, first, second):
            return ((0 if first is None else first) + (0 if second is None else 2 * second),)

    x, seen = leaf(1.0), []
    a, b = te.Tensor.apply(Both(), x)
    b.register_hook(lambda grad: seen.append(grad.tolist()))
    (a + b * 3).backward()
    assert seen == [[3.0]]
    assert x.grad.tolist() == [7.0]


@pytest.mark.parametrize("result, error", [(te.zeros(3), ValueError), (1.0, TypeError)])
def test_what_a_hook_must_not_return(result, error):
    x = leaf(1.0)
    x.register_hook(lambda grad: result)
    with pytest.raises(error, match="a hook returned"):
        (x * 1).backward()


def test_hooks_need_a_gradient():
    x = te.zeros(2)
    for method in (
        lambda: x.register_hook(print),
        lambda: x.register_post_accumulate_grad_hook(print),
        x.retain_grad,
    ):
        with pytest.raises(RuntimeError, match="requires_grad"):
            method()
    with pytest.raises(RuntimeError, match="leaf"):
        (leaf(1.0) * 2).register_post_accumulate_grad_hook(print)


def test_small_floats():
    x = te.Tensor([1.0, 2.0], dtype="bfloat16", requires_grad=True)
    dtypes = []
    x.register_hook(lambda grad: dtypes.append(grad.dtype))
    (x * x).sum().backward()
    assert dtypes == [te.bfloat16]
    assert x.grad.tolist() == [2.0, 4.0]


# -- after accumulation -------------------------------------------------------------------


def test_the_post_hook_comes_when_the_gradient_is_complete_and_during_the_walk():
    early, late, order = leaf(1.0), leaf(2.0), []
    early.register_post_accumulate_grad_hook(lambda t: order.append(("early", t.grad.tolist())))
    late.register_post_accumulate_grad_hook(lambda t: order.append(("late", t.grad.tolist())))
    hidden = early * 3
    hidden.register_hook(lambda grad: order.append(("hidden", grad.tolist())))
    (hidden * late + late).backward()
    assert order == [("late", [4.0]), ("hidden", [2.0]), ("early", [6.0])]


def test_the_post_hook_may_drop_the_gradient():
    x = leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda t: t.zero_grad())
    (x * x).backward()
    assert x.grad is None


def test_a_use_that_brings_no_gradient_completes_the_leaf_too():
    class First(te.Operation):
        def forward(self, a, b):
            return a.copy()

        def backward(self, grad):
            return grad, None

    x, y, seen = leaf(1.0), leaf(1.0), []
    x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.tolist()))
    (te.Tensor.apply(First(), y, x) + x).backward()
    assert seen == [[1.0]]


def test_hooks_see_a_shards_gradients_whole():
    weight, seen = leaf(2.0), []
    weight.register_hook(lambda grad: seen.append(grad.tolist()))
    x = te.ones(8, 1)
    te.shard(lambda rows: rows * weight * weight, x, shards=4).sum().backward()
    assert seen == [[32.0]]


def test_a_hook_does_not_keep_its_leaf():
    x = leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda t: None)
    reference = weakref.ref(x)
    gc.disable()
    try:
        del x
        assert reference() is None
    finally:
        gc.enable()


def test_a_hook_made_during_the_walk_waits_for_the_next():
    x, seen = leaf(1.0), []
    hidden = x * 2
    hidden.register_hook(lambda grad: x.register_hook(seen.append) and None)
    hidden.backward()
    assert x.grad.tolist() == [2.0] and seen == []
    (x * 3).backward()
    assert [g.tolist() for g in seen] == [[3.0]]


def test_many_threads_with_a_hook_each_use_once():
    x, seen = leaf(0.0), []
    x.register_hook(lambda grad: seen.append(grad.item()))

    def work():
        for _ in range(50):
            (x * 1 + x * 2).backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [3.0] * 200
    assert x.grad.tolist() == [600.0]


# -- retain_grad --------------------------------------------------------------------------


def test_retain_grad():
    x = leaf(2.0)
    y = x * 3
    y.retain_grad()
    y.retain_grad()
    y.register_hook(lambda grad: grad * 2)
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    assert y.grad.tolist() == [24.0]  # after all hooks
    assert x.grad.tolist() == [72.0]
    loss.backward()
    assert y.grad.tolist() == [48.0]


def test_retain_grad_of_a_leaf_changes_nothing():
    x = leaf(2.0)
    x.retain_grad()
    (x * 3).backward()
    assert x.grad.tolist() == [3.0]


# -- grad ---------------------------------------------------------------------------------


def test_grad_touches_no_grad():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    hidden = x * w
    loss = (hidden * hidden).sum()
    got = te.grad(loss, [hidden, w, x], retain_graph=True)
    assert [g.tolist() for g in got] == [[6.0, 16.0], [6.0, 32.0], [18.0, 64.0]]
    assert x.grad is None and w.grad is None and hidden.grad is None
    loss.backward()
    assert x.grad.tolist() == [18.0, 64.0]


def test_grad_stops_at_what_was_asked_for():
    visited = []

    class Watched(te.Operation):
        def forward(self, x):
            return x * 2

        def backward(self, grad):
            visited.append(type(self).__name__)
            return (grad * 2,)

    x = leaf(1.0)
    hidden = te.Tensor.apply(Watched(), x)
    (g,) = te.grad((hidden * 3).sum(), hidden)
    assert g.tolist() == [3.0]
    assert visited == []
    hidden.sum().backward()  # what was not gone through is not freed
    assert x.grad.tolist() == [2.0]


def test_grad_of_several_outputs_with_starts():
    x = leaf(1.0, 2.0)
    a, b = x * 2, x * x
    (g,) = te.grad([a, b], x, [te.ones(2), te.Tensor([10.0, 100.0])])
    assert g.tolist() == [22.0, 402.0]


def test_grad_of_itself():
    x = leaf(1.0)
    y = x * 2
    got = te.grad(y, [y, x])
    assert [g.tolist() for g in got] == [[1.0], [2.0]]
    (got,) = te.grad(x, x)
    assert got.tolist() == [1.0]


def test_grad_gives_arrays_of_its_own():
    x, start = leaf(1.0, 2.0), np.ones(2, np.float32)
    y = x + 0
    first, second = te.grad(y, [x, y], start)
    with first.lock() as array:
        array[:] = 7
    assert second.tolist() == [1.0, 1.0]
    assert start.tolist() == [1.0, 1.0]


def test_grad_with_hooks():
    x = leaf(1.0)
    x.register_hook(lambda grad: grad * 10)
    called = []
    x.register_post_accumulate_grad_hook(called.append)
    (g,) = te.grad((x * 3).sum(), x)
    assert g.tolist() == [30.0]
    assert called == []


def test_grad_says_what_is_wrong():
    x, other = leaf(1.0), leaf(1.0)
    y = x * 2
    with pytest.raises(RuntimeError, match="don't depend on input 1"):
        te.grad(y, [x, other], retain_graph=True)
    first, second = te.grad(y, [x, other], allow_unused=True, retain_graph=True)
    assert first.tolist() == [2.0] and second is None
    with pytest.raises(RuntimeError, match="input 0 needs no gradient"):
        te.grad(y, te.zeros(1))
    with pytest.raises(RuntimeError, match="output 0 needs no gradient"):
        te.grad(te.zeros(1), x)
    with pytest.raises(ValueError, match="2 grad_outputs for 1 outputs"):
        te.grad(y, x, [te.ones(1), te.ones(1)])
    with pytest.raises(RuntimeError, match="without a gradient"):
        te.grad(leaf(1.0, 2.0) * 2, x)
    with pytest.raises(NotImplementedError, match="first order"):
        te.grad(y, x, create_graph=True)
