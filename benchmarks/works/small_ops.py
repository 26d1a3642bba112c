"""200 elementwise operations in a row on 4 elements, forward and backward: µs an operation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from ..machine import cpus

UNIT = "µs an op"
SIZES = {"200 ops on 4 elements": 50}
ROUNDS = 60


def chain(x: Any, groups: int) -> Any:
    """Four operations a group; values stay near where they were."""
    y = x
    for _ in range(groups):
        y = ((y + x) * x).tanh() - x
    return y


def gradients(library: str, groups: int) -> Callable[[], Any]:
    """The step of a library, by the name of its module."""
    module = importlib.import_module(library)
    if library == "torch":
        module.set_num_threads(cpus())
    x = module.Tensor([0.1, -0.2, 0.3, 0.4])
    x.requires_grad = True
    upstream = module.ones(4)

    def step() -> Any:
        x.grad = None
        result = chain(x, groups)
        result.backward(upstream)
        return result.detach(), x.grad

    return step


def _microseconds(library: str, groups: int) -> Callable[[], float]:
    step = gradients(library, groups)

    def measured() -> float:
        times = []
        for _ in range(ROUNDS):
            begin = perf_counter()
            step()
            times.append(perf_counter() - begin)
        return median(times[ROUNDS // 3 :]) * 1e6 / (4 * groups)

    return measured


CONTESTANTS = {
    "tensor-engine": lambda groups: _microseconds("te_tensor", groups),
    "torch": lambda groups: _microseconds("torch", groups),
}
