"""Blocks of few rows: by a plan they give what the operations give, and see every change."""

import copy
import gc
import threading
import weakref

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import block_plan, distances, stack_plan

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")

D, H = 16, 4


def draw(*shape, seed=0):
    return te.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def block(**options):
    te.manual_seed(0)
    made = nn.TransformerBlock(D, 40, H, **options).eval()
    for parameter in made.parameters():  # norms and biases that do something
        with parameter.lock() as array:
            array += np.random.default_rng(array.size).normal(0, 0.1, array.shape)
    return made


@pytest.fixture
def planned(monkeypatch):
    """Whether a plan ran, for each time that one was asked for."""
    runs = []
    for name in ("run_rows", "run_tokens"):
        original = getattr(block_plan, name)

        def run(*args, original=original):
            result = original(*args)
            runs.append(result is not None)
            return result

        monkeypatch.setattr(f"te_nn.transformer.{name}", run)
    return runs


def as_usual(module, *args, **options):
    """The result by operations: a trace wants to see them."""
    with te.no_grad(), te.trace():
        return module(*args, **options).numpy()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=5e-6)


OPTIONS = [
    {},
    {"norm": "post", "activation": "relu"},
    {"bias": False, "kv_heads": 2, "causal": True},
    {"kv_heads": 1, "layer_norm_eps": 0.1, "norm": "post", "activation": "silu"},
    {"causal": True, "dropout": 0.5},
]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 1), (2, 16), (4, 7)])
@pytest.mark.parametrize("options", OPTIONS)
def test_all_rows_at_once(options, size, planned):
    made = block(**options)
    for seed in range(4):
        x = draw(*size, D, seed=seed)
        with te.no_grad():
            close(made(x).numpy(), as_usual(made, x))
    assert planned == [False, False, True, False] + [True, False] * 2  # from the second on


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(6, 6), (1, 1, 1, 6), (2, 1, 1, 6), (2, 1, 6, 6)])
def test_masks(shape, causal, planned):
    made = block(causal=causal)
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) < 0.6, rng.normal(size=shape).astype(np.float32)]
    masks += [te.Tensor(mask) for mask in masks] + [np.zeros(shape, bool)]
    for mask in masks:
        x = draw(2, 6, D)
        with te.no_grad():
            close(made(x, mask=mask).numpy(), as_usual(made, x, mask=mask))
    assert planned.count(True) == len(masks) - 1


@pytest.mark.parametrize("config", ["logarithmic", "gaussian", "alibi"])
@pytest.mark.parametrize("lead", [(), (1,), (2,)])
def test_distances(lead, config, planned):
    made = block(nl_oob_config=config)
    for seed in range(4):
        x = draw(2, 6, D, seed=seed)
        distance = np.random.default_rng(seed).uniform(0, 3, (*lead, 6, 6))
        with te.no_grad():
            found = made(x, distance=distance).numpy()
            close(found, as_usual(made, x, distance=distance))
            close(made(x).numpy(), as_usual(made, x))  # and without the bias
        with made.self_attn.nl_oob.slopes.lock() as slopes:
            slopes *= 0.5
    assert planned.count(True) == 2 * 3


