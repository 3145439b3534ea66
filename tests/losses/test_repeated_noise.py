"""The warning where a loss adds the same noise to one batch after another."""

from functools import partial

import numpy as np
import pytest
import torch

from cmsolvers import losses, noise
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.latest import Latest
from cmsolvers.losses import repeated_noise
from support.warned import texts_of

DATA = Gaussian(0.5)
HIGH, LOW = 1.0, 0.5


def f(x, sigma):
    return DATA.consistency(x, sigma, 0.002)


LOSSES = {
    "denoising_score_matching": lambda x0, **more: losses.denoising_score_matching(
        DATA.denoiser, x0, HIGH, **more
    ),
    "consistency_training": lambda x0, **more: losses.consistency_training(
        f, None, x0, HIGH, LOW, **more
    ),
    "consistency_distillation": lambda x0, **more: losses.consistency_distillation(
        f, None, DATA.denoiser, x0, HIGH, LOW, **more
    ),
}


@pytest.fixture(autouse=True)
def nothing_met(monkeypatch):
    monkeypatch.setattr(repeated_noise, "_MET", Latest(64))
    repeated_noise.ONCE.reset()


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def batch(k, shape=(8, 3)):
    return 0.5 * noise.normal(shape, seed=11, draw=k)


warned = partial(texts_of, __file__)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [5, np.int64(5), noise.Key(5)])
def test_a_seed_without_draw_warns_once_at_the_second_batch(name, seed):
    run = LOSSES[name]
    assert warned(lambda: run(batch(0), seed=seed)) == []
    (text,) = warned(lambda: run(batch(1), seed=seed))
    assert text.startswith(f"seed=5 gives {name} the same noise for this batch as for an earlier")
    assert "draw=step, or seed=noise.Seeds(0).at(step)" in text
    assert warned(lambda: [run(batch(k), seed=seed) for k in range(5)]) == []


def test_the_noise_that_it_warns_of_is_the_same_indeed():
    seen = []

    def spy(x, sigma):
        seen.append(x)
        return DATA.denoiser(x, sigma)

    def run(x0):
        losses.denoising_score_matching(spy, x0, HIGH, seed=5)

    assert len(warned(lambda: [run(batch(k)) for k in (0, 1)])) == 1
    torch.testing.assert_close(seen[0] - batch(0), seen[1] - batch(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "calls",
    {
        "the same tensor twice": lambda run, x: [run(x, seed=5) for _ in range(3)],
        "a copy of it": lambda run, x: [run(x.clone(), seed=5) for _ in range(3)],
        "another view of it": lambda run, x: [run(x[:4], seed=5) for _ in range(3)],
        "draw": lambda run, x: [run(batch(k), seed=5, draw=k) for k in range(3)],
        "the same draw, given": lambda run, x: [run(batch(k), seed=5, draw=0) for k in range(3)],
        "another seed": lambda run, x: [run(batch(k), seed=k) for k in range(3)],
        "seeds of steps": lambda run, x: [
            run(batch(k), seed=noise.Seeds(0).at(k)) for k in range(3)
        ],
        "no seed": lambda run, x: [run(batch(k)) for k in range(3)],
        "a generator": lambda run, x: [
            run(batch(k), seed=torch.Generator().manual_seed(k)) for k in range(3)
        ],
        "shards": lambda run, x: [run(batch(k), seed=5, offset=8 * k) for k in range(3)],
        "shards by key": lambda run, x: [
            run(batch(k), seed=noise.Key(5, offset=8 * k)) for k in range(3)
        ],
        "ids": lambda run, x: [
            run(batch(k), seed=noise.key(5, 8, ids=torch.arange(8) + 8 * k)) for k in range(3)
        ],
        "other losses": lambda run, x: [other(batch(k)) for k, other in enumerate(LOSSES.values())],
    }.items(),
    ids=lambda item: item[0],
)
def test_no_false_alarm(loss, calls):
    assert warned(lambda: calls[1](loss, batch(0))) == []


def test_a_buffer_that_is_written_to_again_is_another_batch(loss):
    x = batch(0)
    loss(x, seed=5)
    x.copy_(batch(1))
    assert len(warned(lambda: loss(x, seed=5))) == 1


@pytest.mark.parametrize("shape", [(8,), (2, 3, 16, 16), (1, 1), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batches_of_any_shape_are_told_apart(shape, dtype):
    marks = [repeated_noise._mark(batch(k, shape).to(dtype)) for k in (0, 1, 0)]
    assert marks[0] == marks[2]
    assert (marks[0] != marks[1]) == (0 not in shape)


def test_no_tensor_is_kept():
    x = batch(0)
    LOSSES["denoising_score_matching"](x, seed=5)
    (mark,) = repeated_noise._MET._known.values()
    assert all(not isinstance(part, torch.Tensor) for part in mark)


def test_nothing_is_looked_at_where_functions_are_transformed():
    def value(x0):
        return LOSSES["denoising_score_matching"](x0, seed=5)

    assert warned(lambda: [torch.func.grad(value)(batch(k)) for k in range(3)]) == []
    compiled = torch.compile(value, fullgraph=True, backend="eager")
    assert warned(lambda: [compiled(batch(k)) for k in range(3)]) == []
