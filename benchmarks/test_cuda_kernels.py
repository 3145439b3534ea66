"""Steps on a GPU against the same formula in eager torch and compiled (tools/gpu_run.py runs this).

One round replays a CUDA graph of `calls` calls and waits for it, so that launches from Python do
not count for either side. `extra_info` gives calls and bytes a call: gpu_run divides by the first
and sets the copy bound beside the time. Sizes exceed the L2 cache several times, but for the small
case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cmsolvers import noise, ops

HAS_CUDA = torch.cuda.is_available() and bool(ops.build_info()["cuda"])
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU and the CUDA part of the extension"),
]

LARGE, SMALL = (1024, 3, 128, 128), (64, 3, 32, 32)
F32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A step in two forms on the same tensors, and how many tensors each must read and write."""

    shape: tuple[int, ...]
    fused: Callable[[list[Tensor]], object]
    plain: Callable[[list[Tensor]], object]
    states: int  # tensors of the state's dtype that are read or written
    models: int = 0  # tensors of the model's dtype that are read
    state: torch.dtype = F32
    model: torch.dtype = F32
    channels_last: bool = False
    calls: int = 10

    @property
    def bytes(self) -> int:
        per_element = self.states * self.state.itemsize + self.models * self.model.itemsize
        return math.prod(self.shape) * per_element

    def tensors(self) -> list[Tensor]:
        """[out, x, m_1, m_2], with values as in a sampler."""
        drawn = [torch.randn(self.shape, device="cuda") for _ in range(4)]
        if self.channels_last:
            drawn = [t.contiguous(memory_format=torch.channels_last) for t in drawn]
        dtypes = (self.state, self.state, self.model, self.model)
        return [t.to(dtype) for t, dtype in zip(drawn, dtypes, strict=True)]


def _em_fused(t: list[Tensor]) -> object:
    return ops.euler_maruyama_step(t[1], t[2], 1.7, -0.01, seed=7, out=t[0])


def _em_plain(t: list[Tensor]) -> object:
    return t[1] + t[2] * -0.01 + torch.randn_like(t[1]) * (1.7 * math.sqrt(0.01))


def _heun_fused(t: list[Tensor]) -> object:
    ops.pf_ode_step(t[1], t[2], 2.0, 1.5, out=t[0])
    return ops.heun_step(t[1], t[2], 2.0, 1.5, t[3], out=t[0])


def _heun_plain(t: list[Tensor]) -> object:
    x, h = t[1], -0.5
    slope = (x - t[2]) / 2.0
    euler = x + h * slope
    return x + h * (0.5 * slope + 0.5 * (euler - t[3]) / 1.5)


def _consistency_fused(t: list[Tensor]) -> object:
    return ops.consistency_output(t[1], t[2], 3.0, out=t[0])


def _consistency_plain(t: list[Tensor]) -> object:
    shift, variance = 3.0 - 0.002, 0.25
    skip = variance / (shift * shift + variance)
    return skip * t[1] + (shift * 0.5 / math.sqrt(9.0 + variance)) * t[2].float()


def _normal_fused(t: list[Tensor]) -> object:
    return noise.normal(t[0].shape, 7, out=t[0])


def _normal_plain(t: list[Tensor]) -> object:
    return torch.randn_like(t[0])


CASES = {
    "euler-maruyama": Case(LARGE, _em_fused, _em_plain, states=2, models=1),
    "euler-maruyama, bf16 drift": Case(LARGE, _em_fused, _em_plain, 2, 1, model=BF16),
    "euler-maruyama, bf16": Case(LARGE, _em_fused, _em_plain, 2, 1, state=BF16, model=BF16),
    "euler-maruyama, channels_last": Case(LARGE, _em_fused, _em_plain, 2, 1, channels_last=True),
    "euler-maruyama, small": Case(SMALL, _em_fused, _em_plain, 2, 1, calls=100),
    "heun, predictor and corrector": Case(LARGE, _heun_fused, _heun_plain, states=4, models=3),
    "consistency output, bf16 F": Case(
        LARGE, _consistency_fused, _consistency_plain, 2, 1, model=BF16
    ),
    "normal": Case(LARGE, _normal_fused, _normal_plain, states=1),
}


def capture(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls, after warming up on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


@pytest.mark.parametrize("implementation", ["fused", "eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_step(benchmark, name, implementation):
    case = CASES[name]
    tensors = case.tensors()
    function = case.fused if implementation == "fused" else case.plain
    if implementation == "compiled":
        function = torch.compile(function, fullgraph=True)
    graph = capture(lambda: function(tensors), case.calls)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    benchmark.group = name
    benchmark.extra_info |= {
        "calls": case.calls,
        "bytes": case.bytes,
        "implementation": implementation,
        "shape": list(case.shape),
    }
    benchmark.pedantic(replay, warmup_rounds=5, rounds=50)


@pytest.mark.parametrize("implementation", ["fused", "eager"])
def test_launch_from_python(benchmark, implementation):
    """Seconds that Python and the dispatcher take for one call on a tiny state."""
    case = Case((64, 2), _em_fused, _em_plain, 2, 1)
    tensors = case.tensors()
    function = case.fused if implementation == "fused" else case.plain

    def call() -> None:
        for _ in range(100):
            function(tensors)
        torch.cuda.synchronize()

    benchmark.group = "launch from Python, [64, 2]"
    benchmark.extra_info |= {"calls": 100, "implementation": implementation}
    benchmark.pedantic(call, warmup_rounds=5, rounds=50)
