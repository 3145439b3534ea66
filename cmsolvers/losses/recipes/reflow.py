"""Reflow: straight paths between noise and what a model's own ODE makes of it."""

from __future__ import annotations

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import Combination
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.teacher_steps import TeacherStep
from cmsolvers.losses.formulas.trajectories import generated
from cmsolvers.losses.formulas.weights import LevelWeight, Norm, mean_square
from cmsolvers.losses.times.flow_times import Uniform


@loss(
    identity="score",
    source="Liu, Gong & Liu, 'Flow Straight and Fast: Learning to Generate and Transfer Data with "
    "Rectified Flow' (2023), eq. 1 and algorithm 1; Lee, Lin & Fanti, 'Improving the Training of "
    "Rectified Flows' (2024), for pseudo-Huber and U-shaped times",
    times=Uniform(),
    coordinates="flow",
    model="flow map",
    teacher="optional",
)
def reflow(
    at: Evaluation,
    *,
    noise: Tensor | None = None,
    steps: int = 25,
    solver: str | TeacherStep = "heun",
    weight: LevelWeight | None = None,
    distance: Norm = mean_square,
) -> Tensor:
    """Rectified flow on coupled pairs: E |v(x_t, t) - (z - x_0)|^2 at x_t = (1 - t) x_0 + t z.

    The pair belongs together: x_0 is where the probability-flow ODE of the previous model leads z.
    Either both are given, `x0` and `noise`; or `noise` is None and the teacher, the previous model,
    makes x_0 of the loss's own z: then only shape, dtype and device of `x0` count. Guidance is the
    teacher's (`denoisers.guided`).

    With `levels=1.0` it is distillation of the pair into one step: D at pure noise is x_0.

    Args:
        noise: z of each sample, unit normals [B, ...] like x0.
        steps: of the teacher's ODE: equal in t, Karras's from 80 to 0.002 in Karras coordinates.
        solver: "heun", "euler" or a `TeacherStep`; the last step of "heun" is Euler's.
        weight: w(t), float64 [B]; None is 1.
        distance: of the velocity's residual per sample.
    """
    x = paired(at, noise, steps, solver)
    value = distance(at.student.velocity(x) - x.velocity)
    return value if weight is None else value * weight(at.t)


def paired(at: Evaluation, noise: Tensor | None, steps: int, solver: str | TeacherStep) -> State:
    """The state at t of a given pair, or of the teacher's, with the pair's velocity.

    Raises:
        TypeError, ValueError: noise is not like x0; both or neither of noise and teacher are given.
    """
    if (noise is None) is not at.has_teacher:
        both = "both" if at.has_teacher else "neither"
        raise ValueError(f"either noise or a teacher must be given to reflow; got {both}")
    if noise is None:
        at.x0 = generated(at.teacher, at.noise(), steps, solver)
        if at.left_out is not None:
            at.x0 = at.left_out.without_bad(at.x0)
        return at.states(at.t, velocity=True)[0]
    z = check.state("noise", noise)
    if z.shape != at.x0.shape or z.device != at.x0.device:
        raise ValueError(f"noise must be like x0, {check.describe(at.x0)}; got {check.describe(z)}")
    if at.left_out is not None:
        z = at.left_out.without_bad(z)
    alpha_rate, sigma_rate = at.path.pair_rates(at.t)
    pair = (at.path.alpha(at.t), at.path.sigma(at.t)), (alpha_rate, sigma_rate)
    x, v = (Combination([(at.x0, a), (z, b)]).tensor(at.x0.dtype) for a, b in pair)
    return State(x, at.t, velocity=v)
