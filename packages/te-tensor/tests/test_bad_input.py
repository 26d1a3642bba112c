"""Bad input: every function raises, and says what was given and what was expected."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te

FILES = sorted(Path(__file__).parent.glob("bad_calls/*.py"))
TABLES = [runpy.run_path(str(file))["BAD"] for file in FILES]
#: By function and what is wrong: the call, the kind of error, and words that its message holds.
BAD = {name: case for table in TABLES for name, case in table.items()}

#: What takes nothing that can be wrong, or is made by the engine only.
NOTHING_WRONG = {
    *(
        "blas_info",
        "empty_cache",
        "get_num_threads",
        "get_rng_state",
        "is_grad_enabled",
        "kernel_info",
    ),
    *("memory_info", "profile"),
    *("DistanceFunction", "GradientError", "HookHandle", "Operation", "OperationProfile"),
    *("PreparedDistance", "Profile", "Sample"),
    *("Tensor.clone", "Tensor.detach", "Tensor.get_data", "Tensor.numpy", "Tensor.tolist"),
    *("Tensor.zero_grad",),
}


def public():
    """The functions, and the methods that aren't functions as well."""
    for name in dir(te):
        if not name.startswith("_") and callable(getattr(te, name)):
            yield name
    for name in dir(te.Tensor):
        if (
            not name.startswith("_")
            and callable(getattr(te.Tensor, name))
            and not hasattr(te, name)
        ):
            yield f"Tensor.{name}"


def test_every_function_has_a_bad_call():
    known = {name.split()[0] for name in BAD}
    assert sorted(set(public()) - known - NOTHING_WRONG) == []
    assert sorted(NOTHING_WRONG - set(public())) == []  # no longer there


def test_every_bad_call_is_of_a_function():
    others = {"Tensor.grad"}  # a property
    assert sorted({name.split()[0] for name in BAD} - set(public()) - others) == []
    assert len(BAD) == sum(len(table) for table in TABLES)  # no name twice


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{caught.value!r} doesn't hold {missing}"
    assert not re.search(r"\b0x[0-9a-f]{6}", str(caught.value))


def test_an_error_in_forward_leaves_no_graph():
    x = te.ones(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="matmul"):
        x @ x
    (x * 2).sum().backward()
    assert x.grad.numpy().sum() == 12


def test_bad_input_changes_nothing():
    x = te.zeros(3)
    for index, value in [(5, 1), (0, "a"), (slice(2), [1, 2, 3]), (slice(2), [1, "a"])]:
        with pytest.raises((IndexError, ValueError)):
            x[index] = value
    with pytest.raises(ValueError, match="momentum"):
        te.batch_norm(te.ones(2, 3), x, te.ones(3), training=True, momentum=2)
    assert np.array_equal(x.numpy(), np.zeros(3))
