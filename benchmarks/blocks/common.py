"""What all blocks share: sizes, weights and inputs, as NumPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
LEARNING_RATE = 1e-3


class Size(NamedTuple):
    batch: int
    length: int
    d_model: int
    d_ff: int
    heads: int


def weights(size: Size, seed: int = 0) -> dict[str, Array]:
    """Weights of a block under te-nn's names; norms away from 1 and 0, so that they are seen."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        bound = inputs**-0.5
        found[f"{name}.weight"] = rng.uniform(-bound, bound, (outputs, inputs))
        found[f"{name}.bias"] = rng.uniform(-bound, bound, outputs)

    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        linear(f"self_attn.{projection}", size.d_model, size.d_model)
    linear("linear1", size.d_model, size.d_ff)
    linear("linear2", size.d_ff, size.d_model)
    for norm in ("norm1", "norm2"):
        found[f"{norm}.weight"] = 1 + 0.1 * rng.standard_normal(size.d_model)
        found[f"{norm}.bias"] = 0.1 * rng.standard_normal(size.d_model)
    slopes = 2.0 ** (-8 * np.arange(size.heads) / size.heads)
    found["self_attn.nl_oob.slopes"] = slopes.reshape(1, size.heads, 1, 1)
    return {name: array.astype(np.float32) for name, array in found.items()}


def inputs(size: Size) -> tuple[Array, Array, Array]:
    """x and target (B, S, D), and the distances (S, S) of positions in a row."""
    rng = np.random.default_rng(1)
    shape = size.batch, size.length, size.d_model
    x, target = (rng.standard_normal(shape, np.float32) for _ in range(2))
    place = np.arange(size.length, dtype=np.float32)
    return x, target, np.abs(np.subtract.outer(place, place))


def fuse(named: dict[str, Array], part: str) -> Array:
    """The weight or the bias of one projection to queries, keys and values."""
    return np.concatenate([named[f"self_attn.{p}_proj.{part}"] for p in "qkv"])


def unfuse(named: dict[str, Array]) -> dict[str, Array]:
    """Arrays of a block whose projections are fused under "qkv", under te-nn's names."""
    found = {name: array for name, array in named.items() if not name.startswith("qkv.")}
    for part in ("weight", "bias"):
        for p, array in zip("qkv", np.split(named[f"qkv.{part}"], 3), strict=True):
            found[f"self_attn.{p}_proj.{part}"] = array
    return found


def stack_weights(size: Size, layers: int) -> list[dict[str, Array]]:
    """Weights of several blocks."""
    return [weights(size, seed) for seed in range(layers)]


def language_model(size: Size, vocabulary: int, prompt: int) -> tuple[Array, Array, Array]:
    """Rows for tokens (V, D) and for positions (S, D), and the tokens of a prompt (1, prompt)."""
    rng = np.random.default_rng(2)
    tokens = rng.standard_normal((vocabulary, size.d_model), np.float32)
    positions = rng.standard_normal((prompt + size.length, size.d_model), np.float32)
    return tokens, positions, rng.integers(0, vocabulary, (1, prompt))
