"""Denoisers made of other denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.denoisers.flow_map_base import FlowMap
from cmsolvers.denoisers.pairing import take
from cmsolvers.denoisers.preconditioning import Preconditioned, as_written, training_mode
from cmsolvers.denoisers.protocol import Arguments, Denoiser, Extra
from cmsolvers.denoisers.signature import CALLED
from cmsolvers.processes.coordinates import Coordinates, coordinates_of

T = TypeVar("T")

SAMPLES = "_samples"
"""Extra argument of composed denoisers alone: which samples of the whole batch x is.

{"places": int64 [b], "batch": B}. Who drops or repeats samples does to it what is done to every
extra argument of B rows, and so tells denoisers that hold such tensors themselves.
"""


class Composed(nn.Module, ABC):
    """A denoiser `D(x, sigma, **extra_args)` that asks others.

    It is a module: the denoisers behind it that are modules are its submodules. Tensors that it
    holds for the samples of a batch (labels, a measurement, a scale per sample) are no parameters
    or buffers: they stay on their device and out of `state_dict`.

    Samplers know the level as a number and hand it in beside the tensor, so that what depends on
    the level is settled on the host.
    """

    #: Dtype of the network's input, where one network of its own dtype is behind it.
    dtype: torch.dtype | None = None

    @property
    @abstractmethod
    def coordinates(self) -> Coordinates:
        """Of states and levels; those of the denoisers behind it."""

    @property
    def signature(self) -> Hashable | None:
        """What a run settles on the host about it; see `Preconditioned.signature`."""
        return self._settled() if opens(self) else CALLED

    def _settled(self) -> Hashable | None:
        """The signature where a sampler looks inside; None keeps nothing."""
        return None

    @abstractmethod
    def at(self, x: Tensor, sigma: Tensor, level: float | None, extra: Extra) -> Tensor:
        """D for a checked x; sigma [B], and the same as a number where all samples share it."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
            """As `forward`, with the hooks of a module."""

    def forward(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
        """x0 for x at level sigma.

        Args:
            x: [B, ...] in `coordinates`.
            sigma: the level in them, positive; a number or a tensor of shape [] or [B] on the
                device of x, whose entries are not read on the host.
            extra_args: handed to the denoisers behind it.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind; a denoiser behind it that returned something
                else than a floating tensor of at most the precision of x.
            ValueError: wrong shapes or devices, a level that is not positive.
        """
        check.state("x", x)
        given = check.level("sigma", sigma, x)
        if isinstance(given, Tensor):
            return self.at(x, given.expand(x.shape[0]), None, extra_args)
        levels = torch.full((x.shape[0],), given, dtype=x.dtype, device=x.device)
        return self.at(x, levels, given, extra_args)


def opens(denoiser: object) -> TypeGuard[Composed]:
    """Whether a sampler may use `at` and what is behind it, instead of calling the denoiser.

    A subclass with a call of its own and a module with hooks mean these to run.
    """
    return isinstance(denoiser, Composed) and as_written(denoiser, Composed.forward)


def all_samples(denoiser: object, x: Tensor) -> Arguments:
    """The extra argument that says that x is the whole batch, where the denoiser takes it."""
    if not isinstance(denoiser, Composed):
        return {}
    return {SAMPLES: {"places": torch.arange(x.shape[0], device=x.device), "batch": x.shape[0]}}


def own_rows(value: T, extra: Extra) -> T:
    """Of what a denoiser holds for a whole batch, the rows of the samples that it is called for."""
    samples = extra.get(SAMPLES)
    return value if samples is None else take(value, samples["batch"], samples["places"])


class Rewritten(Composed):
    """A denoiser whose output is changed.

    Args:
        inner: any denoiser.

    Raises:
        TypeError: inner cannot be called.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner: Denoiser = check.function("denoiser", inner)
        self.dtype = inner.dtype if folds(inner) else None
        self.training = training_mode(inner)

    @property
    def coordinates(self) -> Coordinates:
        return coordinates_of(self.inner)

    @abstractmethod
    def rewrite(self, x: Tensor, d: Tensor) -> Tensor:
        """The new D for the old one at x."""

    def at(self, x: Tensor, sigma: Tensor, level: float | None, extra: Extra) -> Tensor:
        """The new D for the inner denoiser's; arguments as in `Composed.at`."""
        return self.rewrite(x, denoised(self.inner, x, sigma, level, extra))


def folds(denoiser: object) -> TypeGuard[Preconditioned]:
    """Whether a sampler may call the network and do the rest of D itself.

    A subclass with a forward or a call of its own (which clips, say) and a module with hooks mean
    these to run.
    """
    return isinstance(denoiser, Preconditioned) and as_written(denoiser, Preconditioned.forward)


def signature(denoiser: object) -> Hashable | None:
    """Signature of any denoiser; nothing of a plain callable is settled before a call."""
    if isinstance(denoiser, (Preconditioned, Composed, FlowMap)):
        return denoiser.signature
    return CALLED


def denoised(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, level: float | None, extra: Extra
) -> Tensor:
    """D of any denoiser, checked; arguments as in `Composed.at`."""
    if opens(denoiser):
        return check.model_output("denoiser", denoiser.at(x, sigma, level, extra), x)
    if not isinstance(denoiser, Composed):
        extra = {name: value for name, value in extra.items() if name != SAMPLES}
    if level is not None and folds(denoiser):
        d = denoiser(x, level, **extra)  # coefficients as numbers: no table on the device
    else:
        d = denoiser(x, sigma, **extra)
    return check.model_output("denoiser", d, x)
