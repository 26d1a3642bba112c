"""Load a transformer block from a safetensors file, and run it.

    python load_model.py model.safetensors
    python load_model.py rust.safetensors --transpose       # Linear weights stored [in, out]
    python load_model.py model.safetensors --prefix encoder.layers.0
    python load_model.py demo.safetensors --make-demo       # writes a file to try it on

The sizes of the block are read off the file; the options are for files that don't show them.
Names of the Rust original become those of te-nn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table

import te_tensor as te
from te_io import (
    FormatError,
    load_safetensors,
    presets,
    py_load_safetensors_into_module,
    save_safetensors,
)

try:
    from te_nn import BiasFunction, TransformerBlock, distances
except ModuleNotFoundError as error:
    if error.name != "te_nn":
        raise
    print("load_model.py needs te-nn: python -m pip install te-nn", file=sys.stderr)
    sys.exit(2)


class Sizes(NamedTuple):
    """What a TransformerBlock is made from."""

    d_model: int
    d_ff: int
    heads: int
    nl_oob: BiasFunction | None
    bias: bool


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    te.manual_seed(options.seed)
    try:
        if options.make_demo:
            make_demo(options.file, options.prefix, options.transpose)
        sizes = find_sizes(options)
        block = TransformerBlock(
            sizes.d_model, sizes.d_ff, sizes.heads, sizes.nl_oob, bias=sizes.bias
        )
        # Copies the values into the parameters that the block has; all of them, or none.
        py_load_safetensors_into_module(options.file, options.transpose, block, options.prefix)
        show(block, sizes, options)
    except (FormatError, OSError, ValueError) as error:
        fail(str(error))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load a transformer block and run it.")
    parser.add_argument("file", help="a .safetensors file")
    parser.add_argument("--transpose", action="store_true", help="Linear weights are [in, out]")
    parser.add_argument("--prefix", default="", help="what the block's names stand under")
    parser.add_argument("--d-model", type=int, help="features")
    parser.add_argument("--d-ff", type=int, help="features inside the feed-forward network")
    parser.add_argument("--heads", type=int, help="attention heads")
    choices = [member.name.lower() for member in BiasFunction]
    parser.add_argument(
        "--nl-oob", choices=[*choices, "none"], help="function of the distance bias"
    )
    parser.add_argument("--length", type=int, default=8, help="positions of the input to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the input to try")
    parser.add_argument(
        "--make-demo", action="store_true", help="first write the file, with random weights"
    )
    options = parser.parse_args(arguments)
    for name, least in (("d_model", 1), ("d_ff", 1), ("heads", 1), ("length", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} is {value}: expected at least {least}")
    return options


def fail(message: str) -> NoReturn:
    """One line on stderr, and exit code 2."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    print(f"load_model.py: {lines[0]} {'; '.join(lines[1:])}".rstrip(), file=sys.stderr)
    sys.exit(2)


def make_demo(file: str, prefix: str, in_out: bool) -> None:
    """Write a block with random weights, as a stranger's file would be."""
    if Path(file).exists():
        fail(f"{file} exists: --make-demo writes a new file only")
    path = f"{prefix.rstrip('.')}." if prefix else ""
    state = {}
    for name, tensor in TransformerBlock(16, 32, 2, BiasFunction.GAUSSIAN).state_dict().items():
        turned = in_out and tensor.ndim == 2 and name.endswith("weight")
        state[path + name] = tensor.T if turned else tensor
    save_safetensors(state, file, metadata={"made_by": "load_model.py --make-demo"})


def find_sizes(options: argparse.Namespace) -> Sizes:
    """The sizes given, and for the rest those that the file shows."""
    path = f"{options.prefix.rstrip('.')}." if options.prefix else ""
    state = load_safetensors(options.file)
    own = {name[len(path) :]: x for name, x in state.items() if name.startswith(path)}
    own = presets.RUST.apply(own, file=options.file)
    d_model, d_ff, heads = options.d_model, options.d_ff, options.heads

    weight = own.get("linear1.weight")
    if d_model is None or d_ff is None:
        if weight is None or weight.ndim != 2:
            fail(f"{options.file} has no {path}linear1.weight: give --d-model and --d-ff")
        bias = own.get("linear1.bias")
        rows, columns = weight.shape
        if not options.transpose and rows != columns and bias is not None and bias.size == columns:
            fail(f"{options.file} stores {path}linear1.weight as [in, out]: add --transpose")
        d_in, d_out = (rows, columns) if options.transpose else (columns, rows)
        d_model, d_ff = d_model or d_in, d_ff or d_out

    slopes = own.get("self_attn.nl_oob.slopes")
    if heads is None:
        if slopes is None:
            fail(f"{options.file} has no {path}self_attn.nl_oob.slopes: give --heads")
        heads = slopes.size

    if options.nl_oob == "none" or (options.nl_oob is None and slopes is None):
        nl_oob = None
    elif options.nl_oob is not None:
        nl_oob = BiasFunction.parse(options.nl_oob)
    else:
        config = own.get("self_attn.nl_oob.config")
        if config is None or config.size != 1:
            fail(f"{options.file} has no {path}self_attn.nl_oob.config: give --nl-oob")
        nl_oob = BiasFunction.parse(int(config.item()))
    return Sizes(d_model, d_ff, heads, nl_oob, "linear1.bias" in own)


def show(block: TransformerBlock, sizes: Sizes, options: argparse.Namespace) -> None:
    """A table of what was loaded, and what the block makes of a random input."""
    table = Table(title=f"{Path(options.file).name}: d_model {sizes.d_model}, d_ff {sizes.d_ff}")
    for column in ("name", "shape", "dtype", "mean", "trainable"):
        table.add_column(column, justify="right" if column == "mean" else "left")
    trainable = {name for name, x in block.named_parameters() if x.requires_grad}
    for name, tensor in block.state_dict().items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        mean = f"{tensor.data.mean():.4f}"
        table.add_row(name, shape, str(tensor.dtype), mean, "yes" if name in trainable else "no")
    console = Console()
    console.print(table)

    block.eval()
    x = te.randn(1, options.length, sizes.d_model)
    distance = None if sizes.nl_oob is None else distances.sequence(options.length)
    with te.no_grad():
        y = block(x, distance=distance)
    bias = "no distance bias" if sizes.nl_oob is None else f"{sizes.nl_oob.name.lower()} bias"
    console.print(f"forward, {sizes.heads} heads, {bias}: {x.shape} -> {y.shape}")
    values = y.data
    console.print(f"mean {values.mean():.6f}, standard deviation {values.std():.6f}")
    console.print("first values " + " ".join(f"{value:.4f}" for value in values.ravel()[:4]))


if __name__ == "__main__":
    main()
