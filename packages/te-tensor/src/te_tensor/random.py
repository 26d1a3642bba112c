"""Random numbers: generators that count, so that their state is two integers."""

from __future__ import annotations

import operator
import secrets
import threading

import numpy as np

from . import modes
from .checks import check_whole
from .ops._kernels import random_stream


class Generator:
    """A source of random numbers.

    Every draw takes a key of its own, the seed and a running number, from which its numbers
    follow whatever thread makes them.

    Args:
        seed: a whole number, at least 0; None for one from the operating system.

    Raises:
        ValueError: seed is negative or no whole number.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._guard = threading.Lock()
        self.manual_seed(secrets.randbits(63) if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start anew from `seed`; returns the generator.

        Raises:
            ValueError: seed is negative or no whole number.
        """
        start = check_whole("seed", seed, 0)
        with self._guard:
            self._seed, self._draws = start, 0
        return self

    def next_key(self) -> tuple[int, ...]:
        """The key of the next draw."""
        with self._guard:
            self._draws += 1
            return self._seed, self._draws

    def stream(self) -> np.random.Generator:
        """A NumPy generator for one draw."""
        return random_stream(self.next_key())

    def get_state(self) -> tuple[int, int]:
        """The seed and the number of draws so far."""
        return self._seed, self._draws

    def set_state(self, state: tuple[int, int]) -> None:
        """Go on from a state that `get_state` gave.

        Raises:
            ValueError: it's no such state.
        """
        try:
            seed, draws = (operator.index(n) for n in state)
        except (TypeError, ValueError):
            raise ValueError(f"state is {state!r}: expected (seed, draws)") from None
        if seed < 0 or draws < 0:
            raise ValueError(f"state is {state!r}: expected numbers of at least 0")
        with self._guard:
            self._seed, self._draws = seed, draws


def check_generator(generator: object) -> Generator:
    """The generator.

    Raises:
        TypeError: it's something else, such as NumPy's.
    """
    if not isinstance(generator, Generator):
        kind = type(generator)
        raise TypeError(
            f"generator is a {kind.__module__}.{kind.__name__}: expected a te_tensor Generator"
        )
    return generator


_process_wide = Generator()


def default_generator() -> Generator:
    """What random operations draw from: the context's generator, or the process-wide one."""
    generator: Generator | None = modes.current().generator
    return _process_wide if generator is None else generator


def generator_or_default(generator: Generator | None) -> Generator:
    """The generator, or the one in force."""
    return default_generator() if generator is None else check_generator(generator)


class use_generator(modes.Setting):
    """Random operations draw from `generator` instead of the process-wide one.

    Args:
        generator: a te_tensor Generator; None for the process-wide one.

    Raises:
        TypeError: the generator is something else.
    """

    def __init__(self, generator: Generator | None) -> None:
        super().__init__()
        if generator is not None:
            check_generator(generator)
        self._values = {"generator": generator}

    def _fresh(self) -> use_generator:
        return type(self)(self._values["generator"])


def manual_seed(seed: int) -> Generator:
    """Start the generator in force anew from `seed`.

    Args:
        seed: a whole number, at least 0.

    Returns:
        The generator.

    Raises:
        ValueError: seed is negative or no whole number.

    Example:
        >>> import te_tensor as te
        >>> _ = te.manual_seed(1)
        >>> a = te.randn(3)
        >>> _ = te.manual_seed(1)
        >>> bool((a == te.randn(3)).numpy().all())
        True
    """
    return default_generator().manual_seed(seed)


def get_rng_state() -> tuple[int, int]:
    """The state of the generator in force: its seed and the number of draws so far."""
    return default_generator().get_state()


def set_rng_state(state: tuple[int, int]) -> None:
    """Set the generator in force to a state that `get_rng_state` gave."""
    default_generator().set_state(state)
