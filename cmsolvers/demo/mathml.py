"""Formulas as MathML, which browsers set by themselves: a page with them needs no other file."""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

_TOKEN = re.compile(r"\s+|[A-Za-z]+|[Α-Ωα-ω∇∂∞]|\d+(?:\.\d+)?|.", re.DOTALL)
_SCRIPT = re.compile(r"([_^])(?:\{([^}]*)\}|(\w|\S))")


FUNCTIONS = ("ln", "exp", "max")
"""Names that are followed by a little space."""


class Part(NamedTuple):
    """Ready MathML: what `fraction`, `root` and `above` make."""

    text: str


def row(*parts: str | Part) -> str:
    """MathML of a row of parts.

    Letters are variables (of one letter each, or a name such as `ln`), digits numbers, everything
    else an operator; `x_t`, `w_{max}` and `σ^2` have a lower or an upper index. Three spaces and
    more are a gap.
    """
    return "".join(part.text if isinstance(part, Part) else _tokens(part) for part in parts)


def fraction(top: str, bottom: str) -> Part:
    """top over bottom."""
    return Part(f"<mfrac><mrow>{_tokens(top)}</mrow><mrow>{_tokens(bottom)}</mrow></mfrac>")


def root(inner: str) -> Part:
    """The square root."""
    return Part(f"<msqrt>{_tokens(inner)}</msqrt>")


def upright(text: str) -> Part:
    """A word among the formula, such as "where"."""
    return Part(f"<mtext>{escape(text)}</mtext>")


def display(*lines: str) -> str:
    """A `<math>` element with a line of the page to each of some rows."""
    cells = "".join(f"<mtr><mtd><mrow>{line}</mrow></mtd></mtr>" for line in lines)
    table = f'<mtable columnalign="left" displaystyle="true">{cells}</mtable>'
    return f'<math display="block">{table}</math>'


def _tokens(text: str) -> str:
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        assert match is not None  # its last alternative takes any character
        place = match.end()
        token = match.group()
        if token.isspace():
            if len(token) > 2:
                found.append('<mspace width="2em"></mspace>')
            continue
        base = _token(token)
        scripts: dict[str, str] = {}
        while script := _SCRIPT.match(text, place):
            scripts[script[1]] = f"<mrow>{_tokens(script[2] or script[3])}</mrow>"
            place = script.end()
        tag = {"_": "msub", "^": "msup", "_^": "msubsup"}.get("".join(sorted(scripts)[::-1]))
        inner = "".join(scripts[sign] for sign in "_^" if sign in scripts)
        found.append(f"<{tag}>{base}{inner}</{tag}>" if tag else base)
        if token in FUNCTIONS and text[place : place + 1] != "(":
            found.append('<mspace width="0.17em"></mspace>')
    return "".join(found)


def _token(token: str) -> str:
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token[0].isalpha() or token[0] in "∇∂∞":
        return f"<mi>{token}</mi>"
    kind = ' stretchy="false"' if token in "()[]‖|" else ""
    return f"<mo{kind}>{escape(token)}</mo>"
