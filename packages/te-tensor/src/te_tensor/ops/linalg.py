"""Matrix products: MatMul and Linear."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from .. import memory, storage
from ..autograd import sum_to_shape
from ..blas import add_products, by_tiles, gemm, is_small, lay_out, matmul, rows_of
from ..checks import broadcast_shape
from ..dtypes import Array
from ..machine import (
    LANES,
    Laid,
    Matrix,
    Product,
    add_kernel,
    copy_kernel,
    kernel,
    multiply,
    runs,
    runs_programs,
)
from ..operation import Gradients, Operation, Sample
from ..plan import Plan, laid_out, panels_of
from ..recorder import Backward, Into, Recorder
from ._kernels import as_rows, sum_rows

#: Elements from which a weight is laid out for products, and the most rows that pay for it: with
#: more, BLAS is as quick, since it lays the weight out for all of them.
_PANELS_FROM = 1 << 14
_PANEL_ROWS = 256
#: Rows from which tiles are ahead of that, where the processor has them.
_TILED_ROWS = 128


class MatMul(Operation):
    """a @ b with NumPy's rules: 1-D operands are vectors, leading axes broadcast."""

    one_dtype = ("a", "b")
    samples = (
        Sample((3, 4), (4, 2)),
        Sample((4,), (4,)),
        Sample((4,), (2, 4, 3)),
        Sample((2, 3, 4), (4,)),
        Sample((2, 1, 3, 4), (5, 4, 2)),
        Sample((5, 3, 4), (4, 2)),
    )

    def forward(self, a: Array, b: Array) -> Array:
        """The product."""
        if not a.ndim or not b.ndim:
            raise ValueError(
                f"matmul of shapes {a.shape} and {b.shape}: expected at least one axis"
            )
        matrix_a, matrix_b = _matrices(a, b)
        fits = matrix_a.shape[-1] == matrix_b.shape[-2]
        try:
            broadcast_shape(matrix_a.shape[:-2], matrix_b.shape[:-2])
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"matmul of shapes {a.shape} and {b.shape}: expected (…, m, k) and (…, k, n) "
                "whose leading axes broadcast"
            )
        self.save(a, b)
        return _without_vectors(matmul(matrix_a, matrix_b), a, b)

    def multiply_adds(self) -> int:
        """Those of the product."""
        a, b = self.inputs
        lead = broadcast_shape(a.shape[:-2], b.shape[:-2])
        outer = (a.shape[-2] if a.ndim > 1 else 1) * (b.shape[-1] if b.ndim > 1 else 1)
        return int(prod(lead) * outer * a.shape[-1])

    def backward(self, grad: Array) -> Gradients:
        """G·bᵀ and aᵀ·g, summed over axes that were broadcast."""
        return self.backward_into(grad, outs=(None, None))

    def backward_into(self, grad: Array, *, outs: Sequence[Array | None]) -> Gradients:
        """The same, added to what is given where one product makes it."""
        a, b = self.saved
        matrix_a, matrix_b = _matrices(a, b)
        if a.ndim == 1:
            grad = grad[..., None, :] if b.ndim > 1 else grad[..., None]
        if b.ndim == 1:
            grad = grad[..., None]
        grad_a = grad_b = None
        if self.needs_grad[0]:
            if b.ndim == 2 and a.ndim > 1:
                grad_a = _product(as_rows(grad), b.T, a.shape, outs[0])
            else:
                full = matmul(grad, matrix_b.swapaxes(-1, -2))
                grad_a = sum_to_shape(full, matrix_a.shape).reshape(a.shape)
        if self.needs_grad[1]:
            if b.ndim == 2 and a.ndim > 1:  # the sum over the batch is part of one product
                grad_b = _product(as_rows(a).T, as_rows(grad), b.shape, outs[1])
            else:
                full = matmul(matrix_a.swapaxes(-1, -2), grad)
                grad_b = sum_to_shape(full, matrix_b.shape).reshape(b.shape)
        return grad_a, grad_b


def _matrices(a: Array, b: Array) -> tuple[Array, Array]:
    return (a[None, :] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)


def _without_vectors(product: Array, a: Array, b: Array) -> Array:
    """Drop the axes that stood in for 1-D operands."""
    if b.ndim == 1:
        product = product[..., 0]
    if a.ndim == 1:
        product = product[..., 0, :] if b.ndim > 1 else product[..., 0]
    return product


