"""What a run trains and begins with: the spec of its model, from configuration and sources."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cmsolvers.runs.building import (
    needs_of,
    spec_like,
    teacher_of,
    usual_kind,
)
from cmsolvers.runs.config import AUTO, Config
from cmsolvers.runs.config.model_keys import Init, Teacher
from cmsolvers.training.data import Scale
from cmsolvers.training.models import Model, Spec
from cmsolvers.training.named_options import IMPORT

SMALL = 16
"""Images of fewer rows and columns get the mlp, others the unet."""

SAME = "teacher"
"""The path of init that says: the teacher."""


@dataclass(frozen=True)
class Sources:
    """Trained models that a run needs.

    Attributes:
        teacher: what is distilled.
        init: what the weights begin with; None also where the run has begun already.
    """

    teacher: Model | None
    init: Model | None


def sources_of(config: Config, *, begun: bool) -> Sources:
    """Teacher and start of a configuration, on the CPU.

    Args:
        config: the configuration.
        begun: whether the run goes on, so that what it began with is not read again.

    Raises:
        OSError, ValueError: no such model; the text names the key.
    """
    teacher = init = None
    keys, start = config.teacher, config.init
    if keys.path is not None:
        teacher = _loaded("teacher", keys.path, keys)
    if start.path == SAME and teacher is None:
        raise ValueError(
            "init.path 'teacher' is the model of teacher.path, which is not given; "
            "a folder of that name is './teacher'"
        )
    if start.path is not None and not begun:
        if start.path != SAME:
            init = _loaded("init", start.path, start)
        elif start.average is None and start.kind is None:
            init = teacher
        else:
            init = _loaded("init", str(keys.path), start)
    return Sources(teacher, init)


def _loaded(name: str, path: str, keys: Init | Teacher) -> Model:
    if not Path(path).exists():
        raise FileNotFoundError(f"{name}.path must be a model; there is none at {path}")
    try:
        return teacher_of(path, average=keys.average, kind=keys.kind, trusted=keys.trusted)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def spec_of(config: Config, shape: tuple[int, ...], classes: int | None, sources: Sources) -> Spec:
    """The spec of the model that a configuration trains.

    Args:
        config: the configuration.
        shape: of a sample.
        classes: of the data's labels.
        sources: of teacher and start.

    Raises:
        TypeError, ValueError: an unknown loss or kind, labels that there are not, a start of
            another shape.
    """
    keys, loss = config.model, config.loss
    if keys.kind == AUTO and loss.name.startswith(IMPORT):
        raise ValueError("model.kind must be named for a loss of your own; it is 'auto'")
    if keys.class_conditional and classes is None:
        raise ValueError("model.class_conditional must be false: the data have no labels")
    told = classes if keys.class_conditional else None
    origin = sources.init or sources.teacher
    numbers = {
        name: _first(getattr(keys, name), origin, name)
        for name in ("sigma_min", "sigma_max", "sigma_data")
    }
    needs = needs_of(loss.name, loss.options, told)
    inputs = tuple(dict.fromkeys((*keys.inputs, *needs.pop("inputs", ()))))
    network = config.network.name
    spec = Spec(
        usual_kind(loss.name) if keys.kind == AUTO else keys.kind,
        shape,
        usual_network(shape) if network == AUTO else network,
        dict(config.network.options),
        classes=told,
        null_label=keys.null_label,
        inputs=inputs,
        wrapper=dict(keys.wrapper),
        dtype=keys.dtype,
        **numbers,
        **needs,
    )
    if sources.init is None:
        return spec
    if sources.init.spec.shape != spec.shape:
        raise ValueError(
            f"init.path must be a model of the data's shape, {list(shape)}; "
            f"it is of {list(sources.init.spec.shape)}"
        )
    if sources.init.spec.classes is not None and told is None:
        raise ValueError(
            "model.class_conditional must be true: the network of init.path is told labels"
        )
    if network != AUTO:
        return spec
    like = spec_like(spec, sources.init.spec)
    options = {**(like.options or {}), **config.network.options}
    return replace(like, options=options, sigma_data=spec.sigma_data)


def _first(given: float | None, origin: Model | None, name: str) -> Any:
    """A number that was given, or that of the model to begin with, or the usual one."""
    if given is not None:
        return given
    if origin is not None:
        return getattr(origin.spec, name)
    return next(one.default for one in fields(Spec) if one.name == name)


def usual_network(shape: tuple[int, ...]) -> str:
    """The network of samples of a shape where none is named."""
    return "unet" if len(shape) == 3 and max(shape[1:]) >= SMALL else "mlp"


def check_scales(scale: Scale | None, sources: Sources) -> None:
    """Check that data are what the teacher was trained on, as far as their scale tells.

    Raises:
        ValueError: they are not.

    Warns:
        UserWarning: the start's data had another scale.
    """
    ours = None if scale is None else scale.about()
    for name, model in (("teacher", sources.teacher), ("init", sources.init)):
        theirs = None if model is None else model.about.get("scale")
        if theirs is None or theirs == ours:
            continue
        text = f"the data of {name} had the scale {theirs}, those of this run have {ours}"
        if name == "teacher":
            raise ValueError(f"data must be what the teacher was trained on: {text}")
        if sources.init is not sources.teacher:
            warnings.warn(text, stacklevel=2)
