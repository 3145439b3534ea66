"""The loop: what a step changes, what is skipped, how a run ends and goes on."""

from __future__ import annotations

import hashlib
import itertools
import math
import signal
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import EDM, losses, noise, training
from cmsolvers.training import EMA, RunFolder, Trainer, TrainingSettings
from cmsolvers.training.interrupts import Interrupts
from cmsolvers.training.step import training_step
from support.saved import content

STEPS = 8


class Net(nn.Module):
    """Two layers, dropout, running statistics and a counter."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 4)
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(0.2)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h = self.first(torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1))
        return self.last(self.dropout(torch.nn.functional.silu(self.norm(h))))


def dsm(model: nn.Module, batch: training.Batch) -> losses.LossOutput:
    return losses.dsm(model, batch.x0, key=batch.key, step=batch.step)


DATA = 0.5 * noise.normal((40, 4), 1)


def make(
    loss=dsm, data=DATA, width=8, names=("fast", "slow"), late=0, device="cpu", **options
) -> Trainer:
    """A small training; `late` steps between reads put it in the mode of a GPU."""
    fields = set(TrainingSettings.__dataclass_fields__)
    course = {"steps": STEPS, "batch_size": 8, "lr": 3e-2}
    course |= {name: options.pop(name) for name in fields & set(options)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EDM(Net(width)).to(device)
    averages = {"fast": EMA(network, 0.5), "slow": EMA(network, 0.9, warmup=True)}
    averages = {name: averages[name] for name in names}
    trainer = Trainer(network, loss, data, TrainingSettings(**course), averages=averages, **options)
    if late:
        trainer._step.later, trainer._books.window = True, late
    return trainer


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    groups = trainer._saves._state.tensors()
    return {f"{g}/{n}": t.clone() for g, members in groups.items() for n, t in members.items()}


def fingerprint(trainer: Trainer) -> str:
    """Of everything that a trainer has."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors(trainer).items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    told = trainer.step, trainer.skipped, trainer.history, trainer._books._bad
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    digest.update(repr((told, rates)).encode())
    return digest.hexdigest()


def same(one: Trainer, other: Trainer) -> None:
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


# --- bad steps -----------------------------------------------------------------------------------

BAD = {
    "loss": lambda model, made: made * math.nan,
    "infinite loss": lambda model, made: made * math.inf,
    "gradient": lambda model, made: made + (0.0 * model.net.first.weight).sum().sqrt() * 0.0,
    "part of the gradient": lambda model, made: made + torch.sqrt(model.net.last.bias[0] * 0.0),
}


def poisoned(how: str, *steps: int):
    def loss(model, batch):
        made = dsm(model, batch).loss
        return BAD[how](model, made) if batch.step in steps else made

    return loss


@pytest.mark.parametrize("late", [0, 1, 3, 50])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("how", BAD)
def test_a_bad_step_changes_nothing_but_the_data_move_on(how: str, clip: float, late: int):
    """Weights, statistics, optimiser and averages are those before it, to the bit."""
    trainer = make(poisoned(how, 3), clip=clip, late=late)
    trainer.run(3, progress=False)
    before = tensors(trainer)
    trainer.run(4, progress=False)
    assert (trainer.step, trainer.skipped) == (4, 1)
    for name, value in tensors(trainer).items():
        assert torch.equal(value, before[name]), name
    trainer.run(progress=False)
    # The same as a run to whose step 3 nothing ever came.
    other = make(clip=clip)
    other.run(3, progress=False)
    other._books.add(training_step.Done(3, 0.0, (0.0, False, False, -1.0), None, ()))
    other.run(progress=False)
    same(trainer, other)
    assert trainer.skipped == 1 and len(trainer.history) == STEPS
    assert not hasattr(trainer.optimizer, "found_inf")


def test_a_step_that_was_not_skipped_would_show():
    """The control: without the decision one bad sample is the end of the weights."""
    trainer = make(poisoned("loss", 3))
    trainer.run(3, progress=False)
    loss = dsm(trainer.network, training.batch_at(DATA, 3, STEPS, 8, 0)).loss * math.nan
    loss.backward()
    trainer.optimizer.step()
    assert not torch.isfinite(trainer.network.net.last.bias).all()


