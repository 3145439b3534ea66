"""One figure and one results.json of everything that run.sh left in a folder.

python report.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "teacher": "teacher (EDM, Heun)",
    "cd": "consistency distillation",
    "ect": "easy consistency tuning",
    "sct": "sCM",
    "meanflow": "MeanFlow",
}
KEPT = ("frechet", "sliced_wasserstein", "precision", "recall")


def results(out: Path) -> list[dict[str, Any]]:
    """What was measured: a row per model and number of steps, in the order of `NAMES`.

    Raises:
        FileNotFoundError: nothing was.
    """
    rows = []
    for name in NAMES:
        for path in sorted((out / "measures").glob(f"{name}-*/metrics.json")):
            steps = path.parent.name
            told = json.loads((out / "samples" / steps / "samples.json").read_text())
            measured = json.loads(path.read_text())
            rows.append(
                {
                    "model": name,
                    "steps": int(steps.rpartition("-")[2]),
                    "evaluations": told["nfe"],
                    "samples": measured["samples"]["count"],
                    "metrics": {k: v for k, v in measured["metrics"].items() if k in KEPT},
                    "nearest": measured["nearest"],
                }
            )
    if not rows:
        raise FileNotFoundError(f"{out / 'measures'} must hold measures of run.sh; there are none")
    return rows


def draw(out: Path, rows: list[dict[str, Any]]) -> Path:
    """The first samples of each row side by side, with its distance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4 * columns, 4.3 * lines), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, rows, strict=False):
        folder = out / "samples" / f"{row['model']}-{row['steps']}"
        axis.imshow(pyplot.imread(folder / "grid.png"))
        frechet = row["metrics"]["frechet"]
        axis.set_title(
            f"{NAMES[row['model']]}, {row['evaluations']:g} network calls\n"
            f"Frechet {frechet['value']:.3g} (held out {frechet['held_out']:.3g})"
        )
    figure.tight_layout()
    path = out / "patches.png"
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def main() -> None:
    """Write patches.png and results.json."""
    out = Path(sys.argv[1])
    rows = results(out)
    runs = {
        path.parent.name: [
            {key: value for key, value in part.items() if key != "arguments"}  # has local paths
            for part in json.loads(path.read_text())
        ]
        for path in sorted(out.glob("*/versions.json"))
    }
    (out / "results.json").write_text(json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
    print(f"{draw(out, rows)}, {out / 'results.json'}")


if __name__ == "__main__":
    main()
