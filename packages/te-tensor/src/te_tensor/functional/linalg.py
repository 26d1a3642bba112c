"""Linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType

from ..ops.linalg import Linear, Linears
from ..tensor import Tensor, as_tensor
from ._common import Like


def linear(x: Like, weight: Like, bias: Like | None = None, residual: Like | None = None) -> Tensor:
    """`x @ weight.T + bias + residual`.

    Args:
        x: shape (…, in).
        weight: shape (out, in).
        bias: shape (out,).
        residual: shape (…, out).

    Returns:
        Shape (…, out).

    Raises:
        ValueError: shapes that don't fit.
        TypeError: different float widths.
    """
    extra = [as_tensor(each) for each in (bias, residual) if each is not None]
    operation = Linear(residual is not None)
    made: Tensor = Tensor.apply(operation, as_tensor(x), as_tensor(weight), *extra)
    return made


def linears(
    x: Like, weights: Sequence[Like], biases: Sequence[Like] | None = None
) -> tuple[Tensor, ...]:
    """`linear` of one x with several weights, as one operation.

    Args:
        x: shape (…, in).
        weights: of shapes (out, in), each its own out.
        biases: of shapes (out,), one for each weight.

    Returns:
        Shapes (…, out), one for each weight.

    Raises:
        ValueError: shapes that don't fit, or another number of biases.
        TypeError: different float widths.

    Example:
        >>> import te_tensor as te
        >>> q, k = te.linears(te.ones(5, 3), [te.ones(4, 3), te.ones(2, 3)])
        >>> q.shape, k.shape
        ((5, 4), (5, 2))
    """
    for name, given in (("weights", weights), ("biases", biases)):
        if not isinstance(given, (list, Sequence, NoneType)):  # lists need no search
            kind = type(given).__name__
            raise TypeError(f"linears got {name} of type {kind}: expected a list")
    parameters = [*weights, *(biases or ())]
    if not weights or len(parameters) != len(weights) * (1 if biases is None else 2):
        raise ValueError(
            f"linears got {len(weights)} weights and {len(biases or ())} biases: expected as many "
            "of both, or no biases"
        )
    tensors = [as_tensor(each) for each in (x, *parameters)]
    if len({tensor._array.dtype for tensor in tensors}) > 1:
        kinds = ", ".join(str(tensor.dtype) for tensor in tensors)
        raise TypeError(f"linears got different dtypes ({kinds}): cast them to one with astype")
    made: tuple[Tensor, ...] = Tensor.apply(Linears(len(weights)), *tensors)
    return made
