"""Dropout: elements set to zero at random."""

from __future__ import annotations

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ._kernels import keep_factors


class Dropout(Operation):
    """Elements are zero with probability p, the others times 1/(1-p) (Srivastava et al., 2014).

    Args:
        p: probability of a zero, 0 … 1.
        key: what the random numbers follow from; the same key drops the same elements.
    """

    samples = (Sample((3, 4), args=(0.5, (1, 2))), Sample((3,), args=(1.0, (0,))))

    def __init__(self, p: float, key: tuple[int, ...]) -> None:
        self.p = p
        self.key = key

    def forward(self, x: Array) -> Array:
        """What is kept, scaled so that the expectation stays."""
        out = memory.empty(x.shape, x.dtype)
        # Each block draws from a stream of its own, so threads don't change what is drawn.
        rows = x.reshape(-1)
        flat = out.reshape(-1)
        blocks = parallel.fixed_blocks(flat.size)

        def run(index: int) -> None:
            block = blocks[index]
            keep_factors((*self.key, index), self.p, flat[block])

        parallel.parallel_for(run, len(blocks))
        factors = out
        if self.needs_grad[0]:
            self.save(factors)
            out = memory.empty(x.shape, x.dtype)
        parallel.elementwise(_multiply, out.reshape(-1), factors.reshape(-1), rows)
        return out

    def backward(self, grad: Array) -> Gradients:
        """The gradient times the same factors."""
        return (parallel.ufunc(np.multiply, grad, self.saved[0]),)


def _multiply(out: Array, factors: Array, x: Array) -> None:
    np.multiply(factors, x, out=out)
