"""What is trained, and from what it begins and learns."""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.runs.config.config_keys import AUTO, Section, Table, key


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
