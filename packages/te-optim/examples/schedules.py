"""Plot every schedule to a PNG: the learning rate, and momentum where it is cycled.

python schedules.py --output schedules.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import cos
from pathlib import Path

try:
    from matplotlib import pyplot

    import te_optim as optim
    import te_tensor as te
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None

SCHEDULES: dict[str, Callable[[optim.Optimizer, int], optim.Schedule]] = {
    "LinearWarmup": lambda o, n: optim.LinearWarmup(o, 0.1, total_iters=n // 2),
    "CosineAnnealing": lambda o, n: optim.CosineAnnealing(o, n),
    "StepDecay": lambda o, n: optim.StepDecay(o, max(1, n // 5), 0.5),
    "ExponentialDecay": lambda o, n: optim.ExponentialDecay(o, 0.01 ** (1 / n)),
    "PolynomialDecay": lambda o, n: optim.PolynomialDecay(o, n, 2.0),
    "CyclicLR": lambda o, n: optim.CyclicLR(o, 0.1, 1.0, max(1, n // 8), mode="triangular2"),
    "OneCycleLR": lambda o, n: optim.OneCycleLR(o, 1.0, n),
    "ReduceLROnPlateau": lambda o, n: optim.ReduceLROnPlateau(o, factor=0.5, patience=n // 20),
    "Chain: warm-up × steps": lambda o, n: optim.Chain(
        [optim.LinearWarmup(o, 0.1, total_iters=n // 4), optim.StepDecay(o, max(1, n // 5), 0.5)]
    ),
    "Sequential: warm-up, then cosine": lambda o, n: optim.Sequential(
        [
            optim.LinearWarmup(o, 0.1, total_iters=n // 4),
            optim.CosineAnnealing(o, n - n // 4),
        ],
        milestones=[n // 4],
    ),
}


def follow(
    make: Callable[[optim.Optimizer, int], optim.Schedule], steps: int
) -> tuple[list[float], list[float]]:
    """Learning rate and momentum at each step."""
    w = te.zeros(1, requires_grad=True)
    optimizer = optim.SGD(lr=1.0, momentum=0.9, parameters=[w])
    schedule = make(optimizer, steps)
    rates, momenta = [], []
    for step in range(steps):
        rates.append(optimizer.lr)
        momenta.append(optimizer.groups[0]["momentum"])
        loss = max(0.2, 1 - 2 * step / steps) + 0.01 * cos(step)  # sinks, and then stays
        schedule.step(loss)
    return rates, momenta


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("schedules.png"))
    arguments = parser.parse_args()
    if arguments.steps < 8:
        parser.error(f"--steps is {arguments.steps}: expected at least 8")
    figure, axes = pyplot.subplots(
        2, len(SCHEDULES) // 2, figsize=(18, 6), layout="constrained", sharex=True
    )
    for place, (title, make) in zip(axes.flat, SCHEDULES.items(), strict=True):
        rates, momenta = follow(make, arguments.steps)
        place.plot(rates, label="learning rate")
        if len(set(momenta)) > 1:
            place.plot(momenta, "--", color="0.6", label="momentum")
            place.legend()
        place.set(title=title, xlabel="step")
        print(f"{title:<34} from {rates[0]:.4f} to {rates[-1]:.4f}, at most {max(rates):.4f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=100)
    print(f"Plotted {arguments.output}")


if __name__ == "__main__":
    main()
