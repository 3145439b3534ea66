"""What makes a public adaptive solver of a method: its options, their texts, its result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.checks import Levels
from cmsolvers.engine import catalogue, options
from cmsolvers.engine.adaptive.control import Control
from cmsolvers.engine.adaptive.loop import AdaptiveInfo, Mode, Run, Settings
from cmsolvers.engine.adaptive.method import Method
from cmsolvers.engine.observers import Recorder
from cmsolvers.engine.options import Option, chosen
from cmsolvers.engine.solver import Text, public

Result: TypeAlias = Tensor | tuple[Tensor, AdaptiveInfo]
_M_contra = TypeVar("_M_contra", contravariant=True)
_S = TypeVar("_S", bound=Settings)
_S_contra = TypeVar("_S_contra", bound=Settings, contravariant=True)


class AdaptiveSolver(Protocol[_M_contra]):
    """An error-controlled solver of a denoiser on noise levels, or of an SDE in time."""

    __name__: str

    @overload
    def __call__(
        self, model: _M_contra, x: Tensor, grid: Levels, /, *, return_info: Literal[True], **o: Any
    ) -> tuple[Tensor, AdaptiveInfo]: ...

    @overload
    def __call__(
        self,
        model: _M_contra,
        x: Tensor,
        grid: Levels,
        /,
        *,
        trajectory: Literal[True] | Levels,
        **o: Any,
    ) -> tuple[Tensor, AdaptiveInfo]: ...

    @overload
    def __call__(self, model: _M_contra, x: Tensor, grid: Levels, /, **o: Any) -> Tensor: ...

    def __call__(self, model: _M_contra, x: Tensor, grid: Levels, /, **o: Any) -> Result:
        """Solve: the arguments are documented in each solver."""


class Solve(Protocol[_M_contra, _S_contra]):
    """What a public solver does once its options are checked."""

    __name__: str

    def __call__(
        self, model: _M_contra, x: Tensor, grid: Levels, settings: _S_contra, /
    ) -> tuple[Tensor, AdaptiveInfo]:
        """The result; the docstring becomes the head of the public one."""


def solver(
    settings: type[_S],
    own: Sequence[Option],
    *,
    order: str,
    source: str,
    noise: catalogue.Noise,
    space: Literal["sigma", "time"] = "sigma",
) -> Callable[[Solve[_M_contra, _S]], AdaptiveSolver[_M_contra]]:
    """Make a public solver: check its options, document it, enter it in the catalogue.

    Args:
        settings: a dataclass with the options of all adaptive solvers and those of this one.
        own: the options of this solver; one of the name of a shared option replaces it.
        order: of convergence, as text.
        source: paper and equation.
        noise: what noise there is.
        space: what it runs on.
    """
    words = Words("sde", "ts", noise) if space == "time" else Words("denoiser", "sigmas", noise)

    def decorate(solve: Solve[_M_contra, _S]) -> AdaptiveSolver[_M_contra]:
        def call(model: Any, x: Any, grid: Any, values: dict[str, Any]) -> Result:
            check.state("x", x)
            read = settings(**values)
            if not read.grad and x.requires_grad and torch.is_grad_enabled():
                warnings.warn(
                    f"x requires a gradient, but {solve.__name__} runs without autograd; grad=True "
                    "records the run",
                    stacklevel=3,
                )
            with nullcontext() if read.grad else torch.no_grad():
                y, info = solve(model, x, grid, read)
            return (y, info) if read.return_info or info.trajectory is not None else y

        function: AdaptiveSolver[_M_contra] = public(solve, call, all_options(own), words)
        catalogue.enter(
            function,
            order=order,
            nfe="adaptive",
            noise=noise,
            space=space,
            adaptive=True,
            source=source,
        )
        return function

    return decorate


def all_options(own: Sequence[Option]) -> tuple[Option, ...]:
    """A solver's own options, then the shared ones that they do not replace."""
    names = {option.name for option in own}
    return (*own, *(option for option in SHARED if option.name not in names))


def checked(own: Sequence[Option], given: Mapping[str, object]) -> dict[str, Any]:
    """Values of all options: those that are given, checked, and defaults."""
    return {
        option.name: option.checked(option.name, given[option.name])
        if option.name in given
        else option.default
        for option in all_options(own)
    }


