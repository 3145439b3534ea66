"""Whole runs of real networks on a GPU: eager, captured and compiled, against what users have.

Made for a machine that is lent for minutes and cannot download: a rival that cannot be imported,
built or run is left out and named in `extra_info`, and once `BUDGET_SECONDS` are over nothing is
compiled any more.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import plain_loops
import pytest
import torch
from comparison import Call, compare, summary
from test_brownian import tree_noise
from torch import Tensor, nn

import cmsolvers
from cmsolvers import denoisers, karras_sigmas

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore"),
]

STEPS = 18
BUDGET_SECONDS = float(os.environ.get("CMSOLVERS_BENCHMARK_SECONDS", "150"))
_START = time.monotonic()


class Rivals(dict[str, Call]):
    """Calls by name; what cannot be made is left out with the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}

    @contextmanager
    def may_fail(self, *names: str, compiles: bool = False) -> Iterator[None]:
        """Around the making and the first call of some; `names` are left out where it raises."""
        try:
            if compiles and time.monotonic() - _START > BUDGET_SECONDS:
                raise TimeoutError(f"{BUDGET_SECONDS:g} s were over before it was compiled")
            yield
            for name in names:
                self[name]()
        except Exception as error:
            for name in names:
                self.pop(name, None)
                self.failed[name] = summary(error)

    def against(self, benchmark: Any, name: str, first: list[str], **options: Any) -> None:
        """Compare the first of `first` that there is with the rest."""
        ours = next((n for n in first if n in self), None)
        if ours is None:
            pytest.fail(f"none of ours can be run: {self.failed}")
        rest = {n: call for n, call in self.items() if n != ours}
        compare(
            benchmark,
            f"{name}: {ours}",
            self[ours],
            rest,
            device="cuda",
            lenient=True,
            **options,
        )
        failed = {**self.failed, **benchmark.extra_info.get("failed", {})}
        benchmark.extra_info.update(ours=ours, failed=failed)


