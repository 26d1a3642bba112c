"""Names, transposition, and how archives get into modules; the modules here are stand-ins."""

import re
from collections.abc import Mapping

import numpy as np
import pytest

import te_tensor as te
from te_io import (
    FormatError,
    load_into_module,
    load_safetensors,
    py_load_safetensors_into_module,
    save_safetensors,
)


class Holder:
    """All that te-io asks of a module."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.tensors = {
            name.replace("__", "."): te.zeros(shape, requires_grad=True)
            for name, shape in shapes.items()
        }

    def state_dict(self) -> dict[str, te.Tensor]:
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, te.Tensor], strict: bool = True) -> None:
        problems = [
            f"{name}: {state[name].shape}, expected {tensor.shape}"
            for name, tensor in self.tensors.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if strict:
            problems += [f"missing {name}" for name in self.tensors if name not in state]
            problems += [f"unexpected {name}" for name in state if name not in self.tensors]
        if problems:
            raise KeyError("; ".join(problems))
        for name, tensor in self.tensors.items():
            if name in state:
                with tensor.lock() as array:
                    array[...] = state[name].numpy()


def numbered(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays that differ from their transposes."""
    return {
        name.replace("__", "."): np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for name, shape in shapes.items()
    }


def loaded(holder: Holder) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in holder.tensors.items()}


@pytest.fixture
def write(tmp_path):
    def save(arrays, **options):
        save_safetensors(arrays, tmp_path / "model.safetensors", **options)
        return tmp_path / "model.safetensors"

    return save


# -- into a module --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "dict", "tensors"])
def test_every_source(write, kind):
    arrays = numbered(weight=(2, 3), bias=(2,))
    path = write(arrays)
    holder = Holder(weight=(2, 3), bias=(2,))
    sources = {
        "path": lambda: path,
        "str": lambda: str(path),
        "bytes": path.read_bytes,
        "file": lambda: path.open("rb"),
        "dict": lambda: arrays,
        "tensors": lambda: {name: te.Tensor(array) for name, array in arrays.items()},
    }
    source = sources[kind]()
    load_into_module(holder, source)
    if kind == "file":
        source.close()
    assert loaded(holder) == {name: array.tolist() for name, array in arrays.items()}


def test_a_module_is_saved_and_comes_back(tmp_path):
    holder, other = Holder(a__w=(2, 3)), Holder(a__w=(2, 3))
    with holder.tensors["a.w"].lock() as array:
        array[...] = np.arange(6).reshape(2, 3)
    save_safetensors(holder, tmp_path / "f")
    load_into_module(other, tmp_path / "f")
    assert loaded(other) == {"a.w": [[0, 1, 2], [3, 4, 5]]}


def test_tensors_stay_the_same_and_trainable(write):
    holder = Holder(self_attn__nl_oob__slopes=(1, 2, 1, 1))
    (slopes,) = holder.tensors.values()
    load_into_module(holder, write(numbered(self_attn__nl_oob__slopes=(1, 2, 1, 1))))
    assert slopes.tolist() == [[[[0]], [[1]]]]
    assert slopes.requires_grad
    (slopes * 2).sum().backward()
    assert slopes.grad.tolist() == [[[[2]], [[2]]]]


def test_what_does_not_fit_is_named_with_the_file_and_changes_nothing(write):
    path = write(numbered(weight=(2, 3), extra=(1,)))
    holder = Holder(weight=(3, 2), bias=(2,))
    with pytest.raises(FormatError) as caught:
        load_into_module(holder, path)
    for words in [str(path), "weight: (2, 3), expected (3, 2)", "missing bias", "unexpected extra"]:
        assert words in str(caught.value)
    assert "'" not in str(caught.value)  # the text of a KeyError, not its repr
    assert isinstance(caught.value.__cause__, KeyError)
    assert loaded(holder) == {"weight": [[0, 0]] * 3, "bias": [0, 0]}


def test_not_strict(write):
    path = write({"weight": np.ones((2, 3)), "extra": np.ones(1)})
    holder = Holder(weight=(2, 3), bias=(2,))
    with pytest.raises(FormatError, match="unexpected extra"):
        load_into_module(holder, path)
    load_into_module(holder, path, strict=False)
    assert loaded(holder) == {"weight": [[1] * 3] * 2, "bias": [0, 0]}


