"""The embedding table."""

from __future__ import annotations

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_whole

from . import initialize
from .checks import positive
from .module import Module


class Embedding(Module):
    """A learnt row for each of a number of things.

    Args:
        num_embeddings: the number of rows.
        embedding_dim: their length.
        padding_idx: a row that starts as zeros and isn't learnt.

    Attributes:
        weight: shape (num_embeddings, embedding_dim), initially normal.

    Raises:
        ValueError: an option is no such number.
        IndexError: there is no row padding_idx.

    Example:
        >>> Embedding(10, 4)(te.Tensor([[1, 2, 3]])).shape
        (1, 3, 4)
    """

    _shown = ("num_embeddings", "embedding_dim", "padding_idx")

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        self.num_embeddings = positive("num_embeddings", num_embeddings)
        self.embedding_dim = positive("embedding_dim", embedding_dim)
        if padding_idx is not None:
            padding_idx = check_whole("padding_idx", padding_idx)
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise IndexError(
                    f"padding_idx is {padding_idx}: expected a row of {num_embeddings}"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.weight = initialize.normal((num_embeddings, embedding_dim))
        if self.padding_idx is not None:
            with self.weight.lock() as array:
                array[self.padding_idx] = 0

    def forward(self, indices: Tensor) -> Tensor:
        """Whole numbers of any shape to shape (*indices.shape, embedding_dim)."""
        return te.embedding(indices, self.weight, self.padding_idx)
