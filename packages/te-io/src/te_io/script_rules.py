"""TorchScript code for operations: a table with one rule for each.

A rule takes a `Call`, which knows the names of the inputs and what the operation was made with,
and returns an expression for the output, or one for each output. For a new operation add one
function with `@rule(TheOperation)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from te_tensor.dtypes import FLOATS, INTEGERS, float32, int64
from te_tensor.operation import Operation
from te_tensor.ops.activation import LeakyReLU, PReLU, ReLU, Sigmoid, SiLU, Tanh
from te_tensor.ops.arithmetic import Add, Div, Mul, Pow, Sub
from te_tensor.ops.attention import Attention
from te_tensor.ops.cast import Cast
from te_tensor.ops.channel_normalization import GroupNorm, RunningNorm
from te_tensor.ops.convolution import Convolution
from te_tensor.ops.elementwise import Abs, Cos, Erf, Exp, Log, Log1p, Neg, Sin, Sqrt
from te_tensor.ops.gelu import GELU
from te_tensor.ops.indexing import Embedding, Gather, Slice
from te_tensor.ops.linalg import Linear, Linears, MatMul
from te_tensor.ops.normalization import LayerNorm, RMSNorm
from te_tensor.ops.padding import MODES, Pad
from te_tensor.ops.pooling import AdaptiveAvgPool, AvgPool, MaxPool
from te_tensor.ops.recurrent import GRU, LSTM, RNN
from te_tensor.ops.reduction import Max, Mean, Min, Std, Sum, Var
from te_tensor.ops.rotary import Rotary
from te_tensor.ops.scan import CumSum
from te_tensor.ops.selection import Clip, Maximum, Minimum, Where
from te_tensor.ops.shape import Concat, Expand, Permute, Reshape, Split, Stack
from te_tensor.ops.softmax import LogSoftmax, Softmax

from .script_attention import attention
from .script_code import Call, Rule, listed, real
from .script_writing import quoted


def _function(name: str) -> Rule:
    """The rule for what PyTorch has under a name, with the same inputs."""
    return lambda call: f"torch.{name}({', '.join(call.inputs)})"


#: The rules. What isn't here can't be exported: operations of training (losses, dropout, batch
#: norm by the batch's own statistics).
RULES: dict[type[Operation], Rule] = {
    Abs: _function("abs"),
    Add: _function("add"),
    Attention: attention,
    Cos: _function("cos"),
    Div: _function("div"),
    Erf: _function("erf"),
    Exp: _function("exp"),
    Log: _function("log"),
    Log1p: _function("log1p"),
    MatMul: _function("matmul"),
    Maximum: _function("maximum"),
    Minimum: _function("minimum"),
    Mul: _function("mul"),
    Neg: _function("neg"),
    Pow: _function("pow"),
    ReLU: _function("relu"),
    Sigmoid: _function("sigmoid"),
    SiLU: _function("silu"),
    Sin: _function("sin"),
    Sqrt: _function("sqrt"),
    Sub: _function("sub"),
    Tanh: _function("tanh"),
    Where: _function("where"),
}


def rule(*operations: type[Operation]) -> Callable[[Rule], Rule]:
    """Enter a function into the table, as the rule for some operations."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return enter


# -- elementwise ----------------------------------------------------------------------------


@rule(LeakyReLU)
def _leaky_relu(call: Call) -> str:
    return f"torch.leaky_relu({call.inputs[0]}, {real(call.attribute('alpha'))})"


@rule(PReLU)
def _prelu(call: Call) -> str:
    x, weight = call.inputs
    channels = [1, -1, *[1] * (call.ndim() - 2)] if call.ndim() > 1 else [-1]
    if call.ndim(1) == 0 or call.fixed(1, 0) == 1:
        channels = []
    shaped = call.let(f"torch.reshape({weight}, {listed(channels)})")
    return f"torch.where(torch.gt({x}, 0), {x}, torch.mul({x}, {shaped}))"


@rule(GELU)
def _gelu(call: Call) -> str:
    return f"torch.gelu({call.inputs[0]}, approximate={quoted(call.attribute('approximate'))})"


@rule(Clip)
def _clip(call: Call) -> str:
    text, *limits = call.inputs
    for name, limit in zip(call.attribute("limits"), limits, strict=True):
        text = f"torch.{'maximum' if name == 'low' else 'minimum'}({text}, {limit})"
    return text


@rule(Cast)
def _cast(call: Call) -> str:
    return f"torch.to({call.inputs[0]}, {call.code.dtype(call.attribute('dtype'))})"


