"""`cmsolvers train`: presets end to end, runs that go on, folders, and input that does not fit."""

import csv
import json
import re
import shutil
import tomllib

import numpy as np
import pytest
import torch

from cmsolvers import cli, heun_pf_ode, karras_sigmas, noise
from cmsolvers.runs.config import Config, preset, presets, template
from cmsolvers.runs.train import following, train, train_run
from cmsolvers.runs.train.placing import device_of
from cmsolvers.training import (
    RunFolder,
    TrainingSettings,
    read_checkpoint,
    recipes,
    reconstruct_average,
)
from cmsolvers.training.data import digits
from cmsolvers.training.models import load_model
from cmsolvers.training.spec import Spec
from cmsolvers.training.step import training_step
from support import picture_files

TINY = ["network.options.width=16", "network.options.blocks=1", "train.batch_size=16"]
TINY += ["logging.picture_every=0"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return cli.main(["train", *map(str, words)])


def written(name="digits-score", *overrides):
    """A file with a preset."""
    with open(f"{name}.toml", "w", encoding="utf-8") as file:
        file.write(template(name))
    return (f"{name}.toml", *TINY, "train.steps=4", *overrides)


def newest(out):
    return read_checkpoint(RunFolder(out).checkpoints()[-1])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A finished run of the score model."""
    place = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(*written("digits-score"), "--quiet") == 0
    return place / "digits-score"


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_presets_run(here, name, teacher, capsys):
    shutil.copytree(teacher, here / "digits-score")
    words = list(written(name, "--overwrite"))
    if name == "images":
        picture_files.folder(here / "images")
        words = [word for word in words if not word.startswith("network")]
        words += ["network.options={channels=[8, 8]}", "data.size=16", "data.workers=0"]
        words += ["train.batch_size=4", "train.precision=no", "train.steps=2"]
        words += ["sampling.count=2", "sampling.steps=2"]
    assert run(*words) == 0
    out = preset(name).run.out
    text = capsys.readouterr().out
    steps = 2 if name == "images" else 4
    assert f"{steps} steps; loss" in text and f"{out}/checkpoints/step-0000000{steps}" in text
    _, about = newest(out)
    assert about["step"] == steps
    model = load_model(here / out)
    x = torch.zeros(2, *model.spec.shape)
    times = (1.0,) if model.spec.row.times == 1 else (1.0, 0.5)
    assert model.function(x, *(torch.full((2,), t) for t in times)).shape == x.shape


@pytest.mark.parametrize("name", ["digits-score", "digits-cd", "digits-ct", "digits-ect"])
def test_presets_of_digits_are_the_recipes_of_the_demo(here, name, teacher):
    """The same losses and weights, from the functions that the demo calls."""
    shutil.copytree(teacher, here / "digits-score")
    kind = name.removeprefix("digits-")
    assert run(*written(name), "--quiet", "run.out=mine") == 0
    keys = preset(name)
    settings = TrainingSettings(4, batch_size=16, lr=keys.optimizer.lr)
    spec = Spec(kind, (1, 8, 8), "mlp", {"width": 16, "blocks": 1})
    make = {"score": recipes.score_trainer, "ct": recipes.consistency_trainer}.get(kind)
    if make is not None:
        trainer = make(spec, digits(), settings)
    else:
        begin = recipes.distillation_trainer if kind == "cd" else recipes.tuning_trainer
        trainer = begin(spec, digits(), settings, load_model(teacher))
    trainer.run(progress=False)
    groups, about = newest("mine")
    assert groups["progress"]["history"].tolist() == pytest.approx(trainer.history, rel=1e-6)
    ours = trainer.averages["ema"].module.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(groups["average.ema"][key], value, rtol=1e-5, atol=1e-6)
    assert (about["spec"]["kind"], about["loss"]) == (kind, keys.loss.name)
    assert recipes.default_settings(kind, None, 128, 0).steps == keys.train.steps


# --- the folder ---------------------------------------------------------------------------------


def test_what_a_folder_holds(here):
    words = written("digits-score", "logging.every=3", "logging.picture_every=500")
    assert run(*words, "--quiet") == 0
    out = here / "digits-score"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints",
        "config.toml",
        "levels.csv",
        "log.csv",
        "losses.png",
        "versions.json",
    ]
    config = Config.of(tomllib.loads((out / "config.toml").read_text()))
    assert config.train.steps == 4 and config.logging.every == 3
    assert 'name = "auto"  # mlp' in (out / "config.toml").read_text()
    (entry,) = json.loads((out / "versions.json").read_text())
    assert entry["torch"] == torch.__version__ and entry["step"] == 0 and entry["processes"] == 1
    assert entry["data"]["fingerprint"] == digits().fingerprint
    rows = list(csv.DictReader((out / "log.csv").open()))
    history = newest(out)[0]["progress"]["history"]
    assert [int(row["step"]) for row in rows] == [3, 4]
    assert float(rows[0]["loss"]) == pytest.approx(float(history[:3].mean()), rel=1e-5)
    assert float(rows[1]["loss"]) == pytest.approx(float(history[3]), rel=1e-5)


def test_a_run_goes_on_to_the_same_end(here, capsys):
    words = written("digits-score", "logging.every=1")
    assert run(*words, "run.out=whole", "--quiet") == 0
    assert run(*words, "run.out=parts", "train.steps=2", "schedule.name=constant", "--quiet") == 0
    shutil.rmtree(here / "parts")

    original, seen = train_run.Trainer.run, []

    def half(self, until=None, **options):
        seen.append(self.step)
        return original(self, 2 if self.step < 2 else None, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run.Trainer, "run", half)
        for _ in range(2):
            assert run(*words, "run.out=parts", "--quiet") == 0
    assert seen == [0, 2]
    first, second = newest("whole"), newest("parts")
    for group, members in first[0].items():
        for name, value in members.items():
            assert torch.equal(second[0][group][name], value), (group, name)
    logs = [(here / out / "log.csv").read_text().splitlines() for out in ("whole", "parts")]
    assert [row.split(",")[:3] for row in logs[0]] == [row.split(",")[:3] for row in logs[1]]
    capsys.readouterr()
    assert run(*words, "run.out=parts") == 0
    assert "the run is finished, 4 steps" in capsys.readouterr().out
    entries = json.loads((here / "parts" / "versions.json").read_text())
    assert [entry["step"] for entry in entries] == [0, 2, 4]


def test_rows_that_a_killed_run_wrote_after_its_checkpoint_go(here):
    words = written("digits-score", "logging.every=1")
    assert run(*words, "--quiet") == 0
    with open("digits-score/log.csv", "a") as file:
        file.write("5,0.1,0.1,,0.1,0\n6,0.1,0.")
    assert run(*words, "train.steps=5", "--quiet") == 0
    rows = list(csv.DictReader((here / "digits-score" / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[4]["loss"]) > 0.2


def test_what_may_change_and_what_may_not(here, capsys):
    words = written("digits-score")
    assert run(*words, "--quiet") == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    changed = ["loss.times.mean=-1.2", "train.batch_size=8", "train.steps=9"]
    assert run(*words, *changed) == 2
    error = capsys.readouterr().err
    assert "holds a run at step 4 with another configuration" in error
    assert "train.batch_size was 16 and is 8" in error and "mean = -1.2" in error
    assert "train.steps" not in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    free = ["train.steps=5", "checkpoints.every=1", "optimizer.lr=1e-4", "run.device=cpu"]
    assert run(*words, *free) == 0
    assert "goes on from step 4 (run.device was" in capsys.readouterr().out
    assert newest("digits-score")[1]["step"] == 5


def test_a_resume_that_is_refused_changes_nothing(here, capsys):
    words = written("digits-score")
    assert run(*words, "--quiet") == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert run(*words, "train.steps=3") == 2
    assert "at least the 4 steps that were done" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 7]), (7, [7]), (0, [7])])
def test_a_checkpoint_is_written_every_so_many_steps(here, monkeypatch, every, steps):
    made, save = [], RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda *a: (made.append(a[1]), save(*a))[1])
    words = written("digits-score", "train.steps=7", f"checkpoints.every={every}", "--quiet")
    assert run(*words, "checkpoints.keep=2") == 0
    assert made == steps
    kept = [
        int(path.name.removeprefix("step-")) for path in RunFolder("digits-score").checkpoints()
    ]
    assert kept == steps[-2:]


def test_a_rate_moves_the_weights_that_far(here):
    """AdamW's first step moves each weight by the rate, whatever the gradient."""
    for rate in (1e-3, 2e-3):
        words = written("digits-score", "train.steps=1", f"optimizer.lr={rate}", "--overwrite")
        assert run(*words, "optimizer.options={}", "--quiet") == 0
        groups, _ = newest("digits-score")
        begun = load_model("digits-score").spec.build(0).state_dict()
        moved = max(float((groups["network"][name] - begun[name]).abs().max()) for name in begun)
        assert moved == pytest.approx(rate, rel=0.05)


def test_overwriting_keeps_what_was_there(here, capsys):
    words = written("digits-score", "--quiet")
    assert run(*words) == 0
    first = newest("digits-score")[0]["network"]
    for number in (1, 2):
        assert run(*words, "run.seed=1", "--overwrite") == 0
        aside = here / f"digits-score.old-{number}"
        assert sorted(p.name for p in aside.iterdir()) == sorted(
            p.name for p in (here / "digits-score").iterdir()
        )
    kept = newest(here / "digits-score.old-1")[0]["network"]
    assert all(torch.equal(kept[name], value) for name, value in first.items())
    assert not torch.equal(
        newest("digits-score")[0]["network"]["first.weight"], first["first.weight"]
    )


def test_a_run_that_failed_in_its_first_step_may_have_another_configuration(here):
    words = written("digits-score", "--quiet")

    def broken(self, *given):
        raise RuntimeError("broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step.TrainingStep, "__call__", broken)
        with pytest.raises(RuntimeError, match="broken"):
            run(*words)
    out = here / "digits-score"
    assert [path.name for path in RunFolder(out).checkpoints()] == ["step-00000000"]
    assert run(*words, "train.batch_size=8") == 0
    assert newest("digits-score")[1]["settings"]["batch_size"] == 8


def test_a_network_of_the_users_own_is_tried_first(here):
    (here / "own_networks.py").write_text(
        "import torch\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(64, width)\n"
        "    def forward(self, x, c_noise):\n"
        "        return self.layer(x.flatten(1)).view_as(x)\n"
    )
    words = [word for word in written("digits-score") if not word.startswith("network")]
    words += ["network.name=import:own_networks:Own", "--quiet"]
    with pytest.raises(RuntimeError, match="invalid for input"):  # the user's own code
        run(*words, "network.options.width=65")
    assert not (here / "digits-score").exists()
    assert run(*words, "network.options.width=64") == 0
    assert run(*words, "network.options.width=64", "train.steps=5") == 0
    assert newest("digits-score")[1]["step"] == 5


def test_folders_of_others_are_left_alone(here, capsys):
    words = written("digits-score")
    assert run(*words, "--out", words[0]) == 2
    (here / "mine").mkdir()
    (here / "mine" / "config.toml").write_text("[own]\n")
    assert run(*words, "--out", "mine", "--overwrite") == 2
    recipes.score_trainer(
        Spec("score", (1, 8, 8), options={"width": 8, "blocks": 1}),
        digits(),
        TrainingSettings(1, batch_size=8),
    ).run(folder="other", progress=False)
    assert run(*words, "--out", "other") == 2
    error = capsys.readouterr().err.splitlines()
    assert "is a file" in error[0] and "that is no run's" in error[1]
    assert "holds other checkpoints" in error[2] and len(error) == 3
    assert (here / "mine" / "config.toml").read_text() == "[own]\n"
    assert run(*words, "--out", "other", "--overwrite", "--quiet") == 0
    assert (here / "other.old-1" / "checkpoints").is_dir()


def test_resume_never_and_must(here, capsys):
    words = written("digits-score", "--quiet")
    assert run(*words, "run.resume=must") == 2
    assert not (here / "digits-score").exists()
    assert run(*words) == 0
    assert run(*words, "run.resume=never", "train.steps=5") == 2
    assert run(*words, "run.resume=must", "train.steps=5") == 0
    error = capsys.readouterr().err
    assert "there is no run in digits-score" in error and "holds a run at step 4" in error


def test_a_second_trainer_is_told(here, capsys):
    words = written("digits-score", "--quiet")
    with RunFolder("digits-score").locked():
        assert run(*words) == 2
    assert re.search(r"it is in use by process \d+ on", capsys.readouterr().err)


def test_a_start_that_is_gone_is_not_missed(here, teacher):
    shutil.copytree(teacher, here / "digits-score")
    words = written("digits-ect", "--quiet")
    assert run(*words) == 0
    shutil.rmtree(here / "digits-score")
    assert run(*words, "train.steps=5") == 0
    assert newest("digits-ect")[1]["step"] == 5


def test_another_teacher_is_noticed(here, teacher, capsys):
    shutil.copytree(teacher, here / "digits-score")
    words = written("digits-cd", "--quiet")
    assert run(*words) == 0
    assert run(*written("digits-score", "--quiet"), "run.seed=3", "--overwrite") == 0
    assert run(*words, "train.steps=5") == 2
    assert "teacher must be" in capsys.readouterr().err
    assert run(*words, "train.steps=5", "teacher.path=digits-score.old-1") == 0


def test_other_data_are_noticed(here, capsys):
    pixels = (100 + 30 * noise.normal((24, 4, 4), 3)).numpy().astype(np.uint8)
    np.save("data.npy", pixels)
    words = written("digits-score", "data.source=data.npy", "--quiet")
    assert run(*words) == 0
    shutil.move("data.npy", "moved.npy")
    assert run(*words, "data.source=moved.npy", "train.steps=5") == 0
    np.save("data.npy", pixels[::-1])
    assert run(*words, "train.steps=6") == 2
    assert "data must be those that the run began with" in capsys.readouterr().err


# --- what reaches the training ------------------------------------------------------------------


def test_labels_averages_and_the_rest(here):
    words = written("digits-score", "model.class_conditional=true", "loss.label_dropout=0.2")
    words += ("averages.ema.decay=0.5", "averages.wide.sigma_rel=0.2", "optimizer.name=nadam")
    words += (
        "optimizer.options={}",
        "optimizer.lr=0.01",
        "schedule.name=linear",
        "schedule.options.last=0.5",
    )
    words += ("train.accumulate=2", "network.gradient_checkpointing=true", "run.seed=7")
    assert run(*words, "--quiet") == 0
    groups, about = newest("digits-score")
    assert {"average.ema", "average.wide"} < set(groups)
    assert about["spec"]["classes"] == 10 and about["settings"]["seed"] == 7
    assert about["class_names"] == [str(digit) for digit in range(10)]
    assert about["settings"]["accumulate"] == 2 and "NAdam" in json.dumps(about["optimizer"])
    model = load_model("digits-score")
    x, level = torch.ones(2, 1, 8, 8), torch.ones(2)
    one, two = (model.function(x, level, labels=torch.full((2,), k)) for k in (0, 1))
    assert not torch.equal(one, two)


def test_a_loss_of_two_times_with_the_recipes_own_levels_changed(here):
    words = [word for word in written("toy") if not word.startswith("loss")]
    words += ["loss.name=meanflow", "loss.times.equal=0.5", "data.n=64", "--quiet"]
    trainer = train(read(words), tell=len)
    assert trainer.loss.times.equal == 0.5 and trainer.loss.spec.kind == "average_velocity"
    usual = train(read([w for w in words if "equal" not in w] + ["run.out=b"]), tell=len)
    assert usual.loss.times.equal != 0.5 and type(usual.loss.times) is type(trainer.loss.times)


def read(words):
    from cmsolvers.runs.config import read_config

    words = [word for word in words if not word.startswith("--")]
    return read_config(words[0], [*words[1:], "logging.progress=false"])


def test_what_follows_a_run(here):
    words = written("digits-score", "model.class_conditional=true", "logging.tensorboard=true")
    words += ("averages.short.sigma_rel=0.05", "averages.long.sigma_rel=0.1")
    words += (
        "logging.picture_every=2",
        "checkpoints.snapshots=2",
        "sampling.every=2",
        "sampling.count=4",
    )
    words += ("sampling.average=long", "sampling.sampler=euler", "sampling.steps=2")
    assert run(*words, "logging.levels_every=2", "--quiet") == 0
    out = here / "digits-score"
    assert sorted(path.name for path in (out / "samples").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "levels.csv").open()))
    assert {row["step"] for row in rows} == {"2", "4"}
    made = reconstruct_average(out, sigma_rel=0.07)
    assert made.step == 4 and set(made.tensors) == set(newest(out)[0]["network"])


