"""What stands around a network: the kinds of models that recipes train, by name, with options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from cmsolvers import checks as check
from cmsolvers.denoisers import (
    EDM,
    AverageVelocity,
    ConsistencyFunction,
    FlowMap,
    LatentConsistencyFunction,
    Preconditioned,
    TrajectoryFunction,
    TrigFlowMap,
    VelocityHeads,
    from_eps,
    from_flow,
    from_trigflow,
    from_v,
    from_x0,
    step_index,
)
from cmsolvers.processes import DDPM, VP, Process
from cmsolvers.training.named_options import called_with, known_name, option_names, table_of

Function: TypeAlias = Preconditioned | FlowMap
"""A model: D(x, level), f(x, level) or f(x, t, s); a module around its network."""

PROCESSES: dict[str, Callable[..., Process]] = {"ddpm": DDPM, "vp": VP}
"""Of networks of noise, v and x_0, by name."""


@dataclass(frozen=True)
class Wrapper:
    """One kind of model.

    Attributes:
        make: `make(network, **options) -> model`; options in plain data.
        about: what it is, in a line.
        times: how many the network is told.
        heads: how many outputs the network has.
        coordinates: of states and levels: "karras", "flow" or "trigflow".
        model: "denoiser", "consistency" (one time) or "flow map" (two), as recipes say.
        family: equal for kinds whose networks answer the same question of the same inputs, so that
            one may begin with the weights of another.
        time_scale: usual factor of c_noise for networks with the sinusoids of diffusers.
        chain: whether it belongs to a chain of noisings, its `process`.
    """

    make: Callable[..., Function]
    about: str
    times: int = 1
    heads: int = 1
    coordinates: str = "karras"
    model: str = "denoiser"
    family: str = "edm"
    time_scale: float = 250.0
    chain: bool = False

    @property
    def options(self) -> list[str]:
        """Names of its options."""
        return [name for name in option_names(self.make) if name != "net"]


def process_of(value: object) -> Process:
    """A process from plain data: "ddpm", or {name = "ddpm", schedule = "cosine", ...}."""
    name, options = table_of("process", value)
    known_name("process", name, PROCESSES)
    made: Process = called_with(f"process {name}", PROCESSES[name], options)
    return made


def chain_of(value: object) -> DDPM:
    """A chain from plain data.

    Raises:
        ValueError: another process.
    """
    process = process_of(value)
    if not isinstance(process, DDPM):
        raise ValueError(f"process must be 'ddpm'; got {value!r}")
    return process


def _second(value: object) -> Any:
    """The second time: "end", "length" or {name = "step_index", finest = 128}."""
    name, options = table_of("second", value)
    if known_name("second", name, ("end", "length", "step_index")) == "step_index":
        return called_with("second step_index", step_index, options)
    called_with(f"second {name}", lambda: None, options)
    return name


def _edm(net: nn.Module, sigma_data: float, c_noise: str = "edm") -> Function:
    return EDM(net, sigma_data, c_noise=c_noise)


def _eps(net: nn.Module, process: object = "ddpm") -> Function:
    return from_eps(net, process=process_of(process))


def _v(net: nn.Module, process: object = "ddpm") -> Function:
    return from_v(net, process=process_of(process))


def _x0(net: nn.Module, process: object = "ddpm") -> Function:
    return from_x0(net, process=process_of(process))


def _flow(net: nn.Module) -> Function:
    return from_flow(net)


def _trigflow_velocity(net: nn.Module, sigma_data: float, c_noise: str | None = None) -> Function:
    return from_trigflow(net, sigma_data, c_noise=c_noise)


def _consistency(
    net: nn.Module, sigma_data: float, sigma_min: float, c_noise: str = "edm"
) -> Function:
    return ConsistencyFunction(net, sigma_data, sigma_min, c_noise)


def _trigflow(net: nn.Module, sigma_data: float, sigma_max: float) -> Function:
    return TrigFlowMap(net, sigma_data, sigma_max=sigma_max)


def _trigflow_map(
    net: nn.Module, sigma_data: float, sigma_max: float, second: object = "end"
) -> Function:
    return TrigFlowMap(net, sigma_data, sigma_max=sigma_max, second=_second(second))


def _average_velocity(net: nn.Module, second: object = "end") -> Function:
    return AverageVelocity(net, second=_second(second))


def _velocity_heads(net: nn.Module, second: object = "end") -> Function:
    return VelocityHeads(net, second=_second(second))


def _trajectory(
    net: nn.Module, sigma_data: float, sigma_min: float, c_noise: str = "edm"
) -> Function:
    return TrajectoryFunction(net, sigma_data, sigma_min, c_noise=c_noise)


def _latent_consistency(
    net: nn.Module,
    sigma_data: float,
    process: object = "ddpm",
    output: Any = "eps",
    time_scale: float = 10.0,
    scalings: str = "paper",
) -> Function:
    return LatentConsistencyFunction(
        net,
        chain_of(process),
        output=output,
        sigma_data=sigma_data,
        time_scale=time_scale,
        scalings=scalings,
    )


WRAPPERS: dict[str, Wrapper] = {
    "edm": Wrapper(_edm, "a denoiser with EDM's preconditioning"),
    "eps": Wrapper(
        _eps, "a denoiser around a network of noise", family="eps", time_scale=1.0, chain=True
    ),
    "v": Wrapper(_v, "a denoiser around a network of v", family="v", time_scale=1.0, chain=True),
    "x0": Wrapper(
        _x0, "a denoiser around a network of x_0", family="x0", time_scale=1.0, chain=True
    ),
    "flow": Wrapper(
        _flow,
        "a denoiser around a flow's velocity",
        coordinates="flow",
        family="flow",
        time_scale=1000.0,
    ),
    "trigflow_velocity": Wrapper(
        _trigflow_velocity, "a denoiser around the velocity of TrigFlow", family="trigflow"
    ),
    "consistency": Wrapper(_consistency, "a consistency function", model="consistency"),
    "latent_consistency": Wrapper(
        _latent_consistency,
        "a consistency function on a chain of noisings",
        model="consistency",
        family="eps",
        time_scale=1.0,
        chain=True,
    ),
    "trigflow": Wrapper(
        _trigflow,
        "a consistency function in TrigFlow coordinates (sCM)",
        coordinates="trigflow",
        family="trigflow",
        model="consistency",
    ),
    "trigflow_map": Wrapper(
        _trigflow_map,
        "a flow map of two times in TrigFlow coordinates",
        times=2,
        coordinates="trigflow",
        family="trigflow",
        model="flow map",
    ),
    "average_velocity": Wrapper(
        _average_velocity,
        "a flow map by its average velocity (MeanFlow)",
        times=2,
        coordinates="flow",
        model="flow map",
        family="flow",
        time_scale=1000.0,
    ),
    "velocity_heads": Wrapper(
        _velocity_heads,
        "the same with a second head for the velocity (improved MeanFlow)",
        times=2,
        heads=2,
        coordinates="flow",
        model="flow map",
        family="flow",
        time_scale=1000.0,
    ),
    "trajectory": Wrapper(_trajectory, "a trajectory function (CTM)", times=2, model="flow map"),
}
"""Every kind of model, by name."""

ALIASES = {"score": "edm", "cd": "consistency", "ct": "consistency", "ect": "consistency"}
"""Names by what was trained, which the demonstration uses."""

DTYPES = ("float32", "float16", "bfloat16", "float64")


def wrapper_of(kind: object) -> Wrapper:
    """A kind of model by its name or another one.

    Raises:
        TypeError, ValueError: no such name.
    """
    name = ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if name not in WRAPPERS:
        known_name("kind", kind, (*WRAPPERS, *ALIASES))
    return WRAPPERS[str(name)]


def wrapped(
    kind: str, network: nn.Module, numbers: Mapping[str, float], options: Mapping[str, object]
) -> Function:
    """The model of a kind around a network.

    Args:
        kind: a name of `WRAPPERS` or `ALIASES`.
        network: of as many times as the kind has.
        numbers: sigma_data, sigma_min and sigma_max, of which each kind takes its own.
        options: further ones of the kind.

    Raises:
        TypeError, ValueError: an option that the kind does not have, or out of range.
    """
    row = wrapper_of(kind)
    own = {name: value for name, value in numbers.items() if name in row.options}
    for name in options:
        if name in numbers:
            raise TypeError(f"wrapper must leave {name} to the spec's own {name}")
    given = {"net": check.function("network", network), **own, **options}
    made: Function = called_with(f"kind {kind}", row.make, given)
    return made
