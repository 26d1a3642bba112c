"""Recordings: chains of operations, any of whose arrays may be used several times."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.dtypes import float32
from te_tensor.machine import Product, Steps, runs_programs, share_products
from te_tensor.ops.activation import ReLU, SiLU, Tanh
from te_tensor.ops.convolution import Convolution
from te_tensor.ops.gelu import GELU
from te_tensor.ops.linalg import Linear
from te_tensor.ops.normalization import LayerNorm
from te_tensor.ops.pooling import MaxPool
from te_tensor.ops.shape import Reshape
from te_tensor.recorder import Recorder, Unrecorded
from te_tensor.recording import Replay

pytestmark = pytest.mark.skipif(not runs_programs(), reason="no AVX-512 here")

SHAPES = {"x": (2, 9, 20), "w": (20, 20), "v": (20, 20), "b": (20,), "c": (20,)}


def plain(apply, t):
    return apply(Linear(), t["x"], t["w"])


def both_terms(apply, t):
    return apply(Linear(residual=True), t["x"], t["w"], t["b"], t["x"])


def residual_first(apply, t):
    """What x gets last is the gradient of a residual."""
    a = apply(Linear(residual=True), t["x"], t["w"], t["b"], t["x"])
    return apply(Linear(residual=True), a, t["v"], t["x"])


def one_array_in_many_places(apply, t):
    a = apply(Linear(), t["x"], t["w"], t["b"])
    b = apply(GELU(), a)
    c = apply(SiLU(), a)
    d = apply(Linear(residual=True), b, t["v"], c)
    e = apply(LayerNorm(), a, t["b"], t["c"])
    f = apply(ReLU(), a)
    g = apply(Linear(residual=True), e, t["v"], t["b"], d)
    return apply(Linear(residual=True), f, t["w"], g)


def norms(apply, t):
    a = apply(LayerNorm(1, 0.1), t["x"], t["b"])
    b = apply(LayerNorm(), a)
    return apply(Linear(residual=True), apply(LayerNorm(), a, t["c"], t["b"]), t["w"], b)


def ends_with_an_activation(apply, t):
    a = apply(Linear(), t["x"], t["w"], t["b"])
    return apply(ReLU(), apply(GELU("tanh"), apply(Linear(residual=True), a, t["v"], a)))


CHAINS = [
    plain,
    both_terms,
    residual_first,
    one_array_in_many_places,
    norms,
    ends_with_an_activation,
]


class _Noted(dict):
    """Remembers what was asked for."""

    def __init__(self, given):
        super().__init__(given)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


def record(chain, shapes, needs, **options):
    recorder = Recorder(**options)
    used = _Noted(dict.fromkeys(shapes))
    given = {n: recorder.input(s, needs_grad=n in needs) for n, s in shapes.items()}
    return recorder.finish(chain(recorder.apply, given)), used


def names_in(chain):
    noted = _Noted({name: te.zeros(*shape) for name, shape in SHAPES.items()})
    chain(lambda operation, *given: te.Tensor.apply(operation, *given), noted)
    return [name for name in SHAPES if name in noted.used]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.__name__)
@pytest.mark.parametrize("left_out", [(), ("x",), ("w", "b")], ids=str)
@pytest.mark.parametrize("tiles", [False, True])
def test_chains(chain, left_out, tiles, threads, monkeypatch):
    monkeypatch.setattr("te_tensor.recorder._TILED_FROM", 0)
    names = names_in(chain)
    needs = [name for name in names if name not in left_out]
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(SHAPES[name]) for name in names}
    recording, _ = record(chain, {name: SHAPES[name] for name in names}, needs, tiles=tiles)
    grad = rng.standard_normal(recording.shape)
    found = []
    for dtype in (float32, np.float64):
        tensors = {
            name: te.Tensor(a.astype(dtype), requires_grad=name in needs)
            for name, a in arrays.items()
        }
        if dtype is float32:
            out = te.Tensor.apply(Replay(recording), *tensors.values())
        else:
            out = chain(lambda operation, *given: te.Tensor.apply(operation, *given), tensors)
        out.backward(te.Tensor(grad.astype(dtype)))
        found.append([out.numpy(), *(tensors[name].grad.numpy() for name in needs)])
        assert all(tensors[name].grad is None for name in names if name not in needs)
    for ours, exact in zip(*found, strict=True):
        assert np.abs(ours - exact).max() <= 1e-5 * max(np.abs(exact).max(), 1)


def images(apply, t, count):
    """Each array, in lanes or not, is used several times."""

    def convolve(x, w, **options):
        return apply(Convolution((1, 1), ((1, 1), (1, 1)), **options), x, w)

    def flat(x):
        return apply(Reshape((count, -1)), x)

    def pooled(x):
        return flat(apply(MaxPool((2, 2)), x))

    a = convolve(t["x"], t["w1"])
    b = convolve(a, t["w2"], groups=2)
    c = apply(Linear(residual=True), flat(b), t["w3"], pooled(a))
    for made in (apply(ReLU(), a), apply(SiLU(), a), convolve(t["x"], t["w1"]), b):
        c = apply(Linear(residual=True), pooled(made), t["w4"], c)
    return apply(Linear(residual=True), flat(apply(GELU(), t["x"])), t["w5"], c)


@pytest.mark.parametrize("count", [8, 19, 32])
@pytest.mark.parametrize("side", [4, 5])
def test_images_in_lanes(count, side, threads):
    rng = np.random.default_rng(0)
    places, pooled = side * side, (side // 2) ** 2
    shapes = {"x": (count, 3, side, side), "w1": (4, 3, 3, 3), "w2": (4, 2, 3, 3)}
    for name, width in {"w3": 4 * places, "w4": 4 * pooled, "w5": 3 * places}.items():
        shapes[name] = 4 * pooled, width
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    recorder = Recorder()
    given = {name: recorder.input(shape, needs_grad=True) for name, shape in shapes.items()}
    recording = recorder.finish(images(recorder.apply, given, count))
    grad, found = rng.standard_normal(recording.shape), []
    for dtype in (float32, np.float64):
        tensors = {n: te.Tensor(a.astype(dtype), requires_grad=True) for n, a in arrays.items()}
        if dtype is float32:
            out = te.Tensor.apply(Replay(recording), *tensors.values())
        else:
            out = images(lambda operation, *g: te.Tensor.apply(operation, *g), tensors, count)
        out.backward(te.Tensor(grad.astype(dtype)))
        found.append([out.numpy(), *(tensor.grad.numpy() for tensor in tensors.values())])
    for ours, exact in zip(*found, strict=True):
        assert np.abs(ours - exact).max() <= 1e-5 * max(np.abs(exact).max(), 1)


@pytest.mark.parametrize("shape", [(7, 3, 4, 4), (3, 4, 4), (8, 3, 200, 200)])
def test_images_that_lie_in_no_lanes(shape):
    recorder = Recorder()
    x, w = recorder.input(shape, needs_grad=True), recorder.input((4, 3, 3, 3), needs_grad=True)
    for operation, given in ((Convolution(), (x, w)), (MaxPool((2, 2)), (x,))):
        with pytest.raises(Unrecorded):
            recorder.apply(operation, *given)
    x = recorder.input((8, 3, 7, 7), needs_grad=True)
    for operation, given in ((Convolution((2, 1)), (x, w)), (MaxPool((3, 3)), (x,))):
        with pytest.raises(Unrecorded):
            recorder.apply(operation, *given)


RECORDED = [
    (name, place)
    for name, operation in sorted(te.REGISTRY.items())
    if operation.record is not None
    for place in range(len(operation.samples))
]


@pytest.mark.parametrize(("name", "place"), RECORDED)
@pytest.mark.parametrize("passed_on", [False, True])
def test_samples_of_every_operation(name, place, passed_on):
    kind = te.REGISTRY[name]
    sample = kind.samples[place]
    arrays = [np.asarray(array, float32) for array in sample.arrays()]
    if any(not array.ndim for array in arrays):
        return
    recorder = Recorder()
    first = recorder.input(arrays[0].shape, needs_grad=True)
    others = [recorder.input(array.shape, needs_grad=True) for array in arrays[1:]]
    # So that the first input is what an operation made.
    moved = recorder.apply(LayerNorm(), first)
    moved = recorder.pass_on(moved) if passed_on else moved
    try:
        out = recorder.apply(kind(*sample.args, **sample.kwargs), moved, *others)
    except Unrecorded:
        assert kind.records_lanes == "wanted"  # the samples have fewer images
        return
    recording = recorder.finish(out)
    found = []
    for recorded in (True, False):
        tensors = [te.Tensor(array, requires_grad=True) for array in arrays]
        if recorded:
            result = te.Tensor.apply(Replay(recording), *tensors)
        else:
            operation = kind(*sample.args, **sample.kwargs)
            result = te.Tensor.apply(
                operation, te.layer_norm(tensors[0], tensors[0].shape[-1]), *tensors[1:]
            )
        result.backward(
            te.Tensor(np.linspace(-1, 1, result.size, dtype=float32).reshape(out.shape))
        )
        found.append([result.numpy(), *(tensor.grad.numpy() for tensor in tensors)])
    for ours, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def test_what_has_no_recording():
    recorder = Recorder()
    x, w = recorder.input((3, 4), needs_grad=True), recorder.input((5, 6), needs_grad=True)
    for operation, given in ((Tanh(), (x,)), (Linear(), (x, w)), (LayerNorm(), (x, w))):
        with pytest.raises(Unrecorded):
            recorder.apply(operation, *given)
    with pytest.raises(Unrecorded, match="depend"):
        recorder.finish(recorder.apply(ReLU(), x))


def test_a_recording_is_for_the_threads_that_it_was_made_for():
    before = te.get_num_threads()
    try:
        te.set_num_threads(1)
        recording, _ = record(plain, {"x": (4, 20), "w": (20, 20)}, ("x",))
        assert recording.is_current()
        te.set_num_threads(2)
        assert recording.is_current() == (recording._forward.steps._crew is None)
    finally:
        te.set_num_threads(before)


@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
def test_numbers_that_tiles_cannot_split_and_no_fallback(monkeypatch):
    monkeypatch.setattr("te_tensor.recorder._TILED_FROM", 0)
    recording, _ = record(plain, {"x": (40, 64), "w": (64, 64)}, ("x",), tiles=True)
    x, w = te.randn(40, 64, requires_grad=True), te.randn(64, 64)
    te.Tensor.apply(Replay(recording), x, w)
    w[3, 4] = np.inf
    with pytest.raises(RuntimeError, match="split"):
        te.Tensor.apply(Replay(recording), x, w)


@pytest.mark.parametrize("rows", [1, 15, 16, 40])
@pytest.mark.parametrize("columns", [1, 16, 17, 50])
def test_turned_copies(rows, columns):
    whole = np.random.default_rng(0).standard_normal((rows, columns + 3), float32)
    out = np.full((columns + 1, rows + -rows % 16), 7, float32)
    steps = Steps()
    steps.turn(whole[:, 1 : 1 + columns], out[:columns])
    steps.run()
    assert np.array_equal(out[:columns, :rows], whole[:, 1 : 1 + columns].T)
    assert (out[:columns, rows:] == 0).all() and (out[columns] == 7).all()


@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize(("rows", "depth", "columns"), [(64, 40, 96), (40, 500, 50), (300, 70, 90)])
@pytest.mark.parametrize("to", ["nothing", "a row", "itself", "another"])
@pytest.mark.parametrize("number", [1.0, np.nan, 1e-30])
def test_products_of_steps_by_tiles(rows, depth, columns, to, number, threads):
    """Along k or not, sides laid out together or not; what can't be split is told."""
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal((rows, depth), float32),
        rng.standard_normal((depth, columns), float32),
    )
    b[3, 4] = number
    out = rng.standard_normal((rows, columns), float32)
    start = {"nothing": None, "a row": out[0].copy(), "itself": out, "another": out[::-1].copy()}[
        to
    ]
    want = a.astype(np.float64) @ b + (0 if start is None else start)
    steps, kept = Steps(), []

    def room(size):
        whole = np.empty(size + 16, float32)
        kept.append(whole)
        return whole[-(whole.ctypes.data // 4) % 16 :][:size]

    share_products(steps, a, [Product(b, out, start)], room)
    arrays = [a, b, out, *kept, *([] if start is None or start is out else [start])]
    calls = steps.relocatable([(array, base, 0) for base, array in enumerate(arrays, 2)])
    split = steps.run_relocated(calls, [array.ctypes.data for array in arrays])
    assert split != np.isnan(number)
    if split:
        assert np.abs(out - want).max() <= 1e-5 * np.abs(want).max()
