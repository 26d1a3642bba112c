"""A regression with a network of two layers: what the ranks of a job train in these tests."""

import numpy as np

import te_tensor as te
from te_optim import SGD, Adagrad, Adam, AdamW, RMSProp

OPTIMIZERS = {
    "SGD": lambda p: SGD(lr=0.1, momentum=0.9, nesterov=True, parameters=p),
    "Adam": lambda p: Adam(lr=0.01, amsgrad=True, parameters=p),
    "AdamW": lambda p: AdamW(lr=0.01, parameters=p),
    "RMSProp": lambda p: RMSProp(lr=0.01, centered=True, momentum=0.5, parameters=p),
    "Adagrad": lambda p: Adagrad(lr=0.1, parameters=p),
}
SHAPES = [(5, 40), (40,), (40, 7), (7,), (7, 1)]


def model(dtype="float64"):
    """Parameters, the same on every rank."""
    rng = np.random.default_rng(0)
    return [
        te.Tensor(0.3 * rng.standard_normal(s), dtype=dtype, requires_grad=True) for s in SHAPES
    ]


def loss_of(p, x, y):
    hidden = te.tanh(te.tanh(x @ p[0] + p[1]) @ p[2] + p[3])
    return ((hidden @ p[4] - y) ** 2).mean()


def data(count, seed=1, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5))
    return te.Tensor(x, dtype=dtype), te.Tensor(np.sin(x[:, :1]), dtype=dtype)


def values(parameters):
    return np.concatenate([np.array(p.data, np.float64).ravel() for p in parameters])


def train(parameters, optimizer, comm=None, steps=range(5), dtype="float64"):
    """Steps on this rank's share of each batch; without ranks, on the whole."""
    for step in steps:
        x, y = data(24, step, dtype)
        if comm is not None:
            x, y = x[comm.rank :: comm.size], y[comm.rank :: comm.size]
        optimizer.zero_grad()
        loss_of(parameters, x, y).backward()
        optimizer.step()
    return values(parameters)
