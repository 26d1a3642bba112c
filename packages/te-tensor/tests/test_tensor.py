"""Tensor: what it is made of, conversions, operators beside arrays and numbers, memory, locks."""

import copy
import pickle
import threading
import time
import weakref

import numpy as np
import pytest

import te_tensor as te
from te_tensor import dtypes

# -- making -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([1.0, 2.0], "float32"),
        ([1, 2], "int64"),
        ([True, False], "bool"),
        ([[1, 2.5]], "float32"),
        ([], "float32"),
        (3, "int64"),
        (3.5, "float32"),
        (True, "bool"),
        (1j, "complex64"),
        (np.float64(2), "float64"),
        (np.array([1.0]), "float64"),
        (np.array([1], np.int8), "int8"),
        (np.array([1.0], ">f8"), "float64"),
        (range(3), "int64"),
    ],
)
def test_dtype_of_data(data, dtype):
    t = te.Tensor(data)
    assert t.dtype.name == dtype
    assert t.tolist() == (data.tolist() if isinstance(data, np.ndarray) else
                          list(data) if isinstance(data, range) else data)  # fmt: skip


def test_a_flat_list_with_a_shape():
    assert te.Tensor([1, 2, 3, 4], [2, 2]).tolist() == [[1, 2], [3, 4]]
    assert te.Tensor(range(6), (2, -1)).shape == (2, 3)
    assert te.Tensor(5.0, ()).shape == ()
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 2\)"):
        te.Tensor([1, 2, 3], [2, 2])


def test_lists_are_not_rounded_twice():
    value = 1 + 2**-24 + 2**-40  # through float32 it would round to even
    assert te.Tensor([value], dtype="float64").item() == value
    assert te.Tensor([2**53 + 1], dtype="int64").item() == 2**53 + 1


def test_data_is_copied_and_contiguous():
    source = np.arange(6.0).reshape(2, 3)
    t = te.Tensor(source.T)
    assert t.data.flags.c_contiguous
    source[0, 0] = 9
    assert t[0, 0].item() == 0
    assert te.Tensor(t).numpy().base is not t.numpy().base


def test_a_tensor_of_a_tensor():
    x = te.Tensor([1.0], requires_grad=True)
    y = te.Tensor(x, dtype="float64")
    assert (y.dtype, y.requires_grad, y.creator) == (te.float64, False, None)


def test_from_numpy_shares_memory():
    source = np.arange(6.0).reshape(2, 3)
    t = te.from_numpy(source[:, ::2])
    source[0, 2] = 7
    assert t.tolist() == [[0, 7], [3, 5]]
    with t.lock() as array:
        array[1, 0] = -1
    assert source[1, 0] == -1


def test_foreign_byte_order_never_gets_in():
    foreign = np.array([1.0, 2.0], ">f4")
    assert te.as_tensor(foreign).dtype == te.float32
    assert te.exp(foreign).dtype == te.float32
    with pytest.raises(TypeError, match=">f4"):  # its memory can't be shared
        te.from_numpy(foreign)


def test_properties():
    t = te.Tensor(np.zeros((2, 3), "float32"))
    assert (t.shape, t.ndim, t.size, t.nbytes, len(t)) == ((2, 3), 2, 6, 24, 2)
    assert t.dtype == te.float32
    assert t.T.shape == (3, 2)
    assert (t.creator, t.inputs, t.is_leaf, t.grad, t.requires_grad) == (
        None,
        (),
        True,
        None,
        False,
    )
    y = te.Tensor([1.0], requires_grad=True) * 2
    assert type(y.creator).__name__ == "Mul"
    assert len(y.inputs) == 2
    assert not y.is_leaf


