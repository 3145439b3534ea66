"""Sums of normals of many draws: the same bits from every kernel, and the right sum."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.ops.noise_sum import MAX_DRAWS, _plain, noise_sum
from support import ROOT, cases
from support.exact import SETS, assert_same_bits, instruction_set, threads

CSRC = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

DRAWS = [0, 3, 2**31 + 5, 2**32 - 1, 3]
WEIGHTS = [0.5, -1.25, 0.0, 2.0, 1e-3]
LAYOUTS = [
    cases.dense, cases.channels_last, cases.transposed, cases.misaligned, cases.strided,
]  # fmt: skip
SHAPES = [
    (1,), (5,), (0,), (3, 0), (50, 1), (33, 2), (50, 5), (7, 13), (2, 1023), (2, 3, 17, 5),
    (1, 4099), (3, 20_003), (40, 3, 16, 16),
]  # fmt: skip


def tables(batch: int) -> Tensor:
    """Draws and weights that differ from sample to sample; some weights are zero."""
    b = torch.arange(batch, dtype=torch.float64)[:, None]
    draws = (torch.tensor(DRAWS, dtype=torch.float64) + 7 * b) % 2**32
    weights = torch.tensor(WEIGHTS, dtype=torch.float64) * (1 - b % 3)
    return torch.stack((draws, weights), dim=-1)


def keys(batch: int) -> list[noise.Key]:
    """All kinds: a seed, a seed a sample, one row on the device."""
    ids = torch.arange(batch) * 3 + 2**40
    return [
        noise.key(2**63 + 11, batch, offset=2**32 - 2),
        noise.key(5, batch, ids=ids),
        noise.key(torch.arange(batch) - 1, batch),
        noise.Key(table=torch.tensor([[9, 4]])),
    ]


def plain(shape: tuple[int, ...], key: noise.Key, table: Tensor | None) -> Tensor:
    """The sum in plain torch."""
    out = torch.empty(shape)
    given = ([], []) if table is not None else (DRAWS, WEIGHTS)
    _plain(out, *given, table, [key.seed, key.offset, 2], key.table)
    return out


def summed(out: Tensor, key: noise.Key, table: Tensor | None = None) -> Tensor:
    given = ([], []) if table is not None else (DRAWS, WEIGHTS)
    return noise_sum(out, *given, table=table, key=key, stream=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_sum(shape):
    total = torch.zeros(shape, dtype=torch.float64)
    size = torch.zeros(shape, dtype=torch.float64)
    for draw, weight in zip(DRAWS, WEIGHTS, strict=True):
        term = weight * noise.normal(shape, 5, draw=draw, stream=2, offset=3, dtype=torch.float64)
        total, size = total + term, size + term.abs()
    out = summed(torch.empty(shape), noise.key(5, shape[0], offset=3))
    assert ((out - total).abs() <= 4 * 2.0**-24 * size).all()
    if out.numel() > 1:  # negative control
        wrong = summed(torch.empty(shape), noise.key(5, shape[0], offset=4))
        assert not ((wrong - total).abs() <= 4 * 2.0**-24 * size).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_and_plain_torch(name, shape):
    for key in keys(shape[0])[: 4 if shape[0] < 10 else 1]:
        for table in (None, tables(shape[0])):
            if table is not None and shape[0] > 10:
                continue
            with instruction_set(name):
                out = summed(torch.empty(shape), key, table)
            assert_same_bits(out, plain(shape, key, table), f"{name} {shape}")


def test_table_is_the_sum_of_each_sample():
    shape, table = (40, 3, 16, 16), tables(40)
    together = summed(torch.empty(shape), noise.key(5, 40), table)
    for b in range(40):
        one = noise_sum(
            torch.empty(1, *shape[1:]),
            [int(d) for d in table[b, :, 0]],
            table[b, :, 1].tolist(),
            key=noise.key(5, 1, offset=b),
            stream=2,
        )
        assert_same_bits(together[b : b + 1], one)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_layouts_and_dtypes(layout, dtype):
    shape = (4, 3, 10, 9)
    key = noise.key(5, 4)
    for table in (None, tables(4)):
        out = layout(torch.full(shape, 7.0, dtype=dtype))
        strides = out.stride()
        assert summed(out, key, table) is out and out.stride() == strides
        assert_same_bits(out, plain(shape, key, table).to(dtype))


def test_batch_innermost():
    out = torch.empty(5, 3, 4).permute(2, 0, 1)
    key = noise.key(5, 4)
    assert_same_bits(summed(out, key), plain((4, 5, 3), key, None))


def test_thread_count():
    key = noise.key(5, 5)
    with threads(1):
        one = summed(torch.empty(5, 40_001), key)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(summed(torch.empty(5, 40_001), key), one)


def test_nothing_to_add():
    key = noise.key(5, 2)
    for draws, weights in (([], []), ([4], [0.0])):
        out = noise_sum(torch.full((2, 9), 7.0), draws, weights, key=key, stream=2)
        assert_same_bits(out, torch.zeros(2, 9))


def test_most_draws():
    key = noise.key(5, 2)
    draws, weights = list(range(MAX_DRAWS)), [1.0] * MAX_DRAWS
    out = noise_sum(torch.empty(2, 99), draws, weights, key=key, stream=2)
    expected = torch.empty(2, 99)
    _plain(expected, draws, weights, None, [key.seed, key.offset, 2], None)
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (
            {"draws": list(range(129)), "weights": [1.0] * 129},
            ValueError,
            "draws must hold at most",
        ),
        ({"draws": [1, 2]}, ValueError, "draws and weights must be of one length"),
        ({"draws": [2**32]}, ValueError, r"draws must lie in \[0, 2\^32\); got 4294967296"),
        ({"draws": [-1]}, ValueError, "draws must lie in"),
        ({"table": torch.zeros(2, 4, 2).double()}, ValueError, "table must have shape"),
        ({"draws": [], "weights": [], "table": torch.zeros(2, 4)}, ValueError, "table must have"),
        (
            {"draws": [], "weights": [], "table": torch.zeros(3, 4, 2)},
            ValueError,
            "table must have",
        ),
        ({"draws": [], "weights": [], "table": torch.zeros(2, 4, 2)}, TypeError, "table must be"),
        ({"out": torch.empty(2, 3, dtype=torch.int32)}, TypeError, "expected float64, float32"),
        ({"key": noise.Key(table=torch.zeros(3, 2).long())}, ValueError, "key must have shape"),
    ],
)
def test_bad_input(given, error, text):
    out = given.pop("out", torch.full((2, 3), 7.0))
    before = out.clone()
    arguments = {"draws": [1], "weights": [1.0], "key": noise.key(1, 2), "stream": 2, **given}
    with pytest.raises(error, match=text):
        noise_sum(out, **arguments)
    assert torch.equal(out, before)


def test_registration():
    arguments = (torch.empty(4, 7), DRAWS, WEIGHTS, None, [5, 0, 2], None)
    torch.library.opcheck(torch.ops.cmsolvers.noise_sum, arguments)
    by_sample = (torch.empty(4, 7), [], [], tables(4), [5, 0, 2], torch.ones(4, 2).long())
    torch.library.opcheck(torch.ops.cmsolvers.noise_sum, by_sample)


def test_vmap_is_refused():
    with pytest.raises(RuntimeError, match="vmap over a sum of noise"):
        torch.vmap(lambda x: summed(x, noise.key(1, 4)))(torch.zeros(3, 4, 2))


HARNESS = """
#include <cstdio>
#include "noise_sum/group.h"
using namespace cmsolvers;
int main() {
  NoiseSumParams p;
  p.place.noise = true;
  p.place.stream = 2;
  p.place.seed = 0x8000000000000009u;
  p.place.offset = 0xFFFFFFFEu;
  p.n = 5;
  const uint32_t draws[] = {0, 3, 2147483653u, 4294967295u, 3};
  const float weights[] = {0.5f, -1.25f, 0.0f, 2.0f, 1e-3f};
  for (int k = 0; k < 5; ++k) p.draws[k] = draws[k], p.weights[k] = weights[k];
  for (int64_t sample = 0; sample < 4; ++sample)
    for (uint32_t group = 0; group < 9; ++group) {
      float sum[4];
      portable::noise_sum4(p, sample, group, sum);
      std::fwrite(sum, 4, 4, stdout);
    }
}
"""


@pytest.mark.skipif(COMPILER is None or not CSRC.exists(), reason="needs a compiler and sources")
def test_what_a_cuda_thread_does(tmp_path):
    """The header that CUDA threads run, compiled for the host."""
    (tmp_path / "harness.cpp").write_text(HARNESS)
    command = [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", f"-I{CSRC}", "harness.cpp"]
    subprocess.run([*command, "-o", "harness"], cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "harness")], capture_output=True, check=True)
    found = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(4, 36)
    key = noise.key(2**63 + 9, 4, offset=2**32 - 2)
    assert_same_bits(summed(torch.empty(4, 36), key), found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_cuda(layout, dtype):
    for shape in ((4, 3, 10, 9), (2, 3, 17, 5), (3, 4, 32, 32)):
        key = noise.key(torch.arange(shape[0]), shape[0])
        on_gpu = noise.key(torch.arange(shape[0]), shape[0], device="cuda")
        for table in (None, tables(shape[0])):
            out = layout(torch.full(shape, 7.0, dtype=dtype, device="cuda"))
            summed(out, on_gpu, None if table is None else table.cuda())
            assert_same_bits(out.cpu(), plain(shape, key, table).to(dtype))
