"""Stopping a training between two steps, and going on with it later, to the same bits."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed: training then ends after the step that it is in.

    Stopping in the middle of a step would leave some parameters changed and others not.
    """

    pressed: bool = False

    def listen(self) -> None:
        """Catch the next Ctrl-C; the one after that ends the program at once."""
        signal.signal(signal.SIGINT, self._press)

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class History:
    """What a checkpoint holds besides model, optimizer and schedule.

    Attributes:
        arguments: what the training must go on with as it began.
        losses: the loss of each step so far.
        seconds: the time that they took.
    """

    arguments: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"arguments": self.arguments, "losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a ValueError says that the arguments are others."""
        if state["arguments"] != self.arguments:
            raise ValueError(f"the training began with other arguments: {state['arguments']}")
        self.losses, self.seconds = list(state["losses"]), state["seconds"]
