"""Linear regression by gradient descent, with tensors alone: no layers and no optimizer.

Draws points around a plane, starts from zero weights, and prints the loss and what was found.

    python linear_regression.py --steps 200
"""

from __future__ import annotations

import argparse

import te_tensor as te

WEIGHT, BIAS, NOISE = [[2.0, -3.0, 0.5]], [1.5], 0.1


def make_data(count: int) -> tuple[te.Tensor, te.Tensor]:
    """x (count, 3), and y (count, 1) on a plane but for some noise."""
    x = te.randn(count, len(WEIGHT[0]))
    return x, te.linear(x, te.Tensor(WEIGHT), te.Tensor(BIAS)) + NOISE * te.randn(count, 1)


def fit(
    x: te.Tensor, y: te.Tensor, steps: int, learning_rate: float
) -> tuple[te.Tensor, te.Tensor]:
    """The weight (1, 3) and the bias (1,) after gradient descent from zero."""
    weight = te.zeros(y.shape[1], x.shape[1], requires_grad=True)
    bias = te.zeros(y.shape[1], requires_grad=True)
    for step in range(steps):
        loss = te.mse_loss(te.linear(x, weight, bias), y)
        loss.backward()
        for parameter in (weight, bias):
            with parameter.lock() as array:  # the one way to write into a tensor's memory
                array -= learning_rate * parameter.grad.numpy()
            parameter.zero_grad()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.5f}")
    return weight, bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 1 or not options.learning_rate > 0:
        parser.error("--steps and --learning-rate: expected more than 0")
    te.manual_seed(options.seed)
    weight, bias = fit(*make_data(500), options.steps, options.learning_rate)
    print(f"weight {weight.numpy().round(3)}, expected about {WEIGHT}")
    print(f"bias   {bias.numpy().round(3)}, expected about {BIAS}")


if __name__ == "__main__":
    main()
