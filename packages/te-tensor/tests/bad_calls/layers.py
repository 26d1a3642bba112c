"""Bad calls of what layers are made of: the call, the error, and words that it holds."""

from functools import partial

import numpy as np

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


def batch(*shape, **options):
    return te.batch_norm(t(*shape), training=True, **options)


def sequence(kind, x=(5, 2, 3), ih=None, hh=None, *biases, **options):
    """A recurrent layer of 3 features and 4 units on ones."""
    gates = {te.rnn: 1, te.gru: 3, te.lstm: 4}[kind]
    return kind(t(*x), t(*(ih or (4 * gates, 3))), t(*(hh or (4 * gates, 4))), *biases, **options)


NAN = float("nan")
RECURRENT = {"rnn": te.rnn, "gru": te.gru, "lstm": te.lstm}
POOLS = {
    name: getattr(te, name) for name in ["max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"]
}

BAD = {
    # recurrent
    **{
        f"{name} {what}": (lambda f=f, args=args: sequence(f, *args), ValueError, [name, *words])
        for name, f in RECURRENT.items()
        for what, args, words in [
            ("rank", ((5, 3),), ["x (5, 3)", "x (T, B, I)"]),
            ("no steps", ((0, 2, 3),), ["x (0, 2, 3)", "at least one step"]),
            ("features", ((5, 2, 6),), ["x (5, 2, 6)", "weight_ih"]),
            ("weight_ih", ((5, 2, 3), (5, 3)), ["weight_ih (5, 3)", "H, I)"]),
            ("weight_hh", ((5, 2, 3), None, (4, 5)), ["weight_hh (4, 5)", "H, H)"]),
            ("one bias", ((5, 2, 3), None, None, t(4)), ["no bias_hh", "both"]),
            ("biases", ((5, 2, 3), None, None, t(7), t(7)), ["bias_ih (7,)"]),
        ]
    },
    **{
        f"{name} h0": (lambda f=f: sequence(f, h0=t(3, 4)), ValueError, ["h0 (3, 4)", "(B, H)"])
        for name, f in RECURRENT.items()
    },
    **{
        f"{name} integers": (
            lambda f=f: f(t(5, 2, 3, dtype="int8"), t(4, 3), t(4, 4)), TypeError, ["int8", "float"])
        for name, f in RECURRENT.items()
    },
    **{
        f"{name} widths": (
            lambda f=f: f(t(5, 2, 3), t(4, 3, dtype="float64"), t(4, 4)),
            TypeError, ["x float32", "weight_ih float64"])
        for name, f in RECURRENT.items()
    },
    "lstm c0": (lambda: sequence(te.lstm, c0=t(2, 3)), ValueError, ["c0 (2, 3)", "(B, H)"]),
    "rnn nonlinearity": (
        lambda: sequence(te.rnn, nonlinearity="sin"), ValueError, ["'sin'", "tanh, relu"]),
    "rotary shapes": (
        lambda: te.rotary(t(2, 3), t(2, 3), t(2, 3)),
        ValueError, ["x (2, 3)", "cos and sin (S, d/2)"]),
    "rotary integers": (
        lambda: te.rotary(t(2, 4, dtype="int64"), t(2, 2), t(2, 2)), TypeError, ["int64", "float"]),
    # switches
    **{
        f"{name} {option} {given!r}": (
            lambda f=f, option=option, given=given: f(**{option: given}),
            ValueError, [f"{option} is {given!r}", "True or False"])
        for given in ("no", 1, None)
        for name, option, f in [
            ("rnn", "batch_first", partial(sequence, te.rnn)),
            ("lstm", "reverse", partial(sequence, te.lstm)),
            ("max_pool1d", "ceil_mode", partial(te.max_pool1d, t(1, 4), 2)),
            ("max_pool2d", "ceil_mode", partial(te.max_pool2d, t(1, 4, 4), 2)),
            ("avg_pool2d", "ceil_mode", partial(te.avg_pool2d, t(1, 4, 4), 2)),
            ("avg_pool2d", "count_include_pad", partial(te.avg_pool2d, t(1, 4, 4), 2)),
            ("batch_norm", "training", partial(te.batch_norm, t(2, 3))),
            ("dropout", "training", partial(te.dropout, t(3))),
        ]
    },
    # pooling
    **{
        f"{name} {what}": (
            lambda f=f, shape=(1, 2, *(5,) * int(name[-2])), o=options: f(t(*shape), **o),
            ValueError, words)
        for name, f in POOLS.items()
        for what, options, words in [
            ("kernel", {"kernel_size": 6}, ["kernel of 6", "at most 5"]),
            ("no kernel", {"kernel_size": 0}, ["kernel_size is 0", "at least 1"]),
            ("kernel bool", {"kernel_size": True}, ["kernel_size is True", "whole number"]),
            ("kernel fraction", {"kernel_size": 2.0}, ["kernel_size is 2.0", "whole number"]),
            ("kernels", {"kernel_size": (2, 2, 2)}, ["kernel_size is (2, 2, 2)"]),
            ("stride", {"kernel_size": 2, "stride": 0}, ["stride is 0", "at least 1"]),
            ("minus padding", {"kernel_size": 2, "padding": -1}, ["padding is -1", "at least 0"]),
            ("padding", {"kernel_size": 2, "padding": 2}, ["padding is (2", "half of kernel_size"]),
        ]
    },
    **{
        f"{name} {what}": (
            lambda f=f, x=x: f(x, 2), kind, [name, *words])
        for name, f in {**POOLS, "adaptive_avg_pool1d": te.adaptive_avg_pool1d,
                        "adaptive_avg_pool2d": te.adaptive_avg_pool2d}.items()
        for what, x, kind, words in [
            ("rank", t(4), ValueError, ["(4,)", "(N, C, "]),
            ("integers", t(1, 2, *(4,) * int(name[-2]), dtype="int64"), TypeError, ["int64"]),
        ]
    },
    "max_pool2d dilation": (
        lambda: te.max_pool2d(t(1, 4, 4), 3, dilation=2), ValueError, ["dilation 2", "at most 4"]),
    "avg_pool2d divisor": (
        lambda: te.avg_pool2d(t(1, 4, 4), 2, divisor_override=0),
        ValueError, ["divisor_override is 0"]),
    "adaptive_avg_pool2d empty": (
        lambda: te.adaptive_avg_pool2d(t(1, 2, 0, 3), 2),
        ValueError, ["(1, 2, 0, 3)", "no empty axis"]),
    "adaptive_avg_pool2d bool": (
        lambda: te.adaptive_avg_pool2d(t(1, 2, 3, 3), True), ValueError, ["output_size is True"]),
    "conv1d padding": (
        lambda: te.conv1d(t(1, 2, 5), t(1, 2, 3), padding="full"),
        ValueError, ["'full'", "'same'"]),
    "conv1d stride bool": (
        lambda: te.conv1d(t(1, 2, 5), t(1, 2, 3), stride=True), ValueError, ["stride is True"]),
    "conv1d groups": (
        lambda: te.conv1d(t(1, 2, 5), t(1, 2, 3), groups=1.5), ValueError, ["groups is 1.5"]),
    "conv1d reflect": (
        lambda: te.conv1d(t(1, 2, 5), t(1, 2, 3), padding=5, padding_mode="reflect"),
        ValueError, ["(5, 5)", "(1, 2, 5)", "at most 4"]),
    "pad pairs": (lambda: te.pad(t(3), 1), ValueError, ["padding is 1", "pairs"]),
    "pad axes": (
        lambda: te.pad(t(3), [(1, 1), (1, 1)]), ValueError, ["(3,)", "more pairs than axes"]),
    "pad bool": (lambda: te.pad(t(3), [(True, 1)]), ValueError, ["[(True, 1)]", "pairs"]),
    "pad value": (lambda: te.pad(t(3), [(1, 1)], value="a"), TypeError, ["str"]),
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
    "adaptive_avg_pool2d size": (
        lambda: te.adaptive_avg_pool2d(t(1, 4, 4), 0), ValueError, ["output_size is 0"]),
    "adaptive_avg_pool2d sizes": (
        lambda: te.adaptive_avg_pool2d(t(1, 4, 4), (1, 2, 3)),
        ValueError, ["output_size is (1, 2, 3)"]),
    "adaptive_avg_pool2d rank": (
        lambda: te.adaptive_avg_pool1d(t(4), 2), ValueError, ["adaptive_avg_pool1d", "(4,)"]),
    # embedding, dropout, losses, norms
    "embedding": (
        lambda: te.embedding([0, 5], t(5, 2)), IndexError, ["embedding index 5", "0 … 4"]),
    "embedding negative": (lambda: te.embedding([-1], t(5, 2)), IndexError, ["index -1"]),
    "embedding empty": (lambda: te.embedding([0], t(0, 2)), IndexError, ["index 0"]),
    "embedding floats": (
        lambda: te.embedding(te.Tensor([0.0]), t(5, 2)), TypeError, ["float32", "integers"]),
    "embedding bool": (lambda: te.embedding([True], t(5, 2)), TypeError, ["bool"]),
    "embedding scalar": (lambda: te.embedding([0], t()), (ValueError, TypeError), ["()"]),
    "embedding padding_idx": (
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
    "bce_with_logits": (
        lambda: te.bce_with_logits(t(2), t(3)), ValueError, ["bce_with_logits", "(2,)", "(3,)"]),
    "bce_with_logits weight": (
        lambda: te.bce_with_logits(t(2, 3), t(2, 3), t(2)), ValueError, ["weight", "(2,)"]),
    "bce_with_logits pos_weight": (
        lambda: te.bce_with_logits(t(3), t(3), pos_weight=t(2, 3)),
        ValueError, ["pos_weight", "(2, 3)", "(3,)"]),
    "bce_with_logits weight's gradient": (
        lambda: te.bce_with_logits(t(2), t(2), te.ones(2, requires_grad=True)),
        ValueError, ["weight requires a gradient"]),
    "bce_with_logits integers": (
        lambda: te.bce_with_logits(t(2, dtype="int8"), t(2)), TypeError, ["int8"]),
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
    "batch_norm rank": (lambda: batch(3), ValueError, ["batch_norm", "x (3,)", "(N, C, …)"]),
    "batch_norm scalar": (lambda: batch(), ValueError, ["x ()"]),
    "batch_norm weight": (
        lambda: batch(2, 3, weight=t(2)), ValueError, ["weight (2,)", "x (2, 3)"]),
    "batch_norm bias": (lambda: batch(2, 3, weight=t(3), bias=t(1)), ValueError, ["bias (1,)"]),
    "batch_norm bias alone": (
        lambda: batch(2, 3, bias=t(3)), ValueError, ["bias without a weight"]),
    "batch_norm of one": (lambda: batch(1, 3), ValueError, ["(1, 3)", "more than one value"]),
    "batch_norm of none": (lambda: batch(0, 3), ValueError, ["(0, 3)", "more than one value"]),
    "batch_norm running": (
        lambda: batch(2, 3, running_mean=t(2)), ValueError, ["running_mean (2,)", "(2, 3)"]),
    "batch_norm running variance": (
        lambda: batch(2, 3, running_var=t(4)), ValueError, ["running_var (4,)"]),
    "batch_norm no statistics": (
        lambda: te.batch_norm(t(2, 3)), ValueError, ["no running statistics", "training=True"]),
    "batch_norm statistics": (
        lambda: te.batch_norm(t(2, 3), t(2), t(3)), ValueError, ["mean (2,)", "x (2, 3)"]),
    "batch_norm integers": (
        lambda: te.batch_norm(t(2, 3, dtype="int64"), training=True), TypeError, ["int64"]),
    "batch_norm widths": (
        lambda: batch(2, 3, weight=t(3, dtype="float64")),
        TypeError, ["x float32", "weight float64"]),
    "group_norm": (
        lambda: te.group_norm(t(2, 6), 4), ValueError, ["(2, 6)", "4 groups", "divides"]),
    "group_norm zero": (lambda: te.group_norm(t(2, 6), 0), ValueError, ["num_groups is 0"]),
    "group_norm rank": (lambda: te.group_norm(t(6), 2), ValueError, ["group_norm", "x (6,)"]),
    "group_norm weight": (
        lambda: te.group_norm(t(2, 6), 2, t(2)), ValueError, ["weight (2,)", "(2, 6)"]),
    "group_norm bias alone": (
        lambda: te.group_norm(t(2, 6), 2, None, t(6)), ValueError, ["bias without a weight"]),
    "group_norm integers": (lambda: te.group_norm(t(2, 6, dtype="int32"), 2), TypeError, ["int32"]),
    "rms_norm": (lambda: te.rms_norm(t(2, 3), 4), ValueError, ["rms_norm", "(2, 3)", "(4,)"]),
    "rms_norm nothing": (lambda: te.rms_norm(t(2, 3), ()), ValueError, ["()"]),
    "rms_norm weight": (lambda: te.rms_norm(t(2, 3), 3, t(2)), ValueError, ["(2,)", "(3,)"]),
    "rms_norm integers": (lambda: te.rms_norm(t(2, 3, dtype="int64"), 3), TypeError, ["int64"]),
    **{
        f"{name} eps {eps}": (
            lambda f=f, eps=eps: f(t(4, 2), eps=eps), kind, [f"{name} eps is {eps}"])
        for name, f in {
            "layer_norm": lambda x, eps: te.layer_norm(x, 2, eps=eps),
            "rms_norm": lambda x, eps: te.rms_norm(x, 2, eps=eps),
            "group_norm": lambda x, eps: te.group_norm(x, 1, eps=eps),
            "batch_norm": lambda x, eps: te.batch_norm(x, training=True, eps=eps),
        }.items()
        for eps, kind in [(-1, ValueError), (NAN, ValueError), (True, TypeError)]
    },
    "layer_norm bool": (
        lambda: te.layer_norm(t(2, 1), True), TypeError, ["(True,)", "whole numbers"]),
    "layer_norm fraction": (
        lambda: te.layer_norm(t(2, 3), 3.0), TypeError, ["(3.0,)", "whole numbers"]),
    "layer_norm None": (lambda: te.layer_norm(t(2, 3), None), TypeError, ["None", "whole numbers"]),
    "group_norm fraction": (lambda: te.group_norm(t(2, 6), 2.0), ValueError, ["num_groups is 2.0"]),
    "group_norm bool": (lambda: te.group_norm(t(2, 6), True), ValueError, ["num_groups is True"]),
    "batch_norm momentum": (
        lambda: batch(4, 3, momentum=2), ValueError, ["momentum is 2", "0 … 1"]),
    "batch_norm momentum NaN": (
        lambda: batch(4, 3, momentum=NAN), ValueError, ["momentum is nan", "0 … 1"]),
    "batch_norm running array": (
        lambda: batch(4, 3, running_mean=[0, 0, 0]), TypeError, ["running_mean of list", "Tensor"]),
    "batch_norm running integers": (
        lambda: batch(4, 3, running_mean=t(3, dtype="int64")),
        TypeError, ["running_mean of int64"]),
    "batch_norm running read-only": (
        lambda: batch(4, 3, running_var=t(1).expand(3)), ValueError, ["read-only running_var"]),
    "dropout NaN": (lambda: te.dropout(t(2), NAN), ValueError, ["probability is nan", "0 … 1"]),
    "dropout negative": (lambda: te.dropout(t(2), -0.1), ValueError, ["probability is -0.1"]),
    "dropout bool": (lambda: te.dropout(t(2), True), TypeError, ["probability is True", "number"]),
    "dropout generator": (
        lambda: te.dropout(t(2), generator=np.random.default_rng()), TypeError,
        ["numpy.random", "te_tensor Generator"]),
    "embedding padding_idx fraction": (
        lambda: te.embedding([0], t(5, 2), padding_idx=1.5), ValueError, ["padding_idx is 1.5"]),
    "embedding padding_idx bool": (
        lambda: te.embedding([0], t(5, 2), padding_idx=True), ValueError, ["padding_idx is True"]),
    "huber_loss delta NaN": (
        lambda: te.huber_loss(t(2), t(2), delta=NAN), ValueError, ["delta is nan"]),
    "huber_loss delta text": (
        lambda: te.huber_loss(t(2), t(2), delta="a"), TypeError, ["delta is 'a'", "number"]),
    "mse_loss None": (lambda: te.mse_loss(t(2), None), TypeError, ["NoneType"]),
    "l1_loss stored": (
        lambda: te.l1_loss(t(2), t(2, dtype="complex64")),
        TypeError, ["complex64", "storage only"]),
    "bce_with_logits stored": (
        lambda: te.bce_with_logits(t(2), t(2, dtype="complex64")),
        TypeError, ["complex64", "storage only"]),
    "cross_entropy bool": (
        lambda: te.cross_entropy(t(2, 3), [True, False]), TypeError, ["bool", "labels"]),
    "cross_entropy smoothing NaN": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], label_smoothing=NAN),
        ValueError, ["label_smoothing is nan", "0 … 1"]),
    "cross_entropy ignore_index": (
        lambda: te.cross_entropy(t(2, 3), [0, 1], ignore_index=0.5),
        ValueError, ["ignore_index is 0.5"]),
    "nll_loss ignore_index": (
        lambda: te.nll_loss(t(2, 3), [0, 1], ignore_index=NAN),
        ValueError, ["ignore_index is nan"]),
    "prelu text": (lambda: te.prelu(t(2, 3), "a"), TypeError, ["str"]),
}  # fmt: skip
