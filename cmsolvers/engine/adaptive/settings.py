"""Arguments of the adaptive solvers: their options, checks and texts, and the public functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.checks import Levels
from cmsolvers.engine import catalogue, options
from cmsolvers.engine.observers import Recorder
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import Text, public

if TYPE_CHECKING:
    from cmsolvers.engine.adaptive.loop import AdaptiveInfo

NoiseSampler: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`noise_sampler(start, end)` with one level or time per sample, float64 [B] each."""


def option(default: object, checked: Callable[[str, Any], Any], text: str) -> Any:
    """A field of `Settings`: an option's default, check and text."""
    return field(default=default, metadata={"checked": checked, "text": text})


def like(known: Option, text: str | None = None) -> Any:
    """The same of an option of other solvers, with another text if one is given."""
    metadata = {"checked": known.checked, "text": text or known.text}
    return field(default=known.default, metadata=metadata)


def optional(checked: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """A check that lets None pass."""
    return lambda name, value: None if value is None else checked(name, value)


def fraction(name: str, value: object) -> float:
    """A number in (0, 1)."""
    number = check.real(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie in (0, 1); got {number:g}")
    return number


_FIXED = {known.name: known for known in options.SHARED}
RTOL = "relative tolerance of a step, not negative."
ATOL = "absolute tolerance of a step, positive."


@dataclass(frozen=True)
class Settings:
    """The options of every adaptive solver; subclasses have those of one solver too."""

    rtol: float = option(1e-5, check.non_negative, RTOL)
    atol: float = option(1e-6, check.positive, ATOL)
    max_steps: int = option(4096, check.count, "most tries of a sample.")
    mode: str = option(
        "compact",
        options.chosen("compact", "masked"),
        '"compact": samples that have ended leave the batch, and every try waits for the device '
        'once. "masked": all stay, with steps of size 0, and nothing waits but the look that '
        "`check_every` documents; made for CUDA graphs and compilers of fixed shapes.",
    )
    check_every: int | None = option(
        16,
        optional(check.count),
        "in masked mode, after how many tries to look whether all samples have ended; None runs "
        "max_steps tries and looks after them (not at all while a graph is captured: "
        "`info.finished` says it then).",
    )
    seed: noise.SeedLike = like(_FIXED["seed"])  # noqa: RUF009
    noise_sampler: NoiseSampler | None = like(  # noqa: RUF009
        _FIXED["noise_sampler"],
        "`noise_sampler({start}, {end}) -> Tensor` with float64 [B] each, unit normal in the shape "
        "of x, in place of the built-in noise{noise_spans}.",
    )
    extra_args: Mapping[str, Any] | None = like(
        _FIXED["extra_args"],
        "dict of further keyword arguments for the {model}. In compact mode tensors among them (in "
        "dicts, lists and tuples too) whose first size is B are rows of samples and follow their "
        "samples.",
    )
    callback: Callable[[dict[str, Any]], object] | None = like(  # noqa: RUF009
        _FIXED["callback"],
        "called before each try with {entry} i counts tries, `samples` [b] are places in the "
        "batch, {level}s are float64 [b]. What it raises ends the run.",
    )
    progress: bool = like(
        _FIXED["progress"],
        "show a bar of tries, with the mean {level} and the calls of the {model}.",
    )
    return_info: bool = like(_FIXED["return_info"], "return (x, `AdaptiveInfo`).")
    check_nan: bool = like(
        _FIXED["check_nan"],
        "look at every output of the {model}, and raise SolverError as soon as one is not finite. "
        "By default a step whose error is not a number is tried smaller, and SolverError is raised "
        "where no step is small enough.",
    )
    trajectory: bool | Levels | None = like(  # noqa: RUF009
        _FIXED["trajectory"],
        "True for the state at every {level} of {grid}, or the {level}s whose states are wanted; "
        "steps are made to land there. The states are copied to `info.trajectory`, [K, B, ...], "
        "with `info.levels` beside them, and (x, info) is returned.",
    )
    grad: bool = like(
        _FIXED["grad"],
        "let autograd record the steps that are taken, for derivatives by x, by `extra_args` or by "
        "the parameters of the {model}; step sizes count as constants. By default the run records "
        "nothing and needs less memory.",
    )


_M_contra = TypeVar("_M_contra", contravariant=True)
_S = TypeVar("_S", bound=Settings)
Solve: TypeAlias = Callable[[_M_contra, Tensor, Levels, _S], tuple[Tensor, "AdaptiveInfo"]]
"""What a public solver does once x and its options are checked."""


def options_of(kind: type[Settings]) -> list[Option]:
    """All options, a solver's own first."""
    own = [f for f in fields(kind) if f.name not in Settings.__dataclass_fields__]
    shared = [f for f in fields(kind) if f.name in Settings.__dataclass_fields__]
    return [Option(f.name, f.default, **f.metadata, type=f.type) for f in (*own, *shared)]


def checked(kind: type[_S], given: Mapping[str, object]) -> _S:
    """The options that are given, checked, and defaults."""
    known = {entry.name: entry.checked for entry in options_of(kind)}
    return kind(**{name: known[name](name, value) for name, value in given.items()})


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

    def __call__(
        self, model: _M_contra, x: Tensor, grid: Levels, /, **o: Any
    ) -> Tensor | tuple[Tensor, AdaptiveInfo]:
        """Solve: the arguments are documented in each solver."""


def solver(
    kind: type[_S],
    *,
    order: str,
    source: str,
    noise: catalogue.Noise,
    space: Literal["sigma", "time"] = "sigma",
) -> Callable[[Solve[_M_contra, _S]], AdaptiveSolver[_M_contra]]:
    """Make a public solver: check its options, document it, enter it in the catalogue.

    Args:
        kind: its options.
        order: of convergence, as text.
        source: paper and equation.
        noise: what noise there is.
        space: what it runs on.
    """
    words = Words("sde", "ts", noise) if space == "time" else Words("denoiser", "sigmas", noise)

    def decorate(solve: Solve[_M_contra, _S]) -> AdaptiveSolver[_M_contra]:
        def call(
            model: Any, x: Any, grid: Any, values: dict[str, Any]
        ) -> Tensor | tuple[Tensor, AdaptiveInfo]:
            check.state("x", x)
            settings = kind(**values)
            if not settings.grad and x.requires_grad and torch.is_grad_enabled():
                warnings.warn(
                    f"x requires a gradient, but {solve.__name__} runs without autograd; grad=True "
                    "records the run",
                    stacklevel=3,
                )
            with nullcontext() if settings.grad else torch.no_grad():
                y, info = solve(model, x, grid, settings)
            return (y, info) if settings.return_info or info.trajectory is not None else y

        function: AdaptiveSolver[_M_contra] = public(solve, call, options_of(kind), words)
        facts = {"order": order, "nfe": "adaptive", "source": source}
        catalogue.enter(function, **facts, noise=noise, space=space, adaptive=True)
        return function

    return decorate


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
        own = {
            "noise_spans": spans[self.noise],
            "entry": f"dict(i, samples, x, {shown}):",
            "grid": f"`{self.grid}`",
        }
        return own | {k: v for k, v in super().words().items() if k not in own}

    def returns(self) -> str:
        """The result."""
        return super().returns().replace("an `Info`", "an `AdaptiveInfo`")

    def raises(self) -> dict[str, str]:
        """The errors of every solver."""
        failed = (
            "a sample's step size fell below what moves it, its error was not a number, or "
            "max_steps were not enough; the error carries the states reached and names sample and "
            f"{self.words()['level']}."
        )
        return {"SolverError": failed, **super().raises()}


_DENOISER = """`D(x, sigma, **extra_args) -> x0`, x in Karras coordinates and sigma of shape [B],
both in the dtype of x, for the samples under way. It may return the dtype of x or a floating one of
lower precision. It must not write to its arguments."""
_FOLLOWS = """It must not depend on the state; it is asked for the samples under way, so one of the
shape of x must follow the shape of t."""
_SIGMAS = """levels, strictly descending; a tensor or a sequence, read once and kept in float64 on
the host. Only the ends are used, unless `trajectory` asks for levels in between. Before a final 0
comes a positive level where the run ends; one evaluation of the denoiser there gives the result."""
_TIMES = """strictly ascending or strictly descending, at least two; only the ends are used, unless
`trajectory` asks for times in between."""


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


def read_times(ts: object, settings: Settings) -> Grid:
    """The ends of `ts`, and what a trajectory asks for in between."""
    return _landings(check.times("ts", ts), settings.trajectory, last=1)


def read_levels(sigmas: object, settings: Settings) -> Grid:
    """The ends of `sigmas`, and what a trajectory asks for in between."""
    levels = check.sigmas("sigmas", sigmas)
    if levels[-1] > 0:
        return _landings(levels, settings.trajectory, last=1)
    if len(levels) < 3:
        raise ValueError(
            f"sigmas must have a positive level between the first and a final 0; got {len(levels)} "
            "levels"
        )
    grid = _landings(levels, settings.trajectory, last=2)
    return replace(grid, stops=grid.stops[:-1], denoise=True)


def _landings(levels: tuple[float, ...], trajectory: bool | Levels | None, last: int) -> Grid:
    """The first level, the last ones, and those that a trajectory asks for in between."""
    wanted: Collection[float] = ()
    if Recorder("trajectory", trajectory, levels).wanted:
        wanted = levels if trajectory is True else check.floats("trajectory", trajectory)
    between = (level for level in levels[1:-last] if level in wanted)
    visited = (levels[0], *between, *levels[-last:])
    return Grid(visited, Recorder("trajectory", trajectory, visited))
