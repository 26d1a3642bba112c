"""Normalization over the last axes: LayerNorm RMSNorm."""

from __future__ import annotations

from math import ceil, prod

import numpy as np

from .. import memory, parallel
from ..blas import gemm
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ._kernels import as_rows, sum_rows

#: Elements up to which calls cost more than passes: small inputs take the fewest, in float64.
_SMALL = 1 << 13


def _normalized(rows: Array, eps: float) -> tuple[Array, Array]:
    """(x - mean) / √(var + eps) of the rows, and 1 / √(var + eps) in a column."""
    share = 1 / rows.shape[1]
    wide = rows.astype(np.float64)
    wide -= np.add.reduce(wide, axis=1, keepdims=True) * share
    inverse = 1 / np.sqrt(np.vecdot(wide, wide)[:, None] * share + eps)
    wide *= inverse
    return wide.astype(rows.dtype), inverse.astype(rows.dtype)


class LayerNorm(Operation):
    """(x - mean) / √(var + eps), over the last axes (Ba, Kiros and Hinton, arXiv:1607.06450).

    Inputs: x, and optionally weight, or weight and bias, in the shape of the last axes.

    Args:
        axes: how many last axes are normalized together.
        eps: added to the variance.
    """

    one_dtype = ("x", "weight", "bias")
    samples = (
        Sample((3, 4), (4,), (4,)),
        Sample((2, 3, 4), (3, 4), kwargs={"axes": 2, "eps": 0.1}),
        Sample((5, 3)),
    )

    def __init__(self, axes: int = 1, eps: float = 1e-5) -> None:
        self.axes = axes
        self.eps = eps

    def forward(self, x: Array, *affine: Array) -> Array:
        """The normalized x, times weight, plus bias."""
        shape = x.shape[x.ndim - self.axes :]
        if self.axes < 1 or x.ndim < self.axes or [True for a in affine if a.shape != shape]:
            given = ", ".join(str(a.shape) for a in affine) or "none"
            raise ValueError(
                f"layer_norm over the last {self.axes} axes of {x.shape} got weights of shape "
                f"{given}: expected {shape}"
            )
        rows = as_rows(x, self.axes)
        scale_and_shift = [a.reshape(-1) for a in affine]
        if 0 < rows.size <= _SMALL:
            normal, inverse = _normalized(rows, self.eps)
            self.save(normal, inverse, *scale_and_shift[:1])
            out = normal
            for value, step in zip(scale_and_shift, (np.multiply, np.add), strict=False):
                out = step(out, value)
            return out.reshape(x.shape)
        out = memory.empty(rows.shape, x.dtype)
        keep = True in self.needs_grad
        normal = memory.empty(rows.shape, x.dtype) if keep else out
        inverse = memory.empty((len(rows), 1), x.dtype)
        share = np.full((prod(shape), 1), 1 / max(prod(shape), 1), x.dtype)

        def block(out: Array, normal: Array, rows: Array, inverse: Array) -> None:
            # A product with a column of shares is the fastest mean of rows.
            np.subtract(rows, gemm(rows, share, np.empty_like(inverse)), out=normal)
            variance = np.einsum("ij,ij->i", normal, normal) * share[0]
            # Far from zero the mean is rounded: what is left of it goes as well.
            rest = gemm(normal, share, np.empty_like(inverse))
            if (rest[:, 0] ** 2 > 1e-10 * (variance + self.eps)).any():
                np.subtract(normal, rest, out=normal)
                variance = np.einsum("ij,ij->i", normal, normal) * share[0]
            np.divide(1, np.sqrt(variance + self.eps), out=inverse[:, 0])
            np.multiply(normal, inverse, out=normal)
            for source, value, step in zip(
                (normal, out), scale_and_shift, (np.multiply, np.add), strict=False
            ):
                step(source, value, out=out)
            if not scale_and_shift and out is not normal:
                out[...] = normal

        if rows.size:
            parallel.rowwise(block, out, normal, rows, inverse)
        self.save(normal, inverse, *scale_and_shift[:1])
        return out.reshape(x.shape)

    def backward(self, grad: Array) -> Gradients:
        """Of the normalized values n: (g' - mean g' - n·mean(g'·n)) / std, with g' = g·weight."""
        normal, inverse, *weight = self.saved
        needs_weight, needs_bias = (*self.needs_grad[1:], False, False)[:2]
        rows, columns = normal.shape
        share = normal.dtype.type(1 / max(columns, 1))
        # Sums over rows and over columns are products with vectors, the fastest there is.
        shares = (weight[0] * share if weight else np.full(columns, share))[:, None]
        grad_rows = as_rows(grad, self.axes)
        out = memory.empty(grad.shape, normal.dtype)
        out_rows = as_rows(out, self.axes)
        blocks = parallel.split(rows, ceil(normal.size / parallel.BLOCK))
        sums = np.zeros((2, len(blocks), columns), normal.dtype)

        def run(index: int) -> None:
            block = blocks[index]
            g, n, scale = grad_rows[block], normal[block], inverse[block]
            result = out_rows[block]
            ones = np.ones((1, len(g)), g.dtype)
            (products,) = memory.scratch(1, g.shape, g.dtype)
            np.multiply(g, n, out=products)
            correlation = gemm(products, shares, np.empty_like(scale))
            mean = gemm(g, shares, np.empty_like(scale))
            if needs_weight:
                gemm(ones, products, sums[0, index : index + 1])
            if needs_bias:
                gemm(ones, g, sums[1, index : index + 1])
            np.multiply(n, correlation, out=result)
            scaled = np.multiply(g, weight[0], out=products) if weight else g
            np.subtract(scaled, result, out=result)
            np.subtract(result, mean, out=result)
            np.multiply(result, scale, out=result)

        if out.size:
            parallel.parallel_for(run, len(blocks))
        last = grad.shape[grad.ndim - self.axes :]
        to_weight, to_bias = (total.sum(axis=0).reshape(last) for total in sums)
        grads = (
            out,
            to_weight if needs_weight else None,
            to_bias if needs_bias else None,
        )
        return grads[: len(self.needs_grad)]


