"""One step of an optimizer, on few large and on many small parameters, all with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

LEARNING_RATE, MOMENTUM = 1e-3, 0.9
LARGE, SMALL = (500, 333), (16, 16)


@dataclass(frozen=True)
class Job:
    """An optimizer, and how many parameters of which shape it changes."""

    optimizer: str
    count: int
    shape: tuple[int, ...]


SIZES = {
    "Adam, 10 M in 60": Job("Adam", 60, LARGE),
    "Adam, 256 K in 1000": Job("Adam", 1000, SMALL),
    "SGD, 10 M in 60": Job("SGD", 60, LARGE),
    "SGD, 256 K in 1000": Job("SGD", 1000, SMALL),
}


def arrays(job: Job) -> list[tuple[Array, Array]]:
    """Each parameter's values and gradient."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal(job.shape, np.float32), rng.standard_normal(job.shape, np.float32))
        for _ in range(job.count)
    ]


def tensor_engine(job: Job) -> Callable[[], object]:
    import te_tensor as te
    from te_optim import SGD, Adam

    parameters = []
    for values, gradient in arrays(job):
        parameters.append(te.Tensor(values, requires_grad=True))
        parameters[-1].grad = te.from_numpy(gradient)
    if job.optimizer == "Adam":
        optimizer: Any = Adam(LEARNING_RATE, parameters=parameters)
    else:
        optimizer = SGD(LEARNING_RATE, MOMENTUM, parameters=parameters)

    def step() -> object:
        optimizer.step()
        return parameters[-1]

    return step


def _torch(job: Job, fused: bool) -> Callable[[], object]:
    import torch

    torch.set_num_threads(cpus())
    parameters = []
    for values, gradient in arrays(job):
        parameters.append(torch.from_numpy(values).requires_grad_())
        parameters[-1].grad = torch.from_numpy(gradient)
    options: dict[str, Any] = (
        {"lr": LEARNING_RATE, "fused": True} if fused else {"lr": LEARNING_RATE}
    )
    if job.optimizer == "Adam":
        optimizer: Any = torch.optim.Adam(parameters, **options)
    else:
        optimizer = torch.optim.SGD(parameters, momentum=MOMENTUM, **options)

    def step() -> object:
        optimizer.step()
        return parameters[-1]

    return step


def torch(job: Job) -> Callable[[], object]:
    """PyTorch's default: a loop over the parameters."""
    return _torch(job, fused=False)


def torch_fused(job: Job) -> Callable[[], object]:
    """PyTorch's one kernel for all."""
    return _torch(job, fused=True)


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "torch fused": torch_fused}
