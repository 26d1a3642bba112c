"""te-nn alone, from its wheel: a step of training without an optimizer lowers the loss."""

from importlib.metadata import version

from environment import CORE, assert_installed, assert_only_importable

assert_installed(CORE | {"te-nn"})
assert_only_importable({"te_tensor", "te_nn"})

import te_nn
import te_tensor as te

te.manual_seed(0)
layer, criterion = te_nn.Linear(3, 2), te_nn.MSELoss()
inputs, target = te.randn(8, 3), te.randn(8, 2)

before = criterion.forward(layer.forward(inputs), target)
before.backward()
for parameter in layer.parameters():
    with parameter.lock() as array:
        array -= 0.1 * parameter.grad.numpy()
after = criterion.forward(layer.forward(inputs), target)

assert after.item() < before.item(), (before.item(), after.item())
print(f"te-nn {version('te-nn')}: loss {before.item():.4f} -> {after.item():.4f}")