# -- linear maps and lookups ----------------------------------------------------------------


def _optional(inputs: tuple[str, ...], count: int) -> str:
    """The first inputs as arguments, None for those that aren't there."""
    return ", ".join([*inputs, *["None"] * count][:count])


@rule(Linear)
def _linear(call: Call) -> str:
    if not call.attribute("residual"):
        return f"torch.linear({_optional(call.inputs, 3)})"
    *inputs, residual = call.inputs
    return f"torch.add(torch.linear({_optional(tuple(inputs), 3)}), {residual})"


@rule(Linears)
def _linears(call: Call) -> list[str]:
    count = call.attribute("count")
    x, weights, biases = call.inputs[0], call.inputs[1 : count + 1], call.inputs[count + 1 :]
    return [
        f"torch.linear({_optional((x, weight, *biases[i : i + 1]), 3)})"
        for i, weight in enumerate(weights)
    ]


@rule(Embedding)
def _embedding(call: Call) -> str:
    weight, indices = call.inputs
    if call.dtype(1) != int64:
        indices = f"torch.to({indices}, {call.code.dtype(int64)})"
    return f"torch.embedding({weight}, {indices}, -1, False, False)"


# -- images ---------------------------------------------------------------------------------


@rule(Convolution)
def _convolution(call: Call) -> str:
    x, padding = call.inputs[0], call.attribute("padding")
    if any(before != after for before, after in padding):
        ends = [end for pair in reversed(padding) for end in pair]
        x, padding = (
            call.let(f"torch.constant_pad_nd({x}, {listed(ends)}, 0)"),
            [(0, 0)] * len(padding),
        )
    settings = (call.attribute("stride"), [p for p, _ in padding], call.attribute("dilation"))
    inputs = _optional((x, *call.inputs[1:]), 3)
    lists = ", ".join(map(listed, settings))
    return f"torch.conv{len(padding)}d({inputs}, {lists}, {call.attribute('groups')})"


@rule(MaxPool)
def _max_pool(call: Call) -> str:
    names = ("kernel", "stride", "padding", "dilation")
    lists = ", ".join(listed(call.attribute(name)) for name in names)
    axes = len(call.attribute("kernel"))
    return f"torch.max_pool{axes}d({call.inputs[0]}, {lists}, {call.attribute('ceil_mode')})"


@rule(AvgPool)
def _avg_pool(call: Call) -> str:
    x = call.inputs[0]
    lists = [list(call.attribute(name)) for name in ("kernel", "stride", "padding")]
    options = ", ".join(
        str(call.attribute(n)) for n in ("ceil_mode", "count_include_pad", "divisor")
    )
    if len(lists[0]) == 2:
        return f"torch.avg_pool2d({x}, {', '.join(map(listed, lists))}, {options})"
    # Only the one for two axes takes a divisor.
    rows = [[first, *rest] for first, rest in zip((1, 1, 0), lists, strict=True)]
    image = call.let(f"torch.unsqueeze({x}, -2)")
    return (
        f"torch.squeeze(torch.avg_pool2d({image}, {', '.join(map(listed, rows))}, {options}), -2)"
    )


@rule(AdaptiveAvgPool)
def _adaptive_avg_pool(call: Call) -> str:
    size = call.attribute("size")
    lengths = [
        call.fixed(0, axis) if length is None else length
        for axis, length in enumerate(size, start=-len(size))
    ]
    return f"torch.adaptive_avg_pool{len(size)}d({call.inputs[0]}, {listed(lengths)})"


@rule(Pad)
def _pad(call: Call) -> str:
    x, padding = call.inputs[0], call.attribute("padding")
    if call.attribute("mode") == "constant":
        ends = [end for pair in reversed(padding) for end in pair]
        value = call.attribute("value")
        text = real(value) if call.dtype() in FLOATS else str(int(value))
        return f"torch.constant_pad_nd({x}, {listed(ends)}, {text})"
    for axis, pair in enumerate(padding, start=-len(padding)):
        mode: Any = MODES[call.attribute("mode")]
        places = np.pad(np.arange(call.fixed(0, axis)), pair, mode=mode)
        x = call.let(f"torch.index_select({x}, {axis}, {call.constant(places)})")
    return x


# -- normalization --------------------------------------------------------------------------


@rule(LayerNorm)
def _layer_norm(call: Call) -> str:
    axes = range(-call.attribute("axes"), 0)
    shape = listed([call.fixed(0, axis) for axis in axes])
    weights, eps = _optional(call.inputs[1:], 2), real(call.attribute("eps"))
    return f"torch.layer_norm({call.inputs[0]}, {shape}, {weights}, {eps}, False)"


