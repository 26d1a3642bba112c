"""The backward walk: order, ownership of gradients, what is freed, and what raises."""

import gc
import threading
import weakref

import numpy as np
import pytest

import te_tensor as te
from te_tensor import storage


def leaf(*values, dtype="float32"):
    return te.Tensor(list(values), dtype=dtype, requires_grad=True)


class Custom(te.Operation):
    """The identity, with a backward that a test gives."""

    def __init__(self, backward, **attributes):
        self._backward = backward
        vars(self).update(attributes)

    def forward(self, *arrays):
        self.save(*arrays)
        return arrays[0].copy()

    def backward(self, grad):
        return self._backward(self, grad)


# -- what meets ---------------------------------------------------------------------------


def test_a_node_used_twice_sums_its_gradients():
    x = leaf(2.0, 3.0)
    y = x.exp()
    (y * y).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp([4.0, 6.0]), rtol=1e-6)


def test_a_node_is_visited_once():
    calls = []

    def backward(operation, grad):
        calls.append(grad.copy())
        return (grad,)

    x = leaf(1.0)
    y = te.Tensor.apply(Custom(backward), x)
    (y * 2 + y * 3 + y).sum().backward()
    assert [c.tolist() for c in calls] == [[6.0]]
    assert x.grad.tolist() == [6.0]


def test_diamonds_in_a_row():
    x = leaf(1.0)
    y = x
    for _ in range(50):  # 2^50 paths
        y = y + y
    y.backward()
    assert x.grad.tolist() == [2.0**50]


def test_a_late_user_of_an_early_node():
    x = leaf(3.0)
    early = x * 2
    late = early
    for _ in range(5):
        late = late * 1
    (late * early).backward()
    assert x.grad.tolist() == [24.0]


def test_the_same_tensor_on_both_sides():
    x = leaf(3.0, 4.0)
    (x * x).sum().backward()
    assert x.grad.tolist() == [6.0, 8.0]
    y = leaf(3.0)
    (y - y).backward()
    assert y.grad.tolist() == [0.0]


def test_gradients_accumulate_over_calls():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    held = x.grad
    (x * 4).sum().backward()
    assert x.grad.tolist() == [7.0, 7.0]
    assert held is x.grad
    x.zero_grad()
    assert x.grad is None


def test_backward_on_a_leaf_itself():
    x = leaf(1.0, 2.0)
    given = np.array([3.0, 4.0], np.float32)
    x.backward(given)
    given[0] = 99
    assert x.grad.tolist() == [3.0, 4.0]


def test_a_tensor_that_needs_no_gradient_gets_none():
    x, c = leaf(1.0), te.Tensor([2.0])
    (x * c).backward()
    assert c.grad is None
    assert x.grad.tolist() == [2.0]


def test_needs_grad_is_set_before_forward():
    seen = []

    class Look(te.Operation):
        def forward(self, a, b):
            seen.append(self.needs_grad)
            self.save(a, b)
            seen.append(len(self.saved))
            return a + b

    te.Tensor.apply(Look(), leaf(1.0), te.Tensor([2.0]))
    te.Tensor.apply(Look(), te.Tensor([1.0]), te.Tensor([2.0]))
    assert seen == [(True, False), 2, (False, False), 0]


# -- who owns a gradient ------------------------------------------------------------------


def _own(tensor):
    """Hold that a leaf's gradient shares memory with nothing and may be written to."""
    array = tensor.grad._array
    assert array.base is None
    assert array.flags.writeable
    return array


def test_two_leaves_that_receive_the_same_array_own_theirs():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x + y).backward(np.ones(2, np.float32))
    _own(x)[:] = 7
    assert y.grad.tolist() == [1.0, 1.0]
    assert x.grad.tolist() == [7.0, 7.0]


SHARED = np.full(2, 5.0, np.float32)


class WithClassCache(Custom):
    cached = SHARED


