"""The README's tables say what the code does."""

import runpy
from pathlib import Path

TABLES = runpy.run_path(str(Path(__file__).with_name("readme_tables.py")))


def test_the_tables_are_up_to_date():
    text = TABLES["README"].read_text(encoding="utf-8")
    assert text == TABLES["filled"](text), (
        "run `python packages/te-tensor/tests/readme_tables.py`, which makes the tables anew"
    )
