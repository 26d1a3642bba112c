"""Files that compare with PyTorch are collected where PyTorch is installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_torch*.py"]
