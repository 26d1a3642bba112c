"""Who may import whom: between the packages, and between the floors inside each of them."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[1] / "packages"

# Which siblings a package may import.
SIBLINGS: dict[str, set[str]] = {
    "te_tensor": set(),
    "te_nn": {"te_tensor"},
    "te_optim": {"te_tensor"},
    "te_io": {"te_tensor"},
}

# Lowest floor first; modules on one floor stand side by side and don't import each other. A module
# that isn't in the table fails the test, and so does a name in it that no module has.
FLOORS: dict[str, list[str]] = {
    "te_tensor": [
        "__about__",
        "dtypes",
        "checks",
        "memory",
        "conversion",
        "executable",
        "crew",
        "parallel",
        "machine/assembler machine/formula",
        "machine/target",
        "machine/compiler",
        "machine/kernel machine/passes",
        "machine/product machine/program machine/elementary",
        "machine/transposition machine/calls",
        "machine/tiles",
        "machine/tile_layout machine/tile_multiply",
        "machine/tile_templates",
        "machine/nest_calls",
        "machine/nest_parts",
        "machine/nest",
        "machine/chain",
        "machine/batch machine/correlation machine/pooling",
        "machine/placement",
        "machine/tile_images",
        "machine/tile_correlation machine/tile_places machine/tile_products",
        "machine/__init__",
        "storage hooks",
        "blas_library",
        "blas",
        "modes silence",
        "operation",
        "autograd execution plan recording",
        "recorder",
        "ops/_blocks ops/_gates ops/_kernels ops/_windows ops/_units ops/_tiled",
        "ops/_columns ops/_direct ops/_distance ops/_chained",
        "ops/_at_once ops/_sequence ops/_weights",
        "ops/_in_blocks ops/_nested ops/_one_row",
        "ops/_long_rows",
        "ops/_nested_rows",
        "ops/_block_grads ops/_planned ops/_recorded ops/_recorded_images",
        "ops/_recorded_rows",
        "ops/*",
        "ops/__init__",
        "tensor",
        "random",
        "creation functional/_common",
        "functional/padding",
        "functional/*",
        "functional/__init__",
        "subgraph",
        "gradcheck graph profiler",
        "__init__",
    ],
    "te_nn": [
        "__about__",
        "structure",
        "bias_function checks hooks loading",
        "module",
        "initialize recordings",
        "sequence_recording",
        "linear convolution pooling normalization activation dropout embedding recurrent loss"
        " container",
        "cache distances nl_oob rotary",
        "attention",
        "stack_plan",
        "block_plan",
        "block_recording",
        "transformer",
        "plot summary",
        "__init__",
    ],
    "te_optim": [
        "__about__",
        "arena checks formula",
        "direct",
        "gradients plan",
        "optimizer",
        "sgd adam rmsprop adagrad clip ema",
        "schedule",
        "decay cycle compose",
        "plateau",
        "distributed/waiting distributed/library",
        "distributed/communicator",
        "distributed/launch distributed/rank_order distributed/buckets",
        "distributed/reducer distributed/agreement distributed/sampler distributed/checkpoints",
        "distributed/shards",
        "distributed/optimizer",
        "distributed/__init__",
        "__init__",
    ],
    "te_io": [
        "__about__",
        "errors atomic",
        "state_dict header pickle_values torch_source",
        "presets tree archive pickle_machine torch_tensors zip_directory",
        "writing torch_names",
        "torch_container",
        "torchscript script_writing",
        "script_arguments script_trace",
        "script_code",
        "script_attention",
        "script_rules",
        "safetensors torch_archive script_export",
        "checkpointer",
        "loading",
        "convert",
        "cli",
        "__main__",
        "__init__",
    ],
}


def source(package: str) -> Path:
    """The folder that holds a package's modules."""
    return PACKAGES / package.replace("_", "-") / "src" / package


