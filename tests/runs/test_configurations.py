"""Configurations: the template, files, overrides, and what is said of wrong ones."""

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmsolvers.runs.config import (
    Config,
    changes,
    config_text,
    overridden,
    preset,
    presets,
    read_config,
    template,
    toml_value,
)
from cmsolvers.runs.config.config_keys import key_of
from cmsolvers.runs.config.data_keys import Data
from cmsolvers.runs.config.sections import SECTIONS
from cmsolvers.runs.train.data_outline import OWN
from cmsolvers.training.data import array_file, arrow_folder, digits, image_folder, toys

NAMES = [None, *presets()]


def of(name):
    return Config() if name is None else preset(name)


# --- the template -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_template_is_the_configuration(name):
    assert Config.of(tomllib.loads(template(name))) == of(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_template_has_every_key_once_and_says_something_of_each(name):
    text = template(name)
    for section, kind in SECTIONS.items():
        part = re.search(rf"^\[{section}\]\n(.*?)(\n\n|\Z)", text, re.S | re.M)[1]
        for field in dataclasses.fields(kind):
            assert len(re.findall(rf"^(?:# )?{field.name} = ", part, re.M)) == 1
            first = key_of(field).text.split()[:3]
            assert "# " + " ".join(first) in part
    assert max(map(len, text.splitlines())) <= 150


def test_the_examples_of_unset_keys_are_values_that_they_may_have():
    plain = tomllib.loads(template())
    unset = re.findall(r"^\[(\w+)\]|^# (\w+) = (.*)$", template(), re.M)
    section, count = "", 0
    for head, key, value in unset:
        section = head or section
        if head:
            continue
        assert key not in plain[section]
        made = Config.of({section: tomllib.loads(f"{key} = {value}")})
        assert made != Config()
        count += 1
    assert count > 20


def test_an_unknown_preset():
    with pytest.raises(ValueError, match=r"got 'digits-scor' \(did you mean 'digits-score'"):
        template("digits-scor")


def test_keys_of_data_are_the_options_of_all_kinds_of_data():
    options = set()
    for kind, given_by_name in ((digits, 0), (toys, 1), (array_file, 1), (image_folder, 1)):
        options |= set(list(inspect.signature(kind).parameters)[given_by_name:])
    options |= set(list(inspect.signature(arrow_folder).parameters)[1:])
    keys = {field.name for field in dataclasses.fields(Data)} - set(OWN)
    assert options - keys <= {"seed"}  # a toy's, which is not the run's
    assert keys <= options


# --- TOML ---------------------------------------------------------------------------------------

values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(values)
def test_values_come_back_from_toml(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_comes_back_from_its_text(name):
    config = of(name)
    text = config_text(config, {"network.name": "mlp", "model.sigma_max": 20.0})
    assert Config.of(tomllib.loads(text)) == config
    assert "# sigma_max: 20.0" in text or config.model.sigma_max is not None


def test_toml_has_no_form_for_other_things():
    with pytest.raises(TypeError, match="cannot hold"):
        toml_value(object())


# --- what is wrong with a file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"trian": {}}, "there is no section 'trian' (did you mean 'train'"),
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"steps": 4}, "'steps' is in none (did you mean train.steps or sampling.steps?)"),
        ({"train": {"lr": 1e-3}}, "there is no key train.lr (did you mean optimizer.lr?)"),
        ({"train": {"stpes": 1}}, "there is no key train.stpes (did you mean 'steps'?)"),
        ({"train": {"sigma_mx": 1}}, "did you mean model.sigma_max"),
        ({"loss": {"c": 1}}, "an option of the loss's own is loss.options.c"),
        ({"train": 5}, "train must be a section, [train]; got 5"),
        ({"train": {"steps": "many"}}, "train.steps must be an integer; got 'many'"),
        ({"train": {"steps": 1.5}}, "train.steps must be an integer; got 1.5"),
        ({"train": {"steps": True}}, "train.steps must be an integer; got true"),
        ({"train": {"steps": 0}}, "train.steps must be 1 to 1e+12; got 0"),
        ({"train": {"steps": 10**13}}, "train.steps must be 1 to 1e+12; got 10000000000000"),
        ({"run": {"seed": -1}}, "run.seed must be at least 0; got -1"),
        ({"train": {"precision": "bf17"}}, "got 'bf17' (did you mean 'bf16'"),
        ({"data": {"size": [1, 2, 3]}}, "data.size must be an integer or a list of integers"),
        ({"data": {"size": [0, 2]}}, "data.size must be 1 to 65536; got 0"),
        ({"data": {"flip": 1}}, "data.flip must be true or false or 'none'; got 1"),
        ({"data": {"source": 5}}, "data.source must be a text; got 5: write it in quotes"),
        ({"data": {"source": ""}}, "data.source must not be empty"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr must be a finite number; got nan"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr must be a finite number"),
        ({"optimizer": {"lr": 0.0}}, "optimizer.lr must be above 0; got 0.0"),
        ({"loss": {"label_dropout": 1.5}}, "loss.label_dropout must be 0 to 1; got 1.5"),
        ({"loss": {"times": 4}}, "loss.times must be a text or a table"),
        ({"model": {"inputs": [1]}}, "model.inputs must be a list of texts"),
        ({"sampling": {"levels": ["a"]}}, "sampling.levels must be a list of numbers"),
        ({"sampling": {"levels": [1, -1]}}, "sampling.levels must be above 0; got -1.0"),
        ({"averages": {"ema": 0.9}}, "averages.ema must be a table such as {decay = 0.999}"),
    ],
)
def test_tables_that_make_no_configuration(tables, text):
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        Config.of(tables)


