"""do(unit := its best linear prediction from the other units) against whole forward passes."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from interventions_by_hand import NETWORKS, by_hand, close, readings
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import Consumer, Interventions, UnitGraph, UnitGroup, capture
from causalprune.graph.predictions import RIDGE

N = 23
X = torch.randn(N, 1, 16, 16)


def cases(name: str, units: str = "groups") -> tuple[nn.Module, UnitGraph]:
    model = NETWORKS[name]()
    return model, capture(model, X[:2], units=units)


def calibrated(model: nn.Module, graph: UnitGraph, cache: int = 2**30) -> Interventions:
    run = Interventions(model, graph, example=X[:1], value="predicted", max_cache_bytes=cache)
    run.calibrate([X[:9], X[9:]])
    run.observe(X)
    return run


def stand_in(read: Tensor, own: int, known: Tensor, target: Tensor) -> Tensor:
    """Ridge regression of column `own` of rows [n, C] on columns `known`, solved as it stands."""
    x, y = read[:, known], read[:, own]
    centred = x - x.mean(0)
    normal = centred.T @ centred / len(x) + RIDGE * torch.diag(x.var(0, correction=0))
    normal += torch.diag((normal.diagonal() == 0).double())
    slope = torch.linalg.solve(normal, centred.T @ (y - y.mean()) / len(x))
    return (target[:, known] - x.mean(0)) @ slope + y.mean()


def filled(
    group: UnitGroup, plain: dict[str, Tensor], unit: int, value: Tensor, c: Consumer
) -> Tensor:
    """What stands in the unit's columns of `value` [..., C]: place by place."""
    read = plain[c.layer].double().movedim(c.axis, -1).flatten(0, -2)
    target = value.double().flatten(0, -2)
    own = c.columns([unit]).tolist()
    others = [c.columns([u]).tolist() for u in range(group.n_units) if u != unit]
    others = [places for places in others if len(places) == len(own)]
    columns = [
        stand_in(read, place, torch.tensor([places[k] for places in others]), target)
        for k, place in enumerate(own)
    ]
    return torch.stack(columns, 1).reshape(*value.shape[:-1], len(own)).to(value)


@pytest.mark.parametrize(
    ("units", "cache"), [("groups", 2**30), ("groups", 30_000), ("filters", 2**30)]
)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "tokens"])
@torch.no_grad()
def test_replay_equals_whole_passes(name: str, units: str, cache: int) -> None:
    model, graph = cases(name, units)
    run = calibrated(model, graph, cache)
    for group in graph.groups:
        plain = readings(model, group, X)
        outputs = run.remove(group.name, range(group.n_units))
        for unit, output in enumerate(outputs):

            def fill(consumer: Consumer, value: Tensor, axis: int, columns: Tensor) -> Tensor:
                last = value.movedim(axis, -1)
                return filled(group, plain, unit, last, consumer).movedim(-1, axis)  # noqa: B023

            close(output, by_hand(model, group, unit, X, fill))
        some = run.remove(group.name, [group.n_units - 1, 0], [7, 1, 2])
        close(some, outputs[[group.n_units - 1, 0]][:, [7, 1, 2]])


@torch.no_grad()
def test_heads_are_predicted_from_all_columns_of_the_others() -> None:
    model, graph = cases("tokens")
    (heads,) = [group for group in graph.groups if group.kind == "head"]
    (consumer,) = heads.consumers
    attention, seen = model.attention, []
    y = model.norm(model.patch(X).flatten(2).transpose(1, 2))
    q, k, v = F.linear(y, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    flat = read.double().flatten(0, 1)
    run = calibrated(model, graph)
    for head in range(2):
        own = consumer.columns([head])
        known = consumer.columns([1 - head])
        new = _jointly(flat, own, known)
        patched = flat.index_copy(1, own, new).view_as(read).to(read)
        handle = attention.register_forward_hook(
            lambda m, a, out, z=patched: (attention.out_proj(z), None)
        )
        seen.append(model(X))
        handle.remove()
        close(run.remove(heads.name, [head])[0], seen[-1])


def _jointly(rows: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """Ridge regression of several columns at once."""
    x, y = rows[:, known], rows[:, own]
    centred = x - x.mean(0)
    normal = centred.T @ centred / len(x) + RIDGE * torch.diag(x.var(0, correction=0))
    return centred @ torch.linalg.solve(normal, centred.T @ (y - y.mean(0)) / len(x)) + y.mean(0)


@torch.no_grad()
def test_a_copied_unit_can_be_replaced_and_an_independent_one_cannot() -> None:
    model = networks.mlp()
    first, second = model[1], model[3]
    first.weight[1], first.bias[1] = 2 * first.weight[0], 2 * first.bias[0]  # behind a ReLU
    graph = capture(model, X[:2])
    predicted = calibrated(model, graph)
    zero = Interventions(model, graph, example=X[:1])
    plain = zero.observe(X)
    lost, left = (
        (run.remove("1", range(first.out_features)) - plain).square().mean((1, 2))
        for run in (zero, predicted)
    )
    assert second.in_features == len(lost)
    assert (left[:2] < 1e-4 * lost[:2]).all() and (left <= lost).sum() >= len(lost) - 1
    assert left[2:].max() > 0.01 * lost.max()


@torch.no_grad()
def test_a_unit_that_never_changes_is_its_mean() -> None:
    model = networks.vgg()
    model[1].weight[2] = 0.0
    model[1].bias[2] = 3.0
    run = calibrated(model, capture(model, X[:2]))
    close(run.remove("0", [2])[0], model(X))


@torch.no_grad()
def test_what_cannot_be_is_said() -> None:
    model, graph = cases("lenet")
    run = Interventions(model, graph, example=X[:1], value="predicted")
    with pytest.raises(InvalidArgumentError, match=r"predicted.*calibrate"):
        run.observe(X)
    run.calibrate([X])
    run.observe(X)
    with pytest.raises(InvalidArgumentError, match="one at a time; use remove"):
        run.remove_jointly({"conv1": [0]})
    with pytest.raises(InvalidArgumentError, match="one at a time; use remove"):
        run.remove_masked({"conv1": torch.ones(N, 4, dtype=torch.bool)})

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(256, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.last(F.relu(self.first(x.flatten(1))))
            view = out.view(-1, 3)
            view.mul_(0.5)
            return out

    untraceable = networks.settle(Shared())
    graph = capture(untraceable, X[:2])
    with pytest.raises(UnsupportedModelError, match=r"do\(unit := predicted\)"):
        Interventions(untraceable, graph, example=X[:1], value="predicted").calibrate([X])
