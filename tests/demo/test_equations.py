"""The report's equations: every line of code that it shows runs, and does what is said of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib")

import cmsolvers
from cmsolvers import losses, noise, ops
from cmsolvers.demo import heun_errors
from cmsolvers.demo.equations import EQUATIONS
from cmsolvers.demo.mathml import display, fraction, root, row, upright
from cmsolvers.demo.mixture_pictures import MEANS, STD, WEIGHTS
from cmsolvers.denoisers import EDM
from cmsolvers.denoisers.oracles import GaussianMixture
from cmsolvers.processes import VP
from cmsolvers.training.models import Spec

SHAPE = (1, 8, 8)


def network(seed: int) -> nn.Module:
    return Spec("score", SHAPE, options={"width": 16}).build(seed)


def run(name: str, **given: object) -> dict[str, Any]:
    """Run the lines that the report shows under a name; what they leave."""
    space: dict[str, Any] = {"torch": torch, "EDM": EDM}
    for module in (cmsolvers, losses):
        space |= {key: value for key, value in vars(module).items() if not key.startswith("_")}
    space |= {"noise": noise, "ops": ops} | given
    exec(EQUATIONS[name].code, space)
    return space


@pytest.fixture(scope="module")
def line() -> GaussianMixture:
    """The data of the report's one-dimensional pictures, with their exact denoiser."""
    means = torch.tensor(MEANS, dtype=torch.float64)[:, None]
    return GaussianMixture(means, STD, list(WEIGHTS))


def shares(x: Tensor) -> list[float]:
    """How much of the samples is nearest to each mean."""
    nearest = (x - torch.tensor(MEANS, dtype=x.dtype)).abs().argmin(1)
    return [float((nearest == k).double().mean()) for k in range(len(MEANS))]


