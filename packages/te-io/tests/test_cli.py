"""The command line: what it prints, its exit codes, and one line for an error."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from te_io import Checkpointer, FormatError, cli, load_safetensors, save_safetensors

ASSETS = Path(__file__).with_name("assets")


@pytest.fixture
def path(tmp_path):
    state = {
        "linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "linear.bias": np.zeros(3, np.float32),
        "evil\x1b[31m[red]": np.array(1),
    }
    save_safetensors(state, tmp_path / "a.safetensors", metadata={"note": "\x1b]0;x\x07"})
    return tmp_path / "a.safetensors"


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_inspect(run, path):
    code, out, err = run("inspect", path)
    assert code == 0 and not err
    for words in ["linear.weight", "2×3", "float32", "24", "scalar", "3 tensors, 10 numbers"]:
        assert words in out
    assert "\x1b" not in out and "\x07" not in out
    assert r"evil\x1b[31m[red]" in out


def test_inspect_for_programs(run, path):
    code, out, _ = run("inspect", "--json", path)
    assert code == 0
    found = json.loads(out)
    assert found["format"] == "safetensors" and found["metadata"] == {"note": "\x1b]0;x\x07"}
    assert {
        "name": "linear.weight",
        "shape": [2, 3],
        "dtype": "float32",
        "bytes": 24,
    } in found["tensors"]
    assert len(found["tensors"]) == 3


def test_convert(run, path):
    target = path.with_name("b.safetensors")
    code, out, err = run(
        "convert", path, target, "--transpose", "--dtype", "bf16", "--shard-size", "12B"
    )
    assert code == 0 and not err
    assert "b.safetensors.index.json: 3 tensors, 26 bytes" in out
    weight = load_safetensors(target)["linear.weight"]
    assert weight.dtype.name == "bfloat16"
    assert weight.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(("short", "name"), [("f16", "float16"), ("f32", "float32")])
def test_dtypes(run, path, short, name):
    assert run("convert", path, path.with_name("b"), "--dtype", short)[0] == 0
    assert load_safetensors(path.with_name("b"))["linear.bias"].dtype.name == name


def test_verify(run, path, tmp_path):
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert "whole, safetensors, 3 tensors, 44 bytes" in out
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = run("verify", path)
    assert (code, out) == (2, "")
    assert "cut short" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state_dict", "2 tensors, 32 bytes\n"),
        ("nested", "1 tensors, 24 bytes\n"),
        ("values", "0 tensors, 0 bytes\n"),  # no state dict
        ("module", "2 tensors, 32 bytes, 2 objects of classes that aren't read\n"),
        ("frozen", "2 tensors, "),  # whose names are lost
    ],
)
def test_verify_files_of_pytorch(run, tmp_path, name, words):
    path = tmp_path / "f.pt"
    content = base64.b64decode((ASSETS / f"{name}.pt.b64").read_bytes())
    path.write_bytes(content)
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}: whole, PyTorch, {words}")
    path.write_bytes(content[:-1])
    code, out, err = run("verify", path)
    assert (code, out) == (2, "") and err.count("\n") == 1


def test_verify_a_checkpoint(run, path, tmp_path):
    class Holder:
        def state_dict(self):
            return {"x": np.ones(2)}

        def load_state_dict(self, state):
            raise AssertionError

    folder = Checkpointer(tmp_path, model=Holder()).save(7)
    assert "a checkpoint of step 7" in run("verify", folder)[1]
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    code, _, err = run("verify", folder)
    assert code == 2 and "model.safetensors: is damaged" in err
    code, _, err = run("verify", folder, "--key", "model")
    assert code == 2 and "not a regular file" in err


def test_diff(run, path, tmp_path):
    assert run("diff", path, path)[:2] == (0, "the same 3 tensors\n")
    state = load_safetensors(path)
    other = {"linear.bias": state["linear.bias"] + 0.25, "linear.weight": state["linear.weight"].T}
    save_safetensors({**other, "new[b]": np.ones(2)}, tmp_path / "b")
    code, out, _ = run("diff", path, tmp_path / "b")
    assert code == 1
    for words in ["0.25", "(2, 3)", "(3, 2)", "only in the first", "new[b]", "4 of 4 tensors"]:
        assert words in out
    assert "\x1b" not in out


BAD = [
    ([], "arguments are required"),
    (["nonsense"], "invalid choice"),
    (["convert", "a"], "required: OUT"),
    (["convert", "{a}", "{b}", "--dtype", "f8"], "'bf16', 'f16', 'f32'"),
    (["convert", "{a}", "{b}", "--shard-size", "much"], "size is 'much'"),
    (["convert", "{a}", "{b}.pt"], "name of another format"),
    (["convert", "{a}", "{a}/b"], "{a}/b"),
    (["convert", "{a}", "{b}", "--key", "model"], "no key 'model'"),
    (["convert", "missing", "{b}"], "No such file"),
    (["inspect", "{text}"], "no safetensors file"),
    (["verify", "missing"], "missing"),
    (["verify", "{a}", "--key", "model"], "no key 'model'"),
    (["verify", "."], "no complete checkpoint"),
    (["diff", "{a}", "missing"], "missing"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_errors_are_one_line(run, path, arguments, words, monkeypatch):
    monkeypatch.chdir(path.parent)
    path.with_name("text").write_text("this is no archive at all, but a text of some length")
    names = {"a": path, "b": path.with_name("b"), "text": path.with_name("text")}
    before = sorted(path.parent.iterdir())
    code, out, err = run(*[argument.format(**names) for argument in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("te-io: ") and err.count("\n") == 1
    assert words.format(**names) in err
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("place", [["--debug", "verify"], ["verify", "--debug"]])
def test_debug_shows_the_traceback(path, place):
    with pytest.raises(FileNotFoundError):
        cli.main([*place, str(path) + "x"])


def test_an_error_of_several_lines_is_one(run, path, monkeypatch):
    def fail(*arguments, **options):
        raise FormatError("does not fit:\n  first\n  second\x1b[2J", file="f")

    monkeypatch.setattr(cli, "load_any", fail)
    assert run("inspect", path)[2] == "te-io: f: does not fit: first; second\\x1b[2J\n"


def test_an_interruption(run, path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_any", interrupt)
    assert run("inspect", path) == (130, "", "")


def test_a_bar_appears_after_a_while(run, path, monkeypatch):
    shown = []

    class Recorded(cli.Progress):
        def update(self, task, **options):
            shown.append(options["completed"])
            super().update(task, **options)

    monkeypatch.setattr(cli, "Progress", Recorded)
    assert run("convert", path, path.with_name("b"))[2] == ""
    assert shown == []
    monkeypatch.setattr(cli, "PATIENCE", 0)
    code, _, err = run("convert", path, path.with_name("b"))
    assert code == 0 and "writing" in err
    assert shown == [8, 20, 44]


def test_names_are_whole_in_a_pipe(run, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "encoder.layers.0.self_attn.something_long.weight" * 2
    save_safetensors({name: np.ones((10, 10))}, tmp_path / "f")
    assert name in run("inspect", tmp_path / "f")[1]


def test_the_module_runs(path):
    command = [sys.executable, "-W", "error", "-m", "te_io", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout
    done = subprocess.run([*command, "--debug", "more"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unrecognized arguments: more" in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away(path, options):
    """As in `te-io inspect FILE | head -1`."""
    program = (
        "import os, sys\nfrom te_io.cli import main\n"
        "read, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "sys.exit(main(['inspect', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", program, str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
