"""What every sampler run owns: buffers, noise, a record of bad model outputs, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.denoisers.pairing import alike

NoiseSampler: TypeAlias = Callable[[float, float], Tensor]
_NONE_BAD = torch.iinfo(torch.int64).max


class _Buffers:
    """Tensors like x, made when first needed and used again: fresh ones cost page faults."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        self._like, self._dtype = x, dtype
        self._spans: list[tuple[int, int, Tensor]] = []

    def take(self, keep: Sequence[Tensor]) -> Tensor:
        """A buffer that none of the tensors in `keep` lies in, be it as a view."""
        used = [tensor.data_ptr() for tensor in keep]
        for start, end, buffer in self._spans:
            for address in used:
                if start <= address < end:
                    break
            else:
                return buffer
        buffer = torch.empty_like(self._like, dtype=self._dtype)
        start = buffer.data_ptr()
        self._spans.append((start, start + buffer.numel() * buffer.element_size(), buffer))
        return buffer


def derivative(value: Tensor) -> bool:
    """Whether autograd follows this tensor, in reverse or forward mode."""
    if value.requires_grad and torch.is_grad_enabled():
        return True
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def _transformed() -> bool:
    """Whether a torch.func transform or a compiler is at work: buffers must not be reused there."""
    active: Callable[[], bool] = getattr(
        torch._C, "_are_functorch_transforms_active", lambda: False
    )
    return active() or torch.compiler.is_compiling()


class Launcher:
    """Weighted steps of one run, in the run's own buffers.

    With derivatives, transforms or a callback (whose caller may keep what it is shown) nothing is
    reused and every step makes its own tensors. The user's x is never written to.

    Args:
        x: the initial state.
        seed: see `noise.key`; drawn from only if `noisy`.
        noisy: whether any step needs built-in noise.
        noise_sampler: replaces the built-in noise.
        reuse: False makes every step allocate.
        second_dtype: dtype of second outputs.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        seed: Any,
        noisy: bool,
        noise_sampler: NoiseSampler | None,
        reuse: bool,
        second_dtype: torch.dtype,
    ) -> None:
        self._noise_sampler = noise_sampler
        drawn = seed is None or isinstance(seed, torch.Generator)
        needed = noisy and noise_sampler is None
        self.key = noise.key(seed, x.shape[0], device=x.device) if needed or not drawn else None
        self._reuse = reuse and not derivative(x) and not _transformed()
        self._states = _Buffers(x, x.dtype)
        self._seconds = _Buffers(x, second_dtype)
        self._second_dtype = second_dtype

    def observe(self, output: Tensor) -> None:
        """Stop reusing buffers for good if a model output carries derivatives."""
        if self._reuse and derivative(output):
            self._reuse = False

    def unit(self, x: Tensor, start: float, end: float) -> Tensor | None:
        """The user's noise for (start, end), checked; None where the built-in noise is used."""
        if self._noise_sampler is None:
            return None
        return check.model_output("noise_sampler", self._noise_sampler(start, end), x)

    def step(
        self,
        x: Tensor,
        inputs: Sequence[Tensor],
        row: Sequence[float | Tensor],
        *,
        w_z: float | Tensor = 0.0,
        span: tuple[float, float] = (0.0, 0.0),
        draw: int = 0,
        keep: Sequence[Tensor] = (),
        second: float | str | None = None,
        x0: tuple[float, float] | None = None,
        clamp: tuple[float, float] | None = None,
    ) -> Any:
        """X' = row . (x, inputs) + w_z z, or (x', second output); noise over `span`."""
        options: dict[str, Any] = {}
        if clamp is not None:
            options["clamp"] = clamp
        if isinstance(w_z, Tensor) or w_z:
            z = self.unit(x, *span)
            if z is None:
                options.update(w_z=w_z, seed=self.key, stream=noise.STEPS, draw=draw)
            else:
                self.observe(z)
                inputs, row = alike((*inputs, z), x.dtype), (*row, w_z)
        if x0 is not None:
            options["x0"] = x0
        kept = second == "x0"
        if second is not None:
            options["second"] = second
            options["second_dtype"] = x.dtype if kept else self._second_dtype
        if self._reuse:
            out = options["out"] = self._states.take((*inputs, *keep))
            if second is not None:
                pool = self._states if kept else self._seconds
                options["second_out"] = pool.take((x, out, *inputs, *keep))
        return ops.weighted_step(x, inputs, row, **options)

    def scaled(self, y: Tensor, c_in: float) -> Tensor:
        """A network's input made by itself: no second output may be in use."""
        out = self._seconds.take(()) if self._reuse else None
        return ops.scale_input(y, c_in, dtype=self._second_dtype, out=out)