def modules(folder: Path) -> dict[str, Path]:
    """The modules under a folder, by their path without the suffix: `ops/loss`, `__init__`."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
    }


def floor_of(module: str, floors: list[str]) -> int | None:
    """The floor that a module stands on; its own name goes before its folder's wildcard."""
    for room in (module, f"{module.rpartition('/')[0]}/*"):
        for number, floor in enumerate(floors):
            if room in floor.split():
                return number
    return None


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs, in functions too; those for the type checker alone don't count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for statement in node.orelse:
                yield from imports(ast.Module([statement], []))
        else:
            yield from imports(node)


def imported(path: Path, package: str, folder: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, a name per `from` alias."""
    parents = [package, *path.relative_to(folder).parent.parts]
    for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            bases = [alias.name for alias in node.names]
        else:
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            bases = [f"{base}.{alias.name}" for alias in node.names]
        for name in bases:
            yield node.lineno, name


def target_of(name: str, present: dict[str, Path]) -> str:
    """The module of the package that holds a dotted name: the longest part that is a file."""
    parts = name.split(".")[1:]
    while parts:
        for candidate in ("/".join(parts), "/".join([*parts, "__init__"])):
            if candidate in present:
                return candidate
        parts.pop()
    return "__init__"


def violations(package: str, folder: Path, floors: list[str], siblings: set[str]) -> list[str]:
    """What is wrong with a package's imports, a line each."""
    present = modules(folder)
    found = []
    for module, path in present.items():
        floor = floor_of(module, floors)
        if floor is None:
            found.append(f"{package}/{module}.py stands on no floor of the table")
            continue
        for line, name in imported(path, package, folder):
            where = f"{package}/{module}.py:{line}"
            top = name.partition(".")[0]
            if top in SIBLINGS and top != package and top not in siblings:
                found.append(f"{where} imports {name}, which {package} may not depend on")
            if top != package:
                continue
            target = target_of(name, present)
            below = floor_of(target, floors)
            if target != module and below is not None and below >= floor:
                found.append(f"{where} imports {target}, which is not below it")
    return found + [
        f"{package}/{room}.py has a place in the table, and is no file"
        for room in " ".join(floors).split()
        if not any(fnmatchcase(module, room) for module in present)
    ]


def rooms_of_table(text: str) -> list[str]:
    """The modules that a Markdown table names in its first column, row by row."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([\w/*]+)\.py`", row)]


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_imports_go_down_only(package: str) -> None:
    folder = source(package)
    assert modules(folder), f"{folder} holds no modules"
    assert violations(package, folder, FLOORS[package], SIBLINGS[package]) == []


def test_the_table_for_readers_agrees() -> None:
    text = (PACKAGES.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = rooms_of_table(text[text.index("| floor (`src/te_tensor/`)") :])
    rooms = " ".join(FLOORS["te_tensor"]).split()
    assert sorted(table) == sorted(room for room in rooms if "__" not in room)
    floors = [floor_of(room, FLOORS["te_tensor"]) for room in table]
    assert floors == sorted(floors), "a file stands above one of a lower floor"


def test_wrong_imports_are_found(tmp_path: Path) -> None:
    """The walk itself: upward, sideways, relative, local and foreign imports are all reported."""
    files = {
        "__init__": "from te_nn.low import f as f",
        "low": "def f():\n    import te_nn.high",
        "ops/__init__": "from . import left as left",
        "ops/left": "from .right import g\nfrom ..low import f",
        "ops/right": "from te_nn import f, low",
        "high": "import te_io\nimport te_tensor.ops\nimport numpy",
        "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from te_nn import high",
        "stray": "",
    }
    for module, text in files.items():
        path = tmp_path / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    floors = ["low", "typed", "ops/*", "ops/__init__", "high planned", "new/*", "__init__"]
    assert violations("te_nn", tmp_path, floors, {"te_tensor"}) == [
        "te_nn/high.py:1 imports te_io, which te_nn may not depend on",
        "te_nn/low.py:2 imports high, which is not below it",
        "te_nn/ops/left.py:1 imports ops/right, which is not below it",
        "te_nn/ops/right.py:1 imports __init__, which is not below it",
        "te_nn/stray.py stands on no floor of the table",
        "te_nn/planned.py has a place in the table, and is no file",
        "te_nn/new/*.py has a place in the table, and is no file",
    ]
