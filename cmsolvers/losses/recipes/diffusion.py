"""Losses of diffusion and flow models: the mean of x_0, or of the velocity, given x_t."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.losses.evaluation import Evaluation
from cmsolvers.losses.level_distributions import LogitNormal, LogNormal
from cmsolvers.losses.loss import loss
from cmsolvers.losses.velocity_guidance import Guidance, learned_velocity
from cmsolvers.losses.weights import LevelWeight, edm_weight, mean_square


@loss(
    identity="score",
    source="Vincent (2011); Karras et al., 'Elucidating the Design Space of Diffusion-Based "
    "Generative Models' (2022), eq. 2 and section 5",
    times=LogNormal(-1.2, 1.2),
    coordinates="karras",
    model="denoiser",
)
def dsm(at: Evaluation, *, weight: LevelWeight | None = None, sigma_data: float = 0.5) -> Tensor:
    """Denoising score matching: E w(sigma) |D(x_0 + sigma z, sigma) - x_0|^2, a mean over elements.

    Its minimiser is the exact denoiser E[x_0 | x].

    Args:
        weight: w of the ratio sigma / alpha, float64 [B]; None is `edm_weight(sigma_data)`.
        sigma_data: standard deviation of the data, for the default weight.
    """
    (x,) = at.states(at.t)
    w = edm_weight(sigma_data) if weight is None else weight
    return mean_square(at.student.clean(x) - at.x0) * w(at.path.ratio(at.t))


@loss(
    identity="score",
    source="Lipman et al., 'Flow Matching for Generative Modeling' (2023), eq. 23; Esser et al., "
    "'Scaling Rectified Flow Transformers' (2024), eq. 19, for the times",
    times=LogitNormal(),
    coordinates="flow",
    model="flow map",
)
def flow_matching(
    at: Evaluation, *, weight: LevelWeight | None = None, guidance: Guidance | None = None
) -> Tensor:
    """Flow matching: E |v(x_t, t) - (z - x_0)|^2 at x_t = (1 - t) x_0 + t z, a mean over elements.

    The model is a denoiser or a flow map, whose diagonal is trained. In other coordinates the
    velocity is theirs, alpha' x_0 + sigma' z.

    Args:
        weight: w(t), float64 [B]; None is 1.
        guidance: a `Guidance` in the velocity that is learnt, with `label_dropout`: one pass then
            samples with guidance (Tang et al., "Diffusion Models without Classifier-free Guidance",
            2025, is omega = 1 and kappa = w); None is none.
    """
    (x,) = at.states(at.t, velocity=True)
    value = mean_square(at.student.velocity(x) - learned_velocity(at, x, guidance))
    return value if weight is None else value * weight(at.t)
