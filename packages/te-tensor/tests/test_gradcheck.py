"""Every registered operation against finite differences, and the check against wrong gradients."""

import inspect
import types

import numpy as np
import pytest

import te_tensor as te
from te_tensor.ops import attention


@pytest.mark.parametrize("name", sorted(te.REGISTRY))
def test_every_operation_has_right_gradients(name):
    assert te.gradcheck_operation(te.REGISTRY[name])


def test_attention_in_blocks_has_right_gradients(monkeypatch):
    monkeypatch.setattr(attention, "is_small", lambda q, k: False)
    assert te.gradcheck_operation(te.REGISTRY["Attention"])


@pytest.mark.parametrize("name", sorted(te.REGISTRY))
def test_samples_give_each_argument_another_value_than_its_default(name):
    operation = te.REGISTRY[name]
    signature = inspect.signature(operation)
    given = [signature.bind(*s.args, **s.kwargs).arguments for s in operation.samples]
    for parameter in signature.parameters.values():
        values = [arguments[parameter.name] for arguments in given if parameter.name in arguments]
        if parameter.default is not inspect.Parameter.empty:
            values = [v for v in values if repr(v) != repr(parameter.default)]
        assert values, f"no sample of {name} sets {parameter.name}"


def _concrete(kind):
    for child in kind.__subclasses__():
        yield from _concrete(child)
        if not child.__name__.startswith("_"):
            yield child


def test_every_operation_of_the_engine_is_registered():
    own = {c for c in _concrete(te.Operation) if c.__module__.startswith("te_tensor.ops.")}
    assert set(te.REGISTRY.values()) == own
    assert len(own) > 30


def _define(name="Fake", module="te_tensor.ops.fake", samples=None, **keywords):
    body = {"__module__": module} | ({} if samples is None else {"samples": samples})
    return types.new_class(name, (te.Operation,), keywords, lambda space: space.update(body))


def test_an_operation_of_the_engine_without_samples_raises():
    with pytest.raises(TypeError, match="Fake has no samples"):
        _define()
    assert "Fake" not in te.REGISTRY


def test_two_operations_of_one_name_raise():
    with pytest.raises(TypeError, match="named Add is registered already"):
        _define("Add", samples=[te.Sample((2,))])
    assert te.REGISTRY["Add"].__module__ == "te_tensor.ops.arithmetic"


def test_abstract_operations_need_no_samples():
    assert _define(abstract=True).samples == ()
    assert "Fake" not in te.REGISTRY


def test_a_users_operation_needs_no_samples():
    operation = _define("Mine", module="mine")
    assert "Mine" not in te.REGISTRY
    with pytest.raises(ValueError, match="Mine has no samples"):
        te.gradcheck_operation(operation)


class LeakyReLU(te.Operation):
    """The example of the documentation."""

    def __init__(self, alpha=0.01):
        self.alpha = alpha

    def forward(self, x):
        self.save(x)
        return np.where(x > 0, x, self.alpha * x)

    def backward(self, grad):
        (x,) = self.saved
        return (np.where(x > 0, grad, self.alpha * grad),)

    samples = [te.Sample((3, 4), args=(0.2,), low=0.1), te.Sample((), low=-2, high=-1)]


def test_a_users_operation_is_checked_and_applied():
    assert te.gradcheck_operation(LeakyReLU)
    x = te.Tensor([-2.0, 3.0], requires_grad=True)
    y = te.Tensor.apply(LeakyReLU(0.1), x)
    assert isinstance(y.creator, LeakyReLU)
    assert y.inputs == (x,)
    np.testing.assert_allclose(y.numpy(), [-0.2, 3.0], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.1, 1.0], rtol=1e-6)


class Cube(te.Operation):
    """A right cube; the classes below each get one thing wrong."""

    samples = [te.Sample((3, 4), low=0.5)]

    def forward(self, x):
        self.save(x)
        return x**3

    def backward(self, grad):
        return (self.wrong(3 * self.saved[0] ** 2 * grad),)

    def wrong(self, grad):
        return grad


