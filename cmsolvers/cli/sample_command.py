"""`cmsolvers sample`: samples of a checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train or demo")
    parser.add_argument(
        "--sampler",
        help="a name of `cmsolvers solvers`, or heun, euler, ddpm, em, consistency "
        "(default: heun for score models, consistency for the others)",
    )
    parser.add_argument("--steps", type=int, default=18, help="steps (not for consistency)")
    parser.add_argument(
        "--levels", type=float, nargs="*", default=[], help="consistency: levels after sigma_max"
    )
    parser.add_argument("--count", type=int, default=100, help="samples")
    parser.add_argument("--offset", type=int, default=0, help="number of the first sample")


def _run(options: Namespace) -> int:
    from cmsolvers.demo.sample_checkpoint import sample_checkpoint

    made = sample_checkpoint(
        options.checkpoint,
        options.out,
        sampler=options.sampler,
        steps=options.steps,
        levels=options.levels,
        count=options.count,
        offset=options.offset,
        seed=options.seed,
        progress=not options.quiet,
    )
    print(f"{made.count} samples, NFE {made.nfe}: {made.picture}")
    return 0


COMMAND = Command(
    "sample", "sample a checkpoint to PNG and .npy", _options, _run, out="sample-output"
)
