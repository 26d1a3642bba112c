"""The engine's operations, a family a file."""

from . import (
    activation,
    arithmetic,
    attention,
    cast,
    channel_normalization,
    dropout,
    indexing,
    linalg,
    loss,
    normalization,
    recurrent,
    reduction,
    shape,
)

__all__ = [
    "activation",
    "arithmetic",
    "attention",
    "cast",
    "channel_normalization",
    "dropout",
    "indexing",
    "linalg",
    "loss",
    "normalization",
    "recurrent",
    "reduction",
    "shape",
]
