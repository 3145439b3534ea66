"""Every recipe from plain settings, and what is said of settings that make no sense."""

import dataclasses
import inspect
import types
import warnings

import pytest
import torch

from cmsolvers import losses, noise
from cmsolvers.losses import Distribution, loss_table
from cmsolvers.losses.evaluation.decorator import loss as new_loss
from cmsolvers.runs.building import RECIPES, loss_of, needs_of, usual_kind
from cmsolvers.runs.building import loss_names as names
from cmsolvers.runs.building.recipe_losses import COMMON, own_options
from cmsolvers.training.model_wrappers import WRAPPERS
from cmsolvers.training.models import Model
from support.tiny_specs import SHAPE, samples, shaken, spec

NETWORKS = ["mlp", "unet", "diffusers:UNet2DModel", "diffusers:DiTTransformer2DModel"]
TOTAL = 100


def batch(labels=None, step=3, size=8):
    x0 = samples(size)
    return types.SimpleNamespace(
        x0=x0, key=noise.key(0, size), step=step, total=TOTAL, labels=labels
    )


def model_of(kind="edm", network="mlp", seed=1, **given):
    one = spec(kind, network, **given)
    net = shaken(one.build(0), seed).eval().requires_grad_(False)
    return Model(one, net, one.wrap(net), {})


def teacher_for(name, **given):
    needed = RECIPES[name].recipe.teacher == "required" or name == "reflow"
    return model_of(**given) if needed else None


def trained(name, network="mlp", options=None, labels=None, **given):
    """(loss, its output, the network) after one backward pass."""
    reads = {"classes": 3} if labels is not None else {}
    reads |= needs_of(name, options, reads.get("classes"))
    one = spec(given.pop("kind", usual_kind(name)), network, **reads)
    net = shaken(one.build(0))
    teacher = given.pop("teacher", None) or teacher_for(name, classes=reads.get("classes"))
    made = loss_of(name, one, TOTAL, options, teacher=teacher, **given)
    out = made(net, batch(labels))
    out.loss.backward()
    return made, out, net


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_from_its_name_alone(name):
    _, out, net = trained(name)
    assert out.loss.ndim == 0 and out.loss.isfinite() and out.per_sample.shape == (8,)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS[1:])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_every_network(name, network):
    _, out, net = trained(name, network)
    assert out.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("name", "network"), [("meanflow", "unet"), ("sct", NETWORKS[3])])
def test_derivatives_of_other_networks(name, network):
    _, out, _ = trained(name, network)
    assert out.loss.isfinite()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_with_labels(name):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    made, out, _ = trained(name, labels=labels, label_dropout=0.5)
    assert out.loss.isfinite() and 0 < int(out.diagnostics["labels_dropped"]) < 8
    with pytest.raises(ValueError, match="data must have labels for a model with classes = 3"):
        made(spec(made.spec.kind, classes=3).build(0), batch())


def test_the_loss_is_what_one_would_write_by_hand():
    one = spec("consistency")
    net, target, teacher = shaken(one.build(0)), shaken(one.build(0), 2), model_of()
    made = loss_of(
        "cd",
        one,
        TOTAL,
        {"distance": {"name": "pseudo_huber", "c": 0.03}, "solver": "euler"},
        times={"name": "log_normal_pairs", "count": 30, "rho": 5.0},
        teacher=teacher,
        target=one.wrap(target),
    )
    from cmsolvers.schedules import karras_sigmas

    grid = karras_sigmas(30, 0.002, 20.0, 5.0, append_zero=False)
    b = batch()
    expected = losses.cd(
        one.wrap(net),
        b.x0,
        key=b.key,
        step=3,
        teacher=teacher.function,
        target=one.wrap(target),
        times=losses.LogNormalPairs(grid),
        distance=losses.pseudo_huber(0.03),
        solver="euler",
    )
    assert torch.equal(made(net, b).per_sample, expected.per_sample)
    assert torch.equal(made(one.wrap(net), b).per_sample, expected.per_sample)  # or the model
    other = loss_of("cd", one, TOTAL, teacher=teacher, target=one.wrap(target))
    assert not torch.equal(other(net, b).per_sample, expected.per_sample)


# --- nothing is missing --------------------------------------------------------------------------


