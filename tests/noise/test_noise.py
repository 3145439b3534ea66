"""The noise contract: known answers, an independent computation, and what must not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.ops import random, reference
from support.exact import SETS, assert_same_bits, instruction_set, threads
from support.philox import KNOWN, hexes

M32 = np.uint64(0xFFFFFFFF)

SHAPES = [
    (1,), (5,), (0,), (1, 1), (3, 0), (0, 4), (1000, 1), (7, 3), (33, 2), (50, 5), (2, 1023),
    (3, 4, 5), (1, 4099), (2, 3, 17, 5), (2, 3, 1, 2, 7, 3), (3, 20_003), (9, 255), (9, 257),
]  # fmt: skip

# normal((2, 3), seed=2024, draw=7, stream=1, offset=5): words of the first group, bits of z.
FIRST_WORDS = ["0x624856cb", "0x963ef22a", "0x23033cf1", "0xde41d8f2"]
FIRST_BITS = [-1080599213, -1086852882, 1068279840, -1075670238, 1060313271, 1063974908]


def numpy_philox(counter: list[np.ndarray], key: list[np.ndarray]) -> list[np.ndarray]:
    """Philox4x32-10 from the paper, on uint64 arrays; shares no code with the library."""
    c = [np.asarray(v, dtype=np.uint64) for v in counter]
    k = [np.asarray(v, dtype=np.uint64) for v in key]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ k[0],
            p1 & M32,
            (p0 >> np.uint64(32)) ^ c[3] ^ k[1],
            p0 & M32,
        ]
        k = [(k[0] + np.uint64(0x9E3779B9)) & M32, (k[1] + np.uint64(0xBB67AE85)) & M32]
    return c


def numpy_words(
    batch: int, count: int, seed: int, ids: list[int], stream: int, draw: int
) -> np.ndarray:
    """Random words of the contract, [batch, groups, 4]."""
    group = np.arange(-(-count // 4), dtype=np.uint64)[None, :].repeat(batch, 0)
    sample = np.array(ids, dtype=np.uint64)[:, None]
    top = ((sample >> np.uint64(32)) & np.uint64(0xFFFFFF)) | np.uint64(stream << 24)
    key = [np.full_like(group, seed & 0xFFFFFFFF), np.full_like(group, seed >> 32)]
    counter = [
        group,
        np.full_like(group, draw),
        sample & M32 | np.zeros_like(group),
        top | np.zeros_like(group),
    ]
    return np.stack(numpy_philox(counter, key), axis=-1)


def numpy_box_muller(r0: np.ndarray, r1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact functions, in float64, of the float32 inputs that the contract names."""
    u = (r0.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float32)
    turns = r1.astype(np.uint32).view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u.astype(np.float64)))
    quadrant = np.rint(4.0 * turns)
    angle = (
        2.0 * np.pi * (turns - 0.25 * quadrant)
    )  # the difference is exact: cos is right near its zeros too
    sin, cos = np.sin(angle), np.cos(angle)
    k = quadrant.astype(np.int64) % 4
    return (
        radius * np.choose(k, [cos, -sin, -cos, sin]),
        radius * np.choose(k, [sin, cos, -sin, -cos]),
    )


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of float32."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / unit


