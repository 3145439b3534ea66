"""An optimiser's state survives to the bit, and what is missing or different is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.training.checkpoints import (
    checked_optimizer_state,
    describe_optimizer,
    hyperparameters,
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    set_optimizer_state,
    write_checkpoint,
)
from support.saved import bits


class Counting(torch.optim.Optimizer):
    """Keeps a number, a text, None and a tensor per parameter, and counts in its group."""

    def __init__(self, parameters, lr=0.1, pull=0.5):
        super().__init__(parameters, {"lr": lr, "pull": pull, "k": 0, "mode": "slow"})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 2
                state["word"], state["nothing"], state["share"] = "ä", None, 0.1 * state["count"]
                state["long"] = state.get("long", torch.zeros(2, dtype=torch.float64)) + 1e-17
                p.sub_(p.grad, alpha=group["lr"] / (group["k"] + state["count"]))


MADE = {
    "AdamW": torch.optim.AdamW,
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "Adam": torch.optim.Adam,
    "Adamax": torch.optim.Adamax,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": torch.optim.Rprop,
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Counting": Counting,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def walk(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        optimizer.zero_grad()
        x = torch.sin(torch.arange(15.0).reshape(5, 3) + k)
        net(x).square().mean().backward()
        optimizer.step()


def state_of(optimizer: torch.optim.Optimizer) -> tuple[object, object]:
    groups = {
        str(i): {n: v for n, v in entries.items() if isinstance(v, Tensor)}
        for i, entries in optimizer.state_dict()["state"].items()
    }
    rest = [
        (i, n, v)
        for i, entries in optimizer.state_dict()["state"].items()
        for n, v in sorted(entries.items())
        if not isinstance(v, Tensor)
    ]
    return bits(groups), (rest, [{**g, "lr": 0} for g in optimizer.state_dict()["param_groups"]])


@pytest.mark.parametrize("name", MADE)
def test_a_run_goes_on_to_the_bit_by_way_of_a_checkpoint(name: str, tmp_path: Path):
    whole = network()
    optimizer = MADE[name](whole.parameters())
    began = hyperparameters(optimizer)
    walk(whole, optimizer, range(3))
    about = {"optimizer": describe_optimizer(optimizer, began)}
    groups = {"network": whole.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    write_checkpoint(tmp_path / "c", groups, about)
    groups, about = read_checkpoint(tmp_path / "c")
    other = network()
    other.load_state_dict(groups["network"])
    fresh = MADE[name](other.parameters())
    load_optimizer_tensors(fresh, groups["optimizer"], about["optimizer"], other)
    assert state_of(fresh) == state_of(optimizer)
    walk(whole, optimizer, range(3, 6))
    walk(other, fresh, range(3, 6))
    assert bits({"n": whole.state_dict()}) == bits({"n": other.state_dict()})
    assert state_of(fresh) == state_of(optimizer)


@pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "Counting", "RAdam"])
def test_without_its_state_a_run_goes_elsewhere(name: str):
    """The negative control."""
    whole = network()
    optimizer = MADE[name](whole.parameters())
    walk(whole, optimizer, range(3))
    other = copy.deepcopy(whole)
    fresh = MADE[name](other.parameters())
    walk(whole, optimizer, range(3, 6))
    walk(other, fresh, range(3, 6))
    assert bits({"n": whole.state_dict()}) != bits({"n": other.state_dict()})


def test_states_of_another_dtype_than_the_parameters_keep_it():
    """torch's own load_state_dict rounds them to the dtype of the parameter."""
    net = network().bfloat16()
    optimizer = torch.optim.AdamW(net.parameters())
    walk(net.float(), optimizer, range(1))
    net.bfloat16()
    for entries in optimizer.state.values():
        entries["exp_avg"] = entries["exp_avg"].double() + 1e-12
        entries["quantized"] = torch.arange(5, dtype=torch.uint8)
    flat, about = optimizer_tensors(optimizer), describe_optimizer(optimizer)
    fresh = torch.optim.AdamW(network().bfloat16().parameters())
    load_optimizer_tensors(fresh, flat, about)
    assert bits({"o": optimizer_tensors(fresh)}) == bits({"o": flat})
    plain = torch.optim.AdamW(network().bfloat16().parameters())
    plain.load_state_dict(optimizer.state_dict())
    assert bits({"o": optimizer_tensors(plain)}) != bits({"o": flat})


