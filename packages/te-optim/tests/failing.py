"""What a rank may do wrong, a function each: `python -m mpi4py failing.py NAME`.

Rank 0 does nothing wrong, and is at the mercy of the others.
"""

import os
import signal
import sys
import time

import te_tensor as te
from te_optim import SGD
from te_optim.distributed import DistributedOptimizer, DistributedSampler, init

comm = init(timeout=30)


def build(size=4, value=1.0):
    w = te.full(size, value, requires_grad=True)
    return w, DistributedOptimizer(SGD(lr=0.1, parameters=[w]), comm)


def step(w, optimizer, factor=1.0):
    optimizer.zero_grad()
    (w * factor).sum().backward()
    optimizer.step(error_if_nonfinite=True)


def train(on_rank_1=lambda number: None, steps=5, timeout=30):
    comm.timeout = timeout
    w, optimizer = build()
    for number in range(steps):
        if comm.rank == 1:
            on_rank_1(number)
        step(w, optimizer)


def exception():
    def wrong(number):
        if number == 2:
            raise ArithmeticError("one rank is wrong")

    train(wrong)


def exception_late():
    if comm.rank == 1:
        raise ArithmeticError("one rank is wrong")
    time.sleep(600)  # not in a call of MPI at all


def interrupt():
    def wrong(number):
        raise KeyboardInterrupt

    train(wrong)


def killed():
    def wrong(number):
        os.kill(os.getpid(), signal.SIGKILL)

    train(wrong)


def early_exit():
    def wrong(number):
        sys.exit(0)

    train(wrong, timeout=1)


def early_exit_with_a_code():
    def wrong(number):
        sys.exit(3)

    train(wrong)


def hang():
    def wrong(number):
        time.sleep(600)

    train(wrong, timeout=1)


def a_step_less():
    train(steps=4 if comm.rank else 5, timeout=1)


def a_step_more():
    train(steps=6 if comm.rank else 5, timeout=1)


def uneven_batches():
    comm.timeout = 1
    w, optimizer = build()
    sampler = DistributedSampler(9 if comm.rank else 12, batch=2)
    for share in sampler.batches(0):
        step(w, optimizer, float(share[0]))
        comm.allreduce(share[0])


def different_shapes():
    build(size=5 if comm.rank else 4)


def different_values():
    build(value=float(comm.rank))


def different_calls():
    if comm.rank:
        comm.allreduce(1.0)
    else:
        comm.barrier()


def different_arrays():
    comm.allreduce(te.zeros(3 if comm.rank else 4))


def not_finite():
    w, optimizer = build()
    step(w, optimizer)
    step(w, optimizer, float("nan") if comm.rank else 1.0)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("came to the end")
