"""Blocks that train by recordings: as operation by operation, whatever they are given."""

import copy
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import recordings, transformer
from te_tensor.machine import runs_programs
from te_tensor.recorder import Recorder
from te_tensor.recording import Recording

pytestmark = pytest.mark.skipif(not runs_programs(), reason="no AVX-512 here")

D, F, H = 32, 48, 4


@pytest.fixture
def _usual_work_by_tiles(monkeypatch):
    monkeypatch.setattr("te_tensor.recorder._TILED_FROM", 0)
    for name, value in {"_FROM": 1 << 10, "_SHORTEST": 5, "_SHALLOWEST": 5}.items():
        monkeypatch.setattr(f"te_tensor.machine.tile_products.{name}", value)
    for name, value in {"_TILED_FROM": 1 << 10, "_SHORTEST": 5, "_SHALLOWEST": 5}.items():
        monkeypatch.setattr(f"te_tensor.machine.nest.{name}", value)
    recordings.forget()
    yield
    recordings.forget()


def operation_by_operation(monkeypatch):
    monkeypatch.setattr(transformer, "run_recorded", lambda *given: None)
    monkeypatch.setattr(transformer, "are_recorded", lambda *given: False)


def step(module, x, grad, **options):
    """The result, the gradients of x and of all parameters, and what made the result."""
    module.zero_grad()
    x = te.Tensor(x, requires_grad=True)
    out = module(x, **options)
    out.backward(te.Tensor(grad))
    grads = {name: p.grad for name, p in module.named_parameters()}
    arrays = {name: None if g is None else g.numpy() for name, g in grads.items()}
    return {"": out.numpy(), "x": x.grad.numpy(), **arrays}, type(out.creator).__name__


def assert_alike(made, wanted, tolerance=3e-6):
    scale = max(np.abs(wanted[name]).max() for name in ("", "x"))
    for name, expected in wanted.items():
        assert (made[name] is None) == (expected is None), name
        if expected is not None:
            largest = np.abs(expected).max() + scale
            assert np.abs(made[name] - expected).max() <= tolerance * largest * 8, name


def both_ways(monkeypatch, module, x, grad, **options):
    made, creator = step(module, x, grad, **options)
    with monkeypatch.context() as context:
        operation_by_operation(context)
        wanted, other = step(module, x, grad, **options)
    assert other != "Replay"
    return made, wanted, creator


def arrays(batch, length, seed=0):
    rng = np.random.default_rng(seed)
    x, grad = rng.standard_normal((2, batch, length, D)).astype(np.float32)
    return x, grad, rng.uniform(0, 2, (batch, length, length)).astype(np.float32), rng


OPTIONS = [
    {},
    {"norm": "post"},
    {"activation": "relu", "norm": "post"},
    {"activation": "silu", "bias": False},
    {"norm": "post", "bias": False},
    {"kv_heads": 2},
    {"kv_heads": 1, "causal": True},
    {"layer_norm_eps": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 19), (5, 7), (3, 64)], ids=str)
@pytest.mark.parametrize("bias", [None, "gaussian", "alibi"])
def test_any_block(options, size, bias, threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, bias, **options)
    x, grad, distance, _ = arrays(*size)
    given = {"distance": te.Tensor(distance)} if bias else {}
    made, wanted, creator = both_ways(monkeypatch, block, x, grad, **given)
    assert creator == "Replay"
    assert_alike(made, wanted)


@pytest.mark.usefixtures("_usual_work_by_tiles")
@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize("size", [(2, 40), (9, 64)], ids=str)
@pytest.mark.parametrize("number", [1.0, np.nan, np.inf, 1e30])
@pytest.mark.parametrize("where", ["x", "grad", "weight"])
def test_products_by_tiles(size, number, where, threads, monkeypatch):
    """What tiles can't split, vectors do, in either direction."""
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, "gaussian")
    x, grad, distance, _ = arrays(*size)
    if where == "weight":
        weight = block.linear1.weight.numpy().copy()
        weight[3, 4] *= number
        block.linear1.weight = nn.Parameter(weight)
    else:
        {"x": x, "grad": grad}[where][0, 1, 2] = number
    instead, other = [], Recording._other
    monkeypatch.setattr(Recording, "_other", lambda self: (instead.append(1), other(self))[1])
    with np.errstate(all="ignore"):
        made, wanted, creator = both_ways(monkeypatch, block, x, grad, distance=distance)
    assert creator == "Replay"
    (recording,) = recordings._kept.values()
    assert recording.may_fail and not recording.fallback.may_fail
    # A large number in x is normalized before the first product.
    assert bool(instead) == (number != 1.0 and (where, number) != ("x", 1e30))
    if number == 1.0:
        assert_alike(made, wanted)
    for name, expected in wanted.items():
        finite = np.isfinite(expected)
        assert np.array_equal(np.isfinite(made[name]), finite), name
        if finite.any() and "k_proj.bias" not in name:  # which is rounding alone
            scale = np.abs(expected[finite]).max()
            assert np.allclose(made[name][finite], expected[finite], atol=1e-4 * scale, rtol=1e-2)