@pytest.mark.parametrize("late", [0, 3, 50])
@pytest.mark.parametrize("first", [0, 2, 5])
def test_a_run_ends_with_a_report_after_so_many_bad_steps_in_a_row(
    first: int, late: int, tmp_path: Path
):
    steps = range(first, first + 3)
    trainer = make(poisoned("loss", *steps), max_bad_steps=3, late=late)
    text = rf"in steps {first} to {first + 2} they were not \(loss nan, nan, nan\)"
    with pytest.raises(FloatingPointError, match=text):
        trainer.run(progress=False, folder=tmp_path / "run", every=first or 100)
    whole = make()
    whole.run(first, progress=False)
    if not late:
        same(trainer, whole)
        assert trainer.step == first + 3
    found = RunFolder(tmp_path / "run").newest()
    if first:
        same(make().load(found.path), whole)
    else:
        assert found is None
    # Bad steps with a good one between them are not in a row.
    scattered = make(poisoned("loss", 0, 1, 3, 4, 6, 7), max_bad_steps=3, late=late)
    assert scattered.run(progress=False).skipped == 6


def test_the_report_tells_levels_of_samples_that_were_not_finite():
    def loss(model, batch):
        made = dsm(model, batch)
        terms = torch.where(made.levels[0] > 1.0, math.inf, made.per_sample)
        return made._replace(loss=made.loss * math.inf, per_sample=terms)

    seen = dsm(make().network, training.batch_at(DATA, 0, STEPS, 8, 0)).levels[0]
    high = seen[seen > 1.0]
    text = f"levels {high.min():.4g} to {high.max():.4g}"
    with pytest.raises(FloatingPointError, match=text):
        make(loss, max_bad_steps=1).run(progress=False)


def test_bad_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path):
    loss = poisoned("loss", 2, 3, 4)
    make(loss, max_bad_steps=3).run(4, progress=False).save(tmp_path / "c")
    with pytest.raises(FloatingPointError, match="in steps 2 to 4"):
        make(loss, max_bad_steps=3).load(tmp_path / "c").run(progress=False)


# --- what a step is ------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_reading_late_changes_no_bit(clip: float):
    """The way of a GPU, on the CPU."""
    one, other = make(clip=clip), make(clip=clip, late=3)
    same(one.run(progress=False), other.run(progress=False))
    assert one.history == other.history


def by_tensors(model, batch):
    """A loss that takes the number of its step as a tensor."""
    return dsm(model, batch)


by_tensors.capturable = True
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("device", DEVICES)
def test_captured_steps_have_the_bits_of_those_that_are_not(device, clip, precision, tmp_path):
    """A bad step among them; the same after a resume, in which nothing stays captured."""

    def loss(model, batch):
        made = dsm(model, batch)
        bad = torch.where(torch.as_tensor(batch.step) == 5, math.nan, 1.0)
        return made._replace(loss=made.loss * bad.to(made.loss).reshape(()))

    def new(capture: bool) -> Trainer:
        return make(
            loss,
            clip=clip,
            precision=precision,
            capture=capture,
            device=device,
            decays={"fast": lambda k: 0.5 + 0.01 * k},
            steps=12,
        )

    plain = new(False).run(progress=False)
    captured = new(True).run(progress=False)
    same(plain, captured)
    assert str(captured.history) == str(plain.history) and captured.skipped == 1
    new(True).run(7, progress=False).save(tmp_path / "c")
    again = new(True).load(tmp_path / "c").run(progress=False)
    same(plain, again)
    assert (again._step._captured.graph is not None) is (device == "cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"precision": "fp16"},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
    ],
)
def test_what_cannot_be_captured_is_named(options):
    with pytest.raises(ValueError, match="capture must be False or have"):
        make(capture=True, **options)
    assert make(by_tensors, **options)._step.later is False
    with pytest.raises(TypeError, match="capture must be True, False or"):
        make(capture="always")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_does_not_wait_for_the_device(clip: float):
    """Nor does one that is skipped."""
    trainer = make(poisoned("loss", 4), device="cuda", data=DATA.cuda(), clip=clip)
    trainer.run(2, progress=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with trainer._batches.from_step(2) as batches:
            for k in range(2, 6):
                trainer._books.add(trainer._step(next(batches), k, list))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.run(progress=False)
    assert len(trainer.history) == STEPS and trainer.skipped == 1


def still(model, batch):
    """A loss without dropout and statistics, which see micro-batches."""
    model.eval()
    return dsm(model, batch)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_have_the_mean_gradient(accumulate: int, clip: float):
    whole = make(still, clip=clip).run(progress=False)
    parts = make(still, clip=clip, accumulate=accumulate).run(progress=False)
    for name, value in tensors(whole).items():
        torch.testing.assert_close(tensors(parts)[name], value, rtol=1e-4, atol=1e-6)
    assert parts.history == pytest.approx(whole.history, rel=1e-5)


def by_hand(network: nn.Module, optimizer: torch.optim.Optimizer, rate, steps: int) -> list[float]:
    """The steps of a training, written out."""
    found = []
    network.train()
    for k in range(steps):
        for group, peak in zip(optimizer.param_groups, rate(k), strict=True):
            group["lr"] = peak
        batch = training.batch_at(DATA, k, steps, 8, 0)
        torch.manual_seed(training.data.torch_seed(k, 0))
        optimizer.zero_grad()
        loss = dsm(network, batch).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


GIVEN = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "capturable": lambda p: torch.optim.NAdam(p, lr=torch.tensor(0.05, dtype=torch.float64)),
}


