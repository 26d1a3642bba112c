"""Casts: rounding, saturation and NaN of the small floats, and the gradient of astype."""

import ml_dtypes
import numpy as np
import pytest

import te_tensor as te

SMALL = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
#: Around the largest of each dtype, halfway between neighbours, denormals, and no numbers.
EDGES = np.array(
    [
        *(0.0, -0.0, 1.0, 1.0625, 1.125, 1.1875, 1.00390625, 1.01171875, 240, 447, 448, 449, 464),
        *(465, 480, 57344, 61439, 61440, 61441, 65504, 65519, 65520, 3.3895e38, 3.4e38, 2**-9),
        *(2**-10, 1.5 * 2**-10, 2**-16, 2**-17, 2**-24, 2**-25, 6e-8, 1e-38, 1e-40, 1e-45),
        *(np.inf, np.nan),
    ],
    "float32",
)


def bits(array):
    return array.view(f"u{array.itemsize}").tolist()


@pytest.mark.parametrize("dtype", SMALL)
def test_casts_round_and_saturate_as_ml_dtypes(dtype):
    values = np.concatenate([EDGES, -EDGES])
    with np.errstate(all="ignore"):
        expected = values.astype(getattr(ml_dtypes, dtype, dtype))
    for cast in (te.Tensor(values).astype(dtype), te.Tensor(values, dtype=dtype)):
        assert bits(cast.numpy()) == bits(expected)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_value_survives_float32_and_back(dtype):
    size = te.zeros(1, dtype=dtype).nbytes
    every = te.from_numpy(
        np.arange(1 << 8 * size, dtype=f"u{size}").view(te.zeros(1, dtype=dtype).dtype)
    )
    back = every.astype("float32").astype(dtype).numpy()
    numbers = ~np.isnan(back.astype("f4"))
    assert bits(back[numbers]) == bits(every.numpy()[numbers])
    assert np.isnan(every.numpy()[~numbers].astype("f4")).all()


@pytest.mark.parametrize("dtype", SMALL)
def test_sums_that_leave_the_range(dtype):
    # float8_e4m3fn has no infinity: what is too large becomes NaN, as in ml_dtypes
    largest = te.Tensor(ml_dtypes.finfo(getattr(ml_dtypes, dtype, dtype)).max, dtype=dtype)
    twice = (largest + largest).item()
    assert np.isnan(twice) if dtype == "float8_e4m3fn" else twice == np.inf


@pytest.mark.parametrize("to", [*SMALL, "float32", "float64"])
@pytest.mark.parametrize("start", [*SMALL, "float32", "float64"])
def test_the_gradient_is_cast_back(start, to):
    x = te.Tensor([1.0, -2.0, 0.5], dtype=start, requires_grad=True)
    y = x.astype(to)
    assert y.dtype.name == to
    y.backward(np.array([0.1, 3.0, 300.0]))
    assert x.grad.dtype == x.dtype
    with np.errstate(all="ignore"):
        expected = np.array([0.1, 3.0, 300.0]).astype(y.dtype)
        expected = expected.astype("f4" if expected.itemsize < 4 else expected.dtype).astype(
            x.dtype
        )
    np.testing.assert_array_equal(x.grad.numpy().astype("f8"), expected.astype("f8"))


@pytest.mark.parametrize("to", ["int64", "bool", "uint16", "complex64"])
def test_casts_to_what_has_no_gradient_end_the_graph(to):
    x = te.ones(2, requires_grad=True)
    assert not x.astype(to).requires_grad