class Scaled(Cube):
    def wrong(self, grad):
        return grad * 1.001


class OneSign(Cube):
    def wrong(self, grad):
        grad[1, 2] *= -1
        return grad


class OneNaN(Cube):
    def wrong(self, grad):
        grad[0, 0] = np.nan
        return grad


class Infinite(Cube):
    def wrong(self, grad):
        grad[0, 0] = np.inf
        return grad


class Nothing(Cube):
    def wrong(self, grad):
        return None


class Shuffled(Cube):
    """The sum is right, the places are not."""

    def wrong(self, grad):
        return np.roll(grad, 1, axis=1)


def test_a_right_gradient_passes():
    assert te.gradcheck_operation(Cube)


@pytest.mark.parametrize("wrong", [Scaled, OneSign, OneNaN, Infinite, Nothing, Shuffled])
def test_a_wrong_gradient_is_found_and_the_operation_named(wrong):
    with pytest.raises(te.GradientError, match="gradient of input 0") as caught:
        te.gradcheck_operation(wrong)
    assert wrong.__name__ in caught.value.__notes__[0]


class ThirdWrong(te.Operation):
    """a·b·c, whose gradient to c is far too small to show beside the others."""

    samples = [te.Sample((2, 3), (2, 3), (2, 3), low=1, high=2)]

    def forward(self, a, b, c):
        self.save(a, b, c)
        return a * b * c

    def backward(self, grad):
        a, b, c = self.saved
        return grad * b * c, grad * a * c, grad * a * b * 1.01


def test_a_wrong_gradient_of_one_input_alone_is_found():
    with pytest.raises(te.GradientError, match="gradient of input 2"):
        te.gradcheck_operation(ThirdWrong)


class Pair(te.Operation):
    """Two outputs, with the gradient of the second wrong where `factor` is not 1."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def forward(self, x):
        self.save(x)
        return x * x, 3 * x

    def backward(self, first, second):
        (x,) = self.saved
        return (2 * x * first + 3 * self.factor * second,)


def test_several_outputs_are_checked_together():
    x = te.Tensor(np.array([0.5, 2.0]), requires_grad=True)
    assert te.gradcheck(lambda x: te.Tensor.apply(Pair(), x), [x])
    with pytest.raises(te.GradientError):
        te.gradcheck(lambda x: te.Tensor.apply(Pair(1.1), x), [x])


def test_an_input_cut_off_from_the_result_is_found():
    x = te.Tensor(np.array([0.5, 2.0]), requires_grad=True)
    with pytest.raises(te.GradientError):
        te.gradcheck(lambda x: x * x.detach(), [x])


def test_inputs_are_left_as_they_are():
    values = np.array([0.5, 2.0])
    x = te.Tensor(values, requires_grad=True)
    te.gradcheck(lambda x: x.exp(), [x])
    assert x.grad is None
    np.testing.assert_array_equal(x.numpy(), values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_floats_than_float64_raise(dtype):
    good = te.ones(2, dtype="float64", requires_grad=True)
    bad = te.ones(2, dtype=dtype, requires_grad=True)
    with pytest.raises(TypeError, match=rf"input 1 is {dtype}, expected float64"):
        te.gradcheck(lambda a, b: a * b, [good, bad])


def test_no_input_that_requires_a_gradient_raises():
    with pytest.raises(ValueError, match="no input that requires a gradient"):
        te.gradcheck(lambda x: x, [te.ones(2, dtype="float64")])


def test_inputs_that_need_no_gradient_may_have_any_dtype():
    x = te.Tensor(np.array([[0.5, 2.0]]), requires_grad=True)
    assert te.gradcheck(lambda x, i: x[i], [x, te.Tensor([0, 0])])


def test_empty_and_scalar_inputs():
    empty = te.zeros(0, 3, dtype="float64", requires_grad=True)
    assert te.gradcheck(lambda x: x * 2, [empty])
    scalar = te.Tensor(2.0, dtype="float64", requires_grad=True)
    assert te.gradcheck(lambda x: x * x, [scalar])
