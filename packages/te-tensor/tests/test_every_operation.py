"""What holds for every operation of the registry, on its own samples: dtypes and memory layouts.

The values in float32 and float64 are compared with PyTorch in `test_torch*.py`; here every other
dtype and layout is compared with those.
"""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.dtypes import FLOATS

SAMPLES = [
    pytest.param(kind, sample, id=f"{name}-{place}")
    for name, kind in sorted(te.REGISTRY.items())
    for place, sample in enumerate(kind.samples)
]
COMPUTING = [param for param in SAMPLES if param.values[0].computes]


def run(kind, sample, arrays):
    """The outputs, and the gradients of the inputs that have one."""
    tensors = [te.from_numpy(array) for array in arrays]
    for position, tensor in enumerate(tensors):
        tensor.requires_grad = position not in sample.nondiff and tensor.dtype in FLOATS
    outputs = te.Tensor.apply(kind(*sample.args, **sample.kwargs), *tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    ends = [output for output in outputs if output.requires_grad]
    for end in ends:
        start = np.random.default_rng(0).choice([0.5, 1.0, -2.0], end.shape)
        end.backward(start, retain_graph=end is not ends[-1])
    return [output.numpy() for output in outputs], [
        t.grad if t.grad is None else t.grad.numpy() for t in tensors
    ]


def as_small(array, dtype):
    return array.astype(dtype) if array.dtype.kind == "f" else array


@pytest.mark.parametrize("dtype", [te.float16, te.bfloat16, te.float8_e4m3fn, te.float8_e5m2])
@pytest.mark.parametrize(("kind", "sample"), COMPUTING)
def test_small_floats_are_computed_in_float32_and_rounded_once(kind, sample, dtype):
    small = [as_small(array, dtype) for array in sample.arrays()]
    wide = [as_small(array, "float32") if a.dtype != dtype else array.astype("float32")
            for a, array in zip(small, small, strict=True)]  # fmt: skip
    results, grads = run(kind, sample, small)
    expected, expected_grads = run(kind, sample, wide)
    for found, wanted in zip(results, expected, strict=True):
        wanted = wanted.astype(dtype) if wanted.dtype == te.float32 else wanted
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found.astype("f8"), wanted.astype("f8"))
    if len(results) > 1:
        return  # several backward passes, whose gradients are added in the small float
    for found, wanted in zip(grads, expected_grads, strict=True):
        if wanted is not None:
            assert found.dtype == dtype
            np.testing.assert_array_equal(found.astype("f8"), wanted.astype(dtype).astype("f8"))


@pytest.mark.parametrize("dtype", [te.uint16, te.complex64, te.float8_e8m0fnu])
@pytest.mark.parametrize(("kind", "sample"), COMPUTING)
def test_dtypes_for_storage_only_are_refused(kind, sample, dtype):
    tensors = [te.from_numpy(as_small(array, dtype)) for array in sample.arrays()]
    with pytest.raises(TypeError, match=f"{dtype} is for storage only"):
        te.Tensor.apply(kind(*sample.args, **sample.kwargs), *tensors)


def transposed(array):
    return np.array(array, order="F")


def strided(array):
    """Every second element of a larger array."""
    larger = np.zeros([2 * n for n in array.shape], array.dtype)
    view = larger[(..., *[slice(None, None, 2)] * array.ndim)]
    view[...] = array
    return view


def reversed_(array):
    """Negative strides."""
    back = (..., *[slice(None, None, -1)] * array.ndim)
    return array[back].copy()[back]


def unaligned(array):
    """Elements that don't begin where their size would have them."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("layout", [transposed, strided, reversed_, unaligned, read_only])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_the_layout_in_memory_changes_nothing(kind, sample, dtype, layout):
    arrays = [as_small(array, dtype) for array in sample.arrays()]
    results, grads = run(kind, sample, [layout(array) for array in arrays])
    expected, expected_grads = run(kind, sample, arrays)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    for found, wanted in zip([*results, *grads], [*expected, *expected_grads], strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)
