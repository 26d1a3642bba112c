"""Jobs of several ranks: training, checkpoints and the example, as a user starts them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "packages" / "te-optim" / "examples" / "train_molecules_mpi.py"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

pytestmark = pytest.mark.skipif(
    not find_spec("mpi4py") or not shutil.which("mpiexec", path=PATH),
    reason="needs mpi4py and mpiexec",
)
needs_ase = pytest.mark.skipif(not find_spec("ase"), reason="needs ase")


def command(ranks, *arguments):
    mpiexec = shutil.which("mpiexec", path=PATH)
    return [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", *map(str, arguments)]


def launch(ranks, *arguments):
    return subprocess.run(
        command(ranks, *arguments),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("ranks", [2, 3])
def test_checkpoints_on_every_rank(ranks):
    folder = HERE / "ranks"
    done = launch(ranks, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed") == ranks


@needs_ase
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_losses_are_those_of_one_process(ranks, tmp_path):
    options = ("--data", "g2", "--epochs", 10, "--batch", 16)
    done = launch(ranks, HERE / "ranks" / "loss_curve.py", tmp_path / "work", *options)
    assert done.returncode == 0, done.stderr
    steps, difference = re.search(r"(\d+) steps, losses differ by (\S+)", done.stdout).groups()
    assert int(steps) == 80 and float(difference) < 1e-4


@needs_ase
def test_rank_0_alone_prints_and_saves_and_the_job_resumes(tmp_path):
    options = ("--data", "g2", "--epochs", 3)
    through = launch(2, EXAMPLE, *options, "--output", tmp_path / "through")
    assert through.returncode == 0, through.stderr
    for said in ("2 ranks", "composition alone", "Plotted", "equal to the bit", "6/6"):
        assert through.stdout.count(said) == 1
    stopped = launch(2, EXAMPLE, *options, "--output", tmp_path / "resumed", "--stop-at", 3)
    assert stopped.returncode == 130, stopped.stderr
    line = re.search(r"Go on with: mpiexec -n 2 python -m mpi4py (.*)", stopped.stdout)[1]
    other = launch(2, *shlex.split(line), "--seed", 1)
    assert other.returncode == 2 and other.stderr.count("other arguments") == 1
    resumed = launch(2, *shlex.split(line))
    assert resumed.returncode == 0, resumed.stderr
    name = "molecules-gaussian.safetensors"
    first, second = (tmp_path / folder / name for folder in ("through", "resumed"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = launch(2, *shlex.split(line))
    assert again.returncode == 2 and again.stderr.count("nothing to go on with") == 1


def start(folder, epochs):
    """The example as a job that goes on while the test does, when there is a checkpoint of it."""
    options = ("--data", "g2", "--epochs", epochs, "--output", folder)
    job = subprocess.Popen(
        command(2, EXAMPLE, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(Path(folder, "molecules-gaussian.ranks").glob("step-00000004*")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return job, options


@needs_ase
def test_a_job_that_was_killed_goes_on_from_its_last_epoch(tmp_path):
    job, options = start(tmp_path, 60)
    job.kill()  # the launcher itself; its ranks end with it
    job.communicate()
    done = launch(2, EXAMPLE, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert "120/120" in done.stdout


@needs_ase
def test_ctrl_c_saves_once_and_says_how_to_go_on(tmp_path):
    job, _ = start(tmp_path, 100_000)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    assert output.count("Stopped after step") == 1 and "--resume" in output
    step = int(re.search(r"Stopped after step (\d+)", output)[1])
    assert list(tmp_path.glob(f"molecules-gaussian.ranks/step-{step:08}"))
