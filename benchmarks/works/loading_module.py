"""A safetensors file into the parameters of a model that is there already."""

from __future__ import annotations

from collections.abc import Callable

from .loading import FEATURES, write_file

SIZES = {"500 MB": 119}


def tensor_engine(tensors: int) -> Callable[[], object]:
    import te_io
    import te_nn as nn

    class Model(nn.Module):
        def __init__(self) -> None:
            self.layers = nn.ModuleList(
                nn.Linear(FEATURES, FEATURES, bias=False) for _ in range(tensors)
            )

    model, path = Model(), write_file(tensors)
    return lambda: te_io.load_into_module(model, path)


def safetensors_torch(tensors: int) -> Callable[[], object]:
    import safetensors.torch
    from torch import nn

    layers = nn.ModuleList(nn.Linear(FEATURES, FEATURES, bias=False) for _ in range(tensors))
    model, path = nn.ModuleDict({"layers": layers}), write_file(tensors)
    return lambda: safetensors.torch.load_model(model, path)


CONTESTANTS = {"tensor-engine": tensor_engine, "safetensors.torch": safetensors_torch}