@pytest.mark.parametrize("way", ["factory", "optimiser"])
@pytest.mark.parametrize("name", GIVEN)
def test_an_optimiser_of_ones_own_with_a_schedule(name: str, way: str, tmp_path: Path):
    """The steps written out, to the bit, and the same after a resume."""

    def new() -> Trainer:
        trainer = None
        if way == "factory":
            trainer = make(optimizer=GIVEN[name], schedule=lambda k: 1.0 / (k + 1))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = EDM(Net())
            trainer = Trainer(
                network,
                dsm,
                DATA,
                TrainingSettings(STEPS, batch_size=8),
                optimizer=GIVEN[name](list(network.parameters())),
                schedule=lambda k: 1.0 / (k + 1),
            )
        return trainer

    other = new()
    (group,) = other.optimizer.param_groups
    peak = float(group["lr"])
    losses_by_hand = by_hand(other.network, other.optimizer, lambda k: [peak / (k + 1)], STEPS)
    whole = new().run(progress=False)
    assert whole.history == losses_by_hand
    new().run(3, progress=False).save(tmp_path / "c")
    same(new().load(tmp_path / "c").run(progress=False), whole)


def test_groups_of_an_optimiser_keep_their_own_peaks():
    network = EDM(Net())
    groups = [
        {"params": network.net.first.parameters(), "lr": 0.5},
        {"params": network.net.last.parameters(), "lr": 0.125},
    ]
    optimizer, seen = torch.optim.SGD(groups), []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(tuple(group["lr"] for group in optimizer.param_groups))
    )
    settings = TrainingSettings(4, batch_size=8, warmup=0.5)
    Trainer(network, dsm, DATA, settings, optimizer=optimizer).run(progress=False)
    assert seen == [(0.25, 0.0625), (0.5, 0.125), (0.5, 0.125), (0.25, 0.0625)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"optimizer": lambda p: 3}, TypeError, "optimizer must be a torch.optim.Optimizer or"),
        ({"optimizer": 3}, TypeError, "optimizer must be"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)},
            ValueError,
            "optimizer must train parameters of network.*2 of its 2",
        ),
        ({"schedule": 3}, TypeError, "schedule must be"),
        ({"workers": -1}, ValueError, "workers must be"),
        ({"decays": {"none": lambda k: 0.5}}, ValueError, "there is no average 'none'"),
        ({"data": DATA[:4]}, ValueError, "batch_size must not exceed"),
        ({"accumulate": 3}, ValueError, "batch_size must be a multiple of accumulate; got 8 and 3"),
    ],
)
def test_arguments_that_make_no_training(options, error, text):
    with pytest.raises(error, match=text):
        make(**options)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda m, b: 3.0, TypeError),
        (lambda m, b: m.net.last.weight, ValueError),
        (lambda m, b: torch.zeros(()), ValueError),
    ],
)
def test_losses_that_are_none(made, error):
    with pytest.raises(error, match="loss must"):
        make(made).run(progress=False)


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_a_schedule_that_gives_no_factor(wrong: float):
    with pytest.raises(ValueError, match=r"schedule\(step\) must"):
        make(schedule=lambda k: wrong).run(progress=False)


