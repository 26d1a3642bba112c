"""The block as an ONNX graph, in ONNX Runtime.

Its own MultiHeadAttention, and ONNX's Attention of opset 23, took the same time as the products
and the softmax written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ..machine import cpus
from . import common
from .common import Array, Size

OPSET = 20  # the first with Gelu


class Graph:
    """Nodes in order, each with one name for its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name


def model(size: Size) -> onnx.ModelProto:
    """The graph from x (B, S, D) and phi of the distances (S, S) to y (B, S, D)."""
    named = common.weights(size)
    graph = Graph()

    def norm(name: str, x: str) -> str:
        parts = [graph.constant(f"{name}.{p}", named[f"{name}.{p}"]) for p in ("weight", "bias")]
        return graph.node("LayerNormalization", [x, *parts], axis=-1, epsilon=1e-5)

    def linear(name: str, x: str, weight: Array, bias: Array) -> str:
        product = graph.node("MatMul", [x, graph.constant(f"{name}.weight", weight.T)])
        return graph.node("Add", [product, graph.constant(f"{name}.bias", bias)])

    def own_linear(name: str, x: str) -> str:
        return linear(name, x, named[f"{name}.weight"], named[f"{name}.bias"])

    attended = own_linear("self_attn.o_proj", _attention(graph, size, named, norm, linear))
    x = graph.node("Add", ["x", attended])
    hidden = graph.node("Gelu", [own_linear("linear1", norm("norm2", x))], approximate="none")
    graph.nodes.append(helper.make_node("Add", [x, own_linear("linear2", hidden)], ["y"]))
    shape = [size.batch, size.length, size.d_model]
    given = [("x", shape), ("phi", [size.length, size.length])]
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "block",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in given],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(made)
    return made


def _attention(
    graph: Graph,
    size: Size,
    named: dict[str, Array],
    norm: Callable[[str, str], str],
    linear: Callable[[str, str, Array, Array], str],
) -> str:
    """Attention up to the projection of the result, (B, S, D)."""
    head = size.d_model // size.heads
    fused = [common.fuse(named, part) for part in ("weight", "bias")]
    qkv = linear("qkv", norm("norm1", "x"), *fused)
    heads = graph.constant("heads", np.array([0, 0, size.heads, head]))
    joined = graph.constant("joined", np.array([0, 0, size.d_model]))
    slopes = graph.constant("slopes", named["self_attn.nl_oob.slopes"])
    thirds = [f"{p}_flat" for p in "qkv"]
    graph.nodes.append(helper.make_node("Split", [qkv], thirds, axis=-1, num_outputs=3))
    q, k, v = (
        graph.node("Transpose", [graph.node("Reshape", [third, heads])], perm=order)
        for third, order in zip(thirds, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
    )
    scale = graph.constant("scale", np.array(head**-0.5, np.float32))
    scores = graph.node("Mul", [graph.node("MatMul", [q, k]), scale])
    biased = graph.node("Sub", [scores, graph.node("Mul", [slopes, "phi"])])
    mixed = graph.node("MatMul", [graph.node("Softmax", [biased], axis=-1), v])
    return graph.node("Reshape", [graph.node("Transpose", [mixed], perm=(0, 2, 1, 3)), joined])


def inference(size: Size) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        model(size).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x, _, distance = common.inputs(size)
    feed = {"x": x, "phi": np.log1p(distance)}
    return lambda: session.run(None, feed)[0]