class TestContract:
    @pytest.mark.parametrize(("counter", "key", "answer"), KNOWN, ids=["zeros", "ones", "pi"])
    def test_known_answers(self, counter, key, answer):
        c = [torch.tensor([word]) for word in hexes(counter)]
        k = [torch.tensor([word]) for word in hexes(key)]
        assert [int(r) for r in reference.philox(tuple(c), tuple(k))] == hexes(answer)
        mine = numpy_philox([[w] for w in hexes(counter)], [[w] for w in hexes(key)])
        assert [int(r[0]) for r in mine] == hexes(answer)

    def test_version_and_streams(self):
        assert noise.VERSION == 1
        streams = (
            noise.LATENT,
            noise.STEPS,
            noise.BROWNIAN,
            noise.TRAINING,
            noise.LEVELS,
            noise.OTHER,
        )
        assert streams == (0, 1, 2, 3, 4, 5)

    def test_first_values_of_version_1(self):
        """Written down once: no change may move them."""
        z = noise.normal((2, 3), 2024, draw=7, stream=noise.STEPS, offset=5)
        words = numpy_words(2, 3, 2024, [5, 6], 1, 7)
        assert [hex(int(w)) for w in words[0, 0]] == FIRST_WORDS
        assert z.view(torch.int32).flatten().tolist() == FIRST_BITS

    @pytest.mark.parametrize(
        ("seed", "offset", "stream", "draw"),
        [(0, 0, 0, 0), (2**64 - 1, 2**56 - 4, 255, 2**32 - 1), (2**40 + 17, 2**33 + 5, 3, 12345)],
    )
    def test_independent_float64(self, seed, offset, stream, draw):
        batch, count = 4, 100_001
        z = noise.normal((batch, count), seed, offset=offset, stream=stream, draw=draw)
        r = numpy_words(batch, count, seed, [offset + b for b in range(batch)], stream, draw)
        pairs = (*numpy_box_muller(r[..., 0], r[..., 1]), *numpy_box_muller(r[..., 2], r[..., 3]))
        exact = np.stack(pairs, axis=-1).reshape(batch, -1)[:, :count]
        assert ulps(z.numpy(), exact).max() <= 4
        other = noise.normal((batch, count), seed, offset=offset, stream=stream, draw=draw ^ 1)
        assert ulps(other.numpy(), exact).max() > 1e4  # negative control

    def test_extreme_words(self):
        steps = [0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 511]
        marks = [
            k << 29 for k in range(9)
        ]  # octants of the turn: zeros of sin and cos, and where they cross
        words = sorted({(m + s) % 2**32 for m in marks for s in (*steps, *(-v for v in steps))})
        words += [
            0x3504F333 * 4 & 0xFFFFFFFF,
            0xB504F334,
            0xB504F333,
            0x5A82799A,
        ]  # about sqrt(1/2), where ln splits
        r0, r1 = (torch.tensor(v) for v in zip(*itertools.product(words, words), strict=True))
        got = torch.stack(reference._box_muller(r0, r1)).numpy()
        exact = np.stack(
            numpy_box_muller(r0.numpy().astype(np.uint64), r1.numpy().astype(np.uint64))
        )
        assert np.isfinite(got).all()
        assert ulps(got, exact).max() <= 4
        assert (got[np.abs(exact) == 0] == 0).all()
        assert 6.6 < np.abs(got).max() < 6.8  # the smallest u
        u_is_one = reference._box_muller(torch.tensor([2**32 - 1]), torch.tensor([12345]))
        assert float(u_is_one[0]) == 0.0

    def test_pieces(self):
        """ln and sincos alone, over all scales."""
        u = torch.exp(-torch.rand(200_000, dtype=torch.float64) * 22).float().double()
        u = torch.cat(
            (u, torch.tensor([1.0, 2.0**-33, 0.5, 1 - 2.0**-24, 2.0**-0.5]).float().double())
        )
        u = u[u >= 2.0**-33]
        assert ulps(reference._ln(u).numpy(), np.log(u.numpy())).max() <= 1.0
        t = (torch.rand(200_000, dtype=torch.float64) - 0.5).float().double()
        tiny = t * 2.0**-20
        t = torch.cat(
            (t, tiny, tiny.float() + 0.25, torch.tensor([-0.5, 0.5, 0.25, -0.25, 0.125, 0.0]))
        )
        t = t.float().double()
        sin, cos = reference._sincos_turns(t)
        k = np.rint(4 * t.numpy())
        angle = 2 * np.pi * (t.numpy() - 0.25 * k)
        s, c = np.sin(angle), np.cos(angle)
        q = k.astype(np.int64) % 4
        assert ulps(sin.numpy(), np.choose(q, [s, c, -s, -c])).max() <= 2
        assert ulps(cos.numpy(), np.choose(q, [c, -s, -c, s])).max() <= 2


