"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite

import numpy as np

from te_tensor import Tensor, storage
from te_tensor.dtypes import Array
from te_tensor.parallel import elementwise
from te_tensor.tensor import arrays_of

from .checks import as_tensors, check_number
from .gradients import norm


def clip_gradients(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients so that their norm, as one vector, is at most `max_norm`.

    Args:
        parameters: tensors; those without a gradient are passed over.
        max_norm: the greatest norm, at least 0; inf to change nothing, and only measure.
        norm_type: the p of the p-norm; inf for the greatest absolute value.
        error_if_nonfinite: raise when the norm is inf or NaN, instead of scaling by it.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: max_norm or norm_type is out of range.
        TypeError: a parameter is no Tensor.
        FloatingPointError: the norm isn't finite, and that was to raise; nothing was changed.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([3.0, 4.0], requires_grad=True)
        >>> w.grad = [3.0, 4.0]
        >>> clip_gradients([w], 1.0)
        5.0
    """
    check_number("max_norm", max_norm, least=0, most=inf)
    check_number("norm_type", norm_type, above=0, most=inf)
    grads = _gradients(parameters)
    found = norm(arrays_of(grads), norm_type)
    if error_if_nonfinite and not isfinite(found):
        raise FloatingPointError(f"the norm of the gradients is {found}: expected a finite one")
    if max_norm == inf:  # of an infinite norm, the factor would be NaN
        return found
    factor = max_norm / (found + 1e-6)
    if not factor >= 1:  # a NaN norm makes the gradients NaN, as PyTorch has it

        def scale(gradient: Array) -> None:
            np.multiply(gradient, gradient.dtype.type(factor), out=gradient)

        _change(grads, scale)
    return found


def clip_grad_value(parameters: Iterable[Tensor], clip_value: float) -> None:
    """Bring every element of every gradient into -clip_value … clip_value; NaN stays.

    Args:
        parameters: tensors; those without a gradient are passed over.
        clip_value: the greatest absolute value, at least 0.

    Raises:
        ValueError: clip_value is out of range.
        TypeError: a parameter is no Tensor.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([0.0, 0.0], requires_grad=True)
        >>> w.grad = [-3.0, 0.5]
        >>> clip_grad_value([w], 1.0)
        >>> w.grad.tolist()
        [-1.0, 0.5]
    """
    check_number("clip_value", clip_value, least=0)

    def clip(gradient: Array) -> None:
        limit = gradient.dtype.type(clip_value)
        np.minimum(gradient, limit, out=gradient)
        np.maximum(gradient, -limit, out=gradient)

    _change(_gradients(parameters), clip)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [t.grad for t in as_tensors(parameters) if t.grad is not None]


def _change(gradients: Sequence[Tensor], function: Callable[[Array], None]) -> None:
    """Call an elementwise function on the gradients, large ones in blocks and threads."""
    arrays = arrays_of(gradients)
    with storage.writing(storage.records_of(arrays)), np.errstate(all="ignore"):
        for array in arrays:
            elementwise(function, array)
