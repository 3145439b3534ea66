"""Noise levels at the times of a process: cosine, rectified flow, chain, Beta quantiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.processes.ddpm import DDPM
from cmsolvers.processes.elementary import Time, exact
from cmsolvers.processes.sde import Process, check_process
from cmsolvers.schedules.grids import bounds, finish, on_the_host, ramp


@on_the_host
def cosine_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    shift: float = 1.0,
    append_zero: bool = True,
) -> Tensor:
    """Levels shift * tan(pi t / 2) at even t: the cosine schedule, and with it TrigFlow's times.

    Args:
        n: how many levels above 0, at least 1; a single level is sigma_max.
        sigma_min: smallest level above 0.
        sigma_max: largest level.
        shift: positive; above 1 puts more steps at large levels, as large images want it
            (d / 64 in the paper). sigma_data makes the times of `TrigFlow` even.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: n < 1, a bound or shift that is not positive and finite, sigma_min not below
            sigma_max.

    Source: Nichol & Dhariwal (2021), eq. 17, without its offset; Hoogeboom et al., "simple
    diffusion" (2023), section 3.1, where shift is a shift of log SNR by 2 ln(64 / d).
    """
    n, low, high = bounds(n, sigma_min, sigma_max)
    scale = check.positive("shift", shift)
    first, last = math.atan(high / scale), math.atan(low / scale)
    levels = scale * torch.tan(first + ramp(n) * (last - first))
    return finish(levels, high, low, append_zero)


def shift_time(t: Time, shift: float) -> Time:
    """Shift times of a rectified flow towards noise: s t / (1 + (s - 1) t).

    The level t / (1 - t) becomes s times as large: at s times the resolution along a side, the same
    share of the image is lost. For the levels of sampling see `flow_times`; this is for
    times drawn in training.

    Args:
        t: number or tensor of any shape, in [0, 1], 1 is noise.
        shift: s, positive; 1 changes nothing, 3 is usual at 1024 x 1024 pixels.

    Returns:
        A float for a number, a float64 tensor for a tensor.

    Raises:
        TypeError: shift is no number.
        ValueError: shift not positive.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis"
    (2024), section 5.3.2.
    """
    s, t = check.positive("shift", shift), exact(t)
    return s * t / (1.0 + (s - 1.0) * t)


@on_the_host
def flow_sigmas(
    n: int, shift: float = 1.0, t_max: float = 0.999, append_zero: bool = True
) -> Tensor:
    """Levels shift * t / (1 - t) of the rectified flow at t = 1, 1 - 1/n ... 1/n, the first t_max.

    They are levels of Karras coordinates; a denoiser in flow coordinates takes `flow_times`.

    Args:
        n: how many levels above 0, at least 1, below 1 / (1 - t_max).
        shift: of time, see `shift_time`; positive.
        t_max: what stands for t = 1, where the level is infinite, before the shift; in (0, 1).
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending; the initial
        state is levels[0] times unit noise.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source: Liu et al., "Flow Straight and Fast" (2023), section 2; Esser et al., "Scaling
    Rectified Flow Transformers for High-Resolution Image Synthesis" (2024), section 5.3.2.
    """
    n, scale = check.count("n", n), check.positive("shift", shift)
    first = check.positive("t_max", t_max)
    if first >= 1.0:
        raise ValueError(f"t_max must be below 1; got {first:g}")
    if n > 1 and not 1.0 - 1.0 / n < first:
        raise ValueError(f"n must be below 1 / (1 - t_max) = {1 / (1 - first):g}; got {n}")
    left = torch.arange(n, dtype=torch.float64, device="cpu") / n
    left[0] = 1.0 - first
    levels = scale * (1.0 - left) / left
    return finish(levels, levels[0].item(), levels[-1].item(), append_zero)


@on_the_host
def flow_times(
    n: int,
    shift: float = 1.0,
    mu: float | None = None,
    terminal: float | None = None,
    append_zero: bool = True,
) -> Tensor:
    """Times 1, 1 - 1/n ... 1/n of the rectified flow, shifted: levels of flow coordinates.

    They are for denoisers in flow coordinates, such as `denoisers.from_flow(net)`, and include
    t = 1, where the state is unit noise. `flow_sigmas` has the levels of Karras coordinates.

    Args:
        n: how many times above 0, at least 1.
        shift: see `shift_time`; positive. 3 is usual at 1024 x 1024 pixels.
        mu: the same on the scale on which it grows with resolution, shift = e^mu (Flux, Qwen:
            "dynamic shifting"); None is ln shift. Only one of the two may be given.
        terminal: the last time above 0, to which all times are stretched linearly from 1; in
            (0, 1). None leaves them.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending from 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range, shift and mu both given, terminal for one time.

    Source: Liu et al., "Flow Straight and Fast" (2023), section 2; Esser et al., "Scaling
    Rectified Flow Transformers for High-Resolution Image Synthesis" (2024), section 5.3.2.
    """
    n, scale = check.count("n", n), check.positive("shift", shift)
    if mu is not None:
        if scale != 1.0:
            raise ValueError(f"shift must be left out where mu is given; got {scale:g}")
        scale = math.exp(check.within("mu", mu, -_LARGEST_MU, _LARGEST_MU))
    times = shift_time(1.0 - torch.arange(n, dtype=torch.float64, device="cpu") / n, scale)
    if terminal is not None:
        last = check.positive("terminal", terminal)
        check.below("terminal", last, "the first time", 1.0)
        if n == 1:
            raise ValueError(f"terminal must be left out for one time; got {last:g}")
        times = 1.0 - (1.0 - times) * ((1.0 - last) / (1.0 - times[-1]))
        times[-1] = last
    return finish(times, 1.0, times[-1].item(), append_zero)


_LARGEST_MU = 20.0
_CHAIN = DDPM()


@on_the_host
def ddpm_sigmas(
    n: int,
    process: DDPM = _CHAIN,
    spacing: str = "trailing",
    offset: int = 0,
    append_zero: bool = True,
) -> Tensor:
    """Levels of the chain at a subset of its times.

    Args:
        n: how many levels above 0, from 1 to the steps of the chain.
        process: the chain.
        spacing: "trailing", "leading" or "linspace", see `DDPM.timesteps`.
        offset: added to every "leading" time.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending. An infinite
        level (a chain with `zero_terminal_snr`) becomes that of `process.t_max`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown spacing, n or offset out of range.

    Source: Song et al., "Denoising Diffusion Implicit Models" (2021), section 4.2; Lin et al.,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2024), table 2.
    """
    if not isinstance(process, DDPM):
        raise TypeError(f"process must be a DDPM; got {check.describe(process)}")
    times = process.timesteps(n, spacing, offset).double().clamp_max(process.t_max)
    levels = process.sigma_hat(times)
    return finish(levels, levels[0].item(), levels[-1].item(), append_zero)


@on_the_host
def beta_sigmas(
    n: int,
    process: Process = _CHAIN,
    alpha: float = 0.6,
    beta: float = 0.6,
    append_zero: bool = True,
) -> Tensor:
    """Levels of a process at times that are even quantiles of a Beta distribution.

    Args:
        n: how many levels above 0, at least 1; a single level is that of t_max.
        process: its times from t_max to t_min are used.
        alpha: of the distribution, positive; below 1 puts more steps at small levels.
        beta: of the distribution, positive; below 1 puts more steps at large levels.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source: Lee et al., "Beta Sampling is All You Need" (2024): the probability integral transform
    of even steps by Beta(0.6, 0.6).
    """
    n = check.count("n", n)
    check_process("process", process)
    a, b = check.positive("alpha", alpha), check.positive("beta", beta)
    from scipy.special import betaincinv  # here, because it takes longer to load than all of ours

    shares = torch.from_numpy(betaincinv(a, b, 1.0 - ramp(n).numpy()))
    first, last = process.t_max, process.t_min
    levels = process.sigma_hat(last + shares * (first - last))
    return finish(levels, process.sigma_hat(first), levels[-1].item(), append_zero)
