"""Every example script runs as a stranger would run it, and every example in a docstring."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import te_io
import te_optim

PACKAGES = Path(__file__).parent.parent / "packages"
EXAMPLES = PACKAGES / "te-optim" / "examples"
TENSOR_EXAMPLES = PACKAGES / "te-tensor" / "examples"


def run(script, *arguments, blocked=None):
    """Run a script; with `blocked`, as if that package weren't installed."""
    command = [sys.executable, "-W", "error", str(script)]
    if blocked:
        code = (
            f"import runpy, sys; sys.modules[{blocked!r}] = None; "
            f"sys.path.insert(0, {str(script.parent)!r}); "
            f"sys.argv[:] = [{str(script)!r}, *sys.argv[1:]]; "
            f"runpy.run_path({str(script)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def module_names():
    for package in ("te_tensor", "te_nn", "te_io", "te_optim"):
        found = importlib.import_module(package)
        yield package
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            yield module.name


@pytest.mark.parametrize("name", sorted(module_names()))
def test_docstrings(name):
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


PAGES = [*sorted(PACKAGES.glob("*/README.md")), PACKAGES.parent / "docs" / "performance.md"]


@pytest.mark.parametrize("readme", PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_readme(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(readme), "exec"), {"__name__": "readme"})


def test_smoke():
    done = run(Path(__file__).parent / "python_smoke_test.py")
    assert done.returncode == 0, done.stderr
    assert "to the bit: fine" in done.stdout


def test_add_an_operation_is_checked_from_outside():
    done = run(TENSOR_EXAMPLES / "add_an_operation.py")
    assert done.returncode == 0, done.stderr
    assert "gradients equal finite differences: fine" in done.stdout
    assert "a wrong backward is found: gradient of input 0" in done.stdout


def test_linear_regression_finds_the_plane():
    done = run(TENSOR_EXAMPLES / "linear_regression.py", "--steps", 60)
    assert done.returncode == 0, done.stderr
    weight, bias = re.findall(r"\[+([^\]]*)\]+, expected", done.stdout)
    assert np.allclose(np.fromstring(weight, sep=" "), [2, -3, 0.5], atol=0.05)
    assert np.allclose(np.fromstring(bias, sep=" "), [1.5], atol=0.05)


def test_matrix_multiply_says_what_multiplies():
    done = run(TENSOR_EXAMPLES / "matrix_multiply.py", "--size", 16, "--blas", "numpy")
    assert done.returncode == 0, done.stderr
    assert "library  numpy" in done.stdout
    assert "[[19, 22], [43, 50]]" in done.stdout
    assert done.stdout.count("16×16") == 2


def test_train_nl_oob_shows_slopes_that_learn():
    done = run(EXAMPLES / "train_nl_oob.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    losses = [float(line.split()[3]) for line in lines]
    assert losses[-1] < losses[0]
    assert lines[0].split()[5:] != lines[-1].split()[5:]


def test_attention_bias_needs_te_nn_alone():
    done = run(PACKAGES / "te-nn" / "examples" / "attention_bias.py", "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean squared error") == 3


def test_sequence_lstm_learns_to_add():
    options = ("--length", 6, "--hidden", 32, "--steps", 300, "--layer", "GRU")
    done = run(PACKAGES / "te-nn" / "examples" / "sequence_lstm.py", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean squared error") == 9
    found = re.search(r"new sequences: mean squared error (\S+) ", done.stdout)
    assert float(found[1]) < 0.02  # 1/6 without a memory


def test_sequence_lstm_needs_te_optim():
    script = PACKAGES / "te-nn" / "examples" / "sequence_lstm.py"
    done = run(script, blocked="te_optim")
    assert done.returncode != 0
    assert "pip install te-optim" in done.stderr and "Traceback" not in done.stderr


DIGITS = PACKAGES / "te-nn" / "examples" / "digits.py"


@pytest.mark.skipif(not find_spec("sklearn"), reason="needs scikit-learn")
def test_digits_are_read():
    done = run(DIGITS, "--epochs", 6)
    assert done.returncode == 0, done.stderr
    right = dict(re.findall(r"^(\w+) .*: ([\d.]+)% of", done.stdout, re.MULTILINE))
    assert float(right["convolution"]) > 90
    assert float(right["transformer"]) > 70
    assert done.stdout.count("slopes of block") == 2


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("sklearn"), reason="needs scikit-learn")
def test_digits_are_read_well():
    done = run(DIGITS)
    right = re.findall(r": ([\d.]+)% of", done.stdout)
    assert len(right) == 2
    assert min(map(float, right)) > 97


@pytest.mark.parametrize(
    ("package", "line"),
    [("te_optim", "pip install te-optim"), ("sklearn", "pip install scikit-learn")],
)
def test_digits_name_what_is_missing(package, line):
    done = run(DIGITS, blocked=package)
    assert done.returncode != 0
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_learned_positions_finds_the_neighbours():
    done = run(PACKAGES / "te-nn" / "examples" / "learned_positions.py")
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert float(last.split()[3]) < 0.1 * float(first.split()[3])
    assert last.endswith("100%") and not first.endswith("100%")


def molecules(folder, *arguments, **options):
    return run(EXAMPLES / "train_molecules.py", "--output", folder, *arguments, **options)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("qm9pack"), reason="needs qm9pack")
def test_train_molecules_on_qm9(tmp_path):
    done = molecules(
        tmp_path, "--train", 200, "--test", 40, "--epochs", 2, "--bias", "all", "--threads", 2
    )
    assert done.returncode == 0, done.stderr
    for part in ("composition alone", "bias gaussian", "bias none", "Slopes", "block", "loss"):
        assert part in done.stdout
    assert done.stdout.count("equal to the bit") == 3
    for bias in ("gaussian", "logarithmic", "none"):
        picture = (tmp_path / f"molecules-{bias}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    state = te_io.load_safetensors(tmp_path / "molecules-gaussian.safetensors")
    slopes = state["blocks.0.self_attn.nl_oob.slopes"].numpy().ravel()
    assert not np.allclose(slopes, 2.0 ** -np.arange(8.0))


@pytest.mark.skipif(not find_spec("ase"), reason="needs ase")
def test_train_molecules_gives_the_same_bits_for_the_same_seed(tmp_path):
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = ("--data", "g2", "--epochs", 2, "--seed", seed, "--threads", 2)
        done = molecules(tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        files.append((tmp_path / name / "molecules-gaussian.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.skipif(not find_spec("ase"), reason="needs ase")
def test_train_molecules_resumes_to_the_same_bits(tmp_path):
    options = ("--data", "g2", "--epochs", 4, "--threads", 2)
    assert molecules(tmp_path / "through", *options).returncode == 0
    stopped = molecules(tmp_path / "resumed", *options, "--stop-at", 3)
    assert stopped.returncode == 130, stopped.stderr
    command = re.search(r"Go on with: python (.*)", stopped.stdout)[1]
    other = molecules(tmp_path / "resumed", *options, "--resume", "--seed", 1)
    assert other.returncode == 2 and "other arguments" in other.stderr
    done = run(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    name = "molecules-gaussian.safetensors"
    first, second = (tmp_path / folder / name for folder in ("through", "resumed"))
    assert first.read_bytes() == second.read_bytes()
    again = run(*shlex.split(command))
    assert again.returncode == 2 and "nothing to go on with" in again.stderr


@pytest.mark.skipif(not find_spec("ase"), reason="needs ase")
def test_train_molecules_saves_on_ctrl_c(tmp_path):
    script = EXAMPLES / "train_molecules.py"
    options = ("--data", "g2", "--epochs", "100000", "--output", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "to learn from" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped after step" in output and "--resume" in output
    assert (tmp_path / "molecules-gaussian.progress").exists()


def test_schedules_are_plotted(tmp_path):
    done = run(EXAMPLES / "schedules.py", "--steps", 40, "--output", tmp_path / "new" / "all.png")
    assert done.returncode == 0, done.stderr
    for name in vars(te_optim):
        kind = getattr(te_optim, name)
        if isinstance(kind, type) and issubclass(kind, te_optim.Schedule):
            assert name in done.stdout or name == "Schedule"
    assert (tmp_path / "new" / "all.png").read_bytes().startswith(b"\x89PNG")


def test_accumulated_gradients_are_those_of_the_whole_batch():
    done = run(EXAMPLES / "accumulate_gradients.py", "--parts", 8, "--steps", 20)
    assert done.returncode == 0, done.stderr
    difference = re.search(r"two models' parameters: (\S+)", done.stdout)[1]
    assert float(difference) < 1e-4
    assert run(EXAMPLES / "accumulate_gradients.py", "--parts", 7).returncode == 2


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("te_nn", "pip install te-nn"),
        ("te_io", "pip install te-io"),
        ("rich", "pip install rich"),
        ("matplotlib", "pip install matplotlib"),
        ("qm9pack", "pip install --no-deps qm9pack"),
    ],
)
def test_a_missing_package_gives_the_pip_line(tmp_path, package, line):
    done = molecules(tmp_path, blocked=package)
    assert done.returncode != 0
    assert line in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("--bias", "gauss"), "gauss"),
        (("--epochs", 0), "--epochs is 0"),
        (("--stop-at", 0), "--stop-at is 0"),
        (("--resume",), "nothing to go on with"),
        (("--seed", -1), "--seed is -1"),
        (("--lr", "nan"), "lr is nan"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, given):
    done = molecules(tmp_path, "--data", "g2", *arguments)
    assert done.returncode == 2
    assert given in done.stderr
    assert "Traceback" not in done.stderr
