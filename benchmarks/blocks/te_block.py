"""The block of te-nn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import te_nn as nn
import te_tensor as te
from te_optim import Adam

from . import common
from .common import Array, Size


def block(size: Size) -> nn.TransformerBlock:
    made = nn.TransformerBlock(size.d_model, size.d_ff, size.heads, nl_oob_config="logarithmic")
    made.load_state_dict({**made.state_dict(), **common.weights(size)})
    return made


def inference(size: Size) -> Callable[[], object]:
    model = block(size).eval()
    x, _, distance = (te.from_numpy(array) for array in common.inputs(size))

    def step() -> object:
        with te.no_grad():
            return model(x, distance=distance)

    return step


def training(size: Size) -> Callable[[], object]:
    model = block(size)
    x, target, distance = (te.from_numpy(array) for array in common.inputs(size))
    loss_function = nn.MSELoss()
    optimizer = Adam(lr=common.LEARNING_RATE, parameters=model.parameters())

    def step() -> object:
        loss = loss_function(model(x, distance=distance), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def gradients(size: Size) -> dict[str, Array]:
    """Gradients of the loss that training begins with."""
    model = block(size)
    x, target, distance = (te.from_numpy(array) for array in common.inputs(size))
    nn.MSELoss()(model(x, distance=distance), target).backward()
    return {name: np.array(p.grad) for name, p in model.named_parameters()}


def stack(size: Size, layers: int) -> nn.TransformerEncoder:
    made = nn.TransformerEncoder(
        layers, size.d_model, size.d_ff, size.heads, nl_oob_config="logarithmic"
    )
    for one, named in zip(made.layers, common.stack_weights(size, layers), strict=True):
        one.load_state_dict({**one.state_dict(), **named})
    return made


def stack_training(size: Size, layers: int) -> Callable[[], object]:
    model = stack(size, layers)
    x, target, distance = (te.from_numpy(array) for array in common.inputs(size))
    loss_function = nn.MSELoss()
    optimizer = Adam(lr=common.LEARNING_RATE, parameters=model.parameters())

    def step() -> object:
        loss = loss_function(model(x, distance=distance), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step
