"""Distance matrices for the distance bias of attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor

from .checks import positive


def sequence(length: int) -> Tensor:
    """|i - j| for positions in a row.

    Args:
        length: the number of positions S.

    Returns:
        Shape (S, S), float32.

    Example:
        >>> sequence(3).tolist()
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    place = np.arange(positive("length", length), dtype=np.float32)
    return te.from_numpy(np.abs(np.subtract.outer(place, place)))


def grid(height: int, width: int) -> Tensor:
    """Euclidean distances between the cells of a grid, in rows, a cell being 1 by 1.

    Args:
        height: the number of rows.
        width: the number of columns.

    Returns:
        Shape (height·width, height·width), float32.

    Example:
        >>> grid(1, 3)[0].tolist()
        [0.0, 1.0, 2.0]
    """
    shape = positive("height", height), positive("width", width)
    return euclidean(np.indices(shape, np.float32).reshape(2, -1).T)


def euclidean(points: Tensor | npt.ArrayLike) -> Tensor:
    """Distances between points; gradients reach the points (0 where two coincide).

    Args:
        points: coordinates, shape (S, n), or (B, S, n) for a batch; any unit, which stays.

    Returns:
        Shape (S, S) or (B, S, S).

    Raises:
        ValueError: points have another number of axes.

    Example:
        >>> euclidean([[0.0, 0.0], [3.0, 4.0]]).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    places = te.as_tensor(points)
    if places.dtype.kind in "biu":
        places = places.astype("float32")
    if places.ndim not in (2, 3):
        raise ValueError(f"points have shape {places.shape}: expected (S, n) or (B, S, n)")
    squared = ((places.unsqueeze(-2) - places.unsqueeze(-3)) ** 2).sum(-1)
    # The root has no finite slope at 0: 1 is put in its place there, and taken out behind it.
    coincide = (squared == 0).astype(squared.dtype)
    return (squared + coincide).sqrt() * (1.0 - coincide)


def graph_hops(adjacency: Tensor | npt.ArrayLike) -> Tensor:
    """The number of edges on the shortest path, +inf where there is none.

    Args:
        adjacency: shape (S, S); any value but 0 is an edge from row to column.

    Returns:
        Shape (S, S), float32.

    Raises:
        ValueError: adjacency isn't square.

    Example:
        >>> graph_hops([[0, 1, 0], [0, 0, 1], [0, 0, 0]])[0].tolist()
        [0.0, 1.0, 2.0]
    """
    matrix = np.asarray(adjacency)
    edges = matrix != 0
    if matrix.dtype.kind == "f" and np.isnan(matrix).any():
        raise ValueError("adjacency has NaN entries: expected 0 for no edge")
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1]:
        raise ValueError(f"adjacency has shape {edges.shape}: expected (S, S)")
    hops = np.full(edges.shape, np.inf, np.float32)
    neighbours = [np.flatnonzero(row) for row in edges]
    for start, row in enumerate(hops):  # breadth first
        row[start] = 0
        frontier = [start]
        while frontier:
            reached = np.unique(np.concatenate([neighbours[node] for node in frontier]))
            found = reached[np.isinf(row[reached])]
            row[found] = row[frontier[0]] + 1
            frontier = found.tolist()
    return te.from_numpy(hops)
