"""State dicts as JSON and tensors: everything comes back as it was, to the bit."""

import json
import math
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import te_tensor as te
from te_io import FormatError
from te_io.tree import decode, encode


def there_and_back(state):
    tree, tensors = encode(state, "x")
    return decode(json.loads(json.dumps(tree, allow_nan=False)), tensors)


KEYS = st.text(max_size=4) | st.integers() | st.sampled_from(["$tensor", "$dict", "a.b", ""])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
STATES = st.recursive(
    PLAIN,
    lambda below: (
        st.lists(below, max_size=3)
        | st.lists(below, max_size=3).map(tuple)
        | st.dictionaries(KEYS, below, max_size=3)
    ),
    max_leaves=10,
)


def exact(value):
    """A value that differs where types or bits differ."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, dict):
        return [(type(key), key, exact(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exact(item) for item in value]
    return type(value), value


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(STATES)
def test_plain_values(state):
    assert exact(there_and_back(state)) == exact(state)


@pytest.mark.parametrize("value", [0.1, 1e308, 5e-324, -0.0, math.inf, -math.inf, 2.0**70, 1 / 3])
def test_floats(value):
    assert exact(there_and_back({"x": value})) == exact({"x": value})


def test_nan():
    assert math.isnan(there_and_back([math.nan])[0])


@pytest.mark.parametrize("dtype", sorted(te.dtypes.ALL, key=str), ids=str)
def test_tensors_arrays_and_numbers(dtype):
    array = np.array([[0, 1, 1]]).astype(dtype)
    state = {"t": te.from_numpy(array), "a": [array, array.T], "s": array[0, 1]}
    back = there_and_back(state)
    assert isinstance(back["t"], te.Tensor) and type(back["a"][1]) is np.ndarray
    assert type(back["s"]) is type(state["s"]) and back["s"] == state["s"]
    for found, wanted in ((back["t"].numpy(), array), (back["a"][1], array.T)):
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes() and found.shape == wanted.shape


def test_scalars_of_ml_dtypes():
    assert there_and_back([ml_dtypes.bfloat16(0.1)]) == [ml_dtypes.bfloat16(0.1)]


def test_names_that_meet():
    one, two = te.ones(1), te.zeros(1)
    state = {"a": {"b": one}, "a.b": two, "": te.ones(2)}
    back = there_and_back(state)
    assert back["a"]["b"].tolist() == [1] and back["a.b"].tolist() == [0]
    assert there_and_back(one).tolist() == [1]


def test_other_dicts():
    assert there_and_back(OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}
    assert there_and_back({3: {"x": None}, True: 1}) == {3: {"x": None}, True: 1}


class Thing:
    pass


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": [Thing()]}, r"optimizer's state at 'a\.0' is Thing: expected Tensors"),
        (b"bytes", "optimizer's state is bytes"),
        ({"a": {1, 2}}, "set"),
        ({"a": 1j}, "complex"),
        ({"a": {(1, 2): 3}}, "tuple"),
        ({"a": {None: 3}}, "NoneType"),
        ({"a": np.array(["text"])}, "'a'"),
        ({"a": np.complex128(1)}, "'a'"),
    ],
)
def test_what_can_not_be_stored(state, words):
    with pytest.raises(FormatError, match=words) as caught:
        encode(state, "optimizer", "f")
    assert str(caught.value).startswith("f: ")


def test_a_state_that_holds_itself():
    state = []
    state.append(state)
    with pytest.raises(FormatError, match="nested too deeply"):
        encode(state, "x")


@pytest.mark.parametrize(
    "tree",
    [
        {"$tensor": "missing"},
        {"$tensor": []},
        {"$tensor": "t", "more": 1},
        {"$array": None},
        {"$scalar": "t"},
        {"$float": "1.5"},
        {"$float": 1e999},
        {"$float": "text"},
        {"$tuple": 3},
        {"$tuple": "text"},
        {"$dict": 3},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$dict": [[1, 2], [1, 3]]},
        {"$unknown": 1},
    ],
    ids=str,
)
def test_trees_that_are_none(tree):
    with pytest.raises(FormatError, match="no such value"):
        decode([tree], {"t": te.ones(2)})


def test_a_tree_that_is_too_deep():
    tree = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(FormatError, match="too deeply"):
        decode(tree, {})
