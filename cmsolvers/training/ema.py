"""Exponential moving average of a network, kept in float32 at least."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from cmsolvers import checks as check

M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}


class EMA(Generic[M_co]):
    """Average of a network's parameters and buffers: average <- mu average + (1 - mu) network.

    The average lives in `module`, a copy of the network in evaluation mode, without gradients,
    whose float16 and bfloat16 tensors became float32 (complex32 ones complex64): with mu = 0.9999 a
    step is smaller than what half precision can add. Floating and complex buffers are averaged too,
    but for their infinite entries, as masks have them: those are copied, and so are all other
    buffers (counters). If the average is the target of a consistency loss with dropout, put it in
    training mode (`ema.module.train()`): student and target then drop the same units.

    Args:
        network: any module, such as a network or a denoiser around one; copied, not changed.
        decay: mu, in [0, 1).
        warmup: start with mu_k = min(mu, (1 + k) / (10 + k)), so that the first weights are soon
            forgotten.

    Raises:
        TypeError: network is no module.
        ValueError: decay outside [0, 1).
    """

    def __init__(self, network: M_co, decay: float = 0.999, *, warmup: bool = False) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module; got {check.describe(network)}")
        self.decay = _decay(decay)
        self.warmup = check.flag("warmup", warmup)
        self.steps = 0
        self.module: M_co = copy.deepcopy(network).requires_grad_(False).eval()
        for tensors in (self.module.parameters(), self.module.buffers()):
            for tensor in tensors:
                if tensor.dtype in _WIDER:
                    tensor.data = tensor.data.to(_WIDER[tensor.dtype])

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float | None = None) -> None:
        """Move towards `network`; `decay` replaces the fixed mu for this step (a curriculum mu(k)).

        Raises:
            ValueError: decay outside [0, 1), or another network than the one that was copied.
        """
        mu = self.decay if decay is None else _decay(decay)
        if self.warmup:
            mu = min(mu, (1 + self.steps) / (10 + self.steps))
        mine, theirs = _tensors(self.module), _tensors(network)
        if [t.shape for t in mine] != [t.shape for t in theirs]:
            raise ValueError(
                "network must have the parameters and buffers of the network that is averaged"
            )
        averages, values = [], []
        for a, b in zip(mine, theirs, strict=True):
            if a.is_floating_point() or a.is_complex():
                averages.append(_real(a))
                values.append(_real(b.detach().to(a)))
            else:
                a.copy_(b)
        if averages:
            torch._foreach_lerp_(averages, values, 1.0 - mu)
        for a, b in zip(self.module.buffers(), network.buffers(), strict=True):
            if a.is_floating_point() or a.is_complex():
                _infinities(_real(a), _real(b.detach().to(a)))
        self.steps += 1

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the average into `network`, in its own dtypes."""
        for a, b in zip(_tensors(self.module), _tensors(network), strict=True):
            b.copy_(a)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the average, and how many updates it has seen under the name "ema_steps"."""
        state: dict[str, Tensor] = dict(self.module.state_dict())
        state["ema_steps"] = torch.tensor(self.steps)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the average and its number of updates to what `state_dict` gave."""
        state = dict(state)
        self.steps = int(state.pop("ema_steps"))
        self.module.load_state_dict(state)


def _decay(value: float) -> float:
    mu = check.within("decay", value, 0.0, 1.0)
    if mu == 1.0:
        raise ValueError("decay must be below 1; got 1 (the average would never move)")
    return mu


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _infinities(average: Tensor, value: Tensor) -> None:
    """Copy what has no mean: from and to infinity the average has become infinite or NaN."""
    torch.where(average.isfinite(), average, value, out=average)


def _real(t: Tensor) -> Tensor:
    """The same memory as real numbers."""
    return torch.view_as_real(t) if t.is_complex() else t
