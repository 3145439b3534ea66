"""Folders of diffusers, written and read; what their schedulers say, compared with ours."""

import json

import diffusers
import pytest
import torch

from cmsolvers.training.diffusers_schedulers import described
from cmsolvers.training.models import Model, export_network, load_model
from support.tiny_specs import OPTIONS, SHAPE, samples, shaken, spec

LABELS = torch.tensor([0, 1, 2, 2])
CLASSES = {
    "unet": diffusers.UNet2DModel,
    "diffusers:UNet2DModel": diffusers.UNet2DModel,
    "diffusers:UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "diffusers:DiTTransformer2DModel": diffusers.DiTTransformer2DModel,
}


def model_of(kind="edm", network="unet", **given):
    one = spec(kind, network, **given)
    net = shaken(one.build(0)).eval().requires_grad_(False)
    return Model(one, net, one.wrap(net), {})


@pytest.mark.parametrize("reads", ["plain", "labels", "two times and labels"])
@pytest.mark.parametrize("network", CLASSES)
def test_a_network_goes_to_diffusers_and_back_to_the_bit(network, reads, tmp_path):
    kind = "average_velocity" if reads.startswith("two") else "edm"
    given = {} if reads == "plain" else {"classes": 3}
    model = model_of(kind, network, **given)
    export_network(model, tmp_path / "out")
    theirs = CLASSES[network].from_pretrained(tmp_path / "out").state_dict()
    ours = model.network.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    found = load_model(tmp_path / "out")
    assert found.spec == model.spec
    x, labels = samples(), {"labels": LABELS} if given else {}
    assert torch.equal(found.function(x, 0.7, **labels), model.function(x, 0.7, **labels))
    assert not found.network.training
    with pytest.raises(FileExistsError, match="new or empty folder"):
        export_network(model, tmp_path / "out")


def test_an_exported_network_answers_in_diffusers_what_it_answers_here(tmp_path):
    model = model_of("edm", "diffusers:DiTTransformer2DModel", classes=3)
    export_network(model, tmp_path / "out")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out").eval()
    x, time = samples(), torch.tensor([-0.4, 0.1, 0.3, 0.9])
    made = theirs(x, timestep=time * 250.0, class_labels=LABELS).sample
    assert torch.equal(made, model.network(x, time, labels=LABELS))


def test_networks_of_other_kinds_are_not_exported(tmp_path):
    with pytest.raises(TypeError, match="must have a network 'unet' or"):
        export_network(model_of(network="mlp"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- pipelines -----------------------------------------------------------------------------------


def pipeline(folder, scheduler, network="diffusers:UNet2DModel", **given):
    """A pipeline folder with random weights, as diffusers writes it."""
    model = shaken(spec("edm", network, **given).build(0)).eval().model
    part = "transformer" if "DiT" in network else "unet"
    model.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__}
    index |= {part: ["diffusers", type(model).__name__], "scheduler": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return model


CHAINS = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "short": {"num_train_timesteps": 100, "beta_end": 0.1},
    "betas": {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.3]},
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_step_of_ddim_is_that_of_diffusers(chain, prediction, tmp_path):
    """x_0 and the next state, of diffusers' own scheduler in its own arithmetic, float32."""
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, **CHAINS[chain]
    )
    unet = pipeline(tmp_path, scheduler).requires_grad_(False)
    found = load_model(tmp_path)
    process = found.function._scalings.process
    steps = scheduler.config.num_train_timesteps
    for t in {steps - 1, steps // 2}:
        alpha, sigma = float(process.alpha(float(t))), float(process.sigma(float(t)))
        x_t = samples() * alpha + sigma * samples(seed=1) * 2.0
        scheduler.set_timesteps(steps)
        step = scheduler.step(unet(x_t, torch.tensor(t)).sample, t, x_t)
        clean = found.function(x_t / alpha, sigma / alpha)
        size = float(step.pred_original_sample.abs().max())
        torch.testing.assert_close(clean, step.pred_original_sample, rtol=0, atol=2e-4 * size)
        low = float(process.sigma(t - 1.0)) / float(process.alpha(t - 1.0))
        y = clean + low / (sigma / alpha) * (x_t / alpha - clean)
        size = float(step.prev_sample.abs().max())
        torch.testing.assert_close(
            y * float(process.alpha(t - 1.0)), step.prev_sample, rtol=0, atol=2e-4 * size
        )


def test_another_prediction_would_be_noticed(tmp_path):
    """The comparison above fails where the folder's prediction type is read wrongly."""
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    unet = pipeline(tmp_path, scheduler)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"prediction_type": "epsilon"}
    path.write_text(json.dumps(config))
    found = load_model(tmp_path)
    t, x_t = 500, samples()
    process = found.function._scalings.process
    alpha, sigma = float(process.alpha(500.0)), float(process.sigma(500.0))
    scheduler.set_timesteps(1000)
    expected = scheduler.step(unet(x_t, torch.tensor(t)).sample, t, x_t).pred_original_sample
    assert (found.function(x_t / alpha, sigma / alpha) - expected).abs().max().item() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_that_of_diffusers(prediction, tmp_path):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction)
    unet = pipeline(tmp_path, scheduler)
    found = load_model(tmp_path)
    x, sigma = samples() * 6.0, 3.0
    time = scheduler.precondition_noise(sigma)
    made = unet(scheduler.precondition_inputs(x, sigma), time).sample
    expected = scheduler.precondition_outputs(x, made, sigma)
    torch.testing.assert_close(found.function(x, sigma), expected, rtol=1e-5, atol=1e-5)
    assert (found.spec.sigma_min, found.spec.sigma_max) == (0.002, 80.0)


