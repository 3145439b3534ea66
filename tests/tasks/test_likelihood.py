"""Log-likelihood against exact densities, exact traces, error bars that hold, and bad input."""

import math

import pytest
import torch

from cmsolvers import denoisers, noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine.adaptive import SolverError
from cmsolvers.tasks.likelihood import bits_per_dim, log_likelihood

F64 = torch.float64
SIGMAS = [80.0, 0.05]
MIXTURE = GaussianMixture(
    torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1)),
    [0.3, 0.5, 0.4],
    [0.2, 0.5, 0.3],
)


def points(n=6, shape=(2, 2)):
    return noise.normal((n, *shape), 3, dtype=F64)


def exact_prior(x):
    return MIXTURE.log_density(x, SIGMAS[0])


def likelihood(x, model=MIXTURE, **options):
    options = {"prior": exact_prior, "rtol": 1e-5, "atol": 1e-6, **options}
    return log_likelihood(model, x, SIGMAS, **options)


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_exact_trace_gives_the_exact_density(derivative):
    x = points()
    got = likelihood(x, trace="exact", derivative=derivative, rtol=1e-7, atol=1e-8)
    wrong = (got.log_density - MIXTURE.log_density(x, SIGMAS[1])) / 4
    assert wrong.abs().max() < 5e-6  # nats a dimension
    default = log_likelihood(MIXTURE, x, SIGMAS, trace="exact", prior=exact_prior)
    wrong = (default.log_density - MIXTURE.log_density(x, SIGMAS[1])) / 4
    assert wrong.abs().max() < 1e-4
    assert torch.equal(got.standard_error, torch.zeros(6, dtype=F64))
    assert got.log_density.dtype == F64 and got.latent.shape == x.shape
    assert bool((got.nfe > 0).all())


def test_a_wrong_model_fails():
    off = GaussianMixture(MIXTURE.means * 1.01, MIXTURE.stds, MIXTURE.weights)
    got = likelihood(points(), off, trace="exact")
    wrong = (got.log_density - MIXTURE.log_density(points(), SIGMAS[1])) / 4
    assert wrong.abs().max() > 1e-3


def test_the_default_prior_is_the_wide_gaussian():
    data = Gaussian(0.5)
    x = 0.5 * points()
    got = log_likelihood(data, x, SIGMAS, trace="exact", rtol=1e-8, atol=1e-9)
    ratio = math.sqrt((0.25 + 80.0**2) / (0.25 + 0.05**2))
    torch.testing.assert_close(got.latent, x * ratio, rtol=1e-6, atol=1e-6)
    flat = got.latent.flatten(1)
    first = -0.5 * (flat.square().sum(1) / 6400 + 4 * math.log(2 * math.pi * 6400))
    torch.testing.assert_close(got.log_density, first + 4 * math.log(ratio), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_probes_lie_within_their_error_bars(trace):
    x = points(64)
    got = likelihood(x, trace=trace, probes=48, seed=1, rtol=1e-4, atol=1e-5)
    off = (got.log_density - MIXTURE.log_density(x, SIGMAS[1])) / got.standard_error
    assert bool((got.standard_error > 0).all())
    # 64 standard scores with 47 degrees of freedom
    assert 0.7 < off.square().mean().sqrt() < 1.35
    assert off.abs().max() < 4.5


def test_error_bars_shrink_with_the_root_of_the_probes():
    x = points(16)
    few, many = (
        likelihood(x, trace="gaussian", probes=p, seed=2, rtol=1e-3, atol=1e-4) for p in (8, 128)
    )
    assert (few.standard_error / many.standard_error).median() == pytest.approx(4, rel=0.3)


def test_reused_probes_would_not_be_errors_at_all():
    """Control: with one probe for all, the spread that the error bar is made of vanishes."""
    same = torch.ones(4, 1, 2, 2, dtype=F64).expand(4, 5, 2, 2)
    import cmsolvers.tasks.likelihood as module

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "_probes", lambda *_: same)
    try:
        got = likelihood(points(4), trace="gaussian", probes=5, rtol=1e-4, atol=1e-5)
    finally:
        patch.undo()
    assert got.standard_error.max() < 1e-9
    assert (got.log_density - MIXTURE.log_density(points(4), SIGMAS[1])).abs().max() > 1e-3


def test_one_probe_has_no_error_bar():
    assert bool(likelihood(points(2), probes=1, seed=0).standard_error.isnan().all())