class TestSameBits:
    @pytest.mark.parametrize("name", SETS)
    def test_instruction_sets_and_plain_torch(self, name):
        for shape in SHAPES:
            for seed, offset, stream, draw in (
                (1, 0, 0, 0),
                (2**63 + 9, 2**32 - 2, 255, 2**32 - 1),
            ):
                with instruction_set(name):
                    z = noise.normal(shape, seed, offset=offset, stream=stream, draw=draw)
                seed = seed - 2**64 if seed >= 2**63 else seed
                plain = reference.normal(
                    shape, seed=seed, offset=offset, table=None, stream=stream, draw=draw
                )
                assert_same_bits(z, plain, f"{name} {shape}")

    @pytest.mark.parametrize("name", SETS)
    def test_seeds_and_ids_a_sample(self, name):
        seeds = torch.tensor([3, -1, 2**62, 0, 9, 9, -(2**63)])
        ids = torch.tensor([0, 2**56 - 1, 2**32, 5, 1, 2, 2**31])
        for shape in ((7,), (7, 2), (7, 9), (7, 3, 100)):
            with instruction_set(name):
                z = noise.normal(shape, seeds, ids=ids)
            for b in range(7):
                one = noise.normal((1, *shape[1:]), int(seeds[b]) % 2**64, offset=int(ids[b]))
                assert_same_bits(z[b : b + 1], one)

    def test_many_draws(self):
        z = noise.normal((3, 300_001), 99, draw=4)
        plain = reference.normal((3, 300_001), seed=99, offset=0, table=None, stream=0, draw=4)
        assert_same_bits(z, plain)

    @pytest.mark.parametrize("shape", [(8, 1), (8, 5), (8, 3, 7, 5), (8, 2000)])
    def test_batch_split(self, shape):
        whole = noise.normal(shape, 5, offset=3)
        for cut in range(9):
            head = noise.normal((cut, *shape[1:]), 5, offset=3)
            tail = noise.normal((8 - cut, *shape[1:]), 5, offset=3 + cut)
            assert_same_bits(torch.cat((head, tail)), whole)
        assert not torch.equal(noise.normal(shape, 5, offset=4), whole)

    @pytest.mark.parametrize("shape", [(8,), (8, 5), (8, 3, 7, 5), (8, 2000)])
    def test_permutation_with_ids(self, shape):
        order = torch.tensor([3, 1, 0, 7, 6, 2, 5, 4])
        whole = noise.normal(shape, 5)
        assert_same_bits(noise.normal(shape, 5, ids=order), whole[order])
        assert_same_bits(noise.normal(shape, 5, ids=torch.arange(8)), whole)

    @pytest.mark.parametrize(
        "shape", [(3, 4, 5, 6), (2, 3, 17, 5), (1, 3, 4, 5), (5, 1, 7, 2), (40, 3, 16, 16)]
    )
    def test_memory_format(self, shape):
        plain = noise.normal(shape, 5, offset=2)
        last = noise.normal(shape, 5, offset=2, memory_format=torch.channels_last)
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert_same_bits(last, plain)
        for order in itertools.permutations(range(4)):  # the batch need not be outermost
            stored = torch.empty([shape[d] for d in order])
            out = stored.permute(*(order.index(d) for d in range(4)))
            assert noise.normal(shape, 5, offset=2, out=out) is out
            assert_same_bits(out, plain, str(order))

    @pytest.mark.parametrize("name", SETS)
    def test_memory_format_in_steps(self, name):
        x = torch.zeros(4, 3, 10, 9)
        with instruction_set(name):
            plain = ops.add_noise(x, 1.0, seed=5)
            for layout in (
                x.contiguous(memory_format=torch.channels_last),
                x.transpose(0, 3).contiguous().transpose(0, 3),
                x.transpose(0, 1).contiguous().transpose(0, 1),
            ):
                noisy = ops.add_noise(layout, 1.0, seed=5)
                assert noisy.stride() == layout.stride()
                assert_same_bits(noisy, plain)

    @pytest.mark.parametrize("shape", [(5,), (7, 3), (3, 1001)])
    def test_dtype(self, shape):
        z = noise.normal(shape, 5)
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert_same_bits(noise.normal(shape, 5, dtype=dtype), z.to(dtype))

    def test_thread_count(self):
        with threads(1):
            one = noise.normal((5, 40_001), 5), noise.normal((30_000, 2), 5)
        for count in (2, 3):
            with threads(count):
                assert_same_bits((noise.normal((5, 40_001), 5), noise.normal((30_000, 2), 5)), one)

    def test_fused_equals_alone(self):
        x, f = torch.randn(6, 3, 5), torch.randn(6, 3, 5)
        z = noise.normal(x.shape, 8, stream=noise.STEPS, draw=3, offset=2)
        fused = ops.weighted_step(0 * x, (f,), (0.0, 0.0), w_z=1.0, seed=8, draw=3, offset=2)
        assert_same_bits(fused, z)
        step = ops.weighted_step(x, (f,), (0.5, 0.25), w_z=2.0, seed=8, draw=3, offset=2)
        torch.testing.assert_close(step, 0.5 * x + 0.25 * f + 2.0 * z)

    def test_out_is_misaligned(self):
        out = torch.empty(3 * 1000 + 1)[1:].view(3, 1000)
        noise.normal((3, 1000), 5, out=out)
        assert_same_bits(out, noise.normal((3, 1000), 5))


