"""What the arguments of a step are, and the formulas that make weights of them, in float64.

The formulas take numbers and float64 tensors. csrc/step/weights.h has them too, with the same
operations in the same order: there a level gives the bits of these formulas for numbers, as a
number and as an entry of a tensor. (In torch a number divided by a tensor may differ in the last
digit.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

Weight: TypeAlias = float | Tensor

Level = TypeVar("Level", float, Tensor, float | Tensor)
"""Formulas of numbers make numbers, formulas of tensors make tensors."""

WEIGHTS, PF_ODE, HEUN, CONSISTENCY, EDM_INPUT, EDM_OUTPUT, EULER_MARUYAMA, FOLDED = range(8)
"""What the arguments of a step are.

- WEIGHTS: the weights themselves, (w_x, w_1..w_n, w_z, c_skip, c_out, s0, s1).
- PF_ODE, HEUN: (sigma, sigma'), of the Euler step and of Heun's corrector.
- CONSISTENCY: (sigma, sigma_data, sigma_min).
- EDM_INPUT, EDM_OUTPUT: (sigma, sigma_data).
- EULER_MARUYAMA: (diffusion, dt).
- FOLDED: the weights, with c_skip and c_out still to be put into w_x and w_1.
"""


ARGUMENTS = {
    PF_ODE: ("sigma", "sigma_next"),
    HEUN: ("sigma", "sigma_next"),
    CONSISTENCY: ("sigma", "sigma_data", "sigma_min"),
    EDM_INPUT: ("sigma", "sigma_data"),
    EDM_OUTPUT: ("sigma", "sigma_data"),
    EULER_MARUYAMA: ("diffusion", "dt"),
}
"""What users call the arguments of the rules."""


def pf_ode(sigma: Level, sigma_next: Level) -> tuple[Level, Level]:
    """(w_x, w_D) of the Euler step in sigma."""
    return sigma_next / sigma, (sigma - sigma_next) / sigma


def heun(sigma: Level, sigma_next: Level) -> tuple[Level, Level, Level]:
    """(w_x, w_D, w_D') of the Heun corrector, D' at the Euler prediction."""
    half = 0.5 * (sigma_next - sigma)
    return sigma_next / sigma, half * (1.0 / sigma_next - 2.0 / sigma), -half / sigma_next


def consistency(
    sigma: Any, sigma_data: float, sigma_min: float, rounded: Sequence[float]
) -> tuple[Any, Any, Any]:
    """(c_skip, c_out, 1 / c_in) of a consistency model (Song et al. 2023, appendix C).

    The function is the identity, (1, 0), at sigma_min and where a level is one of the `rounded`
    values of it (see `held`); every other level keeps the sigma_min it was given.
    """
    boundary: Any = sigma_min
    if isinstance(sigma, Tensor):  # a constant: the derivative by sigma is that of the formula
        boundary = torch.full_like(sigma, sigma_min)
        for value in rounded:
            boundary = boundary.masked_fill(sigma == value, value)
    elif sigma in rounded:
        boundary = sigma
    shifted = sigma - boundary
    variance = sigma_data * sigma_data
    root = _root(sigma * sigma + variance)
    return variance / (shifted * shifted + variance), shifted * sigma_data / root, root


def held(sigma_min: float) -> tuple[float, float, float]:
    """sigma_min as tensors of levels in float32, float16 and bfloat16 hold it.

    Without torch, so that neither a compiler nor a mode of fake tensors sees it.
    """
    with np.errstate(over="ignore"):
        single = np.float32(sigma_min)
        half = np.float16(single)
    word = int(single.view(np.uint32))
    word = (word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000  # to nearest, ties to even
    return float(single), float(half), float(np.uint32(word).view(np.float32))


def edm_input(sigma: Level, sigma_data: float) -> Level:
    """c_in of EDM (Karras et al. 2022, table 1)."""
    root: Level = _root(sigma * sigma + sigma_data * sigma_data)
    return 1.0 / root


def edm_output(sigma: Level, sigma_data: float) -> tuple[Level, Level]:
    """(c_skip, c_out) of EDM (Karras et al. 2022, table 1)."""
    variance = sigma_data * sigma_data
    spread = sigma * sigma + variance
    return variance / spread, sigma * sigma_data / _root(spread)


def euler_maruyama(diffusion: Any, dt: Any) -> Any:
    """w_z of the Euler-Maruyama step, g sqrt|dt|."""
    return diffusion * (math.sqrt(abs(dt)) if type(dt) is float else _root(abs(dt)))


def folded(w_x: Level, w_d: Level, c_skip: Level, c_out: Level) -> tuple[Level, Level]:
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
    given: list[Any] = list(numbers)
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
    sigma, sigma_data, sigma_min = given
    return [*consistency(sigma, sigma_data, sigma_min, held(sigma_min))[:2], 0.0, *rest]


def split(arguments: Sequence[Weight]) -> tuple[list[float], list[Tensor], list[int]]:
    """Arguments as the operators take them: numbers, tensors, and the places of these."""
    places = [j for j, w in enumerate(arguments) if isinstance(w, Tensor)]
    numbers = [0.0 if isinstance(w, Tensor) else float(w) for w in arguments]
    return numbers, [w for w in arguments if isinstance(w, Tensor)], places


def _root(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)
