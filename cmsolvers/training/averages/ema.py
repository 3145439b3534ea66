"""Exponential moving averages of a network, kept in float32 at least."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.ops import ema_update

M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}

Decay: TypeAlias = float | Callable[[int], float]
"""mu, or mu(k) of the update that comes after k others, as `power_decay` makes it."""


class EMA(Generic[M_co]):
    """Average of a network's parameters and buffers: average <- mu average + (1 - mu) network.

    The average lives in `module`, a copy of the network in evaluation mode, without gradients,
    whose float16 and bfloat16 tensors became float32 (complex32 ones complex64): with mu = 0.9999 a
    step is smaller than what half precision can add. Floating and complex buffers are averaged too,
    but for their infinite entries, as masks have them: those are copied, and so are all other
    buffers (counters). If the average is the target of a consistency loss with dropout, put it in
    training mode (`ema.module.train()`): student and target then drop the same units.
    `update_averages` moves several averages of one network in one pass.

    Args:
        network: any module, such as a network or a denoiser around one; copied, not changed.
        decay: mu, in [0, 1), or a function k -> mu of the updates done so far, such as
            `power_decay(sigma_rel=0.05)`.
        warmup: start with mu_k = min(mu, (1 + k) / (10 + k)), so that the first weights are soon
            forgotten.

    Attributes:
        module: the average.
        steps: updates so far.

    Raises:
        TypeError: network is no module, decay neither a number nor a function.
        ValueError: decay outside [0, 1).
    """

    def __init__(self, network: M_co, decay: Decay = 0.999, *, warmup: bool = False) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module; got {check.describe(network)}")
        self.decay = decay if callable(decay) else _decay(decay)
        self.warmup = check.flag("warmup", warmup)
        self.steps = 0
        self.module: M_co = copy.deepcopy(network).requires_grad_(False).eval()
        for parameter in self.module.parameters():
            parameter.data = parameter.data.to(_WIDER.get(parameter.dtype, parameter.dtype))
        for buffer in self.module.buffers():
            # In memory of its own: views of one table would be moved once each.
            buffer.data = buffer.data.to(_WIDER.get(buffer.dtype, buffer.dtype), copy=True)

    def next_decay(self, decay: float | None = None) -> float:
        """The mu of the next update; `decay` replaces the fixed one, as in `update`.

        Raises:
            TypeError, ValueError: no number in [0, 1).
        """
        if decay is not None:
            mu = _decay(decay)
        else:
            mu = _decay(self.decay(self.steps)) if callable(self.decay) else self.decay
        return min(mu, (1 + self.steps) / (10 + self.steps)) if self.warmup else mu

    def update(self, network: nn.Module, decay: float | None = None) -> None:
        """Move towards `network`; `decay` replaces the fixed mu for this step (a curriculum mu(k)).

        Raises:
            ValueError: decay outside [0, 1), or another network than the one that was copied.
        """
        update_averages([self], network, [decay])

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the average into `network`, in its own dtypes."""
        for a, b in zip(_tensors(self.module)[0], _tensors(network)[0], strict=True):
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


def update_averages(
    averages: Iterable[EMA[nn.Module]],
    network: nn.Module,
    decays: Sequence[float | None] | None = None,
) -> None:
    """`EMA.update` of several averages of one network, which is read once for all of them.

    Args:
        averages: of this network, with decays of their own; all are moved, or none.
        network: what they follow.
        decays: one entry per average, which replaces its own mu for this update; None does not.

    Raises:
        ValueError: a decay outside [0, 1), more or fewer decays than averages, or averages of
            another network.
    """
    emas = list(averages)
    given: Sequence[float | None] = [None] * len(emas) if decays is None else decays
    if len(given) != len(emas):
        raise ValueError(f"decays must hold one entry per average, {len(emas)}; got {len(given)}")
    weights = [1.0 - ema.next_decay(mu) for ema, mu in zip(emas, given, strict=True)]
    move_averages(emas, network, weights)
    for ema in emas:
        ema.steps += 1


@torch.no_grad()
def move_averages(
    averages: Sequence[EMA[nn.Module]], network: nn.Module, weights: Sequence[float] | Tensor
) -> None:
    """Move averages by given weights 1 - mu, without counting it as an update.

    Args:
        averages: of this network.
        network: what they follow.
        weights: one per average; numbers, or a float64 tensor [k] on the network's device, which
            the kernel reads.

    Raises:
        ValueError: averages of another network.
    """
    values, parameters = _tensors(network)
    lists = [_same_tensors(ema, values) for ema in averages]
    if not lists:
        return
    moved = [i for i, t in enumerate(lists[0]) if t.is_floating_point() or t.is_complex()]
    ema_update(
        [[_numbers(mine[i]) for i in moved] for mine in lists],
        [_numbers(values[i]) for i in moved],
        weights,
        infinite=[place for place, i in enumerate(moved) if i >= parameters],
    )
    if len(moved) < len(values):
        counters = sorted(set(range(len(values))).difference(moved))
        for mine in lists:
            torch._foreach_copy_([mine[i] for i in counters], [values[i] for i in counters])


def check_averages(averages: Sequence[EMA[nn.Module]], network: nn.Module) -> None:
    """Check that averages are of this network, as far as shapes tell.

    Raises:
        ValueError: they are not.
    """
    values, _ = _tensors(network)
    for ema in averages:
        _same_tensors(ema, values)


def _decay(value: float) -> float:
    mu = check.within("decay", value, 0.0, 1.0)
    if mu == 1.0:
        raise ValueError("decay must be below 1; got 1 (the average would never move)")
    return mu


def _tensors(module: nn.Module) -> tuple[list[Tensor], int]:
    """The parameters and then the buffers, each once, and how many are parameters.

    In one walk over the submodules: `parameters()` and `buffers()` take longer than the update of a
    small network.
    """
    parameters: dict[Tensor, None] = {}
    buffers: dict[Tensor, None] = {}
    for part in module.modules():
        for found, own in ((parameters, part._parameters), (buffers, part._buffers)):
            for t in own.values():
                if t is not None:
                    found[t] = None  # tensors are equal as keys where they are the same object
    return [*parameters, *buffers], len(parameters)


def _same_tensors(ema: EMA[nn.Module], values: list[Tensor]) -> list[Tensor]:
    """The tensors of an average, which must be of the network that has these."""
    mine, _ = _tensors(ema.module)
    if [t.shape for t in mine] != [t.shape for t in values]:
        raise ValueError(
            "network must have the parameters and buffers of the network that is averaged"
        )
    return mine


def _numbers(t: Tensor) -> Tensor:
    """A tensor's memory as real numbers: of a sharded one (DTensor) the part in this process."""
    if type(t) is not nn.Parameter and type(t) is not Tensor:
        part = getattr(t, "to_local", None)
        t = t if part is None else part()
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
