"""Gradients as values, instead of in `grad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import autograd
from ..checks import check_each, check_switch
from ..tensor import Tensor


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of outputs with respect to inputs; no `grad` is touched.

    Only operations between the two are gone through, and freed.

    Args:
        outputs: one tensor or several; their gradients are summed.
        inputs: one tensor or several, leaves or not.
        grad_outputs: a gradient to start from for each output, in its shape; may be left out, or
            None, for outputs of one element.
        retain_graph: keep the graph for another backward.
        create_graph: not supported: gradients are first order.
        allow_unused: give None for an input that the outputs don't depend on, instead of raising.

    Returns:
        One gradient per input, in its shape.

    Raises:
        RuntimeError: an output or input needs no gradient, an input wasn't used, a gradient to
            start from is missing, or the graph was freed.
        ValueError: grad_outputs doesn't go with outputs, or an option is neither True nor False.
        NotImplementedError: create_graph is set.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([1.0, 2.0], requires_grad=True)
        >>> (g,) = te.grad((x * x).sum(), x)
        >>> g.tolist(), x.grad
        ([2.0, 4.0], None)
    """
    check_switch("grad retain_graph", retain_graph)
    check_switch("grad allow_unused", allow_unused)
    if check_switch("grad create_graph", create_graph):
        raise NotImplementedError(
            "create_graph=True: backward works on plain arrays, gradients are first order only"
        )
    ends = list(outputs) if isinstance(outputs, Sequence) else [outputs]
    targets = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    for role, tensors in (("output", ends), ("input", targets)):
        check_each(f"grad: {role}", tensors, Tensor)
        for place, tensor in enumerate(tensors):
            if not tensor.requires_grad:
                raise RuntimeError(
                    f"grad: {role} {place} needs no gradient: expected one that does"
                )
    if grad_outputs is None:
        starts: list[Any] = [None] * len(ends)
    elif isinstance(outputs, Tensor) and not isinstance(grad_outputs, (tuple, list)):
        starts = [grad_outputs]
    else:
        starts = list(grad_outputs)
    if len(starts) != len(ends):
        raise ValueError(f"grad got {len(starts)} grad_outputs for {len(ends)} outputs")
    roots = [(end, end._first_grad(start)) for end, start in zip(ends, starts, strict=True)]
    found = autograd.gradients(roots, targets, retain_graph=retain_graph)
    if not allow_unused and any(gradient is None for gradient in found):
        place = next(place for place, gradient in enumerate(found) if gradient is None)
        raise RuntimeError(
            f"grad: the outputs don't depend on input {place} (shape {targets[place].shape}): "
            "allow_unused=True gives None for it"
        )
    return tuple(None if gradient is None else Tensor._wrap(gradient) for gradient in found)
