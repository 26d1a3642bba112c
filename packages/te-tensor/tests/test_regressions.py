"""Small promises, each of which was once broken."""

import numpy as np
import pytest

import te_tensor as te


def test_item_assignment_of_a_tensor_with_a_gradient():
    w, a = te.ones(2, requires_grad=True), te.zeros(3)
    with pytest.raises(RuntimeError, match="lose"):
        a[:2] = w * 2
    assert a.tolist() == [0, 0, 0]
    with te.no_grad():
        a[:2] = w * 2
    assert a.tolist() == [2, 2, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_small_floats_equal_the_numbers_they_were_made_of(dtype):
    assert (te.Tensor([0.1, 0.7], dtype=dtype) == 0.1).tolist() == [True, False]


def test_comparison_with_numbers_out_of_range():
    t = te.Tensor([1, 255], dtype="uint8")
    assert (t < 300).tolist() == [True, True]
    assert (t == -1).tolist() == [False, False]


@pytest.mark.parametrize("setting", [te.no_grad, te.enable_grad, te.detect_anomaly])
def test_settings_decorate_with_and_without_brackets(setting):
    def grad():
        return te.is_grad_enabled()

    assert setting(grad)() == setting()(grad)()


def test_settings_refuse_what_runs_later():
    def numbers():
        yield te.is_grad_enabled()

    async def later():
        return te.is_grad_enabled()

    for function in (numbers, later):
        with pytest.raises(TypeError, match=function.__name__):
            te.no_grad()(function)


def test_the_gradient_of_a_maximum_goes_to_nan():
    x = te.Tensor([1.0, float("nan"), 2.0], requires_grad=True)
    x.max().backward()
    assert x.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize("state", ["12", (1.7, 2.2), (1,), (-1, 0), None])
def test_no_state_of_a_generator(state):
    before = te.get_rng_state()
    with pytest.raises(ValueError, match="state is"):
        te.set_rng_state(state)
    assert te.get_rng_state() == before


def test_integers_must_fit_their_dtype():
    with pytest.raises(OverflowError, match="uint8"):
        te.Tensor([300], dtype="uint8")
    assert te.Tensor([255], dtype="uint8").item() == 255


def test_integer_tensors_index():
    assert list(range(te.Tensor(3))) == [0, 1, 2]
    with pytest.raises(TypeError, match="float32"):
        range(te.Tensor(3.0))


def test_an_empty_list_selects_nothing():
    assert te.ones(3)[[]].shape == (0,)


def test_overflow_makes_no_warning():
    assert np.isinf((te.Tensor([60000.0], dtype="float16") * 2).numpy()).all()
    assert te.Tensor(1e300).item() == float("inf")
    assert te.Tensor([1.0], dtype="float64", requires_grad=True).astype("float16").item() == 1


def test_generators_are_ours():
    with pytest.raises(TypeError, match="numpy"):
        te.rand(2, generator=np.random.default_rng())


def test_layer_norm_of_integers():
    with pytest.raises(TypeError, match="int64"):
        te.layer_norm(te.Tensor([[1, 2]]), 2)
    assert te.layer_norm(te.ones(2, 3), np.int64(3)).shape == (2, 3)


def test_a_shape_may_be_one_length():
    assert te.Tensor([1, 2, 3, 4], 4).shape == (4,)


def test_a_small_float_takes_an_element_that_is_a_tensor():
    t = te.zeros(2, dtype="bfloat16")
    t[0] = te.Tensor(0.5)
    t[1] = 1e39  # as in casts, infinite without a warning
    assert t.tolist() == [0.5, float("inf")]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", ">i4"])
def test_repeated_indices_of_any_integer_dtype(dtype):
    x = te.zeros(300, requires_grad=True)
    x[np.array([0, 3, 0], dtype)].sum().backward()
    assert (x.grad.numpy()[:4] == [2, 0, 0, 1]).all()
    y = te.zeros(2, 4, requires_grad=True)
    y[1, np.array([0, 3, 0], dtype)].sum().backward()
    assert y.grad.tolist() == [[0] * 4, [2, 0, 0, 1]]


def test_maximum_beside_what_is_no_operand():
    with pytest.raises(TypeError, match="maximum of a Tensor and a list"):
        te.maximum(te.ones(2), [1, 2])


def test_batch_norm_without_channels():
    y = te.batch_norm(te.ones(4, 0), te.zeros(0), te.ones(0), training=True)
    assert y.shape == (4, 0)


def test_a_hook_cannot_write_to_gradients_that_others_hold():
    x = te.ones(2, requires_grad=True)
    start = te.ones(2)
    y = x * 1
    y.register_hook(lambda grad: grad.__setitem__(0, 99))
    with pytest.raises(ValueError, match="read-only"):
        y.backward(start)
    assert start.tolist() == [1, 1]


def test_gradients_of_an_input_that_is_given_twice_have_memory_of_their_own():
    x = te.ones(2, requires_grad=True)
    first, second = te.grad((x * x).sum(), [x, x])
    first[0] = 9
    assert second.tolist() == [2, 2]


def test_subclasses_of_arrays_become_plain_ones():
    class Sub(np.ndarray):
        pass

    array = np.ones(3, "float32").view(Sub)
    for tensor in (te.Tensor(array), te.as_tensor(array), te.from_numpy(array), te.ones(3) + array):
        assert type(tensor.data) is np.ndarray


MANY_AXES = {
    "add": lambda x: x + x,
    "where": lambda x: te.where(x > 0, x, 0.0),
    "clip": lambda x: x.clip(0, 1),
    "max": lambda x: x.max(0),
    "maximum": lambda x: x.maximum(x * 2),
    "matmul": lambda x: x @ x,
    "softmax": lambda x: x.softmax(),
    "concat": lambda x: te.concat([x, x]),
    "expand": lambda x: x.expand([2] + [-1] * 63),
    "index": lambda x: x[..., 0],
    "gather": lambda x: x[np.array([0])],
    "layer_norm": lambda x: te.layer_norm(x, 1),
}


@pytest.mark.parametrize("name", MANY_AXES)
def test_as_many_axes_as_arrays_have(name):
    x = te.ones([1] * 64, requires_grad=True)
    MANY_AXES[name](x).sum().backward()
    assert x.grad.shape == x.shape
