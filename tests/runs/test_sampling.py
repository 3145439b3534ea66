"""Samples of checkpoints: the same files whatever the batch, the processes, the kills."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cmsolvers as cm
from cmsolvers import cli, denoisers, noise
from cmsolvers.runs.sample import SampleSettings, sample, sample_job, stores
from cmsolvers.training import write_checkpoint
from cmsolvers.training.checkpoints.lock import lock
from cmsolvers.training.data import Scale
from cmsolvers.training.models import load_model
from support.sampled_models import NETWORK, Elementwise, checkpoint, files_of
from support.tiny_specs import UNET, shaken, spec

SCALE = Scale.between(0.0, 255.0)


def settings(path: Path, **given: object) -> SampleSettings:
    return SampleSettings(path, **{"device": "cpu", "trusted": [NETWORK], "steps": 3, **given})


def made(path: Path, out: Path, **given: object) -> Path:
    sample(settings(path, **given), out, progress=False)
    return out


def about(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("score") / "checkpoint")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("labelled") / "checkpoint", classes=5)


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_files_do_not_depend_on_the_batch(labelled, tmp_path, kind):
    """Noise on the way, classes drawn: all are functions of the sample's id."""
    given = {"num": 23, "seed": 7, "sampler": "dpmpp_2m_sde", "classes": "uniform", "format": kind}
    found = [
        files_of(made(labelled, tmp_path / str(batch), batch=batch, **given))
        for batch in (1, 5, 64)
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == (23 + 2 if kind == "png" else 2)
    other = files_of(made(labelled, tmp_path / "other", **(given | {"seed": 8})))
    assert other.keys() == found[0].keys() and other != found[0]


def processes(world: int, *words: object) -> list[int]:
    """The command in processes that torchrun would start; their statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = str(Path(__file__).parents[1])
    base = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "PYTHONPATH": os.pathsep.join([*sys.path, tests]),
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-m", "cmsolvers", "sample", *map(str, words), "--trust", NETWORK]
    running = [
        subprocess.Popen([*line, "--quiet", "--device", "cpu"], env=base | {"RANK": str(rank)})
        for rank in range(world)
    ]
    return [one.wait(timeout=300) for one in running]


def test_files_do_not_depend_on_the_processes(labelled, tmp_path):
    one = made(labelled, tmp_path / "one", num=23, sampler="euler_ancestral")
    words = (labelled, "--num", 23, "--sampler", "euler_ancestral", "--steps", 3, "--batch", 4)
    assert processes(2, *words, "--out", tmp_path / "two") == [0, 0]
    assert files_of(one) == files_of(tmp_path / "two")
    assert about(tmp_path / "two")["last_run"]["made"] == 23
    assert about(tmp_path / "two")["nfe"] == 3.0
    # Another seed for the same folder: the first process says so, both end.
    assert processes(2, *words, "--seed", 1, "--out", tmp_path / "two") == [2, 2]


@pytest.mark.slow
def test_torchrun_starts_the_command(labelled, tmp_path):
    one = made(labelled, tmp_path / "one", num=23, sampler="ddim")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "-m",
    ]
    words += ["cmsolvers", "sample", str(labelled), "--count", "23", "--sampler", "ddim"]
    words += ["--steps", "3", "--out", str(tmp_path / "three"), "--trust", NETWORK, "--quiet"]
    done = subprocess.run([*words, "--device", "cpu"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("23 samples (23 made in ")
    assert files_of(one) == files_of(tmp_path / "three")


def test_samples_are_those_of_the_library(score, tmp_path):
    out = made(score, tmp_path / "out", num=6, seed=3, sampler="dpmpp_sde", steps=4, format="npz")
    model = load_model(score, trusted=[NETWORK])
    x = 20.0 * noise.normal((6, 1, 4, 4), 3)
    x = cm.dpmpp_sde(model.function, x, cm.karras_sigmas(4, 0.002, 20.0), seed=noise.Key(3))
    pixels = SCALE.to_pixels(x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with np.load(out / "samples.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], pixels)
        assert found["ids"].tolist() == list(range(6))
    made(score, tmp_path / "png", num=6, seed=3, sampler="dpmpp_sde", steps=4)
    for i in range(6):
        picture = np.asarray(Image.open(tmp_path / f"png/images/00000/{i:08d}.png"))
        np.testing.assert_array_equal(picture, pixels[i, :, :, 0])


def test_levels_schedule_and_options(score, tmp_path):
    x = 9.0 * noise.normal((2, 1, 4, 4), 0)
    function = load_model(score, trusted=[NETWORK]).function
    given = {"num": 2, "format": "npz", "options": {"s_churn": 0.5}}
    out = made(score, tmp_path / "a", steps=None, levels=[9.0, 1.0, 0.0], **given)
    want = cm.heun_pf_ode(function, x, [9.0, 1.0, 0.0], s_churn=0.5, seed=noise.Key(0))
    assert about(out)["settings"]["levels"] == [9.0, 1.0, 0.0]
    shown = SCALE.to_pixels(want).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.load(out / "samples.npz")["arr_0"], shown)
    given["options"] = {"rho": 3.0, "sigma_max": 5.0}
    out = made(score, tmp_path / "b", steps=4, **given)
    want = cm.karras_sigmas(4, 0.002, 5.0, 3.0).tolist()
    assert about(out)["settings"]["levels"] == want


def test_guidance_and_classes(labelled, tmp_path):
    given = {"num": 7, "guidance": 2.5, "classes": "3,0-1", "format": "npz"}
    out = made(labelled, tmp_path / "out", **given)
    function = load_model(labelled, trusted=[NETWORK]).function
    labels = torch.tensor([3, 0, 1, 3, 0, 1, 3])
    guided = denoisers.guided(
        function,
        2.5,
        conditional={"labels": labels},
        unconditional={"labels": torch.full_like(labels, 5)},
    )
    x = cm.heun_pf_ode(
        guided, 20.0 * noise.normal((7, 1, 4, 4), 0), cm.karras_sigmas(3, 0.002, 20.0)
    )
    shown = SCALE.to_pixels(x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with np.load(out / "samples.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], shown)
        assert found["labels"].tolist() == labels.tolist()
    plain = made(labelled, tmp_path / "plain", **(given | {"guidance": None}))
    assert (np.load(plain / "samples.npz")["arr_0"] != shown).any()


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_what_is_there_is_not_made_again(score, tmp_path, monkeypatch, kind):
    """Ctrl-C in the third batch; then two further batches of another size are missing."""
    given = {"num": 20, "batch": 6, "format": kind, "sampler": "ddim"}
    want = files_of(made(score, tmp_path / "whole", **given))
    original, calls = sample_job.Job.draw, []

    def draw(self, first, count):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((first, count))
        return original(self, first, count)

    monkeypatch.setattr(sample_job.Job, "draw", draw)
    with pytest.raises(KeyboardInterrupt, match="12 of 20 samples are written; the same command"):
        made(score, tmp_path / "out", **given)
    assert not about(tmp_path / "out")["complete"]
    assert not (tmp_path / "out" / "lock").exists()
    monkeypatch.setattr(sample_job.Job, "draw", original)
    Elementwise.seen = 0
    result = sample(settings(score, **(given | {"batch": 5})), tmp_path / "out", progress=False)
    assert Elementwise.seen == 8 * 3 and result.made == 8
    assert files_of(tmp_path / "out") == want
    Elementwise.seen = 0
    again = sample(settings(score, **given), tmp_path / "out", progress=False)
    assert Elementwise.seen == 0 and again.made == 0 and again.nfe is None
    assert about(tmp_path / "out")["nfe"] == 3.0 and about(tmp_path / "out")["complete"]


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_killed_runs_end_with_the_same_files(score, tmp_path, kind):
    given = {"num": 3000, "batch": 50, "format": kind}
    want = files_of(made(score, tmp_path / "whole", **given))
    out = tmp_path / "out"
    words = ["sample", score, "--num", 3000, "--batch", 50, "--format", kind, "--steps", 3]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-m", "cmsolvers", *map(str, words), "--out", str(out)]
    line += ["--quiet", "--trust", NETWORK, "--device", "cpu"]
    for part in (200, 1500):  # killed once so many samples are there
        running = subprocess.Popen(line, env=env, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 200
        while running.poll() is None and time.monotonic() < end:
            there = stores.PictureStore(out, ()) if kind == "png" else None
            if there is None:
                there = stores.ArrayStore(out, (4, 4, 1), np.uint8)
            if int(there.done(3000).sum()) >= part:
                break
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert part <= int(there.done(3000).sum()) < 3000
    assert sample(settings(score, **given), out, progress=False).num == 3000
    assert files_of(out) == want


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 4}, "steps"),
        ({"num": 5}, "num"),
        ({"sampler": "euler"}, "sampler"),
        ({"options": {"rho": 5.0}}, "levels"),
        ({"options": {"s_noise": 0.9}}, "options"),
        ({"precision": "bf16"}, "precision"),
        ({"format": "npz"}, "format"),
    ],
)
def test_other_settings_for_the_same_folder(score, tmp_path, changed, name):
    out = made(score, tmp_path / "out", num=4)
    before = files_of(out)
    with pytest.raises(ValueError, match=rf"^{name} must be .*samples\.json.*another --out"):
        made(score, out, **({"num": 4} | changed))
    assert files_of(out) == before


def test_usual_settings_may_be_written_out(score, tmp_path):
    out = made(score, tmp_path / "out", num=4, steps=None)
    usual = {"steps": 18, "schedule": "karras", "sampler": "heun_pf_ode", "format": "png"}
    assert sample(settings(score, num=4, **usual), out, progress=False).made == 0


def test_another_checkpoint_for_the_same_folder(score, tmp_path):
    out = made(score, tmp_path / "out", num=4)
    other = checkpoint(tmp_path / "other", sigma_data=0.25)
    with pytest.raises(ValueError, match=r"^checkpoint must be"):
        made(other, out, num=4)
    copied = checkpoint(tmp_path / "copy")  # the same weights elsewhere
    assert sample(settings(copied, num=4), out, progress=False).made == 0


def test_samples_that_are_not_finite_are_counted(tmp_path, capsys):
    path = checkpoint(tmp_path / "checkpoint", nan_above=1.0)
    z = noise.normal((40, 1, 4, 4), 0).flatten(1)[:, 0]
    bad = torch.nonzero(z / (1 + 0.25 / 400) ** 0.5 > 1.0)[:, 0].tolist()
    assert 3 < len(bad) < 12
    words = ("--num", "40", "--sampler", "euler", "--steps", "1", "--batch", "16", "--quiet")
    for kind in ("png", "npz"):
        out = tmp_path / kind
        more = (*words, "--format", kind, "--out", str(out), "--trust", NETWORK, "--device", "cpu")
        assert cli.main(["sample", str(path), *more]) == 1
        assert f"{len(bad)} of 40 samples are not finite" in capsys.readouterr().err
        assert about(out)["not_finite"] == {"count": len(bad), "ids": bad}
    names = {int(file.stem) for file in (tmp_path / "png").rglob("000*.png")}
    assert names == set(range(40)) - set(bad)
    with np.load(tmp_path / "npz" / "samples.npz") as found:
        assert found["ids"].tolist() == sorted(names)
        assert len(found["arr_0"]) == 40 - len(bad)


@pytest.mark.parametrize(
    ("kind", "shape", "sampler", "nfe"),
    [
        ("consistency", (1, 4, 4), None, 2),
        ("trigflow", (1, 4, 4), "consistency", 2),
        ("average_velocity", (3, 4, 4), "flow_map", 2),
        ("flow", (4, 4, 4), "unipc", 2),
        ("flow", (4, 4, 4), "em", 2),
        ("eps", (3, 4, 4), "ddpm", 2),
        ("score", (2,), "heun", 3),
        ("score", (2, 4, 4), "rk_pf_ode", None),
    ],
)
def test_every_kind_of_model(tmp_path, kind, shape, sampler, nfe):
    scale = None if len(shape) == 1 else SCALE
    path = checkpoint(tmp_path / "checkpoint", kind, shape, scale=scale)
    steps = None if sampler == "rk_pf_ode" else 2
    out = made(path, tmp_path / "out", num=5, sampler=sampler, steps=steps)
    assert about(out)["nfe"] == nfe or nfe is None
    if len(shape) == 3 and shape[0] != 2:
        assert len(list(out.rglob("000000*.png"))) == 5 and (out / "grid.png").is_file()
    else:
        rows = (4, 4, 2) if len(shape) == 3 else shape
        assert np.load(out / "samples.npz")["arr_0"].shape == (5, *rows)


def test_precision_narrows_the_network_alone(tmp_path):
    """bfloat16 has 8 bits: results move a little, and are float32."""
    pytest.importorskip("diffusers")
    from cmsolvers.training import write_checkpoint
    from support.tiny_specs import shaken, spec

    one = spec("edm", "unet")
    state = shaken(one.build(0)).state_dict()
    given = {"spec": one.about(), "scale": SCALE.about()}
    write_checkpoint(tmp_path / "c", {"network": state}, given)
    found = [
        np.load(
            made(tmp_path / "c", tmp_path / p, num=2, format="npz", precision=p) / "samples.npz"
        )
        for p in ("no", "bf16")
    ]
    apart = np.abs(found[0]["arr_0"].astype(int) - found[1]["arr_0"].astype(int))
    assert 0 < apart.mean() < 40


def test_a_pipeline_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(8, 3, 3, **{**UNET, "attention_head_dim": 8})
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    out = made(tmp_path / "pipeline", tmp_path / "out", num=3, sampler="ddim", steps=2)
    assert about(out)["settings"]["schedule"] == "ddpm"
    assert len(list(out.rglob("000000*.png"))) == 3


def test_the_grid_keeps_a_reasonable_size(tmp_path):
    path = checkpoint(tmp_path / "checkpoint", shape=(3, 256, 256))
    out = made(path, tmp_path / "out", num=12, steps=1, sampler="euler")
    width, height = Image.open(out / "grid.png").size
    assert width == 2000 and 398 <= height <= 400  # of 2569 x 513
    small = made(checkpoint(tmp_path / "small"), tmp_path / "b", num=130)
    assert 300 < max(Image.open(small / "grid.png").size) < 600


def test_a_network_that_reads_w_is_told_one_less(tmp_path):
    """Guidance W is D_u + W (D_c - D_u); w counts from D_c: D_c + w (D_c - D_u)."""
    one = spec("consistency", shape=(1, 4, 4), inputs=("w",))
    network = shaken(one.build(0)).eval()
    with torch.no_grad():  # at first nothing depends on w
        for parameter in network.parameters():
            parameter.add_(0.05)
    given = {"spec": one.about(), "scale": SCALE.about()}
    write_checkpoint(tmp_path / "c", {"network": network.state_dict()}, given)
    out = made(tmp_path / "c", tmp_path / "out", num=4, steps=1, guidance=4.0, format="npz")
    pixels = []
    for w in (3.0, 4.0):
        x = cm.consistency_sample(
            one.wrap(network),
            about(out)["settings"]["levels"][0] * noise.normal((4, 1, 4, 4), 0),
            about(out)["settings"]["levels"],
            extra_args={"w": torch.full((4,), w)},
        )
        pixels.append(SCALE.to_pixels(x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.load(out / "samples.npz")["arr_0"], pixels[0])
    assert (pixels[0] != pixels[1]).any()
    with pytest.raises(ValueError, match="guidance must be given"):
        made(tmp_path / "c", tmp_path / "other", num=4)


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("score", {}, "no classes with an empty label"),
        ("score", {"classes": 3, "null_label": False}, "no classes with an empty label"),
        ("consistency", {"classes": 3}, "whose network has no input w"),
    ],
)
def test_guidance_that_a_model_cannot_have(tmp_path, kind, given, text):
    path = checkpoint(tmp_path / "c", kind, **given)
    steps = None if kind == "consistency" else 2
    with pytest.raises(ValueError, match=text):
        made(path, tmp_path / "out", num=2, steps=steps, guidance=2.0)
    assert not (tmp_path / "out").exists()
    assert made(path, tmp_path / "none", num=2, steps=steps, guidance=1.0).is_dir()


def test_a_full_disk_ends_a_run_that_goes_on_later(score, tmp_path, monkeypatch, capsys):
    out, given = tmp_path / "out", {"num": 20, "batch": 4}
    want = files_of(made(score, tmp_path / "whole", **given))
    original, room = stores._write, [10]

    def write(path, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, data)

    monkeypatch.setattr(stores, "_write", write)
    with pytest.raises(OSError, match="No space left"):
        made(score, out, **given)
    assert 8 <= len(list(out.rglob("*.png"))) <= 12
    monkeypatch.setattr(stores, "_write", original)
    assert sample(settings(score, **given), out, progress=False).num == 20
    assert files_of(out) == want


def test_one_run_at_a_time_writes_to_a_folder(score, tmp_path):
    out = made(score, tmp_path / "out", num=4)
    with lock(out / "lock"), pytest.raises(ValueError, match=r"^out must be free; process \d+ on"):
        made(score, out, num=4)