def per_level(levels: Sequence[float], x: Tensor, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """Index -> that level as a tensor [B]; nothing is copied to the device per step."""
    batch, device = x.shape[0], x.device
    if device.type == "cpu":
        table = torch.tensor(levels, dtype=torch.float64).to(dtype)
        rows: tuple[Tensor, ...] = table[:, None].expand(len(levels), batch).unbind(0)
        return rows.__getitem__
    # A fill needs no copy from the host, so it neither waits nor breaks a graph capture.
    return lambda j: torch.full((batch,), levels[j], dtype=dtype, device=device)


class Recorder:
    """Copies of the states that `trajectory` asks for.

    Args:
        name: of the argument, for error texts.
        wanted: None or False (nothing), True (every state) or the levels of some of `visited`.
        visited: the level of each state that `add` will be shown, in order.

    Raises:
        TypeError: neither a bool nor a sequence of numbers.
        ValueError: no levels, or one that the run does not visit.
    """

    def __init__(self, name: str, wanted: Any, visited: Sequence[float]) -> None:
        self._visited, self._at = visited, 0
        self._states: list[Tensor] = []
        if wanted is None or isinstance(wanted, bool):
            chosen = set(visited) if wanted else set()
        else:
            chosen = set(check.floats(name, wanted))
            if not chosen:
                raise ValueError(f"{name} must hold at least one level; got none")
        missing = sorted(chosen - set(visited))
        if missing:
            raise ValueError(
                f"{name} must hold levels that the run visits; got {missing[0]!r}, which is none "
                f"of its {len(visited)} from {visited[0]:g} to {visited[-1]:g}"
            )
        self._chosen = chosen

    @property
    def wanted(self) -> bool:
        """Whether anything is recorded."""
        return bool(self._chosen)

    def add(self, x: Tensor) -> None:
        """The next state."""
        if self._visited[self._at] in self._chosen:
            self._states.append(x.clone())  # the loop may write to its buffer again
        self._at += 1

    def result(self) -> tuple[Tensor | None, tuple[float, ...] | None]:
        """(states [K, B, ...], their levels), or (None, None)."""
        if not self._chosen:
            return None, None
        return torch.stack(self._states), tuple(v for v in self._visited if v in self._chosen)


class BadOutputs:
    """First evaluation and sample whose model output is not finite, kept on the device."""

    def __init__(self, x: Tensor) -> None:
        self._batch = x.shape[0]
        self._first = torch.full((), _NONE_BAD, dtype=torch.int64, device=x.device)
        self._samples = torch.arange(self._batch, device=x.device)

    def add(self, evaluation: int, output: Tensor) -> None:
        """Record one model output; waits for nothing."""
        if output.numel() == 0:
            return
        bad = ~torch.isfinite(output.detach()).reshape(self._batch, -1).all(1)
        codes = torch.where(bad, self._samples + evaluation * self._batch, _NONE_BAD)
        self._first = torch.minimum(self._first, codes.min())

    def first(self) -> tuple[int, int] | None:
        """(evaluation, sample) of the first bad output, or None; the only wait for the device."""
        code = int(self._first.item())
        return None if code == _NONE_BAD else divmod(code, self._batch)


class _NoBar(AbstractContextManager["_NoBar"]):
    def advance(self, name: str, level: float, nfe: int) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        return None


class _Bar(AbstractContextManager["_Bar"]):
    def __init__(self, name: str, steps: int) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=steps, desc=name)

    def advance(self, name: str, level: float, nfe: int) -> None:
        """One step done."""
        self._bar.set_postfix_str(f"{name} {level:.4g}, NFE {nfe}", refresh=False)
        self._bar.update()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def bar(progress: bool, name: str, steps: int) -> _Bar | _NoBar:
    """A tqdm bar that shows the level and the NFE, or nothing."""
    return _Bar(name, steps) if progress else _NoBar()
