"""The command line: `cmsolvers COMMAND`, one of `COMMANDS`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cmsolvers.cli import (
    benchmark_command,
    demo_command,
    evaluate_command,
    info_command,
    losses_command,
    precision_command,
    sample_command,
    solvers_command,
    train_command,
)

COMMANDS = (
    demo_command.COMMAND,
    train_command.COMMAND,
    sample_command.COMMAND,
    evaluate_command.COMMAND,
    precision_command.COMMAND,
    benchmark_command.COMMAND,
    solvers_command.COMMAND,
    losses_command.COMMAND,
    info_command.COMMAND,
)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, with every command in it."""
    top = argparse.ArgumentParser(
        prog="cmsolvers", description="Train, sample and measure diffusion and consistency models."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.parse(commands.add_parser(command.name, help=command.text))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a missed target and 2 for bad input."""
    options = parser().parse_args(argv)
    run = next(command.run for command in COMMANDS if command.name == options.command)
    try:
        return run(options)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cmsolvers {options.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        text = str(error)
        if "pip install" not in text:
            text += '; the extra `demo` brings it: pip install --no-build-isolation ".[demo]"'
        print(f"cmsolvers {options.command}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
