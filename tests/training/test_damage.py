"""Damage to files: always noticed, and the checkpoint before is used, with a message."""

from __future__ import annotations

import collections
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmsolvers.training.checkpoints import CheckpointError, RunFolder, read_checkpoint
from cmsolvers.training.checkpoints.manifest import Entry
from support.saved import bits, content, some_groups

Damage = Callable[[random.Random, Path], None]


def some_file(chance: random.Random, folder: Path) -> Path:
    return chance.choice(sorted(folder.iterdir()))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flipped_bit(chance: random.Random, folder: Path) -> None:
    file = some_file(chance, folder)
    data = file.read_bytes()
    file.write_bytes(flipped(data, chance.randrange(8 * len(data))))


def span(chance: random.Random, folder: Path, fill: Callable[[int], bytes]) -> None:
    file = some_file(chance, folder)
    data = file.read_bytes()
    start = chance.randrange(len(data))
    end = chance.randint(start + 1, len(data))
    file.write_bytes(data[:start] + fill(end - start) + data[end:])


def zeroed_span(chance: random.Random, folder: Path) -> None:
    span(chance, folder, bytes)


def random_span(chance: random.Random, folder: Path) -> None:
    span(chance, folder, chance.randbytes)


def truncated(chance: random.Random, folder: Path) -> None:
    file = some_file(chance, folder)
    os.truncate(file, chance.randrange(file.stat().st_size))


def longer(chance: random.Random, folder: Path) -> None:
    file = some_file(chance, folder)
    file.write_bytes(file.read_bytes() + chance.randbytes(chance.randint(1, 99)))


def lost_file(chance: random.Random, folder: Path) -> None:
    some_file(chance, folder).unlink()


def renamed_file(chance: random.Random, folder: Path) -> None:
    """A flipped bit in a name."""
    file = some_file(chance, folder)
    place = chance.randrange(len(file.name))
    letter = chr(ord(file.name[place]) ^ 2)  # of no letter does it make a slash
    file.rename(folder / (file.name[:place] + letter + file.name[place + 1 :]))


