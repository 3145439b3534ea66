"""Trainings that are killed and resumed until they are done; run as a program.

It forks a process for every try: before its first backward pass that is safe, and starting Python
anew each time would take most of the time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers import EDM, noise
from cmsolvers.losses import dsm
from cmsolvers.training import EMA, RunFolder, Trainer, TrainingSettings, power_decay

STEPS = 60
DATA = 0.5 * noise.normal((48, 6), 1)
LIMIT = 600.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(0.2), nn.Linear(32, 6)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layers(torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1))


def trainer(seed: int, pause: float = 0.0) -> Trainer:
    torch.manual_seed(seed)
    network = EDM(Net())

    def loss(model, batch):
        time.sleep(pause)
        made = dsm(model, batch.x0, key=batch.key, step=batch.step)
        # one bad step on the way: it must be skipped in every life of the run
        return made._replace(loss=made.loss * float("nan")) if batch.step == 17 else made

    settings = TrainingSettings(STEPS, batch_size=8, lr=1e-2, clip=1.0, seed=seed, accumulate=2)
    averages = {"fast": EMA(network, 0.9, warmup=True), "wide": EMA(network, power_decay(0.1))}
    return Trainer(network, loss, DATA, settings, averages=averages)


def train(folder: Path, seed: int, every: int, pause: float = 0.0) -> None:
    """One life of a run: from its newest checkpoint to the end, or as far as it gets."""
    run = RunFolder(folder, keep=2)
    new = trainer(seed, pause)
    if run.checkpoints():
        new.resume(run)
    new.run(progress=False, folder=run, every=every)


def forked(folder: Path, seed: int, every: int, pause: float = 0.0) -> int:
    """The process id of a life, whose exit status is that of a Python program."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        train(folder, seed, every, pause)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as left:
        status = int(left.code)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, bytes]:
    found = RunFolder(folder).checkpoints()[-1]
    return {file.name: file.read_bytes() for file in sorted(found.iterdir())}


def strays(folder: Path) -> list[str]:
    """Names that a finished run must not leave."""
    names = [path.name for path in folder.iterdir() if path.name != "checkpoints"]
    inside = [path.name for path in (folder / "checkpoints").iterdir()]
    return names + [name for name in inside if not name.startswith("step-")]


def wait_for(place: Path, child: int) -> None:
    """Wait until a life has the lock of its run, and so begins its steps."""
    began = time.monotonic()
    while time.monotonic() - began < 60.0:
        try:
            if json.loads((place / "lock").read_text())["pid"] == child:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.002)


def killed(folder: Path, kills: int) -> dict[str, object]:
    """Kill runs at random instants, `kills` times in all, and compare what they end with."""
    chance, left = random.Random(kills), []
    done = runs = different = in_saves = 0
    while done < kills:
        seed, every = runs, chance.choice((1, 3, 10))
        assert ended(forked(folder / f"whole {runs}", seed, every)) == 0
        place = folder / f"killed {runs}"
        while True:
            began = time.monotonic()
            child = forked(place, seed, every)
            if done < kills:
                if chance.random() < 0.8:
                    wait_for(place, child)
                time.sleep(chance.uniform(0.0, 0.3))
                os.kill(child, signal.SIGKILL)
            way = ended(child)
            assert way in (0, -signal.SIGKILL) and time.monotonic() - began < LIMIT
            if way == 0:
                break
            done += 1
            if (place / "checkpoints").exists():
                names = os.listdir(place / "checkpoints")
                in_saves += any(name.startswith(".step") for name in names)
        different += content(folder / f"whole {runs}") != content(place)
        left += strays(place)
        runs += 1
    return {
        "kills": done,
        "runs": runs,
        "different": different,
        "strays": left,
        "in saves": in_saves,
    }


def signalled(folder: Path) -> dict[str, object]:
    """Send each signal to a run that is under way; what it ends with, and how fast."""
    found: dict[str, object] = {}
    assert ended(forked(folder / "whole", 0, 1000)) == 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        place = folder / number.name
        child = forked(place, 0, 1000, pause=0.02)
        while not (place / "lock").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(child, number)
        status = ended(child)
        seconds = time.monotonic() - began
        step = RunFolder(place).newest().step
        assert ended(forked(place, 0, 1000)) == 0
        same = content(folder / "whole") == content(place)
        found[number.name] = [status, seconds, step, same, strays(place)]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(signalled(where) if what == "signals" else killed(where, int(what))))