@rule(RMSNorm)
def _rms_norm(call: Call) -> str:
    x, *weight = call.inputs
    axes = listed(range(-call.attribute("axes"), 0))
    square = call.let(f"torch.mean(torch.mul({x}, {x}), {axes}, True, dtype=None)")
    scaled = f"torch.mul({x}, torch.rsqrt(torch.add({square}, {real(call.attribute('eps'))})))"
    return f"torch.mul({scaled}, {weight[0]})" if weight else scaled


@rule(RunningNorm)
def _running_norm(call: Call) -> str:
    x, mean, variance, *affine = call.inputs
    weights = _optional(tuple(affine), 2)
    eps = real(call.attribute("eps"))
    return f"torch.batch_norm({x}, {weights}, {mean}, {variance}, False, 0.0, {eps}, False)"


@rule(GroupNorm)
def _group_norm(call: Call) -> str:
    groups, eps = call.attribute("groups"), real(call.attribute("eps"))
    weights = _optional(call.inputs[1:], 2)
    return f"torch.group_norm({call.inputs[0]}, {groups}, {weights}, {eps}, False)"


@rule(Softmax, LogSoftmax)
def _softmax(call: Call) -> str:
    name = "softmax" if isinstance(call.operation, Softmax) else "log_softmax"
    return f"torch.{name}({call.inputs[0]}, {call.attribute('axis')}, None)"


# -- reductions -----------------------------------------------------------------------------


def _over(call: Call) -> tuple[str, bool]:
    """The axes of a reduction, and whether they stay."""
    axes = call.attribute("axes")
    if not axes and call.ndim():
        raise call.error("over no axes isn't supported")
    return listed(axes), call.attribute("keepdims")


@rule(Sum, Mean)
def _sum(call: Call) -> str:
    x, (axes, keep) = call.inputs[0], _over(call)
    if isinstance(call.operation, Sum):
        return f"torch.sum({x}, {axes}, {keep}, dtype=None)"
    dtype = "None" if call.dtype() in FLOATS else call.code.dtype(float32)
    return f"torch.mean({x}, {axes}, {keep}, dtype={dtype})"


@rule(Max, Min)
def _extreme(call: Call) -> str:
    axes, keep = _over(call)
    name = "amax" if isinstance(call.operation, Max) else "amin"
    return f"torch.{name}({call.inputs[0]}, {axes}, {keep})"


@rule(Var, Std)
def _variance(call: Call) -> str:
    axes, keep = _over(call)
    name = "std" if isinstance(call.operation, Std) else "var"
    correction = real(call.attribute("correction"))
    return f"torch.{name}({call.inputs[0]}, {axes}, correction={correction}, keepdim={keep})"


@rule(CumSum)
def _cumsum(call: Call) -> str:
    return f"torch.cumsum({call.inputs[0]}, {call.attribute('axis')})"


# -- shapes ---------------------------------------------------------------------------------


@rule(Reshape)
def _reshape(call: Call) -> str:
    return f"torch.reshape({call.inputs[0]}, {listed(call.result_shape())})"


@rule(Expand)
def _expand(call: Call) -> str:
    return f"torch.expand({call.inputs[0]}, {listed(call.result_shape())}, implicit=False)"


@rule(Permute)
def _permute(call: Call) -> str:
    return f"torch.permute({call.inputs[0]}, {listed(call.attribute('order'))})"


@rule(Concat)
def _concat(call: Call) -> str:
    return f"torch.cat({listed(call.inputs)}, {call.attribute('axis')})"


@rule(Stack)
def _stack(call: Call) -> str:
    return f"torch.stack({listed(call.inputs)}, {call.attribute('axis')})"


@rule(Split)
def _split(call: Call) -> list[str]:
    axis = call.attribute("axis")
    runs = [[shape[axis] for shape in shapes] for shapes in call.runs("shapes")]
    if len({len(run) for run in runs}) > 1:
        raise call.error("makes another number of parts at other batch sizes")
    sizes = [call.number(values) for values in zip(*runs, strict=True)]
    parts = call.let(f"torch.split_with_sizes({call.inputs[0]}, {listed(sizes)}, {axis})")
    return [f"{parts}[{i}]" for i in range(len(sizes))]


