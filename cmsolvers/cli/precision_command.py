"""`cmsolvers precision`: every sampler, error against evaluations."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=1 << 15, help="samples")


def _run(options: Namespace) -> int:
    from cmsolvers.demo.run_precision import run_precision

    print(run_precision(options.out, options.count, options.seed, progress=not options.quiet))
    return 0


COMMAND = Command(
    "precision",
    "every sampler on an exact problem: error against NFE",
    _options,
    _run,
    out="precision",
)
