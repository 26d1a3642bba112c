"""One NL-OOB block without gradients."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks.common import Size

SIZES = {
    "B8 S256 D512 F2048 H8": Size(8, 256, 512, 2048, 8),
    "B1 S128 D512 F2048 H8": Size(1, 128, 512, 2048, 8),
}


def tensor_engine(size: Size) -> Callable[[], object]:
    from ..blocks import te_block

    return te_block.inference(size)


def torch(size: Size) -> Callable[[], object]:
    from ..blocks import torch_block

    return torch_block.inference(size)


def jax(size: Size) -> Callable[[], object]:
    from ..blocks import jax_block

    return jax_block.inference(size)


def onnxruntime(size: Size) -> Callable[[], object]:
    from ..blocks import onnx_block

    return onnx_block.inference(size)


CONTESTANTS = {
    "tensor-engine": tensor_engine,
    "torch": torch,
    "jax": jax,
    "onnxruntime": onnxruntime,
}
