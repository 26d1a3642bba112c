"""Exclusive access to many pieces of memory at once."""

import threading

import numpy as np
import pytest

import te_tensor as te
from te_tensor import storage
from te_tensor.tensor import arrays_of


def test_writing_is_a_change_of_each():
    tensors = [te.ones(2, requires_grad=True) for _ in range(3)]
    losses = [(tensor * tensor).sum() for tensor in tensors]
    with storage.writing(storage.records_of(arrays_of(tensors[:2]))):
        pass
    losses[2].backward()
    for loss in losses[:2]:
        with pytest.raises(RuntimeError, match="Mul"):
            loss.backward()


def test_nothing_to_write():
    with storage.writing([]):
        pass


def test_memory_may_be_given_more_than_once():
    tensor = te.zeros(4)
    records = storage.records_of(arrays_of([tensor, tensor.reshape(2, 2), tensor]))
    assert len({id(record) for record in records}) == 1
    with storage.writing(records), tensor.lock() as array:
        array += 1
    assert is_free(tensor)


def is_free(tensor):
    """Whether another thread can lock it."""
    found = []

    def attempt():
        lock = storage.lock_of(arrays_of([tensor])[0])
        found.append(lock.acquire(timeout=0.05))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


def test_locks_are_held_inside_and_free_after_an_error():
    tensors = [te.zeros(1) for _ in range(3)]
    records = storage.records_of(arrays_of(tensors))
    with pytest.raises(KeyError), storage.writing(records):
        assert not any(is_free(tensor) for tensor in tensors)
        raise KeyError
    assert all(is_free(tensor) for tensor in tensors)


def test_nothing_is_held_while_waiting():
    first, second = te.zeros(1), te.zeros(1)
    records = storage.records_of(arrays_of([first, second]))
    done = threading.Event()

    def write():
        with storage.writing(records):
            done.set()

    with second.lock():
        thread = threading.Thread(target=write)
        thread.start()
        assert is_free(first)
        assert not done.wait(0.05)
    thread.join(5)
    assert done.is_set()


def test_any_order_in_any_thread():
    arrays = [np.zeros(1) for _ in range(10)]

    def add(seed):
        rng = np.random.default_rng(seed)
        for _ in range(200):
            chosen = rng.permutation(10)[:5]
            with storage.writing(storage.records_of(arrays[i] for i in chosen)):
                for i in chosen:
                    arrays[i] += 1

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sum(int(array[0]) for array in arrays) == 3 * 200 * 5


def _linear_twice(x, weight):
    """The last of calls enough for the weight to be laid out."""
    with te.no_grad():
        for _ in range(3):
            result = te.linear(x, weight)
    return result.data


def test_a_layout_goes_with_the_change_of_its_memory():
    x, weight = te.randn(3, 128), te.randn(160, 128)
    np.testing.assert_allclose(_linear_twice(x, weight), x.data @ weight.data.T, rtol=1e-4)
    with weight.lock() as array:
        array *= 2
    once = te.linear(x, weight).data
    np.testing.assert_allclose(once, x.data @ weight.data.T, rtol=1e-4)
    np.testing.assert_allclose(_linear_twice(x, weight), once, rtol=1e-4, atol=1e-5)


def test_no_layout_is_kept_of_memory_that_others_may_write_to():
    x = te.randn(3, 128)
    shared = np.random.default_rng(0).standard_normal((160, 128)).astype(np.float32)
    for weight in (te.from_numpy(shared), te.from_numpy(shared)[:]):
        _linear_twice(x, weight)
        shared *= 2
        np.testing.assert_allclose(_linear_twice(x, weight), x.data @ shared.T, rtol=1e-4)


def test_a_layout_is_made_at_the_second_call_and_kept():
    array = te.randn(160, 128).data
    made = []

    def make(given):
        made.append(given)
        return given.copy()

    assert storage.layout_of(array, make) is None
    first = storage.layout_of(array, make)
    assert first is not None
    assert storage.layout_of(array, make) is first
    assert len(made) == 1
    storage.mark_changed(array)
    assert storage.layout_of(array, make) is None
    assert storage.layout_of(array, make) is not first


def test_parts_of_one_memory_have_layouts_of_their_own():
    whole = te.randn(320, 128).data
    for _ in range(2):
        layouts = [storage.layout_of(part, np.copy) for part in (whole[:160], whole[160:], whole)]
    for layout, part in zip(layouts, (whole[:160], whole[160:], whole), strict=True):
        np.testing.assert_array_equal(layout, part)
