"""What te-io raises when a file, or what should go into one, is not as it must be."""

from __future__ import annotations


class FormatError(ValueError):
    """A file that can't be read, written or loaded into a module, and why.

    Trouble of the system (no such file, no permission, no space) stays an `OSError`.

    Args:
        reason: what was found and what was expected.
        file: the file's name, or what stands for it: "<bytes>".
        tensor: the name of the tensor in question.

    Example:
        >>> print(FormatError("has dtype F4: not supported", file="a.safetensors", tensor="w"))
        a.safetensors: tensor 'w': has dtype F4: not supported
    """

    def __init__(self, reason: str, *, file: str | None = None, tensor: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = file
        self.tensor = tensor

    def __str__(self) -> str:
        tensor = None if self.tensor is None else f"tensor {self.tensor!r}"
        return ": ".join(part for part in (self.file, tensor, self.reason) if part is not None)


class UnknownTensorError(FormatError, KeyError):
    """A name that an archive doesn't have.

    Args:
        reason: what the archive has instead.
        file: the file's name.
        tensor: the name that was asked for.

    Example:
        >>> isinstance(UnknownTensorError("is not there", tensor="w"), KeyError)
        True
    """
