"""Makes assets/*.b64, files of PyTorch as text: `python make_assets.py`, with PyTorch installed.

What they hold is simple enough for tests to say it again in NumPy, so that the files are read and
compared where PyTorch isn't installed.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import torch
from torch import nn

ASSETS = Path(__file__).parent / "assets"
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    torch.float8_e8m0fnu,
)


class SimpleLinear(nn.Module):
    """y = x Wᵀ + b, with weights that count from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(6.0).reshape(2, 3))
            self.linear.bias.copy_(torch.tensor([10.0, 20.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Scripted(nn.Module):
    """A parameter that is tied, buffers, attributes, constants, and a module without tensors."""

    __constants__ = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.size = 7
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.arange(4.0).reshape(2, 2))
            self.second.bias.copy_(torch.tensor([5.0, 6.0]))
        self.second.weight = self.first.weight
        self.act = nn.ReLU()
        self.register_buffer("running", torch.arange(3.0))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.plain = torch.arange(4.0)
        self.table = {"a": 1, "b": 2}
        self.rates = [8000, 16000]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset = torch.tensor([0.5, 0.25])
        return self.act(self.second(self.first(x)) * self.scale + offset * self.size)


class VarStore(nn.Module):
    """Names as the Rust crate tch writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("fc|weight", nn.Parameter(torch.arange(6.0).reshape(2, 3)))
        self.register_buffer("norm|running_mean", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def script(module: nn.Module, extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer, _extra_files=extra)
    return buffer.getvalue()


def views() -> dict[str, object]:
    """Tensors that share memory, are turned, cut, expanded, empty or without axes."""
    base = torch.arange(12.0).reshape(3, 4)
    complex_base = torch.complex(torch.arange(3.0), torch.arange(3.0) + 1)
    parameter = nn.Parameter(torch.ones(2))
    return {
        "base": base,
        "turned": base.T,
        "part": base[1:, ::2],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "conjugate": complex_base.conj(),
        "negative": (complex_base + 0).conj().imag,
        "parameter": parameter,
        "tied": [parameter, parameter],
    }


def values() -> dict[str, object]:
    """Everything but tensors that may stand in a file."""
    counted = defaultdict(list)
    counted["x"].append(1)
    return {
        "none": None,
        "truth": (True, False),
        "whole": [0, 255, 65535, -1, 2**40, -(2**80)],
        "real": [0.5, float("inf")],
        "text": "Grüße",
        "bytes": b"\x00\xff",
        "set": {1, "a"},
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "counter": Counter("aab"),
        "default": counted,
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        3: {(0, 1): "key"},
    }


def big_endian() -> bytes:
    """A file as a big-endian machine writes it: other machines can't, so its bytes are turned."""
    state = {"float": torch.arange(3.0), "long": torch.arange(3), "bf16": torch.ones(2).bfloat16()}
    state["uint16"] = torch.tensor([1, 258], dtype=torch.uint16)
    state["complex"] = torch.tensor([1 + 2j], dtype=torch.complex64)
    widths = [4, 8, 2, 2, 4]
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state))) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            folder, _, key = name.partition("/")[2].partition("/")
            if folder == "byteorder":
                content = b"big"
            elif folder == "data":
                width = widths[int(key)]
                words = [content[i : i + width][::-1] for i in range(0, len(content), width)]
                content = b"".join(words)
            new.writestr(name, content)
    return result.getvalue()


def make() -> dict[str, bytes]:
    """The files by name."""
    linear = SimpleLinear().eval()
    state = {name: tensor.detach() for name, tensor in linear.state_dict().items()}
    example = torch.ones(1, 3)
    frozen = torch.jit.freeze(torch.jit.script(linear))
    return {
        "simple_linear": script(torch.jit.trace(linear, example)),
        "state_dict": saved(state),
        "nested": saved({"epoch": 3, "model": {"linear": {"weight": state["linear.weight"]}}}),
        "pairs": saved(list(state.items())),
        "legacy": saved({**state, "views": views()}, _use_new_zipfile_serialization=False),
        "dtypes": saved({str(dtype): torch.tensor([0.0, 1.0, 2.0]).to(dtype) for dtype in DTYPES}),
        "views": saved(views()),
        "values": saved(values()),
        "values4": saved(values(), pickle_protocol=4),
        "big_endian": big_endian(),
        "scripted": script(torch.jit.script(Scripted()), {"notes.txt": b"hello"}),
        "frozen": script(frozen),
        "varstore": script(torch.jit.script(VarStore())),
        "module": saved(linear),
    }


def main() -> None:
    torch.manual_seed(0)
    for name, content in make().items():
        path = ASSETS / f"{name}.pt.b64"
        path.write_bytes(base64.encodebytes(content))
        print(f"{path.name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
