"""The distance bias of attention: functions of the distance, and what blocks make of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import memory, parallel
from ..autograd import sum_to_shape
from ..dtypes import Array
from ..machine import LANES
from ._blocks import Block, cut, grouped


@dataclass(frozen=True)
class DistanceFunction:
    """The function phi of a distance bias, with its derivative; both map arrays to arrays.

    They may run in several threads at once, on a block at a time, and infinite results mean
    "may not attend".
    """

    name: str
    phi: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    #: Phi is nowhere below 0, which spares a pass over the scores.
    at_least_zero: bool = False


def _reciprocal_of_successor(d: Array) -> Array:
    return np.asarray(1 / (1 + d))


_BUILT_IN = (
    DistanceFunction("logarithmic", np.log1p, _reciprocal_of_successor, True),
    DistanceFunction("gaussian", np.square, lambda d: d + d, True),
    DistanceFunction("alibi", np.asarray, np.ones_like, True),
)
#: Distances up to which the functions that are built in are finite.
_FAR = 1e18
#: The distance functions by name.
DISTANCE_FUNCTIONS = {function.name: function for function in _BUILT_IN}


def register_distance_function(
    name: str, phi: Callable[[Array], Array], derivative: Callable[[Array], Array]
) -> DistanceFunction:
    """Make a function of the distance known to `attention` under a name.

    Args:
        name: a name that isn't taken, in any case.
        phi: maps distances (an array, at least 0) to an array of their shape; +inf means "may
            not attend". It may run in several threads at once.
        derivative: its derivative, likewise.

    Returns:
        The function, which `attention` takes as well as its name.

    Raises:
        ValueError: the name is taken or empty, or what a callable returns has another shape.
        TypeError: phi or derivative can't be called.

    Example:
        >>> import numpy as np
        >>> import te_tensor as te
        >>> saturating = te.register_distance_function(
        ...     "saturating", lambda d: d / (1 + d), lambda d: 1 / (1 + d) ** 2
        ... )
        >>> q = te.randn(1, 2, 5, 4)
        >>> options = {"distance": np.ones((5, 5)), "slopes": np.ones(2)}
        >>> te.attention(q, q, q, **options, bias_function="saturating").shape
        (1, 2, 5, 4)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"distance function name is {name!r}: expected text")
    if _of_name(name) is not None:
        raise ValueError(f"a distance function named {name!r} is registered already")
    tried = np.array([[0.0, 0.5, 1.0]], np.float32)
    for role, function in (("phi", phi), ("derivative", derivative)):
        if not callable(function):
            raise TypeError(f"{role} is a {type(function).__name__}: expected a callable")
        shape = np.shape(function(tried.copy()))
        if shape != tried.shape:
            raise ValueError(f"{role} of shape {tried.shape} has shape {shape}: expected the same")
    made = DistanceFunction(name, phi, derivative)
    DISTANCE_FUNCTIONS[name] = made
    return made


