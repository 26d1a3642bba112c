"""What a distance bias does: train a transformer block to average over a point's neighbours.

Needs te-nn alone. Points lie at random places; the target of each is the mean of the values
within a radius. A block without the distances can't know who is near; one with NL-OOB can, and
its slopes say how far each head learnt to look.

    python attention_bias.py
"""

from __future__ import annotations

import argparse

import numpy as np

import te_nn as nn
import te_tensor as te

POINTS, FEATURES, SIDE, RADIUS = 24, 16, 10.0, 3.0


def make_data(count: int, rng: np.random.Generator) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
    """Values (N, S, FEATURES), distances (N, S, S) and targets (N, S, 1)."""
    places = rng.uniform(0, SIDE, size=(count, POINTS, 2))
    distance = nn.distances.euclidean(places).numpy()
    values = rng.standard_normal((count, POINTS, FEATURES))
    near = distance < RADIUS
    target = (near * values[:, None, :, 0]).sum(axis=2) / near.sum(axis=2)
    return tuple(  # type: ignore[return-value]
        te.Tensor(array, dtype="float32") for array in (values, distance, target[..., None])
    )


def train(bias: str | None, steps: int, seed: int) -> tuple[float, nn.TransformerBlock]:
    """The error on new points, and the trained block."""
    te.manual_seed(seed)
    rng = np.random.default_rng(seed)
    block = nn.TransformerBlock(FEATURES, 32, 4, nl_oob_config=bias)
    readout = nn.Linear(FEATURES, 1)
    model = nn.ModuleList([block, readout])
    loss_function = nn.MSELoss()

    def error(x: te.Tensor, distance: te.Tensor, target: te.Tensor) -> te.Tensor:
        return loss_function(readout(block(x, distance=distance if bias else None)), target)

    momentum = [np.zeros(p.shape, np.float32) for p in model.parameters()]
    for _ in range(steps):
        model.zero_grad()
        error(*make_data(32, rng)).backward()
        # plain gradient descent with momentum; te-optim has optimizers
        for parameter, velocity in zip(model.parameters(), momentum, strict=True):
            if parameter.grad is not None:
                velocity *= 0.9
                velocity += parameter.grad.numpy()
                with parameter.lock() as array:
                    array -= 0.02 * velocity
    with te.no_grad():
        return error(*make_data(200, rng)).item(), block


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.seed < 0:
        parser.error("--steps: expected at least 1; --seed: expected at least 0")
    for bias in (None, "gaussian", "logarithmic"):
        error, block = train(bias, arguments.steps, arguments.seed)
        print(f"bias {bias or 'none':<12} mean squared error {error:.4f}", end="")
        nl_oob = block.self_attn.nl_oob
        if nl_oob is not None:
            print("   slopes", "  ".join(f"{s:.2f}" for s in nl_oob.slopes.numpy().ravel()), end="")
        print()


if __name__ == "__main__":
    main()
