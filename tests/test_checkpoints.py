"""Training that goes on from a checkpoint, in another process, as if nothing had been."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import te_nn as nn
import te_optim
import te_tensor as te
from te_io import Checkpointer, FormatError, load_into_module

PROGRAM = Path(__file__).with_name("resume.py")


def train(directory: Path, begin: int, end: int, kind: str) -> str:
    command = [sys.executable, "-W", "error", str(PROGRAM), str(directory)]
    done = subprocess.run([*command, str(begin), str(end), kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_resumed_training_is_the_same_to_the_bit(tmp_path, kind):
    whole = train(tmp_path / "whole", -1, 12, kind)
    train(tmp_path / "parts", -1, 5, kind)  # step 5 is lost: the newest checkpoint is of step 4
    train(tmp_path / "parts", 4, 8, kind)
    assert train(tmp_path / "parts", 8, 12, kind) == whole
    folder = "step-00000012"
    for name in ("checkpoint.json", "model.safetensors", "optimizer.safetensors"):
        paths = (tmp_path / run / folder / name for run in ("whole", "parts"))
        one, other = (path.read_bytes() for path in paths)
        assert one == other
    assert len(list((tmp_path / "parts").iterdir())) == 2


def test_parameters_stay_the_ones_that_the_optimizer_has(tmp_path):
    model = nn.TransformerBlock(8, 16, 2, "gaussian")
    optimizer = te_optim.Adam(parameters=model.parameters())
    checkpointer = Checkpointer(tmp_path, model=model, optimizer=optimizer)
    checkpointer.save(1)
    before = dict(model.named_parameters())
    for parameter in before.values():
        with parameter.lock() as array:
            array[...] = 7
    assert checkpointer.restore() == 1
    assert all(after is before[name] for name, after in model.named_parameters())
    assert not np.any(model.linear1.weight.data == 7)
    assert model.self_attn.nl_oob.slopes.requires_grad


def test_another_model_is_refused_and_nothing_is_changed(tmp_path):
    def parts(features):
        te.manual_seed(features)
        model = nn.Linear(features, 3)
        optimizer = te_optim.Adam(parameters=model.parameters())
        model(te.ones(2, features)).sum().backward()
        optimizer.step()
        return {"model": model, "optimizer": optimizer}

    Checkpointer(tmp_path, **parts(4)).save(1)
    own = parts(5)
    weight = own["model"].weight.data.copy()
    with pytest.raises(FormatError, match=r"model refused its state: .*(\n.*)*weight") as caught:
        Checkpointer(tmp_path, **own).restore()
    assert "step-00000001" in str(caught.value)
    np.testing.assert_array_equal(own["model"].weight.data, weight)
    # the model fits and the optimizer doesn't: the model gets its own values back
    own = parts(4)
    weight = own["model"].weight.data.copy()
    own["optimizer"] = te_optim.SGD(0.1, momentum=0.5, parameters=own["model"].parameters())
    with pytest.raises(FormatError, match="optimizer refused its state"):
        Checkpointer(tmp_path, **own).restore()
    np.testing.assert_array_equal(own["model"].weight.data, weight)


def test_the_model_of_a_checkpoint_goes_into_a_module(tmp_path):
    saved, fresh = nn.Linear(4, 3), nn.Linear(4, 3)
    folder = Checkpointer(tmp_path, model=saved).save(1)
    load_into_module(fresh, folder / "model.safetensors")
    np.testing.assert_array_equal(fresh.weight.data, saved.weight.data)
