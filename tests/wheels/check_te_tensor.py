"""te-tensor alone, from its wheel: a product and its gradients."""

from importlib.metadata import version

import numpy as np
from environment import CORE, assert_installed, assert_only_importable

assert_installed(CORE)
assert_only_importable({"te_tensor"})

import te_tensor as te

a = te.Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
b = te.Tensor([[5.0], [6.0]], requires_grad=True)
(a @ b).sum().backward()

np.testing.assert_array_equal(a.grad.numpy(), [[5, 6], [5, 6]])
np.testing.assert_array_equal(b.grad.numpy(), [[4], [6]])
print(version("te-tensor"), te.blas_info())
