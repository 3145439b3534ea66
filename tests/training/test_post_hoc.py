"""Averages that are put together after the training, against tracked ones and quadrature."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmsolvers.training import EMA, CheckpointError, power_decay, reconstruct_average
from cmsolvers.training.averages import (
    Profile,
    Snapshot,
    SnapshotFolder,
    fit,
    narrowed,
    overlap,
    reconstruct,
)

WIDTHS = (0.05, 0.10)


def values(profile: Profile, s: np.ndarray) -> np.ndarray:
    g, end = profile.gamma, profile.end
    return np.where(s <= end, (g + 1) * (s / end) ** g / end, 0.0)


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [Profile(6.94, 1.0), Profile(0.0, 300.0), Profile(16.97, 70.0)])
@pytest.mark.parametrize("other", [Profile(16.97, 1.0), Profile(2.5, 120.0), Profile(0.3, 71.0)])
def test_overlaps_are_integrals_of_products(one: Profile, other: Profile):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    end = min(one.end, other.end)
    s, weights = end * (nodes + 1) / 2, end * weights / 2
    integral = float(np.sum(weights * values(one, s) * values(other, s)))
    assert overlap(one, other) == pytest.approx(integral, rel=1e-6, abs=0.0)
    assert overlap(other, one) == overlap(one, other)
    wrong = Profile(one.gamma + 0.1, one.end)  # negative control
    assert overlap(wrong, other) != pytest.approx(integral, rel=5e-5, abs=0.0)


@pytest.mark.parametrize("end", [90.0, 100.0, 75.0])
@pytest.mark.parametrize("width", [0.04, 0.08, 0.2])
def test_weights_are_those_of_sampled_profiles(width: float, end: float):
    profiles = [Profile(power_decay(w).gamma, t) for w in WIDTHS for t in (50.0, 75.0, 100.0)]
    wanted = Profile(power_decay(width).gamma, end)
    found = fit(profiles, wanted)
    # Midpoints of 200,000 cells, none of which an end divides; the condition by elimination.
    cells = 200_000
    s = (np.arange(cells) + 0.5) / cells * 100.0
    columns = np.stack([values(p, s) for p in profiles], axis=1)
    target = values(wanted, s)
    free = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], target - columns[:, -1], rcond=None)
    weights = np.append(free[0], 1.0 - free[0].sum())
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4, atol=1e-5)
    off = np.linalg.norm(columns @ weights - target) / np.linalg.norm(target)
    assert found.error == pytest.approx(off, rel=1e-4)
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-12)
    assert found.gain == pytest.approx(np.linalg.norm(weights), rel=1e-4)
    other = np.array(found.weights)  # negative control: nothing near is better
    for change in (1e-2, -1e-2):
        moved = other + change * np.array([1, -1, 0, 0, 0, 0])
        assert np.linalg.norm(columns @ moved - target) > found.error * np.linalg.norm(target)


def test_a_profile_that_is_there_is_taken_alone():
    profiles = [Profile(6.94, 50.0), Profile(6.94, 100.0), Profile(16.97, 100.0)]
    found = fit(profiles, profiles[1])
    np.testing.assert_allclose(found.weights, [0.0, 1.0, 0.0], atol=1e-10)
    assert found.error < 1e-7
    twice = fit([profiles[1]] * 2, profiles[1])
    np.testing.assert_allclose(twice.weights, [0.5, 0.5], atol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e7])
def test_the_unit_of_time_does_not_matter(scale: float):
    def of(unit: float):
        profiles = [Profile(g, unit * t) for g in (6.94, 16.97) for t in range(1, 9)]
        return fit(profiles, Profile(4.0, 8.0 * unit))

    np.testing.assert_allclose(of(scale).weights, of(1.0).weights, rtol=1e-6, atol=1e-9)
    assert of(scale).error == pytest.approx(of(1.0).error, rel=1e-6)


# --- a scalar network of a known course -----------------------------------------------------------

TOTAL = 1024
COURSE = [
    7.0 - 1.5 * math.exp(-k / 90.0) + 0.3 * math.sin(k / 25.0) + 0.2 * math.sin(1.7 * k)
    for k in range(TOTAL)
]


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros((), dtype=torch.float64))


def tracked(width: float, until: int = TOTAL, shift: float = 0.0) -> float:
    network = Scalar()
    ema = EMA(network, power_decay(width))
    for k in range(until):
        network.value.data.fill_(COURSE[k] + shift)
        ema.update(network)
    return float(ema.module.value)


def snapshots(count: int, widths=WIDTHS, shift: float = 0.0) -> list[Snapshot]:
    """`count` of each average, equally far apart, from one pass over the course."""
    network, made = Scalar(), []
    emas = {w: EMA(network, power_decay(w)) for w in widths}
    for k in range(TOTAL):
        network.value.data.fill_(COURSE[k] + shift)
        for width, ema in emas.items():
            ema.update(network)
            if (k + 1) % (TOTAL // count) == 0:
                tensors = {"value": ema.module.value.detach().clone()}
                profile = Profile(power_decay(width).gamma, k + 1.0)
                made.append(Snapshot(k + 1, profile, lambda tensors=tensors: tensors, {}))
    return made


def bound(width: float, error: float, until: int = TOTAL) -> float:
    """What an error of the profile can do to this course, by Cauchy's and Schwarz's inequality."""
    wanted = Profile(power_decay(width).gamma, until)
    course = np.array(COURSE)
    return error * math.sqrt(overlap(wanted, wanted) * np.sum((course - course.mean()) ** 2))


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.15, 0.2, 0.25])
def test_reconstructed_is_tracked_to_the_predicted_accuracy(width: float):
    made = reconstruct(snapshots(32), width)
    off = abs(float(made.tensors["value"]) - tracked(width))
    assert off <= bound(width, made.error) + 1e-12
    assert made.step == made.updates == TOTAL and made.sigma_rel == width
    # The bound says something: twice the width, or one snapshot alone, is further off.
    assert abs(tracked(min(2 * width, 0.28)) - tracked(width)) > bound(width, made.error)


def test_a_wrong_profile_breaks_the_bound():
    """Negative control: snapshots that claim to be of another width."""
    widths = {power_decay(w).gamma: power_decay(1.2 * w).gamma for w in WIDTHS}
    wrong = [
        Snapshot(s.step, Profile(widths[s.profile.gamma], s.profile.end), s.read, {})
        for s in snapshots(32)
    ]
    made = reconstruct(wrong, 0.15)
    assert abs(float(made.tensors["value"]) - tracked(0.15)) > 2 * bound(0.15, made.error)


@pytest.mark.filterwarnings("ignore:the profile of")
@pytest.mark.parametrize("width", [0.03, 0.15])
def test_more_snapshots_are_nearer(width: float):
    errors, offs = [], []
    for count in (4, 8, 16, 32, 64):
        made = reconstruct(snapshots(count), width)
        errors.append(made.error)
        offs.append(abs(float(made.tensors["value"]) - tracked(width)))
    assert all(b < a / 1.4 for a, b in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 50
    assert offs[-1] < offs[0] / 50


def test_an_earlier_step():
    made = reconstruct(snapshots(32), 0.08, TOTAL // 2)
    off = abs(float(made.tensors["value"]) - tracked(0.08, TOTAL // 2))
    assert off <= bound(0.08, made.error, TOTAL // 2) + 1e-12 and made.error < 0.01
    assert made.updates == made.step == TOTAL // 2
    at_the_end = float(reconstruct(snapshots(32), 0.08).tensors["value"])  # negative control
    assert abs(at_the_end - tracked(0.08, TOTAL // 2)) > 2 * bound(0.08, made.error, TOTAL // 2)


def test_between_snapshots_it_is_said_to_be_worse():
    with pytest.warns(
        RuntimeWarning, match=r"the profile of sigma_rel=0.1 at step 500 is \d\d% off"
    ):
        made = reconstruct(snapshots(32), 0.1, 500)
    off = abs(float(made.tensors["value"]) - tracked(0.1, 500))
    assert off <= bound(0.1, made.error, 500)


@pytest.mark.filterwarnings("ignore:the profile of")
def test_a_network_that_stands_still_stays_as_it_is():
    still = [
        Snapshot(k, Profile(6.94, k), lambda: {"value": torch.tensor(3.0)}, {}) for k in (1, 2)
    ]
    for width in (0.03, 0.2, 12**-0.5):
        made = reconstruct(still, width)
        assert float(made.tensors["value"]) == pytest.approx(3.0, rel=1e-6)


def test_skipped_steps_are_no_updates():
    """Every second step was skipped; the profile ends at half as many updates."""
    doubled = [Snapshot(2 * s.step, s.profile, s.read, {}) for s in snapshots(32)]
    made = reconstruct(doubled, 0.07, TOTAL)
    assert (made.step, made.updates) == (TOTAL, TOTAL / 2)
    assert float(made.tensors["value"]) == pytest.approx(tracked(0.07, TOTAL // 2), abs=1e-2)


# --- what a network may hold ----------------------------------------------------------------------


def mixed(k: float) -> dict[str, torch.Tensor]:
    return {
        "half": torch.full((3,), k).bfloat16(),
        "wave": torch.full((2,), k * (1 + 2j), dtype=torch.complex64),
        "mask": torch.tensor([-math.inf, k]),
        "count": torch.tensor(int(k)),
        "empty": torch.zeros(0, 3),
    }


def test_every_kind_of_tensor():
    made = reconstruct(
        [
            Snapshot(step, Profile(g, step), lambda v=v: mixed(v), {"half": torch.float32})
            for step, g, v in [(10, 6.94, 1.0), (10, 16.97, 1.0), (20, 6.94, 4.0), (20, 16.97, 8.0)]
        ],
        0.07,
    )
    weights = made.fit.weights
    value = sum(w * v for w, v in zip(weights, (1.0, 1.0, 4.0, 8.0), strict=True))
    tensors = made.tensors
    torch.testing.assert_close(tensors["half"], torch.full((3,), value))
    torch.testing.assert_close(tensors["wave"], torch.full((2,), value * (1 + 2j)))
    torch.testing.assert_close(tensors["mask"], torch.tensor([-math.inf, value]))
    assert tensors["count"] == 4 and tensors["count"].dtype is torch.int64
    assert tensors["empty"].shape == (0, 3)
    assert list(made.state_dict())[-1] == "ema_steps" and made.state_dict()["ema_steps"] == 20


def test_one_snapshot_is_in_memory_at_a_time():
    alive: list[weakref.ref] = []
    most = []

    def read(value: float):
        most.append(sum(ref() is not None for ref in alive))
        t = torch.full((1000,), value)
        alive.append(weakref.ref(t))
        return {"value": t}

    made = [Snapshot(k, Profile(6.94, k), lambda k=k: read(float(k)), {}) for k in (10, 11, 12)]
    reconstruct(made, 0.1)
    assert most == [0, 0, 0]
    kept = [s.read() for s in made]  # negative control
    assert most[3:] == [0, 1, 2] and len(kept) == 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sigma_rel": 0.3}, ValueError, "sigma_rel must not exceed"),
        ({"step": 5000}, ValueError, "at most that of the last snapshot, 1024; got 5000"),
        ({"step": 0}, ValueError, "step must be at least 1"),
        ({"step": 0.5}, TypeError, "step must be an int"),
        ({"snapshots": []}, ValueError, "snapshots must hold at least one"),
    ],
)  # fmt: skip
def test_bad_arguments(options, error, text):
    with pytest.raises(error, match=text):
        reconstruct(**{"snapshots": snapshots(4), "sigma_rel": 0.1} | options)


@pytest.mark.filterwarnings("ignore:the profile of")
def test_snapshots_of_other_networks():
    other = Snapshot(2000, Profile(1.0, 2000), lambda: {"value": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="that of step 2000 has other tensors"):
        reconstruct([*snapshots(4), other], 0.1)


# --- on disk --------------------------------------------------------------------------------------


def write(folder: Path, count: int = 8, dtype: torch.dtype | None = None) -> None:
    place = SnapshotFolder(folder)
    made = snapshots(count)
    for k in range(count):
        groups, profiles = {}, {}
        for name, s in zip(("short", "long"), made[2 * k : 2 * k + 2], strict=True):
            groups[name] = {n: narrowed(n, t, dtype) for n, t in s.read().items()}
            profiles[name] = s.profile
        place.write(s.step, groups, profiles, {"value": torch.float64} if dtype else {})


def test_from_a_folder(tmp_path: Path):
    write(tmp_path)
    made = reconstruct_average(tmp_path, 0.07)
    in_memory = reconstruct(snapshots(8), 0.07)
    torch.testing.assert_close(made.tensors["value"], in_memory.tensors["value"])
    assert made.error == pytest.approx(in_memory.error, rel=1e-6)
    network = Scalar()
    network.load_state_dict(made.tensors)
    ema = EMA(network, power_decay(0.07))
    ema.load_state_dict(made.state_dict())
    assert ema.steps == TOTAL
    names = [path.name for path in SnapshotFolder(tmp_path).paths()]
    assert names[0] == "step-00000128" and names[-1] == "step-00001024"


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_narrow_storage(dtype: torch.dtype, digits: float, tmp_path: Path):
    write(tmp_path, dtype=dtype)
    made = reconstruct_average(tmp_path, 0.07)
    exact = reconstruct(snapshots(8), 0.07)
    assert made.tensors["value"].dtype is torch.float64
    off = abs(float(made.tensors["value"]) - float(exact.tensors["value"]))
    assert 0.0 < off <= 8.0 * digits * sum(map(abs, exact.fit.weights))


def test_what_float16_cannot_hold():
    with pytest.raises(ValueError, match="w has entries that float16 cannot hold; use bfloat16"):
        narrowed("w", torch.tensor([1.0, 7e4]), torch.float16)
    mask = narrowed("w", torch.tensor([-math.inf, 1.0]), torch.float16)
    assert mask.tolist() == [-math.inf, 1.0] and mask.dtype is torch.float16
    assert narrowed("w", torch.tensor(3), torch.float16).dtype is torch.int64


@pytest.mark.parametrize("file", ["average.short.safetensors", "about.json"])
def test_a_damaged_snapshot_is_passed_over(file: str, tmp_path: Path):
    write(tmp_path)
    broken = SnapshotFolder(tmp_path).paths()[6] / file
    data = bytearray(broken.read_bytes())
    data[-3] ^= 1
    broken.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=rf"{file} is damaged.*going on without it"):
        made = reconstruct_average(tmp_path, 0.07)
    others = [s for s in snapshots(8) if s.step != 896]
    torch.testing.assert_close(made.tensors, reconstruct(others, 0.07).tensors, rtol=1e-9, atol=0)
    assert made.error > 1.01 * reconstruct(snapshots(8), 0.07).error  # negative control


@pytest.mark.filterwarnings("ignore:.*going on without it")
def test_no_snapshots(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="folder must hold snapshots; there are none in"):
        reconstruct_average(tmp_path, 0.1)
    write(tmp_path, 2)
    for path in SnapshotFolder(tmp_path).paths():
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="must hold an undamaged snapshot; there is none"):
        reconstruct_average(tmp_path, 0.1)


def test_snapshots_of_a_course_that_is_void_are_removed(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "snapshots" / ".step-00000900.partial-00000000-1-00000000").mkdir()
    SnapshotFolder(tmp_path).cut(512)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == [f"step-{k:08d}" for k in (128, 256, 384, 512)]