UNUSUAL = {
    "a mask for each head": ({}, {"mask": np.ones((2, H, 6, 6), bool)}),
    "a list as mask": ({}, {"mask": np.ones((6, 6), bool).tolist()}),
    "a mask in float64": ({}, {"mask": np.zeros((6, 6))}),
    "distances for each head": ({"nl_oob_config": "gaussian"}, {"distance": np.ones((2, H, 6, 6))}),
    "infinite distances": ({"nl_oob_config": "gaussian"}, {"distance": np.full((6, 6), np.inf)}),
    "rates": ({"nl_oob_config": "kerple-log"}, {"distance": np.ones((6, 6))}),
    "functions of their own": (
        {"nl_oob_config": ["gaussian", "logarithmic"] * 2},
        {"distance": np.ones((6, 6))},
    ),
    "rotary positions": ({"rope": nn.Rotary(D // H)}, {}),
    "another activation": ({"activation": "swiglu"}, {}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_planned_runs_as_usual(name, planned):
    options, given = UNUSUAL[name]
    made = block(**options)
    for seed in range(3):
        x = draw(2, 6, D, seed=seed)
        with te.no_grad():
            close(made(x, **given).numpy(), as_usual(made, x, **given))
    assert True not in planned


def test_errors_are_those_of_the_operations():
    made = block()
    x = draw(2, 6, D)
    with te.no_grad():
        for _ in range(3):
            made(x)
        with pytest.raises(ValueError, match="mask has shape"):
            made(x, mask=np.ones((5, 6), bool))
        with pytest.raises(TypeError, match="int64"):
            made(x, mask=np.ones((6, 6), np.int64))
        with pytest.raises(ValueError, match="has no distance bias"):
            made(x, distance=np.ones((6, 6)))
        with pytest.raises(ValueError, match="expected"):
            made(draw(2, 6, D + 1))


LAYERS = {
    "self_attn.q_proj": [(D, 8), (8, D)],
    "self_attn.k_proj": [(D, 8), (8, D)],
    "self_attn.v_proj": [(D, 8), (8, D)],
    "self_attn.o_proj": [(8, D), (D, 8)],
    "linear1": [(8, 40), (D, 41)],
    "linear2": [(39, D), (40, 8)],
}


@pytest.mark.parametrize(
    ("path", "sizes"), [(path, sizes) for path in LAYERS for sizes in LAYERS[path]]
)
def test_layers_that_do_not_fit_are_never_run_by_a_plan(path, sizes, planned):
    made = block()
    parent = made.self_attn if "." in path else made
    setattr(parent, path.rpartition(".")[2], nn.Linear(*sizes))
    x, cache = draw(1, 3, D), nn.KVCache(1, 8, H, D // H)
    for _ in range(3):
        with te.no_grad(), pytest.raises(ValueError) as usual:
            made(x)
        with te.no_grad(), te.trace(), pytest.raises(ValueError) as traced:
            made(x)
        assert str(usual.value) == str(traced.value)
        assert usual.value.__notes__ == traced.value.__notes__
        with te.no_grad(), pytest.raises(ValueError):
            made(x[:, :1], cache=cache)
    assert cache.length == 0 and True not in planned


@pytest.mark.parametrize("norm", ["norm1", "norm2"])
def test_norms_that_do_not_fit(norm, planned):
    made = block()
    setattr(made, norm, nn.LayerNorm(8))
    for _ in range(3):
        with te.no_grad(), pytest.raises(ValueError, match="layer_norm"):
            made(draw(1, 3, D))
    assert True not in planned


def changes():
    def with_lock(made):
        for parameter in made.parameters():
            with parameter.lock() as array:
                array *= 0.9

    def load(made):
        made.load_state_dict({n: t * 1.1 for n, t in made.state_dict().items()})

    def replace(made):
        made.linear1.weight = nn.Parameter(made.linear1.weight * 2)
        made.norm1.bias = nn.Parameter(made.norm1.bias + 1)

    def other_layer(made):
        te.manual_seed(5)
        made.linear2 = nn.Linear(made.linear1.out_features, D)

    def threads(made):
        te.set_num_threads(1)

    return [with_lock, load, replace, other_layer, threads]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("width", [40, 2000])  # of weights that are copied, and laid out
def test_changes_are_seen(change, width, planned):
    before = te.get_num_threads()
    te.manual_seed(0)
    made = nn.TransformerBlock(D, width, H).eval()
    x, cache = draw(1, 3, D), nn.KVCache(1, 40, H, D // H)
    try:
        with te.no_grad():
            for _ in range(3):
                made(x)
                made(x[:, :1], cache=cache)
            change(made)
            planned.clear()
            close(made(x).numpy(), as_usual(made, x))
            other = copy.deepcopy(cache)
            wanted = as_usual(made, x[:, :1], cache=other)
            close(made(x[:, :1], cache=cache).numpy(), wanted)
        assert planned == [True, False, False, True]
    finally:
        te.set_num_threads(before)


SETTINGS = {
    "causal": True,
    "norm": "post",
    "activation": "relu",
    "norm1.eps": 5.0,
    "norm2.eps": 5.0,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_seen(name):
    made, x = block(), draw(2, 6, D)
    cache = nn.KVCache(2, 9, H, D // H)
    with te.no_grad():
        for _ in range(2):
            made(x)
            made(x[:, :1], cache=cache)
        module = made if "." not in name else getattr(made, name.partition(".")[0])
        setattr(module, name.rpartition(".")[2], SETTINGS[name])
        close(made(x).numpy(), as_usual(made, x))
        other = copy.deepcopy(cache)
        wanted = as_usual(made, x[:, :1], cache=other)
        close(made(x[:, :1], cache=cache).numpy(), wanted)


@pytest.mark.parametrize(
    ("path", "value"),
    [("self_attn.num_heads", 2), ("self_attn.d_model", 17), ("norm1.normalized_shape", (6, D))],
)
def test_settings_that_do_not_fit_raise_as_usual(path, value):
    made, x = block(), draw(2, 6, D)
    with te.no_grad():
        for _ in range(2):
            made(x)
        child, _, name = path.partition(".")
        setattr(getattr(made, child), name, value)
        for _ in range(2):
            with pytest.raises(ValueError):
                made(x)


@pytest.mark.parametrize("path", ["norm1", "linear1", "self_attn", "self_attn.v_proj"])
def test_a_forward_of_its_own_is_called(path, planned):
    made, x = block(), draw(2, 6, D)
    child = made.self_attn.v_proj if "." in path else getattr(made, path)
    original = child.forward
    with te.no_grad():
        for _ in range(2):
            made(x)
        planned.clear()
        child.forward = lambda *args, **options: original(*args, **options) * 0
        close(made(x).numpy(), as_usual(made, x))
        del child.forward
        close(made(x).numpy(), as_usual(made, x))
    assert planned == [False, False, True, False]


def test_caches_that_are_not_plain_ones_run_as_usual(planned):
    class Muted(nn.KVCache):
        def joined(self, k, v):
            return super().joined(k * 0, v * 0)

    encoder = stack(causal=True)
    x = draw(1, 1, D)
    results = []
    for kind in (Muted, nn.KVCache):
        own = [kind(1, 9, H, D // H) for _ in range(3)]
        again = [kind(1, 9, H, D // H) for _ in range(3)]
        with te.no_grad():
            found = encoder(x, cache=own).numpy()
        close(found, as_usual(encoder, x, cache=again))
        results.append(found)
    assert not np.allclose(*results)
    one, two = (nn.KVCache(1, 9, H, D // H) for _ in range(2))
    with te.no_grad():
        found = encoder(x, cache=[one] * 3).numpy()
    close(found, as_usual(encoder, x, cache=[two] * 3))
    assert one.length == two.length == 3
    assert planned.count(True) == 1 + 3  # three blocks one after the other append three times


def test_a_cache_is_never_left():
    made, cache = block(), nn.KVCache(1, 4, H, D // H)
    for length in (-1, 5, 1.0, True, None):
        with pytest.raises(ValueError, match="length is"):
            cache.length = length
    with pytest.raises(AttributeError):
        cache.max_len = 100
    cache.length = 4
    with te.no_grad(), pytest.raises(ValueError, match="max_len = 4"):
        made(draw(1, 1, D), cache=cache)


def test_a_part_of_another_kind_after_a_plan_that_can_not_be_made(monkeypatch):
    made, x = block(), draw(1, 3, D)
    monkeypatch.setattr("te_tensor.plan._MOST_COPIED", 10)
    with te.no_grad():
        for _ in range(3):
            made(x)
        made.norm1 = nn.RMSNorm(D)
        close(made(x).numpy(), as_usual(made, x))


def test_distance_biases_are_checked_as_usual():
    class Halved(nn.NLOOB):
        def options(self):
            found = super().options()
            return {**found, "slopes": found["slopes"] * 0.5}

    made, x, distance = block(nl_oob_config="gaussian"), draw(1, 3, D), np.ones((3, 3))
    distance[0, 1] = 2.0
    with te.no_grad():
        for bias in (nn.NLOOB(H, "gaussian"), Halved(H, "gaussian")):
            made.self_attn.nl_oob = bias
            for _ in range(3):
                found = made(x, distance=distance).numpy()
                close(found, as_usual(made, x, distance=distance))
        made.self_attn.nl_oob = nn.NLOOB(1, "gaussian")
        for _ in range(3):
            with pytest.raises(ValueError, match="slopes"):
                made(x, distance=distance)


def test_who_looks_at_operations_sees_them(planned):
    made = block()
    x = draw(1, 3, D)
    with te.no_grad():
        for _ in range(3):
            made(x)
        planned.clear()
        with te.profile() as profile:
            made(x)
        assert "Linear" in str(profile)
        seen = []
        with made.linear1.register_forward_hook(lambda *given: seen.append(1)):
            made(x)
        assert seen == [1]
        poisoned = x.numpy().copy()
        poisoned[0, 0, 0] = np.nan
        with te.detect_anomaly(), pytest.raises(FloatingPointError):
            made(te.Tensor(poisoned))
    result = made(x)  # gradients are wanted
    result.sum().backward()
    assert made.linear1.weight.grad is not None
    assert True not in planned


def test_dropout_drops():
    made = block(dropout=0.5).train()
    x = draw(1, 3, D)
    with te.no_grad():
        results = [made(x).numpy() for _ in range(4)]
    assert not np.allclose(results[2], results[3])


def test_results_are_nobodys_memory():
    made = block()
    with te.no_grad():
        results = [made(draw(1, 3, D, seed=seed)) for seed in range(4)]
        kept = [result.numpy().copy() for result in results]
        made(draw(1, 3, D, seed=9))
    for result, before in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result.numpy(), before)


def test_few_plans_are_kept_and_go_with_the_block():
    made = block()
    with te.no_grad():
        for length in [*range(1, 90), *range(1, 90)]:
            made(draw(1, length, D))
        for room in range(1, 40):
            made(draw(1, 1, D), cache=nn.KVCache(1, room, H, D // H))
        assert len(stack_plan._kept.plans[made]) == stack_plan._MOST_PLANS
        for length in [*range(60, 80), *range(60, 80)]:
            made(draw(1, length, D))
    kept = stack_plan._kept.plans[made]
    assert 100 < sum(rows for rows, *_ in kept) <= stack_plan._MOST_KEPT
    reference = weakref.ref(made)
    del made, kept
    gc.collect()
    assert reference() is None


def test_threads_have_plans_of_their_own():
    made = block()
    inputs = [draw(1, 3, D, seed=seed) for seed in range(4)]
    wanted = [as_usual(made, x) for x in inputs]
    failures = []

    def work(place):
        with te.no_grad():
            for _ in range(200):
                if not np.allclose(made(inputs[place]).numpy(), wanted[place], atol=1e-5):
                    failures.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("batch", [1, 3, 9])  # 9 are no longer planned
@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_with_a_cache(options, batch, planned):
    made = block(**{**options, "causal": True})
    x = draw(batch, 12, D)
    full = as_usual(made, x)
    cache = nn.KVCache(batch, 12, made.self_attn.kv_heads, D // H)
    with te.no_grad():
        parts = [made(x[:, :4], cache=cache).numpy()]
        parts += [made(x[:, t : t + 1], cache=cache).numpy() for t in range(4, 12)]
        close(np.concatenate(parts, axis=1), full)
        assert cache.length == 12
        with pytest.raises(ValueError, match="max_len = 12"):
            made(x[:, :1], cache=cache)
        assert cache.length == 12
        cache.truncate(6)
        close(made(x[:, 6:7], cache=cache).numpy(), full[:, 6:7])
        cache.reset()
        close(made(x[:, :1], cache=cache).numpy(), full[:, :1])
    assert planned.count(True) == (0 if batch == 9 else 10)


def test_copies_of_a_cache_go_their_own_ways():
    made = block(causal=True)
    x = draw(1, 8, D)
    full = as_usual(made, x)
    cache = nn.KVCache(1, 8, H, D // H)
    with te.no_grad():
        for t in range(4):
            made(x[:, t : t + 1], cache=cache)
        other = copy.deepcopy(cache)
        made(draw(1, 1, D, seed=7), cache=other)
        for t in range(4, 8):
            close(made(x[:, t : t + 1], cache=cache).numpy(), full[:, t : t + 1])
    assert (other.length, cache.length) == (5, 8)


def stack(**options):
    te.manual_seed(0)
    return nn.TransformerEncoder(3, D, 40, H, **options).eval()


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_stack_is_one_plan(norm, final_norm, planned):
    encoder = stack(norm=norm, final_norm=final_norm)
    mask = np.random.default_rng(0).random((2, 1, 1, 6)) < 0.7
    for seed in range(3):
        x = draw(2, 6, D, seed=seed)
        with te.no_grad():
            found = encoder(x, mask=mask).numpy()
        close(found, as_usual(encoder, x, mask=mask))
    blocks = [False] * len(encoder.layers)  # where the stack isn't planned, they are asked
    traced = [False, *blocks]
    assert planned == [*traced, *traced, True, *traced, True, *traced]


def test_a_stack_generates_what_the_full_pass_gives(planned):
    encoder = stack(causal=True, final_norm=True)
    x = draw(2, 10, D)
    with te.no_grad():
        caches = encoder.make_cache(2, 10)
        parts = [encoder(x[:, t : t + 1], cache=caches).numpy() for t in range(10)]
        assert planned == [True] * 10
        with pytest.raises(ValueError, match="max_len = 10"):
            encoder(x[:, :1], cache=caches)
    close(np.concatenate(parts, axis=1), as_usual(encoder, x))
    assert [cache.length for cache in caches] == [10] * 3


def test_caches_of_different_lengths_run_as_usual():
    encoder = stack(causal=True)
    x = draw(1, 6, D)
    caches, others = encoder.make_cache(1, 8), encoder.make_cache(1, 8)
    with te.no_grad():
        for own in (caches, others):
            encoder(x, cache=own)
            own[1].truncate(3)
        found = encoder(x[:, :1], cache=caches).numpy()
    close(found, as_usual(encoder, x[:, :1], cache=others))
    assert [cache.length for cache in caches] == [7, 4, 7]


def test_distances_in_a_stack():
    te.manual_seed(0)
    functions = ["logarithmic", "gaussian", "logarithmic"]
    encoder = stack(nl_oob_config="logarithmic")
    for block, function in zip(encoder.layers, functions, strict=True):
        block.self_attn.nl_oob = nn.NLOOB(H, function)
    distance = distances.sequence(6)
    for seed in range(3):
        x = draw(2, 6, D, seed=seed)
        with te.no_grad():
            found = encoder(x, distance=distance).numpy()
        close(found, as_usual(encoder, x, distance=distance))


def test_hooks_in_a_stack_are_called():
    encoder, seen = stack(final_norm=True), []
    x = draw(1, 4, D)
    with te.no_grad():
        for _ in range(2):
            encoder(x)
        for module in (encoder.layers[1], encoder.layers[2].self_attn.v_proj, encoder.norm):
            with module.register_forward_hook(lambda module, *_: seen.append(module)):
                encoder(x)
            assert seen.pop() is module
        encoder(x)
    assert not seen


def test_a_stack_without_blocks():
    encoder = stack(causal=True)
    encoder.layers = nn.ModuleList([])
    x = draw(1, 1, D)
    with te.no_grad():
        for _ in range(3):
            np.testing.assert_array_equal(encoder(x, cache=[]).numpy(), x.numpy())
            np.testing.assert_array_equal(encoder._run(x, None, None).numpy(), x.numpy())


class Doubled(nn.TransformerBlock):
    def forward(self, x, **options):
        return super().forward(x, **options) * 2


def test_other_blocks_run_as_they_are_written():
    encoder = stack()
    encoder.layers = nn.ModuleList([encoder.layers[0], Doubled(D, 40, H)]).eval()
    for seed in range(3):
        x = draw(1, 4, D, seed=seed)
        with te.no_grad():
            close(encoder(x).numpy(), as_usual(encoder, x))


def test_without_machine_code_blocks_run_as_usual(planned):
    made, x = block(), draw(1, 3, D)
    with te.no_grad():
        for _ in range(2):
            made(x)
        try:
            te.set_kernels("numpy")
            close(made(x).numpy(), as_usual(made, x))
        finally:
            te.set_kernels("auto")
        made(x)
    assert planned == [False, True, False, False, True]


def test_what_can_not_be_planned_is_not_tried_again(monkeypatch, planned):
    made, tries = block(), []
    made.linear1.weight = nn.Parameter(made.linear1.weight)
    monkeypatch.setattr("te_tensor.plan._MOST_COPIED", 10)  # weights this small aren't laid out
    monkeypatch.setattr(stack_plan.Stack, "__init__", counting(stack_plan.Stack, tries))
    with te.no_grad():
        for seed in range(5):
            made(draw(1, 3, D, seed=seed))
    assert len(tries) == 1 and True not in planned


def counting(kind, tries):
    original = kind.__init__

    def init(self, *args):
        tries.append(args)
        original(self, *args)

    return init


def test_two_caches_in_turns():
    made = block(causal=True)
    inputs = [draw(2, 9, D, seed=seed) for seed in range(2)]
    full = [as_usual(made, x) for x in inputs]
    caches = [nn.KVCache(2, 9, H, D // H) for _ in inputs]
    with te.no_grad():
        for t in range(9):
            for x, cache, wanted in zip(inputs, caches, full, strict=True):
                close(made(x[:, t : t + 1], cache=cache).numpy(), wanted[:, t : t + 1])


@pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
def test_what_tiles_can_not_split_runs_as_usual(number, planned):
    te.manual_seed(0)
    module = nn.TransformerBlock(192, 256, 4, norm="post").eval()
    x = draw(2, 48, 192)
    odd = draw(2, 48, 192)
    odd[1, 3, 5] = number
    with te.no_grad():
        for given in (x, x, odd, x, odd):
            with np.errstate(all="ignore"):
                close(module(given).numpy(), as_usual(module, given))
    assert planned[2::2] == [True, False, True, False]