def adamw(parameters=None, **given) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = network()
    return net, torch.optim.AdamW(
        net.parameters() if parameters is None else parameters(net), **given
    )


def walked() -> tuple[dict[str, Tensor], dict[str, object]]:
    net, optimizer = adamw()
    walk(net, optimizer, range(2))
    about = describe_optimizer(optimizer)
    return optimizer_tensors(optimizer), json.loads(json.dumps(about))


def test_two_optimisers_do_not_share_what_was_loaded():
    tensors, about = walked()
    before = bits({"o": tensors})
    net, optimizer = adamw()
    load_optimizer_tensors(optimizer, tensors, about)
    walk(net, optimizer, range(1))
    assert bits({"o": tensors}) == before != bits({"o": optimizer_tensors(optimizer)})


def changed(about, *place, to):
    about = copy.deepcopy(about)
    part = about
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = to
    return about


REFUSED = {
    "no description": (lambda t, a: (t, None), {}, "holds none"),
    "an empty description": (lambda t, a: (t, {}), {}, "holds none"),
    "no tensors": (lambda t, a: ({}, a), {}, r"exp_avg of 0\.weight is missing"),
    "one tensor less": (
        lambda t, a: ({n: v for n, v in t.items() if n != "3.exp_avg_sq"}, a),
        {},
        r"exp_avg_sq of 1\.bias is missing",
    ),
    "one parameter less": (
        lambda t, a: ({n: v for n, v in t.items() if not n.startswith("2.")}, a),
        {},
        r"exp_avg of 1\.weight is missing",
    ),
    "a tensor more": (lambda t, a: (t | {"9.x": t["0.step"]}, a), {}, "9.x belongs to nothing"),
    "an entry of nobody": (
        lambda t, a: (t | {"9.x": t["0.step"]}, changed(a, "entries", "9", to=["x"])),
        {},
        "must have a parameter 9; it has 4",
    ),
    "a description of a number": (lambda t, a: (t, 3), {}, "holds none"),
    "entries of a number": (lambda t, a: (t, changed(a, "entries", to=3)), {}, "described"),
    "a part missing": (
        lambda t, a: (t, {n: v for n, v in a.items() if n != "numbers"}),
        {},
        "must be described as it is saved; got KeyError",
    ),
    "another kind": (
        lambda t, a: (t, changed(a, "kind", to="RAdam")),
        {},
        "optimizer must be RAdam to resume, as in the checkpoint; got AdamW",
    ),
    "another shape": (
        lambda t, a: (t, changed(a, "shapes", 0, 1, to=[5])),
        {},
        r"0\.bias must have shape \[5\] to resume; got \[4\]",
    ),
    "another decay": (
        lambda t, a: (t, a),
        {"weight_decay": 0.5},
        r"param_groups\[0\]\['weight_decay'\] must be 0\.01 to resume; got 0\.5",
    ),
    "other betas": (lambda t, a: (t, a), {"betas": (0.8, 0.9)}, r"\['betas'\] must be \[0\.9, 0"),
    "fewer parameters": (
        lambda t, a: (t, a),
        {"parameters": lambda net: net[0].parameters()},
        r"groups of \[4\] parameters to resume; got \[2\]",
    ),
    "other groups": (
        lambda t, a: (t, a),
        {"parameters": lambda net: [{"params": layer.parameters()} for layer in net]},
        r"groups of \[4\] parameters to resume; got \[2, 2\]",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_missing_or_different_is_named_and_nothing_is_set(kind: str):
    change, given, text = REFUSED[kind]
    net, optimizer = adamw(**given)
    if not given.get("parameters"):
        walk(net, optimizer, range(1))
    before = state_of(optimizer)
    with pytest.raises(ValueError, match=text):
        load_optimizer_tensors(optimizer, *change(*walked()), net)
    assert state_of(optimizer) == before


def test_what_does_not_change_the_steps_may_differ():
    """The rate, which belongs to the run's schedule, and the way of computing a step."""
    for given in ({"lr": 0.5}, {"fused": True}, {"foreach": True}):
        net, optimizer = adamw(**given)
        load_optimizer_tensors(optimizer, *walked())
        assert optimizer.param_groups[0]["lr"] == given.get("lr", 1e-3)
        walk(net, optimizer, range(1))


def test_looking_sets_nothing_and_setting_needs_no_second_look():
    tensors, about = walked()
    _, optimizer = adamw()
    before = state_of(optimizer)
    state = checked_optimizer_state(optimizer, tensors, about)
    assert state_of(optimizer) == before
    set_optimizer_state(optimizer, state)
    assert bits({"o": optimizer_tensors(optimizer)}) == bits({"o": tensors})


def test_parameters_without_a_state_are_no_loss():
    """A frozen or unused one never had any."""
    net, optimizer = adamw()
    net[0].requires_grad_(False)
    walk(net, optimizer, range(2))
    tensors, about = optimizer_tensors(optimizer), describe_optimizer(optimizer)
    assert {name.split(".")[0] for name in tensors} == {"2", "3"}
    _, fresh = adamw()
    load_optimizer_tensors(fresh, tensors, about)
    assert state_of(fresh) == state_of(optimizer)


def test_names_are_those_the_optimiser_was_given():
    tensors, about = walked()
    del tensors["1.exp_avg"]
    for named, name in ((True, r"0\.bias"), (False, "parameter 1")):
        net = network()
        parameters = net.named_parameters() if named else net.parameters()
        with pytest.raises(ValueError, match=f"exp_avg of {name} is missing"):
            load_optimizer_tensors(torch.optim.AdamW(parameters), tensors, about)


def test_groups_that_move_are_told_from_settings():
    net = network()
    optimizer = Counting(net.parameters())
    began = hyperparameters(optimizer)
    assert began == [{"pull": 0.5, "k": 0, "mode": "slow"}]
    walk(net, optimizer, range(3))
    tensors, about = optimizer_tensors(optimizer), describe_optimizer(optimizer, began)
    assert about["moved"] == [{"k": 3}]
    fresh = Counting(network().parameters())
    load_optimizer_tensors(fresh, tensors, about)
    assert fresh.param_groups[0]["k"] == 3
    with pytest.raises(ValueError, match=r"\['pull'\] must be 0\.5 to resume; got 0\.7"):
        load_optimizer_tensors(Counting(network().parameters(), pull=0.7), tensors, about)
    with pytest.raises(ValueError, match=r"\['k'\] must be 3 to resume; got 0"):
        load_optimizer_tensors(
            Counting(network().parameters()), tensors, describe_optimizer(optimizer)
        )


def test_optimisers_that_cannot_be_saved_are_named():
    net = network()
    with pytest.raises(TypeError, match="must not be LBFGS"):
        optimizer_tensors(torch.optim.LBFGS(net.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.state[next(net.parameters())]["past"] = [torch.ones(1)]
    for save in (optimizer_tensors, describe_optimizer):
        with pytest.raises(TypeError, match="past of parameter 0 is an object of type list"):
            save(optimizer)
    counting = Counting(net.parameters())
    began = hyperparameters(counting)
    counting.param_groups[0]["mode"] = [1]
    with pytest.raises(TypeError, match="must move numbers alone; mode has become"):
        describe_optimizer(counting, began)


def test_hyperparameters_are_json():
    net = network()
    made = [
        torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.1), betas=(0.9, 0.99)),
        torch.optim.Adafactor(net.parameters()),
        torch.optim.SGD(
            [{"params": net[0].parameters(), "lr": 1.0}, {"params": net[1].parameters()}], 0.1
        ),
    ]
    for optimizer in made:
        optimizer.param_groups[0]["rule"] = torch.relu
        found = hyperparameters(optimizer)
        assert json.loads(json.dumps(found)) == found
        assert len(found) == len(optimizer.param_groups) and found[0]["rule"] == "relu"
        assert not {"lr", "params", "fused", "foreach"} & set(found[0])
