"""`cmsolvers losses`: the table of all losses."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    """Nothing to choose: the table is always whole."""


def _run(options: Namespace) -> int:
    from cmsolvers.losses import catalogue

    print(catalogue.table())
    return 0


COMMAND = Command(
    "losses", "every loss: identity, model, teacher and source (Markdown)", _options, _run
)