@pytest.mark.usefixtures("_usual_work_by_tiles")
@pytest.mark.parametrize("blas", ["auto", "openblas"])
@pytest.mark.parametrize("learnt", ["all", "x", "norms", "weights"])
@pytest.mark.parametrize("bias", [False, True])
def test_large_products_alone(blas, learnt, bias, threads, monkeypatch):
    """Where nothing else is left for the threads to do."""
    monkeypatch.setattr("te_tensor.recorder._BLAS_FROM", 0)
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, bias=bias)
    for name, parameter in block.named_parameters():
        chosen = {"all": True, "x": False, "norms": "norm" in name, "weights": "weight" in name}
        parameter.requires_grad = chosen[learnt]
    x, grad, _, _ = arrays(6, 48)
    try:
        te.set_blas(blas)
        made, wanted, creator = both_ways(monkeypatch, block, x, grad)
    finally:
        te.set_blas("auto")
    assert creator == "Replay"
    assert_alike(made, wanted)


@pytest.mark.usefixtures("_usual_work_by_tiles")
@pytest.mark.parametrize("scale", [1e-20, 1e-28, 1e-34, 1e-38])
def test_tiny_gradients(scale, threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H)
    x, grad, _, _ = arrays(6, 48)
    made, wanted, creator = both_ways(monkeypatch, block, x, grad * np.float32(scale))
    assert creator == "Replay"
    assert np.abs(made["x"] - wanted["x"]).max() <= 1e-5 * np.abs(wanted["x"]).max() + 1e-36


@pytest.mark.parametrize(("batch", "length", "width"), [(1, 15, 6), (3, 271, 3), (300, 1, 5)])
@pytest.mark.parametrize("without", ["gradients", "parameters' gradients"])
def test_nothing_is_written_behind_memory(batch, length, width, without, threads, monkeypatch):
    """Of any size, also where forward's memory is used several times."""
    te.manual_seed(0)
    length = min(length, 256)
    block = nn.TransformerBlock(width, 2 * width, 1)
    for parameter in block.parameters():
        parameter.requires_grad = without == "gradients"
    given = []

    def empty(shape, dtype):
        whole = np.full(int(np.prod(shape)) + 64, 7, dtype)
        given.append(whole)
        return whole[:-64].reshape(shape)

    monkeypatch.setattr("te_tensor.recording.memory.empty", empty)
    x = te.randn(batch, length, width)
    with te.no_grad() if without == "gradients" else nullcontext():
        out = block(x)
    assert any(whole.size == x.size + 64 for whole in given)
    assert all((whole[-64:] == 7).all() for whole in given)
    monkeypatch.undo()
    operation_by_operation(monkeypatch)
    with te.no_grad():
        assert np.allclose(out.numpy(), block(x).numpy(), atol=1e-5)


