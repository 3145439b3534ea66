"""What is taken as a seed, an offset, a stream and a draw."""

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise, ops
from cmsolvers.ops.keys import checked_place, draw_seed, resolve


class Index:
    """Converts to an int as numpy's integers do."""

    def __index__(self):
        return 7


INTEGERS = [np.int64(7), np.int32(7), np.uint8(7), np.uint64(7), np.array(7), Index()]


@pytest.mark.parametrize("seven", INTEGERS, ids=lambda v: type(v).__name__)
class TestIntegers:
    def test_key(self, seven):
        key = noise.Key(seven, seven)
        assert (type(key.seed), type(key.offset)) == (int, int)
        assert key == noise.Key(7, 7)

    def test_resolve(self, seven):
        key = resolve(seven, 2, offset=seven)
        assert key == noise.Key(7, 7)
        assert type(key.seed) is type(key.offset) is int
        assert draw_seed(seven) == 7

    def test_place(self, seven):
        assert [type(v) for v in checked_place(seven, seven)] == [int, int]
        assert checked_place(seven, seven) == (7, 7)

    def test_values(self, seven):
        expected = noise.normal((2, 3), 7, draw=7, stream=7, offset=7)
        found = noise.normal((2, 3), seven, draw=seven, stream=seven, offset=seven)
        assert torch.equal(found, expected)
        expected = noise.uniform((2, 3), 7, draw=7, stream=7, offset=7)
        found = noise.uniform((2, 3), seven, draw=seven, stream=seven, offset=seven)
        assert torch.equal(found, expected)

    def test_steps(self, seven):
        x = torch.ones(2, 3)
        expected = ops.add_noise(x, 0.5, seed=7, stream=7, draw=7, offset=7)
        found = ops.add_noise(x, 0.5, seed=seven, stream=seven, draw=seven, offset=seven)
        assert torch.equal(found, expected)
        expected = ops.euler_maruyama_step(x, x, 0.5, 0.1, seed=7, stream=7, draw=7, offset=7)
        found = ops.euler_maruyama_step(
            x, x, 0.5, 0.1, seed=seven, stream=seven, draw=seven, offset=seven
        )
        assert torch.equal(found, expected)


def test_a_seed_of_64_bits():
    assert noise.Key(np.uint64(2**64 - 1)) == noise.Key(2**64 - 1) == noise.Key(-1)
    assert resolve(np.uint64(2**64 - 1), 1) == noise.Key(-1)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 1.0, np.float64(1.0), "1", np.array([1, 2]), np.array(1.0)]
)
class TestNoIntegers:
    def test_seed(self, value):
        name = type(value).__name__
        text = f"seed must be an int, an int64 tensor.*; got {name}$"
        if getattr(value, "ndim", 0):  # a seed per sample, of two samples or of floats
            text = r"seed must hold 1 entries|seed\[0\] must be an int; got float"
        with pytest.raises((TypeError, ValueError), match=text):
            resolve(value, 1)
        with pytest.raises(TypeError, match=f"seed of a Key must be an int; got {name}$"):
            noise.Key(value)

    def test_places(self, value):
        name = type(value).__name__
        with pytest.raises(TypeError, match=f"offset must be an int; got {name}$"):
            resolve(0, 1, offset=value)
        with pytest.raises(TypeError, match=f"stream must be an int; got {name}$"):
            checked_place(value, 0)
        with pytest.raises(TypeError, match=f"draw must be an int; got {name}$"):
            checked_place(0, value)


def test_no_tensor_as_a_place():
    """Reading one would wait for its device."""
    with pytest.raises(TypeError, match="draw must be an int; got Tensor"):
        noise.normal((1, 2), 0, draw=torch.tensor(1))
    with pytest.raises(TypeError, match="offset of a Key must be an int; got Tensor"):
        noise.Key(0, torch.tensor(1))


def test_a_range_is_kept():
    with pytest.raises(ValueError, match=r"stream must lie in \[0, 2\^8\); got 256"):
        checked_place(np.int64(256), 0)
    with pytest.raises(ValueError, match=r"draw must lie in \[0, 2\^32\); got -1"):
        checked_place(0, np.int64(-1))
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^64\); got -1"):
        resolve(np.int64(-1), 1)


