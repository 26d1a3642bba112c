"""Molecules as arrays, and the model that learns their energies: shared by the examples."""

from __future__ import annotations

import ast
import csv
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

import te_nn as nn
import te_tensor as te

HARTREE = 27.211386245988  # eV, CODATA 2018
KCAL_PER_MOL = 0.0433641153  # eV
#: Factor of the sum over atoms, so that an untrained model's sums spread about as targets do.
OUTPUT_SCALE = 0.1
HEADS = 8


@dataclass(frozen=True)
class Molecules:
    """A set of molecules, padded to one number of atoms S.

    Attributes:
        elements: element numbers counted from 1, 0 for padding; shape (N, S), int64.
        distance: distances between atoms in Å; shape (N, S, S), float32.
        counts: how many atoms of each element; shape (N, number of elements).
        energy: energies in eV; shape (N,), float64.
    """

    elements: NDArray[np.int64]
    distance: NDArray[np.float32]
    counts: NDArray[np.float64]
    energy: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, chosen: NDArray[np.int64] | slice) -> Molecules:
        """Some of the molecules."""
        parts = (self.elements, self.distance, self.counts, self.energy)
        return Molecules(*(part[chosen] for part in parts))

    def batch(self, chosen: NDArray[np.int64] | slice) -> tuple[te.Tensor, te.Tensor]:
        """Elements and distances of some molecules, padded no further than they need."""
        elements = self.elements[chosen]
        atoms = int((elements > 0).sum(axis=1).max())
        distance = self.distance[chosen][:, :atoms, :atoms]
        return te.Tensor(elements[:, :atoms]), te.Tensor(distance)


def fail(message: str) -> NoReturn:
    """End the program with one line."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def require(package: str, line: str) -> None:
    """End the program with the pip line for a package that is missing."""
    if importlib.util.find_spec(package) is None:
        fail(f"this needs {package}, which isn't installed: {line}")


def _gather(
    symbols: list[list[str]], places: list[NDArray[np.float64]], energy: list[float]
) -> Molecules:
    """Arrays of what was read."""
    known = sorted({symbol for molecule in symbols for symbol in molecule})
    number = {symbol: place + 1 for place, symbol in enumerate(known)}
    atoms = max(len(molecule) for molecule in symbols)
    elements = np.zeros((len(symbols), atoms), np.int64)
    distance = np.zeros((len(symbols), atoms, atoms), np.float32)
    for row, (molecule, points) in enumerate(zip(symbols, places, strict=True)):
        n = len(molecule)
        elements[row, :n] = [number[symbol] for symbol in molecule]
        distance[row, :n, :n] = nn.distances.euclidean(points).numpy()
    counts = np.stack([(elements == n).sum(axis=1) for n in number.values()], axis=1)
    return Molecules(elements, distance, counts.astype(np.float64), np.array(energy))


def read_qm9(count: int, rng: np.random.Generator) -> Molecules:
    """`count` molecules of QM9, drawn evenly over its three files.

    The energy is the internal energy at 0 K (Ramakrishnan et al., 2014).
    """
    require("qm9pack", "python -m pip install --no-deps qm9pack")
    spec = importlib.util.find_spec("qm9pack")  # its own reader needs pandas
    folder = Path(spec.submodule_search_locations[0]) / "data"  # type: ignore[union-attr,index]
    symbols, places, energy = [], [], []
    for part in range(3):
        header, *lines = (folder / f"qm9_part{part + 1}.csv").read_text().splitlines()
        wanted = count // 3 + (part < count % 3)
        if wanted > len(lines):
            fail(f"QM9 has about {3 * len(lines)} molecules: {count} are too many")
        chosen = np.sort(rng.choice(len(lines), wanted, replace=False))
        for row in csv.DictReader([header, *(lines[i] for i in chosen)]):
            symbols.append(ast.literal_eval(row["Elements"]))
            places.append(np.array(ast.literal_eval(row["XYZ_Ang"])))
            energy.append(float(row["InternalEnergy_0K_au"]) * HARTREE)
    return _gather(symbols, places, energy)


def read_g2() -> Molecules:
    """The molecules of the G2 set with their enthalpies of formation (Curtiss et al., 1997)."""
    require("ase", "python -m pip install ase")
    from ase.data.g2 import data
    from ase.symbols import string2symbols

    symbols, places, energy = [], [], []
    for entry in data.values():
        if len(entry["positions"]) > 1:
            symbols.append(string2symbols(entry["symbols"]))
            places.append(np.array(entry["positions"]))
            energy.append(entry["enthalpy"] * KCAL_PER_MOL)
    return _gather(symbols, places, energy)


class MoleculeModel(nn.Module):
    """Atoms embedded by element, transformer blocks biased by distance, a sum over atoms.

    Args:
        elements: the number of different elements.
        bias: the function of the distance bias, or "none".
    """

    def __init__(self, elements: int, bias: str) -> None:
        config = None if bias == "none" else bias
        self.embedding = nn.Embedding(elements + 1, 64, padding_idx=0)
        self.blocks = nn.ModuleList(nn.TransformerBlock(64, 128, HEADS, config) for _ in range(3))
        self.norm = nn.LayerNorm(64)
        self.readout = nn.Linear(64, 1)
        self.bias = config

    def forward(self, elements: te.Tensor, distance: te.Tensor) -> te.Tensor:
        """Element numbers (B, S), 0 for padding, and distances (B, S, S) to energies (B,)."""
        atoms = elements != 0
        mask = atoms.reshape(len(atoms), 1, 1, -1)  # nobody attends to padding
        # Phi of the distances is made once for all blocks.
        shared = None if self.bias is None else te.prepare_distance(distance, self.bias)
        x = self.embedding(elements)
        for block in self.blocks:
            x = block(x, mask=mask, distance=shared)
        per_atom = self.readout(self.norm(x)).squeeze(-1)
        return (per_atom * atoms.astype("float32")).sum(axis=1) * OUTPUT_SCALE

    def slopes(self) -> NDArray[np.float32]:
        """The slopes of the distance bias, shape (blocks, heads); no blocks without a bias."""
        found = [block.self_attn.nl_oob for block in self.blocks]
        rows = [np.array(nl_oob.slopes.numpy()).ravel() for nl_oob in found if nl_oob is not None]
        return np.array(rows, np.float32).reshape(len(rows), HEADS)