@pytest.mark.usefixtures("_usual_work_by_tiles")
def test_other_kernels_before_backward():
    block = nn.TransformerBlock(D, F, H)
    x, grad, _, _ = arrays(6, 48)
    given = te.Tensor(x, requires_grad=True)
    out = block(given)
    grad[0, 0, 0] = np.inf
    try:
        te.set_kernels("numpy")
        with np.errstate(all="ignore"):
            out.backward(te.Tensor(grad))
    finally:
        te.set_kernels("auto")
    assert not np.isfinite(given.grad.numpy()).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_records():
    code = """
import os, threading
import te_nn as nn, te_tensor as te
from te_nn import recordings
block = nn.TransformerBlock(8, 8, 2)
block(te.randn(2, 5, 8)).sum().backward()
held, done = threading.Event(), threading.Event()

def hold():
    with recordings._guard:
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    block(te.randn(2, 6, 8)).sum().backward()
    os._exit(7)
status = os.waitpid(child, 0)[1]
done.set()
print(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "7", done.stderr


MASKS = {
    "one for all": lambda rng, b, s: rng.random((s, s)) < 0.7,
    "columns": lambda rng, b, s: rng.random((b, 1, 1, s)) < 0.7,
    "pairs": lambda rng, b, s: rng.random((b, 1, s, s)) < 0.7,
    "all hidden": lambda rng, b, s: np.zeros((1, 1, s, s), bool),
    "added": lambda rng, b, s: rng.standard_normal((b, 1, 1, s)).astype(np.float32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_masks(mask, causal, threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, "logarithmic", causal=causal)
    x, grad, distance, rng = arrays(4, 21)
    given = {"mask": te.Tensor(MASKS[mask](rng, 4, 21)), "distance": te.Tensor(distance[0])}
    made, wanted, creator = both_ways(monkeypatch, block, x, grad, **given)
    assert creator == "Replay"
    assert_alike(made, wanted)


def test_heads_whose_weights_are_not_kept(threads, monkeypatch):
    monkeypatch.setattr("te_tensor.ops._recorded._MOST_WEIGHTS", 0)
    recordings.forget()
    te.manual_seed(0)
    x, grad, distance, _ = arrays(3, 33)
    for bias in (None, "gaussian"):
        block = nn.TransformerBlock(D, F, H, bias, kv_heads=2)
        given = {"distance": distance} if bias else {}
        made, wanted, creator = both_ways(monkeypatch, block, x, grad, **given)
        assert creator == "Replay"
        assert_alike(made, wanted)
    recordings.forget()


@pytest.fixture
def _long_rows(monkeypatch):
    for name, value in {
        "_recorded_rows.MOST_COLUMNS": 12,
        "_long_rows._HIGH": 32,
        "_long_rows._LOW": 16,
        "_long_rows._WIDE": 32,
        "_long_rows._STEP": 16,
    }.items():
        monkeypatch.setattr(f"te_tensor.ops.{name}", value)
    recordings.forget()
    yield
    recordings.forget()


@pytest.mark.usefixtures("_long_rows")
@pytest.mark.parametrize("length", [31, 48, 77])
@pytest.mark.parametrize("bias", [None, "gaussian", "by batch"])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("causal", [False, True])
def test_long_rows(length, bias, mask, causal, threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, bias and "gaussian", causal=causal)
    x, grad, distance, rng = arrays(3, length)
    given = {} if mask is None else {"mask": te.Tensor(MASKS[mask](rng, 3, length))}
    if bias:
        given["distance"] = te.Tensor(distance if bias == "by batch" else distance[0])
    made, wanted, creator = both_ways(monkeypatch, block, x, grad, **given)
    assert creator == "Replay"
    assert_alike(made, wanted)
    with te.no_grad():
        out = block(te.Tensor(x), **given)
    assert np.array_equal(out.numpy(), made[""])


@pytest.mark.usefixtures("_long_rows")
def test_long_rows_without_gradients_of_some(threads, monkeypatch):
    te.manual_seed(0)
    x, grad, distance, _ = arrays(2, 40)
    for chosen in range(3):
        block = nn.TransformerBlock(D, F, H, "gaussian", norm="post")
        for number, parameter in enumerate(block.parameters()):
            parameter.requires_grad = number % 3 == chosen
        block.self_attn.nl_oob.slopes.requires_grad = chosen == 1
        made, wanted, creator = both_ways(monkeypatch, block, x, grad, distance=distance)
        assert creator == "Replay"
        assert_alike(made, wanted)


@pytest.mark.usefixtures("_long_rows", "_usual_work_by_tiles")
@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize("number", [1.0, np.nan, 1e30])
@pytest.mark.parametrize("causal", [False, True])
def test_long_rows_by_tiles(number, causal, threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, "gaussian", causal=causal)
    x, grad, distance, _ = arrays(2, 80)
    grad[0, 1, 2] = number
    with np.errstate(all="ignore"):
        made, wanted, creator = both_ways(monkeypatch, block, x, grad, distance=distance)
    assert creator == "Replay"
    for name, expected in wanted.items():  # columns that no row of a band sees stay finite
        assert (np.isfinite(made[name]) >= np.isfinite(expected)).all(), name
    assert np.isnan(made["x"]).any() == np.isnan(number)
    if number == 1.0:
        assert_alike(made, wanted)


def test_long_rows_run_as_usual_where_threads_have_no_head_each(monkeypatch):
    monkeypatch.setattr("te_tensor.ops._recorded_rows.MOST_COLUMNS", 12)
    te.manual_seed(0)
    x, grad, _, _ = arrays(1, 20)
    assert step(nn.TransformerBlock(D, F, H, kv_heads=2), x, grad)[1] != "Replay"
    te.set_num_threads(2)
    assert step(nn.TransformerBlock(D, F, 1), x, grad)[1] != "Replay"
    assert step(nn.TransformerBlock(D, F, 2), x, grad)[1] == "Replay"


def others(block, rng, x):
    """Blocks and inputs for which there are no recordings."""
    s = x.shape[1]
    yield "mask that learns", block, {"mask": te.randn(s, s, requires_grad=True)}
    yield "mask by head", block, {"mask": te.Tensor(rng.random((1, H, s, s)) < 0.5)}
    distance = te.Tensor(rng.uniform(0, 2, (s, s)).astype(np.float32), requires_grad=True)
    yield "positions that learn", block, {"distance": distance}
    infinite = rng.uniform(0, 2, (s, s)).astype(np.float32)
    infinite[0, 1] = np.inf
    yield "infinite distances", block, {"distance": infinite}
    yield "distances by head", block, {"distance": te.rand(2, H, s, s)}
    yield (
        "functions by head",
        nn.TransformerBlock(D, F, H, ["gaussian", "logarithmic"] * 2),
        {"distance": te.rand(s, s)},
    )
    yield "rotary", nn.TransformerBlock(D, F, H, rope=nn.Rotary(D // H, 64)), {}
    yield "swiglu", nn.TransformerBlock(D, F, H, activation="swiglu"), {}
    yield "dropout", nn.TransformerBlock(D, F, H, dropout=0.5), {}
    hooked = copy.deepcopy(block)
    hooked.linear1.register_forward_hook(lambda *given: None)
    yield "hooks", hooked, {}
    replaced = copy.deepcopy(block)
    replaced.linear2 = nn.Sequential(replaced.linear2)
    yield "another layer", replaced, {}


def test_what_runs_as_usual():
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, "gaussian")
    x, grad, _, rng = arrays(2, 9)
    for name, module, given in others(block, rng, x):
        assert step(module, x, grad, **given)[1] != "Replay", name
    with te.profile():
        assert step(block, x, grad)[1] != "Replay"
    wide = copy.deepcopy(block).to("float64")
    assert type(wide(te.Tensor(x.astype(np.float64))).creator).__name__ != "Replay"
    assert step(block, x, grad)[1] == "Replay"
    block.linear1.register_forward_hook(lambda *given: None)
    assert step(block, x, grad)[1] != "Replay"


def test_dropout_is_heeded_as_soon_as_it_is_on():
    block = nn.TransformerBlock(D, F, H, dropout=0.5)
    x, grad, _, _ = arrays(2, 9)
    block.eval()
    assert step(block, x, grad)[1] == "Replay"
    block.train()
    assert step(block, x, grad)[1] != "Replay"


def test_frozen_parameters_and_inputs(threads, monkeypatch):
    te.manual_seed(0)
    x, grad, distance, _ = arrays(3, 11)
    for chosen in itertools.chain([0, 3], range(5, 17, 4)):
        block = nn.TransformerBlock(D, F, H, "gaussian")
        for number, parameter in enumerate(block.parameters()):
            parameter.requires_grad = number % 5 == chosen % 5
        made, wanted, creator = both_ways(monkeypatch, block, x, grad, distance=distance)
        assert creator == "Replay"
        assert_alike(made, wanted)
        block.zero_grad()
        out = block(te.Tensor(x), distance=te.Tensor(distance))
        out.backward(te.Tensor(grad))
        for name, parameter in block.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None)
            if parameter.requires_grad:
                assert np.allclose(parameter.grad.numpy(), made[name], atol=1e-4), name


def test_the_same_bits_each_time_and_with_softplus_slopes(threads, monkeypatch):
    te.manual_seed(0)
    bias = nn.NLOOB(H, "gaussian", softplus=True)
    block = nn.TransformerBlock(D, F, H, bias)
    x, grad, distance, _ = arrays(3, 30)
    made, wanted, creator = both_ways(monkeypatch, block, x, grad, distance=distance)
    assert creator == "Replay"
    assert_alike(made, wanted)
    recordings.forget()
    for _ in range(2):
        again, _ = step(block, x, grad, distance=distance)
        assert all(np.array_equal(made[name], again[name]) for name in made)


def test_runs_know_nothing_of_each_other(threads):
    """Several forwards before the backwards, in any order; and a graph that is kept."""
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H)
    inputs = [te.randn(3, 12, D, requires_grad=True) for _ in range(4)]
    alone = []
    for x in inputs:
        block(x).sum().backward()
        alone.append(x.grad.numpy())
        x.grad = None
    block.zero_grad()
    outs = [block(x) for x in inputs]
    for number in (2, 0, 3, 1):
        outs[number].sum().backward(retain_graph=number == 3)
    outs[3].sum().backward()
    for number, (x, grad) in enumerate(zip(inputs, alone, strict=True)):
        assert np.array_equal(x.grad.numpy(), grad * (2 if number == 3 else 1))


def test_two_uses_of_one_input(threads, monkeypatch):
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H)
    x, grad, _, _ = arrays(3, 12)
    twice = nn.Sequential(block, block)
    made, wanted, _ = both_ways(monkeypatch, twice, x, grad)
    assert_alike(made, wanted)


def test_a_change_before_backward_is_noticed():
    block = nn.TransformerBlock(D, F, H)
    x = te.randn(2, 5, D, requires_grad=True)
    out = block(x)
    with te.no_grad():
        block.linear2.weight[...] = 0
    with pytest.raises(RuntimeError, match="changed"):
        out.sum().backward()


def test_memory_goes_with_the_graph(threads):
    block = nn.TransformerBlock(D, F, H)
    x = te.randn(16, 64, D, requires_grad=True)
    block(x).sum().backward()
    gc.collect()
    before = te.memory_info()["lent"]
    outs = [block(x) for _ in range(3)]
    held = te.memory_info()["lent"] - before
    assert held > 3 * x.size * 4
    del outs
    gc.collect()
    assert te.memory_info()["lent"] - before < held / 4


def test_many_threads_of_a_user():
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, H, "gaussian")
    x, grad, distance, _ = arrays(6, 20)
    wanted = None
    wrong = []

    def work():
        for _ in range(20):
            given = te.Tensor(x, requires_grad=True)
            out = block(given, distance=te.Tensor(distance))
            found = te.grad(out, [given], grad_outputs=[te.Tensor(grad)])
            if not np.array_equal(found[0].numpy(), wanted):
                wrong.append(1)

    given = te.Tensor(x, requires_grad=True)
    out = block(given, distance=te.Tensor(distance))
    out.backward(te.Tensor(grad))
    wanted = given.grad.numpy()
    users = [threading.Thread(target=work) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not wrong


def test_a_stack_and_checkpoints(threads, monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
    te.manual_seed(0)
    encoder = nn.TransformerEncoder(3, D, F, H, "gaussian", final_norm=True)
    x, grad, distance, _ = arrays(4, 16)
    made, wanted, _ = both_ways(monkeypatch, encoder, x, grad, distance=te.Tensor(distance))
    assert_alike(made, wanted, 1e-5)

    class Kept(nn.Module):
        def __init__(self, inside):
            self.inside = inside

        def forward(self, x, distance):
            return te.checkpoint(lambda x: self.inside(x, distance=distance), x)

    again, _ = step(Kept(encoder), x, grad, distance=te.Tensor(distance))
    for name, value in made.items():
        own = name if name in ("", "x") else f"inside.{name}"
        assert np.allclose(again[own], value, atol=1e-5, rtol=1e-5), name


def test_only_so_many_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(recordings, "_MOST", 3)
    recordings.forget()
    block = nn.TransformerBlock(8, 8, 2)
    for length in range(1, 6):
        block(te.randn(2, length, 8, requires_grad=True)).sum().backward()
    assert len(recordings._kept) == 3


@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize(
    "options", [{}, {"norm": "post", "bias": False}, {"kv_heads": 2, "causal": True}], ids=str
)
@pytest.mark.parametrize("distances", [False, True])
def test_weights_that_stay_laid_out(options, distances, threads, monkeypatch):
    """Without gradients; and laid out anew when they change."""
    monkeypatch.setattr(recordings, "_kept", OrderedDict())
    for name in ("te_tensor.recorder._TILED_FROM", "te_nn.block_recording._LAID_FROM"):
        monkeypatch.setattr(name, 0)
    laid = []
    lay = Recorder.lay
    monkeypatch.setattr(Recorder, "lay", lambda *given: (laid.append(given), lay(*given))[1])
    te.manual_seed(0)
    block = nn.TransformerBlock(256, 288, 4, **options).eval()
    if distances:
        block.self_attn.nl_oob = nn.NLOOB(4, "gaussian")
    rng = np.random.default_rng(0)
    distance = rng.random((90, 90)).astype(np.float32) if distances else None
    for number in (1.0, 2.0, np.nan, np.inf, 1.0):
        x = rng.standard_normal((3, 90, 256)).astype(np.float32)
        x[1, 5, 7] = number
        with te.no_grad(), np.errstate(all="ignore"):
            found = block(te.Tensor(x), distance=distance).numpy()
            with pytest.MonkeyPatch.context() as patch:
                operation_by_operation(patch)
                wanted = block(te.Tensor(x), distance=distance).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        block.linear2.weight[3, 4] = number if np.isfinite(number) else 5.0
    assert len(laid) == 12  # with tiles, and without for what these can't split
