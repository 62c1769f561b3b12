from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from networks import residual, resnet20
from scoring.keep_ratio_cases import NETWORKS, importance_of, parameters_of, some_images
from torch import nn

import causalprune as cp
from causalprune.errors import InvalidArgumentError
from causalprune.graph import capture
from causalprune.scoring.ft import filter_budget, quantiles
from causalprune.scoring.unit_budgets import UnitBudget, network_size


def assert_size_after_surgery(model: nn.Module, budget: UnitBudget) -> None:
    """What the budget counts is what surgery leaves."""
    scores = cp.score(model, some_images(1), method="l1")
    plan = cp.plan(model, scores, ratio=0.1)
    groups = {g.name: g.n_units for g in capture(model, some_images(1)).groups}
    remove = {
        name: gone
        for name, n_units in groups.items()
        if (gone := tuple(sorted(set(range(n_units)) - set(budget.kept.get(name, range(n_units))))))
    }
    small = cp.apply(model, dataclasses.replace(plan, remove=remove))
    whole = parameters_of(model)
    assert parameters_of(small) == round(budget.keep_ratio * whole)
    weights = [m.weight.numel() for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(weights) == budget.weights


@pytest.mark.parametrize("network", NETWORKS)
def test_importance_is_the_quantile_of_the_norm(network: str) -> None:
    model = NETWORKS[network]()
    norms = importance_of(cp.score(model, some_images(1), method="l1").frame)
    found = importance_of(cp.score(model, some_images(1), method="ft").frame)
    for group, values in found.items():
        n = len(values)
        smaller = (norms[group][:, None] > norms[group][None]).sum(1)
        torch.testing.assert_close(values, (smaller + 0.5) / n, check_dtype=False)


def test_quantiles_of_equals() -> None:
    values = torch.tensor([2.0, 5.0, 2.0, 1.0])
    assert quantiles(values).tolist() == [0.625, 0.875, 0.375, 0.125]


@pytest.mark.parametrize("network", NETWORKS)
def test_budget_by_trying_every_fraction(network: str) -> None:
    model = NETWORKS[network]()
    graph = capture(model, some_images(1))
    scores = importance_of(cp.score(model, some_images(1), method="ft").frame)
    kept_before = {group.name: group.n_units for group in graph.groups}
    for keep_ratio in (1.0, 0.8, 0.6):
        found = filter_budget(model, graph, scores, keep_ratio)
        assert found.reached == (abs(found.keep_ratio - keep_ratio) < 0.005 * keep_ratio)
        assert_size_after_surgery(model, found)
        for group in graph.groups:
            n, kept = group.n_units, found.kept[group.name]
            assert len(kept) == max(1, math.floor(found.setting * n + 0.5))
            assert len(kept) <= kept_before[group.name]
            best = scores[group.name].sort(descending=True).indices[: len(kept)]
            assert kept == tuple(sorted(best.tolist()))
        kept_before = {name: len(units) for name, units in found.kept.items()}
        # No other fraction comes closer: all of them, in steps finer than one unit.
        size = network_size(model, graph, scores)
        for fraction in range(0, 1001, 7):
            kept_at = {
                name: max(1, math.floor(fraction / 1000 * len(units) + 0.5))
                for name, units in size.order.items()
            }
            other = size.parameters(kept_at) / parameters_of(model)
            assert found.reached or abs(other - keep_ratio) >= abs(found.keep_ratio - keep_ratio)


def test_the_budget_is_met_on_resnet20() -> None:
    model, x = resnet20(), torch.zeros(1, 3, 32, 32)
    graph = capture(model, x)
    scores = importance_of(cp.score(model, x, method="ft").frame)
    for keep_ratio in (0.7, 0.4):
        found = filter_budget(model, graph, scores, keep_ratio)
        # One step of the fraction takes a unit from every one of the widest groups.
        assert found.keep_ratio == pytest.approx(keep_ratio, rel=0.05)
        fractions = [len(units) / graph.group(g).n_units for g, units in found.kept.items()]
        assert max(fractions) - min(fractions) <= 1 / 16


def test_bad_input() -> None:
    model = residual()
    graph = capture(model, some_images(1))
    scores = importance_of(cp.score(model, some_images(1), method="ft").frame)
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: expected at least 0\.\d+"):
        filter_budget(model, graph, scores, 0.01)
    with pytest.raises(InvalidArgumentError, match="keep_ratio: expected a number"):
        filter_budget(model, graph, scores, 1.2)
    name = graph.groups[0].name
    for broken in (scores[name][:-1], scores[name] * torch.nan):
        with pytest.raises(InvalidArgumentError, match=f"scores: .*{name!r}"):
            filter_budget(model, graph, {**scores, name: broken}, 0.5)
    with torch.no_grad():
        model.block1.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidArgumentError, match=r"'block1.conv1' is not finite"):
        cp.score(model, some_images(1), method="ft")