class TestSequences:
    """One seed, or one generator, per sample."""

    @pytest.mark.parametrize("kind", [list, tuple, np.array, lambda s: np.array(s, np.uint64)])
    def test_ints_are_a_tensor_of_them(self, kind):
        seeds = [7, 2**40, 9]
        expected = noise.normal((3, 5), torch.tensor(seeds))
        assert torch.equal(noise.normal((3, 5), kind(seeds)), expected)
        x = torch.ones(3, 5)
        step = ops.euler_maruyama_step(x, x, 1.0, 0.1, seed=kind(seeds))
        assert torch.equal(step, ops.euler_maruyama_step(x, x, 1.0, 0.1, seed=torch.tensor(seeds)))
        assert torch.equal(noise.normal((1, 5), kind([9])), expected[2:])

    def test_large_ints(self):
        z = noise.normal((2, 5), [2**64 - 3, 2**63])
        assert torch.equal(z[:1], noise.normal((1, 5), 2**64 - 3))
        assert torch.equal(z[1:], noise.normal((1, 5), 2**63))

    def test_generators_draw_one_each(self):
        made = [torch.Generator().manual_seed(k) for k in (1, 2)]
        seeds = [draw_seed(torch.Generator().manual_seed(k)) for k in (1, 2)]
        assert torch.equal(noise.normal((2, 5), made), noise.normal((2, 5), torch.tensor(seeds)))
        assert not torch.equal(noise.normal((2, 5), made), noise.normal((2, 5), seeds))

    def test_samplers_take_them(self):
        x, levels = torch.ones(3, 4), cm.karras_sigmas(5)
        model = lambda x, s: 0.5 * x  # noqa: E731
        for name in ("euler_ancestral", "dpmpp_2m_sde"):
            sampler = getattr(cm, name)
            whole = sampler(model, x, levels, seed=[3, 4, 5])
            assert torch.equal(whole, sampler(model, x, levels, seed=torch.tensor([3, 4, 5])))
            assert torch.equal(whole[1:2], sampler(model, x[1:2], levels, seed=[4]))
        generators = [torch.Generator().manual_seed(k) for k in range(3)]
        states = [g.get_state() for g in generators]
        cm.heun_pf_ode(model, x, levels, seed=generators)  # no noise is drawn
        assert all(torch.equal(g.get_state(), s) for g, s in zip(generators, states, strict=True))
        a = cm.euler_ancestral(model, x, levels, seed=generators)
        assert not torch.equal(a, cm.euler_ancestral(model, x, levels, seed=generators))

    @pytest.mark.parametrize(
        "seed, error, text",
        [
            ([1, 2], ValueError, "seed must hold 3 entries, one per sample; got 2"),
            ([], ValueError, "seed must hold 3 entries, one per sample; got 0"),
            ([1, 2.5, 3], TypeError, r"seed\[1\] must be an int; got float"),
            ([1, -2, 3], ValueError, r"seed must lie in \[0, 2\^64\); got -2"),
            ([1, True, 3], TypeError, r"seed\[1\] must be an int; got bool"),
            (np.ones(3), TypeError, r"seed\[0\] must be an int; got float"),
            ("abc", TypeError, "seed must be an int, an int64 tensor"),
            ([torch.Generator(), 1, 2], TypeError, "ints or generators alone; got int too"),
        ],
    )
    def test_what_is_refused(self, seed, error, text):
        with pytest.raises(error, match=text):
            noise.normal((3, 5), seed)
        with pytest.raises(error, match=text):
            cm.heun_pf_ode(lambda x, s: x, torch.ones(3, 5), [2.0, 1.0], seed=seed)


@pytest.mark.parametrize("four", [np.int64(4), np.uint8(4), np.array(4)])
def test_counts_may_be_numpy_integers(four):
    assert torch.equal(cm.karras_sigmas(four), cm.karras_sigmas(4))
    x = torch.ones(3, 5)
    y = cm.lms(lambda x, s: 0.5 * x, x, cm.karras_sigmas(6), order=four)
    assert torch.equal(y, cm.lms(lambda x, s: 0.5 * x, x, cm.karras_sigmas(6), order=4))
    for bad in (np.float64(4.0), np.bool_(True), torch.tensor(4)):
        with pytest.raises(TypeError, match="n must be an int"):
            cm.karras_sigmas(bad)
