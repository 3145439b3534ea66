"""Noise for samples that are at different steps and times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.ops.noise_sum import noise_sum


class SampleNoise:
    """The noise of a whole batch, for any of its samples.

    Args:
        seed: see `noise.key`; drawn from only without a noise sampler.
        like: the user's x, [B, ...].
        noise_sampler: `noise_sampler(start, end)`, float64 [B] each, in place of the built-in
            noise: unit normal in the shape of x. Samples that have ended have start = end.
        wanted: whether noise will be asked for; if not, no seed is drawn.
    """

    def __init__(self, seed: Any, like: Tensor, noise_sampler: Any, *, wanted: bool = True) -> None:
        self._like = like
        self._sampler = check.optional_function("noise_sampler", noise_sampler)
        batch, device = like.shape[0], like.device
        self._table: Tensor | None = None
        drawn = seed is None or isinstance(seed, torch.Generator)
        if drawn and not (wanted and self._sampler is None):
            return
        key = noise.key(seed, batch, device=device)
        places = torch.arange(batch, device=device)
        if key.table is None:
            seeds = torch.full_like(places, key.seed)
            self._table = torch.stack((seeds, places + key.offset), dim=1)
        elif key.table.shape[0] == 1 != batch:
            seeds, ids = key.table.to(device).expand(batch, 2).unbind(1)
            self._table = torch.stack((seeds, ids + places), dim=1)
        else:
            self._table = key.table.to(device)

    @property
    def built_in(self) -> bool:
        """Whether no noise sampler was given."""
        return self._sampler is None

    def key(self, ids: Tensor) -> noise.Key:
        """The key of some places of the batch."""
        assert self._table is not None
        return noise.Key(table=self._table[ids.to(self._table.device)])

    def steps(self, x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        """Unit normals like x, sample b with draw draws[b] of the stream of sampler steps."""
        terms = torch.stack((draws.double(), torch.ones_like(draws).double()), dim=1)
        out = torch.empty_like(x, requires_grad=False)
        table = terms[:, None].to(x.device)
        return noise_sum(out, [], [], table=table, key=self.key(ids), stream=noise.STEPS)

    def sampled(self, x: Tensor, ids: Tensor, start: Tensor, end: Tensor, last: float) -> Tensor:
        """What the noise sampler gives to some places of the batch, like x."""
        batch = self._like.shape[0]
        spans = []
        for value in (start, end):
            whole = torch.full((batch,), last, dtype=torch.float64, device=value.device)
            spans.append(whole.index_put((ids,), value).to(x.device))
        assert self._sampler is not None
        z = check.model_output("noise_sampler", self._sampler(*spans), self._like)
        return z[ids.to(z.device)].to(x.dtype)
