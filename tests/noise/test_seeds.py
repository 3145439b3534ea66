"""Seeds of steps: a pure function of the noise contract; loops that do not repeat noise."""

import itertools

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise, oracles
from cmsolvers.ops.reference import philox
from support.philox import KNOWN, hexes

STEPS = [0, 1, 2, 17, 2**32 - 1, 2**32, 2**56 - 1]
SEEDS = [0, 1, 2**31, 2**63, 2**64 - 1]
VALUES = [9265426842723427081, 1749714131794300097, 10057373594129143810]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_on_ints_gives_the_published_words(counter, key, words):
    assert philox(tuple(hexes(counter)), tuple(hexes(key))) == hexes(words)


def test_values_of_this_version():
    """Written down once: they change with noise.VERSION alone."""
    assert noise.VERSION == 1
    assert [noise.Seeds(0).at(k) for k in range(3)] == VALUES


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_two_words_of_the_contract(seed):
    for step in STEPS:
        place = {"stream": noise.SEEDS, "offset": step, "dtype": torch.float64}
        low, high = (int(u * 2.0**32) for u in noise.uniform((1, 2), seed, **place)[0].tolist())
        assert noise.Seeds(seed).at(step) == low + (high << 32)


def test_seeds_differ_from_each_other_and_from_those_chosen_by_hand():
    found = [noise.Seeds(seed).at(step) for seed, step in itertools.product(range(30), range(300))]
    assert len({*found, *range(100_000)}) == len(found) + 100_000
    bits = np.array([[(n >> k) & 1 for k in range(64)] for n in found])
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / len(found) ** 0.5  # each bit is a fair coin


def test_seeds_stand_wherever_a_seed_does():
    d, x = oracles.Gaussian(0.5).denoiser, 80.0 * noise.normal((4, 3), seed=0)
    sigmas, seeds = cm.karras_sigmas(5), noise.Seeds(3)
    runs = [cm.dpmpp_2m_sde(d, x, sigmas, seed=seeds.at(step)) for step in (0, 1, 0)]
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])
    again = [cm.dpmpp_2m_sde(d, x, sigmas, seed=3) for _ in range(2)]
    assert torch.equal(*again)  # what the loop with one seed does
    z = [noise.normal((50_000, 2), seeds.at(step)).flatten() for step in (0, 1)]
    assert abs(torch.corrcoef(torch.stack(z))[0, 1]) < 5 / 100_000**0.5


def test_one_job_in_batches_of_any_size():
    d, sigmas = oracles.Gaussian(0.5).denoiser, cm.karras_sigmas(5)

    def job(size):
        parts = []
        for done in range(0, 12, size):
            key = noise.Key(0, offset=done)
            x = 80.0 * noise.normal((size, 3), key)
            parts.append(cm.dpmpp_2m_sde(d, x, sigmas, seed=key))
        return torch.cat(parts)

    whole = job(12)
    assert torch.equal(job(4), whole) and torch.equal(job(3), whole)
    assert len(whole.unique(dim=0)) == 12


def test_a_drawn_seed_is_drawn_once():
    torch.manual_seed(7)
    seeds = noise.Seeds()
    assert seeds.at(3) == seeds.at(3) == noise.Seeds(seeds.seed).at(3)
    torch.manual_seed(7)
    assert noise.Seeds().seed == seeds.seed
    assert noise.Seeds(torch.Generator().manual_seed(7)).seed == seeds.seed
    assert noise.Seeds(5) == noise.Seeds(np.int64(5)) != noise.Seeds(6)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: noise.Seeds(-1), ValueError, r"seed must lie in \[0, 2\^64\); got -1"),
        (lambda: noise.Seeds(0.5), TypeError, "seed must be an int, .*; got float"),
        (lambda: noise.Seeds(0).at(-1), ValueError, r"step must lie in \[0, 2\^56\); got -1"),
        (lambda: noise.Seeds(0).at(2**56), ValueError, r"step must lie in \[0, 2\^56\); got 7"),
        (lambda: noise.Seeds(0).at(1.0), TypeError, "step must be an int; got float"),
        (
            lambda: noise.normal((2, 2), noise.Seeds(0)),
            TypeError,
            r"seed must be that of one step, seeds.at\(step\); got Seeds",
        ),
    ],
)
def test_bad_input(make, error, text):
    with pytest.raises(error, match=text):
        make()