@pytest.mark.parametrize("name", sorted(d.name for d in dtypes.ALL))
def test_every_dtype_is_stored_and_cast(name):
    t = te.Tensor([0, 1, 1], dtype=name) if name != "float8_e8m0fnu" else te.Tensor(
        [1.0, 2.0, 0.5], dtype=name
    )  # fmt: skip
    assert t.dtype.name == name
    assert t.nbytes == 3 * t.dtype.itemsize
    if name != "complex64":
        assert t.astype("float64").astype(name).tolist() == t.tolist()
    assert name in repr(t)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_floats_are_stored_small(name):
    t = te.ones(10, dtype=name)
    assert t.nbytes == 10 * (1 if "8_" in name else 2)
    assert (t + t).nbytes == t.nbytes


# -- reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [lambda t: t.data, lambda t: t.numpy(), lambda t: t.get_data(),
                                  np.asarray])  # fmt: skip
def test_arrays_given_out_are_read_only_views(read):
    t = te.Tensor([1.0, 2.0], requires_grad=True)
    array = read(t)
    assert type(array) is np.ndarray
    assert np.shares_memory(array, t._array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5
    assert t._array.flags.writeable
    y = t * 2
    assert read(y).tolist() == [2.0, 4.0]  # never raises for requires_grad


def test_array_protocol():
    t = te.Tensor([1.0, 2.0])
    copied = np.array(t)
    copied[0] = 9
    assert t.tolist() == [1.0, 2.0]
    assert np.asarray(t, dtype="float64").dtype == np.float64
    assert np.asarray(t, copy=False).base is not None
    with pytest.raises(ValueError, match="float32 as float64 without a copy"):
        np.asarray(t, dtype="float64", copy=False)
    assert np.stack([t, t]).shape == (2, 2)


def test_dlpack_with_numpy():
    t = te.Tensor([[1.0, 2.0], [3.0, 4.0]])
    array = np.from_dlpack(t)
    assert array.tolist() == t.tolist()
    assert np.shares_memory(array, t._array)
    source = np.arange(4.0)
    back = te.from_dlpack(source)
    source[1] = 7
    assert back.tolist() == [0, 7, 2, 3]
    assert t.__dlpack_device__()[0] == 1


def test_items():
    assert te.Tensor([[2.5]]).item() == 2.5
    assert isinstance(te.Tensor([3]).item(), int)
    assert te.Tensor(2.0).tolist() == 2.0
    assert te.Tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert float(te.Tensor([1.5])) == 1.5
    assert int(te.Tensor(3.7)) == 3
    assert bool(te.Tensor([1])) is True
    assert f"{te.Tensor(1.25):.1f}" == "1.2"


def test_repr():
    assert repr(te.Tensor([1.0, 2.0])) == "Tensor([1., 2.], dtype=float32)"
    x = te.Tensor([1, 2], dtype="bfloat16", requires_grad=True)
    assert repr(x) == "Tensor([1, 2], dtype=bfloat16, requires_grad=True)"
    assert repr(x * 2).endswith("dtype=bfloat16, creator=Mul)")
    assert repr(te.zeros(0, 3)) == "Tensor([], dtype=float32, shape=(0, 3))"
    assert repr(te.Tensor(1.5)) == "Tensor(1.5, dtype=float32)"
    assert len(repr(te.zeros(1000, 1000))) < 1000
    assert f"{te.Tensor([1, 2])}" == "Tensor([1, 2], dtype=int64)"


def test_identity():
    x, y = te.Tensor([1.0]), te.Tensor([1.0])
    assert hash(x) != hash(y)
    assert len({x, y, x}) == 2
    assert {x: 1}[x] == 1
    assert weakref.ref(x)() is x


def test_iteration():
    x = te.Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    first, second = x
    assert second.tolist() == [3.0, 4.0]
    (first * second).sum().backward()
    assert x.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    with pytest.raises(TypeError, match="without axes"):
        iter(te.Tensor(1.0))
    assert list(te.zeros(0, 2)) == []


def test_comparisons():
    a, b = te.Tensor([1.0, 2.0, 3.0]), te.Tensor([2.0, 2.0, 2.0])
    assert (a < b).tolist() == [True, False, False]
    assert (a <= b).tolist() == [True, True, False]
    assert (a > 2).tolist() == [False, False, True]
    assert (a < 2).tolist() == [True, False, False]
    assert (a >= np.array([3.0, 2.0, 1.0])).tolist() == [False, True, True]
    assert (np.array([1.0, 0.0, 3.0]) == a).tolist() == [True, False, True]
    assert (a != b).tolist() == [True, False, True]
    assert (a == b).dtype == te.bool_
    assert (a == None) is False  # noqa: E711 - no tensor, so nothing to compare elementwise
    assert (te.Tensor([1, 2]) == 1.5).tolist() == [False, False]


# -- beside arrays and numbers ------------------------------------------------------------


def test_an_array_times_a_tensor_keeps_the_graph():
    x = te.Tensor([1.0, 2.0], dtype="float64", requires_grad=True)
    y = np.array([3.0, 4.0]) * x
    assert isinstance(y, te.Tensor)
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    "left", [np.ones((2, 2)), np.float32(2), np.float64(2), np.int64(2), 2, 2.0]
)
@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "**", "@"])
def test_operators_with_arrays_and_numbers_on_the_left(operator, left):
    x = te.Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    if operator == "@" and np.ndim(left) == 0:
        with pytest.raises(ValueError, match="matmul"):
            left @ x
        return
    if operator == "@":
        left = left.astype("float32")
    space = {"a": left, "b": x, "c": x.numpy()}
    y = eval(f"a {operator} b", space)
    assert isinstance(y, te.Tensor)
    assert y.requires_grad
    np.testing.assert_allclose(y.numpy(), eval(f"a {operator} c", space), rtol=1e-6)


