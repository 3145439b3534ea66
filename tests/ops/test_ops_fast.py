"""The short way into the kernel: to the bit what the general way gives, and None with nothing
written wherever the case is not plain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.ops import named, rules, step
from support.exact import SETS, assert_same_bits, instruction_set

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F64, F32, F16, BF16]
PAIRS = [(a, a) for a in DTYPES] + [(F64, F32), (F64, BF16), (F32, F16), (F32, BF16)]
FAST: Callable[..., Any] = step.FAST  # type: ignore[assignment]
NO_NOISE = (0.0, None, 0, 0, 0)

pytestmark = pytest.mark.skipif(step.FAST is None, reason="needs the extension")


def values(k: int, dtype: torch.dtype = F32, shape: tuple[int, ...] = (5, 3, 7)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(k), dtype=F64).to(dtype)


def levels(k: int, dtype: torch.dtype = F64) -> Tensor:
    values = torch.rand(5, generator=torch.Generator().manual_seed(90 + k), dtype=F64)
    return torch.where(torch.arange(5) == k, 0.0, values).to(dtype)


@contextmanager
def general() -> Iterator[None]:
    """Without the short way, in `step` alone: the operators are called."""
    kept, step.FAST = step.FAST, None
    try:
        yield
    finally:
        step.FAST = kept


@contextmanager
def without_fast() -> Iterator[None]:
    """Without the short way anywhere."""
    kept, named.FAST = named.FAST, None
    try:
        with general():
            yield
    finally:
        named.FAST = kept


# Keywords of ops.weighted_step, and the same as FAST takes them: (seed, second, basis, clamp).
SEED = {"seed": 2**64 - 3, "stream": 3, "draw": 7, "offset": 40}
OWN = torch.tensor([[3, 9], [-4, 8], [3, 2**40], [0, 0], [1, 1]])
ONE = torch.tensor([[12, 2**33]])
MODES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "scaled": ({"second": 0.3}, (0.3, None, None)),
    "scaled by sample": ({"second": levels(1)}, (levels(1), None, None)),
    "x0": ({"second": "x0"}, (True, None, None)),
    "x0 of F": ({"second": "x0", "x0": (0.2, 0.7)}, (True, (0.2, 0.7), None)),
    "x0 of F, by sample": (
        {"second": "x0", "x0": (levels(0), 0.7)},
        (True, (levels(0), 0.7), None),
    ),
    "x0 of F, clamped": (
        {"second": "x0", "x0": (0.2, 0.7), "clamp": (-0.5, 1)},
        (True, (0.2, 0.7), (-0.5, 1)),
    ),
    "scaled, basis": ({"second": 0.3, "x0": (0.2, 0.7)}, (0.3, (0.2, 0.7), None)),
    "scaled, basis by sample": (
        {"second": 0.3, "x0": (levels(2), levels(3).float())},
        (0.3, (levels(2), levels(3).float()), None),
    ),
    "scaled, basis, clamp": (
        {"second": levels(2), "x0": (0.2, levels(1)), "clamp": (-0.3, 0.4)},
        (levels(2), (0.2, levels(1)), (-0.3, 0.4)),
    ),
    "clamp": ({"second": 2.0, "clamp": (-float("inf"), 0.2)}, (2.0, None, (-float("inf"), 0.2))),
    "pair": ({"second": ("pair", 0.4, 0.0)}, ((0.4, 0.0), None, None)),
}


class TestSameBits:
    @pytest.mark.parametrize("second", DTYPES, ids=str)
    @pytest.mark.parametrize(("state", "model"), PAIRS, ids=str)
    @pytest.mark.parametrize("mode", MODES)
    def test_dtypes(self, mode, state, model, second):
        """Outputs made, given, of either kind, and the second alone; weights of every kind."""
        x, m, n = values(0, state), values(1, model), values(2, model)
        keywords, modes = MODES[mode]
        for weights in ((0.4, -0.6, 0.25), (levels(0), 0.0, levels(1).half()), (0.0, 1.0, 0.0)):
            with general():
                want = ops.weighted_step(x, (m, n), weights, second_dtype=second, **keywords)
            kind, *rest = modes
            got = FAST(x, (m, n), weights, *NO_NOISE, None, 0, kind, second, *rest)
            assert_same_bits(got, want)
            out, other = torch.empty_like(x), torch.empty_like(x, dtype=second)
            got = FAST(x, (m, n), weights, *NO_NOISE, out, 0, kind, other, *rest)
            assert got[0] is out and got[1] is other
            assert_same_bits(got, want)
            other.zero_()
            assert FAST(x, (m, n), weights, *NO_NOISE, False, 0, kind, other, *rest) is other
            assert_same_bits(other, want[1])
            alone = FAST(x, (m, n), weights, *NO_NOISE, False, 0, kind, second, *rest)
            assert_same_bits(alone, want[1])
            written = x.clone()
            got = FAST(written, (m, n), weights, *NO_NOISE, written, 0, kind, second, *rest)
            assert got[0] is written
            assert_same_bits(got, want)
            asked = ops.weighted_step(x, (m, n), weights, second_dtype=second, **keywords)
            assert_same_bits(asked, want)

    @pytest.mark.parametrize("state", DTYPES, ids=str)
    @pytest.mark.parametrize("basis", [None, (0.3, 0.8), (levels(0), 0.8), (0.0, levels(1))])
    @pytest.mark.parametrize("clamp", [None, (-0.5, 0.25), (0, 0)], ids=str)
    def test_one_output(self, state, basis, clamp):
        x, m = values(0, state), values(1, state)
        for weights in ((0.4, -0.6), (levels(2), 0.5), [0.3, levels(3)]):
            with general():
                want = ops.weighted_step(x, (m,), weights, x0=basis, clamp=clamp)
            given = tuple(weights)
            got = FAST(x, (m,), given, *NO_NOISE, None, 0, None, None, basis, clamp)
            assert_same_bits(got, want)
            assert_same_bits(ops.weighted_step(x, (m,), weights, x0=basis, clamp=clamp), want)

    @pytest.mark.parametrize("state", DTYPES, ids=str)
    @pytest.mark.parametrize("table", [None, OWN, ONE], ids=["number", "rows", "row"])
    @pytest.mark.parametrize("mode", ["scaled", "x0 of F, clamped", "scaled, basis", "pair"])
    def test_noise(self, state, table, mode):
        x, m = values(0, state), values(1, state)
        keywords, (kind, *rest) = MODES[mode]
        if mode == "pair":
            keywords, kind = {"second": ("pair", 0.4, levels(1))}, (0.4, levels(1))
        place = {**SEED, **({} if table is None else {"seed": ops.Key(table=table), "offset": 0})}
        seed = SEED["seed"] if table is None else table
        for w_z in (0.7, levels(3), 0.0):
            with general():
                want = ops.weighted_step(x, (m,), (0.4, 0.6), w_z=w_z, **place, **keywords)
            for name in SETS:
                with instruction_set(name):
                    noise = (w_z, seed, 3, 7, SEED["offset"])
                    got = FAST(x, (m,), (0.4, 0.6), *noise, None, 0, kind, None, *rest)
                    assert_same_bits(got, want, name)
            assert_same_bits(
                ops.weighted_step(x, (m,), (0.4, 0.6), w_z=w_z, **place, **keywords), want
            )

    @pytest.mark.parametrize("seed", [5, noise.key(5, 5, offset=3), ops.Key(table=OWN)], ids=str)
    def test_named(self, seed):
        x, f = values(0), values(1)
        place = {"seed": seed, "draw": 4}
        got = ops.add_noise(x, 0.4, sigma_next=levels(2), **place)
        with general():
            want = ops.weighted_step(
                x, (), (1.0,), w_z=0.4, second=("pair", 1.0, levels(2)), stream=3, **place
            )
        assert_same_bits(got, want)
        got = ops.euler_maruyama_step(x, f, levels(1), 0.25, **place)
        with general():
            w_z = levels(1) * 0.5
            want = ops.weighted_step(x, (f,), (1.0, 0.25), w_z=w_z, **place)
        assert_same_bits(got, want)

    @pytest.mark.parametrize("second", DTYPES, ids=str)
    @pytest.mark.parametrize("state", DTYPES, ids=str)
    @pytest.mark.parametrize("sigma", [0.3, 0.0, levels(2), levels(1, F32)], ids=str)
    def test_edm(self, state, second, sigma):
        """Numbers, rows, and the input in a dtype of its own; and only this as a second output."""
        x, f = values(0, state), values(1, state)
        quick = ops.edm_input(x, sigma, dtype=second), ops.edm_output(x, f, sigma)
        with without_fast():
            slow = ops.edm_input(x, sigma, dtype=second), ops.edm_output(x, f, sigma)
        assert_same_bits(quick, slow)
        assert_same_bits(ops.edm_input(x, sigma, dtype=second, out=quick[0]), slow[0])
        call = (x, (), (sigma, 0.5), *NO_NOISE, False, rules.EDM_INPUT)
        assert_same_bits(FAST(*call, 1.0, second), slow[0])
        assert FAST(*call, 0.5, second) is None
        assert FAST(x, (f,), (0.5, sigma), *NO_NOISE, None, rules.EDM_OUTPUT, 1.0) is None
        tensors = FAST(x, (f,), (sigma, levels(0)), *NO_NOISE, None, rules.EDM_OUTPUT)
        assert tensors is None  # sigma_data is a number

    def test_a_table_of_weights_and_no_dimension(self):
        table = values(4, F64, (5, 2))
        x, m = values(0), values(1)
        with general():
            want = ops.weighted_step(x, (m,), table, second=0.5)
        assert_same_bits(FAST(x, (m,), table, *NO_NOISE, None, 0, 0.5), want)
        x = torch.tensor(0.75)
        with general():
            want = ops.weighted_step(x, (x,), (0.5, 0.25), w_z=0.5, seed=1, second=2.0)
        assert_same_bits(FAST(x, (x,), (0.5, 0.25), 0.5, 1, 1, 0, 0, None, 0, 2.0), want)

    @pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 9000)], ids=str)
    def test_none_and_many(self, shape):
        x, m = values(0, shape=shape), values(1, shape=shape)
        with general():
            want = ops.weighted_step(x, (m,), (0.4, 0.6), second=0.3, second_dtype=BF16)
        assert_same_bits(FAST(x, (m,), (0.4, 0.6), *NO_NOISE, None, 0, 0.3, BF16), want)


def test_a_backward_pass_notices_both_outputs():
    for which in (0, 1):
        out = [torch.ones(5, 3, 7) for _ in range(2)]
        loss = (torch.ones(5, 3, 7, requires_grad=True) * out[which]).sum()
        assert FAST(values(0), (), (0.5,), *NO_NOISE, out[0], 0, 0.3, out[1]) is not None
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


X, M = values(0), values(1)
LARGE = torch.zeros(3, 5, 3, 7)
TRANSPOSED = torch.zeros(5, 7, 3).transpose(1, 2)
WRONG: dict[str, tuple[Any, ...]] = {  # out, rule, second, second_out, basis, clamp
    "no second": (False,),
    "no second, but a place": (None, 0, None, torch.zeros_like(X)),
    "no second, but a dtype": (None, 0, None, F16),
    "out of another dtype": (torch.zeros_like(X, dtype=F16), 0, 0.3),
    "a dtype that is not floating": (None, 0, 0.3, torch.int32),
    "a complex place": (None, 0, 0.3, torch.zeros_like(X, dtype=torch.complex64)),
    "a place of another shape": (None, 0, 0.3, torch.zeros(5, 3, 8)),
    "a place in another layout": (None, 0, 0.3, TRANSPOSED),
    "a place that needs a gradient": (None, 0, 0.3, torch.zeros_like(X).requires_grad_()),
    "one place for both": (LARGE[0], 0, 0.3, LARGE[0]),
    "places that overlap": (LARGE[0], 0, 0.3, LARGE.flatten()[52:157].view(5, 3, 7)),
    "second in the place of x": (None, 0, 0.3, X),
    "second in the place of an input": (None, 0, 0.3, M),
    "second in the place of x, alone": (False, 0, 0.3, X),
    "second with a rule": (None, rules.PF_ODE, 0.3),
    "clamp with a rule": (None, rules.PF_ODE, None, None, None, (0.0, 1.0)),
    "rule folded": (None, rules.FOLDED, 0.3),
    "second not finite": (None, 0, float("inf")),
    "second False": (None, 0, False),
    "second a word": (None, 0, "x0"),
    "second of another batch": (None, 0, torch.ones(4)),
    "a pair of three": (None, 0, (0.1, 0.2, 0.3)),
    "basis of one": (None, 0, 0.3, None, (0.1,)),
    "basis a list": (None, 0, 0.3, None, [0.1, 0.2]),
    "basis not finite": (None, 0, 0.3, None, (0.1, float("nan"))),
    "clamp of one": (None, 0, 0.3, None, None, (0.1,)),
    "clamp upside down": (None, 0, 0.3, None, None, (0.5, 0.1)),
    "clamp not a number": (None, 0, 0.3, None, None, (float("nan"), 0.1)),
    "clamp a tensor": (None, 0, 0.3, None, None, (torch.tensor(0.0), 0.1)),
    "too many": (None, 0, 0.3, None, None, None, None),
}


class TestNotPlain:
    @pytest.mark.parametrize("case", WRONG)
    def test_refused(self, case):
        tail = WRONG[case]
        tensors = [X, M, *(t for t in tail if isinstance(t, Tensor))]
        before = [t.clone() for t in tensors]
        assert FAST(X, (M,), (0.4, 0.6), *NO_NOISE, *tail) is None
        for t, kept in zip(tensors, before, strict=True):
            assert torch.equal(t, kept)
        fine = FAST(X, (M,), (0.4, 0.6), *NO_NOISE, None, 0, 0.3, None, None, None)
        assert len(fine) == 2  # negative control

    def test_modes_that_need_an_input(self):
        for tail in ((True,), (0.3, None, (0.1, 0.2)), (None, None, None, (0.0, 1.0))):
            assert FAST(X, (), (0.4,), *NO_NOISE, None, 0, *tail) is None
            assert FAST(X, (M,), (0.4, 0.5), *NO_NOISE, None, 0, *tail) is not None

    @pytest.mark.parametrize(
        "table",
        [
            torch.zeros(4, 2, dtype=torch.int64),
            torch.zeros(5, dtype=torch.int64),
            torch.zeros(5, 4, dtype=torch.int64),
            torch.zeros(5, 2, dtype=torch.int32),
            torch.zeros(5, 2),
            torch.zeros(2, 5, dtype=torch.int64).T,
            torch.Generator(),
            None,
            True,
            -1,
        ],
        ids=lambda value: check.describe(value).replace("[", "").replace("]", ""),
    )
    def test_keys(self, table):
        draws = torch.zeros(5, 3, dtype=torch.int64)  # they take the place of the number
        assert FAST(X, (M,), (0.4, 0.6), 0.5, draws, 0, 0, 0, None, 0, 0.3) is not None
        assert FAST(X, (M,), (0.4, 0.6), 0.5, draws, 0, 1, 0, None, 0, 0.3) is None
        assert FAST(X, (M,), (0.4, 0.6), 0.5, table, 0, 0, 0, None, 0, 0.3) is None
        assert FAST(X, (M,), (0.4, 0.6), 0.0, table, 0, 0, 0, None, 0, 0.3) is not None

    def test_a_key_in_the_place_of_an_output(self):
        place = torch.zeros(5, 2, dtype=F64)
        key = place.view(torch.int64)
        x = torch.ones(5, 2, dtype=F64)
        assert FAST(x, (), (0.4,), 0.5, key, 0, 0, 0, place) is None
        assert FAST(x, (), (0.4,), 0.5, key, 0, 0, 0, None, 0, 0.3, place) is None
        assert FAST(x, (), (0.4,), 0.5, key.clone(), 0, 0, 0, place) is place

    def test_levels_in_the_place_of_the_second(self):
        place = torch.ones(5, 3, 7)
        for second, basis in ((place[:, 0, 0], None), (0.3, (place[:, 1, 1], 0.5))):
            assert FAST(X, (M,), (0.4, 0.6), *NO_NOISE, None, 0, second, place, basis) is None

    def test_what_is_followed(self):
        def call(x: Tensor, m: Tensor = M) -> Any:
            return FAST(x, (m,), (0.4, 0.6), *NO_NOISE, None, 0, 0.3)

        leaf = X.clone().requires_grad_()
        assert call(leaf) is None and call(X, leaf) is None
        with torch.no_grad():
            assert call(leaf) is not None
        with forward_ad.dual_level():
            assert call(forward_ad.make_dual(X, M)) is None
        torch.func.vmap(lambda x: (call(x) is None and x) * 1.0)(X[None])

    @pytest.mark.parametrize("seed", [torch.zeros(5, 2, dtype=torch.int64), ONE], ids=str)
    def test_a_table_is_no_seed_of_the_steps(self, seed):
        """FAST takes the table of a Key; from users a tensor is one seed for each sample."""
        for call in (
            lambda: ops.weighted_step(X, (), (1.0,), w_z=0.5, seed=seed),
            lambda: ops.add_noise(X, 0.5, seed=seed),
            lambda: ops.euler_maruyama_step(X, M, 0.5, 0.1, seed=seed),
            lambda: ops.euler_maruyama_step(X, M, levels(0), 0.1, seed=seed),
        ):
            with pytest.raises(ValueError, match="seed must have shape"):
                call()

    def test_what_only_fast_takes_is_refused_to_users(self):
        for out, second in ((False, 0.3), (None, True), (None, (0.1, 0.2))):
            with pytest.raises((TypeError, ValueError), match=r"out must|second must"):
                ops.weighted_step(X, (M,), (0.4, 0.6), second=second, out=out)
        with pytest.raises(TypeError, match="out must"):
            ops.add_noise(X, 0.4, sigma_next=0.5, seed=1, out=False)
        with pytest.raises(TypeError, match=r"second_out must be torch\.float32"):
            ops.weighted_step(
                X, (M,), (0.4, 0.6), second=0.3, second_out=torch.zeros_like(X).half()
            )