def test_a_loader_of_ones_own_is_resumed_at_its_place(tmp_path: Path):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return DATA[i], i % 3

    def new(accumulate: int = 1) -> Trainer:
        loader = torch.utils.data.DataLoader(Pairs(), batch_size=5, shuffle=True, drop_last=True)
        return make(still, data=loader, accumulate=accumulate)

    whole = new().run(progress=False)
    new().run(5, progress=False).save(tmp_path / "c")
    torch.rand(3)
    same(new().load(tmp_path / "c").run(progress=False), whole)
    with pytest.raises(ValueError, match="5 samples must be a multiple of settings"):
        new(accumulate=2).run(progress=False)


@pytest.mark.parametrize("late", [0, 3])
def test_half_precision_trains_and_is_resumed(late: int, tmp_path: Path):
    kinds = {}

    def loss(model, batch):
        found = dsm(model, batch)
        with torch.no_grad():
            made = model.net(batch.x0, torch.ones(len(batch.x0)))
        kinds[precision] = made.dtype
        return found

    for precision in ("no", "bf16", "fp16"):
        whole = make(loss, precision=precision, late=late).run(progress=False)
        make(loss, precision=precision, late=late).run(3, progress=False).save(tmp_path / precision)
        again = make(loss, precision=precision, late=late).load(tmp_path / precision)
        same(again.run(progress=False), whole)
        assert all(p.dtype is torch.float32 for p in whole.network.parameters())
        full = make().run(progress=False)
        assert whole.history == pytest.approx(full.history, rel=0.1)
    assert kinds == {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("late", [0, 3])
def test_an_overflow_of_float16_lowers_the_scale_and_is_no_bad_step(late: int):
    """A gradient of 1 has no room beside a scale of 2^16 and a factor of 2^112; 2^15 fits."""
    net = nn.Linear(1, 1, bias=False)

    def loss(model, batch):
        return model.weight.sum() * 2.0**112

    settings = TrainingSettings(
        4, batch_size=8, precision="fp16", max_bad_steps=1, weight_decay=0.0
    )
    before = net.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-33, fused=True)
    trainer = Trainer(net, loss, DATA, settings, optimizer=optimizer)
    if late:
        trainer._step.later, trainer._books.window = True, late
    trainer.run(1, progress=False)
    scale = trainer._step.precision.scale
    assert torch.equal(net.weight, before) and float(scale) == 2.0**15
    trainer.run(progress=False)
    assert float(scale) == 2.0**15 and trainer.skipped == 0
    assert not torch.equal(net.weight, before)


# --- ends and resumes ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("part", ["update", "save"])
def test_a_signal_lets_a_step_end_first(part: str, number, tmp_path: Path, monkeypatch, request):
    """Weights, averages and step count of a checkpoint belong to one step."""
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    # Shells start jobs in the background with SIGINT ignored.
    before = signal.signal(number, default)
    request.addfinalizer(lambda: signal.signal(number, before))
    whole = make().run(progress=False).save(tmp_path / "whole")
    trainer, folder = make(), RunFolder(tmp_path / "run")
    owner = training_step if part == "update" else folder
    name = "update_averages" if part == "update" else "save"
    original, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*args):
        if next(calls) == 3:
            signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(owner, name, interrupted)
    left = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(left) as found:
        trainer.run(progress=False, folder=folder, every=1)
    assert trainer.step == 3
    assert number == signal.SIGINT or found.value.code == 128 + number
    assert signal.getsignal(number) is default
    resumed = make().resume(tmp_path / "run")
    assert resumed.step == 3
    resumed.run(progress=False).save(tmp_path / "resumed")
    assert resumed.history == whole.history
    assert content(tmp_path / "whole") == content(tmp_path / "resumed")