@pytest.mark.parametrize("scalar", [2, 2.5, True, np.float64(2.5), np.int64(2), np.float32(2.5),
                                    np.bool_(True), np.float16(2.5)])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scalars_are_weak_beside_floats(dtype, scalar):
    x = te.Tensor([1.0, 2.0], dtype=dtype)
    for y in (x + scalar, scalar + x, x * scalar, scalar - x, x / scalar, scalar / x, x**scalar):
        assert y.dtype == x.dtype
    np.testing.assert_array_equal((x + scalar).tolist(), [1 + float(scalar), 2 + float(scalar)])


@pytest.mark.parametrize(
    ("dtype", "scalar", "expected"),
    [
        ("int8", 1, "int8"),
        ("int8", True, "int8"),
        ("int8", 1.5, "float32"),
        ("int64", np.float64(1.5), "float32"),
        ("uint8", np.int64(1), "uint8"),
        ("bool", 1, "int64"),
        ("bool", True, "bool"),
        ("bool", 1.5, "float32"),
    ],
)
def test_scalars_beside_integers(dtype, scalar, expected):
    x = te.Tensor([1, 0], dtype=dtype)
    assert (x + scalar).dtype.name == expected
    assert (scalar + x).dtype.name == expected


@pytest.mark.parametrize(("dtype", "scalar"), [("int8", 300), ("uint8", -1), ("int8", -129)])
def test_a_number_that_does_not_fit_raises(dtype, scalar):
    x = te.Tensor([1, 2], dtype=dtype)
    for f in (lambda: x + scalar, lambda: scalar * x):
        with pytest.raises((OverflowError, ValueError), match=str(scalar)):
            f()


def test_zero_dimensional_tensors_and_arrays_are_not_weak():
    x = te.Tensor([1.0, 2.0])
    assert (x + te.Tensor(1.0, dtype="float64")).dtype == te.float64
    assert (x + np.array(1.0)).dtype == te.float64


def test_other_operands_are_left_to_python():
    x = te.Tensor([1.0])
    for other in ("a", None, [1.0], {}):
        with pytest.raises(TypeError):
            x + other
        with pytest.raises(TypeError):
            other * x

    class Mine:
        def __radd__(self, other):
            return "mine"

    assert x + Mine() == "mine"


