"""Networks that look their time up in a table: whole times of a chain, as integers."""

import pytest
import torch
from torch import nn

import cmsolvers as cm
from cmsolvers import denoisers
from cmsolvers.denoisers import clipped, guided
from cmsolvers.processes import DDPM, VP

CHAIN = DDPM(50)
F64 = torch.float64
MAKERS = ["from_eps", "from_v", "from_x0", "from_score", "from_flow"]


class Table(nn.Module):
    """F = sin(x) scaled by a row of a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(CHAIN.num_steps, 3, dtype=F64)
        with torch.no_grad():
            rows = torch.arange(CHAIN.num_steps, dtype=F64)[:, None]
            self.table.weight.copy_((rows * torch.tensor([0.1, 0.2, 0.3], dtype=F64)).cos())

    def forward(self, x, t, label=0.0):
        return (x.to(F64).sin() * self.table(t) + label).to(x.dtype)


def rounding(table):
    """The same table behind a floating time."""
    return lambda x, t, **extra: table(x, t.round().long(), **extra)


def states(n, dtype=F64):
    return torch.linspace(-2.0, 2.0, 3 * n, dtype=F64).reshape(n, 3).to(dtype)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("time_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_equal_to_the_floating_one_at_the_levels_of_the_chain(name, time_dtype, dtype):
    make, table = getattr(denoisers, name), Table()
    whole = make(table, process=CHAIN, time_dtype=time_dtype)
    floating = make(rounding(table), process=CHAIN)
    x = states(CHAIN.num_steps, dtype)
    for levels in (CHAIN.sigmas, CHAIN.sigmas.float()):
        assert torch.equal(whole(x, levels), floating(x, levels))
    for k in (0, 7, 49):
        level = CHAIN.sigmas[k].item()
        assert torch.equal(whole(x[:4], level), floating(x[:4], level))
        assert whole.coefficients(level).c_noise == k
        scalar = CHAIN.sigmas[k]
        assert torch.equal(whole(x[:4], scalar), floating(x[:4], scalar))


def test_what_the_network_gets_between_levels():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    denoiser = denoisers.from_v(net, process=CHAIN, time_dtype=torch.int64)
    between = CHAIN.sigma_hat(torch.tensor([3.4, 3.6, -0.7, 60.0], dtype=F64))
    denoiser(states(4), between)
    denoiser(states(2), between[1].item())
    assert [t.dtype for t in seen] == [torch.int64] * 2
    assert [t.tolist() for t in seen] == [[3, 4, 0, 49], [4, 4]]
    # The coefficients are those of the level itself.
    floating = denoisers.from_v(net, process=CHAIN)
    level = between[0].item()
    assert denoiser.coefficients(level)[:3] == floating.coefficients(level)[:3]
    assert floating.coefficients(level).c_noise == pytest.approx(3.4, rel=1e-12)


def test_dtype_of_the_times():
    net, x = Table(), states(2)
    whole = denoisers.from_eps(net, process=CHAIN, time_dtype=torch.int32)
    assert whole.noise_dtype(x) is whole.noise_dtype(x.half()) is torch.int32
    floating = denoisers.from_eps(net, process=CHAIN)
    assert floating.noise_dtype(x) is F64
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert floating.noise_dtype(x.to(dtype)) is torch.float32


def test_under_guidance_and_clipping():
    table, x = Table(), states(4)
    whole = denoisers.from_eps(table, process=CHAIN, time_dtype=torch.int64)
    floating = denoisers.from_eps(rounding(table), process=CHAIN)
    label = {"label": torch.full((4, 1), 0.3, dtype=F64)}, {"label": torch.zeros(4, 1, dtype=F64)}
    for sigma in (CHAIN.sigmas[9].item(), CHAIN.sigmas[[3, 8, 20, 40]]):
        got, expected = (
            clipped(guided(d, 2.0, conditional=label[0], unconditional=label[1]))(x, sigma)
            for d in (whole, floating)
        )
        assert torch.equal(got, expected)


def test_derivatives_in_the_level_pass_it_by():
    whole = denoisers.from_eps(Table(), process=CHAIN, time_dtype=torch.int64)
    x, level = states(3), CHAIN.sigmas[[5, 9, 30]].clone() * 1.001
    sigma = level.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: whole(x, s), (sigma,))
    _, tangent = torch.func.jvp(lambda s: whole(x, s), (level,), (torch.ones_like(level),))
    (slope,) = torch.autograd.grad(whole(x, sigma).sum(), sigma)
    torch.testing.assert_close(tangent.sum(1), slope)


def test_compiles_whole():
    torch._dynamo.reset()
    whole = denoisers.from_v(Table(), process=CHAIN, time_dtype=torch.int64)
    x, sigma = states(4), CHAIN.sigmas[[3, 8, 20, 40]]
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, sigma), whole(x, sigma))


BAD = {
    "dtype": (
        {"process": CHAIN, "time_dtype": torch.float32},
        TypeError,
        "time_dtype must be None, torch.int64 or torch.int32; got torch.float32",
    ),
    "not a dtype": ({"process": CHAIN, "time_dtype": int}, TypeError, "time_dtype must be None"),
    "process": (
        {"process": cm.VP(), "time_dtype": torch.int64},
        TypeError,
        "process must be a DDPM, .* where time_dtype is given; got an object of type VP",
    ),
    "c_noise": (
        {"process": CHAIN, "c_noise": "edm", "time_dtype": torch.int64},
        ValueError,
        "c_noise must be None where time_dtype is given.*; got 'edm'",
    ),
}


@pytest.mark.parametrize("options, error, match", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", MAKERS)
def test_bad_input(name, options, error, match):
    with pytest.raises(error, match=match):
        getattr(denoisers, name)(Table(), **options)


def test_a_continuous_process_has_no_whole_times():
    with pytest.raises(TypeError, match="process must be a DDPM"):
        denoisers.from_eps(Table(), process=VP(), time_dtype=torch.int64)
