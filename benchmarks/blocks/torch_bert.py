"""A stack of BERT's blocks in PyTorch: its own encoder, whose layers run fused without gradients.

Written out with one projection to q, k and v and `scaled_dot_product_attention` it was slower
on the batch, and no quicker on one sentence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..machine import cpus
from . import common
from .common import Array, Size


def _renamed(named: dict[str, Array]) -> dict[str, torch.Tensor]:
    state = {name: array for name, array in named.items() if not name.startswith("self_attn")}
    for part in ("weight", "bias"):
        state[f"self_attn.in_proj_{part}"] = common.fuse(named, part)
        state[f"self_attn.out_proj.{part}"] = named[f"self_attn.o_proj.{part}"]
    return {name: torch.from_numpy(array) for name, array in state.items()}


def inference(size: Size, layers: int) -> Callable[[], object]:
    torch.set_num_threads(cpus())
    layer = nn.TransformerEncoderLayer(
        *(size.d_model, size.heads, size.d_ff),
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-12,
        batch_first=True,
    )
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    for block, named in zip(model.layers, common.stack_weights(size, layers), strict=True):
        block.load_state_dict(_renamed(named))
    x = torch.from_numpy(common.inputs(size)[0])

    def step() -> object:
        with torch.inference_mode():
            return model(x)

    return step
