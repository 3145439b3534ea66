"""SDEs as objects: one that a user defines, a process, its reverse SDE or probability-flow ODE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.processes.elementary import Time, broadcastable, exact

ScoreFunction: TypeAlias = Callable[..., Tensor]


@runtime_checkable
class SDELike(Protocol):
    """What `euler_maruyama` integrates: dx = drift(x, t) dt + diffusion(t) dw, t of shape [B]."""

    def drift(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The drift, shape of x."""

    @property
    def diffusion(self) -> Callable[..., float | Tensor]:
        """`diffusion(t)`, or `diffusion(x, t)` with state_dependent: a number, [B], or like x."""


@dataclass(frozen=True)
class SDE:
    """A user's SDE dx = drift(x, t) dt + diffusion dw, in the sense of Ito.

    Args:
        drift: `drift(x, t) -> Tensor` of the shape of x, with t of shape [B] in the dtype of x.
        diffusion: `diffusion(t)`, or `diffusion(x, t)` when `state_dependent`: a number, a tensor
            of shape [] or [B], or one of the shape of x, which multiplies the noise elementwise. 0
            makes an ODE.
        state_dependent: whether the diffusion reads the state.
        diffusion_derivative: `diffusion_derivative(x, t)`, the derivative of each element of a
            state-dependent diffusion by the same element of x: a number or the shape of x. Only
            `milstein` reads it; without it the derivative is taken by autograd.

    Raises:
        TypeError: drift, diffusion or its derivative cannot be called.
    """

    drift: Callable[..., Tensor]
    diffusion: Callable[..., float | Tensor]
    state_dependent: bool = False
    diffusion_derivative: Callable[..., float | Tensor] | None = None

    def __post_init__(self) -> None:
        check.optional_function("diffusion_derivative", self.diffusion_derivative)
        check.function("drift", self.drift)
        check.function("diffusion", self.diffusion)
        check.flag("state_dependent", self.state_dependent)


@dataclass(frozen=True)
class ScoreSDE:
    """The reverse SDE or the ODE of a process: drift a(t) x + b(t) score(x, t), diffusion g(t).

    `terms(t)` gives (a, b, g) in float64, so that a solver folds the drift into its step and reads
    only the score.

    Source: Anderson, "Reverse-time diffusion equation models" (1982); Song et al. (2021), eq. 6
    and 13.
    """

    process: Process
    score: ScoreFunction
    stochastic: bool

    def terms(self, t: Time) -> tuple[Time, Time, Time]:
        """(a, b, g): the drift's factors of x and of the score, and the diffusion."""
        g = self.process.diffusion(t)
        if self.stochastic:
            return self.process.drift_factor(t), -(g * g), g
        return self.process.drift_factor(t), -0.5 * g * g, 0.0 * g

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """a(t) x + b(t) score(x, t), shape of x; t is a number or a tensor [] or [B].

        It is the forward drift less g^2 score (SDE) or g^2 score / 2 (ODE).
        """
        a, b, _ = self.terms(t)
        times = t if isinstance(t, Tensor) and t.ndim else x.new_full((x.shape[0],), float(t))
        return broadcastable(a, x) * x + broadcastable(b, x) * self.score(x, times)

    def diffusion(self, t: Time) -> Time:
        """g(t), or 0 for the ODE."""
        return self.terms(t)[2]


