"""A denoiser together with the trace of its Jacobian, exact or by Hutchinson's estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import checks as check
from cmsolvers.denoisers.pairing import take
from cmsolvers.ops.one_forward_mode import one_forward_mode


class Trace(ABC):
    """D and the traces in one call, on the batch repeated as often as there are tangents.

    Args:
        denoiser: D.
        forward: forward-mode derivatives, else reverse.
    """

    def __init__(self, denoiser: Callable[..., Tensor], forward: bool) -> None:
        self._denoiser, self._forward = denoiser, forward

    @abstractmethod
    def __call__(
        self, x: Tensor, sigma: Tensor, extra: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        """D like x [b, ...], and the traces [b, P]."""

    def _products(
        self, x: Tensor, sigma: Tensor, tangents: Tensor, extra: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        """D and v . J v for tangents v [b, P, ...]: [b, P]."""
        # Inference mode would lose the derivatives without a word.
        with torch.inference_mode(False):
            return self._derived(x, sigma, tangents, extra)

    def _derived(
        self, x: Tensor, sigma: Tensor, tangents: Tensor, extra: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        b, count = tangents.shape[:2]
        v = tangents.reshape(b * count, *x.shape[1:])
        v = v.clone() if v.is_inference() else v
        # Detached: no other derivative than this one is wanted.
        y = x.detach().repeat_interleave(count, 0)
        level = sigma.repeat_interleave(count)
        more = take(extra, b, torch.arange(b).repeat_interleave(count))
        if self._forward:
            with torch.no_grad(), one_forward_mode(), forward_ad.dual_level():
                pair = forward_ad.make_dual(y, v)  # type: ignore[no-untyped-call]
                dual = self._call(pair, level, more)
                d, moved = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
        else:
            with torch.enable_grad():
                y.requires_grad_()
                d = self._call(y, level, more)
                moved = None
                if d.requires_grad:
                    (moved,) = torch.autograd.grad(d, y, v.to(d.dtype), allow_unused=True)
            d = d.detach()
        if moved is None:
            raise ValueError(
                "denoiser must return what derivatives by x can be taken of; its output does not "
                "follow x (detached, or made in inference mode"
                + (")" if self._forward else ' or under torch.no_grad, which "forward" allows)')
            )
        products = (moved * v).reshape(b, count, -1).sum(-1)
        return d.reshape(b, count, *x.shape[1:])[:, 0], products.to(x.dtype)

    def _call(self, y: Tensor, level: Tensor, extra: Mapping[str, object]) -> Tensor:
        return check.model_output("denoiser", self._denoiser(y, level, **extra), y)


class ExactTrace(Trace):
    """The exact trace: all d unit vectors are tangents."""

    def __call__(
        self, x: Tensor, sigma: Tensor, extra: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        """D and the trace, [b, 1]."""
        size = x[0].numel() if len(x) else 1
        units = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
        d, products = self._products(x, sigma, units.reshape(len(x), size, *x.shape[1:]), extra)
        return d, products.sum(1, keepdim=True)


class Hutchinson(Trace):
    """Hutchinson's estimate: the probes of each sample are its tangents.

    They come as the extra argument `ARGUMENT`, so that they follow their samples.
    """

    ARGUMENT = "_likelihood_probes"

    def __call__(
        self, x: Tensor, sigma: Tensor, extra: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        """D, and one estimate per probe: [b, P]."""
        own = dict(extra)
        return self._products(x, sigma, cast(Tensor, own.pop(self.ARGUMENT)), own)
