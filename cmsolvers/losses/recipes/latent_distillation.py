"""Latent consistency distillation: guidance is an input of the student."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State, moved_along
from cmsolvers.losses.evaluation.terms import Weighted
from cmsolvers.losses.formulas.pairs import consistency_pair, measured
from cmsolvers.losses.formulas.perceptual import Between
from cmsolvers.losses.formulas.teacher_steps import TeacherStep
from cmsolvers.losses.formulas.weights import Norm, PairWeight, elementwise_huber
from cmsolvers.losses.times.consistency_times import ChainPairs


@loss(
    identity="eulerian",
    source="Luo et al., 'Latent Consistency Models' (2023), algorithm 1 and eq. 14 to 16",
    times=ChainPairs(),
    coordinates="karras",
    model="consistency",
    teacher="required",
    pair=True,
)
def lcm(
    at: Evaluation,
    *,
    null_args: Mapping[str, object] | None = None,
    guidance: tuple[float, float] | None = (3.0, 15.0),
    guidance_name: str = "w",
    distance: Norm | Between | None = None,
    weight: PairWeight | None = None,
) -> Weighted:
    """Latent consistency distillation: one DDIM step of the guided teacher, 20 steps of its chain.

    Each sample has its own w ~ U[3, 15]; model and target get it as an input, and the teacher's x_0
    is that with the condition plus w times (with - without). The target is an average of the
    model's network with decay 0.95, and the model a `LatentConsistencyFunction` that begins with
    the teacher's weights. To sample in 4 steps take the times 999, 759, 499 and 259 of a chain of
    1000: `consistency_sample(f, x, chain.sigmas[[999, 759, 499, 259]], sigma_min=1e-4,
    extra_args={"w": ...})`.

    Args:
        null_args: what the teacher gets in place of its arguments of these names where it has no
            condition, such as {"y": null_label}.
        guidance: (low, high) of w, not negative; [5, 15] is common too. None: no guidance and no
            input w.
        guidance_name: of the model's argument that takes w, [B], in float32 at least.
        distance: a norm of f - f^- per sample, or a distance `Between` both; None is
            `elementwise_huber(1e-3)`.
        weight: w(t, s), float64 [B] each, in sigma / alpha; None is 1.
    """
    step: str | TeacherStep = "euler"
    if guidance is not None:
        low = check.non_negative("guidance[0]", guidance[0])
        high = check.positive("guidance[1]", guidance[1])
        if high < low:
            raise ValueError(f"guidance must be (low, high) with low <= high; got {guidance}")
        if null_args is None:
            raise ValueError(
                "null_args must hold the teacher's arguments without a condition, or guidance be "
                "None; got None"
            )
        told = torch.promote_types(at.x0.dtype, torch.float32)
        w = (low + (high - low) * at.uniform()[:, 0]).to(told)
        step = guided_ddim(w.double(), check.options("null_args", null_args))
        at.hand(**{guidance_name: w})
    made, aim = consistency_pair(at, step)
    return measured(at, made, aim, elementwise_huber() if distance is None else distance, weight)


def guided_ddim(w: Tensor, null_args: Mapping[str, object]) -> TeacherStep:
    """DDIM's step with D = D_c + w (D_c - D_u), [B] each; D_u has `null_args`.

    Source: Luo et al. (2023), eq. 14 and 15.
    """

    def step(teacher: ModelView, x: State, end: Tensor) -> State:
        without = teacher.given(null_args)
        velocity = teacher.velocity(x) * (1.0 + w) - without.velocity(x) * w
        return moved_along(x, velocity, end)

    return step
