"""Matrix products of arrays, small and large, with one another and in batches.

Small ones are NumPy's. Others go to BLAS or, large ones of float32, to the processor's tiles, and
large ones are cut over the engine's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import memory, parallel
from .blas_library import SMALL, NumPyBlas, OpenBlas, library, uses_tiles
from .checks import broadcast_shape
from .dtypes import WIDE_FLOATS, Array
from .machine import Laid, Product, tile_products

#: Multiply-adds from which a product is cut over the threads.
_PARALLEL_FROM = 1 << 24
#: The same for products with a vector, which read each element of a matrix once: the threads
#: share the memory's speed, so fewer of them are worth a second thread.
_PARALLEL_VECTOR_FROM = 1 << 21
#: The same where threads wait awake, and begin at once.
_SHARED_FROM = 1 << 20
_SHARED_VECTOR_FROM = 1 << 17
#: Multiply-adds up to which NumPy makes products with a vector; see SMALL for the others.
_SMALL_VECTOR = 1 << 15
#: Elements up to which NumPy is the quicker one for an outer product.
_SMALL_OUTER = 1 << 12


def _scale(out: Array, beta: float) -> None:
    """What is left of a product over an inner axis of length 0."""
    if beta == 0.0:
        out[...] = 0
    elif beta != 1.0:
        out *= out.dtype.type(beta)


def gemm(
    a: Array,
    b: Array,
    out: Array,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    laid: Laid | None = None,
) -> Array:
    """out = alpha * a @ b + beta * out, on 2-D views of one dtype.

    Transposes are views (`a.T`). Large products are cut over the engine's threads, always at
    the same places for the same number of threads. With beta 0, `out` is not read.

    Args:
        a: shape (m, k).
        b: shape (k, n).
        out: shape (m, n); shares no memory with a or b.
        alpha: factor of the product.
        beta: factor of what `out` held.
        laid: b as `lay_out` makes it.

    Returns:
        out.

    Raises:
        TypeError: different dtypes.
    """
    rows, columns = out.shape
    inner = a.shape[1]
    if not a.dtype == b.dtype == out.dtype:  # BLAS would read one as the other
        raise TypeError(f"gemm of {a.dtype} and {b.dtype} into {out.dtype}: expected one dtype")
    if alpha == 1.0 and is_small(a, b, out):
        if beta == 0.0:
            np.matmul(a, b, out=out)
            return out
        if beta == 1.0:
            np.add(out, np.matmul(a, b), out=out)
            return out
    if out.size == 0:
        return out
    if inner == 0:
        _scale(out, beta)
        return out
    parts = _parts(rows * columns * inner, min(rows, columns) == 1)
    blas: OpenBlas | NumPyBlas = library() if out.dtype in WIDE_FLOATS else NumPyBlas()
    _multiply(blas, a, b, out, alpha, beta, parts, laid)
    return out


def _multiply(
    blas: OpenBlas | NumPyBlas,
    a: Array,
    b: Array,
    out: Array,
    alpha: float,
    beta: float,
    parts: int = 1,
    laid: Laid | None = None,
) -> None:
    """One product of matrices, by tiles where these are ahead."""
    if out.strides[1] != out.itemsize:  # outᵀ = bᵀ aᵀ may have contiguous rows
        a, b, out, laid = b.T, a.T, out.T, None
    if beta not in (0.0, 1.0) or not by_tiles(a, b, out):
        blas.gemm(a, b, out, alpha, beta, parts)
        return
    product = Product(b, out, out if beta else None, laid)
    for rows, columns in tile_products.multiply_each(a, [product], alpha=alpha, parts=parts)[0]:
        blas.gemm(a[rows], b[:, columns], out[rows, columns], alpha, beta)


def by_tiles(a: Array, b: Array, out: Array | None = None) -> bool:
    """Whether the processor's tiles make a product of 2-D views, into out or a new array."""
    return tile_products.suits(a, b, out) and uses_tiles()


def lay_out(b: Array) -> Laid:
    """The right side (k, n) of products that tiles make, for several of them."""
    parts = parallel.parts() if b.size >= tile_products.SHARED_FROM else 1
    return Laid(b, parts=parts)


def add_products(a: Array, products: Sequence[Product]) -> None:
    """out = start + a @ b for several products, of matrices for which `by_tiles` says yes.

    Args:
        a: shape (m, k), which is laid out once for all of them.
        products: each with a start.
    """
    work = sum(product.out.size for product in products) * a.shape[1]
    blocks = tile_products.multiply_each(a, products, parts=_parts(work, by_vector=False))
    for (b, out, start, _), left in zip(products, blocks, strict=True):
        assert start is not None
        for rows, columns in left:
            block = out[rows, columns]
            np.copyto(block, start[..., columns] if start.ndim == 1 else start[rows, columns])
            library().gemm(a[rows], b[:, columns], block, 1.0, 1.0)


def is_small(a: Array, b: Array, out: Array) -> bool:
    """Whether NumPy makes the product: its call is the quicker one."""
    inner = a.shape[1]
    # An outer product NumPy makes without a BLAS, element by element.
    limit = _SMALL_OUTER if inner == 1 else SMALL if min(out.shape) > 1 else _SMALL_VECTOR
    return out.size * inner <= limit and a.flags.forc and b.flags.forc and out.flags.c_contiguous


