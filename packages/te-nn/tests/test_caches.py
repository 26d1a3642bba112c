"""Caches, rotary positions and stacks: every path gives what the full pass gives."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import distances

D, H = 16, 4


def draw(*shape, seed=0):
    return te.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("bias", [None, "logarithmic", ["gaussian", "logarithmic"] * 2])
@pytest.mark.parametrize("cuts", [[5, 1, 1, 1], [1] * 8, [3, 4, 1], [8]])
@pytest.mark.parametrize("grad", [False, True])
def test_a_cache_gives_what_the_full_pass_gives(kv_heads, rope, bias, cuts, grad):
    te.manual_seed(0)
    attend = nn.MultiHeadAttention(
        *(D, H), kv_heads=kv_heads, rope=nn.Rotary(D // H) if rope else None, distance_bias=bias
    )
    x = draw(2, 8, D)
    distance = None if bias is None else distances.sequence(8).numpy()
    full = attend(x, causal=True, distance=distance).numpy()
    cache = nn.KVCache(2, 8, kv_heads, D // H)
    parts, start = [], 0
    for length in cuts:
        stop = start + length
        options = {"causal": True, "cache": cache}
        if bias is not None:
            options["distance"] = distance[start:stop, :stop]
        with te.enable_grad() if grad else te.no_grad():
            parts.append(attend(x[:, start:stop], **options).numpy())
        start = stop
        assert cache.length == stop
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=2e-6)


def test_everything_together():
    """Cross-attention with a cache, masks, distances, grouped heads and rotary positions."""
    te.manual_seed(1)
    attend = nn.MultiHeadAttention(
        *(D, H), kv_heads=2, rope=nn.Rotary(D // H), distance_bias="gaussian"
    )
    query, memory = draw(2, 3, D), draw(2, 6, D, seed=1)
    rng = np.random.default_rng(2)
    distance = rng.uniform(0, 2, (2, 3, 6))
    mask = rng.random((2, 1, 3, 6)) < 0.7
    mask[..., 0] = True
    full = attend(query, memory, mask=mask, distance=distance).numpy()
    cache = nn.KVCache(2, 6, 2, D // H)
    with te.no_grad():
        attend(draw(2, 1, D), memory[:, :4], cache=cache)
        # queries stand at the cache's end; turning them back makes their positions those of before
        assert cache.length == 4
        shifted = attend(query, memory[:, 4:], mask=mask, distance=distance, cache=cache).numpy()
    plain = nn.MultiHeadAttention(D, H, kv_heads=2, distance_bias="gaussian")
    plain.load_state_dict(attend.state_dict())
    q = plain._heads(plain.q_proj(query), H)
    k = plain._heads(plain.k_proj(memory), 2)
    v = plain._heads(plain.v_proj(memory), 2)
    for place, expected in ((0, full), (4, shifted)):
        mixed = te.attention(
            *(attend.rope(q, place), attend.rope(k), v),
            mask=mask, distance=distance, **plain.nl_oob.options(),
        )  # fmt: skip
        joined = mixed.transpose(1, 2).reshape(2, 3, D)
        np.testing.assert_allclose(plain.o_proj(joined).numpy(), expected, atol=2e-6)


def test_gradients_of_a_prompt_with_a_cache_are_those_without():
    te.manual_seed(0)
    attend = nn.MultiHeadAttention(D, H)
    x = draw(2, 5, D)
    attend(x, causal=True).exp().sum().backward()
    expected = [p.grad.numpy() for p in attend.parameters()]
    attend.zero_grad()
    attend(x, causal=True, cache=nn.KVCache(2, 9, H, D // H)).exp().sum().backward()
    for parameter, wanted in zip(attend.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), wanted, atol=1e-5)


def test_an_overrun_raises_and_changes_nothing():
    encoder = nn.TransformerEncoder(2, D, 32, H, causal=True)
    caches = encoder.make_cache(1, 4)
    with te.no_grad():
        encoder(draw(1, 3, D), cache=caches)
        held = caches[0].keys.copy()
        with pytest.raises(ValueError, match="max_len = 4"):
            encoder(draw(1, 2, D), cache=caches)
        assert [c.length for c in caches] == [3, 3]
        with pytest.raises(ValueError, match="mask"):
            encoder(draw(1, 1, D), cache=caches, mask=np.ones((1, 3), bool))
        encoder.layers[1].linear2 = nn.Linear(5, D)
        with pytest.raises(ValueError):
            encoder(draw(1, 1, D), cache=caches)
    assert [c.length for c in caches] == [3, 3]
    assert np.array_equal(caches[0].keys, held)


@pytest.mark.parametrize(
    ("sizes", "dtype", "error", "given"),
    [
        ((3, 8, 4, 4), "float32", ValueError, "(3, 4, S, 4)"),
        ((2, 8, 2, 4), "float32", ValueError, "(2, 2, S, 4)"),
        ((2, 8, 4, 3), "float32", ValueError, "(2, 4, S, 3)"),
        ((2, 8, 4, 4), "float64", TypeError, "float64"),
    ],
)
def test_caches_that_do_not_fit(sizes, dtype, error, given):
    cache = nn.KVCache(*sizes, dtype=dtype)
    with pytest.raises(error) as caught:
        nn.MultiHeadAttention(D, H)(draw(2, 3, D), cache=cache)
    assert given in str(caught.value)
    assert cache.length == 0


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 1.5, 1), (1, 1, 1, True)])
def test_bad_sizes_of_caches(sizes):
    with pytest.raises(ValueError, match="whole number"):
        nn.KVCache(*sizes)


def test_truncate_and_reset():
    cache = nn.KVCache(1, 6, H, D // H)
    attend, x = nn.MultiHeadAttention(D, H), draw(1, 6, D)
    with te.no_grad():
        attend(x[:, :4], cache=cache)
        first = attend(x[:, 4:5], cache=cache).numpy()
        cache.truncate(4)
        assert np.array_equal(attend(x[:, 4:5], cache=cache).numpy(), first)
    with pytest.raises(ValueError, match="7"):
        cache.truncate(7)
    cache.reset()
    assert cache.length == 0 and cache.keys.shape == (1, H, 0, D // H)
    assert not cache.keys.flags.writeable
    assert "KVCache(1, 6, 4, 4" in repr(cache)


def test_a_cache_in_bfloat16():
    encoder = nn.TransformerEncoder(2, D, 32, H, causal=True).to("bfloat16")
    caches = encoder.make_cache(1, 6)
    assert caches[0].keys.dtype == te.bfloat16
    x = draw(1, 6, D).astype("bfloat16")
    with te.no_grad():
        parts = [encoder(x[:, i : i + 1], cache=caches).numpy() for i in range(6)]
        full = encoder(x).numpy()
    joined = np.concatenate(parts, axis=1).astype(float)
    assert np.allclose(joined, full.astype(float), atol=0.1)


# -- rotary positions ---------------------------------------------------------------------


def rotated(x, base=10000.0, scale=1.0, offset=0):
    """The formula with complex numbers, pairs (i, i + d/2)."""
    half = x.shape[-1] // 2
    place = (np.arange(x.shape[-2]) + offset)[:, None] * scale
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * place * base ** (-np.arange(half) / half)
    )
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (40, 8, 33, 64)])
@pytest.mark.parametrize("options", [{}, {"base": 500.0}, {"scale": 0.25}])
@pytest.mark.parametrize("offset", [0, 7])
def test_rotary(shape, options, offset):
    x = np.random.default_rng(0).standard_normal(shape)
    result = nn.Rotary(shape[-1], **options)(te.Tensor(x), offset)
    np.testing.assert_allclose(result.numpy(), rotated(x, offset=offset, **options), atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone():
    rope = nn.Rotary(8)
    q, k = (te.Tensor(np.random.default_rng(i).standard_normal((1, 8))) for i in (0, 1))
    scores = [(rope(q, a) @ rope(k, b).T).item() for a, b in ((5, 2), (105, 102), (3, 0))]
    assert scores == pytest.approx([scores[0]] * 3)


def test_rotary_keeps_layout_and_float32():
    x = te.randn(2, 5, 3, 8).transpose(1, 2)
    result = nn.Rotary(8)(x)
    assert result.dtype == te.float32
    assert result.numpy().transpose(0, 2, 1, 3).flags.c_contiguous


@pytest.mark.parametrize(
    ("options", "given"),
    [({"head_dim": 7}, "head_dim is 7"), ({"head_dim": 8, "base": 0.0}, "base is 0.0"),
     ({"head_dim": 8, "scale": -1.0}, "scale is -1.0")],
)  # fmt: skip
def test_bad_rotary_settings(options, given):
    with pytest.raises(ValueError, match=given):
        nn.Rotary(**options)


def test_rotary_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        nn.Rotary(8)(te.ones(2, 6))
    with pytest.raises(ValueError, match="rope is for 8 features: expected 4"):
        nn.MultiHeadAttention(D, H, rope=nn.Rotary(8))
    with pytest.raises(TypeError, match="bool"):
        nn.TransformerBlock(D, 32, H, rope=True)


# -- stacks -------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often phi is made."""
    from te_tensor.ops import _distance

    calls = []
    original = _distance._write_phi

    def noted(function, out, distance):
        calls.append(function.name)
        original(function, out, distance)

    monkeypatch.setattr(_distance, "_write_phi", noted)
    return calls


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6)])
@pytest.mark.parametrize("cut", [False, True])
def test_phi_is_made_once_for_a_stack(shape, cut, counted, monkeypatch):
    before = te.get_num_threads()
    te.set_num_threads(2)
    if cut:
        monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
        monkeypatch.setattr("te_tensor.subgraph._SMALLEST", 1)
        monkeypatch.setattr("te_nn.transformer.run_recorded", lambda *given: None)
        monkeypatch.setattr("te_nn.transformer.are_recorded", lambda *given: False)
    encoder = nn.TransformerEncoder(3, D, 32, H, "gaussian")
    distance = np.random.default_rng(0).uniform(0, 2, shape)
    encoder(draw(3, 6, D), distance=distance)
    te.set_num_threads(before)
    assert counted == ["gaussian"] * (2 if cut and len(shape) == 3 else 1)


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6), (3, H, 6, 6)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_stack_is_its_blocks_one_after_the_other(shape, threads, monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
    monkeypatch.setattr("te_tensor.subgraph._SMALLEST", 1)
    before = te.get_num_threads()
    te.manual_seed(0)
    encoder = nn.TransformerEncoder(3, D, 32, H, "logarithmic", 2.0, final_norm=True)
    mask = np.random.default_rng(1).random((3, 1, 1, 6)) < 0.8
    values = np.random.default_rng(0).uniform(0, 2, shape).astype(np.float32)
    found = []
    for together in (True, False):
        encoder.zero_grad()
        x, d = draw(3, 6, D), te.Tensor(values, requires_grad=True)
        x.requires_grad = True
        if together:
            te.set_num_threads(threads)
            y = encoder.forward_with_distance(x, d, mask=mask)
        else:
            te.set_num_threads(1)
            y = x
            for block in encoder.layers:
                y = block(y, distance=d, mask=mask)
            y = encoder.norm(y)
        (y**2 * draw(3, 6, D, seed=5)).sum().backward()
        found.append([y, x.grad, d.grad, *(p.grad for p in encoder.parameters())])
    te.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=1e-4)


