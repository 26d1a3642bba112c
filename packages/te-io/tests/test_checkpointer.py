"""Checkpoints: complete or not there, the newest first, all objects or none."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_io import Checkpointer, CheckpointWarning, FormatError, load_safetensors


class Holder:
    """Anything with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        if isinstance(state, dict) and "refuse" in state:
            raise KeyError("nothing fits")
        self.state = state


def model(value: float) -> Holder:
    weight = te.Tensor(np.full((2, 3), value, np.float32))
    return Holder({"a.weight": weight, "tied": weight, "b": te.Tensor([value], dtype="bfloat16")})


def optimizer(value: float) -> Holder:
    return Holder(
        {
            "groups": [{"lr": value / 3, "parameters": [0, 1], "amsgrad": False, "name": None}],
            "state": [{"step": 7, "mean": te.full((2, 3), value)}, {}],
        }
    )


def saved(directory: Path, *steps: int, keep: int | None = None) -> Checkpointer:
    checkpointer = Checkpointer(directory, keep, model=model(0), optimizer=optimizer(0))
    for step in steps:
        checkpointer.objects.update(model=model(step), optimizer=optimizer(step))
        checkpointer.save(step)
    return checkpointer


def fresh(directory: Path, keep: int | None = None) -> Checkpointer:
    return Checkpointer(directory, keep, model=model(-1), optimizer=optimizer(-1))


def value_of(checkpointer: Checkpointer) -> float:
    """The value that both objects hold."""
    state = checkpointer.objects["optimizer"].state
    value = checkpointer.objects["model"].state["b"].item()
    assert state["state"][0]["mean"].tolist() == [[value] * 3] * 2
    assert state["groups"] == [
        {"lr": value / 3, "parameters": [0, 1], "amsgrad": False, "name": None}
    ]
    assert state["state"][1] == {}
    return value


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_comes_back(tmp_path):
    te.manual_seed(5)
    te.randn(3)
    folder = saved(tmp_path / "new" / "run", 20).directory / "step-00000020"
    assert names(folder) == ["checkpoint.json", "model.safetensors", "optimizer.safetensors"]
    expected = te.randn(4).tolist()
    te.manual_seed(6)
    checkpointer = fresh(tmp_path / "new" / "run")
    assert checkpointer.latest() == 20
    assert checkpointer.restore() == 20
    assert value_of(checkpointer) == 20
    state = checkpointer.objects["model"].state
    assert state["tied"] is state["a.weight"]
    assert state["b"].dtype == te.bfloat16
    assert te.randn(4).tolist() == expected


def test_the_model_is_an_archive_of_its_own(tmp_path):
    saved(tmp_path, 20)
    state = load_safetensors(tmp_path / "step-00000020" / "model.safetensors")
    assert set(state) == {"a.weight", "tied", "b"}


def test_the_newest_is_found(tmp_path):
    saved(tmp_path, 20, 3, 2**27, 100)
    checkpointer = fresh(tmp_path)
    assert checkpointer.steps() == [3, 20, 100, 2**27]
    assert checkpointer.latest() == checkpointer.restore() == 2**27
    assert value_of(checkpointer) == 2**27
    assert checkpointer.restore(20) == 20
    assert value_of(checkpointer) == 20


def test_where_there_is_nothing(tmp_path):
    before = te.get_rng_state()
    for directory in (tmp_path, tmp_path / "missing"):
        checkpointer = fresh(directory)
        assert checkpointer.latest() is None
        assert checkpointer.restore() is None
        assert checkpointer.steps() == []
        with pytest.raises(FormatError, match="no checkpoint of step 3"):
            checkpointer.restore(3)
    assert value_of(checkpointer) == -1
    assert te.get_rng_state() == before
    assert names(tmp_path) == []


