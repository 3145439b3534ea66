"""The demo end to end in a tiny size, and the command line on what it leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import cmsolvers
from cmsolvers import cli
from cmsolvers.demo import DemoSettings, digits, run_demo
from cmsolvers.demo.compared_samplers import BY_KEY, METHODS
from cmsolvers.demo.equations import EQUATIONS
from cmsolvers.demo.mixture_pictures import PANELS
from cmsolvers.runs.config import template
from cmsolvers.training.models import CONSISTENCY_KINDS, KINDS
from support.saved import content

SETTINGS = DemoSettings.tiny(seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, SETTINGS, workers=1, progress=False)
    return out


def test_everything_is_there(folder: Path):
    names = {path.name for path in folder.iterdir()}
    checkpoints = {"classifier", "score", "cd", "ct", "ect"}
    pictures = {"strips", "samplers", "overview", "quality", "losses", "samples-real"}
    pictures |= {"few-steps", "hump"} | {f"mixture-{name}" for name in PANELS}
    pictures |= {f"samples-{m.key}-{steps}" for m in METHODS for steps in m.steps}
    assert checkpoints | {f"{name}.png" for name in pictures} <= names
    assert {"metrics.json", "timings.json", "report.html"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_metrics_are_complete(folder: Path):
    results = json.loads((folder / "metrics.json").read_text())
    rows = {(row["method"], row["steps"]): row for row in results["samplers"]}
    assert set(rows) == {(m.key, steps) for m in METHODS for steps in m.steps}
    for (method, steps), row in rows.items():
        expected = 2 * steps - 1 if method == "heun" else steps
        assert row["nfe"] == expected
        assert sum(row["class_shares"]) == pytest.approx(1, abs=1e-4)
        assert all(np.isfinite(row[name]) for name in ("frechet", "confidence", "nearest_train"))
    assert "seconds" not in (folder / "metrics.json").read_text()
    assert len(results["targets"]) == 14
    seeds = results["seeds"]["cd 1"]["frechet"]
    assert len(seeds) == SETTINGS.seeds
    assert seeds[0] == rows["cd", 1]["frechet"]


def test_two_runs_give_the_same_bytes(folder: Path, tmp_path: Path):
    """In other processes, side by side, and whatever the global generators hold."""
    torch.manual_seed(7)
    run_demo(tmp_path, SETTINGS, workers=2, progress=False, report=False)
    assert (folder / "metrics.json").read_bytes() == (tmp_path / "metrics.json").read_bytes()
    for kind in KINDS:
        assert content(folder / kind) == content(tmp_path / kind)


class Page(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_needs_no_other_file(folder: Path):
    html = (folder / "report.html").read_text("utf-8")
    page = Page()
    page.feed(html)
    assert not page.open
    assert len(page.links) >= 20
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|\$[a-z_]+", html)


def test_report_shows_every_equation_with_its_code(folder: Path):
    html = (folder / "report.html").read_text("utf-8")
    for equation in EQUATIONS.values():
        assert html.count(equation.math) == html.count(escape(equation.code)) == 1
        assert html.count(equation.meaning) == 1


def test_report_counts_its_samplers(folder: Path):
    html = (folder / "report.html").read_text("utf-8")
    assert len(METHODS) == 7
    assert "Seven ways" in html
    assert "each of the seven samplers" in html


def test_report_says_where_heun_goes_wrong(folder: Path):
    """Its table has the steps that metrics.json has, and its text the worst one's error."""
    html = (folder / "report.html").read_text("utf-8")
    found = json.loads((folder / "metrics.json").read_text())["heun"]
    begin = html.index("Why Heun's method fails in 5 steps")
    part = html[begin : html.index("Three ways to teach")]
    rows = re.findall("<tr>(.*?)</tr>", part)[1:]
    assert len(rows) == len(found["steps"]) == 4
    for row, step in zip(rows, found["steps"], strict=True):
        cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
        assert cells[0] == f"{step['start']:.3g} to {step['end']:.3g}"
        assert cells[3:] == [f"{step[k]:.3f}" for k in ("heun", "euler", "at_end", "so_far")]
    worst = max(step["at_end"] for step in found["steps"])
    assert f"({worst:.3f})" in part


def test_sample_grids_are_large_enough_to_judge(folder: Path):
    image_module = pytest.importorskip("PIL.Image")
    with image_module.open(folder / "samples-real.png") as image:
        assert min(image.size) >= 400  # ten digits of eight pixels in a row


