"""Presets: how the names of other programs become those of te_nn, for `load_into_module`.

A preset knows more than a table of names: tensors that the other program stores as one are cut,
and those that te_nn has no use for are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from te_tensor import Tensor, from_numpy

from .errors import FormatError
from .state_dict import State, rename_tensors


@dataclass(frozen=True, slots=True)
class Preset:
    r"""What to do with the tensors of another program, in this order.

    Args:
        drop: regular expressions of names to leave out.
        split: pairs (regular expression, templates): a tensor whose name matches as a whole is
            cut along its outputs into as many equal parts, named by the templates as `re.sub`
            would.
        rename: pairs (regular expression, replacement), as `load_into_module` takes them.

    Example:
        >>> import numpy as np
        >>> preset = Preset(split=((r"qk\.(\w+)", (r"q.\1", r"k.\1")),))
        >>> state = {"qk.bias": from_numpy(np.array([1.0, 2.0]))}
        >>> {name: part.tolist() for name, part in preset.apply(state).items()}
        {'q.bias': [1.0], 'k.bias': [2.0]}
    """

    drop: tuple[str, ...] = ()
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    def apply(self, state: State, *, in_out: bool = False, file: str | None = None) -> State:
        """The same tensors under te_nn's names.

        Args:
            state: the tensors by name; parts of those that are cut lie on their memory.
            in_out: matrices are stored `[in, out]`, so that outputs are their last axis.
            file: the file that errors should name.

        Raises:
            FormatError: a tensor can't be cut evenly, or two names become one.
        """
        result: State = {}
        for name, tensor in state.items():
            if any(re.search(pattern, name) for pattern in self.drop):
                continue
            for part, value in self._parts(name, tensor, in_out, file):
                if part in result:
                    raise FormatError("two tensors get this name", file=file, tensor=part)
                result[part] = value
        return rename_tensors(result, self.rename, file)

    def _parts(
        self, name: str, tensor: Tensor, in_out: bool, file: str | None
    ) -> list[tuple[str, Tensor]]:
        for pattern, templates in self.split:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            axis = 1 if in_out and tensor.ndim == 2 else 0
            if not tensor.ndim or tensor.shape[axis] % len(templates):
                raise FormatError(
                    f"has shape {tensor.shape}: expected axis {axis} to be {len(templates)} equal "
                    "parts",
                    file=file,
                    tensor=name,
                )
            length = tensor.shape[axis] // len(templates)
            return [
                (
                    match.expand(template),
                    from_numpy(
                        tensor.data[(slice(None),) * axis + (slice(i * length, (i + 1) * length),)]
                    ),
                )
                for i, template in enumerate(templates)
            ]
        return [(name, tensor)]


#: The Rust original: `mha.linear_q`, `mha.q_proj` or `self_attn.linear_q` for
#: `self_attn.q_proj`, and `gamma` and `beta` of its norms. It stores Linear weights `[in, out]`:
#: load its archives with `transpose=True`.
RUST = Preset(
    rename=(
        (r"(^|\.)mha\.", r"\1self_attn."),
        (r"(^|\.)linear_([qkvo])\.", r"\1\2_proj."),
        (r"(^|\.)((?:\w*_)?norm\w*)\.gamma$", r"\1\2.weight"),
        (r"(^|\.)((?:\w*_)?norm\w*)\.beta$", r"\1\2.bias"),
    ),
)

#: PyTorch's MultiheadAttention, TransformerEncoderLayer and TransformerEncoder: `in_proj_weight`
#: and `in_proj_bias` are cut into `q_proj`, `k_proj` and `v_proj`, and `out_proj` is `o_proj`.
TORCH = Preset(
    split=(
        (
            r"(|.*\.)in_proj_(weight|bias)",
            (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2"),
        ),
    ),
    rename=(
        (r"(^|\.)([qkv])_proj_weight$", r"\1\2_proj.weight"),
        (r"(^|\.)out_proj\.", r"\1o_proj."),
    ),
)


def hugging_face_bert(layers: str = "layers") -> Preset:
    """BERT as Hugging Face's transformers stores it, for a stack of `te_nn.TransformerBlock`.

    Block N, made with `norm="post"` and `layer_norm_eps=1e-12`, is filled from encoder layer N.
    Embeddings and the pooler keep the names that they have, without "bert." before.

    Args:
        layers: the path of the stack in the module; "" where the module is the stack itself.

    Returns:
        The preset.

    Example:
        >>> import numpy as np
        >>> name = "bert.encoder.layer.3.attention.self.query.bias"
        >>> state = {name: from_numpy(np.zeros(2))}
        >>> list(hugging_face_bert("blocks").apply(state))
        ['blocks.3.self_attn.q_proj.bias']
    """
    path = f"{layers}." if layers and not layers.endswith(".") else layers
    block = path.replace("\\", r"\\") + r"\1."
    parts = {
        r"attention\.self\.query": "self_attn.q_proj",
        r"attention\.self\.key": "self_attn.k_proj",
        r"attention\.self\.value": "self_attn.v_proj",
        r"attention\.output\.dense": "self_attn.o_proj",
        r"attention\.output\.LayerNorm": "norm1",
        r"intermediate\.dense": "linear1",
        r"output\.dense": "linear2",
        r"output\.LayerNorm": "norm2",
    }
    return Preset(
        drop=(r"(^|\.)embeddings\.(position_ids|token_type_ids)$",),
        rename=(
            (r"^bert\.", ""),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
            *(
                (rf"^encoder\.layer\.(\d+)\.{theirs}\.", f"{block}{ours}.")
                for theirs, ours in parts.items()
            ),
        ),
    )
