"""The command line: `cmsolvers demo | train | sample | evaluate | precision | solvers | info`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIGITS = "digits"


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="cmsolvers", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    kinds = ("score", "cd", "ct")

    demo = _command(
        commands, "demo", "train, sample and report on handwritten digits", "demo-output"
    )
    demo.add_argument("--workers", type=int, help="processes side by side (default: 2)")
    demo.add_argument("--tiny", action="store_true", help="seconds instead of minutes, to try it")
    demo.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")

    train = _command(commands, "train", "train a model on images", "train-output")
    train.add_argument("--model", choices=kinds, default="score", help="what to train")
    train.add_argument(
        "--data",
        default=DIGITS,
        help="'digits' or an .npy/.npz file [n, H, W(, C)] or [n, C, H, W]",
    )
    train.add_argument("--teacher", type=Path, help="checkpoint of a score model; for cd alone")
    train.add_argument("--steps", type=int, help="training steps (default: what digits need)")
    train.add_argument("--batch", type=int, default=128, help="samples a step")
    train.add_argument("--lr", type=float, help="peak learning rate (default: what digits need)")
    train.add_argument("--network", choices=("mlp", "unet"), help="default: mlp below 16 x 16")
    train.add_argument("--sigma-max", type=float, help="largest noise level (default: 20)")
    train.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="start anew over the checkpoint in --out"
    )

    sample = _command(commands, "sample", "sample a checkpoint to PNG and .npy", "sample-output")
    sample.add_argument("checkpoint", type=Path, help="a checkpoint of train or demo")
    sample.add_argument(
        "--sampler",
        help="a name of `cmsolvers solvers`, or heun, euler, ddpm, em, consistency "
        "(default: heun for score models, consistency for cd and ct)",
    )
    sample.add_argument("--steps", type=int, default=18, help="steps (not for consistency)")
    sample.add_argument(
        "--levels", type=float, nargs="*", default=[], help="consistency: levels after sigma_max"
    )
    sample.add_argument("--count", type=int, default=100, help="samples")
    sample.add_argument("--offset", type=int, default=0, help="number of the first sample")

    evaluate = _command(commands, "evaluate", "measure samples against data", "evaluate-output")
    evaluate.add_argument("samples", type=Path, help="samples.npy of `cmsolvers sample`, or images")
    evaluate.add_argument("--data", default=DIGITS, help="'digits' or an .npy/.npz file")
    evaluate.add_argument(
        "--classifier", type=Path, help="digits: classifier.safetensors of a demo (default: train)"
    )

    precision = _command(
        commands, "precision", "every sampler on an exact problem: error against NFE", "precision"
    )
    precision.add_argument("--count", type=int, default=1 << 15, help="samples")

    commands.add_parser("solvers", help="every solver: order, NFE, noise and source (Markdown)")

    info = commands.add_parser("info", help="what was built, and what is in use")
    info.add_argument("--json", action="store_true", help="as JSON")
    return top


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults that say something, once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        if silent or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _command(commands: Any, name: str, text: str, out: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=_Defaults
    )
    command.add_argument("--out", type=Path, default=Path(out), help="folder for the results")
    command.add_argument("--seed", type=int, default=0, help="decides everything random")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a missed target and 2 for bad input."""
    options = parser().parse_args(argv)
    try:
        # Here, so that --help answers at once.
        from cmsolvers.cli import commands

        return int(getattr(commands, options.command)(options))
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cmsolvers {options.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"cmsolvers {options.command}: {error}; the extra `demo` brings it: "
            'pip install --no-build-isolation ".[demo]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