def test_report_says_what_this_run_took_for_each_consistency_function(folder: Path):
    """Steps, seconds and distances in its table are those of the files beside it."""
    html = (folder / "report.html").read_text("utf-8")
    results, timings = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "timings")
    )
    begin = html.index("Three ways to teach")
    rows = re.findall("<tr>(.*?)</tr>", html[begin : html.index("What this run promised")])
    cells = {}
    for row in rows[1:]:
        first, *rest = (re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row))
        cells[first] = rest
    score, seconds = f"{timings['training']['score']:.0f}", timings["training"]
    for kind in CONSISTENCY_KINDS:
        start, teacher, _, steps, took, one, few, _ = cells[BY_KEY[kind].label]
        assert (start == "random", teacher == "none") == (kind == "ct", kind != "cd")
        assert steps == str(results["settings"][f"{kind}_steps"])
        assert took == f"{seconds[kind]:.0f}" + (f" + {score}" if kind != "ct" else "")
        assert one.startswith(f"{results['seeds'][f'{kind} 1']['mean']:.1f} ")
        found = {r["steps"]: r["frechet"] for r in results["samplers"] if r["method"] == kind}
        assert few == " / ".join(f"{found[n]:.1f}" for n in (1, 2, 4))


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "sampler", ["heun", "euler", "ddim", "em", "dpmpp_2m", "dpmpp_sde", "rk_pf_ode"]
)
def test_every_sampler_of_the_command_line(folder: Path, tmp_path: Path, sampler: str):
    steps = () if sampler == "rk_pf_ode" else ("--steps", 3)
    arguments = ("sample", folder / "score", "--sampler", sampler, *steps, "--num", 2, "--quiet")
    assert run(*arguments, "--out", tmp_path) == 0


@pytest.mark.parametrize("kind", ["ct", "ect"])
def test_sample_and_evaluate_a_consistency_model(folder: Path, tmp_path: Path, capsys, kind: str):
    made, measured = tmp_path / "made", tmp_path / "measured"
    arguments = ("--levels", 20.0, 1.0, 0.3, "--num", 30, "--quiet", "--out", made)
    assert run("sample", folder / kind, *arguments) == 0
    assert "NFE 3" in capsys.readouterr().out
    classifier = ("--classifier", folder / "classifier")
    assert run("evaluate", made, *classifier, "--quiet", "--out", measured) == 0
    frechet = json.loads((measured / "metrics.json").read_text())["metrics"]["frechet"]
    assert frechet["value"] > frechet["held_out"]


def configured(place: Path, name: str, *overrides: object) -> tuple[object, ...]:
    """Words of `cmsolvers train` for a preset, on the file data.npy."""
    path = place / f"{name}.toml"
    path.write_text(template(name), encoding="utf-8")
    keys = [f"data.source={place / 'data.npy'}", f"run.out={place / name}"]
    return ("train", path, *keys, "train.batch_size=16", "train.steps=6", *overrides, "--quiet")


def test_train_and_evaluate_on_a_file(tmp_path: Path):
    pixels = (digits.load().train[:60, 0] * 100).to(torch.int32).numpy()
    np.save(tmp_path / "data.npy", pixels)
    assert run(*configured(tmp_path, "digits-score")) == 0
    teacher = f"teacher.path={tmp_path / 'digits-score'}"
    assert run(*configured(tmp_path, "digits-cd", teacher)) == 0
    model = tmp_path / "digits-cd"
    made = tmp_path / "samples"
    assert run("sample", model, "--num", 9, "--quiet", "--out", made) == 0
    arguments = ("--data", tmp_path / "data.npy", "--quiet", "--out", tmp_path / "measured")
    assert run("evaluate", made, *arguments) == 0


def test_info(capsys):
    assert run("info") == 0
    assert "torch" in capsys.readouterr().out
    assert run("info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__


def test_without_the_demo_extra(tmp_path: Path):
    """`info` and training on a file need none of its packages; what does says which."""
    np.save(tmp_path / "data.npy", digits.load().train[:20, 0].numpy())
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'PIL', 'diffusers', 'accelerate'):\n"
        "    sys.modules[name] = None\n"
        "from cmsolvers import cli\n"
        "words = sys.argv[1:]\n"
        "print(cli.main(['info']), cli.main(words), cli.main([*words, 'data.source=digits']))\n"
    )
    words = [str(word) for word in configured(tmp_path, "digits-score")]
    environment = os.environ | {"PYTHONPATH": str(Path(cmsolvers.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(program), *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.splitlines()[-1] == "0 0 2"
    assert "scikit-learn" in done.stderr
    assert ".[demo]" in done.stderr


@pytest.mark.parametrize("command", ["demo", "train", "sample", "evaluate", "info"])
def test_help(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text
    if command != "info":
        assert "--seed" in text
        assert "--out" in text


def test_bad_input_is_one_line_and_status_two(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    one = folder / "ct"
    assert run("sample", one, "--num", 1, "--quiet", "--out", tmp_path / "one") == 0
    capsys.readouterr()
    bad = [
        ("sample", folder / "score", "--levels", 1.0, 2.0),
        ("evaluate", tmp_path / "one", "--quiet"),
        ("evaluate", tmp_path / "one", "--classifier", one),
        ("evaluate", tmp_path / "file"),
        ("sample", tmp_path / "none"),
        ("sample", folder / "ct", "--sampler", "heun"),
        ("sample", folder / "score", "--sampler", "consistency"),
        ("sample", folder / "score", "--sampler", "dpmpp_9m"),
        ("sample", folder / "score", "--steps", 0),
        ("sample", folder / "score", "--num", 0),
        ("sample", folder / "ct", "--levels", 30.0),
        ("sample", folder / "classifier"),
        ("evaluate", tmp_path / "none.npy"),
        ("demo", "--workers", 0),
    ]
    for arguments in bad:
        place = () if "--out" in arguments else ("--out", tmp_path / "out")
        assert run(*arguments, *place) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith(f"cmsolvers {arguments[0]}: ")
        assert error.count("\n") == 1
