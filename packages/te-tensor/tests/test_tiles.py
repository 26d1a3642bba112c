"""Products by tiles of bfloat16: as exact as those of float32, of any layout and any numbers."""

import itertools
import threading

import numpy as np
import pytest

import te_tensor as te
from te_tensor import blas, blas_library, parallel
from te_tensor.dtypes import float32
from te_tensor.machine import tile_products as tiles
from te_tensor.ops import _chained, _direct

pytestmark = pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")

EPS = np.finfo(float32).eps


def multiply(a, b, out, *, start=None, alpha=1.0, parts=1, laid=False):
    """The blocks of out = start + alpha * a @ b that aren't made."""
    product = tiles.Product(b, out, start, tiles.Laid(b) if laid else None)
    (left,) = tiles.multiply_each(a, [product], alpha=alpha, parts=parts)
    return left


def matrix(rng, rows, columns, turned=False, scale=1.0):
    shape = (columns, rows) if turned else (rows, columns)
    made = (rng.standard_normal(shape) * scale).astype(float32)
    return made.T if turned else made


def bound(a, b):
    """What a product in float32 may be off: its length times half a unit in the last place."""
    wide = np.abs(a.astype(np.float64)) @ np.abs(b)
    return EPS / 2 * np.sqrt(a.shape[1]) * wide + 1e-37


SIZES = [(1, 1, 1), (16, 16, 32), (33, 31, 65), (200, 47, 31), (40, 300, 17)]


@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("to", ["nothing", "out", "a row", "another"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("laid", [False, True])
def test_any_size_and_layout(turned, to, parts, laid):
    rng = np.random.default_rng(0)
    for rows, columns, depth in SIZES:
        a, b = matrix(rng, rows, depth, turned[0]), matrix(rng, depth, columns, turned[1])
        out = matrix(rng, rows, columns)
        for alpha in (1.0, -0.5):
            start = {
                "nothing": None,
                "out": out,
                "a row": matrix(rng, 1, columns)[0],
                "another": matrix(rng, rows, columns + 3)[:, 1:-2],
            }[to]
            want = alpha * (a.astype(np.float64) @ b) + (0 if start is None else start)
            assert multiply(a, b, out, start=start, alpha=alpha, parts=parts, laid=laid) == []
            off = np.abs(out - want)
            assert (off <= bound(a, b) + EPS * np.abs(want)).all()


def test_nothing_beside_the_product_is_read_or_written():
    rng = np.random.default_rng(0)
    for rows, columns, depth in [(35, 45, 70), (130, 32, 64)]:
        whole_a = np.full((rows + 2, depth + 3), np.nan, float32)
        whole_b = np.full((depth + 2, columns + 3), np.nan, float32)
        whole_out = np.full((rows + 2, columns + 3), 7, float32)
        a, b, out = (w[1:-1, 1:-2] for w in (whole_a, whole_b, whole_out))
        a[...], b[...] = matrix(rng, rows, depth), matrix(rng, depth, columns)
        want = a.astype(np.float64) @ b
        assert multiply(a, b, out) == []
        assert (np.abs(out - want) <= bound(a, b)).all()
        out[...] = 7
        assert (whole_out == 7).all()


@pytest.mark.parametrize("rows", [40, 700])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_products_with_one_left_side(rows, parts):
    """Of any width, laid out or not; only those with numbers that can't be split are left out."""
    rng = np.random.default_rng(13)
    a = matrix(rng, rows, 90)
    sides = [matrix(rng, 90, width, turned) for width, turned in ((32, 0), (130, 1), (17, 0))]
    sides[2][3, 4] = np.inf
    products = [
        tiles.Product(
            b,
            np.full((rows, b.shape[1]), 7, float32),
            matrix(rng, 1, b.shape[1])[0] if number else None,
            tiles.Laid(b) if number == 1 else None,
        )
        for number, b in enumerate(sides)
    ]
    left = tiles.multiply_each(a, products, parts=parts)
    for (b, out, start, _), blocks in zip(products[:2], left, strict=False):
        want = a.astype(np.float64) @ b + (0 if start is None else start)
        assert not blocks
        assert (np.abs(out - want) <= bound(a, b) + EPS * np.abs(want)).all()
    made = np.zeros(products[2].out.shape, int)
    for place in left[2]:
        made[place] += 1
    assert (made == 1).all() and (products[2].out == 7).all()


def test_more_exact_than_blas():
    """Numbers of one sign, where errors would add up, and a long k."""
    rng = np.random.default_rng(1)
    a, b = rng.random((256, 4096), float32), rng.random((4096, 128), float32)
    want = a.astype(np.float64) @ b
    ours, theirs = np.empty((2, 256, 128), float32)
    assert multiply(a, b, ours) == []
    blas_library.library().gemm(a, b, theirs, 1.0, 0.0)
    off, reference = (np.sqrt(np.mean((x - want) ** 2)) for x in (ours, theirs))
    assert off <= reference


def test_whole_numbers_are_exact():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-255, 256, (128, 128)).astype(float32) for _ in range(2))
    out = np.empty_like(a)
    assert multiply(a, b, out) == []
    assert np.array_equal(out, a.astype(np.float64) @ b)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3.4e38, 1e20, -1e16])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_numbers_that_tiles_cannot_split(number, add, parts):
    """A block of rows with such a number is left as it was; in b, all of them are."""
    rng = np.random.default_rng(3)
    a, b = matrix(rng, 300, 64), matrix(rng, 64, 96)
    before = matrix(rng, 300, 96)
    a[200, 5] = number
    out = before.copy()
    left = multiply(a, b, out, start=out if add else None, parts=parts)
    assert len(left) == 1
    ((rows, columns),) = left
    assert rows.start <= 200 < rows.stop <= 300 and columns == slice(0, 96)
    assert np.array_equal(out[rows], before[rows])
    made = np.delete(np.arange(300), rows)
    want = a[made].astype(np.float64) @ b + (before[made] if add else 0)
    assert np.allclose(out[made], want, atol=1e-5)
    a[200, 5], b[3, 4] = 0, number
    out = before.copy()
    left = multiply(a, b, out, start=out if add else None, parts=parts)
    assert sum(rows.stop - rows.start for rows, _ in left) == 300
    assert np.array_equal(out, before)


