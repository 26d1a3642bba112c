"""A toy regression with a learnable distance bias: watch the slopes as they learn.

A transformer block with NL-OOB maps random inputs to random targets; the distances are those of
positions in a row. Every line shows the loss and the slope of each head.

    python train_nl_oob.py
"""

from __future__ import annotations

import argparse

try:
    import te_nn as nn
    import te_tensor as te
    from te_optim import Adam
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None

BATCH, LENGTH, D_MODEL, D_FF, HEADS = 4, 8, 16, 32, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bias", choices=("logarithmic", "gaussian"), default="logarithmic")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.seed < 0:
        parser.error("--steps: expected at least 1; --seed: expected at least 0")

    te.manual_seed(arguments.seed)
    block = nn.TransformerBlock(
        D_MODEL, D_FF, HEADS, nl_oob_config=arguments.bias, nl_oob_max_scale=2.0
    )
    x = te.randn(BATCH, LENGTH, D_MODEL)
    target = te.randn(BATCH, LENGTH, D_MODEL)
    distance = nn.distances.sequence(LENGTH)
    loss_function = nn.MSELoss()
    optimizer = Adam(lr=1e-2)

    for step in range(arguments.steps):
        loss = loss_function.forward(block.forward_with_distance(x, distance), target)
        optimizer.zero_grad(block.parameters())
        loss.backward()
        optimizer.step(block.parameters())
        slopes = block.self_attn.nl_oob.slopes.numpy().ravel()
        shown = "  ".join(f"{slope:.4f}" for slope in slopes)
        print(f"step {step + 1:2d}   loss {loss.item():.4f}   slopes {shown}")


if __name__ == "__main__":
    main()