PROMOTIONS = [
    ("float32", "float32", "float32"),
    ("float32", "float64", "float64"),
    ("bool", "int8", "int8"),
    ("bool", "float16", "float16"),
    ("bool", "bool", "bool"),
    ("float16", "float32", "float32"),
    ("bfloat16", "float64", "float64"),
    ("float16", "bfloat16", "float32"),
    ("bfloat16", "float8_e5m2", "float32"),
    ("float8_e4m3fn", "float8_e5m2", "float32"),
    ("bfloat16", "int64", "float32"),
    ("float16", "int8", "float32"),
    ("float32", "int64", "float32"),
    ("float64", "uint8", "float64"),
    ("int8", "uint8", "int16"),
    ("int8", "int64", "int64"),
    ("int32", "uint8", "int32"),
    ("bfloat16", "bfloat16", "bfloat16"),
]


@pytest.mark.parametrize(("a", "b", "expected"), PROMOTIONS)
def test_promotion(a, b, expected):
    first, second = te.Tensor([1, 0], dtype=a), te.Tensor([1, 1], dtype=b)
    assert te.promote(first.dtype, second.dtype).name == expected
    assert te.promote(second.dtype, first.dtype).name == expected
    for result in (first * second, second * first):
        assert result.dtype.name == expected
        assert result.tolist() == [1, 0]


def test_promotion_is_symmetric_and_always_defined():
    computed = dtypes.ALL - dtypes.STORAGE_ONLY
    for a in computed:
        for b in computed:
            assert te.promote(a, b) == te.promote(b, a)
            assert te.promote(a, b) in computed
            assert te.promote(a, te.promote(a, b)) == te.promote(a, b)


@pytest.mark.parametrize("name", sorted(d.name for d in dtypes.STORAGE_ONLY))
def test_storage_dtypes_are_not_computed_with(name):
    t = te.ones(2, dtype=name)
    for f in (lambda: t + t, lambda: t * te.ones(2), lambda: t + 1, lambda: t == t,
              lambda: te.concat([t, t]), lambda: t.sum(), lambda: t.exp(), lambda: -t,
              lambda: t @ t):  # fmt: skip
        with pytest.raises(TypeError, match=f"{name} is for storage only"):
            f()


def test_division_of_integers_is_in_float32():
    a, b = te.Tensor([1, 2]), te.Tensor([2, 2])
    assert (a / b).dtype == te.float32
    assert (a / b).tolist() == [0.5, 1.0]
    assert (a / 4).tolist() == [0.25, 0.5]
    assert (1 / a).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64"])
def test_sums_of_integers_are_in_int64(dtype):
    t = te.Tensor([1] * 300, dtype=dtype)
    assert t.sum().dtype == te.int64
    assert t.sum().item() == 300
    assert t.sum(axis=0, keepdims=True).dtype == te.int64
    assert t.mean().dtype == te.float32
    assert t.exp().dtype == te.float32


# -- views, changes and locks -------------------------------------------------------------


def test_moves_are_views():
    x = te.zeros(2, 3)
    for view in (x.reshape(3, 2), x.T, x[1:], x.detach(), x.flatten(), x.unsqueeze(0)):
        assert np.shares_memory(view._array, x._array)
    for copied in (x.clone(), x[[0]], x.astype("float32"), te.Tensor(x)):
        assert not np.shares_memory(copied._array, x._array)


def test_detach_and_clone():
    x = te.Tensor([1.0], requires_grad=True)
    y = x * 2
    d = y.detach()
    assert (d.requires_grad, d.creator, d.is_leaf) == (False, None, True)
    c = y.clone()
    c.backward()
    assert x.grad.tolist() == [2.0]


def test_lock_gives_the_memory():
    t = te.Tensor([1.0, 2.0])
    with t.lock() as array:
        array += 1
        assert type(array) is np.ndarray
    assert t.tolist() == [2.0, 3.0]
    with t.lock(write=False) as array:
        assert not array.flags.writeable
        assert array.tolist() == [2.0, 3.0]


def test_lock_is_reentrant():
    t = te.Tensor([1.0])
    with t.lock() as outer, t.lock() as inner:
        inner[0] = 5
        assert outer[0] == 5