def public(kind):
    return {
        value
        for key in losses.__all__
        if isinstance(value := getattr(losses, key), type) and issubclass(value, kind)
    }


def test_every_public_recipe_has_a_name():
    assert set(RECIPES) == {one.recipe.name for one in loss_table.losses()}
    assert {usual_kind(name) for name in RECIPES} <= set(WRAPPERS)


def test_every_public_distribution_has_a_name():
    assert set(names.DISTRIBUTIONS.values()) == public(Distribution) - {Distribution}


TABLED = {
    "weights": (names.LEVEL_WEIGHTS | names.PAIR_WEIGHTS),
    "norms": names.DISTANCES,
    "tangents": names.TANGENTS,
}
NOT_OPTIONS = {
    "adaptive": "a formula that losses use, with their options p and eps",
    "cm_discretization": "a curriculum, of the distribution square_root_pairs",
    "cm_ema_rate": "a curriculum, of targets",
    "doubling_discretization": "a curriculum, of the distribution doubling_pairs",
    "loss": "the decorator",
}


def test_every_public_function_has_a_name():
    """Weights, norms, rules and halfway points: all functions that `losses` shows."""
    found = {
        key
        for key in losses.__all__
        if inspect.isfunction(getattr(losses, key)) and not hasattr(getattr(losses, key), "recipe")
    }
    tabled = {key for table in TABLED.values() for key in table}
    tabled |= {f"halfway_{key}" for key in names.HALFWAY}
    assert found - {"normalised"} == (tabled - {"normalised", "clamped"}) | NOT_OPTIONS.keys()


def test_every_option_of_every_recipe_has_a_converter():
    """Values that the options have by default, or that their kind allows, are taken."""
    numbers = {"float": 0.5, "int": 2, "str": "jvp", "bool": True}
    for name, recipe in RECIPES.items():
        for option, parameter in own_options(recipe).items():
            kinds = str(parameter.annotation).split(" | ")
            value = next((numbers[kind] for kind in kinds if kind in numbers), None)
            if option in ("noise", "null_args") or value is None or option == "solver":
                continue
            default = parameter.default
            plain = default if isinstance(default, (int, float, str)) else value
            one = spec(usual_kind(name), **needs_of(name, None, None))
            made = loss_of(name, one, TOTAL, {option: plain}, teacher=teacher_for(name))
            assert made.options[option] == plain, (name, option)


TABLES = {
    "times": [("dsm", key) for key in names.DISTRIBUTIONS],
    "weight": [
        *(("dsm", key) for key in names.LEVEL_WEIGHTS),
        *(("ict", key) for key in names.PAIR_WEIGHTS),
        ("sct", "learned"),
        ("lsd", "learned"),
        ("ict", "none"),
    ],
    "distance": [("ict", key) for key in names.DISTANCES if key != "lpips_distance"],
    "square": [("meanflow", key) for key in names.NORMS],
    "tangent": [("sct", key) for key in names.TANGENTS],
    "alpha": [("alpha_flow", key) for key in names.SCHEDULES],
    "ratio": [("soflow", key) for key in names.SCHEDULES],
    "matching": [("tvm", "logit_normal")],
    "denoising": [("ctm", "log_normal")],
    "denoising_weight": [("ctm", key) for key in names.LEVEL_WEIGHTS],
    "prior": [("sct", "inverse_tangent")],
    "halfway": [("progressive_distillation", key) for key in names.HALFWAY],
    "balance": [("ctm", "adaptive"), ("ctm", 0.5)],
    "segments": [("mcd", 3), ("mcd", [1.0, 0.5, 0.0])],
    "solver": [("cd", "euler"), ("cd", "heun")],
    "derivative": [("meanflow", "finite_difference")],
    "clip": [("shortcut", "none"), ("shortcut", 2.0)],
}
CASES = [(option, *case) for option, cases in TABLES.items() for case in cases if option != "times"]


@pytest.mark.parametrize(("option", "name", "value"), CASES)
def test_options_by_name(option, name, value):
    _, out, net = trained(name, options={option: value})
    assert out.loss.isfinite()
    if value == "learned":
        assert any(p.grad.any() for p in net.loss_weight.parameters())