def test_samples_on_the_way_are_those_of_the_command(here):
    """From the same noise, with the same sampler: heun with 2 steps from sigma_max."""
    words = written("digits-score", "model.sigma_max=5.0")
    assert run(*words, "--quiet") == 0
    model = load_model("digits-score")
    config = read([*words, "sampling.every=1", "sampling.steps=2"])
    z = noise.normal((3, 1, 8, 8), 1)
    found = following.Drawing(config, model.spec)(model.network, z)
    expected = heun_pf_ode(model.function, 5.0 * z, karras_sigmas(2, 0.002, 5.0))
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, heun_pf_ode(model.function, 5.0 * z, karras_sigmas(3, 0.002, 5)))


def test_bad_steps_are_skipped_and_end_the_run(here, capsys):
    words = written("digits-score", "optimizer.lr=1e30", "train.steps=40", "--quiet")
    assert run(*words, "train.max_bad_steps=3") == 2
    error = capsys.readouterr().err
    assert "loss and gradient must be finite" in error and "max_bad_steps=3" in error


@pytest.mark.parametrize(
    ("name", "there", "environment", "found"),
    [
        ("auto", 0, {}, "cpu"),
        ("auto", 2, {}, "cuda:0"),
        ("cuda:1", 2, {}, "cuda:1"),
        ("cpu", 2, {}, "cpu"),
        ("auto", 2, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda", 0, {}, "must be 'cpu' or 'auto' here"),
        ("cuda:2", 2, {}, "must be below cuda:2"),
        ("cuda:1", 2, {"WORLD_SIZE": "2"}, "with several processes"),
    ],
)
def test_devices(name, there, environment, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if found.startswith("c"):
        assert str(device_of(name)) == found
    else:
        with pytest.raises(ValueError, match=found):
            device_of(name)


# --- dry runs -----------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_says_what_would_be(here, capsys):
    words = written("digits-score")
    assert run(*words, "--dry-run") == 0
    text = capsys.readouterr().out
    assert not (here / "digits-score").exists()
    made = Config.of(tomllib.loads(text))
    assert made.train.steps == 4 and made.network.options == {"width": 16, "blocks": 1}
    network = Spec("score", (1, 8, 8), "mlp", {"width": 16, "blocks": 1}).build(0)
    count = sum(p.numel() for p in network.parameters())
    assert f"{count:,} parameters" in text and "1,437 samples [1, 8, 8]" in text
    assert "89 batches per pass" in text and "folder: digits-score, a new run" in text
    assert run(*words, "--quiet") == 0
    size = sum(p.stat().st_size for p in RunFolder("digits-score").checkpoints()[-1].iterdir())
    told = float(re.search(r"a checkpoint: about ([\d.]+) kB", text)[1]) * 1000
    assert size <= told <= 1.5 * size
    capsys.readouterr()
    assert run(*words, "train.steps=5", "--dry-run") == 0
    assert "goes on from step 4 (train.steps was 4 and is 5; " in capsys.readouterr().out
    assert run(*words, "run.seed=5", "--dry-run") == 2


# --- input that does not fit --------------------------------------------------------------------

BEFORE_DATA = [
    ("loss.options.cc=1", "loss dsm has no option 'cc'"),
    ("loss.name=itc", "or 'ict'?"),
    ("loss.times.name=log_norml", "did you mean 'log_normal'"),
    ("loss.times.men=1", "did you mean 'mean'"),
    ("loss.target=emma", "did you mean 'ema'"),
    ("loss.name=cd", "teacher must be given"),
    ("loss.preset=cifar", "loss: preset of must be one of"),
    ("loss.label_dropout=0.1", "label_dropout needs labels"),
    ("network.name=mpl", "did you mean 'mlp'"),
    ("network.options.widht=3", "did you mean 'width'"),
    ("network.name=import:nowhere:Net", "module 'nowhere'"),
    ("network.name=import:torch.nn:Liner", "did you mean 'Linear'"),
    ("model.kind=emd", "did you mean 'edm'"),
    ("model.wrapper.secnd=1", "kind score has no option 'secnd'"),
    ("model.sigma_max=0.001", "sigma_min must be below sigma_max"),
    ("optimizer.name=adamww", "did you mean 'adamw'"),
    ("optimizer.options.beta=1", "did you mean 'betas'"),
    ("schedule.name=cosin", "did you mean 'cosine'"),
    ("schedule.options.lst=1", "did you mean 'last'"),
    ("averages.ema.dcay=1", "did you mean 'decay'"),
    ("averages.target.decay=0.5", "other than 'target'"),
    ("train.accumulate=3", "multiple of accumulate"),
    ("train.sharding=fsdp2", "train.sharding must be 'none' for one process"),
    ("run.device=gpu", "run.device must be"),
    ("run.device=cpu:1", "run.device must be"),
    ("teacher.path=nowhere", "there is none at nowhere"),
    ("init.path=teacher", "the model of teacher.path, which is not given"),
    ("init.path=nowhere", "there is none at nowhere"),
    ("sampling.sampler=heum", "did you mean 'heun'"),
    ("sampling.options.s_chrun=1", "did you mean 's_churn'"),
    ("sampling.average=emma", "sampling.average must be one of ema, network"),
    ("checkpoints.snapshots=5", "averages that have sigma_rel"),
    ("data.source=toy:two_mons", "did you mean 'two_moons'"),
    ("data.source=nowhere", "there is nothing at nowhere"),
    ("data.source=.", "data.size must be given"),
]


@pytest.mark.parametrize(("override", "text"), BEFORE_DATA)
def test_what_is_noticed_before_data_are_read(here, override, text, monkeypatch, capsys):
    def opened(keys):
        raise AssertionError("data were read")

    monkeypatch.setattr(train_run, "opened_data", opened)
    words = written("digits-score")
    for dry in ((), ("--dry-run",)):
        assert run(*words, "sampling.every=1", override, *dry) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
        assert error.startswith("cmsolvers train: ")
    assert [path.name for path in here.iterdir()] == ["digits-score.toml"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.part=test"], "data.part must be one of"),
        (["data.size=8"], "size is no option of data digits"),
        (["train.batch_size=2000"], "batch_size"),
        (["data.source=empty", "data.size=8"], "must hold pictures"),
        (["data.source=data.npy", "model.class_conditional=true"], "the data have no labels"),
        (["data.source=text.npy"], "npy"),
        (["loss.name=meanflow", "model.kind=auto"], "loss: times must give pairs of levels"),
    ],
)
def test_what_is_noticed_of_data(here, overrides, text, capsys):
    (here / "empty").mkdir()
    (here / "text.npy").write_text("no array")
    np.save("data.npy", noise.normal((24, 4, 4), 3).numpy())
    there = sorted(path.name for path in here.iterdir())
    assert run(*written("digits-score"), *overrides) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == sorted([*there, "digits-score.toml"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "CONFIG.toml must be given"),
        (["none.toml"], "there is none at none.toml"),
        (["train.steps=3"], "CONFIG.toml must come before"),
        (["--init", "digit"], "did you mean 'digits-"),
        (["c.toml", "--init", "toy"], "it takes no 'c.toml'"),
        (["."], "is a folder"),
    ],
)
def test_words_of_the_command_that_do_not_fit(words, text, capsys):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_words_after_options(here, capsys):
    words = written("digits-score")
    given = (words[0], "--quiet", *words[1:], "--seed", 5, "optimizer.lr=0.5", "--out", "a")
    assert run(*given, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "seed = 5" in text and 'out = "a"' in text and "lr = 0.5" in text
    with pytest.raises(SystemExit, match="2"):
        run(*words, "--unknown")


def test_the_template_is_printed(capsys):
    assert run("--init") == 0
    assert capsys.readouterr().out == template()
    assert run("--init", "digits-cd") == 0
    assert capsys.readouterr().out == template("digits-cd")