def words_of(*shape: int, **arguments: int | Tensor) -> np.ndarray:
    """Pairs of random words, through noise.uniform, which keeps all their bits in float64."""
    u = noise.uniform(shape, **arguments, dtype=torch.float64)
    r = (u * 2.0**32 - 0.5).to(torch.int64).numpy().reshape(-1, 2).astype(np.uint64)
    return r[:, 0] << np.uint64(32) | r[:, 1]


class TestSeparation:
    def test_nothing_overlaps(self):
        """Seeds, ids, streams, draws, elements: all lead to other words, no pair occurs twice."""
        found = [
            words_of(40, 40, seed=seed, stream=stream, draw=draw, offset=offset)
            for seed in (0, 1, 2**32, 2**63)
            for stream in (0, 1, 2, 255)
            for draw in (0, 1, 2**31)
            for offset in (0, 2**32, 2**55)
        ]
        pairs = np.concatenate(found)
        assert len(np.unique(pairs)) == len(pairs) > 10**5
        again = np.concatenate([pairs, words_of(2, 40, seed=2**32, stream=1)])  # negative control
        assert len(np.unique(again)) == len(again) - 40

    @pytest.mark.parametrize("bit", [0, 31, 32, 55])
    def test_bits_of_the_id(self, bit):
        assert not torch.equal(noise.normal((1, 8), 1, offset=1 << bit), noise.normal((1, 8), 1))

    @pytest.mark.parametrize("bit", [0, 31, 32, 63])
    def test_bits_of_the_seed(self, bit):
        assert not torch.equal(noise.normal((1, 8), 1 << bit), noise.normal((1, 8), 0))

    def test_draws_and_streams(self):
        base = noise.normal((4, 9), 1)
        others = [noise.normal((4, 9), 1, draw=d) for d in (1, 2**16, 2**32 - 1)]
        others += [noise.normal((4, 9), 1, stream=s) for s in (1, 2, 5, 255)]
        for a, b in itertools.combinations([base, *others], 2):
            assert not (a == b).any()


class TestSeeds:
    def test_int_and_tensor_agree(self):
        z = noise.normal((3, 7), torch.tensor([-1, 5, 2**63 - 1]))
        for b, seed in enumerate((2**64 - 1, 5, 2**63 - 1)):
            assert_same_bits(z[b : b + 1], noise.normal((1, 7), seed))

    def test_manual_seed_governs(self):
        torch.manual_seed(3)
        first, second = noise.normal((2, 5), None), noise.normal((2, 5), None)
        torch.manual_seed(3)
        assert_same_bits((noise.normal((2, 5), None), noise.normal((2, 5), None)), (first, second))
        assert not torch.equal(first, second)

    def test_generator(self):
        g = torch.Generator().manual_seed(4)
        first, second = noise.normal((2, 5), g), noise.normal((2, 5), g)
        g.manual_seed(4)
        assert_same_bits((noise.normal((2, 5), g), noise.normal((2, 5), g)), (first, second))
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        noise.normal((2, 5), g)
        assert torch.equal(
            before, torch.random.get_rng_state()
        )  # the global generator is left alone

    def test_key(self):
        key = noise.key(5, 4, offset=3)
        assert_same_bits(noise.normal((4, 9), key), noise.normal((4, 9), 5, offset=3))
        ids = torch.tensor([9, 2, 2**40, 1])
        key = noise.key(2**64 - 3, 4, ids=ids)
        assert_same_bits(noise.normal((4, 9), key), noise.normal((4, 9), 2**64 - 3, ids=ids))
        assert noise.key(key, 4) is key
        g = torch.Generator().manual_seed(4)
        key = noise.key(g, 4)  # drawn once, used often
        assert_same_bits(noise.normal((4, 9), key), noise.normal((4, 9), key))

    @pytest.mark.parametrize("seed", [2**64 - 3, 2**63, 2**63 - 1])
    def test_key_by_hand(self, seed):
        """As noise.key, on the short way into the kernel and on the long one."""
        x = torch.zeros(2, 9)
        key, plain = noise.Key(seed, 4), noise.normal((2, 9), seed, offset=4)
        assert key == noise.key(seed, 2, offset=4)
        assert_same_bits(noise.normal((2, 9), key), plain)
        long = ops.weighted_step(x, (), (1.0,), w_z=1.0, seed=key, stream=0, second=1.0)[1]
        assert_same_bits(long, plain)
        assert_same_bits(noise.uniform((2, 9), key), noise.uniform((2, 9), seed, offset=4))

    def test_key_table_is_read_at_launch(self):
        key = noise.key(torch.tensor([1, 2]), 2)
        before = noise.normal((2, 9), key)
        key.table[:, 0] += 1
        assert_same_bits(noise.normal((2, 9), key)[:1], before[1:])

    def test_key_of_one_row_counts_up(self):
        key = noise.Key(table=torch.tensor([[7, 10]]))
        assert_same_bits(noise.normal((3, 9), key), noise.normal((3, 9), 7, offset=10))
        x = torch.zeros(3, 9)
        assert_same_bits(
            ops.add_noise(x, 1.0, seed=key, stream=0), noise.normal((3, 9), 7, offset=10)
        )

    def test_rows_of_a_key(self):
        """Every kind of key as a table of its rows: the same noise, in memory of its own."""
        seeds = torch.tensor([5, 2**40, 9])
        keys = [
            noise.Key(2**64 - 3, 7),
            noise.key(seeds, 3),
            noise.Key(table=torch.tensor([[7, 10]])),
        ]
        for key in keys:
            rows = key.rows(3, torch.device("cpu"))
            assert rows.shape == (3, 2) and rows.dtype == torch.int64
            table = noise.Key(table=rows)
            assert_same_bits(noise.normal((3, 9), table), noise.normal((3, 9), key))
            assert key.table is None or rows.data_ptr() != key.table.data_ptr()
            one = noise.Key(table=rows[2:])  # a row stands for its sample alone
            assert_same_bits(noise.normal((1, 9), one), noise.normal((3, 9), key)[2:])

    def test_extremes_of_ids(self):
        noise.normal((4, 2), 1, offset=2**56 - 4)
        z = noise.normal((1, 2), 1, ids=torch.tensor([2**56 - 1]))
        assert_same_bits(z, noise.normal((4, 2), 1, offset=2**56 - 4)[3:])


