"""Waiting for other ranks: never for ever, and never at the cost of their time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from time import monotonic, sleep
from typing import Any, Protocol

#: Seconds of polling without a pause. MPI moves a large message on only while it is asked about
#: it, so that pauses would slow it down; giving way to others costs nothing where nobody waits.
_EAGER = 0.02
#: Seconds of a pause, once the wait is a long one.
_PAUSE = 2e-4

#: Lets another process have this processor: more ranks than processors would else spin in turn.
give_way: Callable[[], None] = getattr(os, "sched_yield", partial(sleep, 0))

#: The arrays of calls that aren't done. MPI, which doesn't hold them itself, writes to them even
#: when whoever made the call has given up and gone.
_under_way: dict[int, tuple[Any, ...]] = {}


class Pending(Protocol):
    """Something under way that other ranks take part in."""

    def test(self) -> bool:
        """Whether it is done; asking moves it on."""
        ...

    def wait(self) -> None:
        """Wait until it is done."""
        ...


def poll(ready: Callable[[], bool], timeout: float, message: str) -> None:
    """Ask until the answer is yes.

    Args:
        ready: what is asked.
        timeout: seconds after which to give up.
        message: what the error says then.

    Raises:
        TimeoutError: the answer was no for so long.
    """
    if ready():
        return
    begin = monotonic()
    while not ready():
        waited = monotonic() - begin
        if waited > timeout:
            raise TimeoutError(message)
        if waited < _EAGER:
            give_way()
        else:
            sleep(_PAUSE)


class Call:
    """A collective call under way.

    Args:
        request: MPI's request; None for a call that is done.
        name: what the call is, for errors.
        rank: who waits, for errors.
        timeout: seconds that a wait may take.
        arrays: what MPI reads and writes until the call is done.
    """

    def __init__(
        self, request: Any | None, name: str, rank: str, timeout: float, *arrays: Any
    ) -> None:
        self._request = request
        self._name = name
        self._rank = rank
        self._timeout = timeout
        if request is not None:
            _under_way[id(request)] = (request, *arrays)

    def test(self) -> bool:
        """Whether the call is done; asking moves it on."""
        if self._request is not None:
            try:
                if not self._request.Test():
                    return False
            except Exception as error:
                error.add_note(f"{self._rank} was in {self._name}")
                raise
            del _under_way[id(self._request)]
            self._request = None
        return True

    def wait(self) -> None:
        """Wait until the call is done.

        Raises:
            TimeoutError: not all ranks came to it in time.
        """
        poll(
            self.test,
            self._timeout,
            f"{self._rank} waited {self._timeout:g} s in {self._name}: not all ranks came to it. "
            "One has ended, hangs, or takes another number of steps",
        )