@pytest.mark.parametrize("scale", [0.0, 1e-16, 1e-30, 1e-38, 1e-44])
def test_numbers_too_small(scale):
    rng = np.random.default_rng(4)
    a, b = matrix(rng, 256, 96, scale=scale), matrix(rng, 96, 128)
    for x, y in ((a, b), (b.T, a.T)):
        out = np.full((len(x), y.shape[1]), np.nan, float32)
        assert multiply(x, y, out)
        assert np.isnan(out).all()
        blas.gemm(x, y, out)  # by others
        want = x.astype(np.float64) @ y
        assert (np.abs(out - want) <= bound(x, y) + 1e-44 * 96).all()


def test_small_numbers_beside_large_ones():
    rng = np.random.default_rng(5)
    a, b = matrix(rng, 128, 128), matrix(rng, 128, 128)
    a[::2] *= np.float32(1e-28)
    out = np.empty((128, 128), float32)
    assert multiply(a, b, out) == []
    assert (np.abs(out - a.astype(np.float64) @ b) <= bound(a, b)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-33, 1e-36, 1e-38, 1e-41])
@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)))
def test_tiny_numbers_beside_others(scale, turned):
    """Whose last parts are too small for bfloat16."""
    rng = np.random.default_rng(16)
    a, b = matrix(rng, 96, 160, turned[0]), matrix(rng, 160, 128, turned[1])
    a[:, ::3] *= np.float32(scale)
    b[::5] *= np.float32(scale)
    out = np.empty((96, 128), float32)
    assert multiply(a, b, out) == []
    assert (np.abs(out - a.astype(np.float64) @ b) <= bound(a, b)).all()


