"""The demo from end to end: train, distil, sample, judge, and leave a report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor
from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.demo import demo_jobs, digits, heun_errors, loss_by_level
from cmsolvers.demo.compared_samplers import BY_KEY, METHODS, latents
from cmsolvers.demo.demo_results import Measured, Results, SamplerRow, Spread, targets
from cmsolvers.demo.demo_settings import SHAPE, DemoSettings, Files
from cmsolvers.demo.judge import Judge
from cmsolvers.demo.workers import Workers, one_thread
from cmsolvers.ops import build_info
from cmsolvers.training.models import CONSISTENCY_KINDS, KINDS, load_model
from cmsolvers.training.recipes import default_settings

Run: TypeAlias = tuple[str, int]
"""Method and number of steps."""
Samples: TypeAlias = dict[Run, Tensor]
Costs: TypeAlias = dict[Run, tuple[int, float]]
"""NFE and seconds."""
Repeats: TypeAlias = dict[Run, list[Tensor]]

HEUN_SAMPLES = 32
"""How many samples the errors of Heun's method are measured on: with 64 pixels each, enough."""

REPEATED: tuple[Run, ...] = (
    ("heun", 18),
    *((kind, steps) for kind in CONSISTENCY_KINDS for steps in (1, 2)),
)


def run_demo(
    out: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    report: bool = True,
) -> Results:
    """Train on the digits of scikit-learn, sample, measure, and leave a report in `out`.

    Args:
        out: folder for the results; it is made where it is missing.
        settings: what decides the numbers; None is the full demo with seed 0.
        workers: processes side by side, one thread each; None is 2, or 1 on a single core. It
            changes the time only.
        progress: show progress bars.
        report: draw the pictures and write report.html.

    Returns:
        What metrics.json holds.

    Raises:
        TypeError: settings or workers of the wrong kind.
        ValueError: workers below 1.
    """
    settings = DemoSettings() if settings is None else settings
    if workers is None:
        workers = min(2, os.cpu_count() or 1)
    check.count("workers", workers)
    files = Files(Path(out))
    files.folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    with one_thread(), Workers(workers) as pool:
        outcome = _train(pool, files, settings, progress)
        clock.lap("training")
        levels = _search(pool, files, settings)
        clock.lap("search for levels")
        samples, costs, repeats = _sample(pool, files, settings, levels, progress)
        clock.lap("sampling")
        results = _judge(files, settings, levels, samples, costs, repeats)
        clock.lap("judging")
        seconds = {f"{key} {steps}": cost[1] for (key, steps), cost in costs.items()}
        if report:
            _draw(files, settings, results, seconds, samples, outcome, costs)
            clock.lap("pictures")
    (files.folder / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    timings = {
        "training": {kind: outcome[kind]["seconds"] for kind in outcome},
        "samplers": seconds,
        "parts": clock.parts,
    }
    (files.folder / "timings.json").write_text(json.dumps(timings, indent=2) + "\n")
    return results


class _Clock:
    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self._last = now - self._last, now


def _train(
    pool: Workers, files: Files, settings: DemoSettings, progress: bool
) -> demo_jobs.Outcome:
    outcome: demo_jobs.Outcome = {}
    # Two at a time, about as long as one another; the second two begin with the score model.
    for pair in (
        (demo_jobs.train_score, demo_jobs.train_judge_and_consistency),
        (demo_jobs.distil, demo_jobs.tune),
    ):
        for _, part in pool.run([partial(job, files, settings, progress) for job in pair]):
            outcome |= part
    return {kind: outcome[kind] for kind in ("classifier", *KINDS)}


def _search(pool: Workers, files: Files, settings: DemoSettings) -> dict[str, list[list[float]]]:
    work = [partial(demo_jobs.search_levels, files, kind, settings) for kind in CONSISTENCY_KINDS]
    found = dict(pool.run(work))
    return {kind: found[i] for i, kind in enumerate(CONSISTENCY_KINDS)}


def _sample(
    pool: Workers,
    files: Files,
    settings: DemoSettings,
    levels: dict[str, list[list[float]]],
    progress: bool,
) -> tuple[Samples, Costs, Repeats]:
    """Samples and costs of every method, and for those in REPEATED samples of several seeds."""
    wanted = [(m.key, steps, settings.seed) for m in METHODS for steps in m.steps]
    wanted += [
        (key, steps, settings.seed + k) for key, steps in REPEATED for k in range(1, settings.seeds)
    ]
    work = []
    for key, steps, seed in wanted:
        kind = BY_KEY[key].model
        chosen = levels[kind][steps - 1] if kind in levels else None
        work.append(
            partial(demo_jobs.sample, files, key, kind, steps, settings.samples, seed, chosen)
        )
    done: dict[int, tuple[demo_jobs.Pixels, int, float]] = {}
    bar = tqdm(total=len(work), desc="sampling", unit="run", disable=not progress)
    with bar:
        for i, result in pool.run(work):
            done[i] = result
            bar.update()
    samples: Samples = {}
    costs: Costs = {}
    repeats: Repeats = {}
    for i, (key, steps, seed) in enumerate(wanted):
        array, nfe, seconds = done[i]
        if seed == settings.seed:
            samples[key, steps], costs[key, steps] = demo_jobs.as_tensor(array), (nfe, seconds)
        if (key, steps) in REPEATED:
            repeats.setdefault((key, steps), []).append(demo_jobs.as_tensor(array))
    return samples, costs, repeats


def _judge(
    files: Files,
    settings: DemoSettings,
    levels: dict[str, list[list[float]]],
    samples: Samples,
    costs: Costs,
    repeats: Repeats,
) -> Results:
    data = digits.load()
    judge = Judge.load(files.model("classifier"), data)
    rows: list[SamplerRow] = [
        {
            "method": key,
            "steps": steps,
            "nfe": costs[key, steps][0],
            "levels": levels[key][steps - 1] if key in levels else None,
            **judge.numbers(x),
        }
        for (key, steps), x in samples.items()
    ]
    score = load_model(files.model("score"))
    start = latents(SHAPE, min(HEUN_SAMPLES, settings.samples), settings.seed)
    measured: Measured = {
        "about": {
            "version": build_info()["version"],
            "torch": torch.__version__,
            "shape": list(SHAPE),
            "train": len(data.train),
            "held_out": len(data.held),
            "parameters": sum(p.numel() for p in score.network.parameters()),
        },
        "settings": asdict(settings),
        "real": judge.baseline(),
        "levels": levels,
        "samplers": rows,
        "seeds": {
            f"{key} {steps}": _spread([judge.frechet(x) for x in runs])
            for (key, steps), runs in repeats.items()
        },
        "heun": heun_errors.measure(
            score.function,
            start * score.spec.sigma_max,
            BY_KEY["heun"].steps,
            sigma_min=score.spec.sigma_min,
            sigma_max=score.spec.sigma_max,
        ),
    }
    results: Results = {**measured, "targets": targets(measured)}
    return cast(Results, _rounded(results))


def _spread(values: Sequence[float]) -> Spread:
    values_ = torch.tensor(values, dtype=torch.float64)
    deviation = float(values_.std()) if len(values) > 1 else 0.0
    return {"frechet": list(values), "mean": float(values_.mean()), "std": deviation}


def _rounded(value: object) -> object:
    """The same with every float rounded to 6 significant digits, for readers of metrics.json."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value


def _draw(
    files: Files,
    settings: DemoSettings,
    results: Results,
    seconds: dict[str, float],
    samples: Samples,
    outcome: demo_jobs.Outcome,
    costs: Costs,
) -> None:
    # Here, so that the training processes need not load matplotlib.
    from cmsolvers.demo import digit_pictures, mixture_pictures, report_page, result_plots

    data, seed = digits.load(), settings.seed
    nfe = {at: cost[0] for at, cost in costs.items()}
    score, distilled = load_model(files.model("score")), load_model(files.model("cd"))
    few = digit_pictures.rows_of(samples, nfe, every=False)
    span = score.spec.sigma_min, score.spec.sigma_max
    course, cd = default_settings("cd", settings.cd_steps, 128, seed), outcome["cd"]
    made = {
        **mixture_pictures.pictures(files.picture, seed),
        "strips": digit_pictures.strips(files.picture("strips"), score, distilled, data, seed),
        "samplers": digit_pictures.all_samplers(
            files.picture("samplers"), digit_pictures.rows_of(samples, nfe, every=True), data
        ),
        "overview": digit_pictures.overview(files.picture("overview"), few, data, seed),
        "quality": result_plots.quality(files.picture("quality"), results, seconds),
        "few-steps": digit_pictures.few_steps(files.picture("few-steps"), samples, results["heun"]),
        "losses": result_plots.losses(
            files.picture("losses"),
            {kind: outcome[kind]["losses"] for kind in KINDS},
            result_plots.narrowings(results["settings"]),
        ),
        "hump": result_plots.hump(
            files.picture("hump"),
            cd["losses"],
            cd["bands"],
            loss_by_level.names(*span),
            [course.rate(k) for k in range(settings.cd_steps)],
        ),
    }
    grids = digit_pictures.sample_grids(files, samples, data)
    path = files.folder / "report.html"
    report_page.write(path, results, seconds, outcome, made, grids, span=span)
