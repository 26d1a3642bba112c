"""The recordings that modules run by: made once for what they depend on, and kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import te_tensor as te
from te_tensor.blas_library import library, uses_tiles
from te_tensor.recorder import Unrecorded
from te_tensor.recording import Recording

#: Recordings that are kept, each for other sizes.
_MOST = 256
#: Recordings, or why there is none.
_kept: OrderedDict[Any, Recording | Unrecorded] = OrderedDict()
_guard = threading.Lock()


def _renew_guard() -> None:
    global _guard
    _guard = threading.Lock()  # another thread may have held it at the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def recording_of(what: Hashable, record: Callable[[bool], Recording]) -> Recording | None:
    """The recording of something; None where there can't be one.

    Args:
        what: all that it depends on, beside the engine's settings.
        record: makes it, with tiles or without; raises Unrecorded where that can't be.
    """
    key = _key(what)
    with _guard:
        found = _kept.pop(key, None)
        if found is None or (isinstance(found, Recording) and not found.is_current()):
            try:
                found = record(True)
                if found.may_fail:
                    found.fallback = record(False)
            except Unrecorded as reason:
                found = Unrecorded(*reason.args)  # which keeps no frames alive
        _kept[key] = found
        if len(_kept) > _MOST:
            _kept.popitem(last=False)
    return found if isinstance(found, Recording) else None


def _key(what: Hashable) -> Hashable:
    threads = te.get_num_threads(), te.parallel.in_parallel()
    return what, threads, uses_tiles(), library()


def is_known(what: Hashable) -> bool:
    """Whether `recording_of` has an answer that is kept."""
    return _key(what) in _kept


def forget() -> None:
    """Let all recordings go."""
    _kept.clear()
