"""The command line: `te-io convert`, `inspect`, `verify` and `diff`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from .__about__ import __version__
from .archive import open_archive
from .checkpointer import read_checkpoint
from .convert import compare, convert_file
from .errors import FormatError
from .loading import Contents, Loaded, load_any, read_contents

#: Seconds of work after which a bar appears.
PATIENCE = 1.0

_DTYPES = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
}
_EXIT_DIFFERENT, _EXIT_ERROR, _EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; by default those of this process.

    Returns:
        The exit code: 0; 1 where `diff` found differences; 2 after an error, which is one line on
        stderr; 130 after an interruption.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            if not options.debug:
                warnings.simplefilter("ignore")  # PyTorch's own
            code: int = options.run(options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `te-io inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if options.debug:
            raise
        return _EXIT_INTERRUPTED
    except (FormatError, OSError, ValueError, ModuleNotFoundError, MemoryError) as error:
        if options.debug:
            raise
        print(f"te-io: {_one_line(error)}", file=sys.stderr)
        return _EXIT_ERROR


# -- arguments ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, too, and exit code 2."""
        self.exit(_EXIT_ERROR, f"te-io: {_safe(message)} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="te-io", description="Safetensors and PyTorch files, without PyTorch.")
    parser.add_argument("--version", action="version", version=f"te-io {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="write a file's tensors as safetensors")
    convert.add_argument("source", metavar="IN", help="a PyTorch or safetensors file")
    convert.add_argument("target", metavar="OUT", help="the safetensors file to write")
    convert.add_argument(
        "--transpose",
        action="store_true",
        help="turn Linear weights stored [in, out], and give the Rust original's names ours",
    )
    convert.add_argument("--dtype", choices=list(_DTYPES), help="store all floats so")
    convert.add_argument("--key", help="where in a PyTorch file the state dict is")
    convert.add_argument(
        "--shard-size", metavar="SIZE", help="the most bytes of tensors in a file, such as 500MB"
    )
    convert.add_argument(
        "--with-torch",
        action="store_true",
        help="let PyTorch unpickle the file, which runs whatever code the file brings",
    )
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser("inspect", help="list names, shapes, dtypes and bytes")
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--key", help="where in a PyTorch file the state dict is")
    inspect.add_argument("--json", action="store_true", help="for programs")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check a file; the exit code tells")
    verify.add_argument("file", metavar="FILE", help="a file, or the folder of a checkpoint")
    verify.add_argument("--key", help="a state dict in a PyTorch file that has to be there")
    verify.set_defaults(run=_verify)

    diff = commands.add_parser("diff", help="compare two files; exit code 1 if they differ")
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")
    diff.set_defaults(run=_diff)

    parser.set_defaults(debug=False)
    for command in (parser, convert, inspect, verify, diff):
        command.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="errors with their traceback",
        )
    return parser


# -- commands -------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> int:
    with _Bar() as bar:
        convert_file(
            options.source,
            options.target,
            transpose=options.transpose,
            dtype=_DTYPES.get(options.dtype),
            key=options.key,
            max_shard_size=options.shard_size,
            with_torch=options.with_torch,
            progress=bar,
        )
    with open_archive(options.target) as archive:
        size = sum(archive.entry(name).nbytes for name in archive)
        print(f"{archive.name}: {len(archive)} tensors, {_size(size)}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    loaded = load_any(options.file, key=options.key)
    if options.json:
        print(json.dumps(_description(loaded), indent=1))
        return 0
    table = Table("name", "shape", "dtype", "bytes")
    table.columns[3].justify = "right"
    for column in table.columns:
        column.overflow = "fold"
    for name, tensor in loaded.tensors.items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(_safe(name)), shape, str(tensor.dtype), f"{tensor.nbytes:,}")
    console = _console()
    console.print(table)
    numbers = sum(tensor.size for tensor in loaded.tensors.values())
    size = sum(tensor.nbytes for tensor in loaded.tensors.values())
    summary = f"{loaded.format}, {len(loaded.tensors)} tensors, {numbers:,} numbers, {_size(size)}"
    console.print(Text(summary))
    for key, value in loaded.metadata.items():
        console.print(Text(_safe(f"{key}: {value}")))
    return 0


def _description(loaded: Loaded) -> dict[str, object]:
    return {
        "file": loaded.name,
        "format": loaded.format,
        "metadata": loaded.metadata,
        "tensors": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "bytes": tensor.nbytes,
            }
            for name, tensor in loaded.tensors.items()
        ],
    }


def _verify(options: argparse.Namespace) -> int:
    path = Path(options.file)
    if path.is_dir() and options.key is None:
        checkpoint = read_checkpoint(path)
        for name in checkpoint.files:
            load_any(path / name)
        print(_safe(f"{path}: whole, a checkpoint of step {checkpoint.step}"))
        return 0
    if options.key is None:
        contents = read_contents(path)
    else:
        loaded = load_any(path, key=options.key)
        contents = Contents(loaded.format, list(loaded.tensors.values()), 0)
    size = sum(tensor.nbytes for tensor in contents.tensors)
    summary = f"{path}: whole, {contents.format}, {len(contents.tensors)} tensors, {_size(size)}"
    if contents.opaque:
        summary += f", {contents.opaque} objects of classes that aren't read"
    print(_safe(summary))
    return 0


def _diff(options: argparse.Namespace) -> int:
    first, second = load_any(options.first), load_any(options.second)
    differences = compare(first.tensors, second.tensors)
    if not differences:
        print(f"the same {len(first.tensors)} tensors")
        return 0
    table = Table("name", "differs in", "A", "B", "greatest difference")
    for column in table.columns:
        column.overflow = "fold"
    for found in differences:
        only_second = found.what == "only in the second"
        sides = ("", found.first) if only_second else (found.first, found.second)
        greatest = "" if found.greatest is None else f"{found.greatest:.6g}"
        table.add_row(Text(_safe(found.name)), found.what, *sides, greatest)
    console = _console()
    console.print(table)
    names = {*first.tensors, *second.tensors}
    console.print(Text(f"{len(differences)} of {len(names)} tensors differ"))
    return _EXIT_DIFFERENT


# -- what is shown --------------------------------------------------------------------------


class _Bar:
    """A progress bar on stderr, once the work has taken a while."""

    def __init__(self) -> None:
        self.begin = monotonic()
        self.progress: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self.progress is None:
            if monotonic() - self.begin < PATIENCE:
                return
            self.progress = Progress(
                TextColumn("writing"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.progress.start()
            self.task = self.progress.add_task("", total=total)
        self.progress.update(self.task, completed=done)

    def __exit__(self, *reason: object) -> None:
        if self.progress is not None:
            self.progress.stop()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `main`, where rich would exit with 1."""
        raise BrokenPipeError


def _console() -> Console:
    """The terminal; a pipe or a file gets lines that are long enough."""
    console = _Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = _Console(width=200)
    return console


def _safe(text: str) -> str:
    """A text from a file without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join([*lines[:1], "; ".join(lines[1:])]).strip()
    return _safe(text) or type(error).__name__


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
