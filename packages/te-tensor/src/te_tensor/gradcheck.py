"""Gradients held against finite differences, along random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from . import autograd
from .checks import check_each, check_function, check_number, check_whole
from .dtypes import Array, float64
from .operation import Operation
from .tensor import Tensor


class GradientError(AssertionError):
    """A gradient that differs from the finite difference."""


def gradcheck(
    f: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    directions: int = 4,
    seed: int = 0,
) -> bool:
    """Compare backward with central differences.

    With u a random weight of the outputs and v a random direction of the inputs, (u·f(x + eps·v)
    - u·f(x - eps·v)) / 2·eps must equal the gradient of u·f, times v. Each input is also moved by
    itself, so that an error in one can't hide behind another.

    Args:
        f: takes the inputs, returns a tensor or several; called many times, so it must return
            the same for the same inputs.
        inputs: float64 tensors; those with requires_grad are checked.
        eps: length of the step.
        rtol: tolerated error, relative.
        atol: tolerated error, absolute.
        directions: random directions for each input.
        seed: seed of the directions.

    Returns:
        True.

    Raises:
        GradientError: a gradient is wrong: says of which input, and both values.
        TypeError: an input to be checked isn't float64.
        ValueError: no input requires a gradient.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([0.5, 2.0], dtype="float64", requires_grad=True)
        >>> te.gradcheck(lambda x: (x * x).exp(), [x])
        True
    """
    check_function("gradcheck", f)
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError(f"gradcheck got inputs of type {type(inputs).__name__}: expected a list")
    check_each("gradcheck: input", inputs, Tensor)
    check_whole("directions", directions, 1)
    if check_number("gradcheck eps", eps) <= 0:
        raise ValueError(f"gradcheck eps is {eps}: expected more than 0")
    check_number("rtol", rtol, 0), check_number("atol", atol, 0)
    checked = [i for i, t in enumerate(inputs) if t.requires_grad]
    if not checked:
        raise ValueError("gradcheck got no input that requires a gradient")
    for i in checked:
        if inputs[i].dtype != float64:
            raise TypeError(f"gradcheck: input {i} is {inputs[i].dtype}, expected float64")
    rng = np.random.default_rng(seed)
    arrays = [np.array(t.data) for t in inputs]
    needs = [t.requires_grad for t in inputs]
    outputs, leaves = _run(f, arrays, needs)
    weights = [rng.standard_normal(t.shape) for t in outputs]
    roots = [(t, w) for t, w in zip(outputs, weights, strict=True) if t.requires_grad]
    grads = autograd.gradients(roots, [leaves[i] for i in checked])
    for i, found in zip(checked, grads, strict=True):
        grad = np.zeros(arrays[i].shape) if found is None else found
        for _ in range(directions if arrays[i].size else 0):
            direction = rng.standard_normal(arrays[i].shape)
            expected = _difference(f, arrays, needs, weights, i, eps * direction) / (2 * eps)
            actual = float(np.sum(grad * direction))
            # `not <=` also catches NaN
            if not np.abs(actual - expected) <= atol + rtol * np.abs(expected):
                raise GradientError(
                    f"gradient of input {i} (shape {arrays[i].shape}) along a random direction is "
                    f"{actual:.9g}, but the finite difference is {expected:.9g}"
                )
    return True


def _run(
    f: Callable[..., Tensor | tuple[Tensor, ...]], arrays: list[Array], needs: list[bool]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The outputs, and the fresh leaves they were computed from."""
    leaves = [Tensor(a, requires_grad=n) for a, n in zip(arrays, needs, strict=True)]
    result = f(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    check_each("gradcheck: output", outputs, Tensor)
    return outputs, leaves


def _difference(
    f: Callable[..., Tensor | tuple[Tensor, ...]],
    arrays: list[Array],
    needs: list[bool],
    weights: list[Array],
    position: int,
    step: Array,
) -> float:
    """u·f(x + step) - u·f(x - step), the step in one input."""
    totals = []
    for sign in (1, -1):
        moved = list(arrays)
        moved[position] = arrays[position] + sign * step
        outputs, _ = _run(f, moved, needs)
        totals.append(sum(float(np.sum(t.data * w)) for t, w in zip(outputs, weights, strict=True)))
    return totals[0] - totals[1]


def gradcheck_operation(operation: type[Operation]) -> bool:
    """Run `gradcheck` on every sample of an operation class.

    Args:
        operation: a class with `samples`.

    Returns:
        True.

    Raises:
        GradientError: a gradient is wrong.
        ValueError: there are no samples.
    """
    if not (isinstance(operation, type) and issubclass(operation, Operation)):
        raise TypeError(f"gradcheck_operation got {operation!r}: expected a class of Operation")
    if not operation.samples:
        raise ValueError(f"{operation.__name__} has no samples: expected a sequence of Sample")
    for sample in operation.samples:
        inputs = [
            Tensor(array, requires_grad=position not in sample.nondiff)
            for position, array in enumerate(sample.arrays())
        ]

        def function(*tensors: Tensor, sample: object = sample) -> Tensor:
            made: Tensor = Tensor.apply(operation(*sample.args, **sample.kwargs), *tensors)  # type: ignore[attr-defined]
            return made

        try:
            gradcheck(function, inputs)
        except GradientError as error:
            error.add_note(f"{operation.__name__}, {sample}")
            raise
    return True
