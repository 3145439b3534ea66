"""What a command of the command line is; the files beside this one hold one command each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that say something, each once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        if silent or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


@dataclass(frozen=True)
class Command:
    """One command: its options, and the function that runs it.

    Attributes:
        name: what the user types.
        text: what it does, in one line.
        options: adds the options to a parser.
        run: runs it on the parsed options and returns the exit status. It imports what it needs, so
            that help and the other commands do not wait for that.
        out: default folder for results, and with it come --out, --seed and --quiet; None for a
            command that only prints.
        rest: the list among the options that takes words after other options too; None: none does.
    """

    name: str
    text: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    out: str | None = None
    rest: str | None = None

    def parse(self, parser: argparse.ArgumentParser) -> None:
        """Give a parser the description and the options of this command."""
        parser.description = self.text
        parser.formatter_class = _Defaults
        if self.out is not None:
            parser.add_argument(
                "--out", type=Path, default=Path(self.out), help="folder for the results"
            )
            parser.add_argument("--seed", type=int, default=0, help="decides everything random")
            parser.add_argument("--quiet", action="store_true", help="no progress bars")
        self.options(parser)
