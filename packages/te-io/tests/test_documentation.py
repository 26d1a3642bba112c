"""What the documentation shows does run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(
    "module",
    [
        *("errors", "state_dict", "safetensors", "pickle_values", "torch_archive"),
        *("script_writing", "script_trace", "script_code", "script_export"),
    ],
)
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"te_io.{module}"))
    assert results.attempted
    assert not results.failed


@pytest.mark.skipif(not README.exists(), reason="tests without their package")
def test_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out
