"""What a recurrent layer remembers: the adding problem of Hochreiter and Schmidhuber (1997).

Each step of a sequence has a random number and a mark; two steps are marked, anywhere, and the
answer after the last step is the sum of their numbers. Whoever doesn't remember can do no better
than to say 1 every time, with a mean squared error of 1/6. An LSTM learns to keep the numbers that
are marked; a plain RNN has a hard time with long sequences.

    python sequence_lstm.py
    python sequence_lstm.py --layer RNN --length 60
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

try:
    import te_nn as nn
    import te_optim
    import te_tensor as te
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None

CHANCE = 1 / 6  # the variance of the sum of two numbers that are even in 0 … 1


class Adder(nn.Module):
    """A recurrent layer, and a linear one on its last hidden state."""

    def __init__(self, layer: str, hidden: int) -> None:
        self.recurrent = getattr(nn, layer)(2, hidden)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x: te.Tensor) -> te.Tensor:
        """Shape (T, B, 2) to (B,)."""
        output, _ = self.recurrent(x)
        return self.readout(output[-1]).squeeze(1)


def make_batch(length: int, count: int, rng: np.random.Generator) -> tuple[te.Tensor, te.Tensor]:
    """Sequences (T, B, 2) of numbers and marks, and the sums (B,)."""
    numbers = rng.random((length, count), np.float32)
    marks = np.zeros_like(numbers)
    for column in range(count):
        marks[rng.choice(length, 2, replace=False), column] = 1
    return te.Tensor(np.stack([numbers, marks], axis=2)), te.Tensor((numbers * marks).sum(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layer", choices=("LSTM", "GRU", "RNN"), default="LSTM")
    parser.add_argument("--length", type=int, default=30, help="steps of a sequence")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1200, help="steps of training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if min(arguments.hidden, arguments.steps) < 1 or arguments.length < 2 or arguments.seed < 0:
        parser.error(
            "expected --hidden and --steps of at least 1, --length of at least 2, --seed of at "
            "least 0"
        )
    te.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    model = Adder(arguments.layer, arguments.hidden)
    optimizer = te_optim.Adam(lr=5e-3, parameters=list(model.parameters()))
    begin = perf_counter()
    for step in range(1, arguments.steps + 1):
        x, target = make_batch(arguments.length, 64, rng)
        optimizer.zero_grad()
        loss = te.mse_loss(model(x), target)
        loss.backward()
        te_optim.clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, arguments.steps // 8) == 0:
            print(f"step {step:5}  mean squared error {loss.item():.4f}", flush=True)
    x, target = make_batch(arguments.length, 500, rng)
    with te.no_grad():
        answers = model.eval()(x)
    error = te.mse_loss(answers, target).item()
    right = np.mean(np.abs(answers.numpy() - target.numpy()) < 0.1)
    print(
        f"{arguments.layer}, {arguments.length} steps, {perf_counter() - begin:.0f} s of training"
    )
    print(
        f"on 500 new sequences: mean squared error {error:.4f} (saying 1 every time: {CHANCE:.4f})"
    )
    print(f"within 0.1 of the sum: {right:.1%}")


if __name__ == "__main__":
    main()
