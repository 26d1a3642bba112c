"""A batch that doesn't fit in memory, in parts: gradients add up until the optimizer steps.

Each part's loss is divided by the number of parts, so that the sum of gradients is that of the mean
over the whole batch. Two models begin alike; one is given whole batches, the other parts.
Predictions are then made with the averages (EMA) of the second one's parameters.

    python accumulate_gradients.py
"""

from __future__ import annotations

import argparse

try:
    import numpy as np

    import te_nn as nn
    import te_tensor as te
    from te_optim import EMA, AdamW, clip_gradients
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None

BATCH, FEATURES, MAX_NORM = 64, 8, 1.0


def build(seed: int) -> nn.Module:
    te.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))


def train(model: nn.Module, parts: int, steps: int, seed: int) -> EMA:
    """Learn a sine, each batch in so many parts."""
    rng = np.random.default_rng(seed)
    parameters = list(model.parameters())
    optimizer = AdamW(lr=1e-2, parameters=parameters)
    ema = EMA(parameters, decay=0.98, warmup=True)
    for step in range(steps):
        x = rng.uniform(-1, 1, (BATCH, FEATURES)).astype(np.float32)
        y = np.sin(x.sum(axis=1, keepdims=True))
        optimizer.zero_grad()
        total = 0.0
        for inputs, targets in zip(np.split(x, parts), np.split(y, parts), strict=True):
            loss = te.mse_loss(model(te.Tensor(inputs)), te.Tensor(targets)) / parts
            loss.backward()  # adds to the gradients that are there
            total += loss.item()
        norm = clip_gradients(parameters, MAX_NORM)
        optimizer.step()
        ema.update()
        if step % max(1, steps // 5) == 0:
            print(f"{parts} parts   step {step:3d}   loss {total:.5f}   gradient's norm {norm:.4f}")
    return ema


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", type=int, default=4, help=f"a divisor of {BATCH}")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.parts < 1 or BATCH % arguments.parts:
        parser.error(f"--parts is {arguments.parts}: expected a divisor of {BATCH}")
    if arguments.steps < 1 or arguments.seed < 0:
        parser.error("--steps: expected at least 1; --seed: expected at least 0")

    whole, cut = build(arguments.seed), build(arguments.seed)
    train(whole, 1, arguments.steps, arguments.seed)
    ema = train(cut, arguments.parts, arguments.steps, arguments.seed)
    difference = max(
        float(np.abs(a.numpy() - b.numpy()).max())
        for a, b in zip(whole.parameters(), cut.parameters(), strict=True)
    )
    print(f"Greatest difference between the two models' parameters: {difference:.1e}")

    x = np.random.default_rng(arguments.seed + 1).uniform(-1, 1, (1000, FEATURES))
    inputs, targets = te.Tensor(x, dtype="float32"), te.Tensor(np.sin(x.sum(1, keepdims=True)))
    with te.no_grad():
        last = te.mse_loss(cut(inputs), targets.astype("float32")).item()
        with ema.average_parameters():
            averaged = te.mse_loss(cut(inputs), targets.astype("float32")).item()
    print(f"Error on new inputs: {last:.5f} with the last parameters, {averaged:.5f} with averages")


if __name__ == "__main__":
    main()
