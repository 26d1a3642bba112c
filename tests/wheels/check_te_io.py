"""te-io alone, from its wheel: tensors are saved and loaded to the bit."""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from environment import CORE, assert_installed, assert_only_importable

# The last three are what rich depends on.
assert_installed(
    CORE | {"te-io", "safetensors", "rich", "markdown-it-py", "mdurl", "pygments"},
)
assert_only_importable({"te_tensor", "te_io"})

import te_io
import te_tensor as te

te.manual_seed(0)
saved = {"weight": te.randn(3, 2), "scale": te.Tensor(2.0)}
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "model.safetensors")
    te_io.save_safetensors(saved, path)
    loaded = te_io.load_safetensors(path)
    command = Path(sys.executable).with_name("te-io")
    done = subprocess.run([command, "verify", path], capture_output=True, text=True, check=True)
assert "2 tensors" in done.stdout

assert loaded.keys() == saved.keys()
for name, tensor in saved.items():
    np.testing.assert_array_equal(loaded[name].numpy(), tensor.numpy())
print(f"te-io {version('te-io')}: {sorted(loaded)}")
