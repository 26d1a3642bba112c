"""Dropout."""

from __future__ import annotations

from ..checks import check_switch
from ..ops.dropout import Dropout
from ..random import Generator, generator_or_default
from ..tensor import Tensor
from ._common import Like, apply, check_probability, floats


def dropout(
    x: Like, p: float = 0.5, training: bool = True, *, generator: Generator | None = None
) -> Tensor:
    """Elements set to zero with probability p, the others times 1/(1-p).

    Args:
        x: any float tensor.
        p: probability of a zero, 0 … 1.
        training: False returns x as it is.
        generator: what to draw from; by default the one in force.

    Returns:
        The shape of x.

    Raises:
        ValueError: p is out of range, or training is neither True nor False.
    """
    x = floats("dropout", x)
    check_probability(p)
    if training is not True and training is not False:
        check_switch("dropout training", training)
    source = generator_or_default(generator)
    if not training or p == 0:
        return x
    return apply(Dropout(p, source.next_key()), x)
