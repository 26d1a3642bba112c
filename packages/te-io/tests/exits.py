"""Ends processes in the middle of saving, and holds what the next process finds.

    python exits.py KIND FOLDER

A child process saves, and exits without cleaning up before or after its first write, fsync,
rename or removal; the next child at its second; and so on until one comes through.
"""

import os
import sys
from pathlib import Path

import numpy as np

from te_io import Checkpointer, load_safetensors, save_safetensors

EARLIER = {"a": np.zeros(3), "b": np.zeros((2, 2), np.float32), "c": np.zeros(1)}
LATER = {"a": np.ones(3), "b": np.ones((2, 2), np.float32), "d": np.ones(1)}
SHARDS = {"max_shard_size": 24}


class Holder:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return {"tensors": self.state, "number": 0.1}

    def load_state_dict(self, state):
        self.state = state["tensors"]


def exit_at(place):
    """Count the calls that change the disk, and exit at the one in this place."""
    calls = 0

    def counted(call):
        def wrapper(*arguments, **options):
            nonlocal calls
            for moment in ("before", "after"):
                if moment == "after":
                    result = call(*arguments, **options)
                calls += 1
                if calls > place:
                    os._exit(1)
            return result

        return wrapper

    class File:
        def __init__(self, file):
            self.file = file
            self.write = counted(file.write)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *reason):
            self.file.close()

    opened = Path.open

    def open_counted(path, mode="r", *arguments, **options):
        if "x" not in mode:
            return opened(path, mode, *arguments, **options)
        return File(opened(path, mode, 0))  # no buffer: what is written is written

    Path.open = open_counted
    for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def as_arrays(state):
    return {name: np.asarray(value) for name, value in state.items()}


def which(state):
    """Whether a state is the earlier or the later one; anything else is an error."""
    state = as_arrays(state)
    for answer, expected in (("earlier", EARLIER), ("later", LATER)):
        if set(state) == set(expected) and all(
            np.array_equal(state[name], expected[name]) for name in state
        ):
            return answer
    raise AssertionError(f"neither the earlier nor the later state: {state}")


def save(kind, folder, later):
    state = LATER if later else EARLIER
    path = folder / "model.safetensors"
    if kind == "checkpoint":
        Checkpointer(folder, 1, model=Holder(state), other=Holder({})).save(2 if later else 1)
    elif kind == "shards" or kind == ("shards over one" if later else "one over shards"):
        save_safetensors(state, path, **SHARDS)
    else:
        save_safetensors(state, path)


def find(kind, folder):
    """What is there now, as a program that comes next would find it."""
    if kind != "checkpoint":
        return which(load_safetensors(folder / "model.safetensors"))
    model = Holder({})
    checkpointer = Checkpointer(folder, 1, model=model, other=Holder({}))
    step = checkpointer.restore()
    answer = which(model.state)
    assert step == checkpointer.latest() == {"earlier": 1, "later": 2}[answer]
    return answer


def main():
    kind, base = sys.argv[1], Path(sys.argv[2])
    found = []
    for place in range(1000):
        folder = base / str(place)
        folder.mkdir()
        save(kind, folder, later=False)
        process = os.fork()
        if not process:
            exit_at(place)
            save(kind, folder, later=True)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 1), code
        found.append(find(kind, folder))
        if code == 0:
            break
    assert code == 0, "never came through"
    assert found[0] == "earlier" and found[-1] == "later"
    assert found == sorted(found), found  # no way back
    # and saving goes on beside what was left behind
    for place in range(len(found)):
        save(kind, base / str(place), later=True)
        assert find(kind, base / str(place)) == "later"
    print(len(found) - 1, "exits,", found.count("earlier"), "before the rename that counts")


if __name__ == "__main__":
    main()
