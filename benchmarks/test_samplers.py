"""Whole sampler runs of what users run, with networks that cost nothing, against loops in torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import allocator
import plain_loops
import pytest
import torch
from comparison import compare
from torch import Tensor

import cmsolvers
from cmsolvers import denoisers, karras_sigmas

POINTS, IMAGES = (64, 2), (64, 3, 32, 32)
SCALE = 1.5
CONDITION = {"label": True}

# Tensors that a run of 18 steps, the last one to 0, must read and write at least.
MOVED = {
    ("heun_pf_ode", "plain"): 17 * (3 + 4) + 3,
    ("heun_pf_ode", "EDM"): 17 * (4 + 5) + 3 + 2,
    ("heun_pf_ode", "guided"): 17 * (5 + 7) + 4 + 2,
    ("dpmpp_2m", "plain"): 3 + 16 * 4 + 2,
    ("dpmpp_2m", "EDM"): 5 + 16 * 6 + 3 + 2,
    ("dpmpp_2m", "guided"): 6 + 16 * 7 + 4 + 2,
}
# What a denoiser may cost, against a plain callable, and how much faster than a loop it should be.
AT_MOST = {"EDM": {POINTS: 1.3, IMAGES: 1.5}, "guided": {POINTS: 2.2, IMAGES: 2.2}}
AT_LEAST = {"as it is": 2.5, "mapped anew": 6.0, "warm": 3.0}


def free(x: Tensor) -> Callable[..., Tensor]:
    """A network that costs nothing and whose outputs are different tensors, as a network's are.

    It returns its input. Both sides of guidance get the same input, so the conditional one returns
    one of three tensors in turn: the engine copies outputs that share memory.
    """
    others = cycle([torch.ones_like(x) for _ in range(3)])

    def net(x: Tensor, level: Tensor, label: bool = False) -> Tensor:
        return next(others) if label else x

    return net


CASES = [(POINTS, "as it is"), *((IMAGES, state) for state in allocator.STATES)]


@pytest.mark.parametrize(("shape", "malloc"), CASES, ids=["points", "images-anew", "images-warm"])
@pytest.mark.parametrize("kind", ["plain", "EDM", "guided"])
@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m"])
def test_18_steps(
    benchmark: Any, name: str, kind: str, shape: tuple[int, ...], malloc: str
) -> None:
    x = 80.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigmas = karras_sigmas(18)
    levels = sigmas.tolist()
    net = free(x)
    model = denoisers.EDM(net)
    ours: dict[str, Any] = {
        "plain": net,
        "EDM": model,
        "guided": denoisers.guided(
            model, SCALE, conditional=CONDITION, unconditional={}, batched=False
        ),
    }
    in_torch = {
        "plain": net,
        "EDM": plain_loops.edm(net),
        "guided": plain_loops.guided(plain_loops.edm(net), SCALE, CONDITION),
    }
    sampler = getattr(cmsolvers, name)
    loop = {"heun_pf_ode": plain_loops.heun, "dpmpp_2m": plain_loops.dpmpp_2m}[name]
    rivals = {"the eager loop": lambda: loop(in_torch[kind], x, levels)}
    if kind == "EDM":
        with torch.no_grad():
            stages = plain_loops.Compiled(net, x, levels)
            compiled = stages.heun() if name == "heun_pf_ode" else stages.dpmpp_2m()
            compiled(x)
        rivals["compiled stages"] = lambda: compiled(x)
    if kind != "plain":
        rivals["the plain callable"] = lambda: sampler(net, x, sigmas)
    # Last, since what compiles and what makes the inputs uses malloc, too.
    if malloc in allocator.STATES and not allocator.put(malloc):
        pytest.skip("this C library has no mallopt")
    with torch.no_grad():
        compare(
            benchmark,
            f"18-step {name}, {kind}, {list(shape)}, cpu"
            + (f", malloc {malloc}" if malloc in allocator.STATES else ""),
            lambda: sampler(ours[kind], x, sigmas),
            rivals,
            moved=MOVED[name, kind] * x.nbytes,
            calls=5 if shape == POINTS else 1,
            rounds=31,
            at_least={"the eager loop": AT_LEAST[malloc]} if kind != "guided" else {},
            at_most={"the plain callable": AT_MOST[kind][shape]} if kind != "plain" else {},
        )


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m"])
@pytest.mark.parametrize("kind", ["EDM", "guided"])
def test_the_loops_agree(name: str, kind: str) -> None:
    """A rival that computes something else would be no rival."""
    x = 80.0 * torch.randn(POINTS, generator=torch.Generator().manual_seed(0))
    sigmas = karras_sigmas(18)

    def net(x: Tensor, c_noise: Tensor, label: bool = False) -> Tensor:
        return (x + c_noise[:, None]).sin() + label

    ours: Any = denoisers.EDM(net)
    rival = plain_loops.edm(net)
    if kind == "guided":
        ours = denoisers.guided(ours, SCALE, conditional=CONDITION, unconditional={}, batched=False)
        rival = plain_loops.guided(rival, SCALE, CONDITION)
    expected = getattr(cmsolvers, name)(ours, x, sigmas)
    loop = {"heun_pf_ode": plain_loops.heun, "dpmpp_2m": plain_loops.dpmpp_2m}[name]
    torch.testing.assert_close(loop(rival, x, sigmas.tolist()), expected, rtol=1e-4, atol=1e-4)
    if kind == "EDM":
        stages = plain_loops.Compiled(net, x, sigmas.tolist())
        run = stages.heun() if name == "heun_pf_ode" else stages.dpmpp_2m()
        torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-4)
