"""What is known of every solver, in one place: the documentation's table is made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Noise: TypeAlias = Literal["none", "churn", "fresh", "Brownian"]


@dataclass(frozen=True, slots=True)
class Facts:
    """One line of the table.

    Attributes:
        name: of the function in `cmsolvers`.
        function: the solver itself.
        order: of convergence, as text: "2", "1 to 4", "1.5 strong, additive noise".
        nfe: evaluations of the model for n steps, as text: "n", "2 n - 1".
        noise: none; churn, off by default; fresh unit normals per step; a Brownian path.
        source: paper and equation or algorithm.
        space: "sigma" (a denoiser on noise levels), "map" (a flow map) or "time" (any SDE or ODE).
        adaptive: whether each sample chooses its own steps.
    """

    name: str
    function: Callable[..., object]
    order: str
    nfe: str
    noise: Noise
    source: str
    space: Literal["sigma", "map", "time"] = "sigma"
    adaptive: bool = False


SOLVERS: dict[str, Facts] = {}
"""All solvers that have been imported, by name."""


def enter(function: Callable[..., object], **facts: Any) -> None:
    """Enter a solver; the facts are the other attributes of `Facts`."""
    name = function.__name__
    SOLVERS[name] = Facts(name, function, **facts)


def table() -> str:
    """All solvers in Markdown, in the order of their kinds and names."""
    spaces = {"sigma": "a denoiser", "map": "a flow map", "time": "any SDE or ODE"}
    rows = sorted(SOLVERS.values(), key=lambda f: (list(spaces).index(f.space), f.adaptive, f.name))
    lines = ["| solver | runs on | order | NFE for n steps | noise | source |", "|" + "---|" * 6]
    for f in rows:
        steps = ", own steps per sample" if f.adaptive else ""
        lines.append(
            f"| `{f.name}` | {spaces[f.space]}{steps} | {f.order} | {f.nfe} | {f.noise} | "
            f"{f.source} |"
        )
    return "\n".join(lines)
