"""The command line: `cmsolvers COMMAND`, one of `COMMANDS`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
from cmsolvers.cli.one_command import Command
from cmsolvers.engine.adaptive import SolverError
from cmsolvers.starting import INTERRUPTED, restore_interrupts

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
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit status where nobody reads the output any more, as a shell has it."""


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
    """Run a command; the exit status is 0, 1 for a missed target and 2 for bad input.

    130 is for Ctrl-C, and 141 for an output that nobody reads.
    """
    restore_interrupts()
    with _plain_warnings():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    name = "cmsolvers"
    try:
        options, command = _parsed(argv)
        name += f" {command.name}"
        status = command.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is left in the buffer must go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as error:
        text = str(error)
        print(f"{name}: stopped{': ' if text else ''}{text}", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        hint = "" if "pip install" in str(error) else _extra(name)
        return _failed(name, f"{error}{hint}")
    except MemoryError as error:
        return _failed(name, f"not enough memory: {error}" if str(error) else "not enough memory")
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError, SolverError) as error:
        return _failed(name, str(error))
    except RuntimeError as error:
        if not _is_memory(error):
            raise
        return _failed(name, f"not enough memory: {error}")


def _parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Command]:
    """The options, and the command that they are for."""
    top = parser()
    options, rest = top.parse_known_args(argv)
    command = next(command for command in COMMANDS if command.name == options.command)
    if command.rest is not None and not any(word.startswith("-") for word in rest):
        getattr(options, command.rest).extend(rest)
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, command


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings in one line each, without the line of code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"cmsolvers: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _failed(name: str, text: str) -> int:
    print(f"{name}: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _extra(command: str) -> str:
    """Which extra brings what a command needs."""
    extra = "demo" if command.split()[-1] in ("demo", "precision", "benchmark") else "train"
    return f'; the extra `{extra}` brings it: pip install --no-build-isolation ".[{extra}]"'


def _is_memory(error: RuntimeError) -> bool:
    """Whether torch found too little memory; on the CPU that is a plain RuntimeError."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
