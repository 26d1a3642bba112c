"""One function against PyTorch's, on 4 M elements of float32."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ..machine import cpus
from .common import Array

#: Whether the gradients are made too.
SIZES = {"forward": False, "forward and backward": True}
#: As many as a batch of 16 × 512 tokens with 512 features has.
SHAPE = (8192, 512)

Step: TypeAlias = Callable[[], object]
#: Gets the library and the inputs.
Function: TypeAlias = Callable[..., Any]


def _inputs(others: tuple[tuple[int, ...], ...]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in (SHAPE, *others)]


def _step(run: Callable[..., Any], inputs: list[Any], wrap: Callable[[Array], Any]) -> Step:
    if not inputs[0].requires_grad:
        return lambda: run(*inputs)
    shape = tuple(run(*inputs).shape)
    upstream = wrap(np.asarray(np.random.default_rng(1).standard_normal(shape, np.float32)))

    def step() -> object:
        for tensor in inputs:
            tensor.grad = None
        result = run(*inputs)
        result.backward(upstream)
        return result.detach(), *(tensor.grad for tensor in inputs)

    return step


def contestants(
    ours: Function, theirs: Function, *others: tuple[int, ...]
) -> dict[str, Callable[[bool], Step]]:
    """The contestants of a work.

    Args:
        ours: called with te_tensor and the inputs: x, and the others.
        theirs: called with torch and the same.
        *others: shapes of the inputs beside x.
    """

    def tensor_engine(backward: bool) -> Step:
        te = importlib.import_module("te_tensor")
        inputs = [te.Tensor(array) for array in _inputs(others)]
        for tensor in inputs:
            tensor.requires_grad = backward
        return _step(lambda *tensors: ours(te, *tensors), inputs, te.Tensor)

    def pytorch(backward: bool) -> Step:
        torch = importlib.import_module("torch")
        torch.set_num_threads(cpus())
        inputs = [torch.tensor(a, requires_grad=backward) for a in _inputs(others)]
        return _step(lambda *tensors: theirs(torch, *tensors), inputs, torch.tensor)

    return {"tensor-engine": tensor_engine, "torch": pytorch}
