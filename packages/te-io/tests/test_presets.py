"""The names of other programs; the modules that they are for are in the repository's tests."""

import numpy as np
import pytest

import te_tensor as te
from te_io import FormatError, Preset, presets


def tensors(**shapes: tuple[int, ...]) -> dict[str, te.Tensor]:
    return {
        name.replace("__", "."): te.arange(int(np.prod(shape)), dtype="float32").reshape(*shape)
        for name, shape in shapes.items()
    }


def renamed(preset: Preset, *names: str) -> list[str]:
    return list(preset.apply({name: te.zeros(3) for name in names}))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("mha.linear_q.weight", "self_attn.q_proj.weight"),
        ("mha.linear_o.bias", "self_attn.o_proj.bias"),
        ("mha.k_proj.weight", "self_attn.k_proj.weight"),
        ("self_attn.linear_v.weight", "self_attn.v_proj.weight"),
        ("mha.nl_oob.slopes", "self_attn.nl_oob.slopes"),
        ("net.0.mha.nl_oob.config", "net.0.self_attn.nl_oob.config"),
        ("linear_k.weight", "k_proj.weight"),
        ("blocks.3.norm1.gamma", "blocks.3.norm1.weight"),
        ("norm2.beta", "norm2.bias"),
        ("final_norm.gamma", "final_norm.weight"),
        # and what stays
        ("linear1.weight", "linear1.weight"),
        ("linear_quick.weight", "linear_quick.weight"),
        ("alpha.linear_x.weight", "alpha.linear_x.weight"),
        ("mixture.gamma", "mixture.gamma"),
    ],
)
def test_names_of_the_original(theirs, ours):
    assert renamed(presets.RUST, theirs) == [ours]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("out_proj.weight", ["o_proj.weight"]),
        ("layers.0.self_attn.out_proj.bias", ["layers.0.self_attn.o_proj.bias"]),
        ("in_proj_bias", ["q_proj.bias", "k_proj.bias", "v_proj.bias"]),
        ("a.in_proj_weight", ["a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight"]),
        ("self_attn.k_proj_weight", ["self_attn.k_proj.weight"]),
        ("linear1.weight", ["linear1.weight"]),
        ("my_in_proj_weight", ["my_in_proj_weight"]),
    ],
)
def test_names_of_torch(theirs, ours):
    assert renamed(presets.TORCH, theirs) == ours


@pytest.mark.parametrize("in_out", [False, True])
def test_projections_are_cut_along_their_outputs(in_out):
    state = tensors(in_proj_weight=(2, 6) if in_out else (6, 2), in_proj_bias=(6,))
    whole = state["in_proj_weight"].numpy()
    parts = presets.TORCH.apply(state, in_out=in_out)
    joined = np.concatenate([parts[f"{n}_proj.weight"].numpy() for n in "qkv"], int(in_out))
    np.testing.assert_array_equal(joined, whole)
    assert parts["v_proj.bias"].tolist() == [4, 5]
    assert np.shares_memory(parts["q_proj.weight"].numpy(), whole)


@pytest.mark.parametrize("shape", [(7, 2), (7,), (), (1, 1)])
def test_what_can_not_be_cut(shape):
    with pytest.raises(FormatError, match=r"'x\.in_proj_weight': has shape .* 3 equal parts"):
        presets.TORCH.apply({"x.in_proj_weight": te.zeros(shape)}, file="f")


def test_names_that_meet():
    with pytest.raises(FormatError, match="two tensors get this name"):
        presets.TORCH.apply({"q_proj.bias": te.zeros(1), "in_proj_bias": te.zeros(3)})
    with pytest.raises(FormatError, match=r"'self_attn\.q_proj\.bias'"):
        presets.RUST.apply({"mha.q_proj.bias": te.zeros(1), "mha.linear_q.bias": te.zeros(3)})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("attention.self.query.weight", "self_attn.q_proj.weight"),
        ("attention.self.key.bias", "self_attn.k_proj.bias"),
        ("attention.self.value.weight", "self_attn.v_proj.weight"),
        ("attention.output.dense.weight", "self_attn.o_proj.weight"),
        ("attention.output.LayerNorm.gamma", "norm1.weight"),
        ("intermediate.dense.bias", "linear1.bias"),
        ("output.dense.weight", "linear2.weight"),
        ("output.LayerNorm.bias", "norm2.bias"),
        ("output.LayerNorm.beta", "norm2.bias"),
    ],
)
@pytest.mark.parametrize("start", ["", "bert."])
@pytest.mark.parametrize(
    ("layers", "path"),
    [("layers", "layers.11."), ("", "11."), (r"a\1.", r"a\1.11."), ("m.blocks", "m.blocks.11.")],
)
def test_names_of_bert(theirs, ours, start, layers, path):
    preset = presets.hugging_face_bert(layers)
    assert renamed(preset, f"{start}encoder.layer.11.{theirs}") == [path + ours]


def test_embeddings_of_bert_keep_their_names():
    assert renamed(
        presets.hugging_face_bert(),
        "bert.embeddings.position_ids",
        "bert.embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.gamma",
        "pooler.dense.weight",
    ) == ["embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight", "pooler.dense.weight"]
