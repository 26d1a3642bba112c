"""Rotary positions."""

from __future__ import annotations

import numpy as np

from ..dtypes import Array
from ..ops.rotary import Rotary
from ..tensor import Tensor
from ._common import Like, apply, floats


def rotary(x: Like, cos: Like, sin: Like) -> Tensor:
    """Turn pairs of features by the angles of their rows (Su et al., arXiv:2104.09864).

    Feature i goes with feature i + d/2, as in GPT-NeoX (not with its neighbour, as in GPT-J).

    Args:
        x: shape (…, S, d), d even.
        cos: cosines of the angles, shape (S, d/2); without a gradient.
        sin: their sines.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit.
        TypeError: x holds no floats.

    Example:
        >>> import numpy as np
        >>> import te_tensor as te
        >>> quarter = np.full((1, 1), np.pi / 2)
        >>> te.rotary(te.Tensor([[1.0, 0.0]]), np.cos(quarter), np.sin(quarter)).numpy().round(6)
        array([[0., 1.]], dtype=float32)
    """
    tables: list[Array] = [np.asarray(table) for table in (cos, sin)]
    return apply(Rotary(*tables), floats("rotary", x))
