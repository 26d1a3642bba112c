"""The block in PyTorch's best form: one projection to q, k and v, its own attention, fused Adam.

Attention written out (baddbmm, softmax) and other layouts of the heads took the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..machine import cpus
from . import common
from .common import Array, Size


class Block(nn.Module):
    """A pre-norm block with a distance bias, given phi of the distances."""

    def __init__(self, d_model: int, d_ff: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.o_proj = nn.Linear(d_model, d_model)
        self.slopes = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)

    def attend(self, x: Tensor, bias: Tensor) -> Any:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, S, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, d)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, phi: Tensor, mask: Tensor | None = None) -> Any:
        bias = -self.slopes * phi
        x = x + self.attend(self.norm1(x), bias if mask is None else bias + mask)
        return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))

    def load(self, named: dict[str, Array]) -> None:
        """Take weights under te-nn's names."""
        state = {name.removeprefix("self_attn."): array for name, array in named.items()}
        state["slopes"] = state.pop("nl_oob.slopes")
        for part in ("weight", "bias"):
            state[f"qkv.{part}"] = common.fuse(named, part)
            for p in "qkv":
                del state[f"{p}_proj.{part}"]
        self.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def gradients(self) -> dict[str, Array]:
        """Gradients under te-nn's names."""
        found = {name: p.grad.numpy() for name, p in self.named_parameters() if p.grad is not None}
        for name in ("o_proj.weight", "o_proj.bias"):
            found[f"self_attn.{name}"] = found.pop(name)
        found["self_attn.nl_oob.slopes"] = found.pop("slopes")
        return common.unfuse(found)


def _prepared(size: Size) -> tuple[Block, list[Tensor]]:
    """The block, and x, target and phi: the distances don't change, so a user takes phi once."""
    torch.set_num_threads(cpus())
    model = Block(size.d_model, size.d_ff, size.heads)
    model.load(common.weights(size))
    x, target, distance = (torch.from_numpy(array) for array in common.inputs(size))
    return model, [x, target, torch.log1p(distance)]


def inference(size: Size) -> Callable[[], object]:
    model, (x, _, phi) = _prepared(size)
    model.eval()

    def step() -> object:
        with torch.inference_mode():
            return model(x, phi)

    return step


def training(size: Size) -> Callable[[], object]:
    model, (x, target, phi) = _prepared(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=common.LEARNING_RATE, fused=True)

    def step() -> object:
        loss = functional.mse_loss(model(x, phi), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def gradients(size: Size) -> dict[str, Array]:
    """Gradients of the loss that training begins with."""
    model, (x, target, phi) = _prepared(size)
    functional.mse_loss(model(x, phi), target).backward()
    return model.gradients()


def stack_training(size: Size, layers: int) -> Callable[[], object]:
    torch.set_num_threads(cpus())
    blocks = nn.ModuleList(Block(size.d_model, size.d_ff, size.heads) for _ in range(layers))
    for block, named in zip(blocks, common.stack_weights(size, layers), strict=True):
        block.load(named)
    x, target, distance = (torch.from_numpy(array) for array in common.inputs(size))
    phi = torch.log1p(distance)
    optimizer = torch.optim.Adam(blocks.parameters(), lr=common.LEARNING_RATE, fused=True)

    def step() -> object:
        y = x
        for block in blocks:
            y = block(y, phi)
        loss = functional.mse_loss(y, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
