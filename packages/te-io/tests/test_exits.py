"""A process that ends while it saves: the earlier file is whole until the new one is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("exits.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends forked processes")
@pytest.mark.parametrize(
    "kind", ["one file", "shards", "shards over one", "one over shards", "checkpoint"]
)
def test_exits_in_the_middle_of_saving(tmp_path, kind):
    # forking is deprecated where NumPy has begun threads; these children run nothing of theirs
    forking = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", forking, str(PROGRAM), kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # before and after each write, fsync and rename of a file
    assert int(done.stdout.split()[0]) >= 12
