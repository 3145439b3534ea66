"""What is minimised, and how."""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS
from cmsolvers.runs.config.config_keys import AUTO, Section, Table, key


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