BACKWARDS = {
    "the incoming gradient": lambda op, grad: (grad,),
    "a view of the incoming gradient": lambda op, grad: (grad[:],),
    "a reversed view": lambda op, grad: (grad[::-1][::-1],),
    "a saved array": lambda op, grad: (op.saved[0],),
    "a view of a saved array": lambda op, grad: (op.saved[0][:],),
    "an attribute": lambda op, grad: (op.cache,),
    "an array inside an attribute": lambda op, grad: (op.several["one"],),
    "an attribute of the class": lambda op, grad: (op.cached,),
    "an array of the module": lambda op, grad: (SHARED,),
    "a read-only array": lambda op, grad: (np.broadcast_to(np.float32(2), (2,)),),
}


@pytest.mark.parametrize("what", BACKWARDS)
def test_a_leaf_owns_its_gradient_when_backward_returns(what):
    cache = np.full(2, 3.0, np.float32)
    several = {"one": np.full(2, 4.0, np.float32)}
    x = leaf(1.0, 2.0)
    operation = WithClassCache(BACKWARDS[what], cache=cache, several=several)
    y = te.Tensor.apply(operation, x)
    given = np.array([6.0, 7.0], np.float32)
    others = [given, cache, several["one"], SHARED, x._array]
    before = [a.copy() for a in others]
    y.backward(given, retain_graph=True)
    first = x.grad.numpy().copy()
    y.backward(given, retain_graph=True)  # adds into x.grad, in place
    np.testing.assert_array_equal(x.grad.numpy(), 2 * first)
    array = _own(x)
    assert not any(np.shares_memory(array, a) for a in others)
    for a, b in zip(others, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_array_returned_for_two_inputs():
    def backward(operation, grad):
        fresh = grad * 2
        return fresh, fresh

    x, y = leaf(1.0), leaf(2.0)
    te.Tensor.apply(Custom(backward), x, y).backward()
    _own(x)[:] = 9
    assert y.grad.tolist() == [2.0]


def test_two_views_of_one_array_returned_for_two_inputs():
    def backward(operation, grad):
        both = np.stack([grad, grad])
        return both[0], both[1]

    x, y = leaf(1.0), leaf(2.0)
    te.Tensor.apply(Custom(backward), x, y).backward()
    _own(x)[:] = 9
    assert y.grad.tolist() == [1.0]


def test_the_walk_never_writes_into_what_it_does_not_own():
    kept = []

    def backward(operation, grad):
        kept.append((grad, grad.copy()))
        return (grad,)

    x = leaf(1.0, 2.0)
    nodes = [te.Tensor.apply(Custom(backward), x) for _ in range(3)]
    given = np.ones(2, np.float32)
    (nodes[0] + nodes[1] + nodes[2]).backward(given)
    assert x.grad.tolist() == [3.0, 3.0]
    assert given.tolist() == [1.0, 1.0]
    for grad, copy in kept:
        np.testing.assert_array_equal(grad, copy)


def test_an_incoming_gradient_of_stride_0():
    x, w = te.randn(3, 4, requires_grad=True), te.randn(4, 2, requires_grad=True)
    (x @ w).sum().backward()  # Sum hands on a broadcast view
    ones = np.ones((3, 2), np.float32)
    np.testing.assert_allclose(x.grad.numpy(), ones @ w.numpy().T, rtol=1e-5)
    np.testing.assert_allclose(w.grad.numpy(), x.numpy().T @ ones, rtol=1e-5)
    y = leaf(1.0, 2.0)
    y.sum().backward()
    _own(y)[0] = 5
    assert y.grad.tolist() == [5.0, 1.0]


@pytest.mark.parametrize("shape", [(1,), (3, 1), (1, 4), (2, 1, 4), (), (4,)])
def test_broadcast_gradients_are_summed(shape):
    x = te.ones(*shape, dtype="float64", requires_grad=True)
    weight = np.arange(24.0).reshape(2, 3, 4)
    (x + te.zeros(2, 3, 4, dtype="float64")).backward(weight)
    assert x.grad.shape == shape
    kept = (1,) * (3 - len(shape)) + shape
    axes = tuple(a for a in range(3) if kept[a] == 1)
    np.testing.assert_array_equal(x.grad.numpy(), weight.sum(axes).reshape(shape))
    assert x.grad.numpy().sum() == weight.sum()


# -- long graphs and memory ---------------------------------------------------------------


def test_a_chain_of_100000_operations():
    x = leaf(0.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    assert y.item() == 100_000
    y.backward()
    assert x.grad.tolist() == [1.0]


def test_a_chain_of_100000_operations_is_deleted_unused():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y * 1.0
    last = weakref.ref(y.creator)
    del y  # no recursion here either
    assert last() is None


def test_a_wide_graph():
    x = leaf(1.0)
    te.concat([x * float(i) for i in range(5000)]).sum().backward()
    assert x.grad.item() == pytest.approx(5000 * 4999 / 2)


def test_backward_frees_what_was_saved():
    x = te.randn(50, requires_grad=True)
    y = x.exp()
    saved = weakref.ref(y.creator.saved[0])
    middle = weakref.ref(y)
    z = (y * y).sum()
    del y
    assert saved() is not None
    z.backward()
    assert saved() is None
    assert middle() is None
    assert z.inputs == ()


def test_a_graph_without_a_gradient_needed_keeps_nothing():
    x = te.randn(5)
    y = x.exp()
    assert y.creator is None
    assert y.inputs == ()
    assert y.is_leaf


def test_no_cycles_are_left_to_the_collector():
    gc.collect()
    gc.disable()
    try:
        x = te.randn(4, 4, requires_grad=True)
        y = te.softmax(te.linear(x, x), 1)
        operation = weakref.ref(y.creator)
        del y
        assert operation() is None
    finally:
        gc.enable()


# -- backward twice -----------------------------------------------------------------------


def test_a_second_backward_says_what_to_do():
    x = leaf(1.0, 2.0)
    y = x.exp().sum()
    y.backward()
    once = x.grad.numpy().copy()
    with pytest.raises(RuntimeError, match=r"retain_graph=True.*or run forward again"):
        y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), once)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_keeps_its_slope_while_the_graph_is_retained(approximate):
    x = te.randn(600, 500, requires_grad=True)
    y, upstream = x.gelu(approximate), te.randn(600, 500)
    grads = []
    for retain in (True, True, False):
        x.grad = None
        y.backward(upstream, retain_graph=retain)
        grads.append(x.grad.numpy())
    for grad in grads[1:]:
        np.testing.assert_array_equal(grad, grads[0])