class RMSNorm(Operation):
    """x / √(mean(x²) + eps), over the last axes (Zhang and Sennrich, arXiv:1910.07467).

    Inputs: x, and optionally weight in the shape of the last axes.

    Args:
        axes: how many last axes are normalized together.
        eps: added to the mean of the squares.
    """

    one_dtype = ("x", "weight")
    samples = (
        Sample((3, 4), (4,)),
        Sample((2, 3, 4), (3, 4), kwargs={"axes": 2, "eps": 0.1}),
        Sample((5, 3)),
    )

    def __init__(self, axes: int = 1, eps: float = 1e-5) -> None:
        self.axes = axes
        self.eps = eps

    def forward(self, x: Array, *weight: Array) -> Array:
        """The normalized x, times weight."""
        shape = x.shape[x.ndim - self.axes :]
        if self.axes < 1 or x.ndim < self.axes or any(w.shape != shape for w in weight):
            given = ", ".join(str(w.shape) for w in weight) or "none"
            raise ValueError(
                f"rms_norm over the last {self.axes} axes of {x.shape} got a weight of shape "
                f"{given}: expected {shape}"
            )
        rows = as_rows(x, self.axes)
        flat = [w.reshape(-1) for w in weight]
        out = memory.empty(rows.shape, x.dtype)
        inverse = np.empty((len(rows), 1), x.dtype)
        share = x.dtype.type(1 / max(rows.shape[1], 1))

        def block(out: Array, rows: Array, inverse: Array) -> None:
            np.einsum("ij,ij->i", rows, rows, out=inverse[:, 0])
            np.divide(1, np.sqrt(inverse * share + self.eps), out=inverse)
            np.multiply(rows, inverse, out=out)
            if flat:
                np.multiply(out, flat[0], out=out)

        if rows.size:
            parallel.rowwise(block, out, rows, inverse)
        self.save(rows, inverse, *flat)
        return out.reshape(x.shape)

    def backward(self, grad: Array) -> Gradients:
        """Of the normalized values n: (g' - n·mean(g'·n)) / rms, with g' = g·weight."""
        rows, inverse, *weight = self.saved
        shape = grad.shape
        grad = as_rows(grad, self.axes)
        share = rows.dtype.type(1 / max(rows.shape[1], 1))
        out = memory.empty(rows.shape, rows.dtype)
        needs_weight = len(self.needs_grad) > 1 and self.needs_grad[1]
        products = memory.empty(rows.shape, rows.dtype) if needs_weight else None

        def block(out: Array, grad: Array, rows: Array, inverse: Array, *products: Array) -> None:
            (scaled,) = memory.scratch(1, grad.shape, grad.dtype)
            np.multiply(rows, inverse, out=out)
            for product in products:
                np.multiply(grad, out, out=product)
            if weight:
                np.multiply(grad, weight[0], out=scaled)
            else:
                scaled = grad
            correlation = np.einsum("ij,ij->i", scaled, out)[:, None] * share
            np.multiply(out, correlation, out=out)
            np.subtract(scaled, out, out=out)
            np.multiply(out, inverse, out=out)

        if out.size:
            extra = () if products is None else (products,)
            parallel.rowwise(block, out, grad, rows, inverse, *extra)
        grads: list[Array | None] = [out.reshape(shape)]
        if len(self.needs_grad) > 1:
            of_weight = None if products is None else sum_rows(products)
            grads.append(
                None if of_weight is None else of_weight.reshape(shape[len(shape) - self.axes :])
            )
        return grads
