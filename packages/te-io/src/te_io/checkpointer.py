"""Checkpoints of a training: a folder a step, complete or not there.

    directory/step-00000120/checkpoint.json     the step, the random state, all that is no tensor,
                                                size and checksum of the other files
    directory/step-00000120/model.safetensors   the tensors of the object `model`

A folder gets its name when everything in it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import te_tensor as te
from te_tensor import Tensor

from .atomic import making, removing, replacing
from .errors import FormatError
from .header import json_object
from .safetensors import load_safetensors, save_safetensors
from .tree import decode, encode

_FORMAT = "te_io.checkpoint"
_VERSION = 1
_MANIFEST = "checkpoint.json"
_CHUNK = 1 << 20
#: "step-00000120", or "step-00000120-2" where that name was taken.
_FOLDER = re.compile(r"step-(\d{8,})(?:-(\d+))?")


class CheckpointWarning(UserWarning):
    """A checkpoint that is damaged was skipped."""


class Stateful(Protocol):
    """Anything with a state: modules, optimizers, schedules."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers, texts, None, and lists and dicts of these."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Take a state over, or raise and change nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a complete checkpoint's manifest says."""

    folder: Path
    step: int
    rng: tuple[int, int]
    objects: dict[str, Any]
    files: dict[str, Any]