@pytest.mark.parametrize("key", names.DISTRIBUTIONS)
def test_distributions_by_name(key):
    one = spec("edm", sigma_min=0.01, sigma_max=10.0)
    times = loss_of("dsm", one, TOTAL, times=key).times
    assert type(times) is names.DISTRIBUTIONS[key]
    drawn = times.sample(1000, 0, draw=99)
    t = drawn[0] if isinstance(drawn, tuple) else drawn
    assert t.isfinite().all()
    own = {field.name for field in dataclasses.fields(times)}
    if "sigma_max" in own and key != "angle_pairs":
        assert times.sigma_max == 10.0 and t.max() <= 10.0
    if "total" in own:
        assert times.total == TOTAL
    if key in names.FROM_GRIDS:
        assert times.sigmas[0] == 10.0 and times.sigmas[-1] == 0.01 and len(times.sigmas) == 40


def test_levels_of_the_run_are_filled_in():
    given = {"sigma_min": 0.01, "sigma_max": 10.0, "sigma_data": 0.3}
    made = loss_of("ict", spec("consistency", **given), TOTAL)
    times = made.times
    assert (times.total, times.sigma_min, times.sigma_max) == (TOTAL, 0.01, 10.0)
    assert loss_of("dsm", spec("edm", **given), TOTAL).options["sigma_data"] == 0.3
    own = loss_of(
        "ict",
        spec("consistency", **given),
        TOTAL,
        times={"name": "doubling_pairs", "total": 50, "sigma_max": 5.0},
    ).times
    assert (own.total, own.sigma_min, own.sigma_max) == (50, 0.01, 5.0)
    pairs = loss_of("ect", spec("consistency"), TOTAL, times={"name": "ect_pairs", "stages": 8})
    assert pairs.times.stage_steps == 13
    assert loss_of("alpha_flow", spec("average_velocity"), TOTAL).options["total"] == TOTAL
    assert loss_of("sct", spec("trigflow"), TOTAL).options["warmup"] == 20
    assert loss_of("sct", spec("trigflow"), TOTAL, {"warmup": 7}).options["warmup"] == 7
    assert loss_of("sct", spec("trigflow"), TOTAL, {"warmup": "none"}).options["warmup"] is None
    shared = loss_of("shortcut", spec("average_velocity"), TOTAL, {"share": 0.5})
    assert shared.times.share == 0.5 == shared.options["share"]


def test_levels_stay_where_the_teacher_has_some():
    """At t = 1 of a flow nothing is left of the data: a teacher of EDM has no such level."""
    one = spec("average_velocity")
    karras = loss_of("mcd", one, TOTAL, teacher=model_of(sigma_max=9.0)).times
    assert karras.largest == pytest.approx(0.9)
    assert loss_of("mcd", one, TOTAL, teacher=model_of("flow")).times.largest == 1.0


def test_published_settings_by_name():
    made = loss_of("meanflow", spec("average_velocity"), TOTAL, preset="cifar")
    assert isinstance(made.times, losses.LogitNormalEnds) and made.options["p"] == 0.75
    own = loss_of("meanflow", spec("average_velocity"), TOTAL, {"p": 0.5}, preset="cifar")
    assert own.options == {"p": 0.5, "eps": 1e-3}
    with pytest.raises(ValueError, match=r"preset of meanflow must be.*'cifar'"):
        loss_of("meanflow", spec("average_velocity"), TOTAL, preset="cfar")
    with pytest.raises(ValueError, match="preset of"):
        loss_of("dsm", spec("edm"), TOTAL, preset="cifar")


# --- labels and guidance -------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
GUIDANCE = [
    ("flow_matching", {"omega": 1.5}),
    ("meanflow", {"omega": 1.0, "kappa": 0.5, "interval": [0.0, 0.8]}),
    ("soflow", {"name": "mixed", "scale": 2.0, "mix": 0.5}),
    ("imf", {"largest": 4.0}),
    ("tvm", {"scale": 2.0}),
    ("lcm", [3.0, 5.0]),
]


@pytest.mark.parametrize(("name", "guidance"), GUIDANCE)
def test_guidance(name, guidance):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, guided, _ = trained(
            name, options={"guidance": guidance}, labels=LABELS, label_dropout=0.25
        )
    plain = {"lcm": {"guidance": "none"}}.get(name)
    _, free, _ = trained(name, options=plain, labels=LABELS, label_dropout=0.25)
    assert guided.loss.isfinite() and not torch.equal(guided.per_sample, free.per_sample)


