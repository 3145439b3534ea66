"""What the arguments of a step are, and the formulas that make weights of them, in float64.

The formulas take numbers and float64 tensors. csrc/step/weights.h has them too, with the same
operations in the same order: a level gives the same bits as a number and as an entry of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

Weight: TypeAlias = float | Tensor

WEIGHTS, PF_ODE, HEUN, CONSISTENCY, EDM_INPUT, EDM_OUTPUT, EULER_MARUYAMA, FOLDED = range(8)
"""What the arguments of a step are.

- WEIGHTS: the weights themselves, (w_x, w_1..w_n, w_z, c_skip, c_out, s0, s1).
- PF_ODE, HEUN: (sigma, sigma'), of the Euler step and of Heun's corrector.
- CONSISTENCY: (sigma, sigma_data, sigma_min).
- EDM_INPUT, EDM_OUTPUT: (sigma, sigma_data).
- EULER_MARUYAMA: (diffusion, dt).
- FOLDED: the weights, with c_skip and c_out still to be put into w_x and w_1.
"""


def pf_ode(sigma: Weight, sigma_next: Weight) -> tuple[Weight, Weight]:
    """(w_x, w_D) of the Euler step in sigma."""
    return sigma_next / sigma, (sigma - sigma_next) / sigma


def heun(sigma: Weight, sigma_next: Weight) -> tuple[Weight, Weight, Weight]:
    """(w_x, w_D, w_D') of the Heun corrector, D' at the Euler prediction."""
    half = 0.5 * (sigma_next - sigma)
    return sigma_next / sigma, half * (1.0 / sigma_next - 2.0 / sigma), -half / sigma_next


def consistency(sigma: Weight, sigma_data: Weight, boundary: Weight) -> tuple[Weight, Weight]:
    """(c_skip, c_out) with the shifted boundary: (1, 0) there."""
    return consistency_parts(sigma, sigma_data, boundary)[:2]


def consistency_parts(
    sigma: Weight, sigma_data: Weight, boundary: Weight
) -> tuple[Weight, Weight, Weight]:
    """(c_skip, c_out, 1 / c_in) of a consistency model (Song et al. 2023, appendix C)."""
    shifted, variance = sigma - boundary, sigma_data * sigma_data
    spread = sigma * sigma + variance
    root = math.sqrt(spread) if type(spread) is float else _root(spread)
    return variance / (shifted * shifted + variance), shifted * sigma_data / root, root


def held(sigma_min: float) -> float:
    """sigma_min as a float32 tensor of levels holds it."""
    return torch.tensor(sigma_min, dtype=torch.float32, device="cpu").item()


def boundary_at(sigma: Weight, sigma_min: float, rounded: float) -> Weight:
    """The boundary for a level: sigma_min, but its `held` value where sigma is exactly that.

    So the function is the identity at both, and every other level keeps the sigma_min it was given.
    """
    if isinstance(sigma, Tensor):
        return torch.full_like(sigma, sigma_min).masked_fill(sigma == rounded, rounded)
    return rounded if sigma == rounded else sigma_min


def edm_input(sigma: Weight, sigma_data: Weight) -> Weight:
    """c_in of EDM (Karras et al. 2022, table 1)."""
    return 1.0 / _root(sigma * sigma + sigma_data * sigma_data)


def edm_output(sigma: Weight, sigma_data: Weight) -> tuple[Weight, Weight]:
    """(c_skip, c_out) of EDM (Karras et al. 2022, table 1)."""
    variance = sigma_data * sigma_data
    spread = sigma * sigma + variance
    return variance / spread, sigma * sigma_data / _root(spread)


def euler_maruyama(diffusion: Weight, dt: Weight) -> Weight:
    """w_z of the Euler-Maruyama step, g sqrt|dt|."""
    return diffusion * _root(cast(Weight, abs(dt)))


def folded(w_x: Weight, w_d: Weight, c_skip: Weight, c_out: Weight) -> tuple[Weight, Weight]:
    """(w_x, w_F) where D = c_skip x + c_out F."""
    return w_x + w_d * c_skip, w_d * c_out


def canonical(
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    count: int,
) -> list[Weight]:
    """The weights (w_x, w_1..w_count, w_z, c_skip, c_out, s0, s1) that the arguments stand for.

    Argument j is tensors[i] where places[i] is j, else numbers[j]. The weights are floats, or
    float64 tensors of shape [B], [1] or [].
    """
    given: list[Weight] = list(numbers)
    for place, tensor in zip(places, tensors, strict=True):
        given[place] = tensor.double()
    if rule == WEIGHTS:
        return given
    rest = [0.0, 1.0, 0.0, 0.0]  # c_skip, c_out, s0, s1
    if rule == FOLDED:
        w_x, w_f = folded(given[0], given[1], given[count + 2], given[count + 3])
        return [w_x, w_f, *given[2 : count + 2], 0.0, 1.0, *given[count + 4 :]]
    if rule == PF_ODE:
        return [*pf_ode(*given), 0.0, *rest]
    if rule == HEUN:
        return [*heun(*given), 0.0, *rest]
    if rule == EDM_INPUT:
        c_in = edm_input(*given)
        return [c_in, 0.0, *rest[:2], c_in, 0.0]
    if rule == EDM_OUTPUT:
        return [*edm_output(*given), 0.0, *rest]
    if rule == EULER_MARUYAMA:
        return [1.0, given[1], euler_maruyama(*given), *rest]
    sigma, sigma_data, boundary = given
    if tensors:
        # As a tensor of levels holds it, so that its rounded sigma_min is the boundary too.
        boundary = torch.full_like(tensors[0], cast(float, boundary)).double()
    return [*consistency(sigma, sigma_data, boundary), 0.0, *rest]


def split(arguments: Sequence[Weight]) -> tuple[list[float], list[Tensor], list[int]]:
    """Arguments as the operators take them: numbers, tensors, and the places of these."""
    places = [j for j, w in enumerate(arguments) if isinstance(w, Tensor)]
    numbers = [0.0 if isinstance(w, Tensor) else float(w) for w in arguments]
    return numbers, [w for w in arguments if isinstance(w, Tensor)], places


def _root(value: Weight) -> Weight:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)
