"""Files that must be refused are, with little memory and in little time.

They are read in a process of their own, under limits; hostile.py has them.
"""

import base64
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from te_io import OpaqueObject, load_torch

TESTS = Path(__file__).parent
SCRIPT = TESTS / "hostile.py"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hostile = load_script("hostile")
fuzz = load_script("fuzz")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """What came of each file."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("hostile"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=300,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    return {outcome["case"]: outcome for outcome in found}


@pytest.mark.parametrize("case", hostile.CASES)
def test_a_hostile_file_is_refused(outcomes, case):
    outcome = outcomes[case]
    assert outcome["kind"] == "FormatError", outcome
    assert re.search(hostile.CASES[case].words, outcome["words"]), outcome["words"]
    assert outcome["words"].startswith("hostile.pt: ")
    assert outcome["seconds"] < hostile.SECONDS
    assert not outcome["trace"], "the file ran a command"


@pytest.mark.parametrize("case", hostile.CUT)
def test_a_file_cut_anywhere_is_refused(outcomes, case):
    assert outcomes[f"cut: {case}"]["accepted"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc tells how much there is")
def test_memory_was_short(outcomes):
    """So that files can't pass because there was enough."""
    assert outcomes["memory"]["kind"] == "MemoryError"


def test_files_without_a_fault_are_read(tmp_path):
    """So that the cases can't pass because of something else in how they are put together."""
    assert load_torch(hostile.archive())["weight"].tolist() == [1, 2]
    assert load_torch(hostile.archive(pack=("data.pkl",)))["weight"].tolist() == [1, 2]
    legacy = hostile.legacy(hostile.entry(hostile.tensor()), ["0"], hostile.record())
    assert load_torch(legacy)["weight"].tolist() == [1, 2]
    root = hostile.NET + b"}" + hostile.text("a") + hostile.tensor() + b"sb"
    assert load_torch(hostile.script(root, hostile.MODULE))["a"].tolist() == [1, 2]
    expanded = hostile.tensor(size=hostile.shape(1 << 20), stride=hostile.shape(0))
    assert load_torch(hostile.archive(expanded)).shape == (1 << 20,)
    assert load_torch(hostile.archive(hostile.shared(hostile.twice_in_list, 10)))
    assert load_torch(hostile.archive(b"}" + hostile.items(b"K\1", b"K\2") + b"Ns")) == {
        (1, 2): None
    }
    assert load_torch(hostile.archive(b"}(" + b"K\1N" + b"u", more={"data/": b""})) == {1: None}


@pytest.mark.parametrize("protocol", range(1, 6))
def test_commands_are_inert_objects(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    (found,) = load_torch(hostile.evil_pickle(protocol), on_unknown="opaque").values()
    assert isinstance(found, OpaqueObject)
    assert found.name.endswith(".system")
    assert found.arguments == (f'echo x > "{hostile.TRACE}"',)
    assert list(tmp_path.iterdir()) == []


def test_bad_checksums_are_read_on_request():
    damaged = hostile.changed(hostile.archive(), hostile.DATA, hostile.DATA[::-1])
    assert load_torch(damaged, verify=False)["weight"].tolist() != [1, 2]


@pytest.mark.parametrize("path", sorted(TESTS.glob("failures/*.b64")), ids=lambda path: path.stem)
def test_inputs_that_once_failed(path):
    fuzz.read(base64.b64decode(path.read_bytes()))


def test_mutations(tmp_path):
    """A few of them; `nox -s fuzz` tries more."""
    seeds = [hostile.asset(name) for name in ("state_dict", "legacy", "simple_linear", "module")]
    mutator = fuzz.Mutator(seeds)
    outcomes = Counter()
    for number in range(400):
        dice = random.Random(number)
        outcomes += fuzz.read(mutator.mutate(dice.choice(seeds), dice))
    assert outcomes["refused"] > 400
    assert outcomes["accepted"] > 100
