"""Learn the energies of molecules from their atoms and the distances between them.

    python train_molecules.py                     # QM9, gaussian distance bias
    python train_molecules.py --bias all          # compare the functions of the bias
    python train_molecules.py --data g2           # a small set, seconds
    python train_molecules.py --resume            # go on after Ctrl-C, to the same bits

The target is what is left of the energy when the best sum over the atoms' elements (the
composition baseline) is taken away: the part that depends on how the atoms stand together.
Shows a progress bar, the mean absolute error beside the baseline, the learned slopes of the
distance bias, and a plot; saves the model, loads it again and compares.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any, NoReturn

try:
    import numpy as np
    from matplotlib import pyplot
    from molecules import MoleculeModel, Molecules, fail, read_g2, read_qm9
    from numpy.typing import NDArray
    from resuming import History, Interrupt
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.table import Table

    import te_io
    import te_nn as nn
    import te_tensor as te
    from te_optim import AdamW, OneCycleLR
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    raise SystemExit(f"error: this needs {name}: python -m pip install {name}") from None

BIASES = ("gaussian", "logarithmic", "none")
#: Arguments that a training goes on with as it began.
HELD = ("data", "train", "test", "epochs", "batch", "lr", "seed")
console = Console()


@dataclass
class Task:
    """Molecules to learn from and to be tested on, and what takes energies to targets."""

    train: Molecules
    test: Molecules
    baseline: NDArray[np.float64]  # eV an atom, by element
    scale: float  # eV: the spread of what the baseline leaves over

    @classmethod
    def split(cls, molecules: Molecules, test: int, rng: np.random.Generator) -> Task:
        """Part the molecules at random, and fit the baseline to those to learn from."""
        order = rng.permutation(len(molecules))
        train = molecules[order[test:]]
        baseline = np.linalg.lstsq(train.counts, train.energy, rcond=None)[0]
        spread = float((train.energy - train.counts @ baseline).std())
        if spread < 1e-6:
            fail(f"{len(train)} molecules leave nothing to learn beside their composition: more")
        return cls(train, molecules[order[:test]], baseline, spread)

    def rest(self, molecules: Molecules) -> NDArray[np.float64]:
        """What the baseline leaves of the energies, in eV."""
        rest: NDArray[np.float64] = molecules.energy - molecules.counts @ self.baseline
        return rest

    def mae(self, predicted: NDArray[np.float64] | float) -> float:
        """The mean absolute error on the test set, in eV."""
        return float(np.abs(predicted - self.rest(self.test)).mean())


@dataclass
class Run:
    """What came of a training."""

    bias: str
    model: MoleculeModel
    slopes_before: NDArray[np.float32]
    losses: list[float] = field(default_factory=list)
    predicted: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    seconds: float = 0.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=("qm9", "g2"), default="qm9")
    parser.add_argument("--bias", choices=(*BIASES, "all"), default="gaussian")
    parser.add_argument("--train", type=int, default=5000, help="molecules to learn from (QM9)")
    parser.add_argument("--test", type=int, default=1000, help="molecules to test on (QM9)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="the peak of the one-cycle schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads to work with (default: all CPUs)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--resume", action="store_true", help="go on where Ctrl-C stopped")
    parser.add_argument("--stop-at", type=int, help="stop after so many steps, as Ctrl-C does")
    arguments = parser.parse_args()
    for name in ("train", "test", "epochs", "batch", "threads", "stop_at"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: expected at least 1")
    if not 0 < arguments.lr < float("inf"):
        parser.error(f"--lr is {arguments.lr}: expected a number above 0")
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}: expected at least 0")
    return arguments


def predict(model: MoleculeModel, molecules: Molecules, scale: float) -> NDArray[np.float64]:
    """Predicted energies beyond the baseline, in eV."""
    model.eval()
    with te.no_grad():
        parts = [
            model(*molecules.batch(slice(start, start + 100))).numpy()
            for start in range(0, len(molecules), 100)
        ]
    return np.concatenate(parts).astype(np.float64) * scale


def train(task: Task, bias: str, arguments: argparse.Namespace, interrupt: Interrupt) -> Run:
    te.manual_seed(arguments.seed)
    model = MoleculeModel(task.train.counts.shape[1], bias)
    run = Run(bias, model, model.slopes())
    optimizer = AdamW(lr=arguments.lr, parameters=model.parameters())
    count = len(task.train)
    steps = arguments.epochs * -(-count // arguments.batch)
    schedule = OneCycleLR(optimizer, max_lr=arguments.lr, total_steps=steps)
    history = History({name: getattr(arguments, name) for name in HELD})
    checkpoints = te_io.Checkpointer(
        progress_of(bias, arguments),
        keep=1,
        history=history,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    )
    if arguments.resume:
        try:
            checkpoints.restore()
        except te_io.FormatError as error:
            fail(str(error))
    loss_function = nn.MSELoss()
    targets = (task.rest(task.train) / task.scale).astype(np.float32)
    begin = perf_counter() - history.seconds
    with progress_bar() as bar:
        row = bar.add_task(bias, total=steps, completed=len(history.losses), loss="")
        for step, chosen in enumerate(batches(count, arguments)):
            if step < len(history.losses):
                continue  # done before the interrupt
            if interrupt.pressed or step == arguments.stop_at:
                break
            loss = loss_function(model(*task.train.batch(chosen)), te.Tensor(targets[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            history.losses.append(loss.item())
            bar.update(row, advance=1, loss=f"loss {np.mean(history.losses[-50:]):.4f}")
    history.seconds = perf_counter() - begin
    saved = checkpoints.save(len(history.losses))
    if len(history.losses) < steps:
        stop(saved, len(history.losses), steps)
    run.losses, run.seconds = history.losses, history.seconds
    run.predicted = predict(model, task.test, task.scale)
    return run


def progress_of(bias: str, arguments: argparse.Namespace) -> Path:
    """Where a training is kept until it is reported."""
    return Path(arguments.output, f"molecules-{bias}.progress")


def batches(count: int, arguments: argparse.Namespace) -> Iterator[NDArray[np.int64]]:
    """Which molecules each step learns from, drawn anew for every epoch."""
    for epoch in range(arguments.epochs):
        order = np.random.default_rng((arguments.seed, epoch)).permutation(count)
        for start in range(0, count, arguments.batch):
            yield order[start : start + arguments.batch]


def stop(path: Path, done: int, steps: int) -> NoReturn:
    """End the program and say how to go on."""
    say_how_to_go_on(path, done, steps, ["python"])
    sys.exit(130)


def say_how_to_go_on(path: Path, done: int, steps: int, launcher: list[str]) -> None:
    given = [word for word in sys.argv if word != "--resume"]
    if "--stop-at" in given:
        place = given.index("--stop-at")
        del given[place : place + 2]
    command = shlex.join([*launcher, *given, "--resume"])
    console.print(f"Stopped after step {done} of {steps}, and saved {path}.", soft_wrap=True)
    console.print(f"Go on with: {command}", soft_wrap=True, highlight=False)


def progress_bar() -> Bar:
    """A bar with the loss and the time left."""
    return Bar(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )


def error_table(task: Task, runs: list[Run]) -> Table:
    table = Table(title=f"Mean absolute error on {len(task.test)} new molecules")
    for heading in ("model", "error (eV)", "training (s)"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    table.add_row("composition alone", f"{task.mae(0.0):.3f}", "")
    for run in runs:
        table.add_row(
            f"transformer, bias {run.bias}", f"{task.mae(run.predicted):.3f}", f"{run.seconds:.0f}"
        )
    return table


def slope_table(run: Run) -> Table:
    table = Table(title=f"Slopes of the {run.bias} distance bias, a head a column")
    after = run.model.slopes()
    for heading in ("", *map(str, range(after.shape[1]))):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("before", *(f"{slope:.3f}" for slope in run.slopes_before[0]))
    for block, row in enumerate(after):
        table.add_row(f"block {block}", *(f"{slope:.3f}" for slope in row))
    return table


def plot(task: Task, run: Run, path: Path) -> None:
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    window = max(1, len(run.losses) // 100)
    smooth = np.convolve(run.losses, np.ones(window) / window, "valid")
    left.semilogy(run.losses, alpha=0.3, label="each batch")
    left.semilogy(np.arange(len(smooth)) + window - 1, smooth, label=f"mean of {window}")
    left.set(title="Loss", xlabel="step", ylabel="mean squared error (standardized)")
    left.legend()
    after = run.model.slopes()
    for block, (first, last) in enumerate(zip(run.slopes_before, after, strict=True)):
        heads = np.arange(len(last))
        middle.plot(heads, first, "o", color="0.7", label="before" if not block else None)
        middle.plot(heads, last, "o-", label=f"after, block {block}")
    middle.set(title=f"Slopes of the bias: {run.bias}", xlabel="head", ylabel="slope")
    if len(after):
        middle.legend()
    else:
        middle.text(0.5, 0.5, "no distance bias", ha="center", transform=middle.transAxes)
    truth = task.rest(task.test)
    ends = [truth.min(), truth.max()]
    right.plot(ends, ends, color="0.7")
    right.plot(truth, run.predicted, ".", markersize=3)
    right.set(
        title=f"Test molecules: mean absolute error {task.mae(run.predicted):.3f} eV",
        xlabel="energy beyond composition (eV)",
        ylabel="predicted (eV)",
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def save_and_reload(task: Task, run: Run, path: Path) -> None:
    """Save the model, load it into a fresh one, and hold that predictions are equal to the bit."""
    metadata = {"bias": run.bias, "scale_ev": repr(task.scale)}
    te_io.save_safetensors(run.model, path, metadata=metadata)
    fresh = MoleculeModel(task.train.counts.shape[1], run.bias)
    te_io.load_into_module(fresh, path)
    if not np.array_equal(predict(fresh, task.test, task.scale), run.predicted):
        fail(f"{path} loaded again predicts something else")
    console.print(f"Saved {path}; loaded into a fresh model, its predictions are equal to the bit.")


def report(task: Task, run: Run, folder: Path) -> None:
    if len(run.slopes_before):
        console.print(slope_table(run))
    picture = folder / f"molecules-{run.bias}.png"
    plot(task, run, picture)
    console.print(f"Plotted {picture}")
    save_and_reload(task, run, folder / f"molecules-{run.bias}.safetensors")


def read_task(arguments: argparse.Namespace) -> Task:
    """Read the molecules, part them, and say how many there are and what computes."""
    rng = np.random.default_rng(arguments.seed)
    with console.status("Reading molecules"):
        if arguments.data == "qm9":
            molecules, test = read_qm9(arguments.train + arguments.test, rng), arguments.test
        else:
            molecules = read_g2()
            test = len(molecules) // 5
    task = Task.split(molecules, test, rng)
    info: dict[str, Any] = te.blas_info()
    console.print(
        f"{len(task.train)} molecules to learn from, {test} to test on; {info['library']} "
        f"{info['version']} ({info['kernel']}), {info['threads']} threads"
    )
    return task


def main() -> None:
    arguments = parse_arguments()
    biases = BIASES if arguments.bias == "all" else (arguments.bias,)
    if arguments.resume and not any(progress_of(bias, arguments).exists() for bias in biases):
        fail(f"--resume: there is nothing to go on with in {arguments.output}")
    interrupt = Interrupt()
    interrupt.listen()
    if arguments.threads:
        te.set_num_threads(arguments.threads)
    task = read_task(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = [train(task, bias, arguments, interrupt) for bias in biases]
    console.print(error_table(task, runs))
    for run in runs:
        report(task, run, arguments.output)
        rmtree(progress_of(run.bias, arguments))


if __name__ == "__main__":
    main()