class Linear(Operation):
    """x @ weightᵀ + bias + residual, over the last axis of x.

    Inputs: x (…, in), weight (out, in), and optionally bias (out,) and residual (…, out).

    Args:
        residual: whether the last input is a residual.
    """

    one_dtype = ("x", "weight", "bias or residual", "residual")
    samples = (
        Sample((5, 3), (2, 3), (2,)),
        Sample((2, 4, 3), (2, 3)),
        Sample((3,), (2, 3), (2,)),
        Sample((2, 4, 3), (2, 3), (2,), (2, 4, 2), kwargs={"residual": True}),
        Sample((4, 3), (2, 3), (4, 2), kwargs={"residual": True}),
    )

    def __init__(self, residual: bool = False) -> None:
        self.residual = residual

    def forward(self, x: Array, weight: Array, *extra: Array) -> Array:
        """The affine map, shape (…, out)."""
        residual, bias, shape = self._check(x, weight, *extra)
        rows = _rows(x)
        self.save(rows, weight, x.shape)
        out = memory.empty(shape, x.dtype)
        constant = True not in self.needs_grad
        matrix = out.reshape(len(rows), shape[-1])
        _affine(rows, (weight,), bias, (matrix,), residual, constant=constant)
        return out

    def _check(
        self, x: Array, weight: Array, *extra: Array
    ) -> tuple[Array | None, tuple[Array, ...], tuple[int, ...]]:
        """The residual, the bias, and the shape of the result."""
        residual = extra[-1] if self.residual else None
        bias = extra[:-1] if self.residual else extra
        _check_linear(x, weight, *bias)
        shape = (*x.shape[:-1], weight.shape[0])
        if residual is not None and residual.shape != shape:
            raise ValueError(f"linear got a residual {residual.shape}: expected {shape}")
        return residual, bias, shape

    def prepare(self, plan: Plan, x: Array, weight: Array, *terms: Array) -> Array:
        """The same, in a plan."""
        rows = _rows(x)
        out = np.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
        matrix = out.reshape(len(rows), len(weight))
        matrices = [term if term.ndim == 1 else term.reshape(matrix.shape) for term in terms]
        if len(terms) == 2:
            plan.rows(add_kernel, matrix, *matrices)
        start: Array = np.zeros(len(weight), x.dtype) if not terms else matrices[0]
        start = matrix if len(terms) == 2 else start
        plan.linear(rows, weight, start, matrix)
        return out

    def record(
        self, recorder: Recorder, x: Array, weight: Array, *terms: Array
    ) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        *_, shape = self._check(x, weight, *terms)
        same = 1 + len(terms) if self.residual else None
        rows, steps = _rows(x), recorder.forward
        features, width = weight.shape
        out = recorder.kept(*shape)
        matrix = out.reshape(len(rows), features)
        matrices = [term if term.ndim == 1 else term.reshape(matrix.shape) for term in terms]
        back = partial(self._record_back, recorder, rows, weight)
        start = matrix if len(matrices) == 2 else (*matrices, None)[0]
        if recorder.is_large(rows, weight.T, matrix):
            if len(matrices) == 2:
                steps.rows(add_kernel, matrix, *matrices)
            recorder.multiply(steps, rows, weight.T, start, matrix, recorder.laid(weight))
            return out, back, same
        turned = recorder.brief(width, features + -features % LANES)
        steps.turn(weight, turned)

        def write(piece: slice, _: int) -> None:
            own = matrix[piece]
            begin = [term if term.ndim == 1 else term[piece] for term in matrices]
            if len(begin) == 2:
                steps.kernel(add_kernel, own, *begin)
                begin = [own]
            begin = begin or [np.zeros(features, x.dtype)]
            steps.matmul(rows[piece], turned[:, :features], begin[0], own)

        steps.share(write, len(rows), rows.size * features)
        recorder.release(turned)
        return out, back, same

    def _record_back(
        self,
        recorder: Recorder,
        rows: Array,
        weight: Array,
        grad: Array,
        outs: Sequence[Into | None],
    ) -> None:
        """Threads go through rows of x, and sum the gradients of weight and bias over their own."""
        to_x, to_weight = outs[:2]
        to_bias = outs[2] if len(outs) - self.residual == 3 else None
        steps = recorder.backward
        upstream = grad.reshape(len(rows), len(weight))
        if to_x is not None:
            start = None if to_x.start is None else to_x.start.reshape(rows.shape)
            to_x = Into(to_x.out.reshape(rows.shape), start)
            if recorder.is_large(upstream, weight, to_x.out):
                recorder.multiply(steps, upstream, weight, to_x.start, to_x.out)
                to_x = None
        if to_weight is not None and recorder.is_large(upstream.T, rows, to_weight.out):
            recorder.multiply(steps, upstream.T, rows, to_weight.start, to_weight.out)
            to_weight = None
        if to_x is to_weight is to_bias is None:
            return
        threads = steps.threads
        of_weight = None if to_weight is None else recorder.passing(threads, *weight.shape)
        of_bias = None if to_bias is None else recorder.passing(threads, len(weight))
        nothing = np.zeros(rows.shape[1], grad.dtype)

        def write(piece: slice, number: int) -> None:
            own = upstream[piece]
            if to_x is not None:
                begin = nothing if to_x.start is None else to_x.start[piece]
                steps.matmul(own, weight, begin, to_x.out[piece])
            if of_weight is not None:
                steps.matmul(own.T, rows[piece], nothing, of_weight[number])
            if of_bias is not None:
                recorder.sum_rows(own, of_bias[number])

        count = steps.share(write, len(rows), rows.size * len(weight))
        for sums, into in ((of_weight, to_weight), (of_bias, to_bias)):
            if sums is not None and into is not None:
                recorder.add_up(sums[:count], into)
                recorder.release(sums)

    def multiply_adds(self) -> int:
        """Those of the product."""
        x, weight = self.inputs[:2]
        return int(x.size * weight.shape[0])

    def backward(self, grad: Array) -> Gradients:
        """G·weight, gᵀ·x, g summed over rows, and g itself."""
        return self.backward_into(grad, outs=(None,) * len(self.needs_grad))

    def backward_into(self, grad: Array, *, outs: Sequence[Array | None]) -> Gradients:
        """The same, those of x and the weight added to what is given."""
        rows, weight, shape = self.saved
        grads: list[Array | None] = [None] * len(self.needs_grad)
        if self.residual:
            grads[-1] = grad
        grad = as_rows(grad) if grad.ndim > 1 else grad[None, :]
        if self.needs_grad[0]:
            grads[0] = _product(grad, weight, shape, outs[0])
        if self.needs_grad[1]:
            grads[1] = _product(grad.T, rows, weight.shape, outs[1])
        if len(grads) - self.residual == 3 and self.needs_grad[2]:
            grads[2] = sum_rows(grad)
        return grads