def test_retain_graph_allows_a_second_backward():
    x = leaf(1.0, 2.0)
    y = x.exp().sum()
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_graphs_that_share_a_part():
    x = leaf(1.0, 2.0)
    shared = x.exp()
    first, second = shared.sum(), (shared * 2).sum()
    first.backward()
    once = x.grad.numpy().copy()
    with pytest.raises(RuntimeError, match="through Exp already"):
        second.backward()
    np.testing.assert_array_equal(x.grad.numpy(), once)  # nothing was added on the way

    x.zero_grad()
    shared = x.exp()
    first, second = shared.sum(), (shared * 2).sum()
    first.backward(retain_graph=True)
    second.backward()
    np.testing.assert_allclose(x.grad.numpy(), 3 * np.exp([1.0, 2.0]), rtol=1e-6)


def test_using_a_tensor_of_a_freed_graph_raises_too():
    x = leaf(1.0)
    y = x.exp()
    y.backward()
    with pytest.raises(RuntimeError, match="through Exp already"):
        (y * 2).backward()


# -- several outputs ----------------------------------------------------------------------


class Powers(te.Operation):
    def forward(self, x):
        self.save(x)
        return x, x * x, x**3

    def backward(self, one, two, three):
        (x,) = self.saved
        self.seen = tuple(None if g is None else g.tolist() for g in (one, two, three))
        parts = [f * g for f, g in ((1, one), (2 * x, two), (3 * x * x, three)) if g is not None]
        return (sum(parts),)


