"""Mixtures whose denoiser, velocity and flow map are known: few-step models are measured on them.

On a path x_t = alpha x_0 + sigma z all of these depend on (x, alpha, sigma) alone. With r^2 =
alpha^2 + sigma^2 the state x / r lies on the circular path cos(angle) x_0 + sin(angle) z, angle =
atan2(sigma, alpha), so one function of the angle serves every process. Nothing is divided by alpha
or sigma: clean data (sigma = 0) and pure noise (alpha = 0, t = 1 of a flow) are levels like others.

`denoisers.oracles` has denoisers, scores and densities in Karras coordinates, of isotropic data and
of finite data sets. They do not reach pure noise, have one deviation per component, and no flow map
of a mixture; they are kept apart, and each is tested against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import DOP853
from scipy.stats import chi2
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.processes.coordinates import Coordinates, coordinates
from cmsolvers.processes.sde import Process

Rows: TypeAlias = Tensor | Sequence[Sequence[float]]
Path: TypeAlias = str | Process | Coordinates
_ROWS_AT_ONCE = 256  # of the ODE: one step size serves so many trajectories


@dataclass(frozen=True, eq=False)
class ExactProblem:
    """Data from sum_k weights[k] N(means[k], diag(stds[k]^2)).

    Everything is computed in float64 and returned in the dtype of x, which has the shape [B, d].
    Levels are numbers or tensors [] or [B]; `path` says what they mean: "karras", "flow" or a
    `Process`, such as `TrigFlow(sigma_data)`.

    Args:
        name: of the problem.
        means: [K, d].
        stds: positive, [K, d]: one per component and coordinate.
        weights: positive, [K]; normalised here.

    Raises:
        TypeError: no numbers.
        ValueError: shapes that do not fit, stds or weights that are not positive and finite.
    """

    name: str
    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        means, stds, weights = (
            torch.as_tensor(value, dtype=torch.float64)
            for value in (self.means, self.stds, self.weights)
        )
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(f"means must have shape [K, d]; got {list(means.shape)}")
        for name, value, shape in (
            ("means", means, means.shape),
            ("stds", stds, means.shape),
            ("weights", weights, means.shape[:1]),
        ):
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {list(shape)}; got {list(value.shape)}")
            if not bool(value.isfinite().all()) or (name != "means" and bool((value <= 0).any())):
                wanted = "finite" if name == "means" else "positive and finite"
                raise ValueError(f"{name} must be {wanted}; got {value.tolist()}")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "stds", stds)
        object.__setattr__(self, "weights", weights / weights.sum())

    @property
    def size(self) -> int:
        """Elements per sample, d."""
        return self.means.shape[1]

    @property
    def modes(self) -> int:
        """Components, K."""
        return self.means.shape[0]

    @cached_property
    def mean(self) -> Tensor:
        """Of the data: [d]."""
        return self.weights @ self.means

    @cached_property
    def sigma_data(self) -> float:
        """Root of the variance of the data, the mean over its coordinates."""
        second = self.weights @ (self.stds**2 + (self.means - self.mean) ** 2)
        return float(second.mean().sqrt())

    # --- samples ----------------------------------------------------------------------------------

    def sample(self, n: int, seed: noise.SeedLike, *, draw: int = 0) -> Tensor:
        """Draw n points of the data; sample i is a function of (seed, draw, i): float64 [n, d].

        Raises:
            TypeError, ValueError: n below 1, a seed or draw that `noise.normal` refuses.
        """
        n = check.count("n", n)
        u = noise.uniform((n, 1), seed, stream=noise.OTHER, draw=draw, dtype=torch.float64)
        edges = torch.cumsum(self.weights, 0)[:-1]
        pick = torch.searchsorted(edges, u[:, 0].contiguous(), right=True)
        z = noise.normal((n, self.size), seed, stream=noise.OTHER, draw=draw, dtype=torch.float64)
        return self.means[pick] + self.stds[pick] * z

    def component(self, x: Tensor) -> Tensor:
        """The component that a clean sample most likely came from: int64 [B]."""
        one = torch.ones(1, 1, dtype=torch.float64)
        log_share, _, _ = self._components(self._rows(x), one, torch.zeros_like(one))
        return log_share.argmax(1)

    def shares(self, x: Tensor, *, inside: float = 0.999) -> Tensor:
        """Share of the samples x [n, d] in the core of each component, float64 [K].

        The core is the ellipsoid around a mean that holds the share `inside` of the component's own
        samples. Exact samples give about inside x weights (a little more where cores overlap, but a
        sample counts for its most likely component alone); what lies between components is in none.

        Raises:
            ValueError: inside not in (0, 1), x of another size.
        """
        check.positive("inside", inside)
        check.below("inside", inside, "1", 1.0)
        x, own = self._rows(x), self.component(x)
        distance = ((x - self.means[own]) / self.stds[own]).square().sum(1)
        held = own[distance <= chi2.ppf(inside, self.size)]
        return torch.bincount(held, minlength=self.modes).double() / max(1, x.shape[0])

    def modes_found(self, x: Tensor) -> int:
        """How many components hold at least half of the share of the samples that they should."""
        return int((self.shares(x) >= 0.5 * self.weights).sum())

    # --- conditional means ------------------------------------------------------------------------

    def conditional_means(
        self, x: Tensor, level: float | Tensor, path: Path
    ) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x_t], E[z | x_t]), each like x.

        Raises:
            TypeError, ValueError: x, level or path of the wrong kind, shape or range.
        """
        rows, (alpha, sigma) = self._rows(x), self._scales("level", level, path, x)
        clean, unit = self._means(rows, alpha, sigma)
        return clean.to(x.dtype), unit.to(x.dtype)

    def denoiser(self, path: Path = "karras") -> ExactDenoiser:
        """E[x_0 | x_t] as a denoiser D(x, level) in the coordinates of a path."""
        return ExactDenoiser(self, coordinates("path", path))

    def velocity(self, x: Tensor, level: float | Tensor, path: Path) -> Tensor:
        """dx/dlevel of the probability-flow ODE, alpha' E[x_0 | x] + sigma' E[z | x], like x.

        Raises:
            TypeError, ValueError: as `conditional_means`.
        """
        process = coordinates("path", path).process
        clean, unit = self.conditional_means(x, level, path)
        t = _levels("level", level, x)
        a, b = (
            _derivative(part, t)[:, None].to(x.dtype) for part in (process.alpha, process.sigma)
        )
        return a * clean + b * unit

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint density [B, K], x - alpha mean [B, K, d], variances [B or 1, K, d]."""
        apart = x[:, None] - alpha[..., None] * self.means
        variance = (alpha[..., None] * self.stds) ** 2 + sigma[..., None] ** 2
        energy = (apart.square() / variance + variance.log()).sum(2)
        return self.weights.log() - 0.5 * energy, apart, variance

    def _means(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        log_share, apart, variance = self._components(x, alpha, sigma)
        share = torch.softmax(log_share, 1)[..., None]
        scaled = apart / variance
        clean = (share * (self.means + alpha[..., None] * self.stds**2 * scaled)).sum(1)
        return clean, sigma * (share * scaled).sum(1)

    # --- flow map ---------------------------------------------------------------------------------

    def flow_map(
        self,
        x: Tensor,
        start: float | Tensor,
        end: float | Tensor,
        path: Path,
        *,
        tolerance: float = 1e-13,
    ) -> Tensor:
        """Where the probability-flow ODE takes x from level `start` to level `end`, in any order.

        With one component it is the closed form alpha' m + sqrt(v' / v) (x - alpha m) with v =
        alpha^2 s^2 + sigma^2. Otherwise the ODE is solved in the angle by Runge-Kutta steps of
        order 8, to about 1e-10 with the usual tolerance.

        Args:
            x: [B, d].
            start: level of x; a number or a tensor [] or [B].
            end: level to arrive at, likewise.
            path: "karras", "flow" or a `Process`.
            tolerance: of a step of the solver, absolute and relative; at least 1e-13.

        Returns:
            A tensor like x; no gradient flows through it.

        Raises:
            TypeError, ValueError: as `conditional_means`.
        """
        rows = self._rows(x).detach()
        a, b = self._scales("start", start, path, x)
        c, d = self._scales("end", end, path, x)
        if self.modes == 1:
            variance, other = (a * self.stds) ** 2 + b**2, (c * self.stds) ** 2 + d**2
            moved = c * self.means + (other / variance).sqrt() * (rows - a * self.means)
        else:
            turn = torch.atan2(b, a)[:, 0], torch.atan2(d, c)[:, 0]
            moved = torch.hypot(c, d) * self._solve(rows / torch.hypot(a, b), *turn, tolerance)
        moved = torch.where((a == c) & (b == d), rows, moved)
        return moved.to(x.dtype)

    def _solve(self, y: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
        """Along the circular path, from angles [B] to angles [B]."""
        tolerance = check.positive("tolerance", tolerance)
        rows, n = [], _ROWS_AT_ONCE
        for part in zip(torch.split(y, n), torch.split(start, n), torch.split(end, n), strict=True):
            rows.append(self._solve_rows(*part, tolerance))
        return torch.cat(rows)

    def _solve_rows(self, y: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
        if y.shape[0] == 0:
            return y
        if bool((start == start[0]).all()) and bool((end == end[0]).all()):
            start, end = start[:1], end[:1]  # all rows share what depends on the angle
        turn = (end - start)[:, None]
        if not bool(turn.any()):
            return y

        def rate(u: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
            angle = start[:, None] + u * turn
            alpha, sigma = angle.cos(), angle.sin()
            clean, unit = self._means(torch.from_numpy(flat).view_as(y), alpha, sigma)
            return (turn * (alpha * unit - sigma * clean)).flatten().numpy()

        steps = DOP853(rate, 0.0, y.flatten().numpy(), 1.0, rtol=tolerance, atol=tolerance)
        while steps.status == "running":
            steps.step()
        if steps.status != "finished":
            raise ArithmeticError(f"the flow map of {self.name} stopped at {steps.t:g} of the way")
        return torch.from_numpy(steps.y.copy()).view_as(y)

    # --- arguments --------------------------------------------------------------------------------

    def _rows(self, x: Tensor) -> Tensor:
        if check.state("x", x).ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"x must have shape [B, {self.size}]; got {list(x.shape)}")
        return x.double()

    def _scales(
        self, name: str, level: float | Tensor, path: Path, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a level, [B, 1] each."""
        process, t = coordinates("path", path).process, _levels(name, level, x)
        return process.alpha(t)[:, None], process.sigma(t)[:, None]


@dataclass(frozen=True, eq=False)
class ExactDenoiser:
    """E[x_0 | x_t] of a problem, a denoiser D(x, level).

    Attributes:
        problem: whose it is.
        coordinates: of x and level.
        training: False, as that of a network in evaluation mode.
    """

    problem: ExactProblem
    coordinates: Coordinates
    training = False

    def __call__(self, x: Tensor, level: float | Tensor) -> Tensor:
        """E[x_0 | x_t], like x [B, d]; the level is a number or a tensor [] or [B]."""
        return self.problem.conditional_means(x, level, self.coordinates)[0]


def _levels(name: str, level: float | Tensor, x: Tensor) -> Tensor:
    """Float64 [B]."""
    value = check.level(name, level, x, zero=True)
    if not isinstance(value, Tensor):
        value = torch.full((1,), value, dtype=torch.float64, device=x.device)
    return value.double().expand(x.shape[0])


def _derivative(of: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Of a function of time, at each entry of t."""
    with torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = of(t)
        if not value.requires_grad:  # it does not depend on time
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]
