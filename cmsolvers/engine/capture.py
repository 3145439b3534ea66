"""A whole run captured once as a CUDA graph, and replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.engine.adaptive import AdaptiveInfo
from cmsolvers.engine.catalogue import SOLVERS
from cmsolvers.engine.nests import check_like, tensors_in, with_tensors
from cmsolvers.engine.observers import Info
from cmsolvers.engine.run import keeping_programs

_WARM_UPS = 3
_REFUSED = {
    "callback": "it would be called once, while the run is captured",
    "noise_sampler": "it would be called once, while the run is captured; the built-in noise is "
    "replayed with new seeds",
    "check": "it waits for the device",
    "check_nan": "it waits for the device",
    "progress": "a replay has no steps to show",
    "grad": "a replay records no derivatives",
    "trajectory": "a captured run returns its last state alone",
    "return_info": "see the attributes nfe and sigmas",
    "log_prob": "a captured run returns its last state alone",
    "history": "its tensors would be read again in every replay",
}


class CapturedRun:
    """A run to be called again and again; made by `capture`.

    Attributes:
        nfe: evaluations of the model in a run.
        sigmas: the levels (times, for a solver in time), float64.
        graph: the CUDA graph; None on the CPU, where every call runs the sampler.
        pool: of the graph's memory, for `capture(..., pool=)` of another run; None on the CPU.
    """

    def __init__(
        self,
        sampler: Callable[..., Any],
        model: object,
        x: Tensor,
        sigmas: object,
        extra_args: dict[str, Any] | None,
        options: dict[str, Any],
        pool: Any,
    ) -> None:
        self._call = partial(sampler, model, **options)
        self._name = getattr(sampler, "__name__", "sampler")
        self._shape, self._dtype, self._device = x.shape, x.dtype, x.device
        grid = check.floats("sigmas", sigmas)
        self.sigmas = torch.tensor(grid, dtype=torch.float64, device="cpu")
        self._extra = check.options("extra_args", extra_args)
        self._slots = dict(tensors_in("extra_args", self._extra))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool: Any = None
        if x.is_cuda:
            self._capture(x, pool)
        else:
            key = noise.key(0, len(x))
            _, info = self._sample(x, key, self._extra, return_info=True)
            self.nfe = _evaluations(info)

    def __call__(
        self, x: Tensor, *, seed: noise.SeedLike = None, extra_args: dict[str, Any] | None = None
    ) -> Tensor:
        """Run.

        Args:
            x: in the shape, dtype and on the device of the one it was captured with. Never written
                to.
            seed: as in the sampler.
            extra_args: with the same structure as at the capture. Tensors may have new values, the
                rest must be the same. None: those of the capture, as they are now.

        Returns:
            What the sampler returns for these arguments, to the bit; a tensor of its own.

        Raises:
            TypeError, ValueError: x or extra_args do not fit the captured ones; a bad seed.
        """
        self._check(x)
        extra = self._extra if extra_args is None else check.options("extra_args", extra_args)
        given = dict(tensors_in("extra_args", extra))
        if extra is not self._extra:
            check_like(extra, self._extra, "extra_args")
        key = noise.key(seed, len(x), device=x.device)
        if self.graph is None:
            result: Tensor = self._sample(x, key, extra)
            return result
        with torch.no_grad():
            self._x.copy_(x)
            self._keys.copy_(key.rows(len(x), x.device))
            for name, slot in self._static.items():
                slot.copy_(given[name])
            self.graph.replay()
            replayed: Tensor = self._y.clone()
            return replayed

    def __repr__(self) -> str:
        how = "no graph" if self.graph is None else "a graph"
        return (
            f"CapturedRun({self._name}, x {list(self._shape)} {self._dtype} on {self._device}, "
            f"nfe={self.nfe}, {how})"
        )

    def _sample(self, x: Tensor, key: noise.Key, extra: Mapping[str, Any], **more: Any) -> Any:
        return self._call(x, self.sigmas, seed=key, extra_args=dict(extra), **more)

    def _capture(self, x: Tensor, pool: Any) -> None:
        """Warm up on a stream of its own, then record the run."""
        self._x = torch.empty_like(x).copy_(x)
        self._keys = noise.key(0, len(x)).rows(len(x), x.device)
        self._static = {name: slot.detach().clone() for name, slot in self._slots.items()}
        extra = with_tensors("extra_args", self._extra, self._static)
        key = noise.Key(table=self._keys)
        stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(x.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(x.device), torch.no_grad(), keeping_programs() as programs:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS - 1):
                    self._sample(self._x, key, extra)
                _, info = self._sample(self._x, key, extra, return_info=True)
            current.wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._y = self._sample(self._x, key, extra)
        self.nfe = _evaluations(info)
        # The graph reads the levels and weights that the programs hold.
        self._programs, self._key, self._held_extra = programs, key, extra
        self.graph, self.pool = graph, graph.pool()

    def _check(self, x: Tensor) -> None:
        check.state("x", x)
        if x.shape != self._shape:
            raise ValueError(
                f"x must have the shape that {self._name} was captured with, "
                f"{list(self._shape)}; got {list(x.shape)}"
            )
        if x.dtype is not self._dtype:
            raise TypeError(
                f"x must have the dtype that {self._name} was captured with, {self._dtype}; "
                f"got {x.dtype}"
            )
        if x.device != self._device:
            raise ValueError(
                f"x must be on the device that {self._name} was captured on, {self._device}; "
                f"got {x.device}"
            )


def capture(
    sampler: Callable[..., Any],
    denoiser: object,
    x: Tensor,
    sigmas: check.Levels,
    *,
    extra_args: dict[str, Any] | None = None,
    pool: Any = None,
    **options: Any,
) -> CapturedRun:
    """Capture a whole run as one CUDA graph, to be replayed with other x, seeds and arguments.

    A replay launches everything at once, the network's kernels too, so that a small or a compiled
    network is no longer bound by the time it takes to launch them. On the CPU the same object runs
    the sampler. A network that `torch.compile` made works inside; its warm-up runs compile it.

    The network's parameters are read where they are: the next replay sees changes in place (an
    optimizer's step, `load_state_dict`), but not a parameter that was replaced by another tensor.
    The network must not wait for the device or choose what to do by the values of tensors.

    Args:
        sampler: a solver of the library with fixed steps, in sigma or time; an adaptive one with
            mode="masked" and check_every=None; or any function with the same arguments that does
            not wait for the device.
        denoiser: as in the sampler (an SDE for a solver in time).
        x: [B, ...], an example: only its shape, layout, dtype and device matter.
        sigmas: as in the sampler (times for a solver in time).
        extra_args: as in the sampler. Tensors in it, nested too, may be replaced in every call.
        pool: `run.pool` of another captured run, to use the same memory for both. The two must
            not run at the same time; each result is a copy, so it stays valid.
        options: all other arguments of the sampler.

    Returns:
        `run(x, seed=..., extra_args=...)`, equal to the sampler's result to the bit; x has the
        shape, dtype and device of the example. Without a seed every call draws one; without
        `extra_args` those of the capture are used. `run.nfe` and `run.sigmas` say what a run does.

    Raises:
        TypeError, ValueError: arguments that the sampler refuses, and those that a replay cannot
            serve: callback, noise_sampler, check, check_nan, progress, grad, trajectory,
            return_info, log_prob and history. A seed is given to the run, not here.
    """
    check.function("sampler", sampler)
    check.state("x", x)
    if "seed" in options:
        raise ValueError("seed must be given to the captured run, not to capture")
    for name, why in _REFUSED.items():
        if options.get(name):
            raise ValueError(f"{name} must not be set for a captured run: {why}")
    facts = SOLVERS.get(getattr(sampler, "__name__", ""))
    if facts is not None and facts.function is sampler and facts.adaptive:
        masked = options.get("mode") == "masked" and options.get("check_every", 0) is None
        if not masked:
            raise ValueError(
                f'mode must be "masked" and check_every None to capture {facts.name}: otherwise it '
                "waits for the device"
            )
    return CapturedRun(sampler, denoiser, x, sigmas, extra_args, options, pool)


def _evaluations(info: Info | AdaptiveInfo) -> int:
    return info.calls if isinstance(info, AdaptiveInfo) else info.nfe
