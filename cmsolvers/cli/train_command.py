"""`cmsolvers train`: a training from a configuration file."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from cmsolvers.cli.one_command import Command

if TYPE_CHECKING:
    from cmsolvers.runs.config import Config

DEFAULTS = "defaults"


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.toml", help="what to train; --init prints one"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="keys to replace, such as loss.name=ict loss.times.mean=-1.1 train.steps=100",
    )
    parser.add_argument(
        "--init",
        nargs="?",
        const=DEFAULTS,
        metavar="PRESET",
        help="print a commented configuration: digits-score, digits-cd, digits-ct, digits-ect, "
        "images, toy, or the defaults",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and what would be built, and write nothing",
    )
    parser.add_argument("--out", metavar="OUT", help="folder of the run (run.out)")
    parser.add_argument("--seed", type=int, help="decides everything random (run.seed)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (run.device)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew; the run in the folder is moved to OUT.old-N",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but warnings")


def _run(options: Namespace) -> int:
    from cmsolvers.runs.config import read_config, template

    if options.init is not None:
        if options.config is not None:
            raise ValueError(f"--init prints a configuration; it takes no {options.config!r}")
        print(template(None if options.init == DEFAULTS else options.init), end="")
        return 0
    if options.config is None:
        raise ValueError(
            "CONFIG.toml must be given; `cmsolvers train --init > config.toml` makes one"
        )
    if "=" in options.config and not os.path.exists(options.config):
        raise ValueError(f"CONFIG.toml must come before {options.config!r}")
    try:
        config = read_config(options.config, _overrides(options))
    except (ValueError, TypeError, OSError):
        if _process() > 0:  # the first process says the same
            return 2
        raise
    try:
        return _trained(options, config)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if _process() == 0:
            raise
        print(f"cmsolvers train, process {_process()}: {error}", file=sys.stderr)
        return 2


def _trained(options: Namespace, config: Config) -> int:
    import torch

    from cmsolvers.runs.train import dry_run, train

    here = os.getcwd()
    if here not in sys.path:  # for "import:module:Name" of files that lie here
        sys.path.append(here)
    with _plain_warnings():
        if options.dry_run:
            print(dry_run(config, overwrite=options.overwrite))
            return 0
        tell = _nothing if options.quiet else _tell
        try:
            train(config, overwrite=options.overwrite, tell=tell, arguments=sys.argv[1:])
        except KeyboardInterrupt:
            if _process() > 0:
                return 130
            raise
        except RuntimeError as error:
            if _lost(error):
                raise ConnectionError("another process of this run has ended") from error
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"the device has too little memory; a smaller train.batch_size, a larger "
                f"train.accumulate or network.gradient_checkpointing need less: {error}"
            ) from error
    return 0


def _overrides(options: Namespace) -> list[str]:
    """The keys that were given, those with options of their own last."""
    found = list(options.overrides)
    for name in ("out", "seed", "device"):
        value = getattr(options, name)
        if value is not None:
            found.append(f"run.{name}={value}")
    if options.quiet:
        found.append("logging.progress=false")
    return found


def _process() -> int:
    return int(os.environ.get("RANK", "0"))


def _lost(error: RuntimeError) -> bool:
    """Whether torch misses another process."""
    text = str(error)
    return "Connection closed by peer" in text or "Connection reset by peer" in text


def _tell(line: str) -> None:
    tqdm.write(line)
    sys.stdout.flush()


def _nothing(line: str) -> None:
    """What --quiet does with lines."""


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, in the first process."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if _process() == 0:
            tqdm.write(f"cmsolvers train: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


COMMAND = Command(
    "train", "train a model as a configuration file says", _options, _run, rest="overrides"
)