@dataclass(frozen=True)
class Process(ABC):
    """A Gaussian path x_t = alpha(t) x_0 + sigma(t) z; the base class of all processes.

    A function of time takes a number, or a tensor of any shape, and returns a float, or a float64
    tensor of that shape. What reads a state too takes a number or a tensor [] or [B], and raises
    ValueError for a tensor [n] with n other than B.

    A process of your own defines the three properties and the five functions that are abstract
    here, and `sigma_hat` where sigma / alpha loses digits.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations" (2021), section 3.
    """

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time at which a score is usually evaluated."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The time of the prior, where sampling starts."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2) at t_max."""

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """Scale of the data at t, positive or 0."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """Standard deviation of the noise at t, positive or 0."""

    @abstractmethod
    def drift_factor(self, t: Time) -> Time:
        """a(t) = d ln alpha / dt: the forward drift is a(t) x."""

    @abstractmethod
    def diffusion(self, t: Time) -> Time:
        """g(t) of the forward SDE dx = a(t) x dt + g(t) dw."""

    @abstractmethod
    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """The time at which sigma / alpha is `sigma_hat`: the inverse of the function."""

    def sigma_hat(self, t: Time) -> Time:
        """Ratio sigma / alpha: the noise level in Karras coordinates x / alpha."""
        return self.sigma(t) / self.alpha(t)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """a(t) x, shape of x; t is a number or a tensor of shape [] or [B]."""
        return broadcastable(self.drift_factor(t), x) * x

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Time]:
        """Mean alpha(t) x0 and standard deviation sigma(t) of x_t given x0.

        Args:
            x0: clean data [B, ...].
            t: a number, or a tensor [] or [B].

        Returns:
            The mean, shape and dtype of x0, and the deviation: a float, or a tensor in the dtype
            of x0 that broadcasts against it.

        Raises:
            TypeError: x0 is no floating tensor.
            ValueError: x0 without a batch dimension, or a tensor t [n] with n other than B.
        """
        check.state("x0", x0)
        return broadcastable(self.alpha(t), x0) * x0, broadcastable(self.sigma(t), x0)

    def prior(
        self,
        shape: Sequence[int],
        seed: noise.SeedLike = None,
        *,
        offset: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A draw from the prior N(0, prior_std^2), from noise stream 0.

        Args:
            shape: [B, ...].
            seed: see `noise.key`.
            offset: id of the first sample, for shards.
            dtype: floating dtype of the result.
            device: device of the result.

        Returns:
            Tensor of the given shape.

        Raises:
            TypeError, ValueError: as `noise.normal`.
        """
        latent = noise.normal(
            shape, seed, stream=noise.LATENT, offset=offset, dtype=dtype, device=device
        )
        return latent.mul_(self.prior_std) if self.prior_std != 1 else latent

    def reverse(self, score: ScoreFunction) -> ScoreSDE:
        """The reverse-time SDE, to be run with descending times.

        Args:
            score: `score(x, t)`, gradient of ln p_t in the coordinates of this process; t of shape
                [B].

        Returns:
            What the t-space solvers integrate, for instance `euler_maruyama`.

        Raises:
            TypeError: score cannot be called.

        Source: Anderson, "Reverse-time diffusion equation models" (1982); Song et al. (2021), eq.
        6.
        """
        return ScoreSDE(self, check.function("score", score), True)

    def probability_flow(self, score: ScoreFunction) -> ScoreSDE:
        """The ODE with the marginals of this process: a `ScoreSDE` whose diffusion is 0.

        Args:
            score: as in `reverse`.

        Raises:
            TypeError: score cannot be called.

        Source: Song et al. (2021), eq. 13.
        """
        return ScoreSDE(self, check.function("score", score), False)

    def score_of(self, denoiser: Callable[..., Tensor]) -> ScoreFunction:
        """`score(x, t)` in the coordinates of this process, from D(x / alpha, sigma / alpha).

        Args:
            denoiser: `D(x_hat, sigma_hat, **extra_args)`; gets sigma_hat of shape [B] in the dtype
                of x. One in other coordinates is asked in these.

        Returns:
            `score(x, t, **extra_args)`, shape and dtype of x; t is a number or a tensor [] or [B].
            It raises TypeError or ValueError where the denoiser returns no tensor of the shape,
            the device and at most the precision of x.

        Raises:
            TypeError: denoiser cannot be called.
        """
        from cmsolvers.processes.coordinates import in_karras  # it is made of processes

        denoiser = in_karras(check.function("denoiser", denoiser))

        def score(x: Tensor, t: float | Tensor, **extra_args: object) -> Tensor:
            x_hat, level = self.to_karras(x, t)
            if not isinstance(level, Tensor) or not level.ndim:
                level = x_hat.new_full((len(x),), float(level))
            clean = denoiser(x_hat, level.to(x.dtype), **extra_args)
            check.model_output("denoiser", clean, x_hat)
            alpha, sigma = self.alpha(t), self.sigma(t)
            # In float32 at least: float16 has no digits left for the square of a small sigma. And
            # from the state that the denoiser saw: the rounding of x / alpha must cancel, too.
            wide = x_hat.to(torch.promote_types(x.dtype, torch.float32))
            away = clean.to(wide.dtype) - wide
            return (away * broadcastable(alpha / (sigma * sigma), wide)).to(x.dtype)

        return score

    def to_karras(self, x: Tensor, t: Time) -> tuple[Tensor, Time]:
        """(x, t) -> (x / alpha, sigma / alpha): what a denoiser reads.

        x is [B, ...], t a number or a tensor [] or [B]; x / alpha keeps the dtype of x, the level
        is a float or a float64 tensor of the shape of t.
        """
        return x / broadcastable(self.alpha(t), x), self.sigma_hat(exact(t))

    def from_karras(self, x_hat: Tensor, sigma_hat: Time) -> tuple[Tensor, Time]:
        """(x / alpha, sigma / alpha) -> (x, t): the inverse of `to_karras`, shapes as there."""
        t = self.t_of_sigma(exact(sigma_hat))
        return x_hat * broadcastable(self.alpha(t), x_hat), t


def check_process(name: str, value: object) -> Process:
    """A process of the library."""
    if not isinstance(value, Process):
        if isinstance(value, type) and issubclass(value, Process):
            raise TypeError(f"{name} must be a Process, {value.__name__}(); got the class itself")
        raise TypeError(f"{name} must be a Process; got {check.describe(value)}")
    return value
