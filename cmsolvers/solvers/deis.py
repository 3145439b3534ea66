"""DEIS and iPNDM: multistep methods on slopes d = (x - D) / sigma, which estimate the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan, slope_row
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers import exponential

if TYPE_CHECKING:
    from typing_extensions import Unpack

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the slopes on an even grid, latest first."""


@dataclass(frozen=True, slots=True)
class DEISStages:
    """X' = x + sum_j d_j int_s^s' L_j(ln sigma) dsigma, L_j Lagrange's polynomials.

    With u = ln(s/sigma)/h, dsigma is s' (-h) e^{h (1 - u)} du: the exponential integrator at -h.
    """

    order: int

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row, or D itself for a step to 0."""
        if to == 0:
            return (Stage(0.0, 0.0, (1.0,)),)
        h, nodes = exponential.steps_back(levels, to, self.order)
        return slope_row(levels[-1], to, [to * w for w in exponential.weights(-h, nodes)[1:]])


@dataclass(frozen=True, slots=True)
class IPNDMStages:
    """X' = x + (s' - s) sum_j b_j d_j, b_j those of Adams and Bashforth on an even grid."""

    order: int

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row, or D itself for a step to 0."""
        if to == 0:
            return (Stage(0.0, 0.0, (1.0,)),)
        s, row = levels[-1], ADAMS_BASHFORTH[min(self.order, len(levels)) - 1]
        return slope_row(s, to, [(to - s) * b for b in row[1:]])


@described(
    order="1 to 3",
    nfe="n",
    noise="none",
    source="Zhang & Chen, DEIS (2023), AB-DEIS",
)
@sampler
def deis(
    denoiser: Any, x: Tensor, sigmas: Any, *, order: int = 3, **options: Unpack[Options]
) -> Any:
    """AB-DEIS: the last `order` slopes, a polynomial of ln sigma, integrated exactly.

    The method leaves open in which variable the slopes are a polynomial. Here it is ln sigma, in
    which the integrals have a closed form and which no time of the model's training enters; in
    sigma itself the method is `lms`. The order grows over the first steps; a last step to 0 gives
    D.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        order: of convergence, 1 (DDIM) to 3: slopes used, one more than the polynomial's degree.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: order outside 1 to 3; see `euler_pf_ode`.

    Source: Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023),
    AB-DEIS.
    """
    formula = DEISStages(check.count("order", order, most=3))
    levels = check.sigmas("sigmas", sigmas)
    plan = make_plan("deis", levels, formula, keep=formula.order - 1, keep_slopes=True)
    return run(plan, denoiser, x, **options)


@described(
    order="1 to 4 on an even grid of sigma, at most 2 on others",
    nfe="n",
    noise="none",
    source="Liu et al., PNDM (2022), linear multistep; Zhang & Chen, DEIS (2023), iPNDM",
)
@sampler
def ipndm(
    denoiser: Any, x: Tensor, sigmas: Any, *, order: int = 4, **options: Unpack[Options]
) -> Any:
    """iPNDM: Adams and Bashforth's weights of an even grid on the last `order` slopes, on any grid.

    Lower orders take the place of Runge-Kutta steps at the start, so there is one evaluation a
    step. A last step to 0 gives D. The fixed weights keep order 2 where the steps of sigma change
    slowly; `lms` and `deis` follow the grid.

    Arguments, result and errors are those of `deis`, but the order is 1 to 4.

    Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022);
    Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023), iPNDM.
    """
    formula = IPNDMStages(check.count("order", order, most=4))
    levels = check.sigmas("sigmas", sigmas)
    plan = make_plan("ipndm", levels, formula, keep=formula.order - 1, keep_slopes=True)
    return run(plan, denoiser, x, **options)