def test_a_second_signal_does_not_wait():
    with pytest.raises(SystemExit), Interrupts() as interrupts:
        interrupts._note(signal.SIGTERM, None)
        assert interrupts.wanted == signal.SIGTERM
        interrupts._note(signal.SIGTERM, None)


def test_signals_that_somebody_handles_are_left_alone(request):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))

    def loss(model, batch):
        if batch.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return dsm(model, batch)

    assert make(loss).run(progress=False).step == STEPS and came == [1]


def test_a_training_in_another_thread_can_be_stopped(tmp_path: Path):
    begun, trainer = threading.Event(), None

    def loss(model, batch):
        if batch.step == 2:
            begun.set()
            assert stopped.wait(60)
        return dsm(model, batch)

    stopped, failures = threading.Event(), []
    trainer = make(loss)

    def work():
        try:
            trainer.run(progress=False, folder=tmp_path / "run")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    trainer.stop()
    stopped.set()
    thread.join(60)
    assert not failures and trainer.step == 3
    same(make().resume(tmp_path / "run"), trainer)


def test_an_interrupted_loss_leaves_the_steps_before_it(tmp_path: Path):
    def loss(model, batch):
        if batch.step == 2:
            raise KeyboardInterrupt
        return dsm(model, batch)

    with pytest.raises(KeyboardInterrupt):
        make(loss).run(progress=False, folder=tmp_path / "run")
    assert make().resume(tmp_path / "run").step == 2


def test_a_step_that_breaks_off_is_not_saved(tmp_path: Path, monkeypatch):
    trainer, folder = make(), RunFolder(tmp_path / "run")
    trainer.run(2, progress=False, folder=folder)
    before = content(folder.newest().path)

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_step, "update_averages", broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False, folder=folder)
    assert content(folder.newest().path) == before and len(folder.checkpoints()) == 1


def test_an_error_on_the_way_leaves_whole_steps(tmp_path: Path):
    trainer = make(late=50)
    trainer.run(2, progress=False)

    def broken(grad):
        raise RuntimeError("no memory")

    hook = trainer.network.net.last.weight.register_hook(broken)
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.run(progress=False, folder=tmp_path / "run")
    hook.remove()
    resumed = make().resume(tmp_path / "run")
    assert (resumed.step, len(resumed.history)) == (2, 2)
    assert resumed.run(progress=False).history == make().run(progress=False).history


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path):
    """The rate of what was done stays; that of what comes is the longer run's, and it is told."""
    seen: list[float] = []

    def new(steps: int) -> Trainer:
        trainer = make(steps=steps)
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
        )
        return trainer

    folder = tmp_path / "run"
    first = new(4).run(progress=False, folder=folder)
    with pytest.warns(RuntimeWarning, match=r"settings\.steps is 9 from here on; .* had 4"):
        longer = new(9).resume(folder)
    longer.run(progress=False, folder=folder)
    short, long = (TrainingSettings(n, batch_size=8, lr=3e-2) for n in (4, 9))
    assert seen == [short.rate(k) for k in range(4)] + [long.rate(k) for k in range(4, 9)]
    assert longer.history[:4] == first.history and longer.step == 9
    with pytest.raises(ValueError, match=r"settings\.steps must be at least the 9 steps that were"):
        make(steps=8).resume(folder)


@pytest.mark.parametrize(
    "other", [{"lr": 0.5}, {"warmup": 0.5}, {"clip": 1.0}, {"precision": "bf16"}]
)
def test_other_settings_are_told_of(other: dict[str, object], tmp_path: Path):
    make().run(2, progress=False).save(tmp_path / "c")
    ((name, value),) = other.items()
    with pytest.warns(RuntimeWarning, match=rf"settings\.{name} is {value} from here on"):
        make(**other).load(tmp_path / "c")


@pytest.mark.parametrize("other", [{}, {"accumulate": 2}, {"max_bad_steps": 3}])
def test_settings_that_may_change_freely(other: dict[str, object], tmp_path: Path):
    make().run(2, progress=False).save(tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**other).load(tmp_path / "c").run(progress=False)