def test_lock_on_read_only_memory_raises():
    t = te.ones(1).expand(3)
    with pytest.raises(ValueError, match="read-only"), t.lock():
        pass
    with t.lock(write=False) as array:
        assert array.tolist() == [1.0, 1.0, 1.0]


def test_lock_is_given_back_after_an_error():
    t = te.Tensor([1.0])
    with pytest.raises(KeyError), t.lock():
        raise KeyError
    done = []

    def work():
        with t.lock() as array:
            array[0] = 2
        done.append(True)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(10)
    assert done


@pytest.mark.parametrize("write", [True, False])
def test_lock_excludes_other_threads(write):
    t = te.zeros(2)
    view = t[1:]  # the same memory, so the same lock
    entered, leave, order = threading.Event(), threading.Event(), []

    def holder():
        with t.lock():
            entered.set()
            leave.wait(10)
            order.append("holder")

    def waiter():
        entered.wait(10)
        with view.lock(write=write):
            order.append("waiter")

    workers = [threading.Thread(target=f) for f in (holder, waiter)]
    for worker in workers:
        worker.start()
    entered.wait(10)
    time.sleep(0.05)
    assert order == []
    leave.set()
    for worker in workers:
        worker.join(10)
    assert order == ["holder", "waiter"]


def test_lock_makes_increments_safe():
    t = te.zeros(1, dtype="int64")

    def work():
        for _ in range(2000):
            with t.lock() as array:
                array[0] = array[0] + 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert t.item() == 8000


def test_item_assignment():
    t = te.zeros(2, 3)
    t[0] = 1.0
    t[1, ::2] = te.Tensor([5.0, 6.0])
    t[te.Tensor([0]), 1] = -1
    assert t.tolist() == [[1.0, -1.0, 1.0], [5.0, 0.0, 6.0]]
    t[t < 0] = 9
    assert t[0, 1].item() == 9


# -- copies -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_leaves(protocol):
    x = te.Tensor([[1.0, 2.0]], requires_grad=True)
    with x.lock():  # the lock is left out
        pass
    y = pickle.loads(pickle.dumps(x, protocol))
    assert type(y) is te.Tensor
    assert (y.tolist(), y.dtype, y.requires_grad, y.grad) == (x.tolist(), x.dtype, True, None)
    y[0, 0] = 9
    assert x.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int8", "bool"])
def test_pickle_of_every_kind(dtype):
    x = te.Tensor([[1, 0], [0, 1]], dtype=dtype).T
    y = pickle.loads(pickle.dumps(x))
    assert (y.tolist(), y.dtype) == (x.tolist(), x.dtype)


def test_deepcopy_of_leaves():
    x = te.Tensor([1.0, 2.0], requires_grad=True)
    (x * 3).sum().backward()
    y, again = copy.deepcopy([x, x])
    assert y is again
    assert y.requires_grad
    assert y.grad.tolist() == [3.0, 3.0]
    y[0] = 9
    with y.grad.lock() as array:
        array[:] = 0
    assert x.tolist() == [1.0, 2.0]
    assert x.grad.tolist() == [3.0, 3.0]


def test_copies_of_results_raise():
    y = te.Tensor([1.0], requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"pickled.*detach\(\)"):
        pickle.dumps(y)
    with pytest.raises(RuntimeError, match=r"deep-copied.*detach\(\)"):
        copy.deepcopy(y)
    assert copy.deepcopy(y.detach()).tolist() == [2.0]


class Named(te.Tensor):
    """A subclass, as te-nn's Parameter is one."""


def test_subclasses_keep_their_class_in_copies():
    x = Named([1.0], requires_grad=True)
    assert type(copy.deepcopy(x)) is Named
    assert type(pickle.loads(pickle.dumps(x))) is Named
    assert type(x * 2) is te.Tensor


# -- creation -----------------------------------------------------------------------------


