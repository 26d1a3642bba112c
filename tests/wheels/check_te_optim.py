"""te-optim alone, from its wheel: SGD moves a leaf down the gradient, in both calling styles."""

from importlib.metadata import version

import numpy as np
from environment import CORE, assert_installed, assert_only_importable

assert_installed(CORE | {"te-optim"})
assert_only_importable({"te_tensor", "te_optim"})

import te_optim
import te_tensor as te

weight = te.Tensor([1.0, -2.0], requires_grad=True)
bound = te_optim.SGD(0.25, parameters=[weight])
(weight * weight).sum().backward()
bound.step()
bound.zero_grad()
np.testing.assert_array_equal(weight.numpy(), [0.5, -1.0])
assert weight.grad is None

each_call = te_optim.SGD(0.25)
(weight * weight).sum().backward()
each_call.step([weight])
np.testing.assert_array_equal(weight.numpy(), [0.25, -0.5])
print(f"te-optim {version('te-optim')}: {weight.tolist()}")