def test_a_flow_is_that_of_diffusers(tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    unet = pipeline(tmp_path, scheduler)
    found = load_model(tmp_path)
    scheduler.set_timesteps(10)
    x, t, s = samples(), float(scheduler.sigmas[3]), float(scheduler.sigmas[4])
    time = scheduler.timesteps[3]
    expected = scheduler.step(unet(x, time).sample, time, x).prev_sample
    clean = found.function(x, t)
    torch.testing.assert_close(clean + s / t * (x - clean), expected, rtol=1e-5, atol=1e-5)


def test_consistency_models_are_those_of_diffusers(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler()
    unet = pipeline(tmp_path, scheduler)
    found = load_model(tmp_path)
    scheduler.set_timesteps(timesteps=[22, 0])
    time = scheduler.timesteps[0]
    sigma = float(scheduler.sigmas[0])
    x = samples() * 2.0 * sigma
    made = unet(scheduler.scale_model_input(x, time), time).sample
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition(torch.tensor(sigma))
    torch.testing.assert_close(
        found.function(x, sigma), c_skip * x + c_out * made, rtol=1e-4, atol=1e-4
    )


def test_a_transformer_of_labels_that_learns_its_variance(tmp_path):
    network = "diffusers:DiTTransformer2DModel"
    options = {"out_channels": 6}
    dit = pipeline(tmp_path, diffusers.DDIMScheduler(), network, classes=3, options=options)
    found = load_model(tmp_path)
    assert found.spec.classes == 3 and found.spec.null == 3 and found.spec.shape == SHAPE
    x_t, t = samples(), torch.full((4,), 400)
    eps = dit(x_t, timestep=t, class_labels=LABELS).sample[:, :3]
    process = found.function._scalings.process
    alpha, sigma = float(process.alpha(400.0)), float(process.sigma(400.0))
    made = found.function(x_t / alpha, sigma / alpha, labels=LABELS)
    torch.testing.assert_close(made, (x_t - sigma * eps) / alpha, rtol=1e-3, atol=1e-3)


def test_pixels_have_a_scale(tmp_path):
    pipeline(tmp_path, diffusers.DDPMScheduler())
    scale = load_model(tmp_path).about["scale"]
    assert [(p - scale["mean"]) / scale["std"] * 0.5 for p in (0.0, 255.0)] == [-1.0, 1.0]


# --- errors --------------------------------------------------------------------------------------


def test_weights_that_are_pickled_are_refused(tmp_path):
    unet = pipeline(tmp_path, diffusers.DDPMScheduler())
    torch.save(unet.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="must hold safetensors of a UNet2DModel"):
        load_model(tmp_path)


def test_a_model_without_a_scheduler_needs_a_kind(tmp_path):
    unet = pipeline(tmp_path, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="give the kind of model, such as"):
        load_model(tmp_path / "unet")
    found = load_model(tmp_path / "unet", kind="flow")
    x, time = samples(), torch.full((4,), 0.25)
    assert torch.equal(found.network(x, time), unet(x, time)[0])  # time_scale 1, as for any kind
    assert found.spec.kind == "flow"
    with pytest.raises(ValueError, match="average must be left out"):
        load_model(tmp_path, "ema")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "scheduler must be of a chain.*ScoreSdeVe"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule must be"),
        (
            {"_class_name": "X", "beta_schedule": "linear", "prediction_type": "velocity"},
            "prediction_type",
        ),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type"),
        ({"_class_name": "X", "beta_schedule": "linear", "num_train_timesteps": 0}, "num_train"),
    ],
)
def test_schedulers_that_are_not_known(config, text):
    with pytest.raises(ValueError, match=text):
        described(config)


def test_models_that_are_not_known(tmp_path):
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model must be one of UNet2DModel.*got AutoencoderKL"):
        load_model(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": 1}))
    with pytest.raises(ValueError, match="must have a unet or a transformer"):
        load_model(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json must be JSON"):
        load_model(tmp_path)


def test_sizes_must_be_known(tmp_path):
    pipeline(tmp_path, diffusers.DDPMScheduler())
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    with pytest.raises(ValueError, match="must have a sample_size; got None"):
        load_model(tmp_path)


def test_options_used_here_exist_in_diffusers():
    assert set(CLASSES) <= set(OPTIONS)
