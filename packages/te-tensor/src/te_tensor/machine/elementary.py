"""Kernels of one step, which others are put together with."""

from __future__ import annotations

from .formula import Matrix, Scalar
from .kernel import kernel


@kernel
def fill_kernel(out: Matrix, number: Scalar) -> None:
    """The same number everywhere."""
    out.store(number.load())


@kernel
def copy_kernel(out: Matrix, source: Matrix) -> None:
    """The same numbers."""
    out.store(source.load())


@kernel
def add_kernel(out: Matrix, one: Matrix, other: Matrix) -> None:
    """The sum of two."""
    out.store(one.load() + other.load())