class Linears(Operation):
    """Several affine maps of one x, which is read once: such as those to queries, keys and values.

    Inputs: x (…, in), then a weight (out, in) for each map, and a bias (out,) for each or none.

    Args:
        count: how many maps.
    """

    samples = (
        Sample((2, 4, 3), (2, 3), (5, 3), (2,), (5,), kwargs={"count": 2}),
        Sample((3,), (2, 3), (2, 3), (1, 3), kwargs={"count": 3}),
    )

    def __init__(self, count: int) -> None:
        self.count = count

    def forward(self, x: Array, *parameters: Array) -> tuple[Array, ...]:
        """The affine maps, shapes (…, out)."""
        weights, biases = parameters[: self.count], parameters[self.count :]
        for i, weight in enumerate(weights):
            _check_linear(x, weight, *biases[i : i + 1])
        rows = _rows(x)
        self.save(rows, x.shape, *weights)
        outs = [memory.empty((*x.shape[:-1], len(weight)), x.dtype) for weight in weights]
        matrices = [out.reshape(len(rows), out.shape[-1]) for out in outs]
        _affine(rows, weights, biases, matrices, constant=True not in self.needs_grad)
        return tuple(outs)

    def multiply_adds(self) -> int:
        """Those of the products."""
        x, *weights = self.inputs[: self.count + 1]
        return int(x.size * sum(weight.shape[0] for weight in weights))

    def backward(self, *grads: Array | None) -> Gradients:
        """Σ gᵢ·weightᵢ; gᵢᵀ·x, and gᵢ summed over rows."""
        return self.backward_into(*grads, outs=(None,) * len(self.needs_grad))

    def backward_into(self, *grads: Array | None, outs: Sequence[Array | None]) -> Gradients:
        """The same, added to what is given."""
        rows, shape, *weights = self.saved
        results: list[Array | None] = [None] * len(self.needs_grad)
        total = outs[0]
        laid: Laid | None = None  # x, for the weights' gradients
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            if grad is None:
                continue
            grad = as_rows(grad) if grad.ndim > 1 else grad[None, :]
            if self.needs_grad[0]:
                total = _product(grad, weight, shape, total)
            if self.needs_grad[1 + i]:
                if laid is None and by_tiles(grad.T, rows):
                    laid = lay_out(rows)
                results[1 + i] = _product(grad.T, rows, weight.shape, outs[1 + i], laid)
            place = 1 + self.count + i
            if place < len(results) and self.needs_grad[place]:
                results[place] = sum_rows(grad)
        results[0] = total if self.needs_grad[0] else None
        return results


