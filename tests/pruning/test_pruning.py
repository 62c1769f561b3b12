"""Plans and surgery."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.errors import (
    InvalidArgumentError,
    RecordError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.graph import capture, removed
from causalprune.pruning import Plan, apply, plan, prune
from causalprune.scoring import score

X, Y = networks.images(8), networks.targets(8)


def _plan(model: nn.Module, ratio: float = 0.5, of: str = "units", **options: object) -> Plan:
    scores = score(model, X, "random", seed=3)
    return plan(model, scores, ratio, of, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("name", networks.ALL)
def test_pruned_network_equals_the_masked_one(name: str, ratio: float, training: bool) -> None:
    model = networks.ALL[name]()
    decided = _plan(model, ratio)
    small = apply(model, decided)
    assert decided.remove
    model.train(training), small.train(training)
    with torch.no_grad(), removed(model, capture(model, X), decided.remove):
        expected = model(X)
    torch.testing.assert_close(small(X), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", networks.ALL)
def test_every_single_unit_can_go(name: str) -> None:
    model = networks.ALL[name]()
    graph, nothing = capture(model, X), _plan(model, 0.0)
    for group in graph.groups:
        for unit in range(group.n_units):
            gone = {group.name: (unit,)}
            with torch.no_grad(), removed(model, graph, gone):
                expected = model(X)
            small = apply(model, replace(nothing, remove=gone))
            torch.testing.assert_close(small(X), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("of", ["parameters", "macs", "units"])
@pytest.mark.parametrize("name", networks.ALL)
def test_footprint_of_a_plan_is_that_of_the_network(name: str, of: str) -> None:
    model = networks.ALL[name]()
    decided = _plan(model, 0.5, of)
    for network, footprint in ((model, decided.before), (apply(model, decided), decided.after)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(X[:1])
        assert footprint.macs * 2 == counter.get_total_flops()
        assert footprint.parameters == sum(p.numel() for p in network.parameters())
        tensors = [*network.parameters(), *network.buffers()]
        assert footprint.bytes == sum(t.numel() * t.element_size() for t in tensors)
    before, after = getattr(decided.before, of), getattr(decided.after, of)
    assert decided.achieved_ratio == pytest.approx(1 - after / before)


def test_modules_describe_their_new_sizes() -> None:
    model = networks.depthwise()
    decided = replace(_plan(model, 0.0), remove={"0.0": (1, 2), "2.0": (0,)})
    small = apply(model, decided)
    depthwise = small.get_submodule("1.0")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (2, 2, 2)
    assert small.get_submodule("1.1").num_features == 2
    assert small.get_submodule("2.0").in_channels == 2
    assert small.get_submodule("5").in_features == 5


def test_input_network_is_untouched() -> None:
    model = networks.residual().train()
    model.stem.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    small = apply(model, _plan(model))
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in small.modules()] == modes
    assert not small.stem.weight.requires_grad and small.fc.weight.requires_grad
    shared = {t.data_ptr() for t in model.state_dict().values()}
    assert shared.isdisjoint(t.data_ptr() for t in small.state_dict().values() if t.numel())


def test_pruned_network_trains() -> None:
    small = apply(networks.vgg(), _plan(networks.vgg())).train()
    torch.nn.functional.cross_entropy(small(X), Y).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_pruned_network_needs_no_causalprune() -> None:
    small = prune(networks.vgg(), (X, Y), ratio=0.4)
    content = pickle.dumps(small)
    assert b"causalprune" not in content
    assert not any("causalprune" in type(module).__module__ for module in small.modules())
    assert torch.equal(pickle.loads(content)(X), small(X))


def test_pruned_network_can_be_pruned_again() -> None:
    model = networks.residual()
    once = prune(model, (X, Y), ratio=0.3)
    twice = prune(once, (X, Y), ratio=0.3)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, once, twice)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("of", ["parameters", "macs", "units"])
@pytest.mark.parametrize("name", networks.ALL)
def test_no_layer_is_ever_emptied(name: str, of: str, scope: str) -> None:
    decided = _plan(networks.ALL[name](), 0.999, of, scope=scope)
    assert all(row.kept >= 1 for row in decided.table)
    assert not decided.reached
    assert all(row.kept == 1 for row in decided.table)
    assert decided.achieved_ratio < 0.999
    assert "NOT REACHED" in str(decided)


@pytest.mark.parametrize("method", ["path", "l1"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_target_is_met_as_closely_as_one_unit_allows(ratio: float, scope: str, method: str) -> None:
    model = networks.mlp()
    scores = score(model, (X, Y), method)
    decided = plan(model, scores, ratio, "parameters", scope=scope)
    assert decided.reached
    assert abs(decided.achieved_ratio - ratio) <= 257 / decided.before.parameters


def test_ratio_zero_removes_nothing() -> None:
    model = networks.lenet()
    decided = _plan(model, 0)
    assert decided.remove == {} and decided.achieved_ratio == 0 and decided.reached
    assert torch.equal(apply(model, decided)(X), model(X))


def test_units_ratio_is_exact_where_it_can_be() -> None:
    decided = _plan(networks.lenet(), 0.5, "units")
    assert sum(len(units) for units in decided.remove.values()) == 14


def test_the_least_important_units_go_first() -> None:
    model = networks.lenet()
    scores = score(model, (X, Y), "ablation")
    decided = plan(model, scores, 0.4, "units")
    gone = {(group, unit) for group, units in decided.remove.items() for unit in units}
    rows = [(row.importance, (row.group, row.unit)) for row in scores.frame.itertuples()]
    lowest = [unit for _, unit in sorted(rows)[: len(gone)]]
    assert gone == set(lowest)


def test_importance_is_weighed_against_what_a_unit_saves() -> None:
    model = networks.lenet()
    scores = score(model, (X, Y), "ablation")
    # A conv1 filter saves 176 parameters, a hidden unit 33 or 14: at twice the importance it is
    # still the cheaper way to the target.
    worth = scores.frame["group"].map({"conv1": 2.0, "conv2": 10.0, "fc1": 1.0, "fc2": 1.0})
    weighed = replace(scores, frame=scores.frame.assign(importance=worth))
    assert len(plan(model, weighed, 0.33).remove["conv1"]) >= 2
    assert set(plan(model, weighed, 0.33, "units").remove) == {"fc1"}


def test_layer_scope_takes_the_same_share_of_every_layer() -> None:
    decided = _plan(networks.residual(), 0.5, "units", scope="layer")
    assert [(row.units, row.kept) for row in decided.table] == [(4, 2), (4, 2), (6, 3), (6, 3)]


def test_protected_layers_keep_everything() -> None:
    decided = _plan(networks.residual(), 0.9, "units", protect=["block1.conv2"])
    assert "stem" not in decided.remove and decided.remove
    assert "fc1" not in _plan(networks.lenet(), 0.9, "units", protect="fc1").remove
    with pytest.raises(UnknownNameError, match="conv1"):
        _plan(networks.lenet(), protect=["fc9"])


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.0, 2, float("nan"), "half", None, True])
def test_ratio_out_of_range(ratio: object) -> None:
    with pytest.raises(InvalidArgumentError, match="ratio"):
        _plan(networks.lenet(), ratio)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="ratio"):
        prune(networks.lenet(), None, ratio=ratio)  # type: ignore[arg-type]


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="macs"):
        _plan(networks.lenet(), of="watts")
    with pytest.raises(UnknownNameError, match="layer"):
        _plan(networks.lenet(), scope="planet")


def test_scores_and_plans_of_another_network_are_refused() -> None:
    lenet, mlp = networks.lenet(), networks.mlp()
    with pytest.raises(InvalidArgumentError, match="scores"):
        plan(mlp, score(lenet, X, "l1"))
    with pytest.raises(InvalidArgumentError, match="plan"):
        apply(mlp, _plan(lenet))
    small = apply(lenet, _plan(lenet))
    with pytest.raises(InvalidArgumentError, match="plan"):
        apply(small, _plan(lenet))
    with pytest.raises(InvalidArgumentError, match="scores"):
        plan(lenet, [1, 2, 3])  # type: ignore[arg-type]


def test_plan_that_names_impossible_units() -> None:
    model = networks.lenet()
    nothing = _plan(model, 0.0)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        apply(model, replace(nothing, remove={"conv1": (0, 1, 2, 3)}))
    with pytest.raises(InvalidArgumentError, match="conv1"):
        apply(model, replace(nothing, remove={"conv1": (4,)}))
    with pytest.raises(UnknownNameError, match="fc3"):
        apply(model, replace(nothing, remove={"fc3": (0,)}))


def test_scores_that_lack_units_or_are_not_finite() -> None:
    model = networks.lenet()
    scores = score(model, X, "l1")
    with pytest.raises(InvalidArgumentError, match="fc2"):
        plan(model, replace(scores, frame=scores.frame.iloc[:-1]))
    with pytest.raises(InvalidArgumentError, match="finite"):
        plan(model, replace(scores, frame=scores.frame.assign(importance=float("nan"))))


def test_json_round_trip_and_file(tmp_path: Path) -> None:
    model = networks.residual()
    decided = _plan(model)
    assert Plan.from_json(decided.to_json()) == decided
    path = decided.save(tmp_path / "plan.json")
    again = Plan.load(path)
    assert again == decided and list(tmp_path.iterdir()) == [path]
    fresh = apply(networks.settle(networks.Residual(), seed=8), again)
    fresh.load_state_dict(apply(model, decided).state_dict())
    assert torch.equal(fresh(X), apply(model, decided)(X))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "null"])
def test_broken_plans(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        Plan.from_json(text)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RecordError):
        Plan.load(tmp_path / "plan.json")


def test_plans_of_another_schema_or_missing(tmp_path: Path) -> None:
    content = json.loads(_plan(networks.lenet()).to_json())
    with pytest.raises(RecordError, match="schema"):
        Plan.from_json(json.dumps({**content, "schema": 99}))
    with pytest.raises(RecordError, match=r"nowhere\.json"):
        Plan.load(tmp_path / "nowhere.json")


def test_printed_plan_tells_what_goes() -> None:
    text = str(_plan(networks.lenet()))
    assert "conv1" in text and "parameters" in text and "achieved 50.0%" in text


def test_surgery_that_would_change_the_function_is_refused() -> None:
    class Scaled(nn.Module):
        """Divides by the square root of its width, which the trace does not show as a unit."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(256, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x.flatten(1)).relu()
            return self.last(hidden / hidden.shape[1] ** 0.5)

    for _ in range(60):  # one network in sixteen has all kept rectifiers shut on a given image
        model = Scaled()
        with pytest.raises(UnsupportedModelError, match="masked"):
            apply(model, _plan(model, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = networks.vgg().to(dtype)
    scores = score(model, (X.to(dtype), Y), "path")
    assert scores.example_dtype == str(dtype).removeprefix("torch.")
    small = apply(model, plan(model, scores, 0.4))
    assert small(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("method", ["path", "ablation", "taylor", "l1", "l2", "random"])
def test_prune_drives_every_method(method: str) -> None:
    small = prune(networks.lenet(), (X, Y), method, 0.4, "macs", batch_size=4)
    assert small(X).shape == (8, 3)
