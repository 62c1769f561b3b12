"""Progressive pruning: the loop, the order of units, and the guard."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from pruning.schedule_cases import X, labelled, traced
from torch import Tensor, nn

from causalprune.errors import (
    TargetNotReachedWarning,
)
from causalprune.graph import capture, removed
from causalprune.pruning import Plan, apply, prune
from causalprune.pruning.ordering import removal_order
from causalprune.scoring import METHODS, Scores, UnitScores, register_method, score


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


@pytest.fixture
def scoring() -> Iterator[Callable[..., str]]:
    """Registers methods for the time of a test."""
    made = []

    def register(function: Callable[..., Any], name: str = "own", **options: Any) -> str:
        register_method(name, needs_labels=False, **options)(function)
        made.append(name)
        return name

    yield register
    for name in made:
        METHODS.pop(name)


def by_layer(order: dict[str, float]) -> Callable[..., Any]:
    """A method that ranks layers, and in a layer units by their index."""

    def method(job: Any) -> Any:
        return {
            g.name: UnitScores(order[g.name] + torch.arange(g.n_units) / 100)
            for g in job.graph.groups
        }

    return method


# ---- the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("vgg", "cswap", {"allow_critical": True, "tolerance": 1.0}),
        ("lenet", "taylor", {"guard": True, "tolerance": 0.2}),
        ("residual", "l2", {"rounds": 3}),
        ("depthwise", "ablation", {"by_category": True, "allow_critical": True}),
    ],
)
def test_the_result_is_that_of_its_plan(name: str, method: str, options: dict[str, Any]) -> None:
    model = networks.ALL[name]()
    data = labelled(model)
    before = copy.deepcopy(model.state_dict())
    small, trace = traced(
        model, data, method, 0.45, "macs", schedule="progressive", chunk=0.15, **options
    )
    assert len(trace.steps) > 1 and trace.stopped and trace.plan.remove
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    again = apply(model, Plan.from_json(trace.plan.to_json()))
    again.load_state_dict(small.state_dict())
    assert torch.equal(apply(model, trace.plan)(X), small(X))
    with torch.no_grad(), removed(model, capture(model, X), trace.plan.remove):
        torch.testing.assert_close(small(X), model(X), rtol=0, atol=1e-5)
    assert not any("causalprune" in type(module).__module__ for module in small.modules())
    kept = {u for s in trace.steps if s.verdict == "kept" for u in s.removed}
    assert {(u.group, u.unit) for u in kept} == {
        (g, unit) for g, units in trace.plan.remove.items() for unit in units
    }
    assert len(kept) == sum(len(units) for units in trace.plan.remove.values())


def test_every_step_scores_the_network_as_it_stands(scoring: Callable[..., str]) -> None:
    seen: list[tuple[list[int], int]] = []

    def first_of_all(job: Any) -> Any:
        seen.append(([g.n_units for g in job.graph.groups], job.seed))
        return {g.name: UnitScores(torch.arange(g.n_units) * 1.0) for g in job.graph.groups}

    model = networks.mlp()
    method = scoring(first_of_all)
    small, trace = traced(model, X, method, 0.5, "units", schedule="progressive", rounds=3, seed=5)
    assert [seed for _, seed in seen] == [5, 6, 7]
    assert [sum(units) for units, _ in seen] == [12, 10, 8]
    assert [len(step.removed) for step in trace.steps] == [2, 2, 2]
    # Lowest first in what is left: numbered as the original network numbers them.
    assert trace.plan.remove == {"1": (0, 1, 2), "3": (0, 1, 2)}
    assert small[1].out_features == 4
    assert torch.equal(small[1].weight, model[1].weight[3:])


@pytest.mark.parametrize("of", ["parameters", "macs", "memory", "units"])
def test_steps_are_chunks_and_end_at_the_target(of: str) -> None:
    model = networks.mlp()
    _, trace = traced(model, X, "random", 0.4, of, schedule="progressive", chunk=0.1, seed=3)
    assert trace.stopped.startswith("target reached")
    assert trace.plan.reached and abs(trace.plan.achieved_ratio - 0.4) < 0.09
    assert all(1 <= len(step.removed) <= 2 for step in trace.steps)
    left = [trace.plan.before.macs, *(step.footprint.macs for step in trace.steps)]
    assert all(a > b for a, b in pairwise(left))


def test_kept_channels_are_multiples_and_protected_layers_stay() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 13, 3), nn.ReLU()),
        *(nn.Conv2d(13, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(9, 3),
    )
    _, trace = traced(
        networks.settle(model), X, "l2", 0.5, "macs", schedule="progressive", round_to=4,
        protect=["4"],
    )  # fmt: skip
    kept = {row.group: row.kept for row in trace.plan.table}
    assert kept["4"] == 9 and kept["0"] % 4 == 0 and kept["2"] in (13, 12, 8, 4)
    assert trace.plan.table[2].held == "4"


def test_same_share_of_every_layer() -> None:
    _, trace = traced(
        networks.lenet(), X, "l1", 0.5, "units", scope="layer", schedule="progressive", chunk=0.2
    )
    assert all(0.2 <= 1 - row.kept / row.units <= 0.7 for row in trace.plan.table)


@pytest.mark.parametrize("compensation", ["mean", "refit"])
@pytest.mark.parametrize("schedule", ["progressive", "iterative"])
def test_compensation_is_against_the_original_network(compensation: str, schedule: str) -> None:
    model = networks.lenet()
    data = labelled(model)
    options = {"compensation": compensation, "rounds": 2, "schedule": schedule}
    small, trace = traced(model, data, "l1", 0.5, "parameters", **options)
    at_once = apply(model, trace.plan, compensation=compensation, data=X)
    plain = apply(model, trace.plan)
    assert len(trace.steps) == 2

    def distance(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(X) - model(X)).square().mean())

    assert distance(small) < 0.9 * distance(plain)
    if schedule == "progressive":
        for one, other in zip(small.parameters(), at_once.parameters(), strict=True):
            assert torch.equal(one, other)


# ---- the order -----------------------------------------------------------------------------------


def scores_of(rows: list[tuple[str, int, str, float, float]], method: str = "ablation") -> Scores:
    frame = pd.DataFrame(rows, columns=["group", "unit", "category", "effect", "importance"])
    for column in ("low", "high", "se", "n", "cost"):
        frame[column] = np.nan
    return Scores(frame, method, "loss", 0.95, "", (1, 2))


def test_detrimental_units_go_first_then_neutral_ones() -> None:
    scores = scores_of(
        [
            ("a", 0, "critical", 0.01, 0.01),
            ("a", 1, "neutral", 0.3, 0.3),
            ("a", 2, "detrimental", -0.1, 0.1),
            ("b", 0, "neutral", -0.2, 0.2),
            ("b", 1, "detrimental", -0.4, 0.4),
        ]
    )
    saved = {"a": [1.0, 1.0, 1.0], "b": [4.0, 4.0]}

    def order(**options: Any) -> list[tuple[str, int]]:
        return [(u.group, u.unit) for u in removal_order(scores, saved, **options)]

    xi = {"by_category": True, "per_cost": False}
    assert order(**xi) == [("b", 1), ("a", 2), ("b", 0), ("a", 1)]
    assert order(**xi, allow_critical=True)[-1] == ("a", 0)
    assert order(**xi, held=["b"]) == [("a", 2), ("a", 1)]
    by_importance = [("a", 0), ("a", 2), ("b", 0), ("a", 1), ("b", 1)]
    assert order(by_category=False, per_cost=False) == by_importance
    assert order(by_category=False, per_cost=True)[0] == ("a", 0)
    assert order(by_category=True, per_cost=True) == [("b", 1), ("a", 2), ("b", 0), ("a", 1)]
    # A detrimental unit that saves more goes sooner; a neutral one that saves more, too.
    saved["a"] = [1.0, 50.0, 50.0]
    assert order(by_category=True, per_cost=True) == [("a", 2), ("b", 1), ("a", 1), ("b", 0)]


def test_the_order_of_cswap_is_that_of_its_importance() -> None:
    model = networks.vgg()
    scores = score(model, labelled(model), "cswap", alpha=0.2)
    saved = {str(g): [1.0] * len(rows) for g, rows in scores.frame.groupby("group")}
    order = removal_order(scores, saved, by_category=True, per_cost=False, allow_critical=True)
    importance = [unit.importance for unit in order]
    assert importance == sorted(importance) and len(order) == len(scores.frame)


# ---- the guard -----------------------------------------------------------------------------------


def guarded_network() -> nn.Module:
    """Layer 1 decides, its units all matter; half of the units of layer 3 are dead."""
    torch.manual_seed(4)
    model = networks.settle(
        nn.Sequential(
            nn.Flatten(), nn.Linear(256, 6), nn.ReLU(), nn.Linear(6, 16), nn.ReLU(),
            nn.Linear(16, 3),
        )
    )  # fmt: skip
    with torch.no_grad():
        model[5].weight[:, :8] = 0
    return model


@pytest.mark.parametrize("blame", ["layer", "chunk"])
def test_a_chunk_that_costs_too_much_is_reverted_and_its_layer_frozen(
    blame: str, scoring: Callable[..., str]
) -> None:
    model = guarded_network()
    data = labelled(model, networks.images(200, seed=9))
    held_out = labelled(model, networks.images(60, seed=10))

    def misleading(job: Any) -> Any:
        """Calls the first layer, and then the dead units of the second, the least important."""
        first, second = job.graph.groups
        return {
            first.name: UnitScores(torch.arange(first.n_units) / 100),
            second.name: UnitScores(1.0 + torch.arange(second.n_units)),
        }

    small, trace = traced(
        model, data, scoring(misleading), 8 / 22, "units",
        schedule="progressive", chunk=0.3, held_out=held_out, tolerance=0.02, blame=blame,
    )  # fmt: skip
    first = trace.steps[0]
    assert first.verdict == "reverted" and trace.accuracy == 1.0
    assert first.accuracy is not None and first.accuracy < 0.98
    if blame == "chunk":
        assert first.frozen == ("1", "3") and len(trace.steps) == 1
        assert trace.stopped.startswith("every layer is frozen") and not trace.plan.reached
        assert all(torch.equal(small.state_dict()[k], t) for k, t in model.state_dict().items())
        return
    assert first.frozen == ("1",) and set(first.parts) == {"1", "3"}
    assert first.parts["1"] < 0.98 <= first.parts["3"] == 1.0
    assert set(trace.plan.remove) == {"3"} and trace.plan.remove["3"] == tuple(range(8))
    assert accuracy(small, held_out) == 1.0 and trace.stopped.startswith("target reached")


def test_a_chunk_may_be_halved_before_a_layer_is_frozen(scoring: Callable[..., str]) -> None:
    model = guarded_network()
    held_out = labelled(model, networks.images(60, seed=10))

    def dead_ones_first(job: Any) -> Any:
        first, second = job.graph.groups
        dead = max(0, second.n_units - 8)  # as many as are left of the eight
        importance = torch.cat([torch.zeros(dead), 2.0 + torch.arange(second.n_units - dead)])
        return {
            first.name: UnitScores(1.0 + torch.arange(first.n_units) / 100),
            second.name: UnitScores(importance),
        }

    _, trace = traced(
        model, X, scoring(dead_ones_first), 0.5, "units", schedule="progressive", chunk=0.45,
        held_out=held_out, tolerance=0.0, halvings=2,
    )  # fmt: skip
    first, second = trace.steps[:2]
    assert (first.verdict, first.frozen, len(first.removed)) == ("reverted", (), 10)
    assert (second.verdict, len(second.removed)) == ("kept", 5)
    assert all(unit.group == "3" and unit.unit < 8 for unit in second.removed)
    assert len(trace.steps[2].removed) == 6  # after a kept step the chunk is whole again


def test_only_critical_units_are_left() -> None:
    model = guarded_network()
    data = labelled(model, networks.images(300, seed=11))
    with pytest.warns(TargetNotReachedWarning, match="asked to remove 90.0% .* only critical"):
        small, trace = prune(
            model, data, "cswap", 0.9, "units", guard=False, chunk=0.3, return_trace=True
        )
    assert trace.stopped == "only critical units are left" and not trace.plan.reached
    assert set(range(8)) <= set(trace.plan.remove["3"])  # the dead ones
    assert not {unit.category for step in trace.steps for unit in step.removed} & {"critical"}
    left = score(small, data, "cswap", seed=len(trace.steps)).frame
    rest = left.groupby("group").filter(lambda rows: len(rows) > 1)
    assert (rest["category"] == "critical").all()


def test_by_default_the_last_fifth_is_held_out_and_never_scored(
    scoring: Callable[..., str],
) -> None:
    model = networks.mlp()
    data = labelled(model)
    seen: list[Tensor] = []

    def looking(job: Any) -> Any:
        seen.append(torch.cat([batch.inputs for batch in job.batches]))
        return by_layer({"1": 0.0, "3": 1.0})(job)

    _, trace = traced(
        model, data, scoring(looking), 0.3, "units", schedule="progressive", guard=True,
        tolerance=0.9, chunk=0.2,
    )  # fmt: skip
    assert all(torch.equal(x, X[:36]) for x in seen) and seen
    held = X[36:], data[1][36:]
    steps = [step for step in trace.steps if step.verdict == "kept"]
    decided = {g: units for g, units in trace.plan.remove.items()}
    assert trace.accuracy == 1.0
    with torch.no_grad(), removed(model, capture(model, X), decided):
        assert steps[-1].accuracy == pytest.approx(accuracy(model, held))