@rule(Slice)
def _slice(call: Call) -> str:
    name, axis, place = call.inputs[0], 0, 0  # the axis of the result, and of the input
    runs = [_spread(index, call.ndim()) for index in call.runs("index")]
    for items in zip(*runs, strict=True):
        if len({type(item) for item in items}) > 1:
            raise call.error("has another index at other batch sizes")
        if items[0] is None:
            name = call.let(f"torch.unsqueeze({name}, {axis})")
            axis += 1
            continue
        lengths = [shape[place] for shape in call.lengths()]
        place += 1
        if not isinstance(items[0], slice):
            index = call.number([int(i) % n for i, n in zip(items, lengths, strict=True)])
            name = call.let(f"torch.select({name}, {axis}, {index})")
            continue
        if any(item != slice(None) for item in items):
            name = _part(
                call, name, axis, [range(n)[i] for n, i in zip(lengths, items, strict=True)]
            )
        axis += 1
    return name


def _spread(index: object, ndim: int) -> list[object]:
    """An index with a slice for each axis that it leaves out."""
    items = list(index) if isinstance(index, tuple) else [index]
    missing = [slice(None)] * (ndim - sum(i is not None and i is not Ellipsis for i in items))
    if Ellipsis in items:
        place = items.index(Ellipsis)
        return [*items[:place], *missing, *items[place + 1 :]]
    return [*items, *missing]


def _part(call: Call, name: str, axis: int, parts: list[range]) -> str:
    """Some elements along an axis, at a distance; backwards where that is below 0."""
    steps = {part.step for part in parts}
    if len(steps) > 1:
        raise call.error("has another step at other batch sizes")
    step = steps.pop()
    up = [part if step > 0 else part[::-1] for part in parts]
    start = call.number([part.start for part in up])
    stop = call.number([part[-1] + 1 if part else part.start for part in up])
    name = call.let(f"torch.slice({name}, {axis}, {start}, {stop}, {abs(step)})")
    return name if step > 0 else call.let(f"torch.flip({name}, [{axis}])")


@rule(Gather)
def _gather(call: Call) -> str:
    index = call.attribute("index")
    indices = []
    items = list(index) if isinstance(index, tuple) else [index]
    taken = sum(i.ndim if isinstance(i, np.ndarray) and i.dtype == bool else 1 for i in items)
    for item in items:
        if item is Ellipsis:
            indices += ["None"] * (call.ndim() - taken + 1)
        elif isinstance(item, slice) and item == slice(None):
            indices.append("None")
        elif isinstance(item, (int, np.integer, np.ndarray)) and not isinstance(item, bool):
            array = np.asarray(item)
            array = array.astype(int64) if array.dtype in INTEGERS else array
            indices.append(call.constant(array))
        else:
            raise call.error(f"with {item!r} beside arrays isn't supported")
    return f"torch.index({call.inputs[0]}, annotate(List[Optional[Tensor]], {listed(indices)}))"


@rule(Rotary)
def _rotary(call: Call) -> str:
    x, half = call.inputs[0], call.fixed(0, -1) // 2
    cos, sin = (
        call.constant(np.asarray(call.attribute(n)).astype(call.dtype())) for n in ("cos", "sin")
    )
    first = call.let(f"torch.slice({x}, -1, 0, {half}, 1)")
    second = call.let(f"torch.slice({x}, -1, {half}, {2 * half}, 1)")
    turned = (
        f"torch.sub(torch.mul({first}, {cos}), torch.mul({second}, {sin}))",
        f"torch.add(torch.mul({first}, {sin}), torch.mul({second}, {cos}))",
    )
    return f"torch.cat({listed(turned)}, -1)"


# -- recurrent networks ---------------------------------------------------------------------


@rule(RNN, LSTM, GRU)
def _recurrent(call: Call) -> list[str]:
    operation = call.operation
    count = len(operation.states)
    x, states, weights = call.inputs[0], call.inputs[1 : count + 1], call.inputs[count + 1 :]
    time = 1 if call.attribute("batch_first") else 0
    if call.attribute("reverse"):
        x = call.let(f"torch.flip({x}, [{time}])")
    firsts = [call.let(f"torch.unsqueeze({state}, 0)") for state in states]
    first = listed(firsts) if len(firsts) > 1 else firsts[0]
    name = type(operation).__name__.lower()
    if name == "rnn":
        name = f"rnn_{call.attribute('nonlinearity')}"
    biased, batch_first = len(weights) > 2, call.attribute("batch_first")
    options = f"{biased}, 1, 0.0, False, False, {batch_first}"
    found = call.let(f"torch.{name}({x}, {first}, {listed(weights)}, {options})")
    output = f"{found}[0]"
    if call.attribute("reverse"):
        output = f"torch.flip({output}, [{time}])"
    return [output, *(f"torch.squeeze({found}[{i + 1}], 0)" for i in range(count))]
