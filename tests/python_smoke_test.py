"""The whole way in one short script: tensors, a model, an optimizer, a file and back.

    python tests/python_smoke_test.py

The tests run it too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import te_io
import te_nn as nn
import te_optim as optim
import te_tensor as te


def main() -> None:
    """Raise if anything of it doesn't work."""
    t = te.Tensor([1, 2, 3, 4], [2, 2], dtype="float32", requires_grad=True)
    ((t @ t + 2 * t) ** 2).sum().backward()
    assert t.shape == (2, 2)
    assert t.grad is not None and np.isfinite(t.grad.get_data()).all()
    assert t.reshape([4]).softmax(axis=0).numpy().sum().round(6) == 1
    print("tensors, operators and gradients: fine")

    te.manual_seed(0)
    block = nn.TransformerBlock(16, 32, 2, nl_oob_config="logarithmic", nl_oob_max_scale=2.0)
    x, target = te.randn(4, 8, 16), te.randn(4, 8, 16)
    distance = nn.distances.sequence(8)
    optimizer = optim.Adam(lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.MSELoss().forward(block.forward_with_distance(x, distance), target)
        optimizer.zero_grad(block.parameters())
        loss.backward()
        optimizer.step(block.parameters())
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    print(f"training with a distance bias: loss {losses[0]:.3f} to {losses[-1]:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "block.safetensors")
        te_io.save_safetensors(block, path)
        fresh = nn.TransformerBlock(16, 32, 2, nl_oob_config="gaussian")
        te_io.py_load_safetensors_into_module(path.read_bytes(), False, fresh)
    assert np.array_equal(
        fresh.forward_with_distance(x, distance).numpy(),
        block.forward_with_distance(x, distance).numpy(),
    )
    print("saved, loaded into a fresh model, same results to the bit: fine")


if __name__ == "__main__":
    main()
