"""Recurrent layers beside their values: bad input, threads, graphs, and the tools below them."""

import threading

import numpy as np
import pytest

import te_tensor as te
from te_tensor import blas, blas_library, parallel

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def run(name="lstm", x=(5, 2, 3), hidden=4, dtype="float32", **changed):
    """The function on ones; `changed` has shapes for parameters, or options."""
    rows = GATES[name] * hidden
    shapes = {
        "weight_ih": (rows, x[-1] if x else 1),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    shapes |= {key: value for key, value in changed.items() if isinstance(value, tuple)}
    options = {key: value for key, value in changed.items() if not isinstance(value, tuple)}
    tensors = {key: te.ones(*shape, dtype=dtype) for key, shape in shapes.items()}
    return getattr(te, name)(te.ones(*x, dtype=dtype), **{**tensors, **options})


ERRORS = {
    "rank": (lambda: run(x=(5, 3)), ValueError, ["lstm", "x (5, 3)", "(T, B, I)"]),
    "rank batch_first": (lambda: run(x=(3,), batch_first=True), ValueError, ["(3,)", "(B, T, I)"]),
    "scalar": (lambda: run(x=()), ValueError, ["x ()"]),
    "features": (lambda: run(weight_ih=(16, 5)), ValueError, ["x (5, 2, 3)", "(16, 5)"]),
    "gates": (lambda: run("gru", weight_ih=(16, 3)), ValueError, ["gru", "(16, 3)", "3·H"]),
    "hidden": (lambda: run(weight_hh=(16, 5)), ValueError, ["weight_hh (16, 5)", "4·H"]),
    "hidden rank": (lambda: run(weight_hh=(16,)), ValueError, ["weight_hh (16,)"]),
    "hidden scalar": (lambda: run(weight_hh=()), ValueError, ["weight_hh ()"]),
    "bias": (lambda: run("rnn", bias_hh=(5,)), ValueError, ["rnn", "bias_hh (5,)"]),
    "one bias": (lambda: run(bias_hh=None), ValueError, ["no bias_hh", "both"]),
    "other bias": (lambda: run(bias_ih=None), ValueError, ["no bias_ih", "both"]),
    "h0": (lambda: run(h0=(3, 4)), ValueError, ["h0 (3, 4)", "(B, H)"]),
    "c0": (lambda: run(c0=(2, 3)), ValueError, ["c0 (2, 3)"]),
    "h0 rank": (lambda: run("gru", h0=(1, 2, 4)), ValueError, ["h0 (1, 2, 4)"]),
    "no steps": (lambda: run(x=(0, 2, 3)), ValueError, ["x (0, 2, 3)", "one step"]),
    "no steps in the middle": (
        lambda: run(x=(2, 0, 3), batch_first=True), ValueError, ["(2, 0, 3)", "one step"]),
    "no features": (lambda: run(x=(5, 2, 0)), ValueError, ["(5, 2, 0)"]),
    "no hidden": (lambda: run(hidden=0), ValueError, ["weight_hh (0, 0)"]),
    "nonlinearity": (lambda: run("rnn", nonlinearity="gelu"), ValueError, ["'gelu'", "tanh, relu"]),
    "integers": (lambda: run(dtype="int64"), TypeError, ["lstm", "int64"]),
    "widths": (
        lambda: run(h0=te.zeros(2, 4, dtype="float64")),
        TypeError, ["x float32", "h0 float64"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{caught.value!r} doesn't hold {missing}"


def leaves(name="lstm", steps=40, batch=8, width=6, hidden=6, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    rows = GATES[name] * hidden
    shapes = [(steps, batch, width), (rows, width), (rows, hidden), (rows,), (rows,)]
    return [te.Tensor(rng.uniform(-0.6, 0.6, s), dtype=dtype, requires_grad=True) for s in shapes]


def gradients(name, tensors, **options):
    for tensor in tensors:
        tensor.zero_grad()
    output, *_ = getattr(te, name)(*tensors, **options)
    (output * output).sum().backward()
    return [output.numpy(), *(t.grad.numpy() for t in tensors)]


@pytest.mark.parametrize("name", GATES)
def test_same_threads_same_bits(name, threads):
    tensors = leaves(name)
    first = gradients(name, tensors)
    for _ in range(3):
        for a, b in zip(first, gradients(name, tensors), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("name", GATES)
def test_thread_counts_agree(name, dtype, tolerance):
    tensors = leaves(name, dtype=dtype)
    te.set_num_threads(1)
    alone = gradients(name, tensors)
    for count in (2, 3, 4):
        te.set_num_threads(count)
        for a, b in zip(alone, gradients(name, tensors), strict=True):
            np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("hidden", [16, 33])
@pytest.mark.parametrize("batch", [1, 3, 8, 19])
@pytest.mark.parametrize("name", GATES)
def test_kernels_agree_with_numpy(name, batch, hidden, threads):
    tensors = leaves(name, steps=7, batch=batch, width=20, hidden=hidden)
    made = gradients(name, tensors)
    inference = te.no_grad()(getattr(te, name))(*tensors)[0].numpy()
    te.set_kernels("numpy")
    expected = gradients(name, tensors)
    np.testing.assert_allclose(inference, expected[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * abs(b).max())


@pytest.mark.parametrize("name", GATES)
def test_inputs_may_lie_anyhow_in_memory(name):
    x, *weights = leaves(name, steps=9, batch=6, width=5)
    function, array = getattr(te, name), x.numpy()
    expected = function(x, *weights)[0].numpy()
    for view in (
        te.from_numpy(np.repeat(array, 2, axis=2))[:, :, ::2],
        te.from_numpy(np.ascontiguousarray(array.swapaxes(0, 2))).transpose(0, 2),
        te.from_numpy(np.ascontiguousarray(array[::-1]))[::-1],
    ):
        np.testing.assert_allclose(function(view, *weights)[0].numpy(), expected, rtol=1e-6)
    one = te.from_numpy(array[:1, :1]).expand(9, 6, 5)
    result = function(one, *weights)[0].numpy()
    np.testing.assert_allclose(result[:, 0], result[:, 5], rtol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_inside_shard(name):
    te.set_num_threads(2)
    x, *weights = leaves(name, dtype="float64")
    whole = gradients(name, [x, *weights])
    for tensor in (x, *weights):
        tensor.zero_grad()
    function = getattr(te, name)
    output = te.shard(lambda part: function(part, *weights)[0], x, axis=1, shards=2)
    (output * output).sum().backward()
    for a, b in zip(whole, [output, *(t.grad for t in (x, *weights))], strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", GATES)
def test_a_graph_that_is_kept_gives_the_same_again(name):
    x, *weights = leaves(name)
    output, last, *_ = getattr(te, name)(x, *weights)
    loss = output.sum() + last.sum()
    loss.backward(retain_graph=True)
    first = [t.grad.numpy().copy() for t in (x, *weights)]
    for tensor in (x, *weights):
        tensor.zero_grad()
    loss.backward()
    for tensor, grad in zip((x, *weights), first, strict=True):
        np.testing.assert_array_equal(tensor.grad.numpy(), grad)


@pytest.mark.parametrize("frozen", range(5))
def test_what_needs_no_gradient_gets_none(frozen):
    tensors = leaves()
    tensors[frozen].requires_grad = False
    te.lstm(*tensors)[2].sum().backward()
    assert [t.grad is None for t in tensors] == [place == frozen for place in range(5)]


def test_a_weight_that_changes_before_backward_is_noticed():
    x, *weights = leaves()
    output, _, _ = te.lstm(x, *weights)
    with weights[0].lock() as array:
        array += 1
    with pytest.raises(RuntimeError, match="LSTM"):
        output.sum().backward()


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_round_once(name, dtype):
    small = [te.Tensor(t.numpy(), dtype=dtype, requires_grad=True) for t in leaves(name)]
    wide = [t.astype("float32") for t in small]
    result, expected = getattr(te, name)(*small)[0], getattr(te, name)(*wide)[0]
    assert result.dtype == small[0].dtype
    assert result.tolist() == expected.astype(dtype).tolist()
    result.sum().backward()
    assert all(t.grad.dtype == t.dtype for t in small)


# -- the tools ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openblas", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["plain", "turned", "odd", "column", "empty", "inner"])
def test_stepwise_products(form, dtype, kind):
    if kind not in str(blas_library.blas_info()["library"]) and kind == "openblas":
        pytest.skip("no OpenBLAS here")
    rng = np.random.default_rng(0)
    rows, inner, columns = 5, 0 if form == "inner" else 4, {"column": 1, "empty": 0}.get(form, 3)
    a = rng.uniform(-1, 1, (rows, inner)).astype(dtype)
    b = rng.uniform(-1, 1, (6, inner, columns)).astype(dtype)
    if form == "turned":
        b = np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
    if form == "odd":
        b = np.repeat(b, 2, axis=2)[:, :, ::2]
    out = rng.uniform(-1, 1, (6, rows, columns)).astype(dtype)
    expected = out + a @ b
    try:
        if kind == "numpy":
            te.set_blas("numpy")
        product = blas.stepwise(a, b, out, beta=1.0)
        for step in (5, 0, 3, 1, 2, 4):
            product(step)
        same = np.zeros((rows, columns), dtype)
        onto_one = blas.stepwise(a, b, same)
        onto_one(2)
    finally:
        te.set_blas("auto")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same, a @ b[2], rtol=1e-5, atol=1e-6)


def test_stepwise_products_of_two_dtypes_raise():
    a, b = np.ones((2, 2), "float32"), np.ones((3, 2, 2))
    with pytest.raises(TypeError, match="float32 and float64"):
        blas.stepwise(a, b, np.ones((3, 2, 2)))


@pytest.mark.parametrize("helped", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_relay_keeps_the_order(count, helped, threads):
    calls: list[tuple[str, int]] = []
    parallel.relay(
        *(
            lambda item, kind=kind: calls.append((kind, item))
            for kind in ("ahead", "step", "after")
        ),
        count,
        helped=helped,
    )
    assert len(calls) == 3 * count
    for kind in ("ahead", "step", "after"):
        assert [item for k, item in calls if k == kind] == list(range(count))
    for item in range(count):
        places = [calls.index((kind, item)) for kind in ("ahead", "step", "after")]
        assert places == sorted(places)


@pytest.mark.parametrize("where", ["ahead", "step", "after"])
def test_a_relay_that_fails_ends(where):
    te.set_num_threads(2)

    def fail(item):
        if item == 2:
            raise ArithmeticError(f"{where} of {item}")

    functions = {"ahead": lambda item: None, "step": lambda item: None, "after": lambda item: None}
    functions[where] = fail
    for _ in range(20):
        with pytest.raises(ArithmeticError, match=f"{where} of 2"):
            parallel.relay(*functions.values(), 6, helped=True)


def test_many_threads_may_run_sequences_at_once():
    te.set_num_threads(2)
    tensors = leaves(dtype="float64")
    expected = te.lstm(*tensors)[0].numpy()
    wrong = []

    def work():
        for _ in range(5):
            with te.no_grad():
                if not np.array_equal(te.lstm(*tensors)[0].numpy(), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong and not any(worker.is_alive() for worker in workers)
