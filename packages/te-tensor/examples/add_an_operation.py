"""Add an operation from outside the package: LeakyReLU, as one class, checked and trained through.

Needs te-tensor alone. (te-tensor has a LeakyReLU too: `te.leaky_relu`. This one is yours.)

    python add_an_operation.py
"""

from __future__ import annotations

import numpy as np

import te_tensor as te


class LeakyReLU(te.Operation):
    """x where it is positive, alpha·x elsewhere.

    Args:
        alpha: slope below 0.
    """

    # What the gradient check runs on: on both sides of the kink, not on it.
    samples = (
        te.Sample((3, 4), low=0.1),
        te.Sample((3, 4), low=-1.0, high=-0.1, kwargs={"alpha": 0.2}),
    )

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = alpha

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x)  # what backward needs; nothing is kept where no gradient is
        return np.where(x > 0, x, self.alpha * x)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray]:
        (x,) = self.saved
        return (np.where(x > 0, grad, self.alpha * grad),)  # one gradient for each input


def leaky_relu(x: te.Tensor, alpha: float = 0.01) -> te.Tensor:
    """An instance for each application: it is the node of the graph."""
    return te.Tensor.apply(LeakyReLU(alpha), x)


def main() -> None:
    te.gradcheck_operation(LeakyReLU)  # the class, on its samples
    x = te.Tensor([[-2.0, -0.5], [0.5, 2.0]], dtype="float64", requires_grad=True)
    te.gradcheck(lambda x: (leaky_relu(x, 0.3) ** 2).sum(), [x])  # and within a function
    print("gradients equal finite differences: fine")

    y = leaky_relu(x, 0.3)
    y.sum().backward()
    print(f"made by {type(y.creator).__name__}: {y.tolist()}, gradient {x.grad.tolist()}")

    class Wrong(LeakyReLU):
        def backward(self, grad: np.ndarray) -> tuple[np.ndarray]:
            return (grad,)  # forgets alpha

    try:
        te.gradcheck_operation(Wrong)
    except te.GradientError as error:
        print(f"a wrong backward is found: {error}")


if __name__ == "__main__":
    main()