def test_a_damaged_file_changes_nothing(write):
    content = write({"bias": np.ones(2), "weight": np.ones(2)}).read_bytes()
    holder = Holder(bias=(2,), weight=(2,))
    with pytest.raises(FormatError, match="tensor 'weight'"):
        load_into_module(holder, content[:-1])
    assert loaded(holder) == {"bias": [0, 0], "weight": [0, 0]}


def test_things_of_a_wrong_kind(write):
    path = write({"x": np.ones(1)})
    with pytest.raises(TypeError, match="int: expected something with load_state_dict"):
        load_into_module(3, path)
    with pytest.raises(TypeError, match="expected a path, bytes"):
        load_into_module(Holder(x=(1,)), 3)
    with pytest.raises(FormatError, match="tensor 'x': is list"):
        load_into_module(Holder(x=(1,)), {"x": [1.0]})
    with pytest.raises(FileNotFoundError):
        load_into_module(Holder(x=(1,)), "missing.safetensors")


# -- prefix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["block.0", "block.0."])
def test_prefix(write, prefix):
    path = write(
        {
            "block.0.bias": np.full(2, 7.0),
            "block.01.bias": np.full(2, 8.0),
            "block.bias": np.full(2, 9.0),
            "bias": np.full(2, 10.0),
        }
    )
    holder = Holder(bias=(2,))
    load_into_module(holder, path, prefix=prefix)
    assert loaded(holder) == {"bias": [7, 7]}


def test_a_prefix_that_is_not_there(write):
    path = write({"encoder.bias": np.ones(2), "head.bias": np.ones(2)})
    for strict in (True, False):
        with pytest.raises(FormatError, match=r"begins with 'decoder\.': .* encoder, head$"):
            load_into_module(Holder(bias=(2,)), path, prefix="decoder", strict=strict)


def test_the_original_interface(write):
    path = write(numbered(net__linear__weight=(3, 2), net__linear__bias=(2,), other=(1,)))
    holder = Holder(linear__weight=(2, 3), linear__bias=(2,))
    py_load_safetensors_into_module(path.read_bytes(), True, holder, "net")
    assert loaded(holder) == {"linear.weight": [[0, 2, 4], [1, 3, 5]], "linear.bias": [0, 1]}
    whole = Holder(net__linear__weight=(3, 2), net__linear__bias=(2,), other=(1,))
    py_load_safetensors_into_module(data=path.read_bytes(), transpose=False, module=whole)
    assert loaded(whole)["net.linear.weight"] == [[0, 1], [2, 3], [4, 5]]


# -- rename ---------------------------------------------------------------------------------

RENAMES = {
    "function": lambda name: name.replace("linear_q", "q_proj").replace("mha", "self_attn"),
    "dict": {"mha.linear_q.bias": "self_attn.q_proj.bias"},
    "pairs": [(r"^mha\.", "self_attn."), (r"linear_([qkvo])", r"\1_proj")],
}


@pytest.mark.parametrize("kind", RENAMES)
def test_rename(write, kind):
    path = write({"block.mha.linear_q.bias": np.full(2, 5.0), "block.norm.bias": np.full(1, 6.0)})
    holder = Holder(self_attn__q_proj__bias=(2,), norm__bias=(1,))
    load_into_module(holder, path, prefix="block", rename=RENAMES[kind])
    assert loaded(holder) == {"self_attn.q_proj.bias": [5, 5], "norm.bias": [6]}


@pytest.mark.parametrize(
    "rename", [lambda name: "same", {"a": "same", "b": "same"}, {"a": "b"}, [("[ab]", "same")]]
)
def test_two_names_that_become_one(write, rename):
    path = write({"a": np.ones(1), "b": np.zeros(1)})
    with pytest.raises(FormatError, match=r"for 'a' and for 'b'|for 'b' and for 'a'"):
        load_into_module(Holder(same=(1,)), path, rename=rename, strict=False)


def test_renames_of_a_wrong_kind(write):
    path = write({"a": np.ones(1)})
    holder = Holder(a=(1,))
    with pytest.raises(ValueError, match=r"pattern '\('"):
        load_into_module(holder, path, rename=[("(", "b")])
    for wrong in [3, ["ab", "cde"], [("a", "b", "c")]]:
        with pytest.raises(TypeError, match="expected a function, a dict, or pairs"):
            load_into_module(holder, path, rename=wrong)
    with pytest.raises(TypeError, match="gave None for 'a'"):
        load_into_module(holder, path, rename=lambda name: None)


# -- transpose ------------------------------------------------------------------------------