def test_a_teacher_without_classes_gets_no_labels():
    teacher = model_of()
    _, out, _ = trained("cd", labels=LABELS, teacher=teacher)
    assert out.loss.isfinite()


def test_a_guided_teacher():
    """Of scale w: D_u + w (D_c - D_u), with the label that says nothing for D_u."""
    teacher = model_of(classes=3)
    x, null = samples(8), torch.full((8,), 3)
    made, out, _ = trained("cd", labels=LABELS, teacher=teacher, teacher_guidance=2.5)
    with_label = teacher.function(x, 0.7, labels=LABELS)
    without = teacher.function(x, 0.7, labels=null)
    torch.testing.assert_close(
        made.teacher_function(x, 0.7, labels=LABELS),
        without + 2.5 * (with_label - without),
        rtol=1e-4,
        atol=1e-5,
    )
    _, plain, _ = trained("cd", labels=LABELS, teacher=teacher)
    assert not torch.equal(out.per_sample, plain.per_sample)
    one = spec("consistency")
    with pytest.raises(ValueError, match="teacher_guidance needs a teacher with labels"):
        loss_of("cd", one, TOTAL, teacher=model_of(), teacher_guidance=2.0)
    with pytest.raises(ValueError, match="teacher_guidance must be 1 without a teacher"):
        loss_of("ict", one, TOTAL, teacher_guidance=2.0)
    told = spec("consistency", classes=3, inputs=["w"])
    with pytest.raises(ValueError, match="where the loss guides it itself; got 2"):
        loss_of("lcm", told, TOTAL, teacher=teacher, teacher_guidance=2.0)


@pytest.mark.parametrize(("name", "guidance"), GUIDANCE)
def test_guidance_needs_labels(name, guidance):
    one = spec(usual_kind(name), inputs=("w", "omega", "t_min", "t_max"))
    with pytest.raises((TypeError, ValueError), match="labels"):
        made = loss_of(name, one, TOTAL, {"guidance": guidance}, teacher=teacher_for(name))
        made(one.build(0), batch())


def test_guidance_that_the_network_reads_must_be_an_input():
    with pytest.raises(ValueError, match="network must read 'w', which the loss hands to it"):
        loss_of("lcm", spec("consistency", classes=3), TOTAL, teacher=model_of(classes=3))
    with pytest.raises(ValueError, match="network must read 'omega'"):
        loss_of("imf", spec("velocity_heads", classes=3), TOTAL, {"guidance": {"largest": 3.0}})


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("ict", {"distanc": "norm"}, TypeError, "loss ict has no option 'distanc'.*'distance'"),
        ("ict", {"distance": "huber"}, ValueError, "distance must be one of.*'pseudo_huber'"),
        ("ict", {"distance": {"name": "norm", "c": 3.0}}, TypeError, "distance norm has no opti"),
        ("ict", {"distance": {"name": "pseudo_huber", "c": -1.0}}, ValueError, "c must"),
        ("ict", {"distance": {"c": 1.0}}, TypeError, "distance must have a name"),
        ("ict", {"distance": 3}, TypeError, "distance must be a name or a table"),
        ("ict", {"weight": "edm_weight"}, ValueError, "weight must be one of inverse_gap, one"),
        ("meanflow", {"p": "much"}, TypeError, "p must be float; got 'much'"),
        ("meanflow", {"p": True}, TypeError, "p must be float"),
        ("meanflow", {"p": float("nan")}, ValueError, "p must be a number; got nan"),
        ("meanflow", {"full_precision": 1}, TypeError, "full_precision must be"),
        ("sct", {"weight": "edm_weight"}, ValueError, "weight must be 'learned' or 'none'"),
        ("sct", {"weight": "learned"}, ValueError, "learned_weight of the spec must be 1"),
        ("psd", {"weight": "learned"}, ValueError, "learned_weight of the spec must be 2"),
        ("sct", {"tangent": "clampd"}, ValueError, "did you mean 'clamped'"),
        ("ect", {"solver": "rk4"}, ValueError, "solver"),
        ("reflow", {"noise": 3}, TypeError, "noise must be left out"),
        ("dms", {}, ValueError, "loss must be one of.*did you mean 'dsm'"),
        ("tvm", {"guidance": {"scale": -1.0}}, ValueError, "labels|scale"),
    ],
)
def test_options_that_make_no_sense(name, options, error, text):
    kind = usual_kind(name) if name in RECIPES else "edm"
    with pytest.raises(error, match=text):
        loss_of(name, spec(kind), TOTAL, options)


