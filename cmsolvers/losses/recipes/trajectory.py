"""Trajectories: any point of one leads to the same end, compared where data are."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import Combination
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.teacher_steps import TeacherStep, stepped
from cmsolvers.losses.formulas.trajectories import further_level
from cmsolvers.losses.formulas.weights import LevelWeight, Norm, edm_weight, mean_square
from cmsolvers.losses.times.basic_times import LogNormal
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.losses.times.elementwise import power
from cmsolvers.losses.times.trajectory_times import RhoPairs

_RHO = 7.0


@loss(
    identity="semigroup",
    source="Kim et al., 'Consistency Trajectory Models' (2024), eq. 7 and 9, algorithm 2",
    times=RhoPairs(),
    coordinates="karras",
    model="flow map",
    teacher="optional",
    pair=True,
)
def ctm(
    at: Evaluation,
    *,
    compared_at: float = 0.0,
    solver: str | TeacherStep = "heun",
    steps: int = 17,
    distance: Norm = mean_square,
    balance: float | Tensor = 1.0,
    denoising: Distribution[Tensor] = LogNormal(),  # noqa: B008
    denoising_weight: LevelWeight | None = None,
) -> Tensor:
    """Consistency trajectory: f_{t->s}(x_t) and f^-_{u->s}(Solver(x_t, t -> u)) have one end.

    u is drawn in [s, t), uniform in the level to the power 1 / 7. Both sides are carried on to
    clean data by the target, through which the student's side has its gradient, and compared there;
    plus denoising score matching of the map's diagonal. (The paper's adversarial term is left out.)
    Without a teacher the other point is x_u of the same noise.

    Args:
        compared_at: the level where both sides are compared: 0, or sigma_min as in the authors'
            code; sides that are below it already are compared where they are.
        solver: the teacher's step: "heun", "euler" or a callable; see `teacher_steps`.
        steps: of the solver from t to u, even in the level to the power 1 / 7; one step of Heun's
            method over a wide interval ends far from the trajectory.
        distance: of both sides, per sample.
        balance: factor of the denoising term: a number, or the parameter of the last layer, by
            which it is |d trajectory| / (|d denoising| + 1e-4), at most 10,000.
        denoising: distribution of the levels of that term.
        denoising_weight: w of the ratio sigma / alpha there; None is `edm_weight()`.
    """
    u = at.uniform(2)
    between = _between(at, u[:, 0])
    if at.has_teacher:
        (x,) = at.states(at.t)
        y = _solved(at, x, between, solver, check.count("steps", steps))
    else:
        x, y = at.states(at.t, between)
    end = check.non_negative("compared_at", compared_at)
    one = _carried(at, at.student(x, at.s), end)
    other = _carried(at, at.target(y, at.s), end).detach()
    value = distance(one - other)
    level = further_level(at, denoising, u[:, 1])
    (noisy,) = at.states(level)
    weight = edm_weight() if denoising_weight is None else denoising_weight
    clean = mean_square(at.student.again().clean(noisy) - at.x0) * weight(at.path.ratio(level))
    if at.left_out is not None:  # before a gradient is asked for
        at.left_out.add(~(value + clean).detach().isfinite())
    factor = balanced(value, clean, balance)
    at.diagnostics |= {"trajectory": value.mean(), "denoising": clean.mean(), "balance": factor}
    return value + factor * clean


def balanced(
    value: Tensor, other: Tensor, balance: float | Tensor, most: float = 1e4
) -> float | Tensor:
    """The factor of `other` beside `value`, [B] both: a number, or the ratio of their gradients.

    For a parameter p that is |d mean(value) / dp| / (|d mean(other) / dp| + 1e-4), at most `most`.
    Samples of which one of them is not finite have no part in the means.

    Raises:
        TypeError: neither a number nor a parameter.
        ValueError: a negative number, a parameter that one of them does not depend on.

    Source: Kim et al., "Consistency Trajectory Models" (2024), section 3.2 and published code;
        Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (2021), eq. 7.
    """
    if not isinstance(balance, Tensor):
        return check.non_negative("balance", balance)
    if not balance.requires_grad:
        raise TypeError(
            f"balance must be a number or a parameter of the last layer; got "
            f"{check.describe(balance)} without gradient"
        )
    sizes, fit = [], (value + other).detach().isfinite()
    for term in (value, other):
        mean = torch.where(fit, term, 0.0).mean()
        (rate,) = torch.autograd.grad(mean, balance, retain_graph=True, allow_unused=True)
        if rate is None:
            raise ValueError("balance must be a parameter of the model; the loss does not read it")
        sizes.append(rate.double().norm())
    found: Tensor = sizes[0] / (sizes[1] + 1e-4)
    return found.clamp(0.0, most)


def _between(at: Evaluation, share: Tensor) -> Tensor:
    """u in [s, t), uniform in the level to the power 1 / 7."""
    high, low = power(at.t, 1.0 / _RHO), power(at.s, 1.0 / _RHO)
    return torch.maximum(power(high + share * (low - high), _RHO), at.s)


def _solved(
    at: Evaluation, x: State, between: Tensor, solver: str | TeacherStep, steps: int
) -> State:
    """Where the teacher's ODE takes x, in steps that are even in the level to the power 1 / 7."""
    high, low = power(at.t, 1.0 / _RHO), power(between, 1.0 / _RHO)
    for k in range(1, steps + 1):
        end = between if k == steps else power(high + (k / steps) * (low - high), _RHO)
        x = stepped(solver, at.teacher, x, end)
    return x


def _carried(at: Evaluation, f: Combination, end: float) -> Combination:
    """A state at s carried on to `end` by the target, with gradient by the state alone."""
    inner, there = at.target.flow_map(), at.s <= end
    start = torch.where(there, at.t, at.s)  # of those that stay: a level that the network knows
    state, stop = State(f.tensor(at.x0.dtype), start), torch.full_like(start, end)
    a, b = inner.skip_out(start, torch.minimum(stop, start))
    made = at.target.raw_of_state(state, torch.minimum(stop, start))
    one = torch.ones_like(start)
    return Combination(
        [(state.x, torch.where(there, one, a)), (made, torch.where(there, 0.0 * one, b))]
    )
