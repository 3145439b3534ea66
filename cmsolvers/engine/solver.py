"""The decorator that makes a public solver of a formula."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.checks import Levels
from cmsolvers.denoisers.protocol import Denoiser
from cmsolvers.engine import catalogue
from cmsolvers.engine.observers import Info
from cmsolvers.engine.options import CHURN, S_NOISE, SHARED, Option
from cmsolvers.engine.run import run
from cmsolvers.engine.trace import Formula, Span, lifted, trace

Result: TypeAlias = Tensor | tuple[Tensor, Info]
Spans: TypeAlias = Callable[..., Sequence[Span]]
"""`spans(sigmas, **options)` -> the spans of all steps."""


Model = TypeVar("Model", contravariant=True)


class Solver(Protocol[Model]):
    """What `solver` and `time_solver` make: `solver(model, x, grid, **options)`."""

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
    ) -> tuple[Tensor, Info]: ...

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
    ) -> tuple[Tensor, Info]: ...

    @overload
    def __call__(self, model: Model, x: Tensor, grid: Levels, /, **options: Any) -> Tensor: ...

    def __call__(self, model: Model, x: Tensor, grid: Levels, /, **options: Any) -> Result:
        """Run; each solver documents its arguments."""


Sampler: TypeAlias = Solver[Denoiser]
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
    checked: Callable[..., object] | None = None,
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
        checked: `checked(denoiser, **options)` raises where they do not fit each other.

    Returns:
        A decorator of `formula(step, **options) -> Form`; `trace.Step` is what it may ask.
    """
    check.choice("noise", noise, ("none", "churn", "fresh", "Brownian"))
    churn = CHURN if noise == "churn" else ()
    extra = (*churn, *(() if noise == "none" else (S_NOISE,)))
    own = [option.name for option in options]

    def decorate(formula: Formula) -> Sampler:
        asked = [name for name in own if name in inspect.signature(formula).parameters]

        def call(denoiser: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Result:
            check.state("x", x)
            check.function(model, denoiser)
            mine = {name: values.pop(name) for name in own}
            if checked is not None:
                checked(denoiser, **mine)
            levels = check.sigmas("sigmas", grid, least=least)
            lifts = [values.pop(option.name) for option in churn]
            if spans is not None:
                steps = tuple(spans(levels, **mine))
            elif churn:
                steps = lifted(levels, *lifts)
            else:
                steps = tuple((s, s, to, 0) for s, to in pairwise(levels))
            traced = trace(
                formula,
                steps,
                tuple((name, mine[name]) for name in asked),
                s_noise=values.pop("s_noise", 1.0),
                noise=noise,
                keeps_spread=keeps_spread,
            )
            return run(traced, denoiser, x, name=formula.__name__, model=model, **values)

        text = Text(model, "sigmas", noise)
        function: Sampler = public(formula, call, (*options, *extra, *SHARED), text)
        catalogue.enter(function, order=order, nfe=nfe, noise=noise, source=source)
        return function

    return decorate


class Text:
    """Words of the docstring that depend on what a solver runs on.

    Args:
        model: name of the first argument.
        grid: name of the third: "sigmas" or "ts".
        noise: as in `solver`.
    """

    def __init__(self, model: str, grid: str, noise: str) -> None:
        self.model, self.grid, self.noise = model, grid, noise

    def arguments(self) -> dict[str, str]:
        """The positional arguments."""
        if self.grid == "ts":
            return {self.model: SDE, "x": X_IN_TIME, "ts": TIMES}
        model = CONSISTENCY if self.model == "f" else DENOISER
        return {self.model: model, "x": X, "sigmas": SIGMAS}

    def words(self) -> dict[str, str]:
        """What is put into the texts of shared options."""
        sigma = self.grid == "sigmas"
        entry = (
            "a dict of i, sigma, sigma_hat (numbers), x (the state at sigma_hat; sigma_hat is "
            "sigma where no noise lifts the state) and denoised (D there)."
        )
        times = (
            "a dict of i, t, t_next (numbers), x (the state at t) and output (what the drift or "
            "the score returned)."
        )
        spans = "; churn gives it (sigma, sigma_hat)" if self.noise == "churn" else ""
        return {
            "start": "sigma" if sigma else "t",
            "end": "sigma_next" if sigma else "t_next",
            "noise_spans": spans,
            "model": "drift or the score"
            if not sigma
            else ("function f" if self.model == "f" else self.model),
            "entry": entry if sigma else times,
            "level": "level" if sigma else "time",
        }

    def returns(self) -> str:
        """The result."""
        return (
            f"x at {self.grid}[-1], in the dtype, layout and device of x; with `return_info` or "
            "`trajectory` also an `Info`."
        )

    def raises(self) -> dict[str, str]:
        """The errors of every solver."""
        return {
            "TypeError": "an argument of the wrong kind; an output of the "
            f"{self.words()['model']} that is no floating tensor of at most the precision of x.",
            "ValueError": f"{self.grid} that are not finite and monotone, numbers out of range, an "
            f"output of the {self.words()['model']} of another shape or on another device.",
        }


DENOISER = """`D(x, sigma, **extra_args) -> x0`, x in Karras coordinates and sigma of shape [B],
both in the dtype of x. Of a denoiser of `cmsolvers.denoisers` the sampler calls the network
directly; preconditioning and guidance become weights of the step. It may return the dtype of x or a
floating one of lower precision. It must not write to its arguments; x is a buffer of the run, so
clone it to keep it."""
CONSISTENCY = """`f(x, sigma, **extra_args) -> x` at sigma_min, sigma of shape [B]; a
`ConsistencyFunction` becomes part of the step."""
X = """[B, ...] at level sigmas[0], in Karras coordinates (x / alpha); float64, float32, float16 or
bfloat16. Never written to."""
SIGMAS = """levels, strictly descending, the last may be 0; a tensor or a sequence. Read once and
kept in float64 on the host."""
SDE = """an `SDE`, a process (its forward SDE), `process.reverse(score)`,
`process.probability_flow(score)`, or any object with `drift(x, t)` and `diffusion(t)`, which get t
of shape [B] in the dtype of x. The diffusion is a number or a tensor of shape [] or [B], or it
broadcasts against x and multiplies the noise elementwise. One that depends on the state is
`diffusion(x, t)`, with `state_dependent = True` beside it (an argument of `SDE`). Of the library's
own SDEs only the score is called; the rest becomes weights of the step."""
X_IN_TIME = """[B, ...] at ts[0], in the coordinates of the SDE; float64, float32, float16 or
bfloat16. Never written to."""
TIMES = "strictly ascending (forward) or strictly descending (reverse), at least two."


def public(
    described: Callable[..., Any],
    call: Callable[..., Any],
    options: Sequence[Option],
    text: Text,
) -> Any:
    """A function with the name and docstring of `described` and a complete signature.

    Args:
        described: has the name, the module and the docstring; sections "Args", "Returns" and
            "Raises" in it replace or extend what is written here.
        call: `call(model, x, grid, values)` gets checked options.
        options: all keyword arguments.
        text: of the docstring.
    """
    name = described.__name__
    signature = _signature(text, options)
    known = {option.name: option for option in options}
    defaults = {option.name: option.default for option in options}

    def function(*args: Any, **given: Any) -> Any:
        for key in given:
            if key not in known and key not in signature.parameters:
                raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        if len(args) != 3 or not given.keys() <= known.keys():
            try:
                bound = signature.bind(*args, **given)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            args, given = bound.args, bound.kwargs
        values = dict(defaults)
        for key, value in given.items():
            values[key] = known[key].checked(key, value)
        return call(*args, values)

    function.__name__ = function.__qualname__ = name
    function.__wrapped__ = described  # type: ignore[attr-defined]  # what getsource shows
    function.__module__ = described.__module__
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = _docstring(inspect.getdoc(described) or "", options, text)
    return function


def _signature(text: Text, options: Sequence[Option]) -> inspect.Signature:
    positional = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in text.arguments()
    ]
    keywords = [
        inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default)
        for o in options
    ]
    return inspect.Signature([*positional, *keywords])


