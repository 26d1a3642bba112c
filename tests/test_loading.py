"""Modules of te-nn to files of te-io and back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_io import (
    FormatError,
    load_into_module,
    load_metadata,
    load_safetensors,
    presets,
    py_load_safetensors_into_module,
    save_safetensors,
)
from te_nn import BiasFunction, Embedding, Linear, Module, TransformerBlock, distances

EXAMPLE = Path(__file__).parents[1] / "packages" / "te-io" / "examples" / "load_model.py"


def block(seed: int, function: str = "gaussian") -> TransformerBlock:
    te.manual_seed(seed)
    return TransformerBlock(16, 32, 2, function)


def output(module: TransformerBlock) -> np.ndarray:
    x = te.Tensor(np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32))
    return module.forward_with_distance(x, distances.sequence(5)).numpy()


def values(module: Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def assert_same(module: Module, expected: dict[str, np.ndarray]) -> None:
    state = module.state_dict()
    assert list(state) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), array, strict=True, err_msg=name)


def test_a_block_comes_back_to_the_bit(tmp_path):
    saved, fresh = block(1), block(2, "logarithmic")
    assert not np.array_equal(output(saved), output(fresh))
    save_safetensors(saved, tmp_path / "f", metadata={"epoch": "20"})
    load_into_module(fresh, tmp_path / "f")
    assert_same(fresh, values(saved))
    assert fresh.self_attn.nl_oob.function == BiasFunction.GAUSSIAN
    np.testing.assert_array_equal(output(fresh), output(saved))
    assert load_metadata(tmp_path / "f") == {"epoch": "20"}


def test_slopes_stay_trainable(tmp_path):
    save_safetensors(block(1), tmp_path / "f")
    fresh = block(2)
    before = dict(fresh.named_parameters())
    load_into_module(fresh, tmp_path / "f")
    assert all(x is before[name] and x.requires_grad for name, x in fresh.named_parameters())
    x = te.randn(2, 5, 16)
    fresh.forward_with_distance(x, distances.sequence(5)).sum().backward()
    slopes = fresh.self_attn.nl_oob.slopes
    assert slopes.grad is not None
    assert slopes.grad.shape == (1, 2, 1, 1)


def test_an_archive_of_in_out_weights(tmp_path):
    """As the original writes them: square projections are turned too."""
    saved, fresh = block(1), block(2)
    state = {
        f"net.{name}": tensor.T if tensor.ndim == 2 else tensor
        for name, tensor in saved.state_dict().items()
    }
    save_safetensors(state, tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    py_load_safetensors_into_module(content, True, fresh, "net")
    assert_same(fresh, values(saved))
    with pytest.raises(FormatError, match=r"linear1\.weight"):
        py_load_safetensors_into_module(content, False, fresh, "net")
    assert_same(fresh, values(saved))


def as_the_original(module: Module, path: str = "", *, in_out: bool = True) -> dict[str, te.Tensor]:
    """A state as the original writes it."""
    state = {}
    for name, tensor in module.state_dict().items():
        name = re.sub(r"([qkvo])_proj", r"linear_\1", name.replace("self_attn", "mha"))
        name = re.sub(r"(norm\d)\.weight", r"\1.gamma", name)
        name = re.sub(r"(norm\d)\.bias", r"\1.beta", name)
        state[path + name] = tensor.T if in_out and tensor.ndim == 2 else tensor
    return state


def test_names_of_the_original(tmp_path):
    saved, fresh = block(1), block(2)
    state = as_the_original(saved, in_out=False)
    assert {"mha.linear_q.weight", "mha.nl_oob.slopes", "norm1.gamma"} <= set(state)
    save_safetensors(state, tmp_path / "f")
    rename = [
        (r"^mha\.", "self_attn."),
        (r"linear_([qkvo])\b", r"\1_proj"),
        ("gamma$", "weight"),
        (r"(norm\d)\.beta$", r"\1.bias"),
    ]
    for names in (rename, presets.RUST):
        fresh = block(2)
        load_into_module(fresh, tmp_path / "f", rename=names)
        assert_same(fresh, values(saved))


@pytest.mark.parametrize("root", ["", "net"])
def test_an_archive_of_the_original_by_its_function(tmp_path, root):
    saved, fresh = block(1), block(2)
    save_safetensors(as_the_original(saved, f"{root}." if root else ""), tmp_path / "f")
    py_load_safetensors_into_module((tmp_path / "f").read_bytes(), True, fresh, root)
    assert_same(fresh, values(saved))


def test_names_that_are_ours_win_over_the_original(tmp_path):
    """A module may have parts that are called as those of the original."""

    class Model(Module):
        def __init__(self) -> None:
            self.mha = Linear(3, 2)
            self.self_attn = Linear(3, 2)

    saved, fresh = Model(), Model()
    save_safetensors(saved, tmp_path / "f")
    py_load_safetensors_into_module(tmp_path / "f", False, fresh)
    assert_same(fresh, values(saved))


def test_what_does_not_fit_is_all_named_and_nothing_is_changed(tmp_path):
    state = block(1).state_dict()
    state["linear3.weight"] = state.pop("linear1.weight")
    state["norm1.weight"] = te.ones(17)
    save_safetensors(state, tmp_path / "f")
    fresh = block(2)
    before = values(fresh)
    with pytest.raises(FormatError) as caught:
        load_into_module(fresh, tmp_path / "f")
    for words in [str(tmp_path / "f"), "linear1.weight", "linear3.weight", "norm1.weight", "(17,)"]:
        assert words in str(caught.value)
    assert_same(fresh, before)


def test_an_unknown_bias_function_is_refused(tmp_path):
    state = {**block(1).state_dict(), "self_attn.nl_oob.config": te.Tensor(7)}
    save_safetensors(state, tmp_path / "f")
    fresh = block(2)
    before = values(fresh)
    with pytest.raises(FormatError, match=r"nl_oob\.config.* 7"):
        load_into_module(fresh, tmp_path / "f")
    assert_same(fresh, before)


def test_a_truncated_file_changes_nothing(tmp_path):
    save_safetensors(block(1), tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    fresh = block(2)
    before = values(fresh)
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(FormatError):
            load_into_module(fresh, content[:length])
    assert_same(fresh, before)


class Tied(Module):
    """A square embedding, used again as the weight of the last layer."""

    def __init__(self) -> None:
        self.embedding = Embedding(6, 6)
        self.middle = Linear(6, 6)
        self.head = Linear(6, 6, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights(tmp_path):
    saved, fresh = Tied(), Tied()
    save_safetensors(saved, tmp_path / "f")
    loaded = load_safetensors(tmp_path / "f")
    assert loaded["head.weight"] is loaded["embedding.weight"]
    load_into_module(fresh, tmp_path / "f")
    assert_same(fresh, values(saved))
    assert fresh.head.weight is fresh.embedding.weight


def test_square_weights_beside_a_square_embedding(tmp_path):
    class Model(Module):
        def __init__(self) -> None:
            self.embedding = Embedding(6, 6)
            self.middle = Linear(6, 6)
            self.head = Linear(6, 6, bias=False)

    saved, fresh = Model(), Model()
    state = {
        name: tensor.T if tensor.ndim == 2 and "embedding" not in name else tensor
        for name, tensor in saved.state_dict().items()
    }
    save_safetensors(state, tmp_path / "f")
    load_into_module(fresh, tmp_path / "f", transpose=True)
    assert_same(fresh, values(saved))


# -- the example ----------------------------------------------------------------------------


def run_example(*arguments: object, script: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment
    )


@pytest.mark.parametrize("options", [[], ["--transpose"], ["--prefix", "encoder.layers.0"]])
def test_the_example_makes_loads_and_runs_a_block(tmp_path, options):
    path = tmp_path / "demo.safetensors"
    made = run_example(path, "--make-demo", *options)
    assert made.returncode == 0, made.stderr
    again = run_example(path, *options)
    assert again.returncode == 0, again.stderr
    for words in ["self_attn.nl_oob.slopes", "1×2×1×1", "32×16", "(1, 8, 16) -> (1, 8, 16)"]:
        assert words in again.stdout
    assert "gaussian" in again.stdout


def test_the_example_loads_the_same_block_turned_or_not(tmp_path):
    plain = run_example(tmp_path / "plain", "--make-demo").stdout
    turned = run_example(tmp_path / "turned", "--make-demo", "--transpose").stdout
    assert plain.splitlines()[1:] == turned.splitlines()[1:]  # the first names the file


@pytest.mark.parametrize("prefix", ["", "net"])
def test_the_example_loads_what_the_original_wrote(tmp_path, prefix):
    path = f"{prefix}." if prefix else ""
    save_safetensors(block(1), tmp_path / "ours")
    save_safetensors(as_the_original(block(1), path), tmp_path / "rust")
    ours = run_example(tmp_path / "ours")
    theirs = run_example(tmp_path / "rust", "--transpose", "--prefix", prefix)
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout.splitlines()[1:] == ours.stdout.splitlines()[1:]


@pytest.mark.parametrize("option", ["--d-model", "--d-ff", "--heads", "--length", "--seed"])
def test_numbers_that_the_example_can_not_use(tmp_path, option):
    result = run_example(tmp_path / "missing", option, "-1")
    assert result.returncode == 2
    assert f"{option} is -1: expected at least" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_errors_of_the_example_are_one_line(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_safetensors(TransformerBlock(16, 32, 2), path)
    cases = [
        ([tmp_path / "missing"], "missing"),
        ([EXAMPLE], "no safetensors file"),
        ([path], "give --heads"),
        ([path, "--heads", "3"], "num_heads is 3"),
        ([path, "--heads", "2", "--nl-oob", "gaussian"], "missing: self_attn.nl_oob.slopes"),
        ([path, "--heads", "2", "--prefix", "encoder"], "no encoder.linear1.weight"),
        ([path, "--heads", "2", "--transpose"], "is stored [out, in]"),
        ([path, "--make-demo"], "exists"),
    ]
    for arguments, words in cases:
        result = run_example(*arguments)
        assert result.returncode == 2, arguments
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert run_example(path, "--heads", "2").returncode == 0


def test_the_example_without_te_nn(tmp_path):
    program = (
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'te_nn':\n"
        "            raise ModuleNotFoundError('No module named te_nn', name='te_nn')\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip() == "load_model.py needs te-nn: python -m pip install te-nn"


def test_the_converter(tmp_path):
    script = EXAMPLE.with_name("convert_torch_to_safetensors.py")
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_safetensors(Linear(4, 3), source)
    done = run_example(source, target, "--transpose", "--dtype", "bfloat16", script=script)
    assert done.returncode == 2  # its bias shows that it is [out, in] already
    assert "is stored [out, in]" in done.stderr and done.stderr.count("\n") == 1
    done = run_example(source, target, "--dtype", "bfloat16", script=script)
    assert done.returncode == 0, done.stderr
    assert "weight (3, 4) bfloat16" in done.stdout
    assert load_safetensors(target)["bias"].dtype == te.bfloat16
    done = run_example(tmp_path / "missing.pt", target, script=script)
    assert done.returncode == 2 and "missing.pt" in done.stderr
