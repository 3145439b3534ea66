"""The sections of a configuration: every key, its default, its range and its words.

The template, the checks of a file and docs/training.md's list of keys are made from this.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS
from cmsolvers.runs.config.keys import Section, Table, key
from cmsolvers.training.training_settings import PRECISIONS

AUTO = "auto"
"""What is chosen where the run begins."""

MOST = 10**12
"""Largest number of anything that is counted."""


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
class Data(Section):
    """What is trained on."""

    section = "data"
    about = "What is trained on. Keys that a kind of data does not have must be left out."

    source: str = key(
        "digits",
        "'digits'; 'toy:NAME' (two_moons, swiss_roll, eight_gaussians, checkerboard, spirals); a "
        "folder of pictures, classes by subfolder; an .npy or .npz file; a folder saved by the "
        "datasets library.",
        changes=True,
    )
    size: int | tuple[int, int] | None = key(
        None,
        "Pictures: rows and columns of a sample, one number or [rows, columns].",
        least=1,
        most=65536,
        example=32,
    )
    crop: str | None = key(
        None,
        "Pictures: what of them is cut out. Unset: center.",
        choices=("center", "random"),
        example="random",
    )
    flip: bool | None = key(
        None, "Mirror left to right with probability 1/2. Unset: false.", example=True
    )
    channels: int | None = key(
        None, "Pictures: 3, 1 or 4 channels. Unset: 3.", least=1, most=4, example=3
    )
    grey: bool | None = key(
        None, "Pictures with channels = 1: turn colours into grey. Unset: false.", example=True
    )
    scale: str | None = key(
        None,
        "What pixels become: 'minus_one_to_one', or 'data' (mean 0, deviation 0.5). Unset: the "
        "first for pictures, the second for arrays.",
        choices=("minus_one_to_one", "data"),
        example="data",
    )
    labels: bool | str | None = key(
        None,
        "A folder of pictures: whether subfolders are classes (unset: where there are two or "
        "more). An .npy file: the .npy file with its labels.",
        example=True,
    )
    skip_bad: bool | None = key(
        None,
        "Pictures: look through all of them first and leave out damaged ones. Unset: false.",
        example=True,
    )
    split: str | None = key(
        None, "A folder of datasets: which split. Unset: the only one, or train.", example="train"
    )
    image: str | None = key(
        None, "A folder of datasets: the column of images. Unset: the only one.", example="image"
    )
    label: str | None = key(
        None, "A folder of datasets: the column of labels. Unset: the only one.", example="label"
    )
    part: str | None = key(
        None, "Digits: 'train' or 'held'. Unset: train.", choices=("train", "held"), example="train"
    )
    n: int | None = key(
        None, "Toys: how many points. Unset: 100,000.", least=1, most=MOST, example=100_000
    )
    in_memory: int | None = key(
        None,
        "Arrays: an .npy file with more bytes is read at each step. Unset: 268,435,456.",
        least=0,
        changes=True,
        example=2**28,
    )
    workers: int = key(
        0,
        "Processes that read ahead, per process of the training; 0 for data in memory.",
        least=0,
        most=1024,
        changes=True,
    )


@dataclass(frozen=True)
class ModelKeys(Section):
    """What is trained."""

    section = "model"
    about = "What is trained: what stands around the network, and what it is told."

    kind: str = key(
        AUTO,
        "'auto' is what the loss trains as a rule: edm, flow, consistency, trigflow, "
        "trigflow_map, average_velocity, velocity_heads, trajectory, latent_consistency, eps, v, "
        "x0, trigflow_velocity.",
    )
    class_conditional: bool = key(False, "Whether the network is told the labels of the data.")
    null_label: bool = key(
        True, "One label more that says nothing of a sample, for guidance and label_dropout."
    )
    sigma_min: float | None = key(
        None, "Smallest noise level. Unset: that of init, else 0.002.", above=0, example=0.002
    )
    sigma_max: float | None = key(
        None,
        "Largest noise level, where sampling starts. Unset: that of init, else 20 (40 deviations "
        "of the data); 80 is usual for images of 32 x 32 and more.",
        above=0,
        example=80.0,
    )
    sigma_data: float | None = key(
        None, "Deviation of the data. Unset: that of init, else 0.5.", above=0, example=0.5
    )
    inputs: tuple[str, ...] = key(
        (), "Names of further numbers that the network reads; losses add those that they hand on."
    )
    dtype: str | None = key(
        None,
        "Of the network's input. Unset: float32.",
        choices=("float32", "float16", "bfloat16", "float64"),
        example="float32",
    )
    wrapper: Table = key(
        {}, 'Further options of the kind, such as {second = "length"} or {process = "ddpm"}.'
    )


@dataclass(frozen=True)
class Network(Section):
    """What learns."""

    section = "network"
    about = "The network."

    name: str = key(
        AUTO,
        "'mlp', 'unet', 'diffusers:UNet2DModel', 'diffusers:UNet2DConditionModel', "
        "'diffusers:DiTTransformer2DModel' or 'import:package.module:Class'. 'auto' is that of "
        "init; else the mlp for points and images below 16 x 16, the unet for others.",
    )
    options: Table = key({}, "Options of the network, such as {width = 256, blocks = 4}.")
    gradient_checkpointing: bool = key(
        False,
        "Compute blocks again in the backward pass instead of keeping what they made: less memory, "
        "more time.",
        changes=True,
    )


@dataclass(frozen=True)
class Init(Section):
    """Weights to begin with."""

    section = "init"
    about = "Weights to begin with."

    path: str | None = key(
        None,
        "A run, a checkpoint or a folder of diffusers; 'teacher' is the teacher. Unset: fresh "
        "weights.",
        changes=True,
        example="teacher",
    )
    average: str | None = key(
        None, "Which average of it. Unset: ema, or the network where there is none.", example="ema"
    )
    kind: str | None = key(
        None, "A model of diffusers without a scheduler: what it is (see model.kind).", example="v"
    )
    trusted: tuple[str, ...] = key(
        (), "Networks 'import:package.module:Class' that it may have: others are not run."
    )


@dataclass(frozen=True)
class Teacher(Section):
    """What is distilled."""

    section = "teacher"
    about = "The model that a loss distils."

    path: str | None = key(
        None,
        "A run, a checkpoint or a folder of diffusers, for losses that take a teacher.",
        changes=True,
        example="digits-score",
    )
    average: str | None = key(
        None, "Which average of it. Unset: ema, or the network where there is none.", example="ema"
    )
    kind: str | None = key(
        None, "A model of diffusers without a scheduler: what it is (see model.kind).", example="v"
    )
    trusted: tuple[str, ...] = key(
        (), "Networks 'import:package.module:Class' that it may have: others are not run."
    )
    guidance: float = key(1.0, "Scale of classifier-free guidance in the teacher; 1 is none.")


@dataclass(frozen=True)
class LossKeys(Section):
    """What is minimised."""

    section = "loss"
    about = "The loss, a recipe of `cmsolvers losses`."

    name: str = key(
        "dsm",
        "Name of the recipe, or 'import:package.module:name' of one that `cmsolvers.losses.loss` "
        "has made.",
    )
    preset: str | None = key(
        None, "Published settings of alpha_flow, meanflow and soflow.", example="cifar"
    )
    times: str | Table | None = key(
        None,
        "Distribution of noise levels: a name, or a table with a name and options; without a name "
        "the recipe's own with these options. Unset: the recipe's own.",
        example={"name": "log_normal", "mean": -1.2, "std": 1.2},
    )
    target: str | Table = key(
        AUTO,
        "What stands on the other side: 'self', 'ema' or {name = \"ema\", decay = 0.95}. 'auto' is "
        "what the recipe has as a rule.",
    )
    label_dropout: float = key(
        0.0,
        "Probability with which a label is replaced by the one that says nothing.",
        least=0,
        most=1,
    )
    bad_rows: str = key(
        "keep",
        "Samples whose loss is not finite: 'keep' (the step is skipped), 'zero' (left out) or "
        "'raise' (the run ends).",
        choices=tuple(sorted(BAD_ROWS)),
        changes=True,
    )
    options: Table = key(
        {}, 'Options of the recipe, such as {distance = {name = "pseudo_huber", c = 0.03}}.'
    )


@dataclass(frozen=True)
class OptimizerKeys(Section):
    """What moves the weights."""

    section = "optimizer"
    about = "What moves the weights."

    name: str = key(
        "adamw",
        "adadelta, adagrad, adam, adamax, adamw, nadam, radam, rmsprop, sgd or "
        "'import:package.module:Class'.",
    )
    lr: float = key(1e-3, "Peak learning rate.", above=0, changes=True)
    options: Table = key(
        {}, "Options of its class, such as {betas = [0.9, 0.99], weight_decay = 0.01}."
    )
    clip: float = key(0.0, "Largest norm of the gradient; 0 is no limit.", least=0, changes=True)


@dataclass(frozen=True)
class ScheduleKeys(Section):
    """How the learning rate goes."""

    section = "schedule"
    about = "How the learning rate goes, as a share of its peak."

    name: str = key(
        "cosine",
        "cosine, linear, constant, inverse_sqrt or 'import:package.module:function'.",
        changes=True,
    )
    warmup: float = key(
        0.05,
        "In what share of the steps the rate rises; from 1 on their number.",
        least=0,
        changes=True,
    )
    options: Table = key(
        {}, "Further ones: last (of cosine and linear), reference (of inverse_sqrt).", changes=True
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


SECTIONS: dict[str, type[Section]] = {
    one.section: one
    for one in (
        Run,
        Data,
        ModelKeys,
        Network,
        Init,
        Teacher,
        LossKeys,
        OptimizerKeys,
        ScheduleKeys,
        Train,
        Checkpoints,
        Logging,
    )
}
"""By name, in the order of the template."""
