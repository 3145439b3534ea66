"""Where a training runs: one device, or processes that share one model or its shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cmsolvers.training.averages import EMA


class Placement:
    """The device of this process, its place among the others, and what wraps the network.

    Args:
        accelerator: of accelerate; None with WORLD_SIZE above 1 in the environment makes one,
            otherwise the network stays where it is, in this process alone.
        network: moved to the device.
        averages: of the network, moved and sharded as it is.
        precision: "no", "bf16" or "fp16"; what the accelerator was made with must be the same.

    Attributes:
        device: of the network.
        rank: number of this process.
        world: number of processes.
        sharded: whether parameters are shards (FSDP2).
        model: what the loss calls: the network, or it in DistributedDataParallel.

    Raises:
        ValueError: an accelerator of another precision, or that shards otherwise than FSDP2.
    """

    def __init__(
        self,
        accelerator: Accelerator | None,
        network: nn.Module,
        averages: Iterable[EMA[nn.Module]],
        precision: str,
    ) -> None:
        if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            accelerator = Accelerator(mixed_precision=precision)
        self.rank, self.world, self.sharded = 0, 1, False
        self.model = network
        if accelerator is None:
            first = next(iter([*network.parameters(), *network.buffers()]), torch.zeros(0))
            self.device = first.device
            return
        check_accelerator(accelerator, precision)
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.sharded = bool(accelerator.is_fsdp2)
        modules = [network, *(ema.module for ema in averages)]
        for module in modules:
            module.to(self.device)
            if self.world > 1:
                _same_everywhere(module)
        if self.sharded:
            for module in modules:
                _shard(accelerator, module)
        elif self.world > 1 and any(p.requires_grad for p in network.parameters()):
            given = accelerator.ddp_handler
            options: dict[str, Any] = {} if given is None else given.to_kwargs()
            devices = [self.device] if self.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(network, devices, **options)

    def part(self, last: bool) -> AbstractContextManager[object]:
        """The block of one micro-batch: gradients are exchanged in the last one alone.

        Shards exchange them in every one: whole gradients are what FSDP2 has no room for.
        """
        model = self.model
        if last or not isinstance(model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        held: AbstractContextManager[object] = model.no_sync()
        return held

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which the first process does something: its failure is everybody's.

        Raises:
            OSError: in the others, where the first one failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.world > 1:
            count = torch.tensor([float(failure is not None)], device=self.device)
            if float(self.sum(count)) and failure is None:
                raise OSError("the first process failed; it tells why")
        if failure is not None:
            raise failure

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in their order."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows)
        return torch.cat(parts)


def check_accelerator(accelerator: Accelerator, precision: str) -> None:
    """Check that an accelerator does what the settings say.

    Raises:
        ValueError: it does not; the text names what to change.
    """
    theirs = str(accelerator.mixed_precision)
    if theirs != precision:
        raise ValueError(
            f"accelerator must be made with mixed_precision={precision!r}, which is "
            f"settings.precision; got {theirs!r}"
        )
    kind = str(accelerator.distributed_type.value)
    known = ("NO", "MULTI_CPU", "MULTI_GPU")
    if kind not in known and not accelerator.is_fsdp2:
        raise ValueError(
            "accelerator must use one process, DistributedDataParallel or FSDP2 "
            f"(FullyShardedDataParallelPlugin(fsdp_version=2)); got {kind}"
        )


def _same_everywhere(module: nn.Module) -> None:
    """Give all processes what the first one has."""
    for t in [*module.parameters(), *module.buffers()]:
        torch.distributed.broadcast(t.data, 0)


def _shard(accelerator: Accelerator, module: nn.Module) -> None:
    """Shard a module in place, by the accelerator's policy of which parts are units.

    Whatever the precision, shards are gathered in float32 and inputs are left alone: autocast
    narrows in each layer, so that embeddings of time stay exact.
    """
    from accelerate.utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    policy, plugin.mixed_precision_policy = plugin.mixed_precision_policy, None
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    try:
        fsdp2_prepare_model(accelerator, module)
    finally:
        plugin.mixed_precision_policy = policy
    parameters = dict(module.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)


# --- shards and whole tensors ------------------------------------------------------------------


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    part = getattr(t, "to_local", None)
    return t if part is None else part()


def whole(t: Tensor) -> Tensor:
    """All of a tensor, of which this process may hold a shard; all processes must ask."""
    made = getattr(t, "full_tensor", None)
    return t.detach() if made is None else made().detach()


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as `other` lies: on its device, or this process's shard of it."""
    if not hasattr(other, "device_mesh"):
        return value.to(other.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    value = value.to(other.device)
    # Each process has read all of it and takes its slice: nothing is sent.
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