def test_each_block_has_slopes_of_its_own():
    encoder = nn.TransformerEncoder(2, D, 32, H, nn.NLOOB(H, "gaussian", softplus=True))
    first, second = (block.self_attn.nl_oob for block in encoder.layers)
    assert first is not second and first.slopes is not second.slopes
    assert "layers.1.self_attn.nl_oob.slopes" in encoder.state_dict()


def test_bad_stacks():
    with pytest.raises(ValueError, match="num_layers is 0"):
        nn.TransformerEncoder(0, D, 32, H)
    encoder = nn.TransformerEncoder(2, D, 32, H)
    with pytest.raises(ValueError, match="got 1 caches: expected 2"):
        encoder(draw(1, 2, D), cache=encoder.make_cache(1, 4)[:1])
    with pytest.raises(ValueError, match="no distance bias"):
        encoder(draw(1, 2, D), distance=np.ones((2, 2)))


def test_prepared_distances_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
    monkeypatch.setattr("te_tensor.subgraph._SMALLEST", 1)
    block = nn.TransformerBlock(D, 32, H, "gaussian")
    x = draw(3, 6, D)
    for shape in ((6, 6), (3, 6, 6)):
        distance = np.random.default_rng(0).uniform(0, 2, shape)
        expected = block(x, distance=distance).numpy()
        found = block(x, distance=te.prepare_distance(distance, "gaussian")).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_long_sequences_in_little_memory():
    pytest.importorskip("resource")
    code = """
        import resource, sys
        import numpy as np
        import te_nn as nn, te_tensor as te
        te.set_num_threads(2)
        def peak():
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        functions = ["gaussian", "logarithmic"] * 4
        encoder = nn.TransformerEncoder(2, 64, 64, 8, functions, rope=nn.Rotary(8))
        distance = nn.distances.sequence(4096)
        def run(length):
            x = te.randn(1, length, 64)
            encoder(x, distance=distance[:length, :length]).backward(np.ones(x.shape, np.float32))
        run(64)
        before = peak()
        run(4096)
        print(peak() - before)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    grown = int(ran.stdout)
    # The scores of one block alone would be 512 MiB. Held are two phi (64 MiB each), the
    # distances' slice, activations of 1 MiB each, and blocks of scores for each thread.
    assert grown < 260 * 2**20, f"peak memory grew by {grown / 2**20:.0f} MiB"
