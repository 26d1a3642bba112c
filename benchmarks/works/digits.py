"""One epoch of a small convolution network, on images as small and few as scikit-learn's digits.

What a library adds to each call is most of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ..blocks.common import LEARNING_RATE, Array
from ..machine import cpus

IMAGES, SIDE, CLASSES = 1437, 8, 10
SIZES = {"1437 images, batches of 32": 32}
WIDTHS = (1, 16, 32)


def _data() -> tuple[Array, Array]:
    """Images (N, 1, 8, 8), drawn: how long a step takes doesn't hang on what they show; labels."""
    rng = np.random.default_rng(0)
    images = rng.random((IMAGES, 1, SIDE, SIDE), np.float32)
    return images, rng.integers(0, CLASSES, IMAGES)


def tensor_engine(batch: int) -> Callable[[], object]:
    import te_nn as nn
    import te_tensor as te
    from te_optim import Adam

    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nn.Conv2D(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 4, CLASSES))
    loss_function = nn.CrossEntropyLoss()
    optimizer = Adam(LEARNING_RATE, parameters=model.parameters())
    images, labels = (te.from_numpy(a) for a in _data())

    def epoch() -> object:
        losses = []
        for begin in range(0, IMAGES, batch):
            part = slice(begin, begin + batch)
            loss = loss_function(model(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return epoch


def torch(batch: int) -> Callable[[], object]:
    import torch
    from torch import nn

    torch.set_num_threads(cpus())
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 4, CLASSES))
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    images, labels = (torch.from_numpy(a) for a in _data())

    def epoch() -> object:
        losses = []
        for begin in range(0, IMAGES, batch):
            part = slice(begin, begin + batch)
            loss = loss_function(model(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return epoch


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