def test_several_outputs():
    x = leaf(2.0)
    a, b, c = te.Tensor.apply(Powers(), x)
    assert [t.output_index for t in (a, b, c)] == [0, 1, 2]
    assert a.creator is b.creator is c.creator
    (a + b + c).backward()
    assert x.grad.tolist() == [17.0]


def test_an_unused_output_has_no_gradient():
    x = leaf(2.0)
    outputs = te.Tensor.apply(Powers(), x)
    operation = outputs[0].creator
    (outputs[0] * 5 + outputs[2]).backward()
    assert operation.seen == ([5.0], None, [1.0])
    assert x.grad.tolist() == [17.0]


def test_one_output_in_a_tuple_stays_a_tuple():
    class One(te.Operation):
        def forward(self, x):
            return (x * 2,)

        def backward(self, grad):
            return (grad * 2,)

    x = leaf(1.0)
    (y,) = te.Tensor.apply(One(), x)
    y.backward()
    assert x.grad.tolist() == [2.0]


def test_an_integer_output_needs_no_gradient():
    class WithIndex(te.Operation):
        def forward(self, x):
            return x.max(keepdims=True), x.argmax(keepdims=True)

        def backward(self, grad, index):
            assert index is None
            return (np.array([0, 1], np.float32) * grad,)

    x = leaf(1.0, 2.0)
    value, index = te.Tensor.apply(WithIndex(), x)
    assert value.requires_grad
    assert not index.requires_grad
    value.backward()
    assert x.grad.tolist() == [0.0, 1.0]


# -- what raises --------------------------------------------------------------------------


def test_backward_on_several_elements_needs_a_gradient():
    with pytest.raises(RuntimeError, match=r"shape \(2,\) without a gradient"):
        (leaf(1.0, 2.0) * 2).backward()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_backward_on_one_element_needs_none(shape):
    x = te.ones(*shape, requires_grad=True)
    (x * 3).backward()
    assert x.grad.shape == shape
    assert x.grad.item() == 3


def test_a_starting_gradient_of_another_shape_raises():
    with pytest.raises(ValueError, match=r"shape \(3,\): expected \(2,\)"):
        (leaf(1.0, 2.0) * 2).backward(np.ones(3))


def test_backward_where_no_gradient_is_needed_raises():
    with pytest.raises(RuntimeError, match="needs no gradient"):
        te.ones(1).backward()
    with te.no_grad():
        y = leaf(1.0) * 2
    with pytest.raises(RuntimeError, match="needs no gradient"):
        y.backward()


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool", "complex64", "uint16"])
def test_integers_have_no_gradients(dtype):
    with pytest.raises(TypeError, match=f"requires_grad on {dtype}"):
        te.Tensor([1, 0], dtype=dtype, requires_grad=True)
    x = te.Tensor([1, 0], dtype=dtype)
    with pytest.raises(TypeError, match=dtype):
        x.requires_grad = True


def test_create_graph_raises():
    x = leaf(1.0)
    with pytest.raises(NotImplementedError, match="create_graph"):
        (x * x).backward(create_graph=True)
    assert x.grad is None


def test_an_instance_applied_twice_raises():
    operation = Custom(lambda op, grad: (grad,))
    te.Tensor.apply(operation, leaf(1.0))
    with pytest.raises(RuntimeError, match="Custom has been applied already"):
        te.Tensor.apply(operation, leaf(1.0))


def test_apply_to_something_else_than_tensors_raises():
    with pytest.raises(TypeError, match=r"\(Tensor, float\)"):
        te.Tensor.apply(te.REGISTRY["Add"](), leaf(1.0), 2.0)


