"""The table of all losses, made from what each says of itself."""

from __future__ import annotations

from cmsolvers.losses import recipes
from cmsolvers.losses.evaluation.recipe import Loss

ORDER = ("score", "eulerian", "lagrangian", "semigroup")


def losses() -> list[Loss]:
    """Every loss of the library, by identity and name."""
    found: list[Loss] = [getattr(recipes, name) for name in recipes.__all__]
    return sorted(found, key=lambda one: (ORDER.index(one.recipe.identity), one.recipe.name))


def table() -> str:
    """All losses in Markdown."""
    lines = ["| loss | identity | model | levels | teacher | source |", "|" + "---|" * 6]
    for one in losses():
        about = one.recipe
        source = about.source.replace("|", "\\|")
        lines.append(
            f"| `{about.name}` | {about.identity} | {about.model} | {about.coordinates} | "
            f"{about.teacher} | {source} |"
        )
    return "\n".join(lines)
