"""Bad input: the kind of error, and that its message holds what was given."""

import re

import numpy as np
import pytest

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


def attend(q=(2, 2, 3, 4), k=None, v=None, **options):
    """Attention on ones, with a D and slopes where only one of them is given."""
    k = k or (*q[:2], 5, q[3])
    return te.attention(t(*q), t(*k), t(*(v or k)), **options)


ERRORS = {
    # arithmetic
    "add": (lambda: t(2, 3) + t(4), ValueError, ["Add", "(2, 3)", "(4,)"]),
    "sub": (lambda: t(2, 3) - t(2), ValueError, ["Sub", "(2, 3)", "(2,)"]),
    "mul": (lambda: t(3) * np.ones(4), ValueError, ["Mul", "(3,)", "(4,)"]),
    "div": (lambda: t(3) / t(4), ValueError, ["Div", "(3,)", "(4,)"]),
    "pow": (lambda: t(3) ** t(4), ValueError, ["Pow", "(3,)", "(4,)"]),
    "compare": (lambda: t(3) < t(4), ValueError, ["less", "(3,)", "(4,)"]),
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
    # images
    "conv2d rank": (lambda: te.conv2d(t(4, 4), t(2, 3, 3, 3)), ValueError, ["conv2d", "(4, 4)"]),
    "conv1d rank": (
        lambda: te.conv1d(t(1, 2, 4, 4), t(2, 2, 3)), ValueError, ["conv1d", "(1, 2, 4, 4)"]),
    "conv2d weight": (lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3)), ValueError, ["weight (2, 3, 3)"]),
    "conv2d empty kernel": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 0, 3)), ValueError, ["weight (2, 3, 0, 3)"]),
    "conv2d channels": (
        lambda: te.conv2d(t(1, 3, 4, 4), t(2, 4, 3, 3)),
        ValueError, ["(1, 3, 4, 4)", "(2, 4, 3, 3)", "groups 1", "3 channels"]),
    "conv2d groups": (
        lambda: te.conv2d(t(4, 4, 4), t(3, 2, 3, 3), groups=2),
        ValueError, ["(3, 2, 3, 3)", "groups 2", "multiple"]),
    "conv2d no groups": (
        lambda: te.conv2d(t(4, 4, 4), t(3, 2, 3, 3), groups=0), ValueError, ["groups is 0"]),
    "conv2d bias": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), t(3)), ValueError, ["bias (3,)", "(2,)"]),
    "conv2d kernel": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 5, 3)), ValueError, ["kernel of 5", "at most 4"]),
    "conv2d dilated kernel": (
        lambda: te.conv2d(t(3, 6, 6), t(2, 3, 3, 3), padding=1, dilation=4),
        ValueError, ["dilation 4", "spans 9", "at most 8"]),
    "conv2d stride": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), stride=(1, 0)),
        ValueError, ["stride is (1, 0)", "at least 1"]),
    "conv2d stride fraction": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), stride=1.5), ValueError, ["stride is 1.5"]),
    "conv1d strides": (
        lambda: te.conv1d(t(3, 4), t(2, 3, 3), stride=(1, 2)), ValueError, ["stride is (1, 2)"]),
    "conv2d padding": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), padding=-1),
        ValueError, ["padding is -1", "at least 0"]),
    "conv2d padding name": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), padding="full"),
        ValueError, ["'full'", "'same'", "'valid'"]),
    "conv2d same": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), stride=2, padding="same"),
        ValueError, ["'same'", "stride 1"]),
    "conv2d mode": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), padding_mode="mirror"),
        ValueError, ["'mirror'", "reflect"]),
    "conv2d reflect": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), padding=4, padding_mode="reflect"),
        ValueError, ["(4, 4)", "'reflect'", "at most 3"]),
    "conv2d dilation": (
        lambda: te.conv2d(t(3, 4, 4), t(2, 3, 3, 3), dilation=True),
        ValueError, ["dilation is True"]),
    "conv2d integers": (
        lambda: te.conv2d(t(3, 4, 4, dtype="int64"), t(2, 3, 3, 3)),
        TypeError, ["conv2d", "int64", "float"]),
    "conv2d widths": (
        lambda: te.conv2d(t(3, 4, 4, dtype="float64"), t(2, 3, 3, 3)),
        TypeError, ["convolution", "x float64", "weight float32"]),
    "pad mode": (lambda: te.pad(t(4), [(1, 1)], "mirror"), ValueError, ["'mirror'", "circular"]),
    "pad negative": (lambda: te.pad(t(4), [(1, -1)]), ValueError, ["(1, -1)", "at least 0"]),
    "pad number": (lambda: te.pad(t(4), [(1,)]), ValueError, ["[(1,)]", "pairs"]),
    "pad axes": (lambda: te.pad(t(4), [(1, 1)] * 2), ValueError, ["(4,)", "more pairs"]),
    "pad circular": (
        lambda: te.pad(t(4), [(5, 0)], "circular"), ValueError, ["(5, 0)", "at most 4"]),
    "pad replicate": (
        lambda: te.pad(t(0), [(1, 0)], "replicate"), ValueError, ["(0,)", "at most 0"]),
    "max_pool2d rank": (
        lambda: te.max_pool2d(t(4, 4), 2), ValueError, ["max_pool2d", "(4, 4)", "(N, C, H, W)"]),
    "max_pool2d kernel": (
        lambda: te.max_pool2d(t(1, 4, 4), 5), ValueError, ["kernel of 5", "at most 4"]),
    "max_pool2d size": (
        lambda: te.max_pool2d(t(1, 4, 4), 0), ValueError, ["kernel_size is 0", "at least 1"]),
    "max_pool2d sizes": (
        lambda: te.max_pool2d(t(1, 4, 4), (2, 2, 2)), ValueError, ["kernel_size is (2, 2, 2)"]),
    "max_pool2d padding": (
        lambda: te.max_pool2d(t(1, 4, 4), 2, padding=2), ValueError, ["padding is (2, 2)", "half"]),
    "max_pool2d empty": (
        lambda: te.max_pool2d(t(1, 0, 4), 2, padding=1), ValueError, ["(1, 0, 4)", "no empty"]),
    "max_pool2d integers": (
        lambda: te.max_pool2d(t(1, 4, 4, dtype="int32"), 2), TypeError, ["max_pool2d", "int32"]),
    "max_pool1d stride": (
        lambda: te.max_pool1d(t(1, 4), 2, stride=-1), ValueError, ["stride is -1"]),
    "avg_pool1d rank": (lambda: te.avg_pool1d(t(4), 2), ValueError, ["avg_pool1d", "(4,)"]),
    "avg_pool2d divisor": (
        lambda: te.avg_pool2d(t(1, 4, 4), 2, divisor_override=0),
        ValueError, ["divisor_override is 0"]),
    "adaptive size": (
        lambda: te.adaptive_avg_pool2d(t(1, 4, 4), 0), ValueError, ["output_size is 0"]),
    "adaptive sizes": (
        lambda: te.adaptive_avg_pool2d(t(1, 4, 4), (1, 2, 3)),
        ValueError, ["output_size is (1, 2, 3)"]),
    "adaptive rank": (
        lambda: te.adaptive_avg_pool1d(t(4), 2), ValueError, ["adaptive_avg_pool1d", "(4,)"]),
    # axes
    "sum": (lambda: t(2, 3).sum(2), IndexError, ["axis is 2", "2 axes"]),
    "sum of a scalar": (lambda: t().sum(0), IndexError, ["axis is 0", "0 axes"]),
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
    "var correction": (lambda: t(2).var(correction="1"), TypeError, ["correction", "'1'"]),
    "argmax": (lambda: t(2, 3).argmax(2), IndexError, ["axis is 2"]),
    "argmin of nothing": (lambda: t(0, 3).argmin(0), ValueError, ["argmin", "(0, 3)"]),
    "argmax axes": (lambda: t(2, 3).argmax((0, 1)), TypeError, ["(0, 1)"]),
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
    "concat one": (lambda: te.concat(t(2)), ValueError, ["Tensor", "one or more"]),
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
    "index": (lambda: t(2, 3)[2], IndexError, ["2"]),
    "index axes": (lambda: t(2, 3)[0, 0, 0], IndexError, ["too many indices"]),
    "index fraction": (lambda: t(2, 3)[0.5], (IndexError, TypeError), []),
    "index floats": (lambda: t(2, 3)[te.Tensor([0.0])], (IndexError, TypeError), []),
    "index mask": (lambda: t(2, 3)[np.ones(3, bool)], IndexError, ["3", "2"]),
    "index array": (lambda: t(2, 3)[np.array([0, 7])], IndexError, ["7"]),
    "assign": (lambda: t(2, 3).__setitem__(0, np.ones(4)), ValueError, ["4"]),
    # embedding, dropout, losses, norms
    "embedding": (
        lambda: te.embedding([0, 5], t(5, 2)), IndexError, ["embedding index 5", "0 … 4"]),
    "embedding negative": (lambda: te.embedding([-1], t(5, 2)), IndexError, ["index -1"]),
    "embedding empty": (lambda: te.embedding([0], t(0, 2)), IndexError, ["index 0"]),
    "embedding floats": (
        lambda: te.embedding(te.Tensor([0.0]), t(5, 2)), TypeError, ["float32", "integers"]),
    "embedding bool": (lambda: te.embedding([True], t(5, 2)), TypeError, ["bool"]),
    "embedding scalar": (lambda: te.embedding([0], t()), (ValueError, TypeError), ["()"]),
    "padding_idx": (
        lambda: te.embedding([0], t(5, 2), padding_idx=5), IndexError, ["padding_idx is 5"]),
    "dropout integers": (
        lambda: te.dropout(te.Tensor([1, 2])), TypeError, ["int64"]),
    "layer_norm": (lambda: te.layer_norm(t(2, 3), 4), ValueError, ["(2, 3)", "(4,)"]),
    "layer_norm nothing": (lambda: te.layer_norm(t(2, 3), ()), ValueError, ["()"]),
    "layer_norm weight": (
        lambda: te.layer_norm(t(2, 3), 3, t(2)), ValueError, ["(2,)", "(3,)"]),
    "layer_norm bias": (
        lambda: te.layer_norm(t(2, 3), 3, t(3), t(2)), ValueError, ["(2,)", "(3,)"]),
    "layer_norm bias alone": (
        lambda: te.layer_norm(t(2, 3), 3, None, t(3)), ValueError, ["bias without a weight"]),
    "layer_norm widths": (
        lambda: te.layer_norm(t(2, 3), 3, t(3, dtype="float64")),
        TypeError, ["x float32", "weight float64"]),
    "layer_norm integers": (
        lambda: te.layer_norm(t(2, 3, dtype="int64"), 3), TypeError, ["int64"]),
    "mse_loss": (lambda: te.mse_loss(t(2), t(3)), ValueError, ["(2,)", "(3,)"]),
    "mse_loss broadcast": (lambda: te.mse_loss(t(2, 1), t(2)), ValueError, ["(2, 1)", "(2,)"]),
    "mse_loss reduction": (
        lambda: te.mse_loss(t(2), t(2), "avg"), ValueError, ["'avg'", "mean, sum, none"]),
    "l1_loss": (lambda: te.l1_loss(t(2), t(3)), ValueError, ["l1_loss", "(2,)", "(3,)"]),
    "l1_loss reduction": (lambda: te.l1_loss(t(2), t(2), "avg"), ValueError, ["'avg'"]),
    "huber_loss": (lambda: te.huber_loss(t(2, 1), t(2)), ValueError, ["huber_loss", "(2, 1)"]),
    "huber_loss delta": (
        lambda: te.huber_loss(t(2), t(2), delta=0), ValueError, ["delta is 0", "more than 0"]),
    "bce": (
        lambda: te.bce_with_logits(t(2), t(3)), ValueError, ["bce_with_logits", "(2,)", "(3,)"]),
    "bce weight": (
        lambda: te.bce_with_logits(t(2, 3), t(2, 3), t(2)), ValueError, ["weight", "(2,)"]),
    "bce pos_weight": (
        lambda: te.bce_with_logits(t(3), t(3), pos_weight=t(2, 3)),
        ValueError, ["pos_weight", "(2, 3)", "(3,)"]),
    "bce weight's gradient": (
        lambda: te.bce_with_logits(t(2), t(2), te.ones(2, requires_grad=True)),
        ValueError, ["weight requires a gradient"]),
    "bce integers": (lambda: te.bce_with_logits(t(2, dtype="int8"), t(2)), TypeError, ["int8"]),
    "nll_loss label": (lambda: te.nll_loss(t(2, 3), [0, 3]), IndexError, ["label 3", "0 … 2"]),
    "nll_loss shape": (lambda: te.nll_loss(t(2, 3), [0]), ValueError, ["(1,)", "(2,)"]),
    "nll_loss floats": (
        lambda: te.nll_loss(t(2, 3), t(2)), TypeError, ["float32", "integers"]),
    "nll_loss weight": (lambda: te.nll_loss(t(2, 3), [0, 1], t(2)), ValueError, ["(2,)", "(3,)"]),
    "nll_loss scalar": (lambda: te.nll_loss(t(), 0), ValueError, ["without axes"]),
    "nll_loss reduction": (
        lambda: te.nll_loss(t(2, 3), [0, 1], reduction="all"), ValueError, ["'all'"]),
    "cross_entropy label": (
        lambda: te.cross_entropy(t(2, 3), [0, 3]), IndexError, ["label 3", "0 … 2"]),
    "cross_entropy negative": (
        lambda: te.cross_entropy(t(2, 3), [0, -1]), IndexError, ["label -1"]),
    "cross_entropy shape": (
        lambda: te.cross_entropy(t(2, 3), [0, 1, 2]), ValueError, ["(3,)", "(2,)"]),
    "cross_entropy probabilities": (
        lambda: te.cross_entropy(t(2, 3), t(2, 4)), ValueError, ["(2, 4)", "(2, 3)"]),
    "cross_entropy weight": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], t(2)), ValueError, ["(2,)", "(3,)"]),
    "cross_entropy smoothing": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], label_smoothing=1.5), ValueError, ["1.5"]),
    "cross_entropy reduction": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], reduction="all"), ValueError, ["'all'"]),
    "cross_entropy scalar": (
        lambda: te.cross_entropy(t(), 0), ValueError, ["without axes"]),
    "cross_entropy weight's gradient": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], te.ones(3, requires_grad=True)),
        ValueError, ["weight requires a gradient"]),
    "cross_entropy integers": (
        lambda: te.cross_entropy(t(2, 3, dtype="int64"), [0, 1]), TypeError, ["int64"]),
    # attention
    "attention axes": (lambda: attend(q=(2, 3, 4), k=(2, 3, 4)), ValueError, ["q (2, 3, 4)"]),
    "attention batch": (
        lambda: attend(k=(3, 2, 5, 4)), ValueError, ["q (2, 2, 3, 4)", "k (3, 2, 5, 4)"]),
    "attention heads": (
        lambda: attend(q=(2, 3, 3, 4), k=(2, 2, 5, 4)), ValueError, ["k (2, 2, 5, 4)", "divides"]),
    "attention more key heads": (
        lambda: attend(q=(2, 2, 3, 4), k=(2, 4, 5, 4)), ValueError, ["k (2, 4, 5, 4)"]),
    "attention width": (lambda: attend(k=(2, 2, 5, 3)), ValueError, ["k (2, 2, 5, 3)"]),
    "attention length": (
        lambda: attend(k=(2, 2, 5, 4), v=(2, 2, 6, 4)), ValueError, ["v (2, 2, 6, 4)"]),
    "attention value heads": (
        lambda: attend(q=(2, 4, 3, 4), k=(2, 2, 5, 4), v=(2, 4, 5, 4)),
        ValueError, ["v (2, 4, 5, 4)"]),
    "attention widths": (
        lambda: te.attention(t(1, 1, 2, 2), t(1, 1, 2, 2, dtype="float64"), t(1, 1, 2, 2)),
        TypeError, ["attention", "q float32", "k float64"]),
    "attention small widths": (
        lambda: te.attention(t(1, 1, 2, 2), t(1, 1, 2, 2, dtype="float16"), t(1, 1, 2, 2)),
        TypeError, ["attention", "q float32", "k float16"]),
    "attention integers": (
        lambda: te.attention(*[t(1, 1, 2, 2, dtype="int64")] * 3), TypeError, ["int64"]),
    "mask three axes": (
        lambda: attend(mask=np.ones((2, 3, 5), bool)), ValueError, ["mask", "(2, 3, 5)"]),
    "mask one axis": (lambda: attend(mask=np.ones(5, bool)), ValueError, ["mask", "(5,)"]),
    "mask shape": (lambda: attend(mask=np.ones((2, 5), bool)), ValueError, ["(2, 5)", "(3, 5)"]),
    "mask heads": (lambda: attend(mask=np.ones((2, 3, 3, 5))), ValueError, ["(2, 3, 3, 5)"]),
    "mask integers": (
        lambda: attend(mask=np.ones((3, 5), "int64")), TypeError, ["int64", "bool"]),
    "distance alone": (
        lambda: attend(distance=np.ones((3, 5))), ValueError, ["no slopes", "together"]),
    "slopes alone": (lambda: attend(slopes=np.ones(2)), ValueError, ["no distance", "together"]),
    "distance shape": (
        lambda: attend(distance=np.ones((5, 3)), slopes=np.ones(2)),
        ValueError, ["(5, 3)", "(3, 5)"]),
    "distance batch": (
        lambda: attend(distance=np.ones((3, 3, 5)), slopes=np.ones(2)),
        ValueError, ["(3, 3, 5)", "(2, 3, 5)"]),
    "distance one row": (
        lambda: attend(distance=np.ones((1, 5)), slopes=np.ones(2)), ValueError, ["(1, 5)"]),
    "distance five axes": (
        lambda: attend(distance=np.ones((1, 2, 2, 3, 5)), slopes=np.ones(2)),
        ValueError, ["(1, 2, 2, 3, 5)"]),
    "distance one axis": (
        lambda: attend(distance=np.ones(5), slopes=np.ones(2)), ValueError, ["(5,)"]),
    "distance negative": (
        lambda: attend(distance=np.full((3, 5), -0.5), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "distance NaN": (
        lambda: attend(distance=np.full((2, 3, 5), np.nan), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "distance -inf": (
        lambda: attend(distance=np.full((2, 2, 3, 5), -np.inf), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "slopes shape": (
        lambda: attend(distance=np.ones((3, 5)), slopes=np.ones(3)), ValueError, ["(3,)"]),
    "slopes axes": (
        lambda: attend(distance=np.ones((3, 5)), slopes=np.ones((1, 2))), ValueError, ["(1, 2)"]),
    "bias function": (
        lambda: attend(
            distance=np.ones((3, 5)), slopes=np.ones(2), bias_function="linear"
        ),
        ValueError, ["'linear'", "logarithmic, gaussian"]),
    "attention dropout": (lambda: attend(dropout=1.5), ValueError, ["1.5"]),
    # making and reading
    "uneven lists": (lambda: te.Tensor([[1, 2], [3]]), ValueError, ["no array"]),
    "text": (lambda: te.Tensor("abc"), TypeError, ["str"]),
    "texts": (lambda: te.Tensor(["a"]), TypeError, ["list"]),
    "None": (lambda: te.Tensor(None), TypeError, ["NoneType"]),
    "objects": (lambda: te.Tensor([1, None]), TypeError, ["list"]),
    "dtype": (lambda: te.Tensor([1], dtype="float23"), TypeError, ["'float23'", "bfloat16"]),
    "dtype None": (lambda: te.Tensor([1.0]).astype(None), TypeError, ["None"]),
    "complex128": (lambda: te.Tensor(np.array([1j])), TypeError, ["complex128"]),
    "longdouble": (
        lambda: te.Tensor([1]).astype(np.dtype("m8[s]")), TypeError, ["expected one of"]),
    "from_numpy": (lambda: te.from_numpy([1]), TypeError, ["list", "ndarray"]),
    "from_numpy dtype": (lambda: te.from_numpy(np.array(["a"])), TypeError, ["<U1"]),
    "from_dlpack": (lambda: te.from_dlpack([1]), TypeError, ["list", "__dlpack__"]),
    "item": (lambda: t(2).item(), ValueError, ["(2,)"]),
    "item of nothing": (lambda: t(0).item(), ValueError, ["(0,)"]),
    "truth": (lambda: bool(t(2)), ValueError, ["(2,)"]),
    "length": (lambda: len(t()), TypeError, ["without axes"]),
    "zeros": (lambda: te.zeros(2, -1), ValueError, ["(2, -1)"]),
    "zeros fraction": (lambda: te.zeros(2.5), ValueError, ["2.5"]),
    "ones dtype": (lambda: te.ones(2, dtype="real"), TypeError, ["'real'"]),
    "eye": (lambda: te.eye(-1), ValueError, ["-1"]),
    "arange": (lambda: te.arange(0, 5, 0), ValueError, ["step 0"]),
    "linspace": (lambda: te.linspace(0, 1, -1), ValueError, ["-1"]),
    "randint": (lambda: te.randint(3, 3, (2,)), ValueError, ["3 to 3"]),
    "rand dtype": (lambda: te.rand(2, dtype="int64"), TypeError, ["int64"]),
    "randn dtype": (lambda: te.randn(2, dtype="bool"), TypeError, ["bool"]),
    "randn_like": (lambda: te.randn_like(te.ones(2, dtype="int8")), TypeError, ["int8"]),
    "zeros grad": (
        lambda: te.zeros(2, dtype="int64", requires_grad=True), TypeError, ["int64"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{caught.value!r} doesn't hold {missing}"
    assert not re.search(r"\b0x[0-9a-f]{6}", str(caught.value))


def test_an_error_in_forward_leaves_no_graph():
    x = te.ones(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="matmul"):
        x @ x
    (x * 2).sum().backward()
    assert x.grad.numpy().sum() == 12
