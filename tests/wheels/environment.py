"""What the wheel checks share: which distributions are installed, and which imports must fail."""

import importlib.util
import platform
from importlib.metadata import distributions

SIBLINGS = {"te_tensor", "te_nn", "te_io", "te_optim"}

# What te-tensor brings, and so everything that depends on it.
CORE = {"te-tensor", "numpy", "ml-dtypes"}
if (platform.system(), platform.machine()) in {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Windows", "AMD64"),
    ("Windows", "ARM64"),
    ("Darwin", "arm64"),
}:
    CORE.add("scipy-openblas32")


def assert_installed(expected: set[str]) -> None:
    """Fail unless exactly these distributions are installed, besides pip itself."""
    installed = {found.metadata["Name"].lower().replace("_", "-") for found in distributions()}
    installed.discard("pip")
    missing, surplus = sorted(expected - installed), sorted(installed - expected)
    assert not missing, f"not installed: {missing}"
    assert not surplus, f"installed though nothing declares it: {surplus}"


def assert_only_importable(declared: set[str]) -> None:
    """Fail unless exactly these of our packages can be imported."""
    importable = {name for name in SIBLINGS if importlib.util.find_spec(name)}
    assert importable == declared, f"importable: {sorted(importable)}, expected {sorted(declared)}"
