"""Plans: forwards on memory that stays give what the operations give, whoever does the work."""

import copy
import pickle

import numpy as np
import pytest

import te_tensor as te
from te_tensor import parallel
from te_tensor.dtypes import float32
from te_tensor.ops.attention import Attention, PlannedHeads
from te_tensor.ops.gelu import GELU
from te_tensor.ops.linalg import Linear
from te_tensor.ops.shape import Reshape
from te_tensor.plan import Plan, Unplanned, laid_out

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")

PLANNED = sorted(name for name, op in te.REGISTRY.items() if op.prepare is not None)
CASES = [
    (name, place)
    for name in PLANNED
    if name != "Attention"
    for place in range(len(te.REGISTRY[name].samples))
]


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def large(*shape, seed=0):
    """A weight in memory that only the engine writes to, as that of large parameters is."""
    assert np.prod(shape) > 1 << 14
    return te.Tensor(uniform(*shape, seed=seed))._array


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


def test_what_blocks_are_made_of_is_planned():
    assert {"Linear", "LayerNorm", "GELU", "ReLU", "Attention"} <= set(PLANNED)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_samples(name, place, threads):
    kind = te.REGISTRY[name]
    sample = kind.samples[place]
    arrays = [array.astype(np.float32) for array in sample.arrays()]
    if not all(array.ndim and array.size for array in arrays):
        with pytest.raises(Unplanned):
            Plan().apply(kind(*sample.args, **sample.kwargs), *arrays)
        return
    plan = Plan()
    result = plan.apply(kind(*sample.args, **sample.kwargs), *arrays)
    for _ in range(3):  # each run reads what its inputs hold now
        plan.run()
        operation = kind(*sample.args, **sample.kwargs)
        close(result, te.Tensor.apply(operation, *map(te.from_numpy, arrays)).numpy())
        for array in arrays:
            array *= 0.5


