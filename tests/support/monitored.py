"""A small training with monitors, in one process and in two."""

import math
import shutil
import tempfile
from pathlib import Path

import torch
from torch import distributed, nn

from cmsolvers import EDM, losses, noise
from cmsolvers.training import EMA, Trainer, TrainingSettings, power_decay
from cmsolvers.training.averages import SnapshotFolder
from cmsolvers.training.checkpoints import read_checkpoint
from cmsolvers.training.monitors import CSVLog, SampleGrid, Snapshots

STEPS, BATCH = 20, 8
DATA = 0.5 * noise.normal((40, 2), 1)


class Net(nn.Module):
    """Two layers and the level."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x, c_noise):
        h = torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1)
        return self.last(torch.nn.functional.silu(self.first(h)))


def loss(model, batch):
    return losses.dsm(model, batch.x0, key=batch.key, step=batch.step)


def poisoned(*steps):
    """The loss, NaN in these steps."""

    def found(model, batch):
        made = loss(model, batch)
        return made._replace(loss=made.loss * math.nan) if batch.step in steps else made

    return found


def trainer(*monitors, loss=loss, averages=None, steps=STEPS, late=0, **options):
    """A training of `STEPS` steps; `late` puts reads that many steps apart, as on a GPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EDM(Net())
    emas = {"short": EMA(network, power_decay(0.05)), "long": EMA(network, power_decay(0.10))}
    emas |= {name: EMA(network, decay) for name, decay in (averages or {}).items()}
    settings = TrainingSettings(steps, batch_size=BATCH, lr=3e-2)
    made = Trainer(network, loss, DATA, settings, averages=emas, monitors=monitors, **options)
    if late:
        made._step.later, made._books.window = True, late
    return made


class Silent:
    """A monitor that does nothing."""

    def started(self, trainer):
        pass

    def stepped(self, report):
        pass

    def saved(self, path):
        pass

    def ended(self, trainer):
        pass


class Killed(Silent):
    """Copies a folder after a step: it is then as a killed process would have left it."""

    def __init__(self, folder, after, place):
        self.folder, self.after, self.place = folder, after, place

    def stepped(self, report):
        if report.step + 1 == self.after:
            shutil.copytree(self.folder, self.place)


def compare():
    """What two processes write together, against what one writes, by name."""
    from support.shared_training import accelerator

    rank = distributed.get_rank()
    place = [tempfile.mkdtemp() if rank == 0 else None]
    distributed.broadcast_object_list(place)
    folder, found = Path(place[0]), {}

    def sample(model, z):
        return model(z, 1.0)

    def monitors(at):
        return (
            CSVLog(at / "log.csv"),
            Snapshots(at, 8),
            SampleGrid(at / "samples", sample, [2], 10, average="long"),
        )

    if rank == 0:
        trainer(*monitors(folder / "one")).run(progress=False)
    for kind in ("ddp", "fsdp2"):
        at = folder / kind
        run = trainer(*monitors(at), accelerator=accelerator(kind == "fsdp2")).run(progress=False)
        names = sorted(str(p.relative_to(at)) for p in at.rglob("*") if p.is_file())
        found[f"{kind}, history"] = run.history
        found[f"{kind}, names"] = names
        if rank == 0:
            one = folder / "one"
            found["names"] = sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
            found[f"{kind}, snapshots"] = max(
                float((a - b).abs().max())
                for a, b in zip(_all(folder / "one"), _all(at), strict=True)
            )
            found[f"{kind}, log"] = (at / "log.csv").read_text().splitlines()
        distributed.barrier()

        try:
            trainer(*[Silent()] * (1 - rank), accelerator=accelerator(kind == "fsdp2")).run(2)
        except ValueError as error:
            found[f"{kind}, different"] = str(error)

        # One that cannot write leaves the others at work, in all processes.
        broken = Snapshots(folder / f"{kind} broken", 5)
        (folder / f"{kind} broken").write_text("")
        run = trainer(broken, Snapshots(folder / f"{kind} whole", 5),
                      accelerator=accelerator(kind == "fsdp2")).run(progress=False)  # fmt: skip
        if rank == 0:
            found[f"{kind}, whole"] = len(SnapshotFolder(folder / f"{kind} whole").paths())
        distributed.barrier()
    return found


def _all(folder):
    for path in SnapshotFolder(folder).paths():
        groups, _ = read_checkpoint(path)
        for group in sorted(groups):
            yield from (groups[group][name] for name in sorted(groups[group]))
