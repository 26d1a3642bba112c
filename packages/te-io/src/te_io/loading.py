"""Archives into modules."""

from __future__ import annotations

from collections.abc import Mapping

from te_tensor import Tensor, dtypes
from te_tensor.dtypes import Array

from .archive import Source, open_archive
from .presets import Preset
from .safetensors import load_safetensors
from .state_dict import (
    Loadable,
    Rename,
    State,
    load_state,
    rename_tensors,
    select_prefix,
    tensors_of,
    turn_weights,
)


def load_into_module(
    module: Loadable,
    source: Source | Mapping[str, Tensor | Array],
    *,
    transpose: bool = False,
    prefix: str = "",
    strict: bool = True,
    rename: Rename | Preset | None = None,
) -> None:
    """Put the tensors of an archive into a module, all of them or none.

    Parameters keep their identity, dtype and `requires_grad`: an optimizer that holds them goes on,
    and `nl_oob.slopes` stays trainable.

    Args:
        module: anything with `state_dict` and `load_state_dict`.
        source: a path, bytes, a file opened for reading bytes, or a dict of tensors.
        transpose: the archive stores weights of Linear layers as `[in, out]`, as the Rust original
            does: turn them. Turned are tensors with two axes whose name ends in "weight" and that
            fit the module only when turned. Where a weight is square, so that its shape can't
            tell, it is turned if it has a bias or its name isn't an embedding's (`turn_weights`).
        prefix: what the module's names stand under in the archive ("encoder.layers.0"); tensors
            elsewhere in the archive are left alone.
        strict: raise on missing and unexpected names; False loads the names that both have.
        rename: how the archive's names, after the prefix, become the module's: a function, a dict
            from old to new, a list of (regular expression, replacement), or one of `presets`.

    Raises:
        TypeError: something given is of a wrong kind.
        ValueError: `rename` holds what is no regular expression.
        FormatError: the archive is damaged or doesn't fit the module, which is unchanged. The
            module's own error, which lists all names and shapes that don't fit, is its cause.
        OSError: it can't be read.

    Example:
        >>> import te_tensor as te
        >>> class Scale:
        ...     def __init__(self):
        ...         self.factor = te.zeros(2)
        ...     def state_dict(self):
        ...         return {"factor": self.factor}
        ...     def load_state_dict(self, state, strict=True):
        ...         self.factor[...] = state["factor"]
        >>> scale = Scale()
        >>> archive = {"old.gain": te.ones(2)}
        >>> load_into_module(scale, archive, prefix="old", rename={"gain": "factor"})
        >>> scale.factor.tolist()
        [1.0, 1.0]
    """
    if isinstance(source, Mapping):
        name, state = None, tensors_of(source)
    else:
        with open_archive(source) as archive:
            name, state = archive.name, dict(archive)
    state = select_prefix(state, prefix, name)
    if isinstance(rename, Preset):
        state = rename.apply(state, in_out=transpose, file=name)
    else:
        state = rename_tensors(state, rename, name)
    if transpose:
        wanted = {key: tensor.shape for key, tensor in module.state_dict().items()}
        state = turn_weights(state, wanted, name)
    load_state(module, state, strict, name)


def py_load_safetensors(data: Source, transpose: bool = False) -> State:
    """`load_safetensors` under the name that the Rust original gives it.

    As there, distance-bias slopes (`nl_oob.slopes`) come marked as trainable.

    Args:
        data: the bytes of a file, or its path.
        transpose: turn Linear weights that are stored `[in, out]`.

    Raises:
        FormatError: as `load_safetensors`.
        OSError: as `load_safetensors`.
    """
    state = load_safetensors(data, transpose=transpose)
    for name, tensor in state.items():
        if f".{name}".endswith(".nl_oob.slopes") and tensor.dtype in dtypes.FLOATS:
            tensor.requires_grad = True
    return state


def py_load_safetensors_into_module(
    data: Source, transpose: bool, module: Loadable, root: str = ""
) -> None:
    """`load_into_module` under the name and with the order of arguments of the Rust original.

    Args:
        data: the bytes of a file, or its path.
        transpose: turn Linear weights that are stored `[in, out]`.
        module: the module to load into.
        root: what the module's names stand under in the archive.

    Raises:
        TypeError: as `load_into_module`.
        FormatError: as `load_into_module`.
        OSError: as `load_into_module`.
    """
    load_into_module(module, data, transpose=transpose, prefix=root)