def without(*path: str):
    """A checkpoint that lacks something."""

    def change(groups, about):
        held = groups if path[0] in groups else about
        for name in path[:-1]:
            held = held[name]
        del held[path[-1]]

    return change


REFUSED = {
    "seed": ({"seed": 1}, None, r"settings\.seed must be 0 to resume; got 1"),
    "batch": ({"batch_size": 4}, None, r"settings\.batch_size must be 8 to resume; got 4"),
    "betas": ({"betas": (0.5, 0.9)}, None, r"settings\.betas must be \[0\.9, 0\.99\]"),
    "weight decay": ({"weight_decay": 0.5}, None, r"settings\.weight_decay must be 0\.01"),
    "data": ({"data": DATA + 1e-3}, None, "data .their fingerprint. must be"),
    "network": ({"width": 9}, None, r"network/net\.first\.weight must be .*\[9, 5\].*\[8, 5\]"),
    "about": ({"about": {"who": 2}}, None, "who must be 1 to resume; got 2"),
    "optimizer": ({"optimizer": GIVEN["SGD"]}, None, "optimizer must be AdamW to resume"),
    "average": ({"names": ("fast",)}, None, "averages must hold 'slow' to resume"),
    "no optimizer": ({}, without("optimizer"), "optimizer's state must be whole; exp_avg of net"),
    "part of it": ({}, without("optimizer", "3.exp_avg"), "exp_avg of net.last.bias is missing"),
    "no average": ({}, without("average.slow"), "must hold the average 'average.slow'"),
    "part of one": ({}, without("average.slow", "net.last.bias"), "no average.slow/net.last.bias"),
    "no weight": ({}, without("network", "net.last.bias"), "no network/net.last.bias"),
    "no network": ({}, without("network"), "must hold the group of tensors 'network'"),
    "no losses": ({}, without("progress"), "undamaged checkpoint"),
    "no step": ({}, without("step"), "undamaged checkpoint"),
    "no settings": ({}, without("settings"), "checkpoint of a training run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_checkpoint_leaves_the_trainer_as_it_was(case: str, tmp_path: Path):
    options, change, text = REFUSED[case]
    make(about={"who": 1}).run(4, progress=False).save(tmp_path / "c")
    if change is not None:
        groups, about = training.read_checkpoint(tmp_path / "c")
        change(groups, about)
        training.write_checkpoint(tmp_path / "c", groups, about)
    trainer = make(**{"about": {"who": 1}, **options}).run(2, progress=False)
    before = fingerprint(trainer)
    with pytest.raises(ValueError, match=text):
        trainer.load(tmp_path / "c")
    assert fingerprint(trainer) == before
    assert len(options) or fingerprint(make(about={"who": 1})) != before


def test_a_folder_with_another_run_is_refused_before_the_first_step(tmp_path: Path):
    make().run(3, progress=False, folder=tmp_path / "run")
    trainer = make()
    with pytest.raises(ValueError, match=r"step-00000003 is one: resume\(folder\) goes on"):
        trainer.run(progress=False, folder=tmp_path / "run")
    assert trainer.step == 0
    with RunFolder(tmp_path / "other").locked(), pytest.raises(ValueError, match="in use by"):
        trainer.run(progress=False, folder=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="there is none in"):
        trainer.resume(tmp_path / "nothing")


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path):
    whole = make().run(progress=False, folder=tmp_path / "run", every=2)
    newest = RunFolder(tmp_path / "run").checkpoints()[-1] / "network.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    trainer = make()
    with pytest.warns(RuntimeWarning, match=r"network\.safetensors is damaged.*going on from"):
        trainer.resume(tmp_path / "run")
    assert trainer.step == 6
    same(trainer.run(progress=False, folder=tmp_path / "run"), whole)
    assert make().resume(tmp_path / "run").step == STEPS


class Full(RunFolder):
    """A run's folder on a disk that is full at some steps."""

    full: tuple[int, ...] = ()

    def save(self, step, groups, about):
        if step in self.full:
            raise OSError(28, "No space left on device", str(self.path))
        return super().save(step, groups, about)


def test_a_full_disk_is_a_warning_on_the_way_and_an_error_at_the_end(tmp_path: Path):
    folder = Full(tmp_path / "run")
    folder.full = (2, 4)
    with pytest.warns(RuntimeWarning, match="No space left") as told:
        whole = make().run(progress=False, folder=folder, every=2)
    assert [f"at step {k}," in str(w.message) for k, w in zip((2, 4), told, strict=True)] == [
        True
    ] * 2
    same(make().resume(folder), whole)
    folder = Full(tmp_path / "other")
    folder.full = (4, 6, 8)
    with pytest.warns(RuntimeWarning), pytest.raises(OSError, match="No space left"):
        make().run(progress=False, folder=folder, every=2)
    assert make().resume(folder).step == 2


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_step(tmp_path: Path):
    (tmp_path / "file").write_text("")
    trainer = make()
    with pytest.raises(OSError, match="file"):
        trainer.run(progress=False, folder=tmp_path / "file" / "run")
    assert trainer.step == 0


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    trainer = make().run(2, progress=False, folder=tmp_path / "run")
    trainer.network.net.last.bias.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="what is saved must be finite; network/"):
        trainer.save(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- monitors ------------------------------------------------------------------------------------


class Told(list):
    """A monitor that keeps what it is told, and may fail."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.reports = broken, []

    def started(self, trainer):
        self.append(("started", trainer.step))

    def stepped(self, report):
        self.reports.append(report)
        if self.broken:
            raise OSError("disk full")

    def saved(self, path):
        self.append(("saved", path.name))

    def ended(self, trainer):
        self.append(("ended", trainer.step))


@pytest.mark.parametrize("late", [0, 3])
def test_monitors_are_told_of_every_step(late: int, tmp_path: Path):
    told = Told()
    trainer = make(poisoned("gradient", 5), monitors=[told], late=late, names=("fast",))
    trainer.run(progress=False, folder=tmp_path / "run", every=4)
    assert told == [
        ("started", 0),
        ("saved", "step-00000004"),
        ("saved", "step-00000008"),
        ("ended", STEPS),
    ]
    assert [r.step for r in told.reports] == list(range(STEPS))
    assert [r.loss for r in told.reports] == trainer.history
    assert [r.lr for r in told.reports] == [trainer.settings.rate(k) for k in range(STEPS)]
    assert [r.skipped for r in told.reports] == [k == 5 for k in range(STEPS)]
    assert all(r.seconds > 0 and r.levels is None for r in told.reports)
    # What is told changes nothing.
    same(trainer, make(poisoned("gradient", 5), names=("fast",)).run(progress=False))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_reports_hold_levels_terms_and_the_norm_of_the_gradient(accumulate: int):
    told = Told()
    trainer = make(still, monitors=[told], accumulate=accumulate, clip=1e-3)
    batch = training.batch_at(DATA, 0, STEPS, 8, 0)
    other = make(still)
    made = still(other.network, batch)
    made.loss.backward()
    norm = torch.cat([p.grad.flatten() for p in other.network.parameters()]).norm()
    trainer.run(1, progress=False)
    (report,) = told.reports
    assert torch.equal(report.levels, made.levels[0])
    torch.testing.assert_close(report.per_sample, made.per_sample.double())
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_a_monitor_that_cannot_write_is_a_warning():
    with pytest.warns(
        RuntimeWarning, match="Told failed at step 1, the run goes on without it: "
    ) as told:
        trainer = make(monitors=[Told(broken=True)]).run(progress=False)
    assert len(told) == 1
    assert trainer.step == STEPS


def test_a_monitor_may_stop_the_run():
    class Stops(Told):
        def started(self, trainer):
            self.trainer = trainer

        def stepped(self, report):
            if report.step == 3:
                self.trainer.stop()

    assert make(monitors=[Stops()]).run(progress=False).step == 4


def test_accelerate_is_not_imported_without_need():
    import subprocess
    import sys

    code = (
        "import sys, torch\n"
        "from cmsolvers.training import Trainer, TrainingSettings\n"
        "net = torch.nn.Linear(2, 2)\n"
        "loss = lambda model, batch: model(batch.x0).square().mean()\n"
        "course = TrainingSettings(2, batch_size=2)\n"
        "Trainer(net, loss, torch.ones(4, 2), course).run(progress=False)\n"
        "print('accelerate' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
