"""Comparisons of whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether all elements are equal to within atol + rtol·|b|; NaN equals nothing."""
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol))