class Checkpointer:
    """Keeps the latest checkpoints of a training in a directory, and resumes from them.

    A checkpoint holds the state of the objects, the step, and the state of te_tensor's random
    numbers: a training that goes on from it comes to the same parameters, to the bit. Saving is
    atomic. A damaged checkpoint is skipped with a warning, and never removed.

    Args:
        directory: where to keep the checkpoints; made when the first is saved.
        keep: how many complete checkpoints to keep; None keeps all. Older ones are removed
            after a save.
        **objects: anything with `state_dict` and `load_state_dict`, under names of your choice.
            They are restored in this order.

    Raises:
        TypeError: an object lacks the two methods.
        ValueError: keep is no number above 0, or a name can't be a file's.

    Example:
        >>> import tempfile
        >>> class Counter:
        ...     def __init__(self):
        ...         self.total = te.zeros(2)
        ...     def state_dict(self):
        ...         return {"total": self.total, "names": ["a", None]}
        ...     def load_state_dict(self, state):
        ...         self.total = state["total"]
        >>> directory = tempfile.mkdtemp()
        >>> Checkpointer(directory, counter=Counter()).save(20).name
        'step-00000020'
        >>> checkpointer = Checkpointer(directory, counter=Counter())
        >>> checkpointer.latest(), checkpointer.restore()
        (20, 20)
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep: int | None = 3, **objects: Stateful
    ) -> None:
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise ValueError(f"keep is {keep!r}: expected a whole number above 0, or None for all")
        for name, thing in objects.items():
            if not name.isidentifier():
                raise ValueError(f"an object's name is {name!r}: expected a Python name")
            for method in ("state_dict", "load_state_dict"):
                if not callable(getattr(thing, method, None)):
                    raise TypeError(f"{name} is {type(thing).__name__}, which has no {method}")
        self.directory = Path(directory)
        self.keep = keep
        self.objects = objects
        #: What was found of each folder, and the sizes and times of its files then.
        self._known: dict[Path, tuple[Any, Checkpoint | FormatError]] = {}

    # -- saving ---------------------------------------------------------------------------

    def save(self, step: int) -> Path:
        """Save all objects, the random state and the step; then remove what is too old.

        Saving a step again supersedes the checkpoint that was there.

        Args:
            step: the number of steps taken, which `restore` gives back.

        Returns:
            The checkpoint's folder.

        Raises:
            ValueError: step is no whole number of at least 0.
            FormatError: a state holds what can't be stored.
            OSError: something can't be written. What was there before is intact.
        """
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise ValueError(f"step is {step!r}: expected a whole number of at least 0")
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = self._free_folder(int(step))
        states = {
            n: encode(thing.state_dict(), n, str(folder)) for n, thing in self.objects.items()
        }
        with making(folder) as temporary:
            files = {}
            for name, (_, tensors) in states.items():
                if tensors:
                    path = temporary / f"{name}.safetensors"
                    save_safetensors(tensors, path)
                    files[path.name] = _fingerprint(path)
            manifest = {
                "format": _FORMAT,
                "version": _VERSION,
                "step": int(step),
                "rng": list(te.get_rng_state()),
                "objects": {name: tree for name, (tree, _) in states.items()},
                "files": files,
            }
            with replacing(temporary / _MANIFEST) as file:
                file.write(_sealed(manifest))
        self._prune(folder)
        return folder

    def _free_folder(self, step: int) -> Path:
        taken = [attempt for _, s, attempt in self._folders() if s == step]
        name = f"step-{step:08}" + (f"-{max(taken) + 1}" if taken else "")
        return self.directory / name

    def _prune(self, saved: Path) -> None:
        """Remove the oldest complete checkpoints, save the one that was just saved."""
        complete: dict[int, Path] = {}
        superseded = []
        for folder, step, _ in self._folders():
            if isinstance(self._look(folder), Checkpoint):
                if step in complete:
                    superseded.append(complete[step])
                complete[step] = folder
        older = [folder for _, folder in sorted(complete.items()) if folder != saved]
        excess = [] if self.keep is None else older[: max(0, len(older) + 1 - self.keep)]
        for folder in superseded + excess:
            removing(folder)
            self._known.pop(folder, None)

    # -- finding --------------------------------------------------------------------------

    def latest(self) -> int | None:
        """The greatest step of which there is a complete checkpoint; None if there is none.

        Warns:
            CheckpointWarning: a later one is damaged.
        """
        found = next(self._complete(), None)
        return None if found is None else found.step

    def steps(self) -> list[int]:
        """The steps of which there are complete checkpoints, in order.

        Warns:
            CheckpointWarning: one is damaged.
        """
        return sorted({checkpoint.step for checkpoint in self._complete()})

    def _folders(self) -> list[tuple[Path, int, int]]:
        """All folders that have the name of a checkpoint, with step and attempt, oldest first."""
        found = []
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                match = _FOLDER.fullmatch(path.name)
                if match and path.is_dir():
                    found.append((path, int(match[1]), int(match[2] or 1)))
        return sorted(found, key=lambda entry: entry[1:])

    def _complete(self) -> Iterator[Checkpoint]:
        """The complete checkpoints, newest first; warns of others that come before."""
        for folder, _, _ in reversed(self._folders()):
            found = self._look(folder)
            if isinstance(found, Checkpoint):
                yield found
            else:
                warnings.warn(f"skipped: {found}", CheckpointWarning, stacklevel=3)

    def _look(self, folder: Path) -> Checkpoint | FormatError:
        """The checkpoint in a folder, or what is wrong with it; looked at anew if it changed."""
        try:
            state = sorted(
                (f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir()
            )
            if folder in self._known and self._known[folder][0] == state:
                return self._known[folder][1]
            found: Checkpoint | FormatError = read_checkpoint(folder)
        except FormatError as error:
            found = error
        except OSError as error:
            return FormatError(f"can't be read: {error}", file=str(folder))
        self._known[folder] = (state, found)
        return found

    # -- restoring ------------------------------------------------------------------------

    def restore(self, step: int | None = None) -> int | None:
        """Put the objects and the random state back to a checkpoint, all of them or none.

        Args:
            step: the step to go back to; by default that of the newest complete checkpoint.

        Returns:
            The step; None if there is no complete checkpoint and none was asked for, and nothing
            was changed.

        Raises:
            FormatError: there is no complete checkpoint of that step, it lacks one of the
                objects, or an object refused its state; nothing was changed.
            OSError: it can't be read.

        Warns:
            CheckpointWarning: a checkpoint is damaged, and an earlier one was taken.
        """
        if step is None:
            found = next(self._complete(), None)
            if found is None:
                return None
        else:
            found = self._of_step(step)
        states = {name: self._state(found, name) for name in self.objects}
        self._load(states, str(found.folder))
        te.set_rng_state(found.rng)
        return found.step

    def _of_step(self, step: int) -> Checkpoint:
        looks = [self._look(folder) for folder, s, _ in reversed(self._folders()) if s == step]
        for found in looks:
            if isinstance(found, Checkpoint):
                return found
        for found in looks:
            if isinstance(found, FormatError):
                raise found
        raise FormatError(f"has no checkpoint of step {step!r}", file=str(self.directory))

    def _state(self, checkpoint: Checkpoint, name: str) -> Any:
        path = checkpoint.folder / f"{name}.safetensors"
        if name not in checkpoint.objects:
            held = ", ".join(checkpoint.objects) or "nothing"
            raise FormatError(f"holds {held}: expected {name}", file=str(checkpoint.folder))
        tensors = load_safetensors(path) if path.name in checkpoint.files else {}
        try:
            return decode(checkpoint.objects[name], tensors)
        except FormatError as error:
            raise FormatError(f"the state of {name} {error.reason}", file=str(path)) from None

    def _load(self, states: Mapping[str, Any], file: str) -> None:
        """Give the objects their states; if one refuses, those before get their former ones."""
        former: dict[str, Any] = {}
        for number, (name, state) in enumerate(states.items(), start=1):
            try:
                if number < len(states):
                    former[name] = _copy(self.objects[name].state_dict(), name)
                self.objects[name].load_state_dict(state)
            except Exception as error:
                former.pop(name, None)  # it changed nothing itself
                for other, earlier in former.items():
                    self.objects[other].load_state_dict(earlier)
                # str(KeyError) would put quotes around the message
                reason = str(error.args[0]) if error.args else type(error).__name__
                raise FormatError(f"{name} refused its state: {reason}", file=file) from error


# -- the manifest ---------------------------------------------------------------------------


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """What a checkpoint's manifest says, with all files held against their checksums.

    Args:
        folder: the folder of one step.

    Raises:
        FormatError: it is damaged or incomplete.
        OSError: it can't be read.
    """
    path = Path(folder, _MANIFEST)
    if not path.is_file():
        raise FormatError(f"is no complete checkpoint: it has no {_MANIFEST}", file=str(folder))
    manifest = _unsealed(path)
    checkpoint = _parsed(manifest, Path(folder))
    for name, fingerprint in checkpoint.files.items():
        file = path.with_name(name)
        if not file.is_file():
            raise FormatError("is missing", file=str(file))
        found = _fingerprint(file)
        if found != fingerprint:
            raise FormatError(f"is damaged: {found}, expected {fingerprint}", file=str(file))
    return checkpoint


def _parsed(manifest: dict[str, Any], folder: Path) -> Checkpoint:
    try:
        if manifest["format"] != _FORMAT or manifest["version"] != _VERSION:
            given = manifest["format"], manifest["version"]
            raise FormatError(f"is {given}: expected {_FORMAT, _VERSION}", file=str(folder))
        seed, draws = manifest["rng"]
        objects, files = dict(manifest["objects"]), dict(manifest["files"])
        names = {f"{name}.safetensors" for name in objects}
        numbers = (manifest["step"], seed, draws)
        if any(type(n) is not int or n < 0 for n in numbers) or not set(files) <= names:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError("lacks parts of a checkpoint", file=str(folder / _MANIFEST)) from None
    return Checkpoint(folder, manifest["step"], (seed, draws), objects, files)


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON, with a checksum of itself."""
    sealed = {**manifest, "crc32": _crc(manifest)}
    return json.dumps(sealed, indent=1, allow_nan=False).encode()


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        manifest = json_object(path.read_bytes(), str(path))
        expected = manifest.pop("crc32", None)
        found = _crc(manifest)
    except (RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"is damaged: {error}", file=str(path)) from None
    if found != expected:
        raise FormatError(f"is damaged: checksum {found}, expected {expected}", file=str(path))
    return manifest


def _crc(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def _fingerprint(path: Path) -> dict[str, Any]:
    """The size and the checksum of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": f"{checksum:08x}"}


def _copy(state: Any, name: str) -> Any:
    """A state whose tensors have memory of their own."""
    tree, tensors = encode(state, name)
    return decode(tree, {path: Tensor(tensor.data) for path, tensor in tensors.items()})
