"""What a formula, a network or a transform may do to the states of a pair without other numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, losses, noise
from cmsolvers.denoisers import TrigFlowMap, from_flow
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation

F64 = torch.float64
X0 = noise.normal((4, 3), seed=1, dtype=F64)
HIGH = torch.tensor([0.5, 1.0, 10.0, 70.0], dtype=F64)
PAIR = (HIGH, HIGH / 2)


def net(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 3).double()


def formula(read: bool) -> Any:
    @loss(
        identity="eulerian",
        source="none",
        times=losses.UniformPairs((80.0, 10.0, 1.0, 0.1)),
        coordinates="karras",
        model="consistency",
        pair=True,
    )
    def of_a_user(at: Evaluation) -> Tensor:
        """A loss whose formula may look at its state before the network is called."""
        x, y = at.states(at.t, at.s)
        if read:
            assert x.x.shape == y.x.shape
        return (at.student(x) - at.target(y).detach()).square_sum()

    return of_a_user


def test_a_state_that_was_read_is_the_same_state() -> None:
    f = net()
    model = ConsistencyFunction(lambda x, c: f(x))
    given = {"key": 1, "step": 0, "levels": PAIR}
    found = [formula(read)(model, X0, **given).per_sample for read in (False, True)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    assert not torch.equal(found[0], formula(False)(model, X0, **(given | {"key": 2})).per_sample)


def test_the_velocity_of_a_pairs_state_is_that_of_the_state() -> None:
    f, seen = net(), []
    model = ConsistencyFunction(lambda x, c: f(x))

    @loss(
        identity="eulerian",
        source="none",
        times=losses.UniformPairs((80.0, 1.0)),
        coordinates="karras",
        model="consistency",
        pair=True,
    )
    def looks(at: Evaluation) -> Tensor:
        """Both ways of making one state."""
        (alone,) = at.states(at.t)
        x, _ = at.states(at.t, at.s)
        seen.extend(at.student.velocity(state).tensor().detach() for state in (alone, x))
        return at.student(alone).square_sum()

    looks(model, X0, key=1, step=0, levels=PAIR)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-10, atol=1e-12)


def scaled_time(x: Tensor, t: Tensor) -> Tensor:
    return 0.1 * x + t.mul_(1000.0)[:, None]


@pytest.mark.parametrize("through", ["loss", "call"])
def test_networks_may_write_to_their_time_in_float64(through: str) -> None:
    f = from_flow(scaled_time, coordinates="process")
    t = torch.full((4,), 0.5, dtype=F64)
    if through == "loss":
        out = losses.dsm(f, X0, key=0, step=0, levels=t)
        assert torch.equal(out.levels[0], torch.full_like(t, 0.5))
    else:
        f(X0, t)
    assert torch.equal(t, torch.full_like(t, 0.5))


def test_float32_rounds_the_largest_level_up() -> None:
    f = TrigFlowMap(lambda x, t: 0.1 * x)
    top = torch.full((4,), f.coordinates.max_level)
    assert float(top[0]) > f.coordinates.max_level
    given = {"key": 0, "step": 0}
    assert losses.ict(f, X0.float(), levels=(top, top / 2), **given).loss.isfinite()
    with pytest.raises(ValueError, match="levels must lie in"):
        losses.ict(f, X0.float(), levels=(1.001 * top, top / 2), **given)


def test_forward_mode_stops_where_the_gradient_stops() -> None:
    f = net()
    w = f.weight.detach()
    v = noise.normal((3, 3), seed=5, dtype=F64)

    def value(w: Tensor) -> Tensor:
        model = ConsistencyFunction(
            lambda x, c: torch.func.functional_call(f, {"weight": w}, (x.tanh(),))
        )
        return losses.ict(model, X0, key=1, step=0, levels=PAIR).loss

    (gradient,) = torch.autograd.grad(value(f.weight), f.weight)
    _, along = torch.func.jvp(value, (w,), (v,))
    torch.testing.assert_close(along, (gradient * v).sum(), rtol=1e-10, atol=0)


def test_levels_drawn_of_torchs_generator_leave_the_passes_alike() -> None:
    masks: list[Tensor] = []

    def noisy(x: Tensor, c: Tensor) -> Tensor:
        masks.append(torch.rand(3))
        return 0.1 * x

    class Drawn:
        def sample(self, batch: int, seed: Any, **more: Any) -> tuple[Tensor, Tensor]:
            u = torch.rand(batch, dtype=F64) + 1
            return u, u / 2

    losses.ict(ConsistencyFunction(noisy), X0, key=1, step=0, times=Drawn())
    assert len(masks) == 2 and torch.equal(masks[0], masks[1])


def test_data_made_in_inference_mode() -> None:
    f = net()
    with torch.inference_mode():
        x0 = X0.clone()
    found = losses.dsm(ConsistencyFunction(lambda x, c: f(x)), x0, key=0, step=0).loss
    found.backward()
    assert f.weight.grad is not None and f.weight.grad.isfinite().all()


def test_a_teacher_that_refuses_a_level_is_not_looked_at() -> None:
    def expert(x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma.min()) < 0.5:
            raise RuntimeError("made for large levels")
        return 0.25 / (0.25 + sigma[:, None] ** 2) * x

    model = ConsistencyFunction(lambda x, c: 0.1 * x)
    found = losses.cd(model, X0, key=0, step=0, levels=(5.0, 3.0), teacher=expert)
    assert found.loss.isfinite()


def test_a_step_of_another_dtype_is_named() -> None:
    model = ConsistencyFunction(lambda x, c: 0.1 * x)
    with pytest.raises(TypeError, match="step must be an int or an int64 tensor"):
        losses.ict(model, X0, key=0, step=torch.tensor([3], dtype=torch.int32))
