"""Iterative pruning with retraining, and the arguments of all schedules."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from pruning.schedule_cases import X, labelled, traced
from torch import nn

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.pruning import Iterative, Progressive, apply, plan, prune
from causalprune.scoring import Scores, score

# ---- rounds --------------------------------------------------------------------------------------


def test_rounds_keep_the_same_fraction_and_retrain() -> None:
    model = networks.vgg().train()
    calls: list[int] = []

    def training(network: nn.Module) -> nn.Module | None:
        calls.append(sum(p.numel() for p in network.parameters()))
        network.eval()
        with torch.no_grad():
            network[0].weight.mul_(1.5)
        return network if len(calls) % 2 else None

    small, trace = traced(
        model, X, "l1", 0.6, "parameters", schedule="iterative", rounds=3, retrain=training
    )
    verdicts = ["kept", "retrained"] * 3
    assert [step.verdict for step in trace.steps] == verdicts
    kept = [calls[0] / trace.plan.before.parameters, calls[1] / calls[0], calls[2] / calls[1]]
    assert kept == pytest.approx([0.4 ** (1 / 3)] * 3, abs=0.06)
    assert trace.plan.achieved_ratio == pytest.approx(0.6, abs=0.03)
    same = apply(model, trace.plan)
    torch.testing.assert_close(small[0].weight, same[0].weight * 1.5**3)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    torch.testing.assert_close(small[4].weight, same[4].weight)
    assert trace.plan.after.parameters == sum(p.numel() for p in small.parameters())


def test_one_round_is_one_shot() -> None:
    model = networks.lenet()
    plain = prune(model, X, "l2", 0.5, "macs")
    small, trace = traced(model, X, "l2", 0.5, "macs", schedule=Iterative(rounds=1))
    assert trace.plan == plan(model, score(model, X, "l2"), 0.5, "macs")
    for one, other in zip(plain.parameters(), small.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_that_changes_the_network_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="retrain: expected a network of the same"):
        prune(networks.mlp(), X, "l1", 0.5, retrain=lambda network: nn.Sequential(network))


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["one_shot", "progressive", "iterative"])
def test_data_that_can_be_read_once(schedule: str) -> None:
    model = networks.mlp()
    x, y = labelled(model)
    batches = [(x[i : i + 9], y[i : i + 9]) for i in range(0, 45, 9)]
    options = {"schedule": schedule, "batch_size": 9}
    once = prune(model, iter(batches), "taylor", 0.4, "units", **options)
    whole = prune(model, (x, y), "taylor", 0.4, "units", **options)
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), whole.parameters(), strict=True)
    )


def test_a_budget_is_raced_at_the_boundary_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def spy(model: nn.Module, data: Any, method: str, **options: Any) -> Scores:
        seen.append((method, options.get("budget"), options.get("ratio")))
        options = {k: v for k, v in options.items() if k not in ("budget", "ratio", "scope")}
        return score(model, data, method, **options)

    monkeypatch.setattr("causalprune.pruning.run.score", spy)
    model = networks.mlp()
    budget = {"budget": 400.0, "schedule": "progressive", "chunk": 0.2}
    prune(model, labelled(model), "ablation", 0.4, "units", **budget)
    assert len(seen) > 2 and set(seen[1:]) == {("ablation", 400.0, 0.2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0.0}, r"chunk: expected a number in \(0, 1\)"),
        ({"rounds": 0}, "rounds: expected a positive integer"),
        ({"tolerance": -0.1}, r"tolerance: expected a fraction of the images in \[0, 1\]"),
        ({"held_out_fraction": 1.0}, "held_out_fraction: expected"),
        ({"halvings": -1}, "halvings: expected an integer of at least 0"),
        ({"blame": "me"}, "unknown blame 'me'; known: chunk, layer"),
        ({"guard": "yes"}, "guard: expected True, False or None"),
        ({"allow_critical": 1}, "allow_critical: expected True or False"),
        ({"speed": 3}, "unknown option of method 'l1' or schedule 'progressive' 'speed'"),
        ({"of": "latency"}, "of: expected .* got 'latency'"),
        ({"scope": {"1": 0.5}}, "scope: expected 'global' or 'layer'"),
        ({"compensation": "prayer"}, "unknown compensation 'prayer'; known: mean, none, refit"),
        ({"ridge": -0.1}, "ridge: expected"),
        ({"schedule": "slowly"}, "unknown schedule 'slowly'"),
        ({"schedule": 3}, "schedule: expected one of one_shot, progressive, iterative, got int"),
        ({"held_out": X}, "held_out: expected .inputs, targets."),
        ({"guard": True}, "data: expected .inputs, targets., because the guard"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_scored(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causalprune.pruning.run.score", lambda *args, **options: 1 / 0)
    arguments = {"schedule": "progressive", **options}
    with pytest.raises((InvalidArgumentError, UnknownNameError, DataError), match=message):
        prune(networks.mlp(), X, "l1", 0.4, **arguments)


def test_options_of_a_schedule_are_no_options_of_another() -> None:
    with pytest.raises(UnknownNameError, match="'chunk'"):
        prune(networks.mlp(), X, "l1", chunk=0.1)
    with pytest.raises(InvalidArgumentError, match=r"scope: .* iterative"):
        prune(networks.mlp(), X, "l1", None, schedule="iterative", scope={"1": 0.5})
    assert Progressive() == Progressive(chunk=0.05)


def test_a_share_for_each_layer() -> None:
    small = prune(networks.mlp(), X, "l1", None, scope={"1": 3 / 7})
    assert (small[1].out_features, small[3].out_features) == (4, 5)