def _product(
    a: Array, b: Array, shape: tuple[int, ...], out: Array | None, laid: Laid | None = None
) -> Array:
    """a @ b under a shape of as many rows, or added to an array of that shape."""
    if out is None:
        made = memory.empty(shape, a.dtype)  # no view of another: a leaf may then keep it
        gemm(a, b, made.reshape(a.shape[0], b.shape[1]), laid=laid)
        return made
    rows = rows_of(out) if out.ndim > 1 else out[None, :]
    if rows is None:
        out += _product(a, b, shape, None, laid)
    else:
        gemm(a, b, rows, beta=1.0, laid=laid)
    return out


def _rows(x: Array) -> Array:
    """x as a matrix over its last axis, copied only where that is inevitable."""
    rows = rows_of(x) if x.ndim > 1 else x[None, :]
    return as_rows(x) if rows is None else rows


def _check_linear(x: Array, weight: Array, *bias: Array) -> None:
    if (
        weight.ndim == 2
        and x.ndim
        and x.shape[-1] == weight.shape[1]
        and (not bias or bias[0].shape == weight.shape[:1])
    ):
        return
    named = {"x": x, "weight": weight} | ({"bias": bias[0]} if bias else {})
    given = ", ".join(f"{name} {a.shape}" for name, a in named.items())
    raise ValueError(f"linear got {given}: expected x (…, in), weight (out, in), bias (out,)")


@kernel
def _add(out: Matrix, term: Matrix) -> None:
    out.store(out.load() + term.load())


@kernel
def _add_both(out: Matrix, bias: Matrix, residual: Matrix) -> None:
    out.store(out.load() + (bias.load() + residual.load()))


def _affine(
    rows: Array,
    weights: Sequence[Array],
    biases: Sequence[Array],
    outs: Sequence[Array],
    residual: Array | None = None,
    *,
    constant: bool,
) -> None:
    """The products, and what is added to them.

    BLAS adds to what is there, or sets it to 0 first: with the bias in place that is spared. Small
    products aren't made by it; to them the bias is added. Weights that stay as they are from call
    to call (`constant`: no gradients are wanted) are laid out for products once.
    """
    tiled = []
    for weight, bias, out in itertools.zip_longest(weights, biases, outs):
        terms = [] if bias is None else [bias]
        if residual is not None:
            terms.append(residual.reshape(out.shape))
        panels = laid = None
        tiles = by_tiles(rows, weight.T, out)
        if constant and weight.size >= _PANELS_FROM and runs_programs(rows, weight, *terms):
            if tiles and len(rows) >= _TILED_ROWS:
                laid = storage.layout_of(weight, laid_out)
            elif len(rows) <= _PANEL_ROWS:
                panels = panels_of(weight)
        if panels is not None:
            multiply(rows, panels, _start(terms, out), out)
        elif tiles and (laid is not None or (len(terms) == 1 and terms[0].flags.c_contiguous)):
            tiled.append(Product(weight.T, out, _start(terms, out), laid))
        elif terms and not is_small(rows, weight.T, out):
            _put(out, terms)
            gemm(rows, weight.T, out, beta=1.0)
        else:
            gemm(rows, weight.T, out)
            if terms:
                _put(out, terms, more=True)
    if tiled:
        add_products(rows, tiled)


def _start(terms: list[Array], out: Array) -> Array:
    """What a product is added to: the only term, or out with their sum."""
    if len(terms) == 1:
        return terms[0]
    _put(out, terms or [np.zeros(out.shape[1], out.dtype)])
    return out


#: By whether they add to what is there, and how many terms they have.
_PUT = {(False, 1): copy_kernel, (False, 2): add_kernel, (True, 1): _add, (True, 2): _add_both}


def _put(out: Array, terms: list[Array], *, more: bool = False) -> None:
    """The sum of one or two terms, vectors for all rows or matrices; `more` adds it to `out`."""
    if runs(out, *terms):
        _PUT[more, len(terms)].rows(out, *terms)
        return
    if not more:
        np.copyto(out, terms.pop(0))
    for term in terms:
        np.add(out, term, out=out)