# --- options -------------------------------------------------------------------------------------


def _at_intervals(name: str, value: object) -> int | None:
    return None if value is None else check.count(name, value)


def optional_size(name: str, value: object) -> float | None:
    """None, or a positive number."""
    return None if value is None else check.positive(name, value)


def fraction(name: str, value: object) -> float:
    """A number in (0, 1)."""
    number = check.real(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie in (0, 1); got {number:g}")
    return number


def tolerances(rtol: float, atol: float) -> tuple[Option, Option]:
    """The options of the tolerances, with a solver's defaults."""
    return (
        Option("rtol", rtol, check.non_negative, "relative tolerance of a step, not negative."),
        Option("atol", atol, check.positive, "absolute tolerance of a step, positive."),
    )


_FIXED = {option.name: option for option in options.SHARED}

SHARED = (
    *tolerances(1e-5, 1e-6),
    Option("max_steps", 4096, check.count, "most tries of a sample.", int),
    Option(
        "mode",
        "compact",
        chosen("compact", "masked"),
        '"compact": samples that have ended leave the batch, and every try waits for the device '
        'once. "masked": all stay, with steps of size 0, and nothing waits but the look that '
        "`check_every` documents; made for CUDA graphs and compilers of fixed shapes.",
        Mode,
    ),
    Option(
        "check_every",
        16,
        _at_intervals,
        "in masked mode, after how many tries to look whether all samples have ended; None runs "
        "max_steps tries and looks after them (not at all while a graph is captured: "
        "`info.finished` says it then).",
        int | None,
    ),
    _FIXED["seed"],
    replace(
        _FIXED["noise_sampler"],
        text="`noise_sampler({start}, {end}) -> Tensor` with float64 [B] each, unit normal in the "
        "shape of x, in place of the built-in noise{noise_spans}.",
    ),
    replace(
        _FIXED["extra_args"],
        text="dict of further keyword arguments for the {model}. In compact mode tensors among "
        "them (in dicts, lists and tuples too) whose first size is B are rows of samples and "
        "follow their samples.",
    ),
    replace(
        _FIXED["callback"],
        text="called before each try with {entry} i counts tries, `samples` [b] are places in the "
        "batch, {level}s are float64 [b]. What it raises ends the run.",
    ),
    replace(
        _FIXED["progress"],
        text="show a bar of tries, with the mean {level} and the calls of the {model}.",
    ),
    replace(_FIXED["return_info"], text="return (x, `AdaptiveInfo`)."),
    replace(
        _FIXED["check_nan"],
        text="look at every output of the {model}, and raise SolverError as soon as one is not "
        "finite. By default a step whose error is not a number is tried smaller, and SolverError "
        "is raised where no step is small enough.",
    ),
    replace(
        _FIXED["trajectory"],
        text="True for the state at every {level} of {grid}, or the {level}s whose states are "
        "wanted; steps are made to land there. The states are copied to `info.trajectory`, [K, B, "
        "...], with `info.levels` beside them, and (x, info) is returned.",
    ),
    replace(
        _FIXED["grad"],
        text="let autograd record the steps that are taken, for derivatives by x, by `extra_args` "
        "or by the parameters of the {model}; step sizes count as constants. By default the run "
        "records nothing and needs less memory.",
    ),
)
"""Options of every adaptive solver."""


class Words(Text):
    """Texts of the docstrings of adaptive solvers."""

    def arguments(self) -> dict[str, str]:
        """The positional arguments."""
        found = super().arguments()
        found["x"] = f"{found['x']} Half precision is computed in float32."
        if self.grid == "ts":
            return {**found, "sde": f"{found['sde']} {_FOLLOWS}", "ts": _TIMES}
        return {**found, "denoiser": _DENOISER, "sigmas": _SIGMAS}

    def words(self) -> dict[str, str]:
        """What is put into the texts of options."""
        shown = "sigma, sigma_hat, sigma_next, denoised"
        if self.grid == "ts":
            shown = "t, t_next, output"
        ended = "; a sample that has ended has {end} = {start}"
        spans = {
            "none": ". Checked and never called, as in every sampler without noise",
            "fresh": f". Asked once per try{ended}",
            "Brownian": ". Asked once per try, rejected ones too, so it should be a path's "
            f"increment over sqrt|t_next - t|{ended}",
        }
        return {
            "noise_spans": spans[self.noise],
            "entry": f"dict(i, samples, x, {shown}):",
            "grid": f"`{self.grid}`",
            **{k: v for k, v in super().words().items() if k not in ("noise_spans", "entry")},
        }

    def returns(self) -> str:
        """The result."""
        return super().returns().replace("an `Info`", "an `AdaptiveInfo`")

    def raises(self) -> dict[str, str]:
        """The errors of every solver."""
        solver = (
            "a sample's step size fell below what moves it, its error was not a number, or "
            "max_steps were not enough; the error carries the states reached and names sample and "
            f"{self.words()['level']}."
        )
        return {"SolverError": solver, **super().raises()}


_DENOISER = """`D(x, sigma, **extra_args) -> x0`, x in Karras coordinates and sigma of shape [B], both in
the dtype of x, for the samples under way. It may return the dtype of x or a floating one of lower
precision. It must not write to its arguments."""
_FOLLOWS = """It must not depend on the state; it is asked for the samples under way, so one of the
shape of x must follow the shape of t."""
_SIGMAS = """levels, strictly descending; a tensor or a sequence, read once and kept in float64 on the
host. Only the ends are used, unless `trajectory` asks for levels in between. Before a final 0 comes
a positive level where the run ends; one evaluation of the denoiser there gives the result."""
_TIMES = """strictly ascending or strictly descending, at least two; only the ends are used, unless
`trajectory` asks for times in between."""


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Checked levels or times of a run.

    Attributes:
        stops: where steps land, the start first.
        recorder: of the states wanted, for those at the stops (and at 0).
        denoise: whether a 0 follows, reached by one evaluation of the denoiser.
    """

    stops: tuple[float, ...]
    recorder: Recorder
    denoise: bool = False


def read_times(ts: object, trajectory: bool | Levels | None) -> Grid:
    """The ends of `ts`, and what a trajectory asks for in between."""
    return _landings(check.times("ts", ts), trajectory, last=1)


def read_levels(sigmas: object, trajectory: bool | Levels | None) -> Grid:
    """The ends of `sigmas`, and what a trajectory asks for in between."""
    levels = check.sigmas("sigmas", sigmas)
    if levels[-1] > 0:
        return _landings(levels, trajectory, last=1)
    if len(levels) < 3:
        raise ValueError(
            f"sigmas must have a positive level between the first and a final 0; got {len(levels)} "
            "levels"
        )
    grid = _landings(levels, trajectory, last=2)
    return replace(grid, stops=grid.stops[:-1], denoise=True)


def _landings(levels: tuple[float, ...], trajectory: bool | Levels | None, last: int) -> Grid:
    """The first level, the last ones, and those that a trajectory asks for in between."""
    wanted: Collection[float] = ()
    if Recorder("trajectory", trajectory, levels).wanted:
        wanted = levels if trajectory is True else check.floats("trajectory", trajectory)
    between = (level for level in levels[1:-last] if level in wanted)
    visited = (levels[0], *between, *levels[-last:])
    return Grid(visited, Recorder("trajectory", trajectory, visited))


def run(
    method: Method,
    control: Control,
    x: Tensor,
    grid: Grid,
    settings: Settings,
    first_step: float | Callable[[Run], Tensor],
) -> tuple[Tensor, AdaptiveInfo]:
    """Run to the end of a grid, with a first step size or what finds those of all samples."""
    times = [method.place(level) for level in grid.stops]
    recorder = grid.recorder
    one = Run(method, control, x, times, settings, keep_states=recorder.wanted)
    if x.shape[0]:
        one.evaluate_first()
        one.now.h = (
            first_step(one) if callable(first_step) else torch.full_like(one.now.t, first_step)
        )
    last = one.go()
    if grid.denoise and x.shape[0]:
        last = one.denoised(grid.stops[-1])
    if one.states is not None:
        for state in (x, *one.states.to(x.dtype), *([last] if grid.denoise else [])):
            recorder.add(state)
    return last, one.info(*recorder.result())
