"""A number that rises whenever a module gets other parts: what was found out holds until then."""

from __future__ import annotations


class _Structure:
    """The changes made to modules so far, in the whole process."""

    def __init__(self) -> None:
        self.changes = 0

    def note(self) -> None:
        """Note that attributes, hooks or a parameter's memory aren't what they were."""
        self.changes += 1


structure = _Structure()
