"""`cmsolvers evaluate`: samples measured against data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "samples",
        type=Path,
        help="the folder of `cmsolvers sample`, a folder of pictures, an .npy or .npz file",
    )
    parser.add_argument(
        "options", nargs="*", metavar="name=value", help="options of the data, such as size=32"
    )
    parser.add_argument(
        "--data",
        default="digits",
        help="what the model was trained on: digits, toy:NAME, an .npy or .npz file, a folder",
    )
    parser.add_argument(
        "--held", help="data that it was not trained on (default: the digits' held-out part)"
    )
    parser.add_argument(
        "--features",
        help="pixels, classifier (digits), inception or package.module:function (default: "
        "classifier for digits, else pixels)",
    )
    parser.add_argument(
        "--weights", type=Path, help="inception: the file of torch-fidelity's weights"
    )
    parser.add_argument(
        "--classifier", type=Path, help="digits: a checkpoint of it (default: train one)"
    )
    parser.add_argument("--num", type=int, help="samples, and data, used at most (default: all)")
    parser.add_argument("--batch", type=int, default=256, help="samples at once for features")
    parser.add_argument("--device", help="of the features (default: a GPU where there is one)")


def _run(options: Namespace) -> int:
    from cmsolvers.runs.evaluate import EvaluationSettings, evaluate, table
    from cmsolvers.runs.sample import option_values

    settings = EvaluationSettings(
        options.samples,
        data=options.data,
        held=options.held,
        options=option_values(options.options),
        features=options.features,
        weights=options.weights,
        classifier=options.classifier,
        num=options.num,
        batch=options.batch,
        device=options.device,
        seed=options.seed,
    )
    results = evaluate(settings, options.out, progress=not options.quiet)
    print(table(results))
    print(f"results: {options.out / 'metrics.json'}")
    return 0


COMMAND = Command(
    "evaluate",
    "measure samples against data",
    _options,
    _run,
    out="evaluate-output",
    rest="options",
)
