"""Bad calls of attention: the call, the error, and words that it holds."""

import numpy as np

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


def attend(q=(2, 2, 3, 4), k=None, v=None, **options):
    """Attention on ones, with a D and slopes where only one of them is given."""
    k = k or (*q[:2], 5, q[3])
    return te.attention(t(*q), t(*k), t(*(v or k)), **options)


BAD = {
    **{
        f"attention causal {given!r}": (
            lambda given=given: attend(causal=given),
            ValueError, [f"causal is {given!r}", "True or False"])
        for given in ("no", 1, None)
    },
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
    "attention mask three axes": (
        lambda: attend(mask=np.ones((2, 3, 5), bool)), ValueError, ["mask", "(2, 3, 5)"]),
    "attention mask one axis": (
        lambda: attend(mask=np.ones(5, bool)), ValueError, ["mask", "(5,)"]),
    "attention mask shape": (
        lambda: attend(mask=np.ones((2, 5), bool)), ValueError, ["(2, 5)", "(3, 5)"]),
    "attention mask heads": (
        lambda: attend(mask=np.ones((2, 3, 3, 5))), ValueError, ["(2, 3, 3, 5)"]),
    "attention mask integers": (
        lambda: attend(mask=np.ones((3, 5), "int64")), TypeError, ["int64", "bool"]),
    "attention distance alone": (
        lambda: attend(distance=np.ones((3, 5))), ValueError, ["no slopes", "together"]),
    "attention slopes alone": (
        lambda: attend(slopes=np.ones(2)), ValueError, ["no distance", "together"]),
    "attention distance shape": (
        lambda: attend(distance=np.ones((5, 3)), slopes=np.ones(2)),
        ValueError, ["(5, 3)", "(3, 5)"]),
    "attention distance batch": (
        lambda: attend(distance=np.ones((3, 3, 5)), slopes=np.ones(2)),
        ValueError, ["(3, 3, 5)", "(2, 3, 5)"]),
    "attention distance one row": (
        lambda: attend(distance=np.ones((1, 5)), slopes=np.ones(2)), ValueError, ["(1, 5)"]),
    "attention distance five axes": (
        lambda: attend(distance=np.ones((1, 2, 2, 3, 5)), slopes=np.ones(2)),
        ValueError, ["(1, 2, 2, 3, 5)"]),
    "attention distance one axis": (
        lambda: attend(distance=np.ones(5), slopes=np.ones(2)), ValueError, ["(5,)"]),
    "attention distance negative": (
        lambda: attend(distance=np.full((3, 5), -0.5), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "attention distance NaN": (
        lambda: attend(distance=np.full((2, 3, 5), np.nan), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "attention distance -inf": (
        lambda: attend(distance=np.full((2, 2, 3, 5), -np.inf), slopes=np.ones(2)),
        ValueError, ["negative or NaN"]),
    "attention slopes shape": (
        lambda: attend(distance=np.ones((3, 5)), slopes=np.ones(3)), ValueError, ["(3,)"]),
    "attention slopes axes": (
        lambda: attend(distance=np.ones((3, 5)), slopes=np.ones((1, 2))), ValueError, ["(1, 2)"]),
    "attention bias function": (
        lambda: attend(
            distance=np.ones((3, 5)), slopes=np.ones(2), bias_function="linear"
        ),
        ValueError, ["'linear'", "logarithmic, gaussian"]),
    "attention dropout": (lambda: attend(dropout=1.5), ValueError, ["1.5"]),
    "attention dropout bool": (lambda: attend(dropout=True), TypeError, ["probability is True"]),
    "attention offset": (lambda: attend(offset=0.5), ValueError, ["offset is 0.5"]),
    "attention scale": (lambda: attend(scale=float("nan")), ValueError, ["scale is nan", "finite"]),
    "attention scale text": (lambda: attend(scale="a"), TypeError, ["scale is 'a'", "number"]),
    "attention generator": (
        lambda: attend(dropout=0.5, generator=3),
        TypeError, ["builtins.int", "te_tensor Generator"]),
    "attention rates": (lambda: attend(rates=t(2)), ValueError, ["rates", "no distance"]),
    "prepare_distance function": (
        lambda: te.prepare_distance(np.ones((2, 2)), "linear"),
        ValueError, ["'linear'", "gaussian"]),
    "prepare_distance negative": (
        lambda: te.prepare_distance(-np.ones((2, 2))), ValueError, ["negative or NaN", "0 … +inf"]),
    "prepare_distance rank": (
        lambda: te.prepare_distance(np.ones(3)), ValueError, ["(3,)", "(S, T)"]),
    "prepare_distance dtype": (
        lambda: te.prepare_distance(np.ones((2, 2)), dtype="int64"), TypeError, ["int64", "float"]),
    "prepare_distance text": (lambda: te.prepare_distance("a"), TypeError, ["str"]),
    "distance_function name": (
        lambda: te.distance_function("linear"), ValueError, ["'linear'", "gaussian"]),
    "register_distance_function name": (
        lambda: te.register_distance_function("gaussian", np.sqrt, np.sqrt),
        ValueError, ["gaussian"]),
}  # fmt: skip
