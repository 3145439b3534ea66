"""One training of the benchmark: until its budget of network calls is spent."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.demo.loss_benchmark import network as networks
from cmsolvers.demo.loss_benchmark.entry import Entry, Model
from cmsolvers.demo.loss_benchmark.setting import Setting, learning_rate
from cmsolvers.processes.coordinates import coordinates_of
from cmsolvers.tasks.exact_problems import ExactProblem
from cmsolvers.training import EMA

_BLOCK = 64  # batches whose data are drawn at once


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
    clipped at norm 1, and an average over the last tenth of the steps.

    Raises:
        ZeroDivisionError: a loss that calls no network.
    """
    seeds, counter = noise.Seeds(seed), networks.Counter()
    network = networks.build(
        problem.size, setting, entry.kind == "flow_map", seeds.at(0) % 2**63, counter
    )
    model = entry.make_model(network, problem.sigma_data)
    given, averages = _models(entry, problem, network, counter)
    optimizer = torch.optim.AdamW(network.parameters(), lr=entry.lr, betas=(0.9, 0.99), fused=True)
    budget = setting.calls * setting.batch_size
    started, losses, failure = time.process_time(), list[float](), None
    average: EMA[networks.Counted] | None = None
    network.train()
    while counter.rows < budget:
        step, share = len(losses), counter.rows / budget
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(entry.lr, share)
        x0 = _batch(problem, seeds.at(1), step, setting)
        value = _scalar(
            entry.loss(model, x0, key=seeds.at(2), step=step, **given, **entry.options_at(share))
        )
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            failure = f"the loss was {losses[-1]} at step {step}"
            break
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            failure = f"the gradient was {float(norm)} at step {step}"
            break
        optimizer.step()
        if average is None:
            # Now that a step's calls are known, and with them how many steps there will be.
            steps = budget / counter.rows
            average = EMA(network, 1.0 - 1.0 / max(2.0, 0.1 * steps), warmup=True)
        for each in (average, *averages):
            each.update(network)
    last = losses[-max(1, len(losses) // 10) :]
    kept = network if average is None else average.module
    return Trained(
        entry.make_model(networks.uncounted(kept), problem.sigma_data),
        len(losses),
        counter.rows / setting.batch_size,
        time.process_time() - started,
        sum(last) / len(last),
        failure,
    )


def _models(
    entry: Entry, problem: ExactProblem, network: networks.Counted, counter: networks.Counter
) -> tuple[dict[str, Model], list[EMA[networks.Counted]]]:
    """Teacher and target as the loss wants them, and the averages that make the target."""
    given: dict[str, Model] = {}
    averages = []
    if entry.teacher:
        path = coordinates_of(entry.make_model(network, problem.sigma_data))
        given["teacher"] = networks.CountedTeacher(problem.denoiser(path), counter)
    if entry.target_decay is not None:
        average = EMA(network, entry.target_decay, warmup=True)
        average.module.train()
        averages.append(average)
        given["target"] = entry.make_model(average.module, problem.sigma_data)
    return given, averages


def _batch(problem: ExactProblem, seed: int, step: int, setting: Setting) -> Tensor:
    """New data for every step, drawn for a number of steps at once: float32 [B, d]."""
    block, place = divmod(step, _BLOCK)
    size = setting.batch_size
    key = (id(problem), seed, block, size)
    if key not in _DRAWN:
        _DRAWN.clear()
        _DRAWN[key] = problem.sample(_BLOCK * size, seed, draw=block).float()
    return _DRAWN[key][place * size : (place + 1) * size]


_DRAWN: dict[tuple[int, int, int, int], Tensor] = {}


def _scalar(found: object) -> Tensor:
    value = getattr(found, "loss", found)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"loss must return a scalar or a LossOutput; got {type(found).__name__}")
    return value.reshape(())
