"""Memory for the keys and values of what a model has read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_whole
from te_tensor.dtypes import FLOATS, as_dtype

from .checks import positive


class KVCache:
    """Keys and values of one attention, with room for a number of positions.

    An attention that is given a cache puts its keys and values behind those that are there, and
    attends to all of them: a prompt at once, then token by token. Gradients reach what the
    current call adds; what was there before is constant.

    Args:
        batch: B.
        max_len: the most positions that it can hold.
        kv_heads: heads of keys and values.
        head_dim: features of a head.
        dtype: that of keys and values.

    Attributes:
        length: how many positions it holds.

    Raises:
        ValueError: a size below 1.
        TypeError: dtype is no float.

    Example:
        >>> from te_nn import MultiHeadAttention
        >>> attend, cache = MultiHeadAttention(8, 2), KVCache(1, 10, 2, 4)
        >>> with te.no_grad():
        ...     first = attend(te.randn(1, 5, 8), causal=True, cache=cache)
        ...     second = attend(te.randn(1, 1, 8), causal=True, cache=cache)
        >>> second.shape, cache.length
        ((1, 1, 8), 6)
    """

    def __init__(
        self,
        batch: int,
        max_len: int,
        kv_heads: int,
        head_dim: int,
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        shape = (
            positive("batch", batch),
            positive("kv_heads", kv_heads),
            positive("max_len", max_len),
            positive("head_dim", head_dim),
        )
        kind = as_dtype(dtype)
        if kind not in FLOATS:
            raise TypeError(f"a cache of {kind}: expected a float dtype")
        self._keys = np.empty(shape, kind)
        self._values = np.empty(shape, kind)
        self._length = 0

    @property
    def max_len(self) -> int:
        """The most positions that it can hold."""
        return self._keys.shape[2]

    @property
    def length(self) -> int:
        """How many positions it holds; settable, and those that are added are what was there."""
        return self._length

    @length.setter
    def length(self, value: int) -> None:
        self._check_length(value, self.max_len)
        self._length = int(value)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, kv_heads, max_len, head_dim)."""
        return self._keys.shape

    @property
    def keys(self) -> npt.NDArray[Any]:
        """The keys that it holds, shape (B, kv_heads, length, head_dim), read-only."""
        return self._held(self._keys, self.length)

    @property
    def values(self) -> npt.NDArray[Any]:
        """The values that it holds, likewise."""
        return self._held(self._values, self.length)

    @property
    def memory(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The whole memory of keys and of values, shape (B, kv_heads, max_len, head_dim)."""
        return self._keys, self._values

    def room(self, more: int) -> int:
        """How many positions it would hold with some more.

        Raises:
            ValueError: there is no room for them.
        """
        stop = self.length + more
        if stop > self.max_len:
            raise ValueError(
                f"the cache has room for max_len = {self.max_len} positions: it holds "
                f"{self.length}, and {more} more don't fit"
            )
        return stop

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on.

        Raises:
            ValueError: it holds fewer.
        """
        self._check_length(length, self.length)
        self.length = length

    @staticmethod
    def _check_length(length: int, most: int) -> None:
        check_whole("length", length)
        if not 0 <= length <= most:
            raise ValueError(f"length is {length}: expected 0 … {most}")

    def joined(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that it holds with new ones behind them; `length` stays as it is.

        The new ones count once `length` has been moved on, so a call that fails changes nothing.

        Args:
            k: shape (B, kv_heads, S, head_dim), or (B, S, kv_heads·head_dim) as a projection
                leaves it.
            v: likewise.

        Returns:
            Both of shape (B, kv_heads, length + S, head_dim); in `no_grad` views of the cache.

        Raises:
            ValueError: they don't fit, or there is no room.
            TypeError: they have another dtype.
        """
        more = k.shape[-2]
        stop = self.room(more)
        self._check("keys", k, more)
        self._check("values", v, more)
        return self._joined(self._keys, k, stop), self._joined(self._values, v, stop)

    def _check(self, name: str, x: Tensor, length: int) -> None:
        batch, heads, _, width = self.shape
        if x.shape not in ((batch, length, heads * width), (batch, heads, length, width)):
            raise ValueError(
                f"a cache for (B, kv_heads, S, head_dim) = ({batch}, {heads}, S, {width}) got "
                f"{name} of shape {x.shape}"
            )
        if x.dtype != self._keys.dtype:
            raise TypeError(f"a cache of {self._keys.dtype} got {name} of {x.dtype}")

    def _joined(self, memory: npt.NDArray[Any], new: Tensor, stop: int) -> Tensor:
        batch, heads, _, width = memory.shape
        apart = (batch, -1, heads, width)
        array = new.data
        if array.ndim == 3:
            array = array.reshape(apart).transpose(0, 2, 1, 3)
        memory[:, :, self.length : stop] = array
        if not te.is_grad_enabled():
            return te.from_numpy(self._held(memory, stop))
        if new.ndim == 3:
            new = new.reshape(apart).transpose(1, 2)
        # A copy: what is saved for backward must outlast a truncated cache that is filled anew.
        before = Tensor(memory[:, :, : self.length])
        return te.concat([before, new], axis=2)

    @staticmethod
    def _held(memory: npt.NDArray[Any], stop: int) -> npt.NDArray[Any]:
        held = memory[:, :, :stop]
        held.flags.writeable = False
        return held

    def __repr__(self) -> str:
        batch, heads, length, width = self.shape
        return (
            f"KVCache({batch}, {length}, {heads}, {width}, dtype={self._keys.dtype}, "
            f"length={self.length})"
        )


def check_cache(cache: object) -> None:
    """Raise TypeError unless it is a cache."""
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache is a {type(cache).__name__}: expected a KVCache, or None")