class Block(nn.Module):
    """Two convolutions, the level between them, and a way around."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.level = nn.Linear(width, out)
        self.second = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.around = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        y = self.first(x) + self.level(level)[:, :, None, None]
        return self.around(x) + self.second(y)


class SmallUNet(nn.Module):
    """What stands in for diffusers' U-Net where that is not installed."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [width, 2 * width, 2 * width, 2 * width]
        self.register_buffer("frequencies", torch.logspace(0, 3, width // 2))
        self.embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU())
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        pairs = list(pairwise([width, *sizes]))
        self.down = nn.ModuleList(
            nn.ModuleList([Block(a, b, 4 * width), Block(b, b, 4 * width)]) for a, b in pairs
        )
        self.up = nn.ModuleList(
            nn.ModuleList([Block(2 * b, b, 4 * width), Block(b, a, 4 * width)])
            for a, b in reversed(pairs)
        )
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angles = level.float()[:, None] * self.frequencies.float()
        waves = torch.cat((angles.sin(), angles.cos()), dim=1).to(x.dtype)
        level, y, kept = self.embed(waves), self.enter(x), []
        for i, (first, second) in enumerate(self.down):
            y = second(first(y, level), level)
            kept.append(y)
            if i < len(self.down) - 1:
                y = nn.functional.avg_pool2d(y, 2)
        for i, (first, second) in enumerate(self.up):
            y = second(first(torch.cat((y, kept.pop()), dim=1), level), level)
            if i < len(self.up) - 1:
                y = nn.functional.interpolate(y, scale_factor=2.0)
        out: Tensor = self.leave(y)
        return out


class Diffusers(nn.Module):
    """The U-Net of DDPM on CIFAR-10 (Ho et al., 2020), with random weights."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        out: Tensor = self.unet(x, level, return_dict=False)[0]
        return out


def network(device: str) -> tuple[nn.Module, str]:
    """A U-Net of CIFAR's size in bfloat16, and what it is called."""
    torch.manual_seed(0)
    try:
        net: nn.Module = Diffusers()
        name = "diffusers U-Net"
    except Exception:  # not installed, or not with this torch
        net, name = SmallUNet(), "small U-Net (diffusers is not there)"
    return net.to(device, torch.bfloat16).eval().requires_grad_(False), name


def k_diffusion() -> Any:
    """Its samplers; raises where it is not installed."""
    from k_diffusion import sampling

    return sampling


def heun_rivals(net: Any, x: Tensor, dtype: torch.dtype | None) -> Rivals:
    """Ours and others' over one network, as it is and compiled in two ways."""
    rivals, sigmas = Rivals(), karras_sigmas(STEPS)
    levels = sigmas.tolist()
    theirs = sigmas.float().to(x.device)

    def ours(model: Any) -> Call:
        d = denoisers.EDM(model, dtype=dtype)
        return lambda: cmsolvers.heun_pf_ode(d, x, sigmas)

    def captured(model: Any) -> Call:
        run = cmsolvers.capture(cmsolvers.heun_pf_ode, denoisers.EDM(model, dtype=dtype), x, sigmas)
        return lambda: run(x)

    def loop(model: Any) -> Call:
        d = plain_loops.edm(model, dtype=dtype)
        return lambda: plain_loops.heun(d, x, levels)

    def others(model: Any) -> Call:
        d, sample = plain_loops.edm(model, dtype=dtype), k_diffusion().sample_heun
        return lambda: sample(d, x, theirs, disable=True)

    kinds: list[tuple[str, Callable[[], Any]]] = [
        ("network as it is", lambda: net),
        ("compiled network", lambda: torch.compile(net, dynamic=False)),
        (
            "reduce-overhead network",
            lambda: torch.compile(net, dynamic=False, mode="reduce-overhead"),
        ),
    ]
    for kind, make in kinds:
        compiles, model = kind != "network as it is", make()
        with rivals.may_fail(f"eager loop, {kind}", compiles=compiles):
            rivals[f"eager loop, {kind}"] = loop(model)
        with rivals.may_fail(f"k-diffusion, {kind}", compiles=compiles):
            rivals[f"k-diffusion, {kind}"] = others(model)
        with rivals.may_fail(f"ours, {kind}", compiles=compiles):
            rivals[f"ours, {kind}"] = ours(model)
        if kind != "reduce-overhead network":  # that one is a graph of its own
            with rivals.may_fail(f"ours, captured, {kind}", compiles=compiles):
                rivals[f"ours, captured, {kind}"] = captured(model)
    return rivals


FIRST = ["ours, captured, compiled network", "ours, captured, network as it is"]
FIRST += ["ours, compiled network", "ours, network as it is"]
KINDS = ("network as it is", "compiled network", "reduce-overhead network")


@pytest.mark.parametrize("batch", [16, 1])
def test_unet_heun(benchmark: Any, batch: int) -> None:
    net, name = network("cuda")
    x = 80.0 * torch.randn(batch, 3, 32, 32, device="cuda")
    with torch.no_grad():
        rivals = heun_rivals(net, x, torch.bfloat16)
        rivals.against(
            benchmark,
            f"{STEPS}-step heun_pf_ode, {name}, bfloat16, batch {batch}",
            FIRST,
            moved=x.nbytes * (17 * 9 + 5),
            rounds=5,
            at_least={
                f"{who}, {kind}": 1.5 for who in ("k-diffusion", "eager loop") for kind in KINDS
            },
        )


class Mlp(nn.Module):
    """A small network on points."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        sizes = [3, width, width, width]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat((x, level[:, None]), dim=1))
        return out


def test_mlp_dpmpp_2m(benchmark: Any) -> None:
    torch.manual_seed(0)
    x = 80.0 * torch.randn(1024, 2, device="cuda")
    net = Mlp().to(x.device).eval().requires_grad_(False)
    rivals, sigmas = Rivals(), karras_sigmas(STEPS)
    model, plain, levels = denoisers.EDM(net), plain_loops.edm(net), sigmas.tolist()
    theirs = sigmas.float().to(x.device)
    with torch.no_grad():
        with rivals.may_fail("ours, captured"):
            run = cmsolvers.capture(cmsolvers.dpmpp_2m, model, x, sigmas)
            rivals["ours, captured"] = lambda: run(x)
        rivals["ours"] = lambda: cmsolvers.dpmpp_2m(model, x, sigmas)
        rivals["eager loop"] = lambda: plain_loops.dpmpp_2m(plain, x, levels)
        with rivals.may_fail("k-diffusion"):
            sample = k_diffusion().sample_dpmpp_2m
            rivals["k-diffusion"] = lambda: sample(plain, x, theirs, disable=True)
        with rivals.may_fail("eager loop, reduce-overhead network", compiles=True):
            fast = plain_loops.edm(torch.compile(net, dynamic=False, mode="reduce-overhead"))
            rivals["eager loop, reduce-overhead network"] = lambda: plain_loops.dpmpp_2m(
                fast, x, levels
            )
        rivals.against(
            benchmark,
            f"{STEPS}-step dpmpp_2m, MLP, [1024, 2]",
            ["ours, captured", "ours"],
            moved=x.nbytes * (17 * 6 + 5),
            rounds=15,
            limit=0.8e-3,
        )


def test_dpmpp_sde(benchmark: Any) -> None:
    """The noise is what this costs: the model returns its input."""
    x = 80.0 * torch.randn(256, 3, 32, 32, device="cuda")
    rivals, sigmas = Rivals(), karras_sigmas(STEPS)
    levels, theirs = sigmas.tolist(), sigmas.float().to(x.device)

    def free(x: Tensor, sigma: Tensor) -> Tensor:
        return x

    with torch.no_grad():
        with rivals.may_fail("ours, captured"):
            run = cmsolvers.capture(cmsolvers.dpmpp_sde, free, x, sigmas)
            rivals["ours, captured"] = lambda: run(x, seed=5)
        rivals["ours"] = lambda: cmsolvers.dpmpp_sde(free, x, sigmas, seed=5)
        with rivals.may_fail("k-diffusion"):
            sample = k_diffusion().sample_dpmpp_sde
            rivals["k-diffusion"] = lambda: sample(free, x, theirs, disable=True)
        with rivals.may_fail("ours on a torchsde tree"):
            __import__("torchsde")  # tree_noise would skip the whole row
            rivals["ours on a torchsde tree"] = lambda: cmsolvers.dpmpp_sde(
                free,
                x,
                sigmas,
                noise_sampler=tree_noise(x, levels, lambda sigma: -math.log(sigma)),
            )
        rivals.against(
            benchmark,
            f"{STEPS}-step dpmpp_sde, free model, [256, 3, 32, 32]",
            ["ours, captured", "ours"],
            moved=x.nbytes * (34 * 5 + 2),
            rounds=5,
            at_least={"k-diffusion": 130.0},
        )