class TestUniform:
    def test_exact(self):
        u = noise.uniform((3, 11), 77, draw=5, offset=2, dtype=torch.float64)
        r = numpy_words(3, 11, 77, [2, 3, 4], noise.LEVELS, 5).reshape(3, -1)[:, :11]
        assert np.array_equal(u.numpy(), (r.astype(np.float64) + 0.5) * 2.0**-32)
        assert torch.equal(noise.uniform((3, 11), 77, draw=5, offset=2), u.float())

    def test_range_and_moments(self):
        u = noise.uniform((10, 20_000), 1, dtype=torch.float64)
        assert float(u.min()) > 0 and float(u.max()) < 1
        n = u.numel()
        assert abs(float(u.mean()) - 0.5) < 5 / np.sqrt(12 * n)
        assert abs(float(u.var()) - 1 / 12) < 5 / np.sqrt(180 * n)

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [
            (torch.float64, 2.0**-33, 1 - 2.0**-33),
            (torch.float32, 2.0**-33, 1 - 2.0**-24),
            (torch.bfloat16, 2.0**-33, 1 - 2.0**-8),
            (torch.float16, 2.0**-24, 1 - 2.0**-11),
        ],
    )
    def test_the_ends_of_each_dtype(self, dtype, low, high, monkeypatch):
        """For the words that lie at the ends, and where rounding turns to 0 or 1."""
        edges = {0, 1, 2**32 - 1, 2**32 - 2}
        edges |= {2**bits + more for bits in range(1, 32) for more in (-1, 0, 1)}
        edges |= {2**32 - 1 - r for r in edges}
        words = torch.tensor(sorted(edges))[: len(edges) // 4 * 4].reshape(-1, 4)
        words[-1, -1] = 2**32 - 1
        monkeypatch.setattr(reference, "words", lambda *_, **__: list(words.T[:, None]))
        monkeypatch.setattr(random, "_write", random._plain)  # the twin, which asks for words
        u = noise.uniform((1, words.numel()), 0, dtype=dtype)[0]
        exact = (words.flatten().double() + 0.5) * 2.0**-32
        assert u.dtype == dtype
        assert (float(u.min()), float(u.max())) == (low, high)
        assert torch.equal(u, u.sort().values)
        rounded = exact.to(dtype)
        inside = (rounded > 0) & (rounded < 1)
        assert torch.equal(u[inside], rounded[inside])
        assert bool(inside.all()) is (dtype == torch.float64)

    def test_ids_split_and_empty(self):
        u = noise.uniform((6,), 1)
        assert torch.equal(noise.uniform((6,), 1, ids=torch.tensor([5, 4, 3, 2, 1, 0])), u.flip(0))
        assert torch.equal(noise.uniform((2,), 1, offset=4), u[4:])
        assert noise.uniform((0, 3), 1).shape == (0, 3)
        assert noise.uniform((3, 0), 1).shape == (3, 0)
