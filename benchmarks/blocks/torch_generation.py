"""Greedy generation with PyTorch in its best form.

One projection to q, k and v, a cache that is filled in place, and PyTorch's own attention; with
one thread, which is quicker than two on products this small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import common
from .common import Size
from .torch_block import Block


class CachedBlock(Block):
    """A causal block that keeps keys and values in memory (2, 1, H, S, d)."""

    def step(self, x: Tensor, memory: Tensor, start: int) -> Tensor:
        length = x.shape[1]
        qkv = self.qkv(self.norm1(x)).view(1, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        stop = start + length
        memory[0, :, :, start:stop] = k
        memory[1, :, :, start:stop] = v
        mixed = functional.scaled_dot_product_attention(
            q, memory[0, :, :, :stop], memory[1, :, :, :stop], is_causal=start == 0
        )
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(1, length, -1))
        return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))


def generation(size: Size, layers: int, vocabulary: int, prompt: int) -> Callable[[], object]:
    torch.set_num_threads(1)
    blocks = [CachedBlock(size.d_model, size.d_ff, size.heads).eval() for _ in range(layers)]
    for block, named in zip(blocks, common.stack_weights(size, layers), strict=True):
        block.load(named)
    norm = nn.LayerNorm(size.d_model)
    rows, positions, begin = (
        torch.from_numpy(array) for array in common.language_model(size, vocabulary, prompt)
    )
    head = size.d_model // size.heads

    def step() -> object:
        found = torch.empty(size.length, dtype=torch.int64)
        memory = torch.empty(layers, 2, 1, size.heads, prompt + size.length, head)
        with torch.inference_mode():
            tokens, start = begin, 0
            for place in range(size.length):
                x = rows[tokens] + positions[start : start + tokens.shape[1]]
                for block, own in zip(blocks, memory, strict=True):
                    x = block.step(x, own, start)
                start += tokens.shape[1]
                tokens = functional.linear(norm(x[:, -1]), rows).argmax(-1, keepdim=True)
                found[place] = tokens[0, 0]
        return found

    return step
