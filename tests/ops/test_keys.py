"""What is taken as a seed, an offset, a stream and a draw."""

import numpy as np
import pytest
import torch

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
        with pytest.raises(TypeError, match=f"seed must be an int, an int64 tensor.*; got {name}$"):
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
