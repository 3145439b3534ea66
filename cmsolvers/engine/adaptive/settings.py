"""Arguments of the adaptive solvers: their options, checks and texts, and the public functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.checks import Levels
from cmsolvers.engine import catalogue
from cmsolvers.engine.help_texts import Text
from cmsolvers.engine.mistakes.checked_runs import CHECK, run_checked
from cmsolvers.engine.mistakes.criteria import About
from cmsolvers.engine.observers import AdaptiveInfo, Recorder
from cmsolvers.engine.options import SHARED, Option, Shared, chosen, option, options_of
from cmsolvers.engine.solver import Solver, public
from cmsolvers.processes.coordinates import coordinates_of


def like(known: Option, text: str = "") -> Any:
    """The same of an option of other solvers, with more to say of it."""
    return option(known.default, known.checked, known.text + text)


def optional(checked: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """A check that lets None pass."""
    return lambda name, value: None if value is None else checked(name, value)


def fraction(name: str, value: object, *, one: bool = False) -> float:
    """A number in (0, 1), or in (0, 1] with `one`."""
    number = check.real(name, value)
    if not (0 < number < 1 or (one and number == 1)):
        raise ValueError(f"{name} must lie in (0, 1{']' if one else ')'}; got {number:g}")
    return number


_FIXED = {known.name: known for known in SHARED}
RTOL = "relative tolerance of a step, not negative."
ATOL = "absolute tolerance of a step, positive."
PCOEFF = "proportional part of the step size control, not negative."
SAFETY = "factor on a new step size, in (0, 1)."


@dataclass(frozen=True)
class Settings(Shared):
    """The options of every adaptive solver; subclasses have those of one solver too."""

    rtol: float = option(1e-5, check.non_negative, RTOL)
    atol: float = option(1e-6, check.positive, ATOL)
    max_steps: int = option(4096, check.count, "most tries of a sample.")
    mode: str = option(
        "compact",
        chosen("compact", "masked"),
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
    extra_args: Mapping[str, Any] | None = like(
        _FIXED["extra_args"],
        " In compact mode tensors among them (in dicts, lists and tuples too) whose first size is "
        "B are rows of samples and follow their samples.",
    )
    callback: Callable[[dict[str, Any]], object] | None = option(  # noqa: RUF009
        None,
        check.optional_function,
        "called before each try with {entry} i counts tries, `samples` [b] are places in the "
        "batch, {level}s are float64 [b]. What it raises ends the run.",
    )
    progress: bool = like(
        _FIXED["progress"], " It counts tries; the {level} is the mean over the samples under way."
    )
    return_info: bool = option(False, check.flag, "return (x, `AdaptiveInfo`).")
    check_nan: bool = option(
        False,
        check.flag,
        "look at every output of the {model}, and raise SolverError as soon as one is not finite. "
        "By default a step whose error is not a number is tried smaller, and SolverError is raised "
        "where no step is small enough.",
    )
    trajectory: Levels | bool | None = like(  # noqa: RUF009
        _FIXED["trajectory"], " The {level}s of a run are {grid}; steps land on those wanted."
    )
    grad: bool = like(_FIXED["grad"], " Step sizes count as constants.")


_M = TypeVar("_M", contravariant=True)
_S = TypeVar("_S", bound=Settings)
Solve: TypeAlias = Callable[[_M, Tensor, Levels, _S], tuple[Tensor, AdaptiveInfo]]
"""What a public solver does once x and its options are checked."""


def checked(kind: type[_S], given: Mapping[str, object]) -> _S:
    """The options that are given, checked, and defaults."""
    known = {entry.name: entry.checked for entry in options_of(kind)}
    return kind(**{name: known[name](name, value) for name, value in given.items()})


AdaptiveSolver: TypeAlias = Solver[_M, AdaptiveInfo]
"""An error-controlled solver of a denoiser on noise levels, or of an SDE in time."""


def solver(
    kind: type[_S],
    *,
    order: str,
    source: str,
    noise: catalogue.Noise,
    space: Literal["sigma", "time"] = "sigma",
) -> Callable[[Solve[_M, _S]], AdaptiveSolver[_M]]:
    """Make a public solver: check its options (`kind`), document it, enter it in the catalogue."""
    up = noise == "none"  # the ODE goes both ways
    words = Words("denoiser", "sigmas", noise, upward=up)
    if space == "time":
        words = Words("sde", "ts", noise)

    def decorate(solve: Solve[_M, _S]) -> AdaptiveSolver[_M]:
        def call(
            model: Any, x: Any, grid: Any, values: dict[str, Any]
        ) -> Tensor | tuple[Tensor, AdaptiveInfo]:
            check.state("x", x)
            closely = values.pop(CHECK.name, False)
            settings = kind(**values)

            levels = grid if space == "time" else check.sigmas("sigmas", grid, up=up)

            def go(asked: Any) -> Tensor | tuple[Tensor, AdaptiveInfo]:
                y, info = solve(asked, x, levels, settings)
                return (y, info) if settings.return_info or info.trajectory is not None else y

            if space == "time":
                return go(model)
            coordinates_of(model).check_levels("sigmas", levels)
            about = About("denoiser", levels[-1], settings.extra_args or {})
            return run_checked(go, model, x, levels, about, closely=closely)

        options = [*options_of(kind), *(() if space == "time" else (CHECK,))]
        function: AdaptiveSolver[_M] = public(solve, call, options, words)
        facts = {"order": order, "nfe": "adaptive", "source": source, "noise": noise}
        catalogue.enter(function, **facts, space=space, adaptive=True)
        return function

    return decorate


class Words(Text):
    """Texts of the docstrings of adaptive solvers."""

    def arguments(self) -> dict[str, str]:
        model, x, grid = super().arguments().values()
        grid += f" Only the ends are used, unless `trajectory` asks for {self.words()['level']}s in"
        grid += " between."
        if self.grid == "ts":
            return {"sde": f"{model} {_FOLLOWS}", "x": x, "ts": grid}
        return {"denoiser": _DENOISER, "x": x, "sigmas": f"{grid} {_TO_ZERO}"}

    def words(self) -> dict[str, str]:
        words = super().words()
        times = self.grid == "ts"
        shown = "t, t_next, output" if times else "sigma, sigma_hat, sigma_next, denoised"
        ended = f"; a sample that has ended has {words['end']} = {words['start']}"
        spans = {
            "none": ". Checked and never called, as in every sampler without noise",
            "fresh": f". Asked once per try, with float64 [B] each{ended}",
            "Brownian": ". Asked once per try, rejected ones too, with float64 [B] each, so it "
            f"should be a path's increment divided by sqrt|t_next - t|{ended}",
        }
        words |= {"noise_spans": spans[self.noise], "entry": f"dict(i, samples, x, {shown}):"}
        return words | {"grid": f"those of `{self.grid}`"}

    def returns(self) -> str:
        return super().returns().replace("an `Info`", "an `AdaptiveInfo`")

    def raises(self) -> dict[str, str]:
        failed = (
            "a sample's step size fell below what moves it, its error was not a number, or "
            "max_steps were not enough; the error carries the states reached and names sample and "
            f"{self.words()['level']}."
        )
        return {"SolverError": failed, **super().raises()}


_DENOISER = """`D(x, sigma, **extra_args) -> x0`, sigma of shape [B], both in the dtype of x, for
the samples under way. Its attribute `coordinates` ("karras" by default, "flow" or a `Process`) says
in which coordinates states and levels are. It may return the dtype of x or a floating one of lower
precision. It must not write to its arguments."""
_FOLLOWS = """The diffusion must not depend on the state. diffusion(t) is called with the times of
the samples still running; if it returns a tensor of the shape of x, its first size must be that of
t."""
_TO_ZERO = """Before a final 0 comes a positive level where the run ends; one evaluation of the
denoiser there gives the result."""


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
    return _landings(check.times("ts", ts), settings.trajectory)


def read_levels(sigmas: Levels, settings: Settings) -> Grid:
    """The ends of checked levels, and what a trajectory asks for in between."""
    levels = tuple(map(float, sigmas))
    to_zero = levels[-1] == 0
    if to_zero and len(levels) < 3:
        raise ValueError(
            f"sigmas must have a positive level between the first and a final 0; got {len(levels)} "
            "levels"
        )
    return _landings(levels, settings.trajectory, to_zero)


def _landings(
    levels: tuple[float, ...], trajectory: bool | Levels | None, to_zero: bool = False
) -> Grid:
    """The ends, with the level before a final 0, and what a trajectory asks for in between."""
    wanted = Recorder(trajectory, levels).chosen
    ends = {levels[0], *levels[-1 - to_zero :]}
    visited = tuple(level for level in levels if level in wanted | ends)
    stops = visited[:-1] if to_zero else visited
    return Grid(stops, Recorder(trajectory, visited), to_zero)