@pytest.mark.parametrize("shape", [(3,), (1,), (), (2, 1), (1, 2)])
def test_a_gradient_of_a_wrong_shape_raises(shape):
    x = leaf(1.0, 2.0)
    y = te.Tensor.apply(Custom(lambda op, grad: (np.ones(shape, np.float32),)), x)
    with pytest.raises(ValueError, match=r"Custom returned a gradient of shape"):
        y.backward(np.ones(2))
    assert x.grad is None


class Broadcasting(Custom):
    broadcasts = True


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 3), (2, 4)])
def test_a_gradient_that_broadcasting_can_not_explain_raises(shape):
    x = te.ones(2, 3, requires_grad=True)
    y = te.Tensor.apply(Broadcasting(lambda op, grad: (np.ones(shape, np.float32),)), x)
    with pytest.raises(ValueError, match="Broadcasting"):
        y.backward(np.ones((2, 3)))
    assert x.grad is None


@pytest.mark.parametrize("gradients", [(), (None, None)])
def test_a_wrong_number_of_gradients_raises(gradients):
    y = te.Tensor.apply(Custom(lambda op, grad: gradients), leaf(1.0))
    with pytest.raises(ValueError, match=f"returned {len(gradients)} gradients for 1 inputs"):
        y.backward()


def test_an_error_in_a_backward_names_the_operation():
    def backward(operation, grad):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError) as caught:
        te.Tensor.apply(Custom(backward), leaf(1.0)).backward()
    assert caught.value.__notes__ == ["in the backward of Custom"]


def test_operations_without_forward_or_backward_raise():
    class Empty(te.Operation):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no forward"):
        te.Tensor.apply(Empty(), leaf(1.0))


def test_requires_grad_can_not_be_taken_from_a_result():
    y = leaf(1.0) * 2
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False


# -- changes after an array was saved -----------------------------------------------------


def _lock(x):
    with x.lock() as array:
        array *= 2


def _assign(x):
    x[0] = 5.0


def _view(x):
    with te.no_grad():
        part = x.detach()[1:]
    with part.lock() as array:
        array[...] = 9


def _from_detached(x):
    x.detach()[0] = 3.0


CHANGES = [_lock, _assign, _view, _from_detached]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_a_saved_array_raises(change):
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x * w).sum()
    change(w)
    with pytest.raises(RuntimeError, match=r"Mul saved for backward was changed"):
        y.backward()
    assert x.grad is None


@pytest.mark.parametrize(
    ("index", "value"), [(5, 1.0), (0, "a"), (slice(2), [1.0, "a"]), (slice(2), np.ones(3))]
)
def test_an_assignment_that_fails_is_no_change(index, value):
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x * w).sum()
    with pytest.raises((IndexError, ValueError)):
        w.detach()[index] = value
    y.backward()
    assert x.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_what_was_not_saved_is_fine(change):
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x + w).sum()
    change(w)
    y.backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_a_change_before_the_forward_is_fine():
    x = leaf(1.0, 2.0)
    _lock(x)
    y = (x * x).sum()
    y.backward()
    assert x.grad.tolist() == [4.0, 8.0]


def test_a_change_to_another_tensor_is_fine():
    x, other = leaf(1.0, 2.0), te.Tensor([1.0])
    y = (x * x).sum()
    _assign(other)
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_reading_under_lock_is_no_change():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    with x.lock(write=False) as array, pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_a_change_to_a_saved_result_raises():
    x = leaf(1.0, 2.0)
    y = x.exp()
    with y.lock() as array:
        array *= 2
    with pytest.raises(RuntimeError, match="Exp saved"):
        y.sum().backward()


@pytest.mark.parametrize("kind", [te.Tensor, np.array])
def test_a_change_to_an_index_gives_no_wrong_gradient(kind):
    x, index = leaf(1.0, 2.0, 3.0), kind([0, 1])
    y = (x[index] * te.Tensor([10.0, 20.0])).sum()
    index[0] = 2
    try:
        y.backward()
    except RuntimeError as error:
        assert "Gather saved for backward was changed" in str(error)
    else:
        assert x.grad.tolist() == [10.0, 20.0, 0.0]


