from __future__ import annotations

import math

import pytest
import torch
from networks import lenet, residual, resnet20
from scoring.keep_ratio_cases import (
    NETWORKS,
    importance_of,
    parameters_of,
    sensitivities_of,
    some_images,
    weights_of,
)
from scoring.test_ft import assert_size_after_surgery
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph, capture
from causalprune.scoring.pfp import channel_budget


@pytest.mark.parametrize("network", NETWORKS)
def test_importance_by_definition(network: str) -> None:
    model, x = NETWORKS[network](), some_images()
    scores = cp.score(model, x, method="pfp", batch_size=2)
    wanted = sensitivities_of(model, x, "max")
    for name, values in wanted.items():
        got = torch.from_numpy(scores.edges[name]).double()
        torch.testing.assert_close(got, values, rtol=3e-4, atol=1e-7)
    found = importance_of(scores.frame)
    for group in capture(model, x).groups:
        for unit in range(group.n_units):
            largest = max(
                float(wanted[consumer.layer][:, consumer.columns([unit])].max())
                for consumer in group.consumers
            )
            assert float(found[group.name][unit]) == pytest.approx(largest, rel=1e-3, abs=1e-7)


def test_a_silent_channel_has_no_sensitivity() -> None:
    model = lenet()
    with torch.no_grad():
        model.conv1.bias[2] = -1e4
    found = importance_of(cp.score(model, some_images(), method="pfp").frame)["conv1"]
    assert float(found[2]) == 0 and (found[[0, 1, 3]] > 0).all()


class Attentive(nn.Module):
    """Tokens of 16 pixels, one attention, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.hidden(x).relu().mean(1))


@pytest.mark.parametrize("method", ["sipp", "pfp"])
def test_heads_cannot_be_watched(method: str) -> None:
    model, x = Attentive().eval(), some_images()
    scores = cp.score(model, x, method=method)
    found = importance_of(scores.frame)
    assert set(scores.edges) == {"embed", "hidden", "head"}
    largest = max(float(values.max()) for values in found.values())
    assert (found["attention"] == (1.0 if method == "pfp" else largest)).all()
    assert any("attention: sensitivity unknown" in note for note in scores.notes)
    norms = importance_of(cp.score(model, x, method="wt").frame)["attention"]
    weight = model.attention.in_proj_weight.detach().reshape(3, 2, -1)
    torch.testing.assert_close(norms, weight.abs().sum((0, 2)), check_dtype=False)


def kept_by_hand(
    model: nn.Module, graph: UnitGraph, sensitivities: dict[str, Tensor], epsilon: float
) -> dict[str, int]:
    """methods.md's allocation, group by group; these consumers are convolutions and linear."""
    kept = {}
    for group in graph.groups:
        s = [float(value) for value in sensitivities[group.name]]
        reach = 0
        for consumer in group.consumers:
            weight = weights_of(model)[consumer.layer]
            kappa = math.prod(weight.shape[2:]) * consumer.features_per_unit
            reach = max(reach, (graph.positions[consumer.layer] + 1) * kappa)
        tilde = 2 * 3 * math.log(8 * reach / 1e-16) * sum(s)
        m = math.ceil(3 * (6 + 2 * epsilon) * tilde / epsilon**2)
        expected = sum(1 - (1 - value / sum(s)) ** m for value in s)
        kept[group.name] = min(max(math.ceil(expected - 1e-9), 1), len(s))
    return kept


@pytest.mark.parametrize("network", NETWORKS)
def test_budget_by_formula(network: str) -> None:
    model, x = NETWORKS[network](), some_images()
    graph = capture(model, x)
    sensitivities = importance_of(cp.score(model, x, method="pfp").frame)
    before = {group.name: group.n_units for group in graph.groups}
    for keep_ratio in (0.8, 0.6):
        found = channel_budget(model, graph, sensitivities, keep_ratio)
        wanted = kept_by_hand(model, graph, sensitivities, found.setting)
        assert {name: len(units) for name, units in found.kept.items()} == wanted
        assert found.reached == (abs(found.keep_ratio - keep_ratio) < 0.005 * keep_ratio)
        assert_size_after_surgery(model, found)
        for group in graph.groups:
            kept = found.kept[group.name]
            best = sensitivities[group.name].sort(descending=True, stable=True).indices[: len(kept)]
            assert kept == tuple(sorted(best.tolist())) and len(kept) <= before[group.name]
        before = {name: len(units) for name, units in found.kept.items()}
    whole = channel_budget(model, graph, sensitivities, 1.0)
    assert whole.keep_ratio == 1.0 and whole.reached


def test_the_budget_is_met_on_resnet20() -> None:
    model = resnet20()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    graph = capture(model, x)
    sensitivities = importance_of(cp.score(model, x, method="pfp").frame)
    epsilon = 0.0
    for keep_ratio in (0.8, 0.6, 0.4):
        found = channel_budget(model, graph, sensitivities, keep_ratio)
        assert found.keep_ratio == pytest.approx(keep_ratio, rel=0.02)
        assert found.reached == (abs(found.keep_ratio - keep_ratio) < 0.005 * keep_ratio)
        assert found.setting > epsilon
        epsilon = found.setting
    # Every unit that goes takes the scale and shift of its batch norm along.
    gone = sum(graph.group(name).n_units - len(units) for name, units in found.kept.items())
    outside = parameters_of(model) - sum(w.numel() for w in weights_of(model).values())
    assert round(found.keep_ratio * parameters_of(model)) == outside - 2 * gone + found.weights


def test_bad_input() -> None:
    model = residual()
    graph = capture(model, some_images(1))
    sensitivities = importance_of(cp.score(model, some_images(), method="pfp").frame)
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: expected at least 0\.\d+"):
        channel_budget(model, graph, sensitivities, 0.01)
    with pytest.raises(InvalidArgumentError, match="delta"):
        channel_budget(model, graph, sensitivities, 0.5, delta=1.5)
    with pytest.raises(InvalidArgumentError, match="scores: expected"):
        channel_budget(model, graph, {}, 0.5)
    with pytest.raises(InvalidArgumentError, match="units='groups'"):
        cp.score(model, some_images(), method="pfp", units="filters")
