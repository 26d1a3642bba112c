"""Stopping a training between two steps, and going on with it later, to the same bits."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molecules import fail

import te_io
import te_tensor as te


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
class Progress:
    """A training's way so far, in one file: tensors by number, all else as JSON beside them.

    Attributes:
        path: the file.
        arguments: what the training must go on with as it began.
        parts: what has `state_dict` and `load_state_dict`, by name.
    """

    path: Path
    arguments: dict[str, Any]
    parts: dict[str, Any]

    def save(self, notes: dict[str, Any]) -> None:
        """Write the states of the parts, and notes to be given back by `load`."""
        tensors: dict[str, te.Tensor] = {}

        def pack(value: Any) -> Any:
            if isinstance(value, te.Tensor):
                name = str(len(tensors))
                tensors[name] = value
                return {"tensor": name}
            if isinstance(value, dict):
                return {key: pack(part) for key, part in value.items()}
            return [pack(part) for part in value] if isinstance(value, list) else value

        states = {name: pack(part.state_dict()) for name, part in self.parts.items()}
        rest = {"arguments": self.arguments, "states": states, "notes": notes}
        te_io.save_safetensors(tensors, self.path, metadata={"progress": json.dumps(rest)})

    def load(self) -> dict[str, Any] | None:
        """Put the parts where they were, and return the notes; None where there is no file."""
        if not self.path.exists():
            return None
        tensors = te_io.load_safetensors(self.path)
        rest = json.loads(te_io.load_metadata(self.path)["progress"])
        if rest["arguments"] != self.arguments:
            fail(f"{self.path} is of a training with other arguments: {rest['arguments']}")

        def unpack(value: Any) -> Any:
            if isinstance(value, dict):
                if set(value) == {"tensor"}:
                    return tensors[value["tensor"]]
                return {key: unpack(part) for key, part in value.items()}
            return [unpack(part) for part in value] if isinstance(value, list) else value

        for name, part in self.parts.items():
            part.load_state_dict(unpack(rest["states"][name]))
        notes: dict[str, Any] = rest["notes"]
        return notes
