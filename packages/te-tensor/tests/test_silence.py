"""Inf and NaN make no warnings inside operations, and change nothing for anybody else."""

import threading

import numpy as np
import pytest

import te_tensor as te
from te_tensor import silence

SWITCHES = {"found": (silence.begin, silence.end), "errstate": (silence._enter, silence._leave)}


def divides_loudly():
    with pytest.raises(FloatingPointError):
        np.divide(1.0, np.zeros(1))
    return True


@pytest.mark.parametrize("name", SWITCHES)
def test_silence_has_an_end(name):
    begin, end = SWITCHES[name]
    with np.errstate(all="raise"):
        token = begin(silence.QUIET)
        assert np.divide(1.0, np.zeros(1)).tolist() == [np.inf]
        assert set(np.geterr().values()) == {"ignore"}
        end(token)
        assert divides_loudly()


def test_the_variable_is_found():
    assert silence.begin is not silence._enter


def test_operations_forward_and_backward():
    with np.errstate(all="raise"):
        x = te.Tensor([0.0, -1.0, 1e30], requires_grad=True)
        y = x.log() + 1 / x + x * x
        y.backward(te.ones(3) * 1e30 * 1e30)
        assert divides_loudly()
    assert not np.isfinite(x.grad.numpy()).any()


class Failing(te.Operation):
    def forward(self, x):
        if self.fails_forward:
            raise KeyError("forward")
        return x.copy()

    def backward(self, grad):
        raise KeyError("backward")

    def __init__(self, fails_forward):
        self.fails_forward = fails_forward


@pytest.mark.parametrize("forward", [True, False])
def test_errors_end_it(forward):
    x = te.ones(1, requires_grad=True)
    with np.errstate(all="raise"):
        with pytest.raises(KeyError):
            te.Tensor.apply(Failing(forward), x).backward()
        assert divides_loudly()


def test_an_operation_inside_another():
    class Outer(te.Operation):
        def forward(self, x):
            te.Tensor(x).log()
            return np.divide(x, 0.0)

    with np.errstate(all="raise"):
        assert te.Tensor.apply(Outer(), te.ones(1)).tolist() == [np.inf]


def test_other_threads_hear():
    heard = []

    class Waiting(te.Operation):
        def forward(self, x):
            thread = threading.Thread(target=lambda: heard.append(np.geterr()["divide"]))
            thread.start()
            thread.join()
            return x.copy()

    te.Tensor.apply(Waiting(), te.ones(1))
    assert heard == ["warn"]
