"""Greedy generation with te-nn."""

from __future__ import annotations

from collections.abc import Callable

import te_nn as nn
import te_tensor as te

from . import common
from .common import Size


class LanguageModel(nn.Module):
    """Tokens and positions, causal blocks, a norm, and the tokens' rows again to read it out."""

    def __init__(self, size: Size, layers: int, vocabulary: int, prompt: int) -> None:
        self.tokens = nn.Embedding(vocabulary, size.d_model)
        self.positions = nn.Embedding(prompt + size.length, size.d_model)
        self.encoder = nn.TransformerEncoder(
            *(layers, size.d_model, size.d_ff, size.heads), causal=True, final_norm=True
        )
        tokens, positions, _ = common.language_model(size, vocabulary, prompt)
        self.tokens.load_state_dict({"weight": tokens})
        self.positions.load_state_dict({"weight": positions})
        for block, named in zip(
            self.encoder.layers, common.stack_weights(size, layers), strict=True
        ):
            del named["self_attn.nl_oob.slopes"]
            block.load_state_dict(named)

    def forward(self, tokens: te.Tensor, start: int, cache: list[nn.KVCache]) -> te.Tensor:
        x = self.tokens(tokens) + self.positions.weight[start : start + tokens.shape[1]]
        return te.linear(self.encoder(x, cache=cache)[:, -1], self.tokens.weight)


def generation(size: Size, layers: int, vocabulary: int, prompt: int) -> Callable[[], object]:
    model = LanguageModel(size, layers, vocabulary, prompt).eval()
    begin = te.from_numpy(common.language_model(size, vocabulary, prompt)[2])

    def step() -> object:
        found = []
        caches = model.encoder.make_cache(1, prompt + size.length)
        with te.no_grad():
            tokens, start = begin, 0
            for _ in range(size.length):
                scores = model(tokens, start, caches)
                start += tokens.shape[1]
                found.append(int(scores.numpy().argmax()))
                tokens = te.Tensor([[found[-1]]])
        return te.Tensor(found)

    return step