def exchanged_files(chance: random.Random, folder: Path) -> None:
    one, other = chance.sample(sorted(folder.iterdir()), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def stale_file(chance: random.Random, folder: Path) -> None:
    """One of the older checkpoint: whole, but not of this state."""
    file = some_file(chance, folder)
    shutil.copy(folder.parent / "step-00000001" / file.name, file)


def half_written(chance: random.Random, folder: Path) -> None:
    """As a writer without care leaves it: some files, the last one short."""
    files = sorted(folder.iterdir(), key=lambda file: (file.name == "manifest.json", file.name))
    kept = chance.randrange(len(files))
    for file in files[kept + 1 :]:
        file.unlink()
    os.truncate(files[kept], chance.randrange(files[kept].stat().st_size))


def planted_pickle(chance: random.Random, folder: Path) -> None:
    some_file(chance, folder).write_bytes(pickle.dumps({"weights": [1.0]}))


def older_folder(chance: random.Random, folder: Path) -> None:
    """Whole, but of another step than its name says."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-00000001", folder)


DAMAGES: list[Damage] = [
    *(flipped_bit, zeroed_span, random_span, truncated, longer, lost_file, renamed_file),
    *(exchanged_files, stale_file, half_written, planted_pickle, older_folder),
]


def two_checkpoints(path: Path, size: int) -> RunFolder:
    run = RunFolder(path)
    for step in (1, 2):
        run.save(step, some_groups(step, size), {"loss": 1.0 / step})
    return run


def tries(run: RunFolder, count: int) -> Iterator[tuple[str, Path]]:
    """Damage the newest checkpoint of two in every way in turn, `count` times."""
    newest, spare = run.checkpoints()[-1], run.path / "spare"
    newest.rename(spare)
    before, done = content(spare), 0
    for number in range(10 * count):
        if done == count:
            return
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(spare, newest)
        damage = DAMAGES[number % len(DAMAGES)]
        damage(random.Random(number), newest)
        if content(newest) != before:  # zeros over zeros are no damage
            done += 1
            yield damage.__name__, newest
    raise AssertionError("the damages do none")


def check_damage_is_noticed(folder: Path, size: int, count: int) -> None:
    run, seen = two_checkpoints(folder, size), collections.Counter[str]()
    whole = bits(some_groups(1, size))
    for kind, path in tries(run, count):
        found = run.newest()
        assert found is not None and found.step == 1, kind
        assert bits(found.groups) == whole and found.about == {"loss": 1.0, "step": 1}
        (text,) = found.skipped
        assert str(path) in text, kind
        seen[kind] += 1
    assert sum(seen.values()) == count and len(seen) == len(DAMAGES)
    print(f"damage noticed, previous checkpoint used: {count} of {count}: {dict(seen)}")


def test_damage_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path):
    check_damage_is_noticed(tmp_path, 40, 120)


@pytest.mark.faults
@pytest.mark.parametrize(("size", "count"), [(40, 500), (200_000, 250)])
def test_damage_is_noticed_every_time(size: int, count: int, tmp_path: Path):
    check_damage_is_noticed(tmp_path, size, count)


def flips(folder: Path, stride: int) -> tuple[int, int]:
    """Flip every `stride`-th bit of every file; (how many, how many were read as the same state).

    Any other answer than an error or the same state fails.
    """
    before, about = read_checkpoint(folder)
    whole, count, harmless = bits(before), 0, 0
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for bit in range(0, 8 * len(data), stride):
            file.write_bytes(flipped(data, bit))
            count += 1
            try:
                found, said = read_checkpoint(folder)
            except CheckpointError as error:
                assert file.name in str(error) or "manifest" in str(error)
                continue
            harmless += 1
            assert bits(found) == whole and said == about, (file.name, bit)
        file.write_bytes(data)
    return count, harmless


def test_flipped_bits_of_every_file_are_noticed(tmp_path: Path):
    run = two_checkpoints(tmp_path, 6)
    count, harmless = flips(run.checkpoints()[-1], 29)
    assert count > 300 and harmless == 0


@pytest.mark.faults
def test_every_bit_of_every_file_is_noticed(tmp_path: Path):
    run = two_checkpoints(tmp_path, 6)
    files = content(run.checkpoints()[-1])
    count, harmless = flips(run.checkpoints()[-1], 1)
    assert count == 8 * sum(map(len, files.values())) and harmless == 0
    print(f"flipped bits noticed: {count} of {count}, every bit of {len(files)} files")


def test_without_digests_most_flips_would_load(tmp_path: Path, monkeypatch):
    """The negative control: the check that is tested here is the one that finds them."""
    monkeypatch.setattr(Entry, "matches", lambda self, data: True)
    run = two_checkpoints(tmp_path, 400)
    chance, wrong = random.Random(0), 0
    (folder,) = run.checkpoints()[-1:]
    file = folder / "network.safetensors"
    data, whole = file.read_bytes(), bits(some_groups(2, 400))
    for _ in range(60):
        file.write_bytes(flipped(data, chance.randrange(8 * len(data))))
        try:
            wrong += bits(read_checkpoint(folder)[0]) != whole
        except CheckpointError:
            continue
    assert wrong > 45


def test_all_damaged_is_an_error_and_none_is_no_error(tmp_path: Path):
    """A run never starts anew in silence over checkpoints that it cannot read."""
    run = RunFolder(tmp_path / "run")
    assert run.newest() is None and not run.path.exists()
    run = two_checkpoints(tmp_path / "run", 40)
    for path in run.checkpoints():
        flipped_bit(random.Random(0), path)
    with pytest.raises(CheckpointError, match=r"none: .*step-00000002.*; .*step-00000001"):
        run.newest()