def test_other_things_in_the_directory(tmp_path):
    saved(tmp_path, 5)
    for name in ("step-7", "step-00000009.tmp", ".te-io-0123.tmp", "notes", "xstep-00000010"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000011").write_text("a file")
    assert fresh(tmp_path).steps() == [5]


# -- keep -----------------------------------------------------------------------------------


def test_the_oldest_go(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5, keep=3)
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
    saved(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-00000006"]


def test_keep_is_three_by_default_and_none_keeps_all(tmp_path):
    checkpointer = Checkpointer(tmp_path, model=model(1))
    for step in range(5):
        checkpointer.save(step)
    assert checkpointer.steps() == [2, 3, 4]
    checkpointer.keep = None
    for step in range(5, 9):
        checkpointer.save(step)
    assert len(checkpointer.steps()) == 7


def test_what_was_just_saved_stays(tmp_path):
    """Also where a training went back to an earlier step."""
    saved(tmp_path, 10, 20, 30, keep=3)
    saved(tmp_path, 5, keep=3)
    assert fresh(tmp_path).steps() == [5, 20, 30]


def test_a_step_that_is_saved_again(tmp_path):
    saved(tmp_path, 10, 20, keep=3)
    te.manual_seed(1)
    checkpointer = Checkpointer(tmp_path, 3, model=model(7), optimizer=optimizer(7))
    assert checkpointer.save(20).name == "step-00000020-2"
    assert names(tmp_path) == ["step-00000010", "step-00000020-2"]
    again = fresh(tmp_path)
    assert again.steps() == [10, 20]
    again.restore()
    assert value_of(again) == 7


# -- damage ---------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1]
    ),
    "a bit of the data": lambda folder: flip(folder / "optimizer.safetensors", -1),
    "a bit of the header": lambda folder: flip(folder / "model.safetensors", 20),
    "a bit of the manifest": lambda folder: flip(folder / "checkpoint.json", -60),
    "no manifest": lambda folder: (folder / "checkpoint.json").unlink(),
    "no model": lambda folder: (folder / "model.safetensors").unlink(),
    "half a manifest": lambda folder: (folder / "checkpoint.json").write_bytes(
        (folder / "checkpoint.json").read_bytes()[:100]
    ),
    "another manifest": lambda folder: (folder / "checkpoint.json").write_text('{"step": 3}'),
    "no JSON": lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "nested": lambda folder: (folder / "checkpoint.json").write_text("[" * 100_000),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_skipped_and_stays(tmp_path, kind):
    saved(tmp_path, 1, 2, 3)
    DAMAGE[kind](tmp_path / "step-00000003")
    left = names(tmp_path / "step-00000003")
    checkpointer = fresh(tmp_path)
    with pytest.warns(CheckpointWarning, match="step-00000003") as caught:
        assert checkpointer.latest() == 2
    assert caught[0].filename == __file__
    with pytest.warns(CheckpointWarning):
        assert checkpointer.restore() == 2
    assert value_of(checkpointer) == 2
    with pytest.raises(FormatError, match="step-00000003"):
        checkpointer.restore(3)
    assert value_of(checkpointer) == 2
    # It counts for nothing, and no save removes it; one of the same step stands beside it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved(tmp_path, 4, 3, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000003-2", "step-00000004"]
    assert names(tmp_path / "step-00000003") == left
    assert fresh(tmp_path).restore() == 4
    again = fresh(tmp_path)
    assert again.restore(3) == 3
    assert value_of(again) == 3


def test_every_byte_counts(tmp_path):
    """Whatever byte of a checkpoint is wrong, it is noticed."""
    checkpointer = Checkpointer(tmp_path, model=Holder({"x": te.ones(2), "lr": 0.1}))
    folder = checkpointer.save(1)
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in range(len(content)):
            if chr(content[place]).isspace():
                continue
            flip(path, place)
            with pytest.warns(CheckpointWarning):
                assert checkpointer.latest() is None
            path.write_bytes(content)
    assert checkpointer.restore() == 1


def test_all_are_damaged(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        DAMAGE["cut"](tmp_path / f"step-{step:08}")
    checkpointer = fresh(tmp_path)
    with pytest.warns(CheckpointWarning) as caught:
        assert checkpointer.restore() is None
    assert len(caught) == 2
    assert value_of(checkpointer) == -1


def test_a_manifest_of_another_version(tmp_path):
    from te_io.checkpointer import _sealed, _unsealed

    saved(tmp_path, 1)
    path = tmp_path / "step-00000001" / "checkpoint.json"
    manifest = _unsealed(path)
    for change in (
        {"version": 2},
        {"format": "x"},
        {"step": -1},
        {"step": 1.0},
        {"rng": [1]},
        {"rng": [1, "2"]},
        {"objects": None},
        {"files": {"../x.safetensors": {}}},
    ):
        path.write_bytes(_sealed({**manifest, **change}))
        with pytest.raises(FormatError, match=r"expected|lacks parts"):
            fresh(tmp_path).restore(1)
    path.write_bytes(_sealed(manifest))
    assert fresh(tmp_path).restore(1) == 1
    assert json.loads(path.read_text())["step"] == 1


# -- all or none ----------------------------------------------------------------------------


def test_an_object_that_refuses_changes_nothing(tmp_path):
    last = Holder({"refuse": 1})
    Checkpointer(tmp_path, model=model(1), optimizer=optimizer(1), last=last).save(1)
    checkpointer = Checkpointer(
        tmp_path, model=model(-1), optimizer=optimizer(-1), last=Holder({"mine": 1})
    )
    before = te.get_rng_state()
    te.randn(2)
    after = te.get_rng_state()
    assert before != after
    with pytest.raises(FormatError, match="last refused its state: nothing fits") as caught:
        checkpointer.restore()
    assert isinstance(caught.value.__cause__, KeyError)
    assert value_of(checkpointer) == -1
    assert checkpointer.objects["last"].state == {"mine": 1}
    assert te.get_rng_state() == after


def test_an_object_that_is_not_in_it(tmp_path):
    saved(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path, model=model(-1), schedule=Holder({}))
    with pytest.raises(FormatError, match="holds model, optimizer: expected schedule"):
        checkpointer.restore()
    assert checkpointer.objects["model"].state["b"].item() == -1


def test_only_some_of_the_objects(tmp_path):
    """For inference the model is enough."""
    saved(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path, model=model(-1))
    assert checkpointer.restore() == 1
    assert checkpointer.objects["model"].state["b"].item() == 1


def test_a_state_that_can_not_be_stored(tmp_path):
    saved(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path, model=model(2), other=Holder({"f": print}))
    with pytest.raises(FormatError, match="other's state at 'f'"):
        checkpointer.save(2)
    assert names(tmp_path) == ["step-00000001"]


def test_what_is_no_checkpointer(tmp_path):
    for keep in (0, -1, True, 1.5, "3"):
        with pytest.raises(ValueError, match="keep is"):
            Checkpointer(tmp_path, keep, model=model(1))
    with pytest.raises(TypeError, match="model is int, which has no state_dict"):
        Checkpointer(tmp_path, model=3)
    with pytest.raises(ValueError, match=r"name is .\.\./x."):
        Checkpointer(tmp_path, **{"../x": model(1)})
    for step in (-1, True, 1.0, "3", None):
        with pytest.raises(ValueError, match="step is"):
            Checkpointer(tmp_path).save(step)
    assert names(tmp_path) == []