def turned(arrays: dict[str, np.ndarray], path) -> set[str]:
    """The names of what `load_safetensors(transpose=True)` turns."""
    state = load_safetensors(path, transpose=True)
    assert set(state) == set(arrays)
    found = set()
    for name, array in arrays.items():
        if np.array_equal(state[name].numpy(), array):
            continue
        assert state[name].numpy().flags.c_contiguous
        np.testing.assert_array_equal(state[name].numpy(), array.T)
        found.add(name)
    return found


def test_what_is_turned_without_a_module(write):
    arrays = numbered(
        linear__weight=(2, 3),
        square__weight=(3, 3),
        weight=(3, 2),
        in_proj_weight=(2, 6),
        embedding_hidden__weight=(4, 5),  # its bias shows that it is a Linear's
        embedding_hidden__bias=(5,),
        # and what is not
        linear__bias=(3,),
        norm__weight=(3,),
        conv__weight=(4, 3, 2),
        table=(2, 3),
        linear__weights=(2, 3),
        word_embeddings__weight=(5, 4),
        embed_tokens__weight=(5, 4),
        Embedding__weight=(4, 4),
        tok_emb__weight=(5, 4),
        transformer__wte__weight=(5, 4),
        wpe__weight=(5, 4),
    )
    assert turned(arrays, write(arrays)) == {
        "linear.weight",
        "square.weight",
        "weight",
        "in_proj_weight",
        "embedding_hidden.weight",
    }


def test_parts_above_an_embedding_do_not_count(write):
    arrays = numbered(embeddings__proj__weight=(2, 3), member__weight=(2, 3))
    assert turned(arrays, write(arrays)) == set(arrays)


def test_a_bias_that_contradicts(write):
    path = write(numbered(linear__weight=(2, 3), linear__bias=(2,)))
    expected = r"tensor 'linear\.weight': has shape \(2, 3\) and a bias of 2.* \[in, out\]"
    with pytest.raises(FormatError, match=expected):
        load_safetensors(path, transpose=True)
    holder = Holder(linear__weight=(2, 3), linear__bias=(2,))
    with pytest.raises(FormatError, match=expected):
        load_into_module(holder, path, transpose=True)
    assert loaded(holder)["linear.bias"] == [0, 0]
    load_into_module(holder, path)
    assert loaded(holder)["linear.bias"] == [0, 1]


def test_the_module_tells_what_to_turn(write):
    """By its shapes an embedding of any name is left alone; what is square goes by its name."""
    arrays = numbered(
        up__weight=(2, 3),
        lookup__weight=(7, 2),  # an embedding that its name doesn't show
        embed_proj__weight=(2, 5),  # a Linear with the name of an embedding
        square__weight=(2, 2),
        embedding__weight=(2, 2),
        table=(2, 3),
    )
    holder = Holder(
        up__weight=(3, 2),
        lookup__weight=(7, 2),
        embed_proj__weight=(5, 2),
        square__weight=(2, 2),
        embedding__weight=(2, 2),
        table=(2, 3),
    )
    load_into_module(holder, write(arrays), transpose=True)
    expected = {
        name: (array.T if name.split(".")[0] in ("up", "embed_proj", "square") else array).tolist()
        for name, array in arrays.items()
    }
    assert loaded(holder) == expected


def test_what_fits_neither_way_is_reported_as_it_is(write):
    path = write(numbered(linear__weight=(2, 3)))
    with pytest.raises(FormatError, match=re.escape("(2, 3), expected (4, 5)")):
        load_into_module(Holder(linear__weight=(4, 5)), path, transpose=True)


def test_turning_happens_under_the_names_of_the_module(write):
    path = write(numbered(net__w=(2, 2), net__b=(2,)))
    holder = Holder(linear__weight=(2, 2), linear__bias=(2,))
    rename = {"w": "linear.weight", "b": "linear.bias"}
    load_into_module(holder, path, transpose=True, prefix="net", rename=rename)
    assert loaded(holder) == {"linear.weight": [[0, 2], [1, 3]], "linear.bias": [0, 1]}


def test_a_dict_is_turned_without_changing_it():
    arrays = numbered(linear__weight=(2, 3))
    holder = Holder(linear__weight=(3, 2))
    load_into_module(holder, arrays, transpose=True)
    assert loaded(holder) == {"linear.weight": [[0, 3], [1, 4], [2, 5]]}
    assert arrays["linear.weight"].shape == (2, 3)
