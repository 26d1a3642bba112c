"""A training that can end anywhere and be resumed.

    python resume.py DIRECTORY FROM TO [adam|sgd]

Resumes from the newest checkpoint in DIRECTORY, which must be of step FROM (-1: there is none),
trains up to step TO, saving every second step, and prints the parameters' and the states' bytes.
"""

import hashlib
import sys

import numpy as np

import te_nn as nn
import te_optim
import te_tensor as te
from te_io import Checkpointer

OPTIMIZERS = {
    "adam": lambda p: te_optim.AdamW(1e-2, amsgrad=True, parameters=p),
    "sgd": lambda p: te_optim.SGD(1e-2, momentum=0.9, parameters=p),
}


class Model(nn.Module):
    """A block with dropout, so that random numbers matter."""

    def __init__(self):
        self.block = nn.TransformerBlock(8, 16, 2, "gaussian", dropout=0.2)
        self.head = nn.Linear(8, 1)

    def forward(self, x, distance):
        return self.head(self.block(x, distance=distance))


def main(directory, begin, end, kind="adam"):
    te.manual_seed(3)
    model = Model()
    optimizer = OPTIMIZERS[kind]([*model.parameters()])
    schedule = te_optim.OneCycleLR(optimizer, 0.05, 20)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpointer = Checkpointer(directory, keep=2, **objects)
    if begin < 0:
        assert checkpointer.restore() is None
    else:
        te.manual_seed(99)  # nothing may depend on what was before
        assert checkpointer.restore() == begin
    distance = nn.distances.sequence(5)
    for step in range(max(begin, 0) + 1, end + 1):
        x = te.randn(4, 5, 8)
        loss = (model(x, distance) - x.sum(axis=-1, keepdims=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 2 == 0:
            checkpointer.save(step)
    digest = hashlib.sha256()
    state = optimizer.state_dict()
    for tensor in [*model.state_dict().values(), *(v for s in state["state"] for v in s.values())]:
        digest.update(np.asarray(tensor).tobytes())
    print(digest.hexdigest(), optimizer.lr, schedule.count, te.get_rng_state())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
