"""The six blocks of MiniLM (BERT's: post-norm, exact GELU) without gradients, on hidden states."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks.common import Size

LAYERS = 6
SIZES = {
    "32 sentences of 64 tokens": Size(32, 64, 384, 1536, 12),
    "1 sentence of 64 tokens": Size(1, 64, 384, 1536, 12),
    "1 sentence of 16 tokens": Size(1, 16, 384, 1536, 12),
}


def flops(size: Size) -> float:
    """Operations of the matrix products."""
    tokens = size.batch * size.length
    weights = 4 * size.d_model**2 + 2 * size.d_model * size.d_ff
    return 2.0 * LAYERS * tokens * (weights + 2 * size.length * size.d_model)


def tensor_engine(size: Size) -> Callable[[], object]:
    from ..blocks import te_bert

    return te_bert.inference(size, LAYERS)


def torch(size: Size) -> Callable[[], object]:
    from ..blocks import torch_bert

    return torch_bert.inference(size, LAYERS)


def onnxruntime(size: Size) -> Callable[[], object]:
    from ..blocks import onnx_bert

    return onnx_bert.inference(size, LAYERS)


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "onnxruntime": onnxruntime}