def distance_function(given: object) -> DistanceFunction:
    """The distance function of a name in any case, or of what has one, as members of enums do.

    One that is given stays.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> distance_function("Gaussian").phi(3.0)
        np.float64(9.0)
    """
    if isinstance(given, DistanceFunction):
        return given
    name = getattr(given, "name", given)
    found = _of_name(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(DISTANCE_FUNCTIONS)
        raise ValueError(f"bias_function is {given!r}: expected one of {known}")
    return found


def _of_name(name: str) -> DistanceFunction | None:
    found = DISTANCE_FUNCTIONS.get(name)  # as it is mostly written
    if found is None:
        wanted = name.lower()
        found = next((f for n, f in DISTANCE_FUNCTIONS.items() if n.lower() == wanted), None)
    return found


class Prepared:
    """Distances that have been checked, and phi of them, made once for each function.

    Args:
        distance: shape (S, T), (B, S, T) or (B, H, S, T). Phi of the last is as large as the
            scores, and is not held.

    Raises:
        ValueError: negative or NaN distances.
    """

    def __init__(self, distance: Array) -> None:
        least, self._largest = _extremes(distance)
        if not least >= 0:
            raise ValueError("distance has negative or NaN entries: expected 0 … +inf")
        self.distance = distance
        self._guard = threading.Lock()
        self._held: dict[DistanceFunction, tuple[Array, Array | None]] = {}
        self._whole: dict[DistanceFunction, Array] = {}

    @property
    def holds(self) -> bool:
        """Whether phi is held, and not made block by block."""
        return self.distance.ndim < 4

    def phi(self, function: DistanceFunction) -> tuple[Array, Array | None]:
        """Phi on (B or 1, 1, 1, S, T), 0 where out of reach, and where that is."""
        with self._guard:
            if function not in self._held:
                distance = self.distance
                held = distance[None, None, None] if distance.ndim == 2 else distance[:, None, None]
                phi = memory.empty(held.shape, held.dtype)
                parallel.elementwise(partial(_write_phi, function), phi, held)
                near = function in _BUILT_IN and self._largest < _FAR
                self._held[function] = (phi, None) if near else _reachable(held, phi, function)
            return self._held[function]

    def whole_vectors(self, function: DistanceFunction) -> Array:
        """The same with `whole_vectors`, made once too."""
        phi, _ = self.phi(function)
        with self._guard:
            if function not in self._whole:
                self._whole[function] = whole_vectors(phi)
            return self._whole[function]


def _write_phi(function: DistanceFunction, out: Array, distance: Array) -> None:
    if isinstance(function.phi, np.ufunc):
        function.phi(distance, out=out)
    else:
        np.copyto(out, function.phi(distance), casting="same_kind")


def _extremes(numbers: Array) -> tuple[float, float]:
    """The least number and the largest one, NaN if any is; 0 where there is none."""
    if numbers.size == 0:
        return 0.0, 0.0
    if numbers.size < parallel.PARALLEL_FROM or not numbers.flags.c_contiguous:
        return float(numbers.min()), float(numbers.max())
    flat = numbers.reshape(-1)
    blocks = parallel.fixed_blocks(flat.size)
    found = np.empty((2, len(blocks)), numbers.dtype)

    def run(index: int) -> None:
        block = flat[blocks[index]]  # what is in the cache for the second pass
        found[:, index] = block.min(), block.max()

    parallel.parallel_for(run, len(blocks))
    return float(found[0].min()), float(found[1].max())


def whole_vectors(rows: Array, fill: float = 0.0) -> Array:
    """Rows that end with a whole vector of a kernel, `fill` behind their own elements.

    What a kernel writes in part of a vector, it has to wait for when it reads it soon after.
    """
    columns = rows.shape[-1]
    if columns % LANES == 0 and rows.strides[-1] == rows.itemsize:
        return rows
    whole = memory.empty((*rows.shape[:-1], columns + -columns % LANES), rows.dtype)
    whole[..., :columns] = rows
    whole[..., columns:] = fill
    return whole


def _reachable(
    distance: Array, phi: Array, function: DistanceFunction
) -> tuple[Array, Array | None]:
    """Phi with 0 where it or the distance is infinite, and where that is (None: nowhere)."""
    if function in _BUILT_IN and distance.max(initial=0) < _FAR:
        return phi, None
    hidden = np.isinf(phi) | np.isinf(distance)
    if function not in _BUILT_IN and np.isnan(phi).any(where=~hidden):
        raise ValueError(f"phi of the distance function {function.name!r} has NaN entries")
    if not hidden.any():
        return phi, None
    return np.where(hidden, phi.dtype.type(0), phi), hidden


@dataclass(frozen=True)
class Part:
    """What heads of a block that share a function have for a bias."""

    #: The heads' place in the block: batch, key heads, query heads to a key head.
    place: tuple[slice, slice, slice]
    function: DistanceFunction
    #: D; the rates are still to be multiplied with it.
    distance: Array
    #: phi(rates·D), 0 where out of reach.
    phi: Array
    hidden: Array | None
    #: Shape (k, g, 1, 1) for these heads.
    slopes: Array
    rates: Array | None

    def derivative(self) -> Array:
        """phi'(rates·D), finite out of reach."""
        distance = self.distance
        if self.hidden is not None:
            distance = np.where(self.hidden, distance.dtype.type(0), distance)
        if self.rates is not None:
            distance = distance * self.rates
        return np.asarray(self.function.derivative(distance))


class DistanceBias:
    """-slopes·phi(rates·D) of one problem on five axes (B, K, G, S, T).

    Args:
        prepared: the distances.
        slopes: one a head, H = K·G in all.
        rates: likewise, or None for ones.
        functions: one for all heads, or one for each.
        key_heads: K.
    """

    def __init__(
        self,
        prepared: Prepared,
        slopes: Array,
        rates: Array | None,
        functions: Sequence[DistanceFunction],
        key_heads: int,
    ) -> None:
        self._prepared = prepared
        self.slopes = slopes.reshape(key_heads, -1, 1, 1)
        self.rates = None if rates is None else rates.reshape(key_heads, -1, 1, 1)
        self.functions = functions
        self.per_head = any(f != functions[0] for f in functions[1:])
        #: Whether the bias raises no score.
        self.lowers = all(f.at_least_zero for f in functions) and bool((slopes >= 0).all())
        self.held: dict[DistanceFunction, tuple[Array, Array | None]] = {}
        if rates is None and prepared.holds:
            self.held = {function: prepared.phi(function) for function in functions}
        distance = prepared.distance
        if distance.ndim == 4:
            self.distance = grouped(distance, key_heads)
        else:
            self.distance = (
                distance[None, None, None] if distance.ndim == 2 else distance[:, None, None]
            )

    @property
    def phi_is_shared(self) -> bool:
        """Whether all heads have the phi that is held."""
        return bool(self.held) and not self.per_head

    def whole_vectors(self, parts: Sequence[Part], size: tuple[int, ...]) -> Array:
        """Phi for all heads of the whole problem, its rows whole vectors."""
        if self.phi_is_shared:
            return self._prepared.whole_vectors(self.functions[0])
        if len(parts) == 1:
            return whole_vectors(parts[0].phi)
        phi = np.empty(size, self.slopes.dtype)
        for part in parts:
            phi[part.place] = part.phi
        return whole_vectors(phi)

    def parts(self, block: Block) -> list[Part]:
        """The block's heads, together where they share a function."""
        distance = block.of(self.distance)
        slopes = self.slopes[block.heads, block.group]
        rates = None if self.rates is None else self.rates[block.heads, block.group]
        return [
            self._part(block, place, function, distance, slopes, rates)
            for place, function in self._places(block)
        ]

    def _places(
        self, block: Block
    ) -> Iterator[tuple[tuple[slice, slice, slice], DistanceFunction]]:
        every = slice(None)
        if not self.per_head:
            yield (every, every, every), self.functions[0]
            return
        group = self.slopes.shape[1]
        for k in range(block.heads.stop - block.heads.start):
            for g in range(block.group.stop - block.group.start):
                head = (block.heads.start + k) * group + block.group.start + g
                yield (every, slice(k, k + 1), slice(g, g + 1)), self.functions[head]

    def _part(
        self,
        block: Block,
        place: tuple[slice, slice, slice],
        function: DistanceFunction,
        distance: Array,
        slopes: Array,
        rates: Array | None,
    ) -> Part:
        distance, slopes = cut(distance, place), slopes[place[1:]]
        hidden: Array | None
        if rates is not None:
            rates = rates[place[1:]]
            phi, hidden = _reachable(distance, function.phi(distance * rates), function)
        elif self.held:
            phi, hidden = self.held[function]
            phi = block.of(phi)
            hidden = None if hidden is None else block.of(hidden)
        else:
            phi, hidden = _reachable(distance, np.asarray(function.phi(distance)), function)
        return Part(place, function, distance, phi, hidden, slopes, rates)


class DistanceGrads:
    """Gradients of slopes, rates and distances, as the blocks add to them.

    Args:
        bias: the bias.
        needs: whether each of "slopes", "rates" and "distance" is wanted.
        size: (B, K, G).
        chunks: how many threads may share the rows of a head.
        dtype: that of the gradients.
    """

    def __init__(
        self, bias: DistanceBias, needs: dict[str, bool], size: tuple[int, ...], chunks: int
    ) -> None:
        self.bias = bias
        self.needs = needs
        self.slopes = np.zeros((chunks, *size))
        self.rates = np.zeros((chunks, *size)) if needs.get("rates") else None
        shape = bias.distance.shape
        self.distance = np.zeros(shape, bias.distance.dtype) if needs.get("distance") else None

    def add(
        self,
        block: Block,
        chunk: int,
        parts: Sequence[Part],
        grad: Array,
        sums: Sequence[Array] | None = None,
    ) -> None:
        """One block's part.

        Args:
            block: the block.
            chunk: which of those that share the rows of a head.
            parts: its heads.
            grad: the gradient of its scores, which is overwritten.
            sums: for each part those of grad·phi in each row, where they are known.
        """
        here = (chunk, block.batch, block.heads, block.group)
        for number, part in enumerate(parts):
            own = grad[part.place]
            if self.needs.get("slopes"):
                found = _sums(own, part.phi) if sums is None else _total(sums[number][..., 0])
                self.slopes[here][part.place] -= found
            if self.distance is None and self.rates is None:
                continue
            np.multiply(own, -part.slopes, out=own)
            if part.rates is None:
                # the derivative is that of all heads: multiplied once, after their sum
                target = cut(block.of(self._distance()), part.place)
                target += sum_to_shape(own, target.shape) * part.derivative()
                continue
            np.multiply(own, part.derivative(), out=own)
            if self.rates is not None:
                finite = part.distance
                if part.hidden is not None:
                    finite = np.where(part.hidden, finite.dtype.type(0), finite)
                self.rates[here][part.place] += _sums(own, finite)
            if self.distance is not None:
                target = cut(block.of(self.distance), part.place)
                target += sum_to_shape(own * part.rates, target.shape)

    def _distance(self) -> Array:
        assert self.distance is not None
        return self.distance

    def finish(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
        """All gradients, in the inputs' shapes."""
        dtype = self.bias.slopes.dtype
        results = {"slopes": self.slopes.sum(axis=(0, 1)).astype(dtype)}
        if self.rates is not None:
            results["rates"] = self.rates.sum(axis=(0, 1)).astype(dtype)
        if self.distance is not None:
            results["distance"] = self.distance
        return {name: array.reshape(shapes[name]) for name, array in results.items()}


def _sums(grad: Array, factor: Array) -> Array:
    """Σ grad·factor over rows and columns, rows in float64: shape (B, K, G)."""
    return _total(np.einsum("...t,...t->...", grad, np.broadcast_to(factor, grad.shape)))


def _total(by_row: Array) -> Array:
    """Sums over rows in float64."""
    return np.asarray(by_row.sum(axis=-1, dtype=np.float64))
