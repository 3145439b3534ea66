"""What a scheduler of diffusers says of its network, as a kind of model with options.

Only what concerns the model is read: the chain or path, what the network predicts, how it is told
the time. How the scheduler would sample (spacing, clipping, shift) is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmsolvers import checks as check
from cmsolvers.training.model_wrappers import chain_of

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
"""Kinds of models on a chain, by diffusers' `prediction_type`."""

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""Schedules of `DDPM`, by diffusers' `beta_schedule`."""


@dataclass(frozen=True)
class Described:
    """A kind of model: the part of a `Spec` that a scheduler knows.

    Attributes:
        kind: a name of `wrappers.WRAPPERS`.
        time_scale: factor of c_noise.
        wrapper: options of the kind.
        numbers: sigma_min, sigma_max and sigma_data.
    """

    kind: str
    time_scale: float = 1.0
    wrapper: dict[str, object] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def described(config: Mapping[str, Any]) -> Described:
    """The kind of model that a `scheduler_config.json` is for.

    Flow matching: the network is told `num_train_timesteps` t. EDM: 0.25 ln sigma, and with
    "v_prediction" its output has the sign of TrigFlow's. Consistency models: 250 ln sigma. All
    others are chains of noisings.

    Raises:
        ValueError: a scheduler of another kind, or a prediction type that is not known.
    """
    name = str(config.get("_class_name"))
    if "FlowMatch" in name:
        steps = check.count("num_train_timesteps", config.get("num_train_timesteps", 1000))
        return Described("flow", float(steps))
    if name.startswith("EDM"):
        prediction = config.get("prediction_type", "epsilon")
        check.choice("prediction_type", prediction, ("epsilon", "v_prediction"))
        if prediction == "epsilon":
            return Described("edm", 1.0, {}, _levels(config))
        return Described("trigflow_velocity", 1.0, {"c_noise": "edm"}, _levels(config))
    if name == "CMStochasticIterativeScheduler":
        return Described("consistency", 1.0, {"c_noise": "published"}, _levels(config))
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"scheduler must be of a chain of noisings (DDPM, DDIM, ...), EDM, flow matching or "
            f"consistency models; got {name}"
        )
    prediction = str(config.get("prediction_type", "epsilon"))
    check.choice("prediction_type", prediction, list(PREDICTIONS))
    process = chain(config)
    levels = [level for level in chain_of(process).sigmas.tolist() if level < float("inf")]
    numbers = {"sigma_min": levels[0], "sigma_max": levels[-1]}
    return Described(PREDICTIONS[prediction], 1.0, {"process": process}, numbers)


def chain(config: Mapping[str, Any]) -> dict[str, object]:
    """The chain of a scheduler as plain data for `wrappers.chain_of`.

    Raises:
        ValueError: a schedule of betas that is not known.
    """
    steps = check.count("num_train_timesteps", config.get("num_train_timesteps", 1000))
    found: dict[str, object] = {"name": "ddpm", "num_steps": steps}
    schedule, betas = config.get("beta_schedule", "linear"), config.get("trained_betas")
    if betas is not None:
        found["schedule"] = [float(beta) for beta in betas]
    elif schedule in SCHEDULES:
        found["schedule"] = SCHEDULES[schedule]
        if schedule != "squaredcos_cap_v2":
            found["beta_start"] = float(config.get("beta_start", 1e-4))
            found["beta_end"] = float(config.get("beta_end", 0.02))
    else:
        raise ValueError(
            f"beta_schedule must be {', '.join(SCHEDULES)} or given as trained_betas; "
            f"got {schedule!r}"
        )
    if config.get("rescale_betas_zero_snr", False):
        found["zero_terminal_snr"] = True
    return found


def _levels(config: Mapping[str, Any]) -> dict[str, float]:
    names = ("sigma_min", "sigma_max", "sigma_data")
    return {name: float(config[name]) for name in names if name in config}
