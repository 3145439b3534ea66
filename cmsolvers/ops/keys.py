"""Noise keys: the seed and the sample id of each row of a batch (DESIGN: the noise contract)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmsolvers.checks import index

MAX_SAMPLE_ID = 1 << 56
"""Sample ids fit 56 bits: 32 in counter word 2 and 24 in word 3."""


@dataclass(frozen=True)
class Key:
    """The seed and sample id of every row of a batch.

    Without `table`, row b has the seed `seed` (64 bits, kept as a signed integer) and the sample id
    `offset + b`. With `table`, an int64 tensor of shape [B, 2] or [1, 2], row b has seed
    `table[b, 0]` and id `table[b, 1]` (for [1, 2]: id `table[0, 1] + b`). A third column, of
    [B, 3] or [1, 3], is the draw: it takes the place of the number `draw` of whatever is called
    with the key, which must be 0 then. Kernels read the table on its device, so a captured graph
    replays with whatever was written there last.
    """

    seed: int = 0
    offset: int = 0
    table: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("offset", self.offset)):
            number = _int(f"{name} of a Key", value)
            if number is not value:
                object.__setattr__(self, name, number)
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise ValueError(f"seed of a Key must lie in [-2^63, 2^64); got {self.seed}")
        if not 0 <= self.offset < MAX_SAMPLE_ID:
            raise ValueError(f"offset of a Key must lie in [0, 2^56); got {self.offset}")
        if self.seed >= 1 << 63:
            object.__setattr__(self, "seed", signed(self.seed))
        if self.table is None:
            return
        kind: object = getattr(self.table, "dtype", type(self.table))
        if kind != torch.int64:
            raise TypeError(f"table of a Key must be an int64 tensor; got {kind}")
        if self.table.dim() != 2 or self.table.shape[1] not in (2, 3):
            raise ValueError(
                "table of a Key must have shape [B, 2] or [1, 2], or with draws [B, 3] or [1, 3]; "
                f"got {list(self.table.shape)}"
            )

    @property
    def holds_draws(self) -> bool:
        """Whether the table has a column of draws."""
        return self.table is not None and self.table.shape[1] == 3

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """(seed, sample id) of every row of a batch, int64 [B, 2] on a device; a tensor of its own.

        The table is not read on the host.

        Raises:
            ValueError: the key holds draws, and whoever asks has draws of its own.
        """
        self.require_no_draws()
        places = torch.arange(batch, device=device)
        if self.table is None:
            return torch.stack((torch.full_like(places, self.seed), places + self.offset), dim=1)
        table = self.table.to(device)
        if len(table) == batch:
            return table.clone()
        return torch.stack((table[:, 0].expand(batch), table[:, 1] + places), dim=1)

    def require_no_draws(self) -> None:
        """Refuse draws where whoever uses the key has draws of its own: a sampler, a path."""
        if self.holds_draws:
            raise ValueError(
                "seed: a key that holds draws is for one draw of noise; what is called here draws "
                "several times and counts the draws itself. Give a key without draws"
            )


SeedLike: TypeAlias = (
    int | Tensor | torch.Generator | Sequence[int] | Sequence[torch.Generator] | Key | None
)


def draws(seed: SeedLike) -> bool:
    """Whether a seed is drawn from a generator once it is resolved."""
    if isinstance(seed, (list, tuple)):
        return bool(seed) and all(isinstance(one, torch.Generator) for one in seed)
    return seed is None or isinstance(seed, torch.Generator)


def resolve(
    seed: SeedLike,
    batch: int,
    *,
    offset: int = 0,
    ids: Tensor | None = None,
    device: torch.device | str | None = None,
    draw: Tensor | None = None,
) -> Key:
    """Turn any kind of seed into a `Key` for `batch` samples on `device`.

    Args:
        seed: an int in [0, 2^64); an int64 tensor [B] or a sequence of B ints (one seed per
            sample, sample id 0); a `torch.Generator` or None (one int64 is drawn from it, so
            `torch.manual_seed` governs); a sequence of B generators (one int64 is drawn from
            each); or a `Key`, returned as it is.
        batch: B, the number of samples.
        offset: id of the first sample, for shards of a larger batch; ids reach up to 2^56 - 1.
        ids: int64 [B], the sample ids themselves, in place of offset + 0..B-1.
        device: where the table lives, for tensors of seeds or ids.
        draw: int64 [B], [1] or [], the draw in a tensor, such as the training step: the key then
            holds a table with a column of draws (see `Key`), and what is called with it gets no
            number `draw`. Entries in [0, 2^32).

    Returns:
        A `Key`. From a number or a generator it holds `seed` and `offset`; from a tensor of seeds
        or with `ids` it holds a table [B, 2] on `device`. While torch.compile traces, None and a
        generator give a table [1, 2], so that every run of the graph draws a seed.

    Raises:
        TypeError: a seed, offset or ids of the wrong kind.
        ValueError: a value out of range or a tensor of the wrong shape.
    """
    if draw is not None:
        return _with_draws(resolve(seed, batch, offset=offset, ids=ids, device=device), draw, batch)
    if isinstance(seed, Key):
        if seed.table is not None and seed.table.shape[0] not in (1, batch):
            raise ValueError(
                f"seed: the key holds {seed.table.shape[0]} rows; the batch has {batch} samples"
            )
        if offset != 0 or ids is not None:
            raise ValueError(
                "offset and ids belong to noise.key; a Key given as seed already holds them"
            )
        if seed.table is None and seed.offset > MAX_SAMPLE_ID - batch:
            raise ValueError(
                f"seed: the key's offset must leave sample ids in [0, 2^56); got {seed.offset} for "
                f"{batch} samples"
            )
        return seed
    offset = _int("offset", offset)
    if not 0 <= offset <= MAX_SAMPLE_ID - batch:
        raise ValueError(
            f"offset must leave sample ids in [0, 2^56); got {offset} for {batch} samples"
        )
    if ids is not None:
        ids = _vector(ids, "ids", batch, device)
        if offset != 0:
            raise ValueError("offset must be 0 where ids are given")
        readable = (
            ids.device.type == "cpu" and ids.numel() > 0 and not torch.compiler.is_compiling()
        )
        if readable and not 0 <= int(ids.min()) <= int(ids.max()) < MAX_SAMPLE_ID:
            raise ValueError(f"ids must lie in [0, 2^56); got {int(ids.min())} to {int(ids.max())}")
    entries: object = seed
    if isinstance(entries, np.ndarray) and entries.ndim:
        entries = entries.tolist()
    if isinstance(entries, (list, tuple)):
        seed = _seeds(entries, batch)
    if isinstance(seed, Tensor):
        if offset != 0:
            raise ValueError(
                "offset must be 0 where seed is a tensor or a sequence: each sample has its own"
            )
        seeds = _vector(seed, "seed", batch, device)
        return Key(
            table=torch.stack((seeds, torch.zeros_like(seeds) if ids is None else ids), dim=1)
        )
    if (seed is None or isinstance(seed, torch.Generator)) and torch.compiler.is_compiling():
        drawn = torch.randint(0, 2**63 - 1, (1,), generator=seed, device=device)
        return Key(table=torch.stack((drawn, torch.full_like(drawn, offset)), dim=1))
    number = signed(draw_seed(seed))
    if ids is not None:
        return Key(table=torch.stack((torch.full_like(ids, number), ids), dim=1))
    return Key(number, offset)


def _with_draws(key: Key, draw: Tensor, batch: int) -> Key:
    """The key with a column of draws, on the device of its table, or else of the draws."""
    kind: object = getattr(draw, "dtype", type(draw).__name__)
    if kind != torch.int64:
        raise TypeError(f"draw of a key must be an int64 tensor; got {kind}")
    if draw.dim() > 1 or draw.numel() not in (1, batch):
        raise ValueError(
            f"draw of a key must have shape [{batch}], [1] or []; got {list(draw.shape)}"
        )
    if key.holds_draws:
        raise ValueError("draw must be left out where the key given as seed holds draws already")
    readable = draw.device.type == "cpu" and draw.numel() > 0 and not torch.compiler.is_compiling()
    if readable and not 0 <= int(draw.min()) <= int(draw.max()) < 1 << 32:
        raise ValueError(
            f"draw of a key must lie in [0, 2^32); got {int(draw.min())} to {int(draw.max())}"
        )
    draw = draw.reshape(-1)
    if key.table is None and draw.numel() == 1:
        first = [torch.full_like(draw, number) for number in (key.seed, key.offset)]
        return Key(table=torch.stack((*first, draw), dim=1))
    table = key.table
    if table is None or len(table) != len(draw):
        table = key.rows(batch, draw.device if table is None else table.device)
    column = draw.to(table.device).expand(len(table)).unsqueeze(1)
    return Key(table=torch.cat((table, column), dim=1))


def place(key: Key, stream: int, draw: int) -> list[int]:
    """(seed, offset, stream, draw), checked, as the operators take them beside the table."""
    stream, draw = checked_place(stream, draw)
    if draw != 0 and key.holds_draws:
        raise ValueError(f"draw must be 0 where the key given as seed holds draws; got {draw}")
    return [key.seed, key.offset, stream, draw]


def draw_seed(seed: object) -> int:
    """The seed as an int: checked if it is one, else drawn (None: from torch's CPU generator)."""
    if seed is None or isinstance(seed, torch.Generator):
        device = "cpu" if seed is None else seed.device
        return int(torch.randint(0, 2**63 - 1, (), generator=seed, device=device).item())
    if not isinstance(seed, (int, torch.SymInt)) and callable(getattr(seed, "at", None)):
        raise TypeError(f"seed must be that of one step, seeds.at(step); got {type(seed).__name__}")
    wanted = "an int, an int64 tensor, a torch.Generator, a sequence of them, a noise.Key or None"
    seed = _int("seed", seed, wanted)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in [0, 2^64); got {seed}")
    return seed


def _seeds(seeds: Sequence[object], batch: int) -> Tensor:
    """One seed per sample as a tensor; all are checked before a generator is asked."""
    if len(seeds) != batch:
        raise ValueError(f"seed must hold {batch} entries, one per sample; got {len(seeds)}")
    generators = [isinstance(seed, torch.Generator) for seed in seeds]
    if any(generators) and not all(generators):
        other = seeds[generators.index(False)]
        raise TypeError(f"seed must hold ints or generators alone; got {type(other).__name__} too")
    numbers = [
        draw_seed(seed if isinstance(seed, torch.Generator) else _int(f"seed[{i}]", seed))
        for i, seed in enumerate(seeds)
    ]
    return torch.tensor([signed(n) for n in numbers], dtype=torch.int64, device="cpu")


def checked_place(stream: int, draw: int) -> tuple[int, int]:
    """The stream and the draw as ints, in their ranges."""
    stream, draw = _int("stream", stream), _int("draw", draw)
    for name, value, bits in (("stream", stream, 8), ("draw", draw, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must lie in [0, 2^{bits}); got {value}")
    return stream, draw


def checked_step(step: object) -> int:
    """A step of `noise.Seeds`: an int in the range of sample ids."""
    number = _int("step", step)
    if not 0 <= number < MAX_SAMPLE_ID:
        raise ValueError(f"step must lie in [0, 2^56); got {number}")
    return number


def _int(name: str, value: object, wanted: str = "an int") -> int:
    """An int, or what converts to one without loss; reading a tensor would wait for its device."""
    number = value if type(value) is int else index(value)
    if number is None:
        raise TypeError(f"{name} must be {wanted}; got {type(value).__name__}")
    return number


def signed(seed: int) -> int:
    """The same 64 bits as a signed integer, which is what an operator schema can carry."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _vector(value: Tensor, name: str, batch: int, device: torch.device | str | None) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int64 tensor; got {type(value).__name__}")
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor; got {value.dtype}")
    if value.shape != (batch,):
        raise ValueError(
            f"{name} must have shape [{batch}], one per sample; got {list(value.shape)}"
        )
    return value if device is None else value.to(device)