def test_none_unsets_a_key_that_may_be_unset():
    assert Config.of({"data": {"size": "none"}, "init": {"path": "none"}}) == Config()
    with pytest.raises(TypeError, match=r"train\.steps must be an integer"):
        Config.of({"train": {"steps": "none"}})


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "is empty: `cmsolvers train --init"),
        (b"# nothing\n", "is empty"),
        (b"[train]\nsteps = \n", r"must be TOML; .*line 2, column 9"),
        (b"[train]\nsteps = 1\nsteps = 2\n", "must be TOML; .*line 3"),
        (b"[train]\n# \xff\n", "must be UTF-8; line 2 is not"),
        (b"PK\x03\x04\x00", "must be TOML"),
        (b"[trian]\n", "no section 'trian'"),
    ],
)
def test_files_that_hold_none(tmp_path, raw, text):
    path = tmp_path / "c.toml"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=text) as caught:
        read_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none at"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_config(tmp_path)
    (tmp_path / "config.toml").write_text("[train]\nsteps = 3\n")
    with pytest.raises(IsADirectoryError, match=r"it holds .*config\.toml"):
        read_config(tmp_path)
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 3\r\n")
    assert read_config(tmp_path / "bom.toml").train.steps == 3


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("loss.name=ict", "ict"),
        ('loss.name="ict"', "ict"),
        ("loss.times.mean=-1.1", {"mean": -1.1}),
        ("loss.times=log_normal", "log_normal"),
        ('loss.times={name="log_normal", std=2.0}', {"name": "log_normal", "std": 2.0}),
        ("loss.options.distance.c=0.03", {"distance": {"c": 0.03}}),
        ("train.steps=100", 100),
        ("train.steps = 1_000", 1000),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=1.", 1.0),
        ("optimizer.lr=.5", 0.5),
        ("data.size=[16, 24]", (16, 24)),
        ("data.size=none", None),
        ("data.source=2024-01-01", "2024-01-01"),
        ("data.source=images/a=b", "images/a=b"),
        ("data.labels=false", False),
        ("data.labels=labels.npy", "labels.npy"),
        ("logging.csv=false", False),
    ],
)
def test_overrides(text, value):
    section, key = text.partition("=")[0].strip().split(".")[:2]
    assert getattr(getattr(Config.of(overridden({}, [text])), section), key) == value


def test_later_overrides_win_and_names_become_tables(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[loss]\ntimes = "log_normal"\n[averages]\nema = {decay = 0.9}\n')
    given = ["loss.times.mean=-1.0", "loss.times.mean=-2.0", "averages.wide.sigma_rel=0.1"]
    made = read_config(path, given)
    assert made.loss.times == {"name": "log_normal", "mean": -2.0}
    assert made.averages == {"ema": {"decay": 0.9}, "wide": {"sigma_rel": 0.1}}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("steps=3", "did you mean train.steps or sampling.steps?"),
        ("trian.steps=3", "there is no section 'trian' (did you mean 'train'"),
        ("train=5", "train is a section"),
        ("train.stpes=5", "did you mean 'steps'"),
        ("train.steps.a=1", "train.steps is no table"),
        ("foo", "section.key=value"),
        ("=3", "section.key=value"),
        ("train.=3", "section.key=value"),
        ("train.steps=", "there must be a value after ="),
        ("loss.times={name=", "is no TOML"),
        ("train.steps=1\nbatch_size=2", "there must be one value"),
        ("train.steps=many", "train.steps must be an integer; got 'many'"),
    ],
)
def test_overrides_that_do_not_fit(text, error):
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        Config.of(overridden({}, [text]))


# --- changes ------------------------------------------------------------------------------------


def test_what_has_changed():
    before = preset("digits-score")
    given = ["train.steps=9", "loss.name=ict", "model.sigma_max=30", "averages.a.decay=0.5"]
    now = Config.of(overridden(before.tables(), given))
    found = {one.key: one for one in changes(before, now)}
    assert list(found) == ["model.sigma_max", "loss.name", "train.steps", "averages"]
    assert [one.allowed for one in found.values()] == [False, False, True, False]
    assert str(found["model.sigma_max"]) == "model.sigma_max was unset and is 30.0"
    assert changes(before, before) == []


def test_what_a_run_may_go_on_with():
    free = {
        f"{name}.{field.name}"
        for name, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if key_of(field).changes
    }
    assert {"train.steps", "checkpoints.every", "data.workers", "run.device", "run.out"} <= free
    # What decides the samples and the weights of steps that were done.
    fixed = {"run.seed", "train.batch_size", "loss.name", "loss.options", "network.name"}
    assert not fixed & free


def test_docs_name_every_section():
    page = Path(__file__).parents[2] / "docs" / "training.md"
    text = page.read_text(encoding="utf-8")
    for name in Config().tables():
        assert f"`[{name}]`" in text