def test_a_clone_may_be_changed():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    copy = x.clone().detach()
    _assign(copy)
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_records_of_memory_go_with_the_memory():
    before = len(storage._records)
    x = te.zeros(3)
    x[0] = 1.0
    assert len(storage._records) == before + 1
    del x
    assert len(storage._records) == before


def test_item_assignment_to_a_result_raises():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(RuntimeError, match="would not be recorded"):
        y[0] = 1.0


# -- small floats -------------------------------------------------------------------------

SMALL = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", SMALL)
def test_small_floats_compute_in_float32_and_round_once(dtype):
    class Chain(te.Operation):
        """Several steps, with what it saw noted."""

        seen = []

        def forward(self, a, b):
            self.seen.append((a.dtype, b.dtype))
            self.save(a, b)
            return (a * b + a) * np.float32(1.1) - b

        def backward(self, grad):
            a, b = self.saved
            self.seen.append((grad.dtype, a.dtype))
            return grad * np.float32(1.1) * (b + 1), grad * (np.float32(1.1) * a - 1)

    rng = np.random.default_rng(0)
    a, b = (te.Tensor(rng.uniform(0.5, 2, 50), dtype=dtype, requires_grad=True) for _ in "ab")
    result = te.Tensor.apply(Chain(), a, b)
    result.backward(te.ones(50, dtype=dtype))
    assert set(Chain.seen) == {(te.float32, te.float32)}
    wide_a, wide_b = (t.numpy().astype(np.float32) for t in (a, b))
    expected = (wide_a * wide_b + wide_a) * np.float32(1.1) - wide_b
    assert result.dtype == a.dtype
    np.testing.assert_array_equal(result.numpy(), expected.astype(a.dtype))
    assert a.grad.dtype == a.dtype
    np.testing.assert_array_equal(a.grad.numpy(), (np.float32(1.1) * (wide_b + 1)).astype(a.dtype))


@pytest.mark.parametrize("dtype", SMALL)
def test_a_small_float_beside_a_wide_one(dtype):
    a = te.Tensor([1.5, 2.0], dtype=dtype, requires_grad=True)
    b = te.Tensor([1.25, 3.0], dtype="float64", requires_grad=True)
    y = a * b
    assert y.dtype == te.float64
    y.sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (a.dtype, te.float64)
    assert a.grad.tolist() == [1.25, 3.0]


def test_a_broadcast_gradient_of_small_floats_is_summed_in_float32():
    # 4096 summands of 1: bfloat16 would stop at 256
    x = te.zeros(1, dtype="bfloat16", requires_grad=True)
    (x + te.zeros(4096, dtype="bfloat16")).backward(te.ones(4096, dtype="bfloat16"))
    assert x.grad.item() == 4096


@pytest.mark.parametrize("first", ["float16", "float32", "float64"])
@pytest.mark.parametrize("second", ["bfloat16", "float32", "float64"])
def test_casts_give_gradients_back_in_the_dtype_of_the_leaf(first, second):
    x = te.Tensor([1.0, 2.0], dtype=first, requires_grad=True)
    y = x.astype(second)
    assert y.dtype.name == second
    (y * 3).sum().backward()
    assert x.grad.dtype.name == first
    assert x.grad.tolist() == [3.0, 3.0]


def test_a_cast_to_integers_ends_the_graph():
    x = leaf(1.5, 2.5)
    y = x.astype("int64")
    assert y.tolist() == [1, 2]
    assert not y.requires_grad
    assert y.is_leaf


# -- threads ------------------------------------------------------------------------------


def test_threads_that_share_a_leaf_add_up_their_gradients():
    x = te.ones(1000, requires_grad=True)

    def work():
        for _ in range(50):
            (x * 2).sum().backward()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(x.grad.numpy(), np.full(1000, 400.0))


