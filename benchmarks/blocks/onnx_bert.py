"""A stack of BERT's blocks as an ONNX graph, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from ..machine import cpus
from . import common
from .common import Array, Size
from .onnx_block import OPSET, Graph


def _norm(graph: Graph, named: dict[str, Array], prefix: str, name: str, x: str) -> str:
    parts = [
        graph.constant(f"{prefix}{name}.{p}", named[f"{name}.{p}"]) for p in ("weight", "bias")
    ]
    return graph.node("LayerNormalization", [x, *parts], axis=-1, epsilon=1e-12)


def _linear(graph: Graph, name: str, x: str, weight: Array, bias: Array) -> str:
    product = graph.node("MatMul", [x, graph.constant(f"{name}.weight", weight.T)])
    return graph.node("Add", [product, graph.constant(f"{name}.bias", bias)])


def _layer(graph: Graph, named: dict[str, Array], prefix: str, name: str, x: str) -> str:
    weight, bias = named[f"{name}.weight"], named[f"{name}.bias"]
    return _linear(graph, f"{prefix}{name}", x, weight, bias)


def _attention(graph: Graph, size: Size, named: dict[str, Array], prefix: str, x: str) -> str:
    head = size.d_model // size.heads
    qkv = _linear(
        graph, f"{prefix}qkv", x, *(common.fuse(named, part) for part in ("weight", "bias"))
    )
    heads = graph.constant(f"{prefix}heads", np.array([0, 0, size.heads, head]))
    joined = graph.constant(f"{prefix}joined", np.array([0, 0, size.d_model]))
    thirds = [f"{prefix}{p}_flat" for p in "qkv"]
    graph.nodes.append(helper.make_node("Split", [qkv], thirds, axis=-1, num_outputs=3))
    q, k, v = (
        graph.node("Transpose", [graph.node("Reshape", [third, heads])], perm=order)
        for third, order in zip(thirds, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
    )
    scale = graph.constant(f"{prefix}scale", np.array(head**-0.5, np.float32))
    scores = graph.node("Mul", [graph.node("MatMul", [q, k]), scale])
    mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), v])
    flat = graph.node("Reshape", [graph.node("Transpose", [mixed], perm=(0, 2, 1, 3)), joined])
    named_part = (named[f"self_attn.o_proj.{part}"] for part in ("weight", "bias"))
    return _linear(graph, f"{prefix}o_proj", flat, *named_part)


def model(size: Size, layers: int) -> onnx.ModelProto:
    """The graph from x to y, both (B, S, D)."""
    graph, x = Graph(), "x"
    for number, named in enumerate(common.stack_weights(size, layers)):
        prefix = f"{number}."
        attended = _attention(graph, size, named, prefix, x)
        x = _norm(graph, named, prefix, "norm1", graph.node("Add", [x, attended]))
        hidden = graph.node(
            "Gelu", [_layer(graph, named, prefix, "linear1", x)], approximate="none"
        )
        fed = _layer(graph, named, prefix, "linear2", hidden)
        x = _norm(graph, named, prefix, "norm2", graph.node("Add", [x, fed]))
    graph.nodes.append(helper.make_node("Identity", [x], ["y"]))
    shape = [size.batch, size.length, size.d_model]
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    found = helper.make_model(
        helper.make_graph(graph.nodes, "bert", [given], [made], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(found)
    return found


def inference(size: Size, layers: int) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        model(size, layers).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = common.inputs(size)[0]
    return lambda: session.run(None, {"x": x})[0]
