"""One training of the benchmark: until its budget of network calls is spent."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.demo.loss_benchmark import network as networks
from cmsolvers.demo.loss_benchmark.entry import Course, Entry, Model
from cmsolvers.demo.loss_benchmark.setting import Setting, learning_rate
from cmsolvers.demo.loss_benchmark.training_data import Batches
from cmsolvers.processes.coordinates import coordinates_of
from cmsolvers.tasks.exact_problems import ExactProblem
from cmsolvers.training import EMA


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        model: around the averaged network.
        steps: of the optimiser.
        calls: of networks on one batch.
        seconds: of processor time.
        loss: the mean over the last tenth of the steps.
        failure: why it stopped before its budget was spent; None where it did not.
    """

    model: Model
    steps: int
    calls: float
    seconds: float
    loss: float
    failure: str | None


def train(entry: Entry, problem: ExactProblem, seed: int, setting: Setting) -> Trained:
    """Train the network of an entry; a function of its arguments.

    All recipes have the same network, AdamW (0.9, 0.99), the course of the learning rate, gradients
    clipped at norm 1, and an average over the last tenth of the steps. A loss or gradient that is
    not finite ends it.

    Raises:
        RuntimeError: a loss that calls no network.
        TypeError: a loss that returns no scalar.
    """
    started = time.process_time()
    run, failure = _Run(entry, problem, seed, setting), None
    try:
        while run.counter.rows < run.budget:
            run.advance()
    except FloatingPointError as error:
        failure = str(error)
    last = run.losses[-max(1, len(run.losses) // 10) :]
    return Trained(
        run.sampled(),
        len(run.losses),
        run.counter.rows / setting.batch_size,
        time.process_time() - started,
        sum(last) / len(last) if last else math.nan,
        failure,
    )


class _Run:
    """The state of a training."""

    def __init__(self, entry: Entry, problem: ExactProblem, seed: int, setting: Setting) -> None:
        seeds = noise.Seeds(seed)
        self.entry, self.problem = entry, problem
        self.counter = networks.Counter()
        self.network = networks.build(
            problem.size, setting, entry.kind == "flow map", seeds.at(0), self.counter
        )
        self.model = self._around(self.network)
        self.average: EMA[networks.Counted] | None = None
        self.target: EMA[networks.Counted] | None = None
        self.given: dict[str, Model] = {}
        if entry.teacher:
            exact = problem.denoiser(coordinates_of(self.model))
            self.given["teacher"] = networks.CountedTeacher(exact, self.counter)
        if entry.target_decay is not None:
            self.target = EMA(self.network, entry.target_decay, warmup=True)
            self.target.module.train()
            self.given["target"] = self._around(self.target.module)
        self.batches = Batches(problem, seeds.at(1), setting.batch_size, entry.pairs)
        self.key = seeds.at(2)
        self.budget = setting.calls * setting.batch_size
        self.losses: list[float] = []
        self.round = 0
        self.network.train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=entry.lr, betas=(0.9, 0.99), fused=True
        )

    def _around(self, network: nn.Module) -> Model:
        return self.entry.make_model(network, self.problem.sigma_data)

    def sampled(self) -> Model:
        """The model to be measured."""
        kept = self.network if self.average is None else self.average.module
        return self._around(networks.uncounted(kept))

    def advance(self) -> None:
        """One step.

        Raises:
            FloatingPointError: a loss or gradient that is not finite.
        """
        entry, step, share = self.entry, len(self.losses), self.counter.rows / self.budget
        self._next_round(int(share * entry.rounds))
        course = Course(step, self._total(step), share, self.round)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(entry.lr, share)
        x0, more = self.batches.at(step)
        value = _scalar(
            entry.loss(
                self.model,
                x0,
                key=self.key,
                step=step,
                **self.given,
                **more,
                **entry.options_at(course),
            )
        )
        if self.counter.rows == 0:
            raise RuntimeError(f"the loss of {entry.name} must call the network; it did not")
        self.losses.append(float(value.detach()))
        _require_finite("loss", self.losses[-1], step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        _require_finite("gradient", float(norm), step)
        self.optimizer.step()
        if self.average is None:
            # Now that a step's calls are known, and with them how many steps there will be.
            span = max(2.0, 0.1 * self.budget / self.counter.rows)
            self.average = EMA(self.network, 1.0 - 1.0 / span, warmup=True)
        for each in (self.average, self.target):
            if each is not None:
                each.update(self.network)

    def _total(self, step: int) -> int:
        """Steps in all, by the mean cost of those before."""
        if step == 0:
            return self.budget // self.batches.size
        return max(step + 1, -(-step * self.budget // self.counter.rows))

    def _next_round(self, number: int) -> None:
        """Make the average the teacher where a new round begins."""
        if number > self.round and self.average is not None:
            self.round = number
            frozen = networks.Counted(networks.uncounted(self.average.module), self.counter)
            self.given["teacher"] = self._around(frozen.eval())


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} {value} at step {step}")


def _scalar(found: object) -> Tensor:
    value = getattr(found, "loss", found)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"loss must return a scalar or a LossOutput; got {type(found).__name__}")
    return value.reshape(())
