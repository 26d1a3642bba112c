"""Pictures of the distance bias; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor

from .module import Module
from .nl_oob import NLOOB

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_attention_bias(module: Module, distance: Tensor | npt.ArrayLike) -> Figure:
    """Show what a distance bias adds to the scores of each head.

    Args:
        module: an NLOOB, or a module that holds exactly one.
        distance: shape (S, T), at least 0; +inf stays white.

    Returns:
        A matplotlib Figure with a picture per head.

    Raises:
        ImportError: matplotlib isn't installed.
        ValueError: the module holds no or several NLOOB, or the distances don't fit.

    Example:
        >>> from te_nn import TransformerBlock, distances
        >>> block = TransformerBlock(16, 32, 4, "gaussian")
        >>> figure = plot_attention_bias(block, distances.sequence(8))
        >>> len(figure.axes)  # four heads, and the scale
        5
    """
    figure_class = _figure_class()
    found = [m for m in module.modules() if isinstance(m, NLOOB)]
    if len(found) != 1:
        raise ValueError(
            f"{type(module).__name__} holds {len(found)} distance biases: expected one; give the "
            "block that is meant"
        )
    bias = attention_bias(found[0], distance)
    lowest = min((float(b) for b in bias[np.isfinite(bias)]), default=0.0)
    figure = figure_class(figsize=(2.2 * len(bias) + 0.8, 2.6), layout="constrained")
    grid = figure.subplots(1, len(bias), squeeze=False)[0]
    for head, (axes, values) in enumerate(zip(grid, bias, strict=True)):
        image = axes.imshow(np.where(np.isfinite(values), values, np.nan), vmin=lowest, vmax=0)
        axes.set_title(f"head {head}")
        axes.set_xlabel("key")
    grid[0].set_ylabel("query")
    figure.colorbar(image, ax=list(grid), label="added to the score")
    return figure


def attention_bias(nl_oob: NLOOB, distance: Tensor | npt.ArrayLike) -> npt.NDArray[Any]:
    """The bias written out: -slopes·phi(rates·D), -inf where D is +inf.

    For pictures and checks; attention itself never holds it.

    Args:
        nl_oob: the bias.
        distance: shape (S, T), at least 0.

    Returns:
        Shape (H, S, T), float32.

    Raises:
        ValueError: the distances have another number of axes, or entries that are negative or
            NaN.
    """
    given = np.asarray(distance, np.float32)
    if given.ndim != 2:
        raise ValueError(f"distance has shape {given.shape}: expected (S, T)")
    if given.size and not given.min() >= 0:
        raise ValueError("distance has negative or NaN entries: expected 0 … +inf")
    slopes, rates = (
        None if factors is None else factors.detach().astype("float32").data.reshape(-1)
        for factors in nl_oob.factors()
    )
    assert slopes is not None
    functions = nl_oob.functions
    hidden = np.isinf(given)
    finite = np.where(hidden, np.float32(0), given)
    bias = np.empty((len(slopes), *given.shape), np.float32)
    for head, slope in enumerate(slopes):
        name = functions[head % len(functions)].name.lower()
        scaled = finite if rates is None else finite * rates[head]
        bias[head] = np.where(hidden, -np.inf, -slope * te.distance_function(name).phi(scaled))
    return bias


def plot_slopes(history: Sequence[Tensor | npt.ArrayLike]) -> Figure:
    """Show how the slopes of all heads changed in training.

    Args:
        history: the slopes after each step, such as `nl_oob.slopes.numpy().copy()`: arrays of H
            numbers in any shape.

    Returns:
        A matplotlib Figure with a line per head.

    Raises:
        ImportError: matplotlib isn't installed.
        ValueError: it is empty, or the steps have different numbers of slopes.

    Example:
        >>> figure = plot_slopes([[1.0, 0.5], [0.9, 0.6], [0.8, 0.7]])
        >>> len(figure.axes[0].lines)
        2
    """
    figure_class = _figure_class()
    steps = [np.array(slopes, np.float32).reshape(-1) for slopes in history]
    if not steps or any(step.shape != steps[0].shape for step in steps):
        sizes = ", ".join(str(size) for size in sorted({step.size for step in steps}))
        raise ValueError(f"history has steps of {sizes or 'no'} slopes: expected one number")
    figure = figure_class(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for head, line in enumerate(np.stack(steps, axis=1)):
        axes.plot(line, label=f"head {head}")
    axes.set_xlabel("step")
    axes.set_ylabel("slope")
    axes.legend(fontsize="small")
    return figure


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "te-nn[plot]"') from error
    found: type[Figure] = Figure
    return found
