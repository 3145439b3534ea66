"""`cmsolvers evaluate`: samples in a file, measured against data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("samples", type=Path, help="samples.npy of `cmsolvers sample`, or images")
    parser.add_argument("--data", default="digits", help="'digits' or an .npy/.npz file")
    parser.add_argument(
        "--classifier",
        type=Path,
        help="digits: the classifier in the folder of a demo (default: train)",
    )


def _run(options: Namespace) -> int:
    from cmsolvers.demo.evaluate_samples import evaluate_samples

    text = evaluate_samples(
        options.samples,
        options.data,
        options.out,
        classifier=options.classifier,
        seed=options.seed,
        progress=not options.quiet,
    )
    print(text)
    return 0


COMMAND = Command("evaluate", "measure samples against data", _options, _run, out="evaluate-output")
