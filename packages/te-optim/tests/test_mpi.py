"""Jobs of several ranks: the tests in ranks/, and what becomes of a job in which one rank fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

HERE = Path(__file__).parent
FAILING = HERE / "failing.py"
#: Seconds that a job may take: none hangs.
LIMIT = 60


def launch(ranks, *arguments, run=("-m", "mpi4py")):
    """A job of so many ranks, with its output and how long it took."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [shutil.which("mpiexec", path=path), "-n", str(ranks), sys.executable, *run]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    begin = perf_counter()
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT,
        check=False,
    )
    return done, perf_counter() - begin


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_rank(ranks):
    done, _ = launch(ranks, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE / "ranks")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed") == ranks
    assert ranks == 1 or "skipped" not in done.stdout


CASES = {
    "exception": ["ArithmeticError: one rank is wrong", "on rank 1 of 2: the job ends"],
    "exception_late": ["ArithmeticError: one rank is wrong", "Traceback"],
    "interrupt": ["KeyboardInterrupt on rank 1 of 2: the job ends"],
    "killed": ["signal 9"],
    "early_exit": ["TimeoutError: rank 0 of 2 waited 1 s in allreduce sum of float32"],
    "early_exit_with_a_code": [],
    "hang": ["TimeoutError: rank 0 of 2 waited 1 s", "One has ended, hangs, or takes another"],
    "a_step_less": ["TimeoutError: rank 0 of 2 waited 1 s"],
    "a_step_more": ["TimeoutError: rank 1 of 2 waited 1 s"],
    "uneven_batches": ["TimeoutError: rank 0 of 2 waited 1 s"],
    "different_shapes": ["ValueError: ranks differ in the model: rank 0 has parameter 0: float32"],
    "different_values": ["ranks differ in the parameters' values", "broadcast_parameters(model)"],
    "different_calls": ["rank 0: barrier; rank 1: allreduce sum of float64 ()"],
    "different_arrays": ["rank 0: allreduce sum of float32 (4,); rank 1: allreduce sum of float32"],
    "not_finite": ["FloatingPointError: the gradient of parameter 0"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_in_which_a_rank_fails_ends_and_says_why(name):
    done, seconds = launch(2, FAILING, name)
    assert done.returncode != 0
    assert done.stdout.count("came to the end") < 2
    for said in CASES[name]:
        assert said in done.stderr + done.stdout
    assert seconds < LIMIT / 3


@pytest.mark.parametrize("name", ["exception", "killed", "early_exit", "different_calls"])
def test_more_ranks_end_too(name):
    done, _ = launch(4, FAILING, name)
    assert done.returncode != 0
    assert done.stdout.count("came to the end") < 3
    for said in CASES[name]:
        # Those that wait give up at the same time, and the first to say so ends the job.
        ranks = (0, 2, 3) if "rank 0" in said and "waited" in said else (0,)
        known = [said.replace("of 2", "of 4").replace("rank 0", f"rank {rank}") for rank in ranks]
        assert any(text in done.stderr + done.stdout for text in known)


def test_a_code_is_handed_on():
    assert launch(2, FAILING, "early_exit_with_a_code")[0].returncode == 3


@pytest.mark.parametrize("name", ["exception", "exception_late", "hang"])
def test_the_job_ends_without_the_help_of_mpi4py_too(name):
    done, _ = launch(2, FAILING, name, run=())
    assert done.returncode != 0
    assert CASES[name][0] in done.stderr


def test_ranks_without_mpi4py_get_the_pip_line():
    code = (
        "import sys; sys.modules['mpi4py'] = None; from te_optim import distributed as d; d.init()"
    )
    done, _ = launch(2, "-c", code, run=())
    assert done.returncode != 0
    assert 'python -m pip install "te-optim[mpi]"' in done.stderr


MISSING = "import os; os.environ['MPI4PY_LIBMPI'] = '/nowhere/libmpi.so'; "
INIT = "from te_optim import distributed as d; print(d.init().size)"


def test_ranks_without_an_mpi_library_are_told_so():
    done, _ = launch(2, "-c", MISSING + INIT, run=())
    assert done.returncode != 0
    assert "mpi4py finds no MPI" in done.stderr


def test_one_process_needs_no_mpi_library():
    code = MISSING + INIT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_importing_does_not_start_mpi():
    code = "import te_optim.distributed, sys; print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
