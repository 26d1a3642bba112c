"""Attention of long rows, some of them at a time, against float64."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.ops import _nested_rows
from te_tensor.ops._nested_rows import NestedRows

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")


@pytest.fixture(autouse=True)
def _few_rows_at_a_time(monkeypatch):
    for name, value in {
        "_nested_rows._FEWEST": 8,
        "_nested_rows.MOST_COLUMNS": 24,
        "_nested.MOST_COLUMNS": 24,
        "_long_rows._HIGH": 32,
        "_long_rows._LOW": 16,
        "_long_rows._WIDE": 32,
        "_long_rows._STEP": 16,
    }.items():
        monkeypatch.setattr(f"te_tensor.ops.{name}", value)
    monkeypatch.setattr("te_tensor.ops.attention.is_small", lambda q, k: False)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def reference(q, k, v, grad, *, seen, added, phi, slopes):
    """The result, and the gradients of q, k, v and slopes."""
    q, k, v, grad = (x.astype(np.float64) for x in (q, k, v, grad))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale + added - slopes.reshape(-1, 1, 1) * phi
    scores = np.where(seen, scores, -np.inf)
    top = np.maximum(scores.max(axis=-1, keepdims=True), -1e30)
    weights = np.exp(scores - top)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    upstream = grad @ v.swapaxes(-1, -2)
    of_scores = weights * (upstream - (weights * upstream).sum(axis=-1, keepdims=True))
    return (
        weights @ v,
        of_scores @ k * scale,
        of_scores.swapaxes(-1, -2) @ q * scale,
        weights.swapaxes(-1, -2) @ grad,
        -(of_scores * phi).sum(axis=(0, 2, 3)),
    )


@pytest.mark.parametrize("lead", [(1, 3), (2, 3), (4, 1)])
@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (64, 64), (33, 50), (71, 48), (90, 101)])
@pytest.mark.parametrize("mask", [None, "boolean", "of columns", "added"])
@pytest.mark.parametrize("distances", [None, "shared", "by batch", "some infinite"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_option(lead, rows, columns, mask, distances, causal):
    rng = np.random.default_rng(rows + columns)
    te.set_num_threads(int(rng.integers(1, max(lead) + 1)))
    batch, heads = lead
    q, grad = normal(rng, *lead, rows, 8), normal(rng, *lead, rows, 12)
    k, v = normal(rng, *lead, columns, 8), normal(rng, *lead, columns, 12)
    seen, added, phi = np.ones((1, 1, rows, columns), bool), 0.0, 0.0
    slopes = rng.random(heads).astype(np.float32)
    options = {"causal": causal}
    if causal:
        offset = columns - rows if columns > rows else 0
        options["offset"] = offset
        seen = seen & (np.arange(columns) <= np.arange(rows)[:, None] + offset)
    if mask == "added":
        options["mask"] = added = normal(rng, batch, 1, rows, columns)
    elif mask is not None:
        shape = (rows, columns) if mask == "boolean" else (batch, 1, 1, columns)
        options["mask"] = chosen = rng.random(shape) < 0.7
        seen = seen & chosen
    tensors = [te.Tensor(x, requires_grad=True) for x in (q, k, v, slopes)]
    if distances is not None:
        distance = 3 * rng.random(
            (batch, rows, columns) if distances == "by batch" else (rows, columns)
        )
        if distances == "some infinite":
            distance[rng.random(distance.shape) < 0.1] = np.inf
            distance[5] = np.inf  # a row that sees nothing
        options |= {"distance": te.Tensor(distance.astype(np.float32)), "slopes": tensors[3]}
        distance = distance.reshape(-1, 1, rows, columns)
        seen, phi = (
            seen & np.isfinite(distance),
            np.log1p(np.where(np.isinf(distance), 0, distance)),
        )
    out = te.attention(*tensors[:3], **options)
    assert isinstance(out.creator.saved[0], NestedRows)
    out.backward(te.Tensor(grad))
    wanted = reference(q, k, v, grad, seen=seen, added=added, phi=phi, slopes=slopes)
    found = [out, *(t.grad for t in tensors if t.grad is not None)]
    assert len(found) == (4 if distances is None else 5)
    for ours, exact in zip(found, wanted, strict=False):
        assert np.abs(ours.numpy() - exact).max() <= 2e-5 * max(1.0, np.abs(exact).max())


@pytest.mark.parametrize("needs", [("q",), ("k",), ("v",), ("q", "v"), ("k", "v")])
def test_some_gradients_alone(needs):
    rng = np.random.default_rng(0)
    arrays = {name: normal(rng, 2, 3, 40, 8) for name in "qkv"}
    found = []
    for wanted in (needs, "qkv"):
        given = {n: te.Tensor(x, requires_grad=n in wanted) for n, x in arrays.items()}
        te.attention(*given.values()).pow(2).sum().backward()
        found.append({n: x.grad for n, x in given.items()})
    for name in "qkv":
        if name in needs:
            assert np.array_equal(found[0][name].numpy(), found[1][name].numpy())
        else:
            assert found[0][name] is None


@pytest.mark.parametrize("number", [np.inf, np.nan, 1e30])
@pytest.mark.parametrize("place", range(3))
def test_what_tiles_can_not_split_is_made_without_them(number, place, threads, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [normal(rng, 2, 3, 48, 16) for _ in range(3)]
    arrays[place][1, 2, 30, 5] = number
    grad, found = normal(rng, 2, 3, 48, 16), []
    for tiles in (True, False):
        if not tiles:
            monkeypatch.setattr(_nested_rows, "uses_tiles", lambda: False)
        given = [te.Tensor(x, requires_grad=True) for x in arrays]
        with np.errstate(all="ignore"):
            out = te.attention(*given)
            out.backward(te.Tensor(grad))
        found.append([out.numpy(), *(x.grad.numpy() for x in given)])
    for ours, wanted in zip(*found, strict=True):
        assert np.array_equal(ours, wanted, equal_nan=True)
        assert np.isfinite(ours[0]).all()  # where nothing is odd


def test_bits_do_not_depend_on_threads():
    rng = np.random.default_rng(0)
    arrays = [normal(rng, 2, 4, 70, 8) for _ in range(3)]
    found = []
    for threads in (1, 2, 3, 4):
        te.set_num_threads(threads)
        given = [te.Tensor(x, requires_grad=True) for x in arrays]
        out = te.attention(*given, causal=True)
        out.pow(2).sum().backward()
        found.append([out.numpy(), *(x.grad.numpy() for x in given)])
    for others in found[1:]:
        assert all(map(np.array_equal, found[0], others))


def test_what_goes_in_blocks_instead():
    rng = np.random.default_rng(0)
    q, mask = te.Tensor(normal(rng, 2, 4, 40, 8)), te.zeros(40, 40, requires_grad=True)
    half = te.Tensor(normal(rng, 2, 2, 40, 8), requires_grad=True)
    distance = te.ones(40, 40, requires_grad=True)
    for k, options in (
        (q, {"dropout": 0.5}),
        (q, {"mask": mask}),
        (half, {}),
        (q, {"mask": np.ones((2, 4, 40, 40), bool), "distance": distance, "slopes": np.ones(4)}),
    ):
        out = te.attention(q, k, k, **options)
        if out.creator is not None:
            assert not isinstance(out.creator.saved[0], NestedRows)
    te.set_num_threads(3)
    alone = te.Tensor(normal(rng, 1, 2, 40, 8), requires_grad=True)  # fewer heads than threads
    assert not isinstance(te.attention(alone, alone, alone).creator.saved[0], NestedRows)


@pytest.mark.parametrize("columns", [50, 71, 130])
def test_columns_that_no_row_sees_have_no_gradient(columns):
    rng = np.random.default_rng(columns)
    q, grad = normal(rng, 2, 3, 40, 8), normal(rng, 2, 3, 40, 8)
    k, v = normal(rng, 2, 3, columns, 8), normal(rng, 2, 3, columns, 8)
    found = []
    for seen in (columns, 40):
        given = [te.Tensor(x, requires_grad=True) for x in (q, k[:, :, :seen], v[:, :, :seen])]
        out = te.attention(*given, causal=True)
        assert isinstance(out.creator.saved[0], NestedRows)
        out.backward(te.Tensor(grad))
        found.append([out.numpy(), *(x.grad.numpy() for x in given)])
    (out, *grads), (wanted, *wanted_grads) = found
    assert np.allclose(out, wanted, atol=1e-6)
    for ours, exact in zip(grads, wanted_grads, strict=True):
        assert np.allclose(ours[:, :, :40], exact, atol=1e-5)
        assert not ours[:, :, 40:].any()


@pytest.mark.parametrize("needs", ["q", "slopes"])
def test_columns_that_no_row_sees_without_gradients_of_keys(needs):
    rng = np.random.default_rng(0)
    q = te.Tensor(normal(rng, 1, 2, 40, 8), requires_grad=needs == "q")
    k, v = (te.Tensor(normal(rng, 1, 2, 130, 8)) for _ in range(2))
    slopes = te.ones(2, requires_grad=needs == "slopes")
    given = {"distance": te.ones(40, 130), "slopes": slopes}
    te.attention(q, k, v, causal=True, **given).pow(2).sum().backward()
    found = (q if needs == "q" else slopes).grad.numpy()
    q, slopes = te.Tensor(q.numpy(), requires_grad=True), te.ones(2, requires_grad=True)
    given = {"distance": te.ones(40, 40), "slopes": slopes}
    seen = (te.Tensor(x.numpy()[:, :, :40]) for x in (k, v))
    te.attention(q, *seen, causal=True, **given).pow(2).sum().backward()
    wanted = (q if needs == "q" else slopes).grad.numpy()
    assert np.allclose(found, wanted, atol=1e-5)