def test_setting_a_gradient_copies_it():
    x = leaf(1.0, 2.0)
    given = np.array([1.0, 1.0], np.float32)
    x.grad = given
    (x * 2).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
    assert given.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"shape \(3,\): expected \(2,\)"):
        x.grad = np.ones(3)
    x.grad = None
    assert x.grad is None


# -- leaves -------------------------------------------------------------------------------


class Ignoring(te.Operation):
    """The first input; brings no gradient to the second, though it needs one."""

    def forward(self, a, b):
        return a.copy()

    def backward(self, grad):
        return grad, None


def test_a_leaf_of_an_operation_that_no_gradient_comes_to():
    for hooked in (False, True):
        x, y, seen = leaf(1.0), leaf(5.0), []
        if hooked:
            x.register_hook(lambda grad, seen=seen: seen.append(grad.tolist()))
        aside = x * 3
        (te.Tensor.apply(Ignoring(), y, aside) + x * 2).backward()
        assert x.grad.tolist() == [2.0]
        assert y.grad.tolist() == [1.0]
        assert seen == [[2.0]] * hooked


def test_a_leaf_that_ceased_to_need_a_gradient():
    x, y = leaf(1.0), leaf(2.0)
    z = x * y + x * x
    x.requires_grad = False
    z.backward()
    assert y.grad.tolist() == [1.0]


def test_a_leaf_that_came_to_need_a_gradient_after_forward():
    x, y = te.Tensor([3.0]), leaf(2.0)
    z = x * y
    x.requires_grad = True
    (z + x).backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([1.0], [3.0])


def test_a_leafs_gradients_are_summed_before_they_are_added():
    x = leaf(0.0)
    x.grad = [2.0**24]  # to which 1 alone adds nothing
    (x * 1 + x * 1).backward()
    assert x.grad.tolist() == [2.0**24 + 2]


def test_an_operation_is_let_go_of_on_the_way():
    alive = []

    def backward(operation, grad):
        alive.append([reference() is not None for reference in references])
        return (grad,)

    references, y = [], leaf(1.0)
    for _ in range(3):
        operation = Custom(backward)
        references.append(weakref.ref(operation))
        y = te.Tensor.apply(operation, y)
        y = y + y
    del operation
    y.backward()
    assert alive == [[True, True, True], [True, True, False], [True, False, False]]


@pytest.mark.parametrize("value", [2.5, -0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [3, 1 << 15])
def test_the_gradient_of_a_sum_is_one_number_everywhere(value, dtype, size):
    x = te.zeros(size, 2, dtype=dtype, requires_grad=True)
    x.sum().backward(te.Tensor(value, dtype=dtype))
    wanted = np.full((size, 2), value, dtype)
    np.testing.assert_array_equal(x.grad.data, wanted)
    assert np.array_equal(np.signbit(x.grad.data), np.signbit(wanted))
    with x.grad.lock() as array:  # memory of its own
        array[0] = 1
    assert x.grad.data[1, 0] != 1


def test_what_only_stands_for_an_array_is_not_written_to():
    kept = []

    class Holder:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    class Doubled(te.Operation):
        def forward(self, x):
            return x * 1.0

        def backward(self, grad):
            kept.append(grad * 2)
            return (Holder(kept[-1]),)

    x = te.Tensor([1.0, 2.0], requires_grad=True)
    (x.sum() + te.Tensor.apply(Doubled(), x).sum()).backward()
    assert x.grad.tolist() == [3.0, 3.0]
    assert kept[0].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("retain_graph", [False, True])
def test_backward_has_to_return_a_sequence(retain_graph):
    class Generating(te.Operation):
        def forward(self, x):
            return x * 1.0

        def backward(self, grad):
            return (g for g in (grad,))

    x = te.Tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError):
        te.Tensor.apply(Generating(), x).backward(retain_graph=retain_graph)