def test_creation():
    assert te.zeros(2, 3).tolist() == [[0.0] * 3] * 2
    assert te.ones((2,)).tolist() == [1.0, 1.0]
    assert te.zeros(()).shape == te.zeros().shape == ()
    assert te.full((2,), 7).dtype == te.int64
    assert te.full(2, 1.5).tolist() == [1.5, 1.5]
    assert te.full((), True).dtype == te.bool_
    assert te.eye(2).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert te.eye(1, 3, dtype="int8").tolist() == [[1, 0, 0]]
    assert te.arange(3).tolist() == [0, 1, 2]
    assert te.arange(3).dtype == te.int64
    assert te.arange(1.0, 2, 0.5).tolist() == [1.0, 1.5]
    assert te.arange(5, 0, -2).tolist() == [5, 3, 1]
    assert te.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert te.linspace(0, 1, 0).shape == (0,)
    assert te.linspace(0, 1, 2, endpoint=False).tolist() == [0.0, 0.5]
    assert te.eye(2, 3, k=1).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert te.eye(2, k=-1).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert te.full((2,), fill_value=3).tolist() == [3, 3]
    assert te.full_like(te.zeros(1), fill_value=3).tolist() == [3.0]


def test_creation_like():
    x = te.zeros(2, 3, dtype="bfloat16")
    for y in (te.zeros_like(x), te.ones_like(x), te.full_like(x, 2), te.rand_like(x),
              te.randn_like(x), te.randint_like(x, 0, 9)):  # fmt: skip
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert te.ones_like(x, dtype="int8").dtype == te.int8
    assert te.full_like(x, 2).tolist() == [[2.0] * 3] * 2
    drawn = te.randint_like(np.zeros(500), -1, 2, dtype="int8", generator=te.Generator(0))
    assert drawn.dtype == te.int8
    assert set(drawn.tolist()) == {-1, 0, 1}
    same = te.randint(-1, 2, 500, dtype="int8", generator=te.Generator(0))
    assert drawn.tolist() == same.tolist()


def test_squeeze_of_several_axes():
    x = te.ones(1, 2, 1, 1, requires_grad=True)
    assert x.squeeze((0, -1)).shape == (2, 1)
    assert te.squeeze(x, [3, 2]).shape == (1, 2)
    assert te.squeeze(x, ()).shape == x.shape
    x.squeeze((0, 2)).sum().backward()
    assert x.grad.shape == x.shape


def test_concat_of_all_elements():
    a, b = te.Tensor([[1.0, 2.0]], requires_grad=True), te.Tensor(3, dtype="float32")
    joined = te.concat([a, b], axis=None)
    assert joined.tolist() == [1.0, 2.0, 3.0]
    (joined * te.Tensor([4.0, 5.0, 6.0])).sum().backward()
    assert a.grad.tolist() == [[4.0, 5.0]]


def test_astype_as_a_function():
    x = te.ones(2, requires_grad=True)
    y = te.astype(x, "float16")
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (te.float16, te.float32)
    assert te.astype(np.ones(2), te.int8).tolist() == [1, 1]


def test_creation_with_gradients():
    for x in (te.zeros(2, requires_grad=True), te.ones(2, requires_grad=True),
              te.full(2, 1.0, requires_grad=True), te.eye(2, requires_grad=True),
              te.rand(2, requires_grad=True), te.randn(2, requires_grad=True)):  # fmt: skip
        assert x.requires_grad
        assert x.is_leaf


def test_allclose():
    assert te.allclose(te.Tensor([1.0]), [1.0 + 1e-6])
    assert not te.allclose(te.Tensor([1.0]), [1.1])
    assert not te.allclose(te.Tensor([np.nan]), [np.nan])


def test_large_numbers_that_are_no_python_integers():
    assert te.Tensor([float(1 << 63), 1]).dtype == te.float32
    assert te.Tensor([1 << 63, 0.5]).dtype == te.float32
    assert te.Tensor([np.uint64(1 << 63)]).dtype == te.uint64
    assert te.Tensor(1 << 63, dtype="uint64").item() == 1 << 63
    assert te.Tensor([(1 << 63) - 1, -(1 << 63)]).dtype == te.int64
