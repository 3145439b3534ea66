"""`cmsolvers sample`: samples of a checkpoint."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint or run folder of `cmsolvers train`, or a folder of diffusers",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="name=value",
        help="options of the sampler and of the schedule, such as eta=0.5 or rho=5",
    )
    parser.add_argument(
        "--sampler",
        help="a name of `cmsolvers solvers`, or heun, euler, ddpm, em, consistency, flow_map "
        "(default: heun for denoisers, else the one that fits)",
    )
    parser.add_argument(
        "--steps", type=int, help="steps (default: 18; 1 for consistency functions and flow maps)"
    )
    # torchrun takes --num for an abbreviation of its own --numa-binding, and ends.
    parser.add_argument(
        "--num",
        "--count",
        type=int,
        default=100,
        help="samples; under torchrun write --count, as it has options that begin with --num",
    )
    parser.add_argument("--batch", type=int, default=64, help="samples at once, in each process")
    parser.add_argument(
        "--classes",
        help="'0-9' or '3,5' in turn, 'uniform', or 'none' (default: all classes in turn)",
    )
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="D = D_u + W (D_c - D_u); 1 is none"
    )
    parser.add_argument(
        "--schedule",
        help="karras, exponential, polyexponential, vp, cosine, ddpm, beta or flow (default: by "
        "the model)",
    )
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        help="the levels themselves, descending, in place of --steps and --schedule",
    )
    parser.add_argument("--format", help="png or npz (default: png for images)")
    parser.add_argument("--average", help="whose weights (default: ema; network: none)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--precision", default="no", help="of the network: no, bf16 or fp16")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="import:MODULE:CLASS",
        help="a network of your own that the checkpoint may name; repeatable",
    )


def _run(options: Namespace) -> int:
    from cmsolvers.runs.sample import SampleSettings, option_values, sample

    settings = SampleSettings(
        options.checkpoint,
        num=options.num,
        seed=options.seed,
        sampler=options.sampler,
        steps=options.steps,
        levels=options.levels,
        schedule=options.schedule,
        options=option_values(options.options),
        batch=options.batch,
        classes=options.classes,
        guidance=options.guidance,
        device=options.device,
        precision=options.precision,
        format=options.format,
        average=options.average,
        trusted=options.trust,
    )
    command = shlex.join(["cmsolvers", *sys.argv[1:]])
    made = sample(settings, options.out, progress=not options.quiet, command=command)
    if not made.is_first:
        return 0
    if made.nfe is None:
        print(f"all {made.num:,} samples were there already: {made.out}")
    else:
        per = f"{made.num - made.made:,} were there, " if made.made < made.num else ""
        print(
            f"{made.num:,} samples ({per}{made.made:,} made in {made.seconds:.1f} s), "
            f"NFE {made.nfe:g}: {made.out}"
        )
    if made.not_finite:
        print(
            f"cmsolvers sample: {made.not_finite:,} of {made.num:,} samples are not finite and are "
            f"not among the files; {made.out / 'samples.json'} lists them",
            file=sys.stderr,
        )
        return 1
    return 0


COMMAND = Command(
    "sample",
    "sample a checkpoint to PNG files or .npz",
    _options,
    _run,
    out="sample-output",
    rest="options",
)
