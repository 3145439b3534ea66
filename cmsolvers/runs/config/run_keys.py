"""Where a run lies, how long it goes, what it keeps and tells."""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.runs.config.config_keys import AUTO, MOST, Section, Table, key
from cmsolvers.training.training_settings import PRECISIONS


@dataclass(frozen=True)
class Run(Section):
    """Where the run lies and runs."""

    section = "run"
    about = "Where the run lies, and on what it runs."

    out: str = key(
        "train-output",
        "Folder of the run: checkpoints, this configuration, losses.",
        changes=True,
    )
    seed: int = key(
        0, "Decides the weights at the start, the order of samples, noise and dropout.", least=0
    )
    device: str = key(
        AUTO,
        "'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'. With torchrun each process "
        "has its own GPU.",
        changes=True,
    )
    resume: str = key(
        AUTO,
        "Where the folder holds a run: 'auto' goes on with it, 'never' refuses. 'must' goes on and "
        "refuses to begin a run.",
        choices=(AUTO, "never", "must"),
        changes=True,
    )


@dataclass(frozen=True)
class Train(Section):
    """How long, and in which portions."""

    section = "train"
    about = "How long, and in which portions."

    steps: int = key(
        2000,
        "Optimiser steps. A finished run goes on when it is raised.",
        least=1,
        most=MOST,
        changes=True,
    )
    batch_size: int = key(128, "Samples per step, of all processes together.", least=1, most=MOST)
    accumulate: int = key(
        1,
        "Micro-batches that each process makes of its share, for less memory.",
        least=1,
        most=MOST,
        changes=True,
    )
    precision: str = key(
        "no",
        "Autocast around the loss. Weights, optimiser and averages stay float32.",
        choices=PRECISIONS,
        changes=True,
    )
    sharding: str = key(
        "none",
        "With torchrun: 'none' is a copy per process (DDP), 'fsdp2' shares weights, averages and "
        "optimiser out.",
        choices=("none", "fsdp2"),
        changes=True,
    )
    max_bad_steps: int = key(
        10,
        "So many steps in a row without a finite loss and gradient end the run.",
        least=1,
        most=MOST,
        changes=True,
    )


@dataclass(frozen=True)
class Checkpoints(Section):
    """What is kept on the way."""

    section = "checkpoints"
    about = "What is kept on the way. One is always written at the end and at a signal."

    every: int = key(
        500, "Steps between checkpoints; 0: only at the end.", least=0, most=MOST, changes=True
    )
    snapshots: int = key(
        0,
        "Steps between snapshots of averages with sigma_rel, of which averages of any width can be "
        "made afterwards (training.reconstruct_average); 0: none.",
        least=0,
        most=MOST,
        changes=True,
    )
    keep: int = key(3, "How many of the newest valid ones stay.", least=1, most=MOST, changes=True)


@dataclass(frozen=True)
class Logging(Section):
    """What is told on the way."""

    section = "logging"
    about = "What is told on the way."

    progress: bool = key(True, "A progress bar.", changes=True)
    csv: bool = key(
        True, "Loss, learning rate, norm of the gradient and seconds in OUT/log.csv.", changes=True
    )
    every: int = key(
        10, "Steps per row of the log; the loss is their mean.", least=1, most=MOST, changes=True
    )
    levels_every: int = key(
        500,
        "Steps over which OUT/levels.csv has the mean loss by noise level; 0: none.",
        least=0,
        most=MOST,
        changes=True,
    )
    picture_every: int = key(
        500,
        "Steps between drawings of OUT/losses.png, which the log is needed for; 0: none.",
        least=0,
        most=MOST,
        changes=True,
    )
    tensorboard: bool = key(False, "The same for TensorBoard, in OUT/tensorboard.", changes=True)


@dataclass(frozen=True)
class Sampling(Section):
    """What is drawn on the way."""

    section = "sampling"
    about = "Samples on the way, in OUT/samples, always from the same noise."

    every: int = key(0, "Steps between pictures; 0: none.", least=0, most=MOST, changes=True)
    count: int = key(
        64,
        "Samples in a picture. With labels each row of 8 has a class.",
        least=1,
        most=65536,
        changes=True,
    )
    average: str | None = key(
        None,
        "Which average is sampled, or 'network'. Unset: the first.",
        changes=True,
        example="ema",
    )
    sampler: str | None = key(
        None,
        "A name of `cmsolvers solvers`. Unset: heun for denoisers, one jump for functions that "
        "jump to clean data.",
        changes=True,
        example="dpmpp_2m",
    )
    steps: int | None = key(
        None,
        "Of the sampler. Unset: 18, or 1 for functions that jump.",
        least=1,
        most=10_000,
        changes=True,
        example=18,
    )
    levels: tuple[float, ...] | None = key(
        None,
        "The levels themselves, in place of steps.",
        above=0,
        changes=True,
        example=(20.0, 0.8),
    )
    options: Table = key({}, "Options of the sampler, such as {s_churn = 10.0}.", changes=True)
