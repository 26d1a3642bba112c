"""Whether a kernel runs is known before it is compiled: so all of them must fit every processor."""

import gc
import importlib
import pkgutil

import pytest

import te_nn
import te_optim
import te_tensor as te
from te_tensor.machine import Kernel
from te_tensor.machine.compiler import _Compiler
from te_tensor.machine.target import TARGETS

OPTIMIZERS = [
    lambda p: te_optim.SGD(0.1, parameters=p),
    lambda p: te_optim.SGD(0.1, 0.9, 0.1, True, parameters=p),
    lambda p: te_optim.SGD(0.1, 0.9, 0.1, dampening=0.5, parameters=p),
    lambda p: te_optim.Adam(0.1, weight_decay=0.1, amsgrad=True, parameters=p),
    lambda p: te_optim.AdamW(0.1, weight_decay=0.1, amsgrad=True, parameters=p),
    lambda p: te_optim.RMSProp(0.1, weight_decay=0.1, momentum=0.5, centered=True, parameters=p),
    lambda p: te_optim.Adagrad(0.1, 0.1, 0.1, 0.1, parameters=p),
]


def kernels() -> list[Kernel]:
    """All that the packages have, those that are made with their options too."""
    for package in (te, te_nn, te_optim):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for make in OPTIMIZERS:
        weight = te.Tensor([1.0, 2.0], requires_grad=True)
        weight.grad = te.Tensor([1.0, 2.0])
        make([weight]).step()
    found = [thing for thing in gc.get_objects() if type(thing) is Kernel]
    return [kernel for kernel in found if kernel.function.__module__.startswith("te_")]


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_compile_for_every_processor(name: str) -> None:
    target, found = TARGETS[name], kernels()
    modules = {kernel.function.__module__ for kernel in found}
    assert {"te_tensor.ops.gelu", "te_tensor.ops._gates", "te_optim.formula"} <= modules
    for kernel in found:
        compiler = _Compiler(kernel.formula(target), target)
        assert compiler.compile()
        assert len(compiler.free) == target.registers
