"""Bad calls of what works on arrays: the call, the error, and words that it holds."""

import numpy as np

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


#: Of one tensor, computed with element by element.
UNARY = [
    *("abs", "cos", "erf", "exp", "gelu", "leaky_relu", "log", "log1p", "neg", "relu", "sigmoid"),
    *("silu", "sin", "sqrt", "tanh"),
]
#: Of two that broadcast.
BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]

BAD = {
    **{
        f"{name} {what}": (lambda name=name, x=x: getattr(te, name)(x), TypeError, words)
        for name in UNARY
        for what, x, words in [
            ("text", "a", ["str", "no numbers"]),
            ("None", None, ["NoneType", "no numbers"]),
            ("stored", t(2, dtype="uint16"), ["uint16", "storage only"]),
            ("complex", t(2, dtype="complex64"), ["complex64", "storage only"]),
        ]
    },
    **{
        f"{name} {what}": (lambda name=name, y=y: getattr(te, name)(t(2, 3), y), kind, words)
        for name in BINARY + COMPARISONS
        for what, y, kind, words in [
            ("broadcast", np.ones((3, 2)), ValueError, ["(2, 3)", "(3, 2)", "equal or 1"]),
            ("stored", t(2, 3, dtype="uint32"), TypeError, ["uint32", "storage only"]),
            ("complex128", np.ones(3, "c16"), TypeError, ["complex128", "expected one of"]),
            ("objects", np.array([None] * 3), TypeError, ["dtype('O')", "expected one of"]),
            ("masked", np.ma.ones(3), TypeError, ["masked array", "(3,)", "filled()"]),
        ]
    },
    **{
        f"{name} text": (lambda name=name: getattr(te, name)(t(2), "a"), TypeError, ["str"])
        for name in BINARY + COMPARISONS
        if name not in ("mul", "equal", "not_equal")  # Python has its own
    },
    **{
        f"{name} {what}": (
            lambda name=name, axis=axis: getattr(te, name)(t(2, 3), axis), kind, words)
        for name in (
            *("sum", "mean", "max", "min", "var", "std", "argmax", "argmin", "cumsum"),
            *("softmax", "log_softmax", "squeeze", "unsqueeze", "flatten"),
        )
        for what, axis, kind, words in [
            ("axis", 7, IndexError, ["axis is 7", "… "]),
            ("axis bool", True, TypeError, ["axis is True", "whole number"]),
            ("axis fraction", 0.5, TypeError, ["axis is 0.5", "whole number"]),
            ("axis text", "0", TypeError, ["axis is '0'", "whole number"]),
        ]
    },
    **{
        f"{name} {what}": (
            lambda name=name, args=args: getattr(te, name)(*args), TypeError, words)
        for name in ["sum", "mean", "max", "min", "var", "std", "argmax", "argmin"]
        for what, args, words in [
            ("stored", (t(2, dtype="uint64"),), ["uint64", "storage only"]),
            ("keepdims", (t(2, 3), 0, 1), ["keepdims is 1", "bool"]),
        ]
    },
    "add integers": (lambda: t(2, dtype="int8") + 300, OverflowError, ["300", "int8"]),
    "add large": (lambda: t(2, dtype="int64") + (1 << 70), OverflowError, [str(1 << 70), "int64"]),
    "add list": (lambda: te.add(t(2), [1, 2]), TypeError, ["list"]),
    "sub bool": (lambda: t(2, dtype="bool") - t(2, dtype="bool"), TypeError, ["boolean"]),
    "pow negative": (lambda: t(2, dtype="int64") ** -1, ValueError, ["negative integer powers"]),
    "leaky_relu None": (lambda: te.leaky_relu(t(2), None), TypeError, ["alpha is None", "number"]),
    "leaky_relu array": (lambda: te.leaky_relu(t(2), np.ones(2)), TypeError, ["alpha is array"]),
    "leaky_relu NaN": (
        lambda: te.leaky_relu(t(2), float("nan")), ValueError, ["alpha is nan", "finite"]),
    "var correction": (
        lambda: te.var(t(2), correction=None), TypeError, ["correction is None", "number"]),
    "std correction": (
        lambda: te.std(t(2), correction=float("nan")), ValueError, ["correction is nan"]),
    "argmax axes": (lambda: te.argmax(t(2, 3), (0, 1)), TypeError, ["axis is (0, 1)"]),
    "cat none": (lambda: te.cat([]), ValueError, ["one or more"]),
    "cat text": (lambda: te.cat("ab"), TypeError, ["str", "list of one or more"]),
    "cat number": (lambda: te.cat(3), TypeError, ["int", "list of one or more"]),
    "cat axis": (lambda: te.cat([t(2), t(2)], True), TypeError, ["axis is True"]),
    "cat numbers": (lambda: te.cat([1, 2]), IndexError, ["axis is 0", "()"]),
    "stack axis bool": (lambda: te.stack([t(2)], False), TypeError, ["axis is False"]),
    "transpose axis bool": (lambda: t(2, 3).transpose(0, True), TypeError, ["axis is True"]),
    "transpose axis fraction": (lambda: t(2, 3).transpose(0, 1.0), TypeError, ["axis is 1.0"]),
    "permute bool": (lambda: te.permute(t(2, 3), (0, True)), TypeError, ["(0, True)", "whole"]),
    "flatten scalar": (lambda: te.flatten(t(), 3), IndexError, ["axis is 3"]),
    "reshape bool": (lambda: t(1).reshape(True), TypeError, ["(True,)", "whole numbers"]),
    "reshape None": (lambda: te.reshape(t(1), None), TypeError, ["None", "whole numbers"]),
    "reshape large": (lambda: t(2).reshape(1 << 40, 1 << 40), ValueError, ["(2,)", str(1 << 40)]),
    "expand bool": (lambda: te.expand(t(1), (True,)), TypeError, ["(True,)", "whole numbers"]),
    "expand negative": (lambda: te.expand(t(1), (-2,)), ValueError, ["(1,)", "(-2,)"]),
    "split bool": (lambda: te.split(t(4), True), TypeError, ["True", "whole numbers"]),
    "split axis bool": (lambda: te.split(t(4), 2, True), TypeError, ["axis is True"]),
    "linears none": (lambda: te.linears(t(2, 3), []), ValueError, ["0 weights", "as many"]),
    "linears shapes": (lambda: te.linears(t(2, 3), [t(4, 5)]), ValueError, ["(2, 3)", "(4, 5)"]),
    "linears tensor": (lambda: te.linears(t(2, 3), t(4, 3)), TypeError, ["Tensor", "a list"]),
    "linears biases": (
        lambda: te.linears(t(2, 3), [t(4, 3)] * 2, [t(4)]), ValueError, ["2 weights", "1 biases"]),
    "linears widths": (
        lambda: te.linears(t(2, 3), [t(4, 3, dtype="float64")]), TypeError, ["float32, float64"]),
    "matmul text": (lambda: te.matmul(t(2, 2), "a"), TypeError, ["str"]),
    "matmul stored": (
        lambda: te.matmul(*[t(2, 2, dtype="uint16")] * 2), TypeError, ["uint16", "storage only"]),
    # arithmetic
    "add": (lambda: t(2, 3) + t(4), ValueError, ["Add", "(2, 3)", "(4,)"]),
    "sub": (lambda: t(2, 3) - t(2), ValueError, ["Sub", "(2, 3)", "(2,)"]),
    "mul": (lambda: t(3) * np.ones(4), ValueError, ["Mul", "(3,)", "(4,)"]),
    "div": (lambda: t(3) / t(4), ValueError, ["Div", "(3,)", "(4,)"]),
    "pow": (lambda: t(3) ** t(4), ValueError, ["Pow", "(3,)", "(4,)"]),
    "less shapes": (lambda: t(3) < t(4), ValueError, ["less", "(3,)", "(4,)"]),
    "equal": (lambda: t(3) == t(4), ValueError, ["equal", "(3,)", "(4,)"]),
    "maximum": (lambda: t(2, 3).maximum(t(4)), ValueError, ["Maximum", "(2, 3)", "(4,)"]),
    "minimum": (lambda: te.minimum(t(2), np.ones(3)), ValueError, ["Minimum", "(2,)", "(3,)"]),
    "maximum stored": (
        lambda: te.maximum(t(2, dtype="uint16"), 1), TypeError, ["uint16", "storage only"]),
    "clip": (lambda: te.clip(t(2, 3), t(4), 1), ValueError, ["clip", "(2, 3)", "(4,)", "()"]),
    "clip text": (lambda: te.clip(t(2), "0"), TypeError, ["str"]),
    "where": (
        lambda: te.where(t(2, dtype="bool"), t(3), t(1)), ValueError, ["where", "(2,)", "(3,)"]),
    "where condition": (lambda: te.where(t(2), t(2), 0), TypeError, ["float32", "bool"]),
    "less": (lambda: te.less(t(3), t(4)), ValueError, ["less", "(3,)", "(4,)"]),
    "leaky_relu text": (lambda: te.leaky_relu(t(2), "a"), (TypeError, ValueError), ["a"]),
    "prelu": (lambda: te.prelu(t(2, 3), t(2)), ValueError, ["(2, 3)", "(2,)", "(3,)"]),
    "prelu axes": (lambda: te.prelu(t(2, 3), t(1, 3)), ValueError, ["(1, 3)"]),
    "prelu integers": (lambda: te.prelu(t(2, dtype="int64"), t(1)), TypeError, ["int64"]),
    # products
    "matmul": (lambda: t(2, 3) @ t(4, 5), ValueError, ["matmul", "(2, 3)", "(4, 5)"]),
    "matmul vectors": (lambda: t(3) @ t(4), ValueError, ["matmul", "(3,)", "(4,)"]),
    "matmul scalar": (lambda: te.matmul(t(), t(2)), ValueError, ["matmul", "()", "(2,)"]),
    "matmul lead": (lambda: t(2, 3, 4) @ t(3, 4, 5), ValueError, ["(2, 3, 4)", "(3, 4, 5)"]),
    "matmul widths": (
        lambda: t(2, 2) @ t(2, 2, dtype="float64"), TypeError, ["matmul", "float32", "float64"]),
    "matmul small widths": (
        lambda: t(2, 2, dtype="bfloat16") @ t(2, 2), TypeError, ["matmul", "bfloat16", "float32"]),
    "matmul two small": (
        lambda: t(2, 2, dtype="bfloat16") @ t(2, 2, dtype="float16"),
        TypeError, ["matmul", "bfloat16", "float16"]),
    "linear": (lambda: te.linear(t(2, 3), t(4, 5)), ValueError, ["(2, 3)", "(4, 5)"]),
    "linear bias": (
        lambda: te.linear(t(2, 3), t(4, 3), t(3)), ValueError, ["bias (3,)", "(4, 3)"]),
    "linear scalar": (lambda: te.linear(t(), t(4, 3)), ValueError, ["x ()"]),
    "linear weight": (lambda: te.linear(t(3), t(3)), ValueError, ["weight (3,)"]),
    "linear widths": (
        lambda: te.linear(t(2, 3), t(4, 3, dtype="float64")),
        TypeError, ["linear", "x float32", "weight float64"]),
    "linear small widths": (
        lambda: te.linear(t(2, 3, dtype="float16"), t(4, 3)),
        TypeError, ["linear", "float16", "float32"]),
    # axes
    "sum": (lambda: t(2, 3).sum(2), IndexError, ["axis is 2", "2 axes"]),
    "sum of a scalar": (lambda: t().sum(0), IndexError, ["axis is 0", "()"]),
    "mean": (lambda: t(2, 3).mean(-3), IndexError, ["axis is -3"]),
    "max": (lambda: t(2, 3).max((0, 5)), IndexError, ["axis is 5"]),
    "sum twice": (lambda: t(2, 3).sum((0, -2)), ValueError, ["(0, -2)", "twice"]),
    "sum fraction": (lambda: t(2, 3).sum(0.5), TypeError, ["0.5"]),
    "sum text": (lambda: t(2, 3).sum("0"), TypeError, ["'0'"]),
    "sum bool": (lambda: t(2, 3).sum(True), TypeError, ["True"]),
    "max of nothing": (lambda: t(0, 3).max(0), ValueError, ["(0,)", "(0, 3)"]),
    "min of nothing": (lambda: t(0, 3).min(0), ValueError, ["min", "(0,)", "(0, 3)"]),
    "var": (lambda: t(2, 3).var(2), IndexError, ["axis is 2"]),
    "std twice": (lambda: t(2, 3).std((0, 0)), ValueError, ["(0, 0)", "twice"]),
    "argmax": (lambda: t(2, 3).argmax(2), IndexError, ["axis is 2"]),
    "argmin of nothing": (lambda: t(0, 3).argmin(0), ValueError, ["argmin", "(0, 3)"]),
    "argmax stored": (lambda: t(2, dtype="uint16").argmax(), TypeError, ["uint16"]),
    "cumsum": (lambda: t(2, 3).cumsum(-3), IndexError, ["axis is -3"]),
    "cumsum of a scalar": (lambda: t().cumsum(0), IndexError, ["axis is 0"]),
    "softmax": (lambda: t(2, 3).softmax(2), IndexError, ["axis is 2"]),
    "softmax of a scalar": (lambda: t().softmax(3), IndexError, ["axis is 3"]),
    "log_softmax": (lambda: t(2, 3).log_softmax(-3), IndexError, ["axis is -3"]),
    "gelu": (lambda: t(2).gelu("erf"), ValueError, ["'erf'", "none", "tanh"]),
    # shapes
    "reshape": (lambda: t(2, 3).reshape(4, 2), ValueError, ["(2, 3)", "(4, 2)"]),
    "reshape -1": (lambda: t(2, 3).reshape(4, -1), ValueError, ["(2, 3)", "(4, -1)"]),
    "reshape -1 -1": (lambda: t(2, 3).reshape(-1, -1), ValueError, ["(-1, -1)"]),
    "reshape -2": (lambda: t(2, 3).reshape(-2, -3), ValueError, ["(-2, -3)"]),
    "reshape 0 -1": (lambda: t(0, 3).reshape(0, -1), ValueError, ["(0, -1)"]),
    "reshape fraction": (
        lambda: t(2, 3).reshape(2.5, 3), (TypeError, ValueError), ["2.5"]),
    "reshape text": (lambda: t(2, 3).reshape("23"), (TypeError, ValueError), ["23"]),
    "transpose": (lambda: t(2, 3).transpose(0, 2), IndexError, ["axis is 2"]),
    "transpose one": (lambda: t(2, 3).transpose(1), ValueError, ["transpose(1,)"]),
    "permute": (lambda: t(2, 3).permute(0, 2), IndexError, ["axis is 2"]),
    "permute twice": (lambda: t(2, 3).permute(0, 0), ValueError, ["(0, 0)"]),
    "permute few": (lambda: t(2, 3).permute(0), ValueError, ["(0,)", "2 axes"]),
    "flatten": (lambda: t(2, 3).flatten(0, 2), IndexError, ["axis is 2"]),
    "flatten order": (lambda: t(2, 3).flatten(1, 0), ValueError, ["1 to 0"]),
    "squeeze": (lambda: t(2, 1).squeeze(0), ValueError, ["axis 0", "(2, 1)"]),
    "squeeze axes": (lambda: t(1, 2).squeeze((0, 1)), ValueError, ["(0, 1)", "(1, 2)"]),
    "squeeze twice": (lambda: t(1, 2).squeeze((0, -2)), ValueError, ["(0, -2)", "twice"]),
    "squeeze axis": (lambda: t(2, 1).squeeze(2), IndexError, ["axis is 2"]),
    "unsqueeze": (lambda: t(2, 1).unsqueeze(3), IndexError, ["axis is 3"]),
    "expand": (lambda: t(2, 3).expand(4, 3), ValueError, ["(2, 3)", "(4, 3)"]),
    "expand fewer": (lambda: t(2, 3).expand(3), ValueError, ["(2, 3)", "(3,)"]),
    "expand -1 in front": (lambda: t(3).expand(-1, 3), ValueError, ["(3,)", "(-1, 3)"]),
    "concat": (
        lambda: te.concat([t(2, 3), t(2, 4)]), ValueError, ["(2, 3)", "(2, 4)", "axis 0"]),
    "concat ndim": (lambda: te.concat([t(2), t(2, 4)]), ValueError, ["(2,)", "(2, 4)"]),
    "concat axis": (lambda: te.concat([t(2), t(2)], 1), IndexError, ["axis is 1"]),
    "concat scalars": (lambda: te.concat([t(), t()]), IndexError, ["axis is 0"]),
    "concat none": (lambda: te.concat([]), ValueError, ["one or more"]),
    "concat one": (lambda: te.concat(t(2)), TypeError, ["Tensor", "one or more"]),
    "split": (lambda: t(5).split(0), ValueError, ["length 0", "at least 1"]),
    "split sum": (lambda: t(2, 5).split([2, 2], 1), ValueError, ["(2, 2)", "axis 1", "sum of 5"]),
    "split negative": (lambda: t(5).split([6, -1]), ValueError, ["(6, -1)"]),
    "split none": (lambda: t(0).split([]), ValueError, ["()"]),
    "split axis": (lambda: t(5).split(1, 1), IndexError, ["axis is 1"]),
    "split scalar": (lambda: t().split(1), IndexError, ["axis is 0"]),
    "split fraction": (lambda: t(5).split(2.5), TypeError, ["2.5"]),
    "stack": (lambda: te.stack([t(2), t(3)]), ValueError, ["(2,)", "(3,)"]),
    "stack axis": (lambda: te.stack([t(2)], 2), IndexError, ["axis is 2"]),
    "stack none": (lambda: te.stack([]), ValueError, ["one or more"]),
    "Tensor index": (lambda: t(2, 3)[2], IndexError, ["2"]),
    "Tensor index axes": (lambda: t(2, 3)[0, 0, 0], IndexError, ["too many indices"]),
    "Tensor index fraction": (lambda: t(2, 3)[0.5], (IndexError, TypeError), []),
    "Tensor index floats": (lambda: t(2, 3)[te.Tensor([0.0])], (IndexError, TypeError), []),
    "Tensor index mask": (lambda: t(2, 3)[np.ones(3, bool)], IndexError, ["3", "2"]),
    "Tensor index array": (lambda: t(2, 3)[np.array([0, 7])], IndexError, ["7"]),
    "Tensor assign": (lambda: t(2, 3).__setitem__(0, np.ones(4)), ValueError, ["4"]),
    "Tensor index text": (lambda: t(2, 3)["a"], IndexError, ["'a'", "(2, 3)"]),
    "Tensor index step": (lambda: t(2, 3)[::0], ValueError, ["slice(None, None, 0)", "(2, 3)"]),
    "Tensor index arrays": (
        lambda: t(2, 3)[[0, 1], [0, 1, 2]], IndexError, ["[0, 1]", "(2, 3)", "(3,)"]),
    "Tensor index two ellipses": (lambda: t(2, 3)[..., ...], IndexError, ["Ellipsis", "(2, 3)"]),
    "Tensor assign outside": (lambda: t(2, 3).__setitem__(5, 1), IndexError, ["5", "size 2"]),
    "Tensor assign text": (lambda: t(2).__setitem__(0, "a"), ValueError, ["'a'"]),
    "Tensor assign large": (
        lambda: t(2, dtype="int8").__setitem__(0, 300), OverflowError, ["300", "int8"]),
    "Tensor assign read-only": (
        lambda: t(1).expand(2).__setitem__(0, 1), ValueError, ["read-only", "clone()"]),
}  # fmt: skip
