"""What Python takes for a step, for every solver with fixed steps: [64, 2], a model that is free.

A run of few and one of many steps are measured in turn. The difference, less the calls of the
model, is the time of a step; what is left of the short run is the door: checks, the trace or its
look-up, tables of levels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import ROWS, Row, aims, compare
from torch import Tensor

import cmsolvers
from cmsolvers import denoisers, karras_sigmas
from cmsolvers.engine.catalogue import SOLVERS

SHAPE = (64, 2)
FEW, MANY = 18, 90
AIM = {"cpu": 6e-6}
FIXED = sorted(name for name, facts in SOLVERS.items() if not facts.adaptive)


class Counted:
    """A model that returns its input and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        self.calls += 1
        return x


def same(x: Tensor, level: Tensor) -> Tensor:
    return x


def runs(name: str, x: Tensor, model: Any) -> list[Callable[[], object]]:
    """The short and the long run of a solver, over one and the same grid's ends."""
    facts = SOLVERS[name]
    solver: Any = facts.function
    if facts.space == "time":
        sde = cmsolvers.VP().reverse(model)
        grids = [torch.linspace(1.0, 1e-3, n + 1, dtype=torch.float64) for n in (FEW, MANY)]
        return [lambda ts=ts: solver(sde, x, ts, seed=1) for ts in grids]
    return [lambda s=s: solver(model, x, s, seed=1) for s in map(karras_sigmas, (FEW, MANY))]


def call_seconds(x: Tensor) -> float:
    """Seconds of one call of the model, as the engine makes it."""
    level, count = torch.ones(x.shape[0], device=x.device), 10_000
    extra: dict[str, Any] = {}
    start = time.perf_counter()
    for _ in range(count):
        same(x, level, **extra)
    return (time.perf_counter() - start) / count


@pytest.mark.parametrize("name", FIXED)
def test_step(benchmark: Any, device: str, name: str) -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    counts = []
    for counter in (Counted(), Counted()):
        runs(name, x, counter)[len(counts)]()
        counts.append(counter.calls)
    short, long = runs(name, x, same)
    for run in (short, long) * 3:
        run()
    shorts: list[float] = []

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def before() -> None:
        wait()
        start = time.perf_counter()
        short()
        shorts.append(time.perf_counter() - start)
        wait()

    benchmark.pedantic(long, setup=before, rounds=41)
    wait()
    if benchmark.disabled:
        return
    few, many = statistics.median(shorts), benchmark.stats.stats.median
    model = call_seconds(x)
    calls = (counts[1] - counts[0]) / (MANY - FEW)
    step = (many - few) / (MANY - FEW) - calls * model
    best = (benchmark.stats.stats.min - min(shorts)) / (MANY - FEW) - calls * model
    row = Row(
        f"a step of {name} from Python, {calls:.3g} calls of the model, {list(SHAPE)}, {device}",
        step,
        None,
        {},
        limit=AIM.get(device),
    )
    ROWS.append(row)
    benchmark.extra_info.update(
        case=row.name,
        calls=MANY,
        step_seconds=step,
        step_seconds_of_minima=best,
        door_seconds=few - FEW * (step + calls * model),
        model_calls_per_step=calls,
        model_seconds=model,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **aims(row),
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["plain", "EDM"])
@pytest.mark.parametrize("name", ["euler_pf_ode", "heun_pf_ode", "dpmpp_2m"])
def test_until_the_call_returns(benchmark: Any, name: str, kind: str) -> None:
    """Python's part of a run of 18 steps on a GPU: the device is waited for between the rounds."""
    x = torch.randn(SHAPE, device="cuda")
    model: Any = denoisers.EDM(same) if kind == "EDM" else same
    sampler, sigmas = getattr(cmsolvers, name), karras_sigmas(FEW)
    for _ in range(5):
        sampler(model, x, sigmas)
    benchmark.pedantic(
        lambda: sampler(model, x, sigmas), setup=torch.cuda.synchronize, rounds=51, iterations=1
    )
    torch.cuda.synchronize()
    if benchmark.disabled:
        return
    seconds = benchmark.stats.stats.median / FEW
    row = Row(f"host time per step, 18-step {name}, {kind}, {list(SHAPE)}", seconds, None, {})
    ROWS.append(row)
    benchmark.extra_info.update(case=row.name, calls=FEW, device=torch.cuda.get_device_name())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m"])
def test_run_on_a_gpu(benchmark: Any, name: str) -> None:
    """The same run to its end, and captured."""
    x = torch.randn(SHAPE, device="cuda")
    model = denoisers.EDM(same)
    sampler, sigmas = getattr(cmsolvers, name), karras_sigmas(FEW)
    captured = cmsolvers.capture(sampler, model, x, sigmas)
    compare(
        benchmark,
        f"18-step {name}, EDM, {list(SHAPE)}, captured",
        lambda: captured(x),
        {"not captured": lambda: sampler(model, x, sigmas)},
        moved=60 * x.nbytes,
        device="cuda",
        lenient=True,
    )