@pytest.mark.parametrize(
    ("times", "error", "text"),
    [
        ("log_norml", ValueError, "did you mean 'log_normal'"),
        ({"name": "log_normal", "men": 1.0}, TypeError, "did you mean 'mean'"),
        ({"name": "log_normal", "std": -1.0}, ValueError, "times log_normal: std must"),
        ({"name": "ect_pairs", "stages": 2, "stage_steps": 2}, TypeError, "got both"),
        ({"name": "truncated_pairs", "gap": "log_normal"}, ValueError, "gap must be ect_pairs"),
        ("import:support.no_such:Thing", ImportError, "support.no_such"),
    ],
)
def test_times_that_make_no_sense(times, error, text):
    with pytest.raises(error, match=text):
        loss_of("dsm", spec("edm"), TOTAL, times=times)


def test_teachers_are_checked():
    with pytest.raises(ValueError, match="teacher must be given for the loss cd"):
        loss_of("cd", spec("consistency"), TOTAL)
    with pytest.raises(ValueError, match="teacher must be given for the loss reflow"):
        loss_of("reflow", spec("flow"), TOTAL)
    with pytest.raises(ValueError, match="teacher must be left out: the loss ict takes none"):
        loss_of("ict", spec("consistency"), TOTAL, teacher=model_of())
    with pytest.raises(ValueError, match=r"teacher must be of the model's shape, \[3, 8, 8\]"):
        loss_of("cd", spec("consistency"), TOTAL, teacher=model_of(shape=(3, 4, 4)))


def test_label_dropout_is_checked():
    with pytest.raises(ValueError, match="label_dropout needs labels, one of which says nothing"):
        loss_of("dsm", spec("edm"), TOTAL, label_dropout=0.1)
    with pytest.raises(ValueError, match="null_label = False"):
        loss_of("dsm", spec("edm", classes=3, null_label=False), TOTAL, label_dropout=0.1)
    with pytest.raises(ValueError, match="label_dropout"):
        loss_of("dsm", spec("edm", classes=3), TOTAL, label_dropout=1.5)
    with pytest.raises(ValueError, match="bad_rows"):
        loss_of("dsm", spec("edm"), TOTAL, bad_rows="skip")


@new_loss(
    identity="score",
    source="a test",
    times=losses.LogNormal(),
    coordinates="karras",
    model="denoiser",
)
def own_loss(at, *, factor: float = 1.0, shift=0.0, off: int | None = None):
    """Of a user.

    Args:
        factor: of the square.
        shift: is added.
        off: is not read.
    """
    (x,) = at.states(at.t)
    return shift + factor * (at.student.clean(x) - at.x0).square_sum()


def test_a_loss_of_the_user():
    name = f"import:{__name__}:own_loss"
    one, net = spec("edm"), shaken(spec("edm").build(0))
    once = loss_of(name, one, TOTAL)(net, batch())
    twice = loss_of(name, one, TOTAL, {"factor": 2.0, "shift": 1.0, "off": "none"})(net, batch())
    torch.testing.assert_close(twice.per_sample, 1.0 + 2.0 * once.per_sample)
    with pytest.raises(TypeError, match="did you mean 'factor'"):
        loss_of(name, one, TOTAL, {"facto": 2.0})
    with pytest.raises(TypeError, match=r"must be made by `cmsolvers\.losses\.loss`"):
        loss_of(f"import:{__name__}:batch", one, TOTAL)


def test_common_parameters_are_those_of_all_losses():
    """What `loss_of` takes beside options is what the decorator gives every loss."""

    @new_loss(
        identity="score",
        source="a test",
        times=losses.LogNormal(),
        coordinates="karras",
        model="denoiser",
    )
    def nothing(at):
        """Nothing."""
        return at.x0.flatten(1).sum(1)

    assert tuple(inspect.signature(nothing).parameters) == COMMON


def test_shape_of_samples():
    assert samples().shape[1:] == SHAPE
