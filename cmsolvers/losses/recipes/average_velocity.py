"""Average velocities: losses of the MeanFlow family."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.losses.evaluation import Evaluation
from cmsolvers.losses.identities import eulerian
from cmsolvers.losses.level_distributions import LogitNormalPairs
from cmsolvers.losses.loss import loss
from cmsolvers.losses.weights import adaptive, square_sum


@loss(
    identity="eulerian",
    source="Geng et al., 'Mean Flows for One-step Generative Modeling' (2025), algorithm 1, eq. 22",
    times=LogitNormalPairs(),
    coordinates="flow",
    model="flow map",
)
def meanflow(
    at: Evaluation, *, p: float = 1.0, eps: float = 1e-3, derivative: str = "jvp"
) -> Tensor:
    """MeanFlow: |u - sg(v - (t - s) du/dt)|^2, du/dt along the velocity of the pair, v = z - x_0.

    Args:
        p: power of the adaptive weight.
        eps: added to the squared norm, a sum over elements, before that power.
        derivative: "jvp" or "finite_difference".
    """
    (x,) = at.states(at.t, velocity=True)
    assert x.velocity is not None
    residual = eulerian(at, x, at.s, x.velocity, derivative=derivative)
    return adaptive(square_sum(residual), p, eps)
