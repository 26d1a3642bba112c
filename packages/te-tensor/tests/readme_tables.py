"""The README's tables of operations and dtypes, made from the code.

python packages/te-tensor/tests/readme_tables.py     # writes them into the README
"""

import re
from pathlib import Path

import te_tensor as te
from te_tensor import dtypes

README = Path(__file__).parents[1] / "README.md"
SHORT = {
    "float8_e4m3fn": "f8e4",
    "float8_e5m2": "f8e5",
    "bfloat16": "bf16",
    **{f"float{bits}": f"f{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    "uint8": "u8",
}


def table(head, rows):
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def operations():
    """The registered operations, a family a line."""
    families = {}
    for name, operation in te.REGISTRY.items():
        families.setdefault(operation.__module__.rpartition(".")[2], []).append(f"`{name}`")
    return table(
        ["family", "operations"],
        [[family, " ".join(sorted(names))] for family, names in sorted(families.items())],
    )


def kinds():
    """What each dtype is for."""
    meanings = [
        (dtypes.WIDE_FLOATS, "computed with as they are; have gradients"),
        (
            dtypes.SMALL_FLOATS,
            "stored small, computed with in float32, rounded once; have gradients",
        ),
        (dtypes.INTEGERS | {dtypes.bool_}, "computed with as in NumPy; no gradients"),
        (dtypes.STORAGE_ONLY, "loaded, saved and cast, never computed with"),
    ]
    return table(
        ["dtypes", "meaning"],
        [[" ".join(f"`{name}`" for name in by_size(found)), text] for found, text in meanings],
    )


def by_size(found):
    """Names, the short ones first."""
    return sorted((d.name for d in found), key=lambda name: (len(name), name))


def promotion():
    """The dtype in which two meet."""
    order = [
        *(te.bool_, te.uint8, te.int8, te.int16, te.int32, te.int64),
        *(te.float8_e4m3fn, te.float8_e5m2, te.float16, te.bfloat16, te.float32, te.float64),
    ]
    assert set(order) == dtypes.ALL - dtypes.STORAGE_ONLY
    short = [SHORT.get(dtype.name, dtype.name) for dtype in order]
    rows = [
        [
            f"**{SHORT.get(a.name, a.name)}**",
            *(SHORT.get(name := te.promote(a, b).name, name) for b in order),
        ]
        for a in order
    ]
    return table(["", *short], rows)


TABLES = {"operations": operations, "dtypes": kinds, "promotion": promotion}


def filled(text):
    """The README with its tables made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"the README has {count} places for the table of {name}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