@pytest.mark.parametrize("number", [1.0, np.inf, np.nan, 1e-40])
def test_gemm_is_whole_whatever_the_numbers(number):
    rng = np.random.default_rng(6)
    a, b = matrix(rng, 300, 130), matrix(rng, 130, 140, turned=True)
    a[17, 3] = number
    for out in (np.empty((300, 140), float32), np.empty((140, 300), float32).T):
        blas.gemm(a, b, out)
        want = a.astype(np.float64) @ b
        assert np.allclose(out, want, rtol=1e-5, atol=1e-4, equal_nan=True)
        blas.gemm(a, b, out, beta=1.0)
        assert np.allclose(out, 2 * want, rtol=1e-5, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("number", [1.0, np.inf])
def test_what_is_added(number):
    rng = np.random.default_rng(11)
    a, b = matrix(rng, 300, 130), matrix(rng, 130, 140, turned=True)
    a[17, 3] = number
    for start in (matrix(rng, 1, 140)[0], matrix(rng, 300, 140)):
        out = np.empty((300, 140), float32)
        assert blas.by_tiles(a, b, out)
        blas.add_products(a, [tiles.Product(b, out, start)])
        want = a.astype(np.float64) @ b + start
        assert np.allclose(out, want, rtol=1e-5, atol=1e-4)


def test_batches():
    rng = np.random.default_rng(7)
    a = rng.standard_normal((3, 2, 160, 128), float32)
    b = rng.standard_normal((2, 128, 144), float32)
    b[1, 2, 3] = np.inf
    out = blas.matmul(a, b)
    want = a.astype(np.float64) @ b
    assert np.allclose(out, want, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_the_number_of_threads_changes_nothing():
    rng = np.random.default_rng(8)
    before = te.get_num_threads()
    try:
        for rows, columns in ((500, 130), (130, 500)):
            a, b = matrix(rng, rows, 700), matrix(rng, 700, columns)
            made = []
            for threads in (1, 2, 3):
                te.set_num_threads(threads)
                made.append(blas.gemm(a, b, np.empty((rows, columns), float32)))
            assert all(np.array_equal(made[0], other) for other in made[1:])
    finally:
        te.set_num_threads(before)


def test_many_threads_at_once():
    rng = np.random.default_rng(9)
    a, b = matrix(rng, 260, 260), matrix(rng, 260, 260)
    want = blas.gemm(a, b, np.empty((260, 260), float32))
    wrong = []

    def work():
        for _ in range(50):
            if not np.array_equal(blas.gemm(a, b, np.empty((260, 260), float32)), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_who_asks_for_a_library_gets_it():
    rng = np.random.default_rng(10)
    a, b = matrix(rng, 256, 256), matrix(rng, 256, 256)
    by_tiles = blas.gemm(a, b, np.empty((256, 256), float32))
    try:
        te.set_blas("openblas")
        assert not te.blas_info()["tiles"]
        by_library = blas.gemm(a, b, np.empty((256, 256), float32))
        assert not np.array_equal(by_library, by_tiles)
        te.set_blas("auto")
        te.set_kernels("numpy")
        assert not te.blas_info()["tiles"]
    finally:
        te.set_blas("auto")
        te.set_kernels("auto")
    assert np.array_equal(blas.gemm(a, b, np.empty((256, 256), float32)), by_tiles)


def test_pieces_cover_everything():
    for length, parts in itertools.product((1, 31, 32, 33, 100, 1000), (1, 2, 3, 7)):
        pieces = tiles.cuts(length, parts)
        assert [p.start for p in pieces[1:]] == [p.stop for p in pieces[:-1]]
        assert pieces[0].start == 0 and pieces[-1].stop == length
        assert len(pieces) <= min(parts, len(parallel.split(length, parts)))


# -- convolution -----------------------------------------------------------------------------


@pytest.fixture(params=[1, 4, 64])
def blocks(request, monkeypatch):
    """Blocks of images in different sizes; how many of them went through tiles."""
    count = []
    run = _direct.run_tiled

    def counted(tasks, *others):
        count.append(len(tasks))
        return run(tasks, *others)

    monkeypatch.setattr(_direct, "_TILED", request.param)
    monkeypatch.setattr(_direct, "_BLOCK", 1 << 16)
    monkeypatch.setattr(_direct, "run_tiled", counted)
    _direct.layout_of.cache_clear()
    yield count
    _direct.layout_of.cache_clear()


def convolution(x, weight, bias, grad, dtype, options):
    """The output, and the gradients of all inputs."""
    inputs = [te.Tensor(a.astype(dtype), requires_grad=True) for a in (x, weight, bias)]
    out = te.conv2d(*inputs, **options)
    out.backward(te.Tensor(grad.astype(dtype)))
    return [out.numpy(), *(tensor.grad.numpy() for tensor in inputs)]


IMAGES = [
    # images, channels, outputs, height and width, kernel, options
    (3, 32, 32, (20, 21), (3, 3), {"padding": 1}),
    (1, 64, 96, (18, 32), (3, 5), {"padding": (0, 2)}),
    (2, 32, 64, (40, 33), (2, 3), {}),
    (2, 32, 40, (9, 64), (1, 1), {}),
    (1, 96, 33, (24, 17), (3, 2), {"padding": (2, 1), "dilation": (2, 1)}),
    (5, 32, 32, (16, 16), (5, 1), {"padding": (2, 0)}),
    (64, 32, 32, (6, 5), (3, 3), {"padding": 1}),  # in lanes
]


@pytest.mark.parametrize("case", range(len(IMAGES)))
def test_convolution(case, blocks, threads):
    images, channels, outputs, size, kernel, options = IMAGES[case]
    rng = np.random.default_rng(case)
    x = rng.standard_normal((images, channels, *size), float32)
    weight = rng.standard_normal((outputs, channels, *kernel), float32)
    bias = rng.standard_normal(outputs, float32)
    shape = te.conv2d(te.Tensor(x), te.Tensor(weight), **options).shape
    grad = rng.standard_normal(shape, float32)
    blocks.clear()
    made = convolution(x, weight, bias, grad, float32, options)
    assert len(blocks) == (1 if outputs % 32 else 3)
    want = convolution(x, weight, bias, grad, np.float64, options)
    for ours, exact in zip(made, want, strict=True):
        assert np.abs(ours - exact).max() <= 2e-6 * np.abs(exact).max()
    again = convolution(x, weight, bias, grad, float32, options)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


@pytest.mark.parametrize("number", [np.inf, np.nan, 1e30, 1e-42])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_convolution_of_numbers_that_tiles_cannot_split(number, where, blocks):
    rng = np.random.default_rng(12)
    arrays = [
        rng.standard_normal(shape, float32)
        for shape in ((3, 32, 24, 20), (32, 32, 3, 3), (32,), (3, 32, 24, 20))
    ]
    if number < 1:
        arrays[where][1] = number
    else:
        arrays[where][1, 5, 2] = number
    made = convolution(*arrays, float32, {"padding": 1})
    assert blocks
    try:
        te.set_blas("openblas")
        want = convolution(*arrays, float32, {"padding": 1})
    finally:
        te.set_blas("auto")
    for ours, theirs in zip(made, want, strict=True):
        finite = np.abs(theirs[np.isfinite(theirs)]).max()
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-6 * finite, equal_nan=True)


# -- recurrent layers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("number", [1.0, np.nan, np.inf, 1e30, 1e-42])
@pytest.mark.parametrize("where", ["x", "state", "weight", "grad"])
def test_steps_of_recurrent_layers(name, number, where, threads, monkeypatch):
    """By tiles, or once more without where these can't split a number."""
    linked = []
    link = _chained.link_product
    monkeypatch.setattr(_chained, "link_product", lambda *g: (linked.append(1), link(*g)))
    rng = np.random.default_rng(14)
    length, batch, features, hidden = 9, 17, 40, 66
    blocks = {"rnn": 1, "lstm": 4, "gru": 3}[name]
    shapes = [(length, batch, features), *[(batch, hidden)] * (1 + (name == "lstm"))]
    shapes += [(blocks * hidden, features), (blocks * hidden, hidden), *[(blocks * hidden,)] * 2]
    arrays = [rng.standard_normal(shape, float32) * np.float32(0.3) for shape in shapes]
    grad = rng.standard_normal((length, batch, hidden), float32)
    at = {"x": arrays[0], "state": arrays[1], "weight": arrays[-3], "grad": grad}[where]
    at[(3, 5, 7)[: at.ndim]] = number

    def made():
        tensors = [te.Tensor(array, requires_grad=True) for array in arrays]
        states = dict(zip(("h0", "c0"), tensors[1:-4], strict=False))
        out, *_ = getattr(te, name)(tensors[0], *tensors[-4:], **states)
        out.backward(te.Tensor(grad))
        with te.no_grad():
            again, *_ = getattr(te, name)(tensors[0], *tensors[-4:], **states)
        return [out.numpy(), again.numpy(), *(tensor.grad.numpy() for tensor in tensors)]

    with np.errstate(all="ignore"):
        ours = made()
        # A weight that can't be split is known before; other numbers are found on the way. Of a
        # GRU's weights backward goes through parts, of which one has the number.
        split = where != "weight" or number in (1.0, 1e-42) or name == "gru"
        assert bool(linked) == split
        try:
            te.set_blas("openblas")
            want = made()
        finally:
            te.set_blas("auto")
    for one, other in zip(ours, want, strict=True):
        finite = np.abs(other[np.isfinite(other)])
        scale = finite.max() if finite.size else 1
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def test_convolution_of_no_images():
    weight = te.Tensor(np.ones((32, 32, 3, 3), float32), requires_grad=True)
    x = te.Tensor(np.ones((0, 32, 40, 40), float32), requires_grad=True)
    out = te.conv2d(x, weight, padding=1)
    assert out.shape == (0, 32, 40, 40)
    out.sum().backward()
    assert (weight.grad.numpy() == 0).all() and x.grad.shape == x.shape


def test_a_side_without_a_contiguous_axis():
    rng = np.random.default_rng(15)
    b = matrix(rng, 140, 180)[::2, ::3]
    laid = tiles.Laid(b)
    assert laid.can_be_split()
    a, out = matrix(rng, 40, 70), np.empty((40, 60), float32)
    assert tiles.multiply_each(a, [tiles.Product(b, out, None, laid)]) == [[]]
    assert (np.abs(out - a.astype(np.float64) @ b) <= bound(a, b)).all()
