"""What a distribution and all that it needs take on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import Distribution, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

SIZES = {"installed": None}
DISTRIBUTIONS = {
    "tensor-engine": "te-nn",
    "torch": "torch",
    "jax": "jax",
    "onnxruntime": "onnxruntime",
}
#: What a step returns is the figure; there is nothing to time.
UNIT = "MB"


def _needed(name: str) -> dict[str, Distribution]:
    """A distribution and those that it needs on this machine, extras aside."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = canonicalize_name(waiting.pop())
        if key in found:
            continue
        found[key] = distribution(key)
        for text in found[key].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def _files(found: Distribution) -> Iterator[Path]:
    """The files of a distribution; of an editable one, what its wheel would install."""
    yield from (Path(str(found.locate_file(path))) for path in found.files or ())
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        source = Path(url2pathname(urlparse(origin["url"]).path), "src")
        for path in source.rglob("*"):
            # bytecode of other Pythons that have used the work tree isn't installed
            if path.suffix != ".pyc" or sys.implementation.cache_tag in path.suffixes[0]:
                yield path


def megabytes(name: str) -> float:
    files = {path for found in _needed(name).values() for path in _files(found)}
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def _installed(name: str, size: None) -> Callable[[], object]:
    return lambda: megabytes(name)


CONTESTANTS = {name: partial(_installed, wanted) for name, wanted in DISTRIBUTIONS.items()}
