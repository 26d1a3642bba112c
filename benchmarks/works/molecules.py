"""The training of te-optim's molecules example: 30 steps of 64 molecules like those of QM9."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

SIZES = {"30 steps of 64": 30}
BATCH, ELEMENTS, D_MODEL, D_FF, HEADS, BLOCKS = 64, 5, 64, 128, 8, 3
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
OUTPUT_SCALE = 0.1
EXAMPLE = Path(__file__).parents[2] / "packages" / "te-optim" / "examples" / "molecules.py"


def batches(steps: int) -> list[tuple[Array, Array, Array]]:
    """Elements (B, S), 0 for padding, distances (B, S, S) in Å and targets (B,) for each step.

    Molecules have up to 29 atoms, about 18, as in QM9; a batch is padded no further than it
    needs.
    """
    rng = np.random.default_rng(0)
    made = []
    for _ in range(steps):
        atoms = np.clip(np.rint(rng.normal(18, 3, BATCH)), 3, 29).astype(np.int64)
        length = int(atoms.max())
        real = np.arange(length) < atoms[:, None]
        # hydrogen, carbon, nitrogen, oxygen, fluorine
        elements = rng.choice(ELEMENTS, (BATCH, length), p=[0.51, 0.35, 0.06, 0.078, 0.002]) + 1
        points = 1.6 * rng.standard_normal((BATCH, length, 3))
        distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
        distance *= real[:, :, None] & real[:, None]
        target = rng.standard_normal(BATCH)
        made.append(
            (elements * real, distance.astype(np.float32), target.astype(np.float32)),
        )
    return made


def example() -> Any:
    """The example's own module, in which its model is."""
    name = "molecules_example"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLE)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def te_model() -> Any:
    """The example's model; its own initial weights are what all contestants begin with."""
    import te_tensor as te

    te.manual_seed(0)
    return example().MoleculeModel(ELEMENTS, "gaussian")


def te_optimizer(model: Any) -> Any:
    from te_optim import AdamW

    return AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, parameters=model.parameters())


def tensor_engine(steps: int) -> Callable[[], object]:
    import te_nn as nn
    import te_tensor as te

    model = te_model()
    loss_function = nn.MSELoss()
    data = [tuple(te.from_numpy(array) for array in batch) for batch in batches(steps)]
    optimizer = te_optimizer(model)

    def train() -> object:
        losses = []
        for elements, distance, target in data:
            loss = loss_function(model(elements, distance), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def torch_model() -> Any:
    """The same model in PyTorch, with the weights of the example's."""
    import torch
    from torch import Tensor, nn

    from ..blocks.torch_block import Block

    class MoleculeModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(ELEMENTS + 1, D_MODEL, padding_idx=0)
            self.blocks = nn.ModuleList(Block(D_MODEL, D_FF, HEADS) for _ in range(BLOCKS))
            self.norm = nn.LayerNorm(D_MODEL)
            self.readout = nn.Linear(D_MODEL, 1)

        def forward(self, elements: Tensor, distance: Tensor) -> Any:
            atoms = elements != 0
            # phi and the mask are the same for all blocks
            mask = torch.zeros(atoms.shape).masked_fill_(~atoms, -torch.inf)[:, None, None]
            phi = (distance * distance)[:, None]
            x = self.embedding(elements)
            for block in self.blocks:
                x = block(x, phi, mask)
            per_atom = self.readout(self.norm(x)).squeeze(-1)
            return (per_atom * atoms).sum(1) * OUTPUT_SCALE

    model = MoleculeModel()
    named = {name: np.array(value.data) for name, value in te_model().state_dict().items()}
    for number, block in enumerate(model.blocks):
        prefix = f"blocks.{number}."
        keys = [key for key in named if key.startswith(prefix)]
        own = {key.removeprefix(prefix): named.pop(key) for key in keys}
        del own["self_attn.nl_oob.config"]
        block.load(own)
    rest = {name: torch.from_numpy(array) for name, array in named.items()}
    model.load_state_dict(rest, strict=False)
    return model


def torch(steps: int) -> Callable[[], object]:
    import torch
    from torch.nn import functional

    torch.set_num_threads(cpus())
    model = torch_model()
    data = [tuple(torch.from_numpy(array) for array in batch) for batch in batches(steps)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def train() -> object:
        losses = []
        for elements, distance, target in data:
            loss = functional.mse_loss(model(elements, distance), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
