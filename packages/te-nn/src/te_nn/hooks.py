"""Handles of hooks, and where in a model an error came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import te_tensor as te
from te_tensor.checks import check_switch

from .structure import structure


class HookHandle(te.HookHandle):
    """What registering a hook gives: `remove` takes the hook out again.

    It is a context manager, too: the hook holds inside.

    Args:
        hooks: the hooks of a module, by number.
        hook: the new one.
        first: call it before the others, instead of after them.

    Raises:
        TypeError: hook can't be called.
        ValueError: first is neither True nor False.
    """

    __slots__ = ()

    def __init__(
        self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any], *, first: bool = False
    ) -> None:
        if not callable(hook):
            raise TypeError(f"hook is a {type(hook).__name__}: expected a callable")
        super().__init__(hooks, hook, first=check_switch("prepend", first))
        structure.note()

    def remove(self) -> None:
        """Take the hook out; once it is out, this does nothing."""
        super().remove()
        structure.note()


def note_place(error: BaseException, module: Any, paths: Iterable[tuple[str, Any]]) -> None:
    """Note on an error that leaves a module where in the model it arose.

    The innermost module marks the error; each module further out knows a longer path to the
    marked one, and rewrites the note.

    Args:
        error: the error on its way out.
        module: the module that it leaves.
        paths: the modules below that module, itself included, with their paths.
    """
    source = getattr(error, "_raised_in", None)
    if source is None:
        source = module
        error._raised_in = module  # type: ignore[attr-defined]
    path = next((path for path, other in paths if other is source), None)
    if path is None:
        return  # the module that raised isn't part of this one
    kind = type(source).__name__
    text = f"in {path} ({kind}) of {type(module).__name__}" if path else f"in {kind}"
    notes = getattr(error, "__notes__", [])
    before = getattr(error, "_place_note", None)
    if before in notes:
        notes[notes.index(before)] = text
    else:
        error.add_note(text)
    error._place_note = text  # type: ignore[attr-defined]