def _parts(work: int, by_vector: bool) -> int:
    """How many threads a product of so many multiply-adds is worth."""
    if parallel.crew() is None:
        least = _PARALLEL_VECTOR_FROM if by_vector else _PARALLEL_FROM
    else:
        least = _SHARED_VECTOR_FROM if by_vector else _SHARED_FROM
    return 1 if work < least else parallel.parts()


def gemm_batch(a: Array, b: Array, out: Array, *, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """out[i] = alpha * a[i] @ b[i] + beta * out[i] over all leading axes.

    Args:
        a: shape (..., m, k); leading axes broadcast to those of `out`.
        b: shape (..., k, n); likewise.
        out: shape (..., m, n); no two of its matrices share memory.
        alpha: factor of the products.
        beta: factor of what `out` held.

    Returns:
        out.
    """
    lead = out.shape[:-2]
    if out.size == 0:
        return out
    if a.shape[-1] == 0:
        _scale(out, beta)
        return out
    if out.ndim == 2:
        return gemm(a, b, out, alpha=alpha, beta=beta)
    threads = parallel.get_num_threads()
    work = out.size * a.shape[-1]
    if a.shape[-2] * out.shape[-1] * a.shape[-1] <= SMALL and (
        work < _PARALLEL_FROM or threads == 1 or parallel.in_parallel()
    ):
        NumPyBlas().gemm(a, b, out, alpha, beta)
        return out
    if a.shape[:-2] != lead:
        a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
    if b.shape[:-2] != lead:
        b = np.broadcast_to(b, (*lead, *b.shape[-2:]))
    longest = int(np.argmax(lead))
    if work < _PARALLEL_FROM or threads == 1 or parallel.in_parallel():
        pieces = [slice(None)]
    elif lead[longest] < threads:  # few large products: each is cut by itself
        for index in np.ndindex(lead):
            gemm(a[index], b[index], out[index], alpha=alpha, beta=beta)
        return out
    else:
        pieces = parallel.split(lead[longest], threads)
    blas: OpenBlas | NumPyBlas = library() if out.dtype in WIDE_FLOATS else NumPyBlas()
    before, first = (slice(None),) * longest, (0,) * len(lead)

    def run(index: int) -> None:
        piece = (*before, pieces[index])
        own = a[piece], b[piece], out[piece]
        if not tile_products.suits(a[first], b[first], out[first]):
            blas.gemm_batch(*own, alpha, beta)
            return
        for place in np.ndindex(own[2].shape[:-2]):
            _multiply(blas, own[0][place], own[1][place], own[2][place], alpha, beta)

    parallel.parallel_for(run, len(pieces))
    return out


def stepwise(a: Array, b: Array, out: Array, *, beta: float = 0.0) -> Callable[[int], None]:
    """Products that are wanted one by one: out[i] = a[i] @ b[i] + beta * out[i].

    What is the same for all of them is looked at once: for recurrences, whose products are so
    small that this counts. Each runs in the thread that asks for it.

    Args:
        a: shape (steps, m, k), or (m, k) for one matrix that serves all steps.
        b: shape (steps, k, n) or (k, n).
        out: shape (steps, m, n) or (m, n).
        beta: factor of what `out` held.

    Returns:
        A function that computes the product of a step.

    Raises:
        TypeError: different dtypes.
    """
    if not a.dtype == b.dtype == out.dtype:  # BLAS would read one as the other
        raise TypeError(f"gemm of {a.dtype} and {b.dtype} into {out.dtype}: expected one dtype")
    count = max(len(m) for m in (a, b, out) if m.ndim == 3)
    a, b, out = (
        m if m.ndim == 3 else as_strided(m, (count, *m.shape), (0, *m.strides)) for m in (a, b, out)
    )
    if not (a.size and b.size and out.size):
        return lambda step: _scale(out[step], beta)
    blas: OpenBlas | NumPyBlas = library() if out.dtype in WIDE_FLOATS else NumPyBlas()
    return blas.stepwise(a, b, out, beta)


def rows_of(array: Array) -> Array | None:
    """An N-D array as one matrix of rows, without copying, or None where that needs a copy."""
    if array.ndim == 2:
        return array
    if array.flags.c_contiguous and array.size:
        return array.reshape(-1, array.shape[-1])
    for axis in range(array.ndim - 2):
        step = array.strides[axis + 1] * array.shape[axis + 1]
        if array.strides[axis] != step and array.shape[axis] != 1:
            return None
    return array.reshape(-1 if array.size else prod(array.shape[:-1]), array.shape[-1])


def matmul(a: Array, b: Array) -> Array:
    """a @ b for N-D arrays of at least two axes, leading axes broadcast."""
    lead = broadcast_shape(a.shape[:-2], b.shape[:-2])
    out = memory.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
    if b.ndim == 2 and a.size:  # one tall product instead of many
        rows = rows_of(a)
        rows = a.reshape(-1, a.shape[-1]) if rows is None else rows
        gemm(rows, b, out.reshape(len(rows), b.shape[1]))
        return out
    return gemm_batch(a, b, out)
