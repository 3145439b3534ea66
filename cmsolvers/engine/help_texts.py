"""Signatures and docstrings of public solvers, made of options and texts."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

from cmsolvers.engine.options import Option


class Text:
    """Words of the docstring that depend on what a solver runs on.

    Args:
        model: name of the first argument.
        grid: name of the third: "sigmas", "times" of a flow map, or "ts".
        noise: as in `solver`.
        upward: whether the levels may ascend.
    """

    def __init__(self, model: str, grid: str, noise: str, *, upward: bool = False) -> None:
        self.model, self.grid, self.noise, self.upward = model, grid, noise, upward

    def arguments(self) -> dict[str, str]:
        """The positional arguments."""
        if self.grid == "ts":
            return {self.model: SDE, "x": X_IN_TIME, "ts": TIMES}
        model = CONSISTENCY if self.model == "f" else DENOISER
        return {self.model: model, "x": X, self.grid: SIGMAS + (UPWARD if self.upward else "")}

    def words(self) -> dict[str, str]:
        """What is put into the texts of shared options."""
        sigma = self.grid != "ts"
        entry = (
            "a dict of i, sigma, sigma_hat (numbers), x (the state at sigma_hat, float32 at least; "
            "sigma_hat is sigma where no noise lifts the state) and denoised (D there)."
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
        model = self.words()["model"]
        return {
            "TypeError": f"an argument of the wrong kind; an output of the {model} that is not a "
            "floating tensor, or has higher precision than x.",
            "ValueError": f"{self.grid} that are not finite and monotone, numbers out of range, an "
            f"output of the {model} of another shape or on another device.",
        }


DENOISER = """`D(x, sigma, **extra_args) -> x0`, sigma of shape [B], both in the dtype of x. Its
attribute `coordinates` ("karras" by default, "flow" or a `Process`) says in which coordinates
states and levels are. Of a denoiser of `cmsolvers.denoisers` the sampler calls the network
directly; preconditioning and guidance become weights of the step. It may return the dtype of x or a
floating one of lower precision. It must not write to its arguments. The x that it gets is a buffer
of the run: clone it to keep it."""
CONSISTENCY = """`f(x, sigma, **extra_args) -> x` at sigma_min, sigma of shape [B]; a
`ConsistencyFunction` becomes part of the step."""
X = """[B, ...] at level sigmas[0], in the coordinates of the denoiser: sigmas[0] z for Karras ones,
z at t = 1 of flow ones; float64, float32, float16 or
bfloat16. Never written to. Where it is of half precision, the states inside the run are float32;
the denoiser sees them in the dtype of x, and the result is rounded once."""
SIGMAS = """levels in the coordinates of the denoiser (sigma, or t), strictly descending, the last
may be 0; a tensor or a sequence. Read once and
kept in float64 on the host."""
UPWARD = """ Without noise they may be strictly ascending, too, all positive: from data, which the
smallest level stands for, to its latent."""
SDE = """an `SDE`, a process (its forward SDE), `process.reverse(score)`,
`process.probability_flow(score)`, or any object with `drift(x, t)` and `diffusion(t)`, which get t
of shape [B] in the dtype of x. The diffusion is a number or a tensor of shape [] or [B], or it
broadcasts against x and multiplies the noise elementwise. One that depends on the state is
`diffusion(x, t)`, with `state_dependent = True` beside it (an argument of `SDE`). Of the library's
own SDEs only the score is called; the rest becomes weights of the step."""
X_IN_TIME = """[B, ...] at ts[0], in the coordinates of the SDE; float64, float32, float16 or
bfloat16. Never written to. Where it is of half precision, the states inside the run are float32;
the functions of the SDE see them in the dtype of x, and the result is rounded once."""
TIMES = "strictly ascending (forward) or strictly descending (reverse), at least two."


def signature_of(text: Text, options: Sequence[Option]) -> inspect.Signature:
    """The positional arguments and all options by name."""
    positional = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in text.arguments()
    ]
    keywords = [
        inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default)
        for o in options
    ]
    return inspect.Signature([*positional, *keywords])


def docstring_of(written: str, options: Sequence[Option], text: Text) -> str:
    """What the formula's author wrote, with the arguments, the result and the errors."""
    parts = re.split(r"^(Args|Returns|Raises|Source):", written, flags=re.MULTILINE)
    sections = {name: textwrap.dedent(body) for name, body in pairwise(parts) if name in _SECTIONS}
    entries = text.arguments() | _entries(sections.get("Args", ""))
    for option in options:
        entries.setdefault(option.name, option.text)
    order = [*text.arguments(), *(option.name for option in options)]
    entries = {name: entries.pop(name) for name in order} | entries
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
