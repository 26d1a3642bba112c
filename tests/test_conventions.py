"""What every package and every file of the repository keeps to."""

import ast
import os
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("te_tensor", "te_nn", "te_io", "te_optim")

# Made by tools, and not ours to check.
GENERATED = {".git", ".hypothesis", ".nox", ".venv", "build", "demo-output", "dist", "node_modules"}

# An address or a folder that holds on one machine only; the brackets let this file itself pass.
MACHINE_BOUND = re.compile(r"pypi\.org|python[h]osted|npm[j]s|(?<![\w.])/(wor[k]|opt/whee[l]s)\b")

# The contract of these methods is documented once, in Operation.
OPERATION_METHODS = {"forward", "backward", "backward_into"}


def folder_of(package: str) -> Path:
    return ROOT / "packages" / package.replace("_", "-")


def sources(package: str) -> list[Path]:
    return sorted((folder_of(package) / "src" / package).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_public(name: str) -> bool:
    return not name.startswith("_")


def declared_all(tree: ast.Module) -> set[str]:
    """The names in `__all__`, if it is there."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return set(ast.literal_eval(node.value))
    return set()


def undocumented(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring; magic methods need none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            yield from undocumented(child, prefix)
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not is_public(child.name) or is_variant(child):
                continue
            if ast.get_docstring(child) is None:
                yield f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{prefix}{child.name}.")


def is_variant(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the text stands elsewhere: at the property of a setter, the protocol of a stub."""
    names = {
        decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
        for decorator in node.decorator_list
    }
    return bool(names & {"overload", "setter", "deleter"}) or ast.unparse(node.body) == "..."


def text_files() -> Iterator[tuple[Path, str]]:
    """Every file of the repository that is text."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in GENERATED
            and not name.endswith("cache__")
            and not name.endswith("_cache")
        ]
        for name in names:
            path = Path(folder, name)
            if name == ".git":  # of a work tree beside the repository
                continue
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_exported_on_purpose(package: str) -> None:
    tree = parse(folder_of(package) / "src" / package / "__init__.py")
    listed = declared_all(tree)
    exported = {
        alias.asname or alias.name: alias.asname is not None
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if getattr(node, "module", None) != "__future__"
    }
    assert "__version__" in exported
    unmarked = {
        name
        for name, has_alias in exported.items()
        if is_public(name) and not has_alias and name not in listed
    }
    assert not unmarked, f"write `X as X` in {package}/__init__.py for {sorted(unmarked)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package: str) -> None:
    missing = []
    for path in sources(package):
        tree = parse(path)
        in_ops = path.parent.name == "ops"
        if ast.get_docstring(tree) is None:
            missing.append(shown(path))
        missing += [
            f"{shown(path)}: {name}"
            for name in undocumented(tree)
            if not (in_ops and name.rpartition(".")[2] in OPERATION_METHODS)
        ]
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_complete(package: str) -> None:
    folder = folder_of(package)
    assert (folder / "src" / package / "py.typed").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {folder.name}")
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()

    about = runpy.run_path(str(folder / "src" / package / "__about__.py"))
    changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {about['__version__']} " in changelog

    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == folder.name
    assert project["dynamic"] == ["version"]


def test_no_backward_in_te_nn() -> None:
    """Every differentiable primitive is an Operation of te-tensor."""
    found = [
        f"{shown(path)}:{node.lineno}"
        for path in sources("te_nn")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and node.name == "backward"
    ]
    assert found == []


def test_nothing_is_bound_to_one_machine() -> None:
    found = [
        f"{shown(path)}:{number}: {match.group()}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := MACHINE_BOUND.search(line))
    ]
    assert found == []
