"""The headers without torch, compiled alone: Philox and Box-Muller on words of our choice."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from cmsolvers.ops import reference, rules
from support import ROOT
from support.exact import SETS, assert_same_bits
from support.philox import KNOWN, hexes

CSRC = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(not CSRC.exists(), reason="needs the sources"),
]

# Reads rows of six words (counter, key) and writes the four words and the four normals of each.
HARNESS = """
#define CMS_ISA {name}
#include <cstdio>
#include <vector>
#include "cpu/lanes_{name}.h"
using namespace cmsolvers::{name};
int main() {{
  std::vector<uint32_t> in;
  uint32_t word;
  while (std::fread(&word, 4, 1, stdin) == 1) in.push_back(word);
  constexpr int W = Lanes::width;
  for (size_t at = 0; at < in.size() / 6; at += W) {{
    alignas(64) uint32_t lane[6][W] = {{}};
    for (size_t i = 0; i < W && at + i < in.size() / 6; ++i)
      for (int j = 0; j < 6; ++j) lane[j][i] = in[6 * (at + i) + j];
    Lanes::U c[4], raw[4];
    for (int j = 0; j < 4; ++j) c[j] = raw[j] = Lanes::load_words(lane[j]);
    Lanes::philox_lanes(c, Lanes::load_words(lane[4]), Lanes::load_words(lane[5]));
    Lanes::F z[4], words[4];
    for (int j = 0; j < 4; ++j) words[j] = Lanes::from_bits(c[j]);
    box_muller<Lanes>(raw[0], raw[1], z[0], z[1]);  // of the counter itself, not of Philox's words
    box_muller<Lanes>(raw[2], raw[3], z[2], z[3]);
    float out[2][4 * W];
    Lanes::store_interleaved(words, out[0]);
    Lanes::store_interleaved(z, out[1]);
    for (size_t i = 0; i < W && at + i < in.size() / 6; ++i) {{
      std::fwrite(out[0] + 4 * i, 4, 4, stdout);
      std::fwrite(out[1] + 4 * i, 4, 4, stdout);
    }}
  }}
}}
"""


@pytest.fixture(scope="module", params=SETS)
def run(request, tmp_path_factory):
    """The compiled harness as a function of rows [n, 6]: words [n, 4] and normals [n, 4]."""
    folder = tmp_path_factory.mktemp("headers")
    source, binary = folder / "harness.cpp", folder / "harness"
    source.write_text(HARNESS.format(name=request.param))
    command = [COMPILER, "-std=c++17", "-O2", "-w", "-ffp-contract=off", *FLAGS[request.param]]
    subprocess.run([*command, f"-I{CSRC}", str(source), "-o", str(binary)], check=True)

    def call(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        data = np.ascontiguousarray(rows, dtype=np.uint32)
        done = subprocess.run([str(binary)], input=data.tobytes(), capture_output=True, check=True)
        out = np.frombuffer(done.stdout, dtype=np.int32).reshape(-1, 8).copy()
        return torch.from_numpy(out[:, :4]), torch.from_numpy(out[:, 4:]).contiguous().view(
            torch.float32
        )

    return call


def test_known_answers(run):
    rows = [hexes(counter) + hexes(key) for counter, key, _ in KNOWN]
    words, _ = run(np.array(rows * 7))
    expected = [hexes(answer) for _, _, answer in KNOWN] * 7
    assert (words.long() & 0xFFFFFFFF).tolist() == expected


def test_box_muller_on_extreme_words(run):
    marks = [k << 29 for k in range(9)] + [0xB504F333, 0x5A82799A]
    near = [0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 511, 2**23, 2**24 - 1, 2**24 + 1]
    words = sorted({(m + s) % 2**32 for m in marks for s in (*near, *(-v for v in near))})
    pairs = np.array(list(itertools.product(words, words)), dtype=np.uint32)
    rows = np.concatenate([pairs, pairs[::-1], np.zeros_like(pairs)], axis=1)
    _, z = run(rows)
    r = [torch.from_numpy(rows[:, j].astype(np.int64)) for j in range(4)]
    plain = (*reference._box_muller(r[0], r[1]), *reference._box_muller(r[2], r[3]))
    assert_same_bits(z, torch.stack(plain, dim=1).float())


def test_random_words(run):
    rows = np.random.default_rng(5).integers(0, 2**32, (100_000, 6))
    words, z = run(rows)
    t = [torch.from_numpy(rows[:, j]) for j in range(6)]
    expected = torch.stack(reference.philox((t[0], t[1], t[2], t[3]), (t[4], t[5])), dim=1)
    assert torch.equal(words.long() & 0xFFFFFFFF, expected)
    plain = (*reference._box_muller(t[0], t[1]), *reference._box_muller(t[2], t[3]))
    assert_same_bits(z, torch.stack(plain, dim=1).float())


# Reads cases of three words of 64 bits: the rule and arguments 0 and 1 (those of `folded`: w_x and
# w_1, with c_skip = 0.3 and c_out = 0.8; sigma_min is 0.002). Writes the ten weights of each, then
# the float64 values of all words of 16 bits, as float16 and as bfloat16.
WEIGHTS_HARNESS = """
#define CMS_ISA {name}
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include "cpu/lanes_{name}.h"
#include "step/weights.h"
using namespace cmsolvers;
using namespace cmsolvers::{name};
int main() {{
  uint64_t word[3];
  while (std::fread(word, 8, 3, stdin) == 3) {{
    double w[kWeights] = {{}};
    std::memcpy(w, word + 1, 16);
    if (static_cast<Rule>(word[0]) == Rule::consistency) w[2] = w[3] = 0.002;
    if (static_cast<Rule>(word[0]) == Rule::folded) w[kSkip] = 0.3, w[kOut] = 0.8;
    apply_rule(static_cast<Rule>(word[0]), w);
    std::fwrite(w, 8, kWeights, stdout);
  }}
  for (DType type : {{DType::f16, DType::bf16}})
    for (int i = 0; i < 65536; ++i) {{
      const uint16_t half[3] = {{0, 0, static_cast<uint16_t>(i)}};
      const double value = read_argument({{half, 2, type}}, 1);
      std::fwrite(&value, 8, 1, stdout);
    }}
}}
"""


RULES = (
    rules.WEIGHTS, rules.PF_ODE, rules.HEUN, rules.CONSISTENCY, rules.EDM_INPUT, rules.EDM_OUTPUT,
    rules.EULER_MARUYAMA, rules.FOLDED,
)  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_rules(name, tmp_path):
    """The weights of every rule, to the bit those of rules.py; and every 16-bit argument."""
    source, binary = tmp_path / "harness.cpp", tmp_path / "harness"
    source.write_text(WEIGHTS_HARNESS.format(name=name))
    command = [COMPILER, "-std=c++17", "-O2", "-w", "-ffp-contract=off", *FLAGS[name]]
    subprocess.run([*command, f"-I{CSRC}", str(source), "-o", str(binary)], check=True)
    generator = np.random.default_rng(3)
    pairs = np.exp(generator.uniform(-7, 5, (2000, 2)))
    pairs[rules.PF_ODE] = 0.5, 0.0
    which = np.arange(len(pairs)) % len(RULES)
    cases = np.column_stack([which.astype(np.uint64), pairs.view(np.uint64)])
    done = subprocess.run([str(binary)], input=cases.tobytes(), capture_output=True, check=True)
    out = torch.from_numpy(np.frombuffer(done.stdout, dtype=np.float64).copy())
    weights, values = out[: -2 * 65536].view(-1, 10), out[-2 * 65536 :].view(2, -1)
    for rule, pair, got in zip(which.tolist(), pairs.tolist(), weights, strict=True):
        if rule == rules.WEIGHTS:
            expected = [*pair, *[0.0] * 8]
        elif rule == rules.FOLDED:
            expected = [*rules.folded(*pair, 0.3, 0.8), *[0.0] * 5, 1.0, 0.0, 0.0]
        else:
            numbers = [*pair, 0.002] if rule == rules.CONSISTENCY else pair
            count = {rules.HEUN: 2, rules.EDM_INPUT: 0}.get(rule, 1)
            made = rules.canonical(numbers, [], [], rule, count)
            expected = [*made[: count + 1], *[0.0] * (4 - count), *made[count + 1 :]]
        assert_same_bits(got, torch.tensor(expected, dtype=torch.float64), f"{rule} {pair}")
    words = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype, got in zip((torch.float16, torch.bfloat16), values, strict=True):
        expected = words.view(dtype).double()
        number = ~expected.isnan()
        assert torch.equal(got.isnan(), expected.isnan())
        assert_same_bits(got[number], expected[number])