def _docstring(written: str, options: Sequence[Option], text: Text) -> str:
    """What the formula's author wrote, with the arguments, the result and the errors."""
    parts = re.split(r"^(Args|Returns|Raises|Source):", written, flags=re.MULTILINE)
    sections = {name: textwrap.dedent(body) for name, body in pairwise(parts) if name in _SECTIONS}
    entries = text.arguments() | _entries(sections.get("Args", ""))
    for option in options:
        entries.setdefault(option.name, option.text)
    words = text.words()
    errors = text.raises()
    for name, more in _entries(sections.get("Raises", "")).items():
        errors[name] = f"{errors[name][:-1]}; {more}" if name in errors else more
    blocks = [
        parts[0].strip(),
        "Args:\n" + _listed({k: _filled(v, words) for k, v in entries.items()}),
        "Returns:\n" + _wrapped(sections.get("Returns", "").strip() or text.returns(), 4),
        "Raises:\n" + _listed(errors),
    ]
    if "Source" in sections:
        blocks.append("Source: " + sections["Source"].strip())
    return "\n\n".join(blocks) + "\n"


_SECTIONS = ("Args", "Returns", "Raises", "Source")


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text


def _entries(section: str) -> dict[str, str]:
    """Entries `name: text` of a section of a docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(section).strip("\n").splitlines():
        head = re.match(r"(\w+): (.*)", line)
        if head:
            name = head.group(1)
            found[name] = head.group(2)
        elif name:
            found[name] += " " + line.strip()
    return found


def _listed(entries: Mapping[str, str]) -> str:
    return "\n".join(_wrapped(f"{name}: {text}", 4, 8) for name, text in entries.items())


def _wrapped(text: str, first: int, rest: int | None = None) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        100,
        initial_indent=" " * first,
        subsequent_indent=" " * (first if rest is None else rest),
    )