def test_a_sample_is_its_own():
    """Steps and probes belong to the sample: its companions change nothing but rounding."""
    x = points(6)
    whole = likelihood(x, probes=3, seed=noise.key(1, 6), rtol=1e-4, atol=1e-5)
    part = likelihood(x[4:], probes=3, seed=noise.key(1, 2, offset=4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.log_density, whole.log_density[4:], rtol=1e-9, atol=1e-9)
    assert torch.equal(part.nfe, whole.nfe[4:])


def test_masked_mode_agrees():
    options = {"probes": 2, "seed": 1, "rtol": 1e-5, "atol": 1e-6}
    one, two = (likelihood(points(4), mode=mode, **options) for mode in ("compact", "masked"))
    torch.testing.assert_close(one.log_density, two.log_density, rtol=1e-9, atol=1e-9)


def test_preconditioned_networks_and_extra_arguments():
    """Every derivative passes the fused steps; labels follow their samples."""
    labels = torch.arange(5)

    def net(x, c, *, label):
        assert label.shape == c.shape
        gain = (0.1 * (1 + label)).reshape(-1, 1, 1).to(x.dtype)
        return gain * (x * 1.3).sin() + 0.1 * c.reshape(-1, 1, 1).to(x.dtype)

    model, x = denoisers.EDM(net), points(5)
    options = {"trace": "exact", "rtol": 1e-6, "atol": 1e-7, "prior": None}
    runs = [
        likelihood(x, model, derivative=d, extra_args={"label": labels}, **options)
        for d in ("forward", "reverse")
    ]
    torch.testing.assert_close(runs[0].log_density, runs[1].log_density, rtol=1e-8, atol=1e-8)
    alone = likelihood(x[3:4], model, extra_args={"label": labels[3:4]}, **options)
    torch.testing.assert_close(alone.log_density, runs[0].log_density[3:4], rtol=1e-8, atol=1e-8)


def test_float32_and_empty_batches():
    got = likelihood(points().float(), trace="exact", rtol=1e-5, atol=1e-5)
    exact = MIXTURE.log_density(points(), SIGMAS[1])
    assert ((got.log_density - exact) / 4).abs().max() < 1e-3
    assert likelihood(points()[:0]).log_density.shape == (0,)


def test_nothing_is_written_and_gradients_stay_off():
    x = points()
    kept = x.clone()
    got = likelihood(x.requires_grad_(), trace="exact", rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept) and not got.log_density.requires_grad


def test_failures_carry_the_state_reached():
    def broken(x, sigma):
        return torch.where(sigma.reshape(-1, 1, 1) > 1, math.nan, MIXTURE(x, sigma))

    with pytest.raises(SolverError, match="log_likelihood gave up on sample") as caught:
        likelihood(points(), broken)
    assert caught.value.x.shape == points().shape


def test_bits_per_dim():
    uniform = torch.full((3,), 100 * math.log(0.5), dtype=F64)  # one over [-1, 1]
    torch.testing.assert_close(bits_per_dim(uniform, 100), torch.full((3,), 8.0, dtype=F64))
    unit = torch.zeros(3, dtype=F64)
    torch.testing.assert_close(
        bits_per_dim(unit, 100, data_range="[0, 1]"), torch.full((3,), 8.0, dtype=F64)
    )


BAD = {
    "sigma zero": (lambda: log_likelihood(MIXTURE, points(), [80.0, 0.0]), ValueError, "sigmas"),
    "half": (lambda: likelihood(points().half()), TypeError, "x must be float64 or float32"),
    "list": (lambda: likelihood([1.0]), TypeError, "x must be a torch.Tensor"),
    "model": (lambda: likelihood(points(), 3), TypeError, "denoiser must be callable"),
    "trace": (lambda: likelihood(points(), trace="full"), ValueError, "trace must be"),
    "probes": (lambda: likelihood(points(), probes=0), ValueError, "probes must be at least 1"),
    "derivative": (lambda: likelihood(points(), derivative="x"), ValueError, "derivative must"),
    "method": (lambda: likelihood(points(), method="rk4"), ValueError, "method must be"),
    "rtol": (lambda: likelihood(points(), rtol=-1.0), ValueError, "rtol must not be negative"),
    "prior": (lambda: likelihood(points(), prior=3), TypeError, "prior must be callable"),
    "prior shape": (
        lambda: likelihood(points(), prior=lambda x: x, rtol=1e-2, atol=1e-2),
        ValueError,
        "prior must return shape [B] = [6]",
    ),
    "seed": (lambda: likelihood(points(), seed=-1), ValueError, "seed must lie in"),
    "no elements": (lambda: likelihood(torch.zeros(3, 0)), ValueError, "x must have at least one"),
    "model shape": (
        lambda: likelihood(points(), lambda x, s: x[:, :1]),
        ValueError,
        "denoiser must return the shape",
    ),
    "range": (
        lambda: bits_per_dim(torch.zeros(1), 3, data_range="[0, 255]"),
        ValueError,
        "data_range",
    ),
    "dims": (lambda: bits_per_dim(torch.zeros(1), 0), ValueError, "dims must be at least 1"),
}


@pytest.mark.parametrize("call, error, text", BAD.values(), ids=BAD)
def test_bad_input(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("trace", ["exact", "rademacher"])
def test_inference_mode_does_not_lose_the_trace(derivative, trace):
    x, options = points(3), {"derivative": derivative, "trace": trace, "seed": 1}
    expected = likelihood(x, **options).log_density
    with torch.inference_mode():
        assert torch.equal(likelihood(x, **options).log_density, expected)
        assert torch.equal(likelihood(points(3), **options).log_density, expected)


def test_denoisers_that_derivatives_cannot_follow_are_refused():
    scale = torch.ones((), requires_grad=True)
    x, unattached = points(3), torch.no_grad()(MIXTURE)
    forward = likelihood(x, trace="exact").log_density
    assert torch.equal(likelihood(x, unattached, trace="exact").log_density, forward)
    for model, derivative in (
        (unattached, "reverse"),
        (lambda x, s: MIXTURE(x.detach(), s), "reverse"),
        (lambda x, s: MIXTURE(x.detach(), s) * scale, "reverse"),
        (lambda x, s: MIXTURE(x.detach(), s), "forward"),
        (torch.inference_mode()(MIXTURE), "forward"),
        (torch.inference_mode()(MIXTURE), "reverse"),
    ):
        with pytest.raises(ValueError, match="denoiser must return what derivatives"):
            likelihood(x, model, derivative=derivative)
