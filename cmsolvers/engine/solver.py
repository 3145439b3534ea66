"""The decorator that makes a public solver of a formula."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.checks import Levels
from cmsolvers.denoisers.flow_map_base import kind_of
from cmsolvers.denoisers.protocol import Denoiser
from cmsolvers.engine import catalogue
from cmsolvers.engine.help_texts import Text, docstring_of, signature_of
from cmsolvers.engine.mistakes.checked_runs import CHECK, run_checked
from cmsolvers.engine.mistakes.criteria import About
from cmsolvers.engine.mistakes.hints import too_many, unknown_argument
from cmsolvers.engine.observers import Info
from cmsolvers.engine.options import CHURN, ON_LEVELS, S_NOISE, OnLevels, Option
from cmsolvers.engine.rows import check_range
from cmsolvers.engine.run import Prepared, Result, run
from cmsolvers.engine.trace import Formula, Span, lifted, trace
from cmsolvers.processes.coordinates import coordinates_of

Spans: TypeAlias = Callable[..., Sequence[Span]]
"""`spans(sigmas, **options)` -> the spans of all steps."""


Model = TypeVar("Model", contravariant=True)
Cost = TypeVar("Cost", covariant=True)


class Solver(Protocol[Model, Cost]):
    """A public solver of any kind: `solver(model, x, grid, **options)`."""

    __name__: str

    @overload
    def __call__(
        self,
        model: Model,
        x: Tensor,
        grid: Levels,
        /,
        *,
        return_info: Literal[True],
        **options: Any,
    ) -> tuple[Tensor, Cost]: ...

    @overload
    def __call__(
        self,
        model: Model,
        x: Tensor,
        grid: Levels,
        /,
        *,
        trajectory: Literal[True] | Levels,
        **options: Any,
    ) -> tuple[Tensor, Cost]: ...

    @overload
    def __call__(self, model: Model, x: Tensor, grid: Levels, /, **options: Any) -> Tensor: ...

    def __call__(
        self, model: Model, x: Tensor, grid: Levels, /, **options: Any
    ) -> Tensor | tuple[Tensor, Cost]:
        """Run; each solver documents its arguments."""


Sampler: TypeAlias = Solver[Denoiser, Info]
"""A sampler on noise levels, `sampler(denoiser, x, sigmas, **options)`."""


def solver(
    *,
    order: str,
    nfe: str,
    source: str,
    noise: catalogue.Noise = "none",
    options: Sequence[Option] = (),
    spans: Spans | None = None,
    model: str = "denoiser",
    least: int = 2,
    keeps_spread: bool = True,
    checked: Callable[..., Mapping[str, object] | None] | None = None,
    space: Literal["sigma", "map"] = "sigma",
    upward: Callable[..., bool] | None = None,
) -> Callable[[Formula], Sampler]:
    """Make a sampler on noise levels of a formula: check, run, document, enter in the catalogue.

    Args:
        order: of convergence, as text.
        nfe: evaluations for n steps, as text.
        source: paper and equation.
        noise: "none"; "churn", off by default; "fresh" unit normals per step; "Brownian", one path
            per seed.
        options: keyword arguments of the formula.
        spans: makes the steps of the levels and the options; None is one step from each level to
            the next.
        model: what the first argument is called.
        least: how many levels there must be.
        keeps_spread: whether the method moves x = D + sigma z with constant D to exactly the spread
            of every level.
        checked: `checked(denoiser, **options)` raises where they do not fit each other; it may
            return further keyword arguments of the formula, which depend on the denoiser.
        space: "sigma" for a denoiser; "map" for a flow map, whose levels are called times.
        upward: whether, with these options, the formula goes to larger levels, too; None: where no
            noise is added.

    Returns:
        A decorator of `formula(step, **options) -> Form`; `trace.Step` is what it may ask.
    """
    check.choice("noise", noise, ("none", "churn", "fresh", "Brownian"))
    churn = CHURN if noise == "churn" else ()
    extra = (*churn, *(() if noise == "none" else (S_NOISE,)))
    own = [option.name for option in options]
    named = "times" if space == "map" else "sigmas"

    def goes_up(mine: dict[str, Any], lifts: dict[str, Any]) -> bool:
        if upward is not None:
            return upward(**mine)
        return noise == "none" or lifts.get("s_churn") == 0.0

    def decorate(formula: Formula) -> Sampler:
        asked = taken(formula, own, some=spans is not None or checked is not None)

        def prepare(denoiser: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Prepared:
            check.state("x", x)
            check.function(model, denoiser)
            mine = {name: values.pop(name) for name in own}
            more = (checked(denoiser, **mine) if checked is not None else None) or {}
            lifts = {option.name: values.pop(option.name) for option in churn}
            up = goes_up(mine, lifts)
            levels = check.sigmas(named, grid, least=least, up=up)
            path = coordinates_of(denoiser)
            kind = kind_of(denoiser, "flow map" if space == "map" else "denoiser")
            path.check_levels(named, levels, kind)
            check_range(levels, named)
            if spans is not None:
                steps = tuple(spans(levels, **mine))
                path.check_levels("levels of all steps", [step[1] for step in steps], kind)
            elif churn:
                steps = lifted(levels, **lifts, path=path)
            else:
                steps = tuple((s, s, to, 0) for s, to in pairwise(levels))
            traced = trace(
                formula,
                steps,
                (*((name, mine[name]) for name in asked), *more.items()),
                s_noise=values.pop("s_noise", 1.0),
                noise=noise,
                keeps_spread=keeps_spread,
                path=path,
            )
            return Prepared(traced, denoiser, OnLevels(**values), formula.__name__, model)

        def call(denoiser: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Result:
            closely = values.pop(CHECK.name)
            ready = prepare(denoiser, x, grid, values)

            def go(asked: object) -> Result:
                return run(ready if asked is denoiser else replace(ready, denoiser=asked), x)

            levels = ready.levels
            extra_args = ready.options.extra_args or {}
            about = About(model, levels[-1], extra_args, ready.traced.maps, named)
            return run_checked(go, denoiser, x, levels, about, closely=closely)

        defaults = [{option.name: option.default for option in some} for some in (options, churn)]
        text = Text(model, named, noise, upward=goes_up(*defaults))
        declared = (*options, *extra, *ON_LEVELS, CHECK)
        function: Sampler = public(formula, call, declared, text, prepare)
        facts = {"order": order, "nfe": nfe, "noise": noise, "source": source, "space": space}
        catalogue.enter(function, **facts)
        return function

    return decorate


def taken(formula: Formula, own: Sequence[str], *, some: bool = False) -> list[str]:
    """The options that a formula takes: all that its solver declares, or `some`.

    Raises:
        TypeError: an option that nothing takes.
    """
    found = [name for name in own if name in inspect.signature(formula).parameters]
    for name in () if some else own:
        if name not in found:
            raise TypeError(
                f"options of {formula.__name__} declare {name!r}, which the formula does not take"
            )
    return found


def _checked_default(solver: str, option: Option) -> Any:
    """The default of an option, which it must accept."""
    about = f"checked of option {option.name!r} of {solver}"
    try:
        value = option.checked(option.name, option.default)
    except TypeError as error:
        raise TypeError(f"{about} must take (name, value): {error}") from error
    if value is None and option.default is not None:
        raise TypeError(f"{about} must return the value; it returned None")
    return value


def public(
    described: Callable[..., Any],
    call: Callable[..., Any],
    options: Sequence[Option],
    text: Text,
    prepare: Callable[..., Prepared] | None = None,
) -> Any:
    """A function with the name and docstring of `described` and a complete signature.

    Args:
        described: has the name, the module and the docstring; sections "Args", "Returns" and
            "Raises" in it replace or extend what is written here.
        call: `call(model, x, grid, values)` gets checked options.
        options: all keyword arguments.
        text: of the docstring.
        prepare: of the arguments of `call` all of the run, for `prepared`.
    """
    name = described.__name__
    twice = [n for n, count in Counter(option.name for option in options).items() if count > 1]
    if twice:
        raise TypeError(f"options of {name} declare {twice[0]!r}, which every solver has already")
    defaults = {option.name: _checked_default(name, option) for option in options}
    signature = signature_of(text, options)
    known = {option.name: option for option in options}

    def read(*args: Any, **given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for key in given:
            if key not in known and key not in signature.parameters:
                raise TypeError(unknown_argument(name, key))
        if len(args) > 3:
            raise TypeError(too_many(name, list(signature.parameters)[:3], args))
        if len(args) != 3 or not given.keys() <= known.keys():
            try:
                bound = signature.bind(*args, **given)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            args, given = bound.args, bound.kwargs
        values = dict(defaults)
        for key, value in given.items():
            values[key] = known[key].checked(key, value)
        return args, values

    def function(*args: Any, **given: Any) -> Any:
        args, values = read(*args, **given)
        with _gradients(args[1], name, values["grad"]):
            return call(*args, values)

    if prepare is not None:

        def ready(*args: Any, **given: Any) -> Prepared:
            args, values = read(*args, **given)
            values.pop(CHECK.name, None)
            return prepare(*args, values)

        function.prepared = ready  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    function.__wrapped__ = described  # type: ignore[attr-defined]  # what getsource shows
    function.__module__ = described.__module__
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = docstring_of(inspect.getdoc(described) or "", options, text)
    return function


def prepared(
    solver: object, model: object, x: Tensor, grid: Levels, options: Mapping[str, Any]
) -> Prepared:
    """A run of a solver with fixed steps, checked and traced, but not begun.

    `solver` may be a `functools.partial`; the rest are its arguments.

    Raises:
        TypeError: another function.
    """
    base: Any = solver
    preset: dict[str, Any] = {}
    while isinstance(base, partial):
        base, preset = base.func, {**base.keywords, **preset}
    prepare = getattr(base, "prepared", None)
    if prepare is None:
        raise TypeError(
            f"sampler must be a solver of the library with fixed steps; got "
            f"{check.describe(solver)}"
        )
    ready: Prepared = prepare(model, x, grid, **{**preset, **options})
    return ready


def _gradients(x: object, name: str, grad: bool) -> AbstractContextManager[object]:
    """The context of a run: without autograd unless that is wanted, and a warning for x."""
    if grad:
        return nullcontext()
    if getattr(x, "requires_grad", False) and torch.is_grad_enabled():
        warnings.warn(
            f"x requires a gradient, but {name} runs without autograd; grad=True records the run",
            stacklevel=3,
        )
    return torch.no_grad()
