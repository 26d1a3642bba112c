"""Many of the user's threads at once: exact sums, and work after a fork."""

import os
import sys
import threading

import numpy as np
import pytest

import te_tensor as te

THREADS = 4
ROUNDS = 10_000


def run_all(work):
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:  # shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_gradients_of_shared_parameters_are_summed_exactly():
    """Small whole numbers in float64: any lost or doubled addition shows in the sum."""
    weight = te.Tensor(np.ones((3, 2)), requires_grad=True)
    bias = te.Tensor(np.zeros(2), requires_grad=True)
    x = te.Tensor(np.arange(6.0).reshape(2, 3))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads meet more often
    try:

        def work(number):
            for _ in range(ROUNDS // THREADS):
                (x @ weight + bias).sum().backward()

        run_all(work)
    finally:
        sys.setswitchinterval(interval)
    columns = x.numpy().sum(axis=0)[:, None]
    np.testing.assert_array_equal(weight.grad.numpy(), ROUNDS * np.repeat(columns, 2, axis=1))
    np.testing.assert_array_equal(bias.grad.numpy(), [2 * ROUNDS] * 2)


def test_locked_changes_are_exact():
    total = te.Tensor(np.zeros(5))

    def work(number):
        for _ in range(ROUNDS // THREADS):
            with total.lock() as array:
                array += 1

    run_all(work)
    assert total.tolist() == [ROUNDS] * 5


def test_inference_in_many_threads_gives_each_its_own_result():
    weight = te.Tensor(np.random.default_rng(0).standard_normal((64, 64)))
    inputs = [te.Tensor(np.full((4, 64), float(n + 1))) for n in range(THREADS)]
    wanted = [(x @ weight).relu().numpy().copy() for x in inputs]

    def work(number):
        with te.no_grad():
            for _ in range(500):
                got = (inputs[number] @ weight).relu()
                np.testing.assert_array_equal(got.numpy(), wanted[number])

    run_all(work)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_computes_after_a_fork():
    x = te.Tensor(np.ones((600, 600), np.float32), requires_grad=True)
    (x @ x).sum().backward()  # the engine's threads are running
    child = os.fork()
    if child == 0:
        status = 1
        try:
            x.zero_grad()
            (x @ x).sum().backward()
            status = 0 if (x.grad.numpy() == 1200).all() else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_backward_frees_memory_on_its_way():
    """50 layers: when the walk reaches the first, what the last ones saved is gone."""
    layers = [
        te.Tensor(np.full((256, 256), 1 / 256, np.float32), requires_grad=True) for _ in range(50)
    ]
    lent = {}

    def note(name):
        lent[name] = te.memory_info()["lent"]

    x = te.Tensor(np.ones((256, 256), np.float32))
    before = te.memory_info()["lent"]
    hidden = x
    for place, weight in enumerate(layers):
        hidden = (hidden @ weight).relu()
        if place in (0, 25, 48):
            hidden.register_hook(lambda grad, place=place: note(place))
    loss = hidden.sum()
    del hidden
    note("forward")
    loss.backward()
    one = 256 * 256 * 4
    held = lent["forward"] - before
    assert held > 45 * 2 * one
    # The weights' gradients stay, one array for each layer gone through.
    assert lent[25] - before < 0.85 * held
    assert lent[0] - before < 0.70 * held
