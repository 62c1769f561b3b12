"""Networks as users write them: each prunes right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pruning.own_network_cases import (
    Layers,
    X,
    chain,
    check_pruned,
    conv,
    plan_by_hand,
    settled,
    two_groupings,
)
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import Interventions, capture, removed
from causalprune.pruning import apply, plan
from causalprune.scoring import score


class Crooked(nn.Module):
    """Residual blocks around an odd concatenation, a gate, a split, and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.narrow, self.wide, self.wide_norm = conv(8, 5, 1), conv(5, 6), nn.BatchNorm2d(6)
        self.each, self.behind_each = conv(8, 8, groups=8, bias=False), conv(8, 4, 1)
        self.large = conv(8, 4, 5)
        self.mix, self.mix_norm = conv(6 + 4 + 4 + 6, 8, 1), nn.BatchNorm2d(8)
        self.down, self.squeeze, self.excite = conv(8, 12), nn.Linear(12, 3), nn.Linear(3, 12)
        self.both, self.left, self.right = conv(12, 10), conv(5, 7), conv(5, 7)
        self.hidden, self.head = nn.Linear(7 * 16, 9), nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        first = F.relu(self.wide_norm(self.wide(F.relu(self.narrow(x)))))
        second = self.behind_each(F.relu6(self.each(x)))
        third = F.max_pool2d(torch.tanh(self.large(x)), 3, 1, 1)
        x = F.relu(x + self.mix_norm(self.mix(torch.cat([first, second, third, first], 1))))
        x = F.relu(self.down(F.avg_pool2d(x, 2)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = self.both(x * gate[:, :, None, None])
        left, right = torch.chunk(x, 2, dim=1)
        x = self.left(left) + self.right(torch.sigmoid(right) * left)
        x = F.adaptive_avg_pool2d(F.relu(x), 4)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


def _sum_of_concatenation(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    first = self.first(x)
    return self.head(F.relu(x + torch.cat([first, self.second(x), first], 1)).mean((2, 3)))


def _same_twice(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(F.relu(self.body(torch.cat([x, x], 1))).mean((2, 3)))


def _up_and_down(self: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(self.stem(x))
    z = F.interpolate(F.relu(self.body(F.max_pool2d(y, 2))), size=y.shape[-2:])
    return self.head(F.relu(self.last(torch.maximum(z, y))).mean((2, 3)))


def _gated(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    gate = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
    return self.head(F.relu(self.body(x * gate)).mean((2, 3)))


def _tokens(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
    values, gates = self.up(x).chunk(2, dim=-1)
    values = self.norm(values.flatten(0, 1)).reshape_as(values)
    return self.head((x + self.down(F.silu(gates) * values)).mean(1))


def _grouped_concatenation(self: nn.Module, x: Tensor) -> Tensor:
    x = torch.cat([self.left(x), self.right(x)], 1)
    return self.head(F.relu(self.last(F.relu(self.grouped(x)))).mean((2, 3)))


def _helped(self: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    output = self.head(F.relu(self.body(x)).mean((2, 3)))
    if self.training:
        output = output + self.helper(F.relu(self.helper_norm(x)).mean((2, 3)))
    return output


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "crooked": Crooked,
    "sum of a concatenation": lambda: Layers(
        _sum_of_concatenation,
        stem=conv(3, 11), first=conv(11, 3), second=conv(11, 5, 1), head=nn.Linear(11, 4),
    ),
    "concatenated with itself": lambda: Layers(
        _same_twice, stem=conv(3, 8), body=conv(16, 5), head=nn.Linear(5, 4)
    ),
    "interpolated": lambda: Layers(
        _up_and_down, stem=conv(3, 8), body=conv(8, 8), last=conv(8, 6), head=nn.Linear(6, 4)
    ),
    "broadcast gate": lambda: Layers(
        _gated, stem=conv(3, 8), gate=conv(8, 8, 1), body=conv(8, 6), head=nn.Linear(6, 4)
    ),
    "gated tokens": lambda: Layers(
        _tokens,
        stem=conv(3, 8), up=nn.Linear(8, 20), norm=nn.BatchNorm1d(10), down=nn.Linear(10, 8),
        head=nn.Linear(8, 4),
    ),
    "depthwise multiplier": lambda: Layers(
        chain("stem", "wider", "norm", "last"),
        stem=conv(3, 8), wider=conv(8, 16, groups=8), norm=nn.BatchNorm2d(16), last=conv(16, 6),
        head=nn.Linear(6, 4),
    ),
    "two groupings": lambda: Layers(
        two_groupings,
        stem=conv(3, 24), fours=conv(24, 24, groups=6), threes=conv(24, 24, groups=12),
        last=conv(24, 6), head=nn.Linear(6, 4),
    ),
    "grouped concatenation": lambda: Layers(
        _grouped_concatenation,
        left=conv(3, 6), right=conv(3, 9), grouped=conv(15, 10, groups=5), last=conv(10, 6),
        head=nn.Linear(6, 4),
    ),
    "norms without parameters": lambda: Layers(
        chain("stem", "bare", "body", "forgetful"),
        stem=conv(3, 8), bare=nn.BatchNorm2d(8, affine=False), body=conv(8, 6),
        forgetful=nn.BatchNorm2d(6, track_running_stats=False), head=nn.Linear(6, 4),
    ),
    "instance norm and padding": lambda: Layers(
        chain("stem", "norm", "body"),
        stem=conv(3, 8, padding_mode="reflect"), body=conv(8, 6, padding_mode="circular"),
        norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True), head=nn.Linear(6, 4),
    ),
    "helped in training": lambda: Layers(
        _helped,
        stem=conv(3, 8), body=conv(8, 6), head=nn.Linear(6, 4), helper_norm=nn.BatchNorm2d(8),
        helper=nn.Linear(8, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_pruned_right_the_first_time(name: str) -> None:
    model = settled(RIGHT[name])
    graph = capture(model, X)
    assert graph.removable == graph.groups
    decided = plan(model, score(model, X, "random", seed=int(torch.randint(99, (1,)))), 0.4)
    assert decided.remove
    check_pruned(model, graph, decided)
    for group in graph.groups:
        unit = int(torch.randint(group.n_units, (1,)))
        places = [place.columns([unit]) for place in group.owned]
        every = [place.columns(range(group.n_units)) for place in group.owned]
        if all(len(one) < len(all_) for one, all_ in zip(places, every, strict=True)):
            check_pruned(model, graph, plan_by_hand(model, {group.name: (unit,)}))


def test_sizes_are_what_the_modules_say() -> None:
    model = settled(RIGHT["two groupings"])
    (group, _) = capture(model, X).groups
    assert (group.n_units, group.producers) == (6, ("stem", "fours", "threes"))
    small = apply(model, plan_by_hand(model, {"stem": (0, 4)}))
    assert "Conv2d(16, 16" in repr(small.fours) and "groups=4" in repr(small.fours)
    assert "groups=8" in repr(small.threes) and small.last.in_channels == 16


def test_no_layer_of_a_coupled_group_is_emptied() -> None:
    model = settled(RIGHT["grouped concatenation"])
    group = capture(model, X).group("left")
    held = group.owned[0].columns
    of_left = tuple(unit for unit in range(group.n_units) if len(held([unit])))
    assert 0 < len(of_left) < group.n_units
    with pytest.raises(InvalidArgumentError, match="'left' to stay"):
        apply(model, plan_by_hand(model, {"left": of_left}))


def test_looking_at_training_mode_leaves_nothing_behind() -> None:
    model = settled(RIGHT["helped in training"])
    model.body.eval(), model.helper.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    (stem, _) = capture(model, X).groups
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [(place.layer, len(place.columns([1]))) for place in stem.training] == [
        ("helper_norm", 1),
        ("helper", 1),
    ]


@pytest.mark.parametrize("name", ["two groupings", "grouped concatenation", "depthwise multiplier"])
def test_effects_are_those_of_what_surgery_removes(name: str) -> None:
    model = settled(RIGHT[name])
    graph = capture(model, X)
    with torch.no_grad():
        run = Interventions(model, graph, example=X[:1])
        run.observe(X)
        for group in graph.groups:
            outputs = run.remove(group.name, range(group.n_units))
            for unit, output in enumerate(outputs):
                with removed(model, graph, {group.name: [unit]}):
                    torch.testing.assert_close(output, model(X), rtol=1e-9, atol=1e-9)
    for method in ("path", "ablation", "taylor", "l1"):
        frame = score(model, (X, torch.arange(len(X))), method).frame
        assert frame.groupby("group").size().to_dict() == {g.name: g.n_units for g in graph.groups}
        assert frame["importance"].notna().all()
    norms = score(model, X, "l1").frame.set_index(["group", "unit"])["importance"]
    group = graph.groups[0]
    weights = [model.get_submodule(o.layer).weight[o.columns([1])] for o in group.owned
               if o.role == "producer"]  # fmt: skip
    assert norms[group.name, 1] == pytest.approx(
        sum(float(w.detach().abs().sum()) for w in weights)
    )
