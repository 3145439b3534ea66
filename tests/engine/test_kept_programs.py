"""What is kept from one run for the next must never change a result."""

import sys
import threading
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cmsolvers as cm
from cmsolvers.denoisers import EDM, Coefficients, Preconditioned, clipped, from_eps
from cmsolvers.engine.latest import Latest

F64 = torch.float64
X = 5.0 * torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
SIGMAS = [5.0, 2.0, 1.0, 0.5, 0.0]


def net(x, t, **_):
    return torch.tanh(0.3 * x) + 0.05 * torch.sin(t[:, None]).to(x.dtype)


def whole(model):
    """The same denoiser as a plain callable: nothing of it is settled before the run."""
    return lambda x, sigma, **extra: model(x, sigma, **extra)


def agrees(model):
    for sampler in (cm.dpmpp_2m, cm.heun_pf_ode):
        error = (sampler(model, X, SIGMAS) - sampler(whole(model), X, SIGMAS)).abs().max()
        if not error < 1e-10:
            return False
    return True


class Shifted(cm.VP):
    """Equal to every other VP of the same fields, as dataclasses compare."""

    def __init__(self, factor):
        super().__init__()
        object.__setattr__(self, "factor", factor)

    def t_of_sigma(self, sigma_hat):
        return super().t_of_sigma(sigma_hat) * self.factor

    def alpha(self, t):
        return super().alpha(t / self.factor)

    def sigma(self, t):
        return super().sigma(t / self.factor)


class Scale:
    """A callable with a state."""

    def __init__(self, factor):
        self.factor = factor

    def noise(self, sigma):
        return sigma * self.factor


def gained(*args, **options):
    return args[-1] * options.get("scale", 1.0)


def test_parts_that_change_are_not_kept():
    assert agrees(from_eps(net, process=Shifted(1.0))) and agrees(
        from_eps(net, process=Shifted(3.0))
    )
    parameter, table, scale = torch.nn.Parameter(torch.tensor(1.0)), {"w": 1.0}, Scale(1.0)
    models = [
        EDM(net, c_noise=partial(lambda w, s: s * float(w.detach()), parameter)),
        EDM(net, c_noise=lambda s: s * table["w"]),
        EDM(net, c_noise=scale.noise),
    ]
    for model in models:
        assert agrees(model)
    parameter.data.fill_(5.0)
    table["w"] = scale.factor = 5.0
    for model in models:
        assert agrees(model)
    assert agrees(EDM(net, c_noise=partial(gained, "scale", 4.0)))
    assert agrees(EDM(net, c_noise=partial(gained, scale=4.0)))


def test_overrides_of_an_instance_count():
    assert agrees(EDM(net))
    own = EDM(net)
    before = own.coefficients
    own.coefficients = lambda s: Coefficients(before(s)[0], 0.5 * before(s)[1], *before(s)[2:])
    assert agrees(own)
    own = EDM(net)
    own.network = lambda x, t, **_: 0.5 * net(x, t)
    assert agrees(own)
    own = clipped(EDM(net))
    own.rewrite = lambda x, d: 0.5 * d
    assert agrees(own)


def test_global_hooks_run():
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        cm.euler_pf_ode(EDM(net), X, SIGMAS)
    finally:
        handle.remove()
    assert len(seen) == 4


def test_a_network_that_writes_to_its_time_harms_no_other_run():
    def writes(x, t):
        t *= 1000.0
        return net(x, t)

    for first, second in ((EDM(net), EDM(writes)), (net, writes)):
        expected = cm.euler_pf_ode(first, X, SIGMAS)
        once = cm.euler_pf_ode(second, X, SIGMAS)
        assert torch.equal(cm.euler_pf_ode(first, X, SIGMAS), expected)
        assert torch.equal(cm.euler_pf_ode(second, X, SIGMAS), once)


def test_fake_tensors_leave_nothing_behind():
    model = EDM(net, 0.77)
    expected = cm.dpmpp_2m(whole(model), X, SIGMAS)
    with FakeTensorMode() as mode:
        y = cm.dpmpp_2m(model, mode.from_tensor(X), SIGMAS)
    assert y.shape == X.shape
    torch.testing.assert_close(cm.dpmpp_2m(model, X, SIGMAS), expected)


@pytest.mark.parametrize("c_in", [0.0, 1e-320])
def test_an_input_that_is_not_the_state(c_in):
    model = Preconditioned(lambda x, t: net(x, t), lambda s: (0.0, 1.0, c_in, s))
    assert agrees(model)


def test_static_outputs_that_overlap():
    """A window that slides over one buffer: no two addresses are the same."""
    buffer, calls = torch.empty(4, 3, dtype=F64), []

    def slides(x, t):
        calls.append(1)
        return buffer.narrow(0, len(calls) % 3, 2).copy_(net(x, t))

    for sampler in (cm.heun_pf_ode, cm.dpm_2, cm.dpm_fast, cm.lms, cm.unipc):
        expected = sampler(EDM(net), X, SIGMAS)
        assert torch.equal(sampler(EDM(slides), X, SIGMAS), expected)


def test_threads_share_what_is_kept():
    failures, interval = [], sys.getswitchinterval()

    def work(number):
        try:
            for k in range(60):
                sigmas = [5.0, 1.0 + 0.01 * ((k * 7 + number) % 66), 0.0]
                sde = cm.VP().reverse(lambda x, t: -x)
                cm.euler_pf_ode(EDM(net), X, sigmas)
                cm.euler_maruyama(sde, X, [1.0, 0.1 + 0.001 * ((k + number) % 66)], seed=1)
        except Exception as error:  # a thread's own exception would be lost
            failures.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures


def test_the_latest_are_kept():
    kept, made = Latest(2), []

    def of(key):
        return kept.get(key, lambda: made.append(key) or key)

    assert [of("a"), of("b"), of("a"), of("c"), of("a"), of("b")] == list("abacab")
    assert made == ["a", "b", "c", "b"]  # b was the one that nobody had used for longest
