"""`cmsolvers benchmark losses`: every recipe on problems whose flow map is known."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("subject", choices=("losses",), help="what is measured")
    parser.add_argument("--recipes", help="names, with commas between them (default: all)")
    parser.add_argument("--problems", help="gaussian,ring,clusters or some of them (default: all)")
    parser.add_argument(
        "--own",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="an Entry of your own, or a list of them, to run beside the recipes; repeatable",
    )
    parser.add_argument("--seeds", type=int, help="trainings of each kind (default: 3)")
    parser.add_argument(
        "--budget", type=int, help="network calls of a training, on one batch each (default: 1000)"
    )
    parser.add_argument("--tiny", action="store_true", help="seconds, to try it: ring, one seed")
    parser.add_argument("--workers", type=int, help="processes side by side (default: one a core)")
    parser.add_argument("--again", action="store_true", help="run what is in --out already, too")
    parser.add_argument(
        "--docs", type=Path, help="page to write the table into; the picture goes to images/ there"
    )


def _run(options: Namespace) -> int:
    from cmsolvers.demo.loss_benchmark.command import run

    try:
        text = run(
            options.out,
            recipes=_names(options.recipes),
            own=options.own,
            problems=_names(options.problems),
            seeds=options.seeds,
            first_seed=options.seed,
            budget=options.budget,
            tiny=options.tiny,
            workers=options.workers,
            again=options.again,
            docs=options.docs,
            progress=not options.quiet,
        )
    except RuntimeError as error:  # a recipe's; the results of the others are in --out
        print(f"cmsolvers benchmark: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def _names(given: str | None) -> list[str] | None:
    if given is None:
        return None
    return [name.strip() for name in given.split(",") if name.strip()]


COMMAND = Command(
    "benchmark",
    "losses of few-step models on exact problems",
    _options,
    _run,
    out="benchmark-output",
)
