"""Learn the energies of molecules on several ranks, which share every batch.

    mpiexec -n 2 python -m mpi4py train_molecules_mpi.py              # QM9
    mpiexec -n 2 python -m mpi4py train_molecules_mpi.py --data g2    # a small set, seconds
    mpiexec -n 2 python -m mpi4py train_molecules_mpi.py --resume     # from the last checkpoint

The same training as train_molecules.py, with its options and its parts: the batches are the same,
each rank takes its share of them, and gradients are means over all. The losses are those of one
process to rounding. Rank 0 alone prints, plots and saves; there is a checkpoint after every epoch,
and one when Ctrl-C ends the job.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shutil import rmtree
from time import perf_counter, sleep
from typing import NoReturn

try:
    import numpy as np
    from molecules import MoleculeModel
    from resuming import History, Interrupt
    from train_molecules import (
        BIASES,
        HELD,
        Run,
        Task,
        console,
        error_table,
        parse_arguments,
        predict,
        progress_bar,
        read_task,
        report,
        say_how_to_go_on,
    )

    import te_io
    import te_nn as nn
    import te_tensor as te
    from te_optim import AdamW, OneCycleLR
    from te_optim.distributed import (
        Communicator,
        DistributedCheckpointer,
        DistributedOptimizer,
        DistributedSampler,
        broadcast_parameters,
        init,
    )
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None


def train(
    task: Task, bias: str, arguments: argparse.Namespace, comm: Communicator, interrupt: Interrupt
) -> Run:
    te.manual_seed(arguments.seed)
    model = MoleculeModel(task.train.counts.shape[1], bias)
    broadcast_parameters(model)  # the seed has made them equal already; files would not
    run = Run(bias, model, model.slopes())
    optimizer = DistributedOptimizer(
        AdamW(lr=arguments.lr, parameters=model.parameters()),
        named_parameters=model.named_parameters(),
    )
    sampler = DistributedSampler(len(task.train), arguments.seed, "weighted", batch=arguments.batch)
    steps = arguments.epochs * len(sampler)
    schedule = OneCycleLR(optimizer, max_lr=arguments.lr, total_steps=steps)
    history = History({name: getattr(arguments, name) for name in HELD})
    files = te_io.Checkpointer(
        progress_of(bias, arguments),
        keep=2,
        history=history,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    )
    checkpoints = DistributedCheckpointer(files)
    if arguments.resume:
        try:
            checkpoints.restore()
        except te_io.FormatError as error:
            leave(comm, 2, f"error: {error}")
    loss_function = nn.MSELoss()
    targets = (task.rest(task.train) / task.scale).astype(np.float32)
    shares = (share for epoch in range(arguments.epochs) for share in sampler.batches(epoch))
    begin = perf_counter() - history.seconds
    with progress_bar() as bar:
        row = bar.add_task(bias, total=steps, completed=len(history.losses), loss="")
        for step, share in enumerate(shares, start=1):
            if step <= len(history.losses):
                continue  # done before the checkpoint
            optimizer.zero_grad()
            optimizer.weight = len(share)
            total = 0.0
            if len(share):  # the last batch may be smaller than the number of ranks
                loss = loss_function(model(*task.train.batch(share)), te.Tensor(targets[share]))
                loss.backward()
                total = loss.item() * len(share)
            optimizer.step()
            schedule.step()
            total, count, asked = comm.allreduce([total, len(share), interrupt.pressed])
            history.losses.append(float(total / count))
            history.seconds = perf_counter() - begin
            bar.update(row, advance=1, loss=f"loss {np.mean(history.losses[-50:]):.4f}")
            ending = bool(asked) or step == arguments.stop_at
            if ending or step % len(sampler) == 0:
                checkpoints.save(step)
            if ending:
                break
    if len(history.losses) < steps:
        launcher = ["mpiexec", "-n", str(comm.size), "python", "-m", "mpi4py"]
        say_how_to_go_on(files.directory, len(history.losses), steps, launcher)
        leave(comm, 130)
    run.losses, run.seconds = history.losses, history.seconds
    if comm.rank == 0:
        run.predicted = predict(model, task.test, task.scale)
    return run


def progress_of(bias: str, arguments: argparse.Namespace) -> Path:
    """Where the checkpoints of a training are kept until it is reported."""
    return Path(arguments.output, f"molecules-{bias}.ranks")


def leave(comm: Communicator, code: int, message: str = "") -> NoReturn:
    """End all ranks, when rank 0 has said why."""
    if comm.rank == 0 and message:
        print(message, file=sys.stderr, flush=True)
    sleep(0.5)  # the launcher may drop what it has not passed on when a rank ends with a code
    comm.barrier()
    sys.exit(code)


def main() -> None:
    arguments = parse_arguments()
    comm = init()
    console.quiet = comm.rank != 0
    interrupt = Interrupt()
    interrupt.listen()
    # Ranks share the machine's processors; a thread more for each makes all of them slower.
    te.set_num_threads(arguments.threads or (1 if comm.size > 1 else te.get_num_threads()))
    biases = BIASES if arguments.bias == "all" else (arguments.bias,)
    if arguments.resume and not any(progress_of(bias, arguments).exists() for bias in biases):
        leave(comm, 2, f"error: --resume: there is nothing to go on with in {arguments.output}")
    task = read_task(arguments)
    console.print(f"{comm.size} ranks")
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = [train(task, bias, arguments, comm, interrupt) for bias in biases]
    if comm.rank == 0:
        console.print(error_table(task, runs))
        for run in runs:
            report(task, run, arguments.output)
            rmtree(progress_of(run.bias, arguments))


if __name__ == "__main__":
    main()
