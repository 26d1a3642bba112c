"""Products on every memory layout, by OpenBLAS and by NumPy."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import te_tensor as te
from te_tensor import blas, blas_library


@pytest.fixture(params=["auto", "numpy"])
def library(request):
    te.set_blas(request.param)
    yield request.param
    te.set_blas("auto")


def needs_openblas():
    if te.blas_info()["library"] == "numpy":
        pytest.skip("no OpenBLAS here")


def values(rows, columns, dtype, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, columns)).astype(dtype)


def columns_of_wider(a):
    big = np.full((a.shape[0], a.shape[1] + 5), 99, a.dtype)
    big[:, 2 : 2 + a.shape[1]] = a
    return big[:, 2 : 2 + a.shape[1]]


def every_second_row(a):
    big = np.full((2 * a.shape[0], a.shape[1]), 99, a.dtype)
    big[::2] = a
    return big[::2]


def every_second_column(a):
    return every_second_row(a.T).T


def every_second_of_both(a):
    return every_second_column(every_second_row(a))


def one_head(a):
    big = np.full((a.shape[0], 3, a.shape[1]), 99, a.dtype)
    big[:, 1] = a
    return big[:, 1]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "column range": columns_of_wider,
    "column range, transposed": lambda a: columns_of_wider(a.T).T,
    "strided rows": every_second_row,
    "strided columns": every_second_column,
    "strided both": every_second_of_both,
    "one head of several": one_head,
    "rows reversed": lambda a: a[::-1].copy()[::-1],
    "columns reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
}
SIZES = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 4, 1), (3, 1, 1), (1, 1, 5),
         (0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0), (17, 33, 9)]  # fmt: skip


def check(a, b, out, *, alpha=1.0, beta=0.0):
    before = out.astype("float64")
    wide = alpha * (a.astype("float64") @ b.astype("float64"))
    expected = wide + (beta * before if beta else 0)
    untouched = None if out.base is None else out.base.copy()
    assert blas.gemm(a, b, out, alpha=alpha, beta=beta) is out
    tolerance = 1e-5 if out.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)
    if untouched is not None and (untouched == 99).any():  # nothing is written beside it
        assert (out.base[untouched == 99] == 99).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_layout(size, beta, dtype, library):
    rows, inner, columns = size
    # All three together through OpenBLAS, which is told of them; NumPy takes any by itself.
    lays = itertools.product(LAYOUTS.values(), repeat=3)
    if size not in [(3, 4, 5), (1, 4, 5), (3, 4, 1)]:
        lays = itertools.islice(lays, None, None, 7)  # each layout still meets many others
    if library == "numpy":
        lays = ((lay, lay, lay) for lay in LAYOUTS.values())
    for lay_a, lay_b, lay_out in lays:
        a = lay_a(values(rows, inner, dtype))
        b = lay_b(values(inner, columns, dtype, 1))
        out = lay_out(values(rows, columns, dtype, 2))
        check(a, b, out, alpha=0.7 if beta else 1.0, beta=beta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stride_0(dtype, library):
    row = np.broadcast_to(values(1, 4, dtype), (3, 4))
    column = np.broadcast_to(values(3, 1, dtype), (3, 4))
    one = np.broadcast_to(np.ones((), dtype), (3, 4))
    for a, b in itertools.product((row, column, one), repeat=2):
        check(a, b.T, np.zeros((3, 3), dtype))
        check(a.T, b, np.zeros((4, 4), dtype))


def test_overlapping_rows(library):
    window = np.lib.stride_tricks.sliding_window_view(np.arange(9.0), 4)
    check(window, window.T, np.zeros((6, 6)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "size",
    [(3, 4, 5), (3, 0, 5), (200, 300, 100), (1, 400, 1), (1, 900, 700), (700, 900, 1)],
    ids=str,
)
def test_nan_in_out_is_not_read_with_beta_0(size, dtype, library, threads):
    rows, inner, columns = size
    a, b = values(rows, inner, dtype), values(inner, columns, dtype, 1)
    for lay in LAYOUTS.values():
        out = lay(np.full((rows, columns), np.nan, dtype))
        blas.gemm(a, b, out)
        np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
    batch = np.full((2, rows, columns), np.nan, dtype)
    blas.gemm_batch(np.stack([a, a]), b, batch)
    assert np.isfinite(batch).all()


@pytest.mark.parametrize(
    "size",
    [
        (500, 300, 200),
        (20, 700, 900),
        (900, 700, 20),
        (50, 400, 900),
        (1, 3000, 2000),
        (2000, 3000, 1),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_products_cut_over_threads(size, beta, threads, library):
    rows, inner, columns = size
    for lay in (np.ascontiguousarray, np.asfortranarray, columns_of_wider):
        a, b = lay(values(rows, inner, "float64")), lay(values(inner, columns, "float64", 1))
        check(a, b, lay(values(rows, columns, "float64", 2)), beta=beta)


def test_heads_are_addressed_in_place():
    heads = np.zeros((2, 7, 3, 4), "float32").transpose(0, 2, 1, 3)  # (B, S, H, d) as (B, H, S, d)
    for view in (heads[1, 2], heads[1, 2].T, heads[0, 0, 2:5], heads[0, 0, :, 1:3]):
        assert blas_library._layout(view) is not None
    assert blas_library._layout(heads[0, 1]) == (blas_library._NO_TRANSPOSE, 12)
    assert blas_library._layout(heads[0, 1].T) == (blas_library._TRANSPOSE, 12)


@pytest.mark.parametrize(
    "name", ["C", "F", "column range", "column range, transposed", "strided rows",
             "strided columns", "one head of several"]
)  # fmt: skip
def test_what_blas_can_address_is_never_copied(name, monkeypatch):
    needs_openblas()
    lay = LAYOUTS[name]
    a, b, out = (lay(values(6, 6, "float32", i)) for i in range(3))
    expected = a @ b

    def refuse(*_):
        raise AssertionError("copied")

    monkeypatch.setattr(np, "ascontiguousarray", refuse)
    blas.gemm(a, b, out)
    monkeypatch.undo()
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 4))[::-1],
        np.zeros((4, 4))[:, ::-1],
        np.zeros((8, 8))[::2, ::2],
        np.broadcast_to(np.zeros(4), (3, 4)),
        np.broadcast_to(np.zeros((4, 1)), (4, 3)),
        np.lib.stride_tricks.sliding_window_view(np.zeros(9), 4),
    ],
)
def test_what_blas_can_not_address(matrix):
    assert blas_library._layout(matrix) is None
    assert blas_library._layout(matrix.T) is None


BATCHES = [
    ((2, 3), (2, 3)),
    ((2, 3), ()),
    ((), (2, 3)),
    ((2, 1), (1, 3)),
    ((1, 3), (2, 3)),
    ((2, 3), (3,)),
]


def turned(stack):
    return stack.swapaxes(-1, -2).copy().swapaxes(-1, -2)


@pytest.mark.parametrize("lay_out", [np.copy, turned])
@pytest.mark.parametrize("lay", [np.copy, turned])
@pytest.mark.parametrize("lead", BATCHES, ids=str)
@pytest.mark.parametrize(
    "size", [(4, 5, 6), (1, 5, 1), (4, 1, 6), (4, 0, 6), (90, 80, 70)], ids=str
)
def test_batches(size, lead, lay, lay_out, library):
    rows, inner, columns = size
    for dtype, beta, count in itertools.product(("float32", "float64"), (0, 0.5, 1), (1, 2, 3)):
        te.set_num_threads(count)
        rng = np.random.default_rng(0)
        a = rng.uniform(-1, 1, (*lead[0], rows, inner)).astype(dtype)
        b = rng.uniform(-1, 1, (*lead[1], inner, columns)).astype(dtype)
        before = rng.uniform(-1, 1, (2, 3, rows, columns)).astype(dtype)
        out = lay_out(before)
        blas.gemm_batch(lay(a), lay(b), out, alpha=0.7, beta=beta)
        expected = 0.7 * np.matmul(a.astype("f8"), b.astype("f8")) + beta * before
        tolerance = 1e-4 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


def test_batches_of_heads(library, threads):
    rng = np.random.default_rng(0)
    q, k = (rng.uniform(-1, 1, (3, 9, 5, 4)).transpose(0, 2, 1, 3) for _ in "qk")
    out = np.zeros((3, 9, 5, 9)).transpose(0, 2, 1, 3)
    blas.gemm_batch(q, k.swapaxes(-1, -2), out)
    np.testing.assert_allclose(out, np.matmul(q, k.swapaxes(-1, -2)), rtol=1e-12)


def test_batches_that_can_not_be_addressed(library):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (3, 4, 8))[..., ::2], rng.uniform(-1, 1, (3, 4, 5))[:, ::-1]
    out = np.zeros((3, 4, 10))[..., ::2]
    blas.gemm_batch(a, b, out)
    np.testing.assert_allclose(out, np.matmul(a, b), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool"])
def test_other_dtypes_go_through_numpy(dtype):
    a, b = np.array([[1, 0], [1, 1]], dtype), np.array([[1, 1], [0, 1]], dtype)
    assert (te.Tensor(a) @ te.Tensor(b)).tolist() == (a @ b).tolist()


def test_infinities_and_nan(library):
    a = np.array([[np.inf, 1.0], [np.nan, 1.0], [1e30, 1e30]], "float32")
    b = np.array([[1.0], [-1e30]], "float32")
    out = np.zeros((3, 1), "float32")
    with np.errstate(all="ignore"):  # as operations run
        blas.gemm(a, b, out)
    np.testing.assert_array_equal(out[:2, 0], [np.inf, np.nan])
    assert out[2, 0] == -np.inf


def test_the_same_thread_count_gives_the_same_bits(threads):
    a, b = values(700, 500, "float32"), values(500, 600, "float32", 1)
    results = [blas.gemm(a, b, np.empty((700, 600), "float32")) for _ in range(5)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_users_threads_at_once():
    te.set_num_threads(2)
    a, b = values(300, 200, "float64"), values(200, 250, "float64", 1)
    small_a, small_b = values(4, 5, "float64"), values(5, 3, "float64", 1)
    expected, small = a @ b, small_a @ small_b
    wrong = []

    def work():
        for _ in range(30):
            if not np.allclose(blas.gemm(a, b, np.empty((300, 250))), expected):
                wrong.append("large")
            if not np.allclose(blas.gemm(small_a, small_b, np.empty((4, 3))), small):
                wrong.append("small")

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong
    assert not any(worker.is_alive() for worker in workers)


def test_too_large_for_the_interface_goes_to_numpy():
    needs_openblas()
    library = blas_library._load("openblas")
    library._limit = 3
    a, b, out = values(4, 5, "float64"), values(5, 6, "float64", 1), np.empty((4, 6))
    library._gemm = {}  # a call would raise KeyError
    library.gemm(a, b, out, 1.0, 0.0)
    np.testing.assert_allclose(out, a @ b)


# -- choosing -----------------------------------------------------------------------------


def test_info():
    te.set_num_threads(3)
    info = te.blas_info()
    assert set(info) == {"library", "version", "kernel", "threads", "path", "tiles"}
    assert info["threads"] == 3
    assert info["library"] in ("scipy-openblas32", "system", "numpy")
    te.set_blas("numpy")
    try:
        assert te.blas_info()["library"] == "numpy"
        assert te.blas_info()["version"] == np.__version__
    finally:
        te.set_blas("auto")


def test_an_unknown_choice_raises_and_changes_nothing():
    before = te.blas_info()
    with pytest.raises(ValueError, match="BLAS is 'opneblas': expected one of auto, openblas"):
        te.set_blas("opneblas")
    assert te.blas_info() == before


def test_a_library_that_is_missing_raises_and_changes_nothing(monkeypatch):
    before = te.blas_info()
    missing = iter([("system", "/no/such.so")])
    monkeypatch.setattr(blas_library, "_system_libraries", lambda: missing)
    with pytest.raises(OSError, match=r"can't load the BLAS 'system'.*/no/such\.so"):
        te.set_blas("system")
    assert te.blas_info() == before


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


INFO = """import te_tensor as te
print(te.blas_info()["library"], (te.ones(2, 2) @ te.ones(2, 2)).sum())"""


def test_the_environment_chooses_numpy():
    ran = _python(INFO, TE_BLAS="numpy")
    assert ran.stdout.startswith("numpy Tensor(8."), ran.stderr


def test_the_environment_chooses_the_wheel():
    if te.blas_info()["library"] != "scipy-openblas32":
        pytest.skip("no scipy-openblas32 here")
    ran = _python(INFO, TE_BLAS="scipy-openblas32")
    assert ran.stdout.startswith("scipy-openblas32 Tensor(8."), ran.stderr


def test_a_misspelt_environment_raises():
    ran = _python(INFO, TE_BLAS="opneblas")
    assert ran.returncode != 0
    assert "BLAS is 'opneblas': expected one of auto" in ran.stderr


def test_importing_does_not_import_the_wheel():
    code = "import sys, te_tensor as te; te.blas_info(); print('scipy_openblas32' in sys.modules)"
    assert _python(code).stdout.strip() == "False"