def test_the_three_processes_of_the_first_picture(line: GaussianMixture):
    """Forward to noise of deviation 1, and back to the mixture by SDE and ODE alike."""
    which = torch.multinomial(
        torch.tensor(WEIGHTS), 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    x0 = torch.tensor(MEANS, dtype=torch.float64)[which][:, None]
    x0 = x0 + STD * noise.normal(x0.shape, 5, dtype=torch.float64)
    space = run("forward", x0=x0)
    x1, times, process = space["x1"], space["times"], space["process"]
    assert isinstance(x1, Tensor)
    assert abs(float(x1.std()) - 1) < 0.05
    assert abs(float((x1 - x0).mean()) + float(x0.mean())) < 0.2
    common = {"x1": x1, "times": times, "process": process, "denoiser": line}
    for name in ("reverse", "ode"):
        data = run(name, **common)["data"]
        assert isinstance(data, Tensor)
        for got, wanted in zip(shares(data), WEIGHTS, strict=True):
            assert abs(got - wanted) < 0.05
        near = (data - torch.tensor(MEANS, dtype=data.dtype)).abs().amin(1)
        assert float((near < 4 * STD).double().mean()) > 0.95
    assert max(abs(g - w) for g, w in zip(shares(x1), WEIGHTS, strict=True)) > 0.05  # noise fails


def test_the_ode_is_a_function_of_its_start_and_the_sde_is_not(line: GaussianMixture):
    x1 = torch.full((64, 1), 0.7, dtype=torch.float64)
    common = {
        "x1": x1,
        "times": torch.linspace(0.001, 1, 301),
        "process": VP(0.1, 8.0),
        "denoiser": line,
    }
    ode, sde = (run(name, **common)["data"] for name in ("ode", "reverse"))
    assert isinstance(ode, Tensor) and isinstance(sde, Tensor)
    assert float(ode.std()) < 1e-9
    assert float(sde.std()) > 0.1


def test_the_score_is_what_a_denoiser_says(line: GaussianMixture):
    x0 = torch.tensor([[-1.5], [0.2], [1.3]], dtype=torch.float64)
    space = run("noising", x0=x0, denoiser=line)
    x, score = space["x"], space["score"]
    assert isinstance(x, Tensor)
    at = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(line.log_density(at, 0.8).sum(), at)
    torch.testing.assert_close(score, exact, rtol=1e-6, atol=1e-8)


def test_samplers_that_are_shown():
    f = run("consistency", network=network(0))
    assert f["digits"].shape == (1000, *SHAPE)
    heun = run("heun", denoiser=EDM(network(0), sigma_data=0.5))
    calls = re.search(r"# (\d+) calls", EQUATIONS["heun"].code)
    assert calls is not None
    _, info = cmsolvers.heun_pf_ode(
        EDM(network(0), sigma_data=0.5), heun["x"][:2], heun["sigmas"], return_info=True
    )
    assert info.nfe == int(calls[1])


def test_a_long_step_is_what_is_written_out(line: GaussianMixture):
    """The equation, put together by hand from D at both ends; with r / 2 in place it fails."""
    x = torch.tensor([[-6.0], [0.4], [5.0]], dtype=torch.float64)
    space = run("long_step", x=x, denoiser=line)
    a, b = space["a"], space["b"]
    r = a / b
    level = torch.ones(len(x), dtype=torch.float64)
    d = line(x, a * level)
    middle = x / r + (1 - 1 / r) * d
    change = line(middle, b * level) - d
    torch.testing.assert_close(space["x_next"], middle + (r - 1) / 2 * change)
    assert not torch.allclose(space["x_next"], middle + r / 2 * change, rtol=1e-4)
    assert (r - 1) / 2 / (1 - 1 / r) == pytest.approx(heun_errors.overshoot(r))
    assert f"r = {r:.1f}" in EQUATIONS["long_step"].code


def test_losses_that_are_shown_train_a_network():
    net = network(0)
    x0 = 0.5 * noise.normal((16, *SHAPE), 3)
    teacher = EDM(network(1), sigma_data=0.5).eval().requires_grad_(False)
    function = cmsolvers.ConsistencyFunction(net, sigma_data=0.5)
    average = cmsolvers.ConsistencyFunction(network(0), sigma_data=0.5).requires_grad_(False)
    given = {
        "network": net,
        "trained_network": net,
        "x0": x0,
        "step": 0,
        "f": function,
        "f_average": average,
        "denoiser": teacher,
    }
    for name in ("score", "cd", "ct", "ect"):
        net.zero_grad(set_to_none=True)
        out = run(name, **given)["out"]
        assert torch.isfinite(out.loss)
        if out.loss.requires_grad and "backward" not in EQUATIONS[name].code:
            out.loss.backward()
        assert max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_equation_is_short_and_says_what_it_means(name: str):
    equation = EQUATIONS[name]
    assert len(equation.code.splitlines()) == 3
    assert max(map(len, equation.code.splitlines())) <= 72
    assert equation.meaning.endswith(".")
    assert len(re.findall(r"[.?!](\s|$)", equation.meaning)) == 1


class Tags(HTMLParser):
    """The elements of MathML, with how many children each has."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[list[object]] = []
        self.children: list[tuple[str, int]] = []

    def handle_starttag(self, tag, attrs):
        if self.open:
            self.open[-1][1] += 1
        self.open.append([tag, 0])

    def handle_endtag(self, tag):
        name, count = self.open.pop()
        assert name == tag
        self.children.append((name, count))


@pytest.mark.parametrize("name", EQUATIONS)
def test_mathml_is_well_formed(name: str):
    """Fractions and indices have the two (or three) children without which browsers set nothing."""
    tags = Tags()
    tags.feed(EQUATIONS[name].math)
    assert not tags.open
    wanted = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3}
    assert all(count == wanted.get(tag, count) for tag, count in tags.children)


def test_mathml_of_a_row():
    assert row("x_t") == "<msub><mi>x</mi><mrow><mi>t</mi></mrow></msub>"
    assert row("σ^2") == "<msup><mi>σ</mi><mrow><mn>2</mn></mrow></msup>"
    both = "<msubsup><mi>x</mi><mrow><mn>0</mn></mrow><mrow><mo>−</mo></mrow></msubsup>"
    assert row("x_0^−") == row("x^−_0") == both
    assert row("ln p") == '<mi>ln</mi><mspace width="0.17em"></mspace><mi>p</mi>'
    assert row("a < 0.5") == "<mi>a</mi><mo>&lt;</mo><mn>0.5</mn>"
    half = fraction("1", "2")
    assert row(half) == "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>"
    assert row(root("β"), upright("a&b")) == "<msqrt><mi>β</mi></msqrt><mtext>a&amp;b</mtext>"
    assert display(row("x")).count("<mtr>") == 1
