"""A picture of a graph, for Graphviz."""

from __future__ import annotations

from .checks import check_each
from .modes import trace as trace
from .operation import Operation
from .tensor import Tensor


def to_dot(tensor: Tensor) -> str:
    r"""The graph that a tensor came from, in Graphviz's language.

    Boxes are operations, ellipses leaves; edges carry the shapes that pass along them.

    Args:
        tensor: the end of the graph.

    Returns:
        Text for `dot -Tsvg`.

    Example:
        >>> import te_tensor as te
        >>> x = te.ones(2, requires_grad=True)
        >>> print(te.to_dot(x * x))
        digraph {
          n0 [label="Tensor\n(2,) float32" shape=ellipse];
          n1 [label="Mul" shape=box];
          n0 -> n1 [label="(2,)"];
          n0 -> n1 [label="(2,)"];
          n2 [label="result\n(2,) float32" shape=ellipse];
          n1 -> n2 [label="(2,)"];
        }
    """
    check_each("to_dot: argument", [tensor], Tensor)
    names: dict[int, str] = {}
    lines: list[str] = []

    def node(key: object, label: str, shape: str) -> None:
        names[id(key)] = f"n{len(names)}"
        lines.append(f'  {names[id(key)]} [label="{label}" shape={shape}];')

    for operation in _oldest_first(tensor):
        for leaf in operation.inputs:
            if leaf.creator is None and id(leaf) not in names:
                node(leaf, f"{type(leaf).__name__}\\n{leaf.shape} {leaf.dtype}", "ellipse")
        node(operation, type(operation).__name__, "box")
        for source in operation.inputs:
            start = names[id(source if source.creator is None else source.creator)]
            lines.append(f'  {start} -> {names[id(operation)]} [label="{source.shape}"];')
    node(tensor, f"result\\n{tensor.shape} {tensor.dtype}", "ellipse")
    if tensor.creator is not None:
        start, end = names[id(tensor.creator)], names[id(tensor)]
        lines.append(f'  {start} -> {end} [label="{tensor.shape}"];')
    return "\n".join(["digraph {", *lines, "}"])


def _oldest_first(tensor: Tensor) -> list[Operation]:
    """Every operation the tensor came from, each after those it used."""
    found = [tensor.creator] if tensor.creator is not None else []
    seen = set(found)
    for operation in found:  # grows as it is read
        for source in operation.inputs:
            if source.creator is not None and source.creator not in seen:
                seen.add(source.creator)
                found.append(source.creator)
    return sorted(found, key=lambda operation: operation.sequence)
