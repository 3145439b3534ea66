"""The decorator that makes a public solver of any SDE or ODE in time of a formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine import catalogue
from cmsolvers.engine.fields import check_direction, check_sde, is_noisy, known
from cmsolvers.engine.help_texts import Text
from cmsolvers.engine.live_run import LiveRun
from cmsolvers.engine.observers import Info, Recorder
from cmsolvers.engine.options import FIXED, Fixed, Option
from cmsolvers.engine.parts import part_of
from cmsolvers.engine.run import Prepared, Result, drive, key_of, run
from cmsolvers.engine.solver import Solver, public, taken
from cmsolvers.engine.time_steps import check_formula, trace_in_time
from cmsolvers.engine.trace import Formula
from cmsolvers.processes.sde import SDELike

TimeSolver: TypeAlias = Solver[SDELike, Info]
"""A solver of SDEs and ODEs in time, `solver(sde, x, ts, **options)`."""


def time_solver(
    *,
    order: str,
    nfe: str,
    source: str,
    options: Sequence[Option] = (),
    draws: Callable[..., int] = lambda **_: 1,
    checked: Callable[..., object] | None = None,
    noisy: Callable[..., bool] | None = None,
    live: Callable[..., bool] = lambda **_: False,
    exact: bool = True,
) -> Callable[[Formula], TimeSolver]:
    """Make a solver of SDEs in time of a formula: check, run, document, enter in the catalogue.

    Args:
        order: of convergence, as text.
        nfe: evaluations for n steps, as text.
        source: paper and equation.
        options: keyword arguments of the formula.
        draws: unit normals per step, from the options.
        checked: `checked(sde, times, **options)` raises where they do not fit each other.
        noisy: whether noise is drawn even if the SDE has none, from the options.
        live: whether the formula reads tensors, from the options: its steps cannot be made
            beforehand then.
        exact: whether the method is exact on dx = c dt + g dw with constants, as the first call
            checks.

    Returns:
        A decorator of `formula(step, **options) -> Form`; `time_steps.TimeStep` is what it may ask.
        The first call runs `check_formula`.
    """
    own = [option.name for option in options]
    check.function("draws", draws)

    def decorate(formula: Formula) -> TimeSolver:
        name = formula.__name__
        taken(formula, own)

        @cache
        def check_weights() -> None:  # in the first call: helpers may stand below the formula
            defaults = {option.name: option.default for option in options}
            check_formula(formula, draws(**defaults), **defaults)

        def plan(sde: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> _Plan:
            check.state("x", x)
            check_sde(sde)
            times = check.times("ts", grid)
            check_direction(sde, times)
            mine = {key: values.pop(key) for key in own}
            if checked is not None:
                checked(sde, times, **mine)
            reads_tensors = live(**mine)
            if exact and not reads_tensors:
                check_weights()
            shared, library, count = Fixed(**values), known(sde), draws(**mine)
            one_normal = shared.noise_sampler is None or count == 1
            ahead = one_normal and not (reads_tensors or any(map(callable, mine.values())))
            ready = None
            if library is not None and ahead:
                traced = trace_in_time(formula, library, times, mine, count)
                ready = Prepared(traced, getattr(library, "score", None), shared, name, "score")
            elif shared.log_prob:
                raise ValueError(_no_density(name))
            return _Plan(times, mine, shared, count, ready)

        def prepare(sde: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Prepared:
            ready = plan(sde, x, grid, values).ready
            if ready is None:
                raise ValueError(_no_density(name))
            return ready

        def call(sde: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Result:
            planned = plan(sde, x, grid, values)
            if planned.ready is not None:
                return run(planned.ready, x)
            times, mine, shared, count = planned[:4]
            part = part_of(shared, len(times) - 1)
            levels = times[part[0] : part[1] + 1]
            Recorder(shared.trajectory, levels)  # before a seed is drawn
            drawn = is_noisy(sde) or (noisy is not None and noisy(**mine))
            needed = drawn and (shared.noise_sampler is None or count > 1)
            key = key_of(shared.seed, x, needed=needed)
            start = partial(LiveRun, formula, mine, sde, x, times, count, key, shared)
            return drive(start, shared, x.dtype, name, "t", levels, part)[0]

        function: TimeSolver = public(
            formula, call, (*options, *FIXED), Text("sde", "ts", "fresh"), prepare
        )
        catalogue.enter(function, order=order, nfe=nfe, noise="fresh", source=source, space="time")
        return function

    return decorate


class _Plan(NamedTuple):
    """A run as its arguments ask for it; `ready` where its steps are known before it begins."""

    times: tuple[float, ...]
    mine: dict[str, Any]
    shared: Fixed
    draws: int
    ready: Prepared | None


def _no_density(name: str) -> str:
    return (
        f"log_prob must be left out for {name} here: it is known for SDEs of the library "
        "(process.reverse) alone, whose steps are known before the run"
    )
