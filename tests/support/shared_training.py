"""The same training in one process and in two: DDP, FSDP2, accumulated, resumed, interrupted."""

import math
import os
import signal
import tempfile
from pathlib import Path

import torch
from torch import distributed, nn

from cmsolvers import EDM, noise
from cmsolvers.losses import dsm
from cmsolvers.training import EMA, RunFolder, Trainer, TrainingSettings
from cmsolvers.training.data import batch_indices

STEPS, BATCH = 20, 8
DATA = 0.5 * noise.normal((40, 6), 1)


class Net(nn.Module):
    """Three parts, a buffer and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 16)
        self.last = nn.Linear(16, 6)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x, c_noise):
        with torch.no_grad():
            self.seen += 1.0
        h = torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1)
        return self.last(torch.nn.functional.silu(self.first(h)))


def loss(model, batch):
    return dsm(model, batch.x0, key=batch.key, step=batch.step)


def trainer(*, clip=0.1, accumulate=1, loss=loss, around=EDM, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = around(Net())
    settings = TrainingSettings(
        STEPS, batch_size=BATCH, lr=3e-2, clip=clip, accumulate=accumulate, max_bad_steps=3
    )
    averages = {"fast": EMA(network, 0.5), "slow": EMA(network, 0.9, warmup=True)}
    return Trainer(network, loss, DATA, settings, averages=averages, **options)


def accelerator(sharded):
    """One of accelerate for the processes that are there, on the CPU."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedType

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in told.items()}
    made = Accelerator(cpu=True)
    for name in told:
        del os.environ[name]
    if sharded:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=50
        )
        # accelerate turns it on for GPUs alone.
        shared = AcceleratorState._shared_state
        shared["distributed_type"], shared["fsdp_plugin"] = DistributedType.FSDP, plugin
    return made


def state_of(run):
    """All tensors that a checkpoint would hold, whole."""
    groups = run._saves._state.tensors()
    return {f"{g}/{n}": t.clone() for g, members in groups.items() for n, t in members.items()}


def apart(one, other):
    """The largest difference of losses and tensors, each relative to its largest entry."""
    pairs = [(torch.tensor(one.history), torch.tensor(other.history))]
    mine, theirs = state_of(one), state_of(other)
    assert mine.keys() == theirs.keys()
    pairs += [(mine[name], theirs[name]) for name in mine]
    found = []
    for a, b in pairs:
        a, b = (torch.nan_to_num(t.double()) for t in (a, b))
        found.append(float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)))
    return max(found)


OPTIONS = {
    "plain": {},
    "no clip": {"clip": 0.0},
    "accumulated": {"accumulate": 2},
    "SGD": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)},
}


def noise_of_places(model, batch):
    """The mistake: noise by the place in a process's batch."""
    return dsm(model, batch.x0, key=noise.key(0, len(batch.x0)), step=batch.step)


def poisoned(*steps):
    """The loss, but one of the samples of these steps, in one process, makes it NaN."""

    def found(model, batch):
        made = loss(model, batch)
        order = batch_indices(len(DATA), batch.step, BATCH, 0)
        bad = batch.step in steps and int(order[-1]) in batch.index.tolist()
        return made._replace(loss=made.loss * math.nan) if bad else made

    return found


def signalled(number, step):
    """The loss; the last process gets a signal in one step."""

    def found(model, batch):
        if batch.step == step and distributed.get_rank() == 1:
            signal.raise_signal(number)
        return loss(model, batch)

    return found


class Reports(list):
    """A monitor that keeps what it is told."""

    def started(self, trainer):
        pass

    def stepped(self, report):
        self.append(report)

    def saved(self, path):
        pass

    def ended(self, trainer):
        pass


def compare():
    """What two processes find out together, by name; the same in both or it would be an error."""
    rank = distributed.get_rank()
    place = [tempfile.mkdtemp() if rank == 0 else None]
    distributed.broadcast_object_list(place)
    folder, found = Path(place[0]), {}
    alone = {name: trainer(**options).run(progress=False) for name, options in OPTIONS.items()}
    bad = trainer(loss=poisoned(4, 5)).run(progress=False)
    half = trainer().run(9, progress=False)
    if rank == 0:
        half.save(folder / "half")
    distributed.barrier()
    found["losses"] = alone["plain"].history
    for kind in ("ddp", "fsdp2"):

        def shared(kind=kind, **options):
            return trainer(accelerator=accelerator(kind == "fsdp2"), **options)

        for name, options in OPTIONS.items():
            run = shared(**options).run(progress=False)
            found[f"{kind}, {name}"] = apart(alone[name], run)
        run = shared(loss=noise_of_places).run(progress=False)
        found[f"{kind}, same noise"] = apart(alone["plain"], run)

        # resumed with another number of processes
        run = shared().load(folder / "half")
        found[f"{kind}, loaded"] = apart(half, run)
        found[f"{kind}, resumed in two"] = apart(alone["plain"], run.run(progress=False))
        run = shared().run(9, progress=False)
        run.save(folder / kind)
        again = trainer().load(folder / kind)
        found[f"{kind}, saved"] = apart(run, again)
        found[f"{kind}, resumed in one"] = apart(alone["plain"], again.run(progress=False))
        found[f"{kind}, files"] = sorted(file.name for file in folder.iterdir())

        # a bad sample in one process
        run = shared(loss=poisoned(4, 5)).run(progress=False)
        found[f"{kind}, poisoned"] = apart(bad, run)
        found[f"{kind}, skipped"] = run.skipped
        run = shared(loss=poisoned(4, 5, 6))
        try:
            run.run(progress=False, folder=folder / f"{kind} poisoned", every=2)
        except FloatingPointError as error:
            found[f"{kind}, report"] = str(error)
        found[f"{kind}, kept"] = RunFolder(folder / f"{kind} poisoned").newest().step
        distributed.barrier()

        # a signal to one process
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            run = shared(loss=signalled(number, 5))
            try:
                run.run(progress=False, folder=folder / f"{kind} {number}")
            except (SystemExit, KeyboardInterrupt) as left:
                code = getattr(left, "code", "KeyboardInterrupt")
                saved = RunFolder(folder / f"{kind} {number}").newest().step
                found[f"{kind}, {number.name}"] = (code, run.step, saved)
            distributed.barrier()

        # a disk that only the first process writes to
        (folder / "file").write_text("")
        try:
            run.save(folder / "file" / "below")
        except OSError as error:
            found[f"{kind}, no folder"] = type(error).__name__

        reports = Reports()
        run = shared(monitors=[reports]).run(2, progress=False)
        if rank == 0:
            own = Reports()
            trainer(monitors=[own]).run(2, progress=False)
            found[f"{kind}, reports"] = [
                (torch.equal(a.levels, b.levels), abs(a.grad_norm / b.grad_norm - 1.0))
                for a, b in zip(own, reports, strict=True)
            ]
    return found
