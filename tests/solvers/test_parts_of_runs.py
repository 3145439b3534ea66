"""Runs in parts, `start=` and `stop=`: the noise, and the history, of the whole run."""

from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import EDM, clipped, guided
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.catalogue import SOLVERS
from support.orders import F64

DATA = Gaussian(0.5, 0.3)
SIGMAS = cm.karras_sigmas(9, 0.02, 80.0)
OPTIONS = {
    "ddim": {"eta": 0.5},
    "dpm_fast": {"eta": 0.5},
    "euler_pf_ode": {"s_churn": 3.0},
    "heun_pf_ode": {"s_churn": 3.0},
    "dpm_2": {"s_churn": 3.0},
    "restart": {"restarts": [(0.1, 1.0, 3, 2)]},
}
MULTISTEP = {"lms": 3, "deis": 2, "ipndm": 3, "dpmpp_2m": 1, "dpmpp_2m_sde": 1, "dpmpp_3m_sde": 2,
             "unipc": 3}  # fmt: skip
ON_LEVELS = [n for n, row in SOLVERS.items() if row.space == "sigma" and not row.adaptive]
IN_TIME = [n for n, row in SOLVERS.items() if row.space == "time" and not row.adaptive]


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
    return lambda x, c: net.to(x.dtype)(x)