@pytest.mark.parametrize("rows", [1, 7, 8, 20, 90])
def test_layers_one_after_the_other(rows, threads):
    x = np.zeros((rows, 40), np.float32)
    first, second = large(500, 40, seed=1), uniform(24, 500, seed=2) / 20
    bias, residual = uniform(500, seed=3), uniform(rows, 24, seed=4)
    plan = Plan()
    hidden = plan.apply(GELU(), plan.apply(Linear(), x, first, bias))
    out = plan.apply(Linear(residual=True), hidden, second, residual)
    for seed in range(4):
        x[...] = uniform(rows, 40, seed=seed)
        plan.run()
        wanted = te.linear(te.linear(x, first, bias).gelu(), second, None, residual)
        np.testing.assert_allclose(out, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_whoever_does_the_work_bits_are_the_same():
    x, weight = uniform(70, 300), large(200, 300, seed=1)
    results = []
    for threads in (1, 2, 3):
        te.set_num_threads(threads)
        plan = Plan()
        out = plan.apply(Linear(), x, weight)
        for pause in (0, 1):  # with workers that are awake, and without
            if pause:
                parallel.run_each(lambda _: None, threads)
            out[...] = 0
            plan.run()
            results.append(out.copy())
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_row_to_the_first_keys(batch, kv_heads, threads):
    heads, room, width = 4, 50, 6
    q = uniform(batch, 1, heads * width)
    k, v = uniform(batch, kv_heads, room, width), uniform(batch, kv_heads, room, 20, seed=1)
    plan = Plan()
    out = plan.apply(Attention(heads=heads, kv_heads=kv_heads), q, k, v)
    for length in (1, 2, 17, 16, 50, 3):
        k[:, :, length:] = np.nan  # what comes later isn't looked at
        q *= 1.5
        plan.set_length(length)
        plan.run()
        wanted = te.attention(q, k[:, :, :length], v[:, :, :length], heads=heads)
        close(out, wanted.numpy())
        k[:, :, length:] = uniform(batch, kv_heads, room - length, width, seed=2)


def attended(q, k, v, heads, kv_heads, **options):
    found = te.attention(q, k, v, heads=heads, kv_heads=kv_heads, **options)
    return found.numpy()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, (1, 1), (3, 1), (1, 9), (3, 9)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_masks(kv_heads, mask, causal, threads):
    batch, rows, heads, width = 3, 9, 4, 5
    q = uniform(batch, rows, heads * width)
    k, v = (uniform(batch, rows, kv_heads * width, seed=s) for s in (1, 2))
    plan = Plan()
    shape = dict(heads=heads, kv_heads=kv_heads)
    found = PlannedHeads(plan, q, k, v, **shape, mask=mask, causal=causal)
    rng = np.random.default_rng(0)
    for kind in range(3 if mask else 1):
        options = {}
        if mask:
            given = rng.random((*mask, rows)) < 0.6
            if kind == 1:
                given[...] = False  # rows that may attend to nothing
            if kind == 2:
                given = rng.normal(size=given.shape).astype(np.float32)
            found.set_mask(given)
            options["mask"] = given[:, None]
        plan.run()
        close(found.out, attended(q, k, v, **shape, causal=causal, **options))


@pytest.mark.parametrize("lead", [(), (1,), (2,)])
def test_distances(lead, threads):
    batch, rows, heads, width = 2, 11, 3, 4
    q, k, v = (uniform(batch, rows, heads * width, seed=s) for s in range(3))
    plan = Plan()
    options = dict(heads=heads, kv_heads=heads)
    found = PlannedHeads(plan, q, k, v, **options, distances=lead[0] if lead else 1)
    function = te.distance_function("logarithmic")
    for seed in range(3):
        distance = np.abs(uniform(*lead, rows, rows, seed=seed))
        slopes = uniform(1, heads, 1, 1, seed=seed + 5)
        prepared = te.prepare_distance(distance)
        found.set_bias(prepared.prepared, function, slopes)
        plan.run()
        wanted = attended(q, k, v, **options, distance=distance, slopes=slopes)
        close(found.out, wanted)
    distance[..., 0] = np.inf
    with pytest.raises(Unplanned, match="infinite"):
        found.set_bias(te.prepare_distance(distance).prepared, function, slopes)


def test_what_is_too_large_is_not_planned():
    q = uniform(1, 300, 8)
    with pytest.raises(Unplanned, match="300 keys"):
        PlannedHeads(Plan(), q, q, q, heads=2, kv_heads=2)
    with pytest.raises(Unplanned, match="several rows"):
        Plan().apply(Attention(heads=2, kv_heads=2), q, q, q)
    with pytest.raises(Unplanned, match="Reshape"):
        Plan().apply(Reshape((8, 300)), q[0])
    with pytest.raises(Unplanned, match="expected x"):
        Plan().apply(Linear(), q[0], uniform(4, 7))
    with pytest.raises(Unplanned, match="attention of q"):
        PlannedHeads(Plan(), q[:, :9], q[:, :9], q[:, :9, :4], heads=2, kv_heads=2)
    with pytest.raises(Unplanned, match="others may write"):
        Plan().apply(Linear(), q[0], uniform(4000, 8))


def test_no_plan_without_machine_code():
    te.set_kernels("numpy")
    with pytest.raises(Unplanned):
        Plan().apply(GELU(), uniform(2, 3))


def test_plans_notice_other_weights_and_threads():
    te.set_num_threads(2)
    weight = te.Tensor(uniform(900, 20), dtype=float32)
    plan = Plan()
    plan.apply(Linear(), uniform(2, 20), weight._array)
    assert plan.holds()
    other = te.zeros(3)
    other[0] = 1.0
    assert plan.holds()
    weight[0, 0] = 5.0
    assert not plan.holds()
    plan = Plan()
    plan.apply(Linear(), uniform(2, 20), weight._array)
    te.set_num_threads(1)
    assert not plan.holds()
    te.set_num_threads(2)
    assert plan.holds()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_plans_know_addresses_and_are_not_copied(copied):
    with pytest.raises(TypeError, match="make another one"):
        copied(Plan())


@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize("rows", [48, 70, 256])
def test_products_by_tiles(rows, threads):
    """With weights laid out once; what can't be split is told, each time anew."""
    te.manual_seed(0)
    # Memory that only the engine writes to.
    first, second = te.randn(160, 128), te.randn(144, 160)
    bias = te.randn(144)
    plan, x = Plan(), np.zeros((rows, 128), np.float32)
    hidden = plan.apply(Linear(), x, first.data)
    residual = np.ones((rows, 144), np.float32)
    out = plan.apply(Linear(residual=True), hidden, second.data, bias.data, residual)
    others = [plan.apply(Linear(), hidden, second.data) for _ in range(3)]  # in the same memory
    assert [kind for _, kind, _ in plan._layouts] == [laid_out] * 5
    assert len({room.ctypes.data for room in plan._rooms}) == len(plan._rooms)  # a thread each
    rng = np.random.default_rng(0)
    for number in (1.0, np.nan, 2.0, 1e30, np.inf, 3.0):
        x[...] = rng.standard_normal(x.shape)
        x[rows // 2, 5] = number
        assert plan.run() == (np.isfinite(number) and number < 1e20)
        if number < 1e20:
            exact = x.astype(np.float64) @ first.numpy().T @ second.numpy().T + bias.numpy() + 1
            assert np.abs(out - exact).max() <= 1e-5 * np.abs(exact).max()
            for other in others:
                assert np.abs(out - other - bias.numpy() - 1).max() <= 1e-4
    assert plan.holds()
    first[0, 0] = 7.0
    assert not plan.holds()
