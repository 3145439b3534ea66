"""`cmsolvers info`: what was built, and what is in use."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _run(options: Namespace) -> int:
    from cmsolvers.ops import build_info

    facts = build_info()
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name.replace('_', ' '):{width}}  {text}")
    return 0


COMMAND = Command("info", "what was built, and what is in use", _options, _run)