DENOISERS = {
    "plain": DATA,
    "EDM": EDM(network()),
    "clipped": clipped(EDM(network())),
    "guided": guided(EDM(network()), 2.0, unconditional={}),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("name", ON_LEVELS)
def test_two_parts_make_the_whole(name, denoiser, dtype):
    model, sigmas = DENOISERS[denoiser], SIGMAS
    sampler = partial(getattr(cm, name), model, seed=3, **OPTIONS.get(name, {}))
    x = 80.0 * noise.normal((5, 3), 1, dtype=dtype)
    whole, info = sampler(x, sigmas, trajectory=True)
    for cut in (1, 2, info.steps // 2, info.steps - 1):
        half, first = sampler(x, sigmas, stop=cut, return_info=True)
        assert first.steps == cut
        second, rest = sampler(half, sigmas, start=cut, history=first.history, return_info=True)
        assert (rest.steps, rest.nfe) == (info.steps - cut, info.nfe - first.nfe)
        assert len(first.history) == (0 if name not in MULTISTEP else min(cut, MULTISTEP[name])
                                      if cut < info.steps - 1 else len(first.history))  # fmt: skip
        if name in MULTISTEP:
            tight = 1e-4 if dtype is torch.float32 else 1e-13
            torch.testing.assert_close(half, info.trajectory[cut], rtol=tight, atol=tight)
            torch.testing.assert_close(second, whole, rtol=tight, atol=tight)
        else:
            assert torch.equal(half, info.trajectory[cut])
            assert torch.equal(second, whole)


@pytest.mark.parametrize("name", IN_TIME)
def test_parts_in_time(name):
    sde = cm.VP().reverse(cm.VP().score_of(DATA))
    user = cm.SDE(lambda x, t: -x, lambda t: 0.5)
    for equation, ts in ((sde, [1.0, 0.8, 0.5, 0.2]), (user, [0.0, 0.3, 0.5, 1.0])):
        if name == "predictor_corrector" and equation is user:
            continue
        sampler = partial(getattr(cm, name), equation, seed=3)
        x = noise.normal((5, 3), 1)
        whole = sampler(x, ts)
        for cut in (1, 2):
            half, info = sampler(x, ts, stop=cut, trajectory=True)
            assert info.levels == tuple(ts[: cut + 1])
            assert torch.equal(sampler(half, ts, start=cut), whole)


def test_three_parts_with_a_history_that_is_handed_on():
    sampler = partial(cm.lms, EDM(network()), order=4)
    x = 80.0 * noise.normal((5, 3), 1, dtype=F64)
    whole = sampler(x, SIGMAS)
    for a, b in ((1, 2), (2, 3), (3, 4), (2, 6)):
        one, first = sampler(x, SIGMAS, stop=a, return_info=True)
        two, second = sampler(one, SIGMAS, start=a, stop=b, history=first.history, return_info=True)
        three = sampler(two, SIGMAS, start=b, history=second.history)
        torch.testing.assert_close(three, whole, rtol=1e-12, atol=1e-12)
        wrong = sampler(two, SIGMAS, start=b, history=[h + 0.1 for h in second.history])
        assert (wrong - whole).abs().max() > 1e-4


def test_a_history_is_the_slopes_or_the_clean_data():
    seen = []
    x = 80.0 * noise.normal((5, 3), 1, dtype=F64)
    keep = lambda entry: seen.append((entry["sigma"], entry["x"], entry["denoised"]))  # noqa: E731
    _, info = cm.dpmpp_3m_sde(DATA, x, SIGMAS, stop=4, seed=0, return_info=True, callback=keep)
    for past, (_, _, d) in zip(info.history, reversed(seen[2:]), strict=True):
        torch.testing.assert_close(past, d)
    seen.clear()
    _, info = cm.deis(DATA, x, SIGMAS, stop=4, return_info=True, callback=keep)
    for past, (s, y, d) in zip(info.history, reversed(seen[2:]), strict=True):
        torch.testing.assert_close(past, (y - d) / s)


def test_the_noise_of_the_second_half_is_its_own():
    """Without `start` one seed for two halves repeats the noise: that is what it is for."""
    spans = []
    x = torch.zeros(3, 2)

    def remembered(s, to):
        spans.append((s, to))
        return torch.zeros(3, 2)

    cm.euler_ancestral(DATA, x, [4.0, 2.0, 1.0, 0.5], start=1, noise_sampler=remembered)
    assert spans == [(2.0, 1.0), (1.0, 0.5)]
    right = cm.ddpm_ancestral(DATA, x, [4.0, 2.0, 1.0, 0.5], start=1, seed=0)
    repeated = cm.ddpm_ancestral(DATA, x, [2.0, 1.0, 0.5], seed=0)
    assert not torch.equal(right, repeated)


def test_callbacks_trajectories_and_bars_count_the_whole_run(capsys):
    seen = []
    x = torch.ones(3, 2)
    _, info = cm.heun_pf_ode(
        DATA, x, SIGMAS, start=3, stop=6, trajectory=True, callback=lambda e: seen.append(e["i"]),
        progress=True,
    )  # fmt: skip
    assert seen == [3, 4, 5]
    assert info.levels == tuple(SIGMAS[3:7].tolist())
    assert info.trajectory.shape[0] == 4
    assert torch.equal(info.trajectory[0], x)
    assert "3/3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="trajectory must hold levels that the run visits"):
        cm.heun_pf_ode(DATA, x, SIGMAS, start=3, trajectory=[80.0])
    with pytest.raises(ValueError, match="got NaN or infinity at step 3"):
        cm.heun_pf_ode(lambda x, s: x / 0, x, SIGMAS, start=3, stop=4, check_nan=True)


def test_a_captured_part():
    x = 0.1 * torch.ones(3, 2)
    run = cm.capture(cm.euler_ancestral, DATA, x, SIGMAS, start=5)
    assert torch.equal(run(x, seed=4), cm.euler_ancestral(DATA, x, SIGMAS, start=5, seed=4))


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: cm.lms(DATA, X, SIGMAS, start=-1), ValueError, "start must be at least 0; got -1"),
        (lambda: cm.lms(DATA, X, SIGMAS, stop=0), ValueError, "stop must be at least 1; got 0"),
        (
            lambda: cm.heun_pf_ode(DATA, X, SIGMAS, start=9),
            ValueError,
            "start must be below the number of steps, 9; got 9",
        ),
        (
            lambda: cm.heun_pf_ode(DATA, X, SIGMAS, start=4, stop=4),
            ValueError,
            "start must be below stop, 4; got 4",
        ),
        (lambda: cm.lms(DATA, X, SIGMAS, stop=10), ValueError, "stop must be at most 9"),
        (lambda: cm.lms(DATA, X, SIGMAS, start=1.5), TypeError, "start must be an int; got 1.5"),
        (
            lambda: cm.lms(DATA, X, SIGMAS, start=2),
            ValueError,
            r"history must hold the 2 tensors that step 2 of lms reads of earlier steps, "
            r"info.history of the run that stopped there \(return_info=True\); got None",
        ),
        (lambda: cm.lms(DATA, X, SIGMAS, start=2, history=[X]), ValueError, "got 1$"),
        (
            lambda: cm.heun_pf_ode(DATA, X, SIGMAS, history=[X]),
            ValueError,
            "history must hold the 0 tensors",
        ),
        (
            lambda: cm.lms(DATA, X, SIGMAS, start=1, history=[X[:1]]),
            ValueError,
            r"history\[0\] must have the shape and device of x",
        ),
        (
            lambda: cm.lms(DATA, X, SIGMAS, start=1, history=X),
            TypeError,
            "history must be a sequence of tensors",
        ),
        (lambda: cm.lms(DATA, X, SIGMAS, start=1, history=[3]), TypeError, r"history\[0\] must be"),
        (
            lambda: cm.euler_maruyama(cm.SDE(lambda x, t: x, lambda t: 0.0), X, [0, 1], start=1),
            ValueError,
            "start must be below the number of steps, 1; got 1",
        ),
        (lambda: cm.capture(cm.lms, DATA, X, SIGMAS, history=[X]), ValueError, "history must not"),
    ],
)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
