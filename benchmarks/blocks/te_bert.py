"""A stack of BERT's blocks in te-nn."""

from __future__ import annotations

from collections.abc import Callable

import te_nn as nn
import te_tensor as te

from . import common
from .common import Size


def stack(size: Size, layers: int) -> nn.TransformerEncoder:
    made = nn.TransformerEncoder(
        *(layers, size.d_model, size.d_ff, size.heads), norm="post", layer_norm_eps=1e-12
    )
    for block, named in zip(made.layers, common.stack_weights(size, layers), strict=True):
        del named["self_attn.nl_oob.slopes"]
        block.load_state_dict(named)
    return made.eval()


def inference(size: Size, layers: int) -> Callable[[], object]:
    model = stack(size, layers)
    x = te.from_numpy(common.inputs(size)[0])

    def step() -> object:
        with te.no_grad():
            return model(x)

    return step
