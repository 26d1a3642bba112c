"""An LSTM layer on sequences, 256 features to 256, T=128, B=32.

"inference" records nothing for backward, "forward" does, and "both" goes back as well: to the
input and to all weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..blocks.common import Array
from ..machine import cpus


class Size(NamedTuple):
    steps: int
    batch: int
    features: int
    what: str


SIZES = {f"{what} T128 B32": Size(128, 32, 256, what) for what in ("inference", "forward", "both")}


def flops(size: Size) -> float:
    """Of the matrix products alone."""
    once = 2.0 * size.steps * size.batch * 2 * size.features * 4 * size.features
    return 3 * once if size.what == "both" else once


def _inputs(size: Size) -> tuple[dict[str, Array], Array]:
    """The layer's parameters under the names of its state dict, and x (T, B, features)."""
    rng = np.random.default_rng(0)
    width, bound = size.features, size.features**-0.5
    shapes: dict[str, tuple[int, ...]] = {"weight_ih_l0": (4 * width, width)}
    shapes |= {"weight_hh_l0": (4 * width, width)}
    shapes |= {"bias_ih_l0": (4 * width,), "bias_hh_l0": (4 * width,)}
    state = {k: rng.uniform(-bound, bound, s).astype(np.float32) for k, s in shapes.items()}
    return state, rng.standard_normal((size.steps, size.batch, width), np.float32)


def tensor_engine(size: Size) -> Callable[[], object]:
    """The layer of te-nn."""
    import te_nn as nn
    import te_tensor as te

    state, array = _inputs(size)
    layer = nn.LSTM(size.features, size.features)
    layer.load_state_dict(state)
    x = te.from_numpy(array)
    x.requires_grad = True
    upstream = te.ones(*array.shape)

    def inference() -> object:
        with te.no_grad():
            return layer(x)[0]

    def forward() -> object:
        return layer(x)[0]

    def both() -> object:
        layer.zero_grad()
        x.zero_grad()
        output, _ = layer(x)
        output.backward(upstream)
        return output.detach(), x.grad, *(p.grad for p in layer.parameters())

    return {"inference": inference, "forward": forward, "both": both}[size.what]


def torch(size: Size) -> Callable[[], object]:
    """PyTorch's layer: in inference oneDNN's, with weights that are packed once a call."""
    import torch

    torch.set_num_threads(cpus())
    state, array = _inputs(size)
    layer = torch.nn.LSTM(size.features, size.features)
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    x = torch.from_numpy(array).requires_grad_()
    upstream = torch.ones(array.shape)

    def inference() -> object:
        with torch.no_grad():
            return layer(x)[0]

    def forward() -> object:
        return layer(x)[0]

    def both() -> object:
        layer.zero_grad()
        x.grad = None
        output, _ = layer(x)
        output.backward(upstream)
        return output.detach(), x.grad, *(p.grad for p in layer.parameters())

    return {"inference": inference, "forward": forward, "both": both}[size.what]


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
