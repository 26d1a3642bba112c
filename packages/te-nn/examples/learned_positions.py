"""Positions that are learnt, through the gradient of attention with respect to the distances.

Needs te-nn alone. Each of the points on a ring holds a value; the target of a point is the mean of
the values next to it. The model is told neither where the points lie nor who is next to whom: it
has a place in the plane for each, drawn at random, and attention with a distance bias between
these places. Gradients flow through the bias and the distances into the places, which move until
those that must see each other are near.

    python learned_positions.py
"""

from __future__ import annotations

import argparse

import numpy as np

import te_nn as nn
import te_tensor as te

POINTS, REACH = 16, 2


class Ring(nn.Module):
    """Attention whose queries and keys are nothing but learnt places."""

    def __init__(self) -> None:
        self.places = nn.Parameter(te.randn(POINTS, 2).numpy())
        self.nl_oob = nn.NLOOB(1, "gaussian", max_scale=2.0)

    def distance(self) -> te.Tensor:
        """Distances between the places, (S, S), with gradients to them."""
        return nn.distances.euclidean(self.places)

    def forward(self, values: te.Tensor) -> te.Tensor:
        """The means (B, S) that attention by distance makes of values (B, S)."""
        batch, length = values.shape
        silent = te.zeros(batch, 1, length, 1)  # no scores but those of the distances
        mixed = te.attention(
            silent,
            silent,
            values.reshape(batch, 1, length, 1),
            distance=self.distance(),
            **self.nl_oob.options(),
        )
        return mixed.reshape(batch, length)


def make_data(count: int, rng: np.random.Generator) -> tuple[te.Tensor, te.Tensor]:
    """Values (N, S), and the mean over each point and its neighbours on the ring."""
    values = rng.standard_normal((count, POINTS)).astype(np.float32)
    around = [np.roll(values, shift, axis=1) for shift in range(-REACH, REACH + 1)]
    return te.Tensor(values), te.Tensor(np.mean(around, axis=0))


def found_neighbours(distance: np.ndarray) -> float:
    """The share of true neighbours among the nearest of each point."""
    nearest = np.argsort(distance, axis=1)[:, 1 : 2 * REACH + 1]
    steps = np.abs(nearest - np.arange(POINTS)[:, None])
    return float((np.minimum(steps, POINTS - steps) <= REACH).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.seed < 0:
        parser.error("--steps: expected at least 1; --seed: expected at least 0")
    te.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    model, loss_function = Ring(), nn.MSELoss()
    means = [np.zeros(p.shape, np.float32) for p in model.parameters()]
    squares = [np.zeros(p.shape, np.float32) for p in model.parameters()]
    for step in range(arguments.steps + 1):
        values, target = make_data(64, rng)
        loss = loss_function(model(values), target)
        if step % max(1, arguments.steps // 5) == 0:
            found = found_neighbours(model.distance().numpy())
            print(f"step {step:>5}  loss {loss.item():.4f}  neighbours found {found:4.0%}")
        model.zero_grad()
        loss.backward()
        # Adam, written out; te-optim has optimizers
        for parameter, mean, square in zip(model.parameters(), means, squares, strict=True):
            gradient = parameter.grad.numpy()
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient**2 - square)
            with parameter.lock() as array:
                array -= 0.03 * mean / (np.sqrt(square) + 1e-8)


if __name__ == "__main__":
    main()
