"""Plans: what they promise, how they meet their target, and how they are kept and compared."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.plan_cases import Wide, X, chance_scores, wide
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.graph import capture
from causalprune.measures import count_macs, parameter_bytes, peak_activation_bytes
from causalprune.pruning import Plan, apply, plan
from causalprune.scoring import Scores, score

COUNTED = ("parameters", "macs", "units")


# ---- what holds for every plan ------------------------------------------------------------------

requests = st.fixed_dictionaries(
    {
        "ratio": st.floats(0, 0.98),
        "of": st.sampled_from(COUNTED),
        "scope": st.sampled_from(["global", "layer"]),
        "round_to": st.sampled_from([None, 1, 2, 5, 8]),
        "protect": st.sampled_from([(), ("down",), ("inner", "hid*")]),
    }
)


@settings(max_examples=15, deadline=None)
@given(requests)
def test_every_plan(request: Mapping[str, object]) -> None:
    model, scores = wide()
    decided = plan(model, scores, **request)  # type: ignore[arg-type]
    step, ratio = request["round_to"] or 1, request["ratio"]
    assert isinstance(step, int) and isinstance(ratio, float)
    for row in decided.table:
        assert row.kept == row.units - len(decided.remove.get(row.group, ())) >= 1
        assert row.kept == row.units or row.kept % step == 0
        assert row.kept == row.units or not row.held
    before, after = (getattr(each, decided.of) for each in (decided.before, decided.after))
    assert decided.achieved_ratio == pytest.approx(1 - after / before)
    if decided.reached and step <= 2 and ratio >= 0.1 and not request["protect"]:
        whole_units = step / before if decided.of == "units" else 0.0
        assert abs(decided.deviation) <= 0.01 * ratio + whole_units
    assert decided.reached or decided.deviation < 0
    for name in ("parameters", "macs", "bytes"):
        for suffix, footprint in (("", decided.before), ("_after", decided.after)):
            assert sum(getattr(row, name + suffix) for row in decided.layers) == getattr(
                footprint, name
            )
    assert Plan.from_json(decided.to_json()) == decided


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.floats(0, 0.9), min_size=2, max_size=2).map(sorted),
    st.sampled_from(COUNTED),
    st.sampled_from(["global", "layer"]),
)
def test_more_goes_for_a_higher_ratio(ratios: list[float], of: str, scope: str) -> None:
    model, scores = wide()
    less, more = (plan(model, scores, ratio, of, scope=scope) for ratio in ratios)
    # Both are met within 1 %, so that only targets further apart need to be in order.
    if less.reached and ratios[1] - ratios[0] > 0.02:
        assert less.achieved_ratio < more.achieved_ratio
    for row in less.table:
        gone, kept_less = set(less.remove.get(row.group, ())), row.kept
        also = set(more.remove.get(row.group, ()))
        kept_more = next(r.kept for r in more.table if r.group == row.group)
        # Within a group, the units of the one are among those of the other.
        assert gone <= also if kept_more <= kept_less else also <= gone


@pytest.mark.parametrize("of", COUNTED)
def test_sizes_per_layer_are_those_of_the_pruned_network(of: str) -> None:
    model, scores = wide()
    decided = plan(model, scores, 0.45, of)
    small = apply(model, decided)
    rows = {row.layer: row for row in decided.layers}
    for network, suffix in ((model, ""), (small, "_after")):
        for name, module in network.named_children():
            row = rows.pop(name) if suffix else rows[name]
            assert getattr(row, "parameters" + suffix) == sum(
                p.numel() for p in module.parameters()
            )
            assert getattr(row, "bytes" + suffix) == parameter_bytes(module)
    assert not rows
    assert sum(row.macs_after for row in decided.layers) == count_macs(small, X[:1])


# ---- coming close -------------------------------------------------------------------------------


def test_a_unit_that_is_too_large_is_passed_over() -> None:
    # The least important unit is 40 % of the network.
    model = networks.settle(
        nn.Sequential(
            nn.Flatten(), nn.Linear(256, 2), nn.ReLU(), nn.Linear(2, 60), nn.ReLU(),
            nn.Linear(60, 8),
        )
    )  # fmt: skip
    scores = score(model, X, "l1")
    worth = [0.0 if group == "1" else 1.0 + unit for group, unit in _units(scores)]
    decided = plan(model, replace(scores, frame=scores.frame.assign(importance=worth)), 0.2)
    assert decided.reached and abs(decided.deviation) <= 0.5 * 11 / decided.before.parameters
    assert decided.remove == {"3": tuple(range(len(decided.remove["3"])))}


def test_steps_are_exchanged_where_no_run_of_the_order_fits() -> None:
    model = networks.settle(
        nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 96), nn.ReLU(),
            nn.Linear(96, 8),
        )
    )  # fmt: skip
    scores = score(model, X, "l1")
    worth = [unit + 1000.0 * (group == "1") for group, unit in _units(scores)]
    ordered = replace(scores, frame=scores.frame.assign(importance=worth))
    for ratio in (0.26, 0.5, 0.61):
        decided = plan(model, ordered, ratio, round_to=8)
        best = min(abs(r - ratio) for r in _all_ratios(8))
        assert abs(decided.deviation) <= max(0.01 * ratio, best) + 1e-9
        assert all(row.kept % 8 == 0 for row in decided.table)


def _all_ratios(step: int) -> list[float]:
    def parameters(first: int, second: int) -> int:
        return 257 * first + (first + 1) * second + (second + 1) * 8

    kept = [(a, b) for a in range(step, 25, step) for b in range(step, 97, step)]
    return [1 - parameters(a, b) / parameters(24, 96) for a, b in kept]


def _units(scores: Scores) -> list[tuple[str, int]]:
    return list(zip(scores.frame["group"], scores.frame["unit"], strict=True))


def test_a_target_that_coarse_units_miss_is_told() -> None:
    decided = plan(networks.mlp(), score(networks.mlp(), X, "random"), 0.22)
    assert decided.reached and abs(decided.deviation) > 0.01
    assert f"{100 * decided.deviation:+.1f} points off" in str(decided)
    assert "NOT REACHED" in str(plan(networks.mlp(), score(networks.mlp(), X, "l1"), 0.99))


def test_rounding_leaves_small_layers_alone() -> None:
    model = networks.lenet()  # groups of 4, 6, 10 and 8
    decided = plan(model, chance_scores(model), 0.9, "units", round_to=6)
    assert {row.group: row.kept for row in decided.table} == {
        "conv1": 4, "conv2": 6, "fc1": 6, "fc2": 6,
    }  # fmt: skip
    assert not decided.reached


def test_rounding_counts_channels_where_a_unit_has_several() -> None:
    model = networks.settle(
        nn.Sequential(
            nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 48, 3, groups=12), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 3),
        )
    )  # fmt: skip
    group = capture(model, X).groups[0]
    assert group.n_units == 12
    for ratio in (0.2, 0.5, 0.8):
        small = apply(model, plan(model, chance_scores(model), ratio, "units", round_to=8))
        assert small[0].out_channels % 8 == 0 and small[2].out_channels % 8 == 0


class Attending(nn.Module):
    """Attention with 12 heads of 4 features over the patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 48, 4, stride=4)
        self.attention = nn.MultiheadAttention(48, 12, batch_first=True)
        self.last = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(x.mean(1))


def test_rounding_counts_the_features_of_heads() -> None:
    model = networks.settle(Attending())
    decided = plan(model, chance_scores(model), scope={"attention": 0.6}, round_to=16)
    assert [row.kept for row in decided.table if row.kind == "head"] == [4]
    rows = {row.layer: row for row in decided.layers}
    assert rows["attention"].parameters_after == 3 * 16 * 49
    assert rows["attention.out_proj"].parameters_after == 48 * 17
    small = apply(model, decided)
    assert sum(p.numel() for p in small.parameters()) == decided.after.parameters


# ---- memory and latency -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wide", "depthwise"])
def test_memory_is_that_of_the_pruned_network(name: str) -> None:
    model = wide()[0] if name == "wide" else networks.depthwise()
    image = X[:1]
    decided = plan(model, chance_scores(model), 0.4, "memory")
    for network, footprint in ((model, decided.before), (apply(model, decided), decided.after)):
        assert footprint.memory == parameter_bytes(network) + peak_activation_bytes(network, image)
    assert decided.before.memory and decided.after.memory
    assert decided.achieved_ratio == 1 - decided.after.memory / decided.before.memory
    if name == "wide":
        assert abs(decided.deviation) <= 0.01 * 0.4
    assert Plan.from_json(decided.to_json()) == decided
    assert "memory" in str(decided)


def test_memory_is_saved_where_it_is_needed() -> None:
    # Few weights and large maps: the peak lies at the first layer, the bytes in the last.
    model = networks.settle(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(16, 16, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
        )
    )  # fmt: skip
    scores = chance_scores(model)
    even = replace(scores, frame=scores.frame.assign(importance=1.0))
    for of, first, other in (("memory", "0", "3"), ("parameters", "3", "0")):
        remove = plan(model, even, 0.3, of).remove
        assert len(remove[first]) >= 4 > len(remove.get(other, ()))


def test_latency_is_measured() -> None:
    model = networks.settle(
        nn.Sequential(nn.Flatten(), nn.Linear(256, 700), nn.ReLU(), nn.Linear(700, 3))
    )
    decided = plan(
        model, chance_scores(model), 0.5, "latency", round_to=16,
        latency_batch=64, latency_repeats=2, threads=1,
    )  # fmt: skip
    before, after = decided.latency_before, decided.latency_after
    assert before is not None and after is not None
    assert before.batch == after.batch == 64 and after.threads == 1 and after.repeats == 8
    assert decided.achieved_ratio == 1 - after.median_ms / before.median_ms
    assert decided.table[0].kept < 700 and decided.table[0].kept % 16 == 0
    assert Plan.from_json(decided.to_json()) == decided
    assert f"{after.median_ms:.3f} ms" in str(decided)
    assert apply(model, decided)(X).shape == (3, 3)


@pytest.mark.parametrize("option", ["latency_batch", "latency_repeats", "threads", "round_to"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_options_out_of_range(option: str, value: object) -> None:
    model, scores = wide()
    with pytest.raises(InvalidArgumentError, match=option):
        plan(model, scores, 0.5, **{option: value})  # type: ignore[arg-type]


# ---- on disk, and next to each other ------------------------------------------------------------


def test_texts_of_two_plans_differ_where_the_plans_do() -> None:
    model, scores = wide()
    one = plan(model, scores, 10 / 150, "units")
    other = replace(one, remove={**one.remove, "inner": (*one.remove.get("inner", ()), 39)})
    lines = [each.to_json().splitlines() for each in (one, other)]
    changed = [d for d in difflib.unified_diff(*lines, n=0) if d[0] in "+-" and d[1:2] not in "+-"]
    assert one.remove.get("inner", ())[-1:] != (39,)
    assert [line.strip("+-, ") for line in changed if line[0] == "+"][-1] == "39"
    assert len(changed) <= 5
    order = [row.group for row in one.table]
    assert list(one.remove) == [name for name in order if name in one.remove]
    assert one.to_json() == plan(model, scores, 10 / 150, "units").to_json()


def test_difference_of_two_plans() -> None:
    model, scores = wide()
    one, other = (plan(model, scores, ratio, "macs") for ratio in (0.2, 0.4))
    found = one.diff(other)
    assert found and found.settings["ratio"] == (0.2, 0.4)
    for group in found.groups:
        here, there = (set(each.remove.get(group.group, ())) for each in (one, other))
        assert set(group.only) == here - there and set(group.other_only) == there - here
        assert group.kept - group.other_kept == len(there) - len(here)
    text = str(found)
    assert "ratio: 0.2 / 0.4" in text and f"{other.after.macs - one.after.macs:+,}" in text
    assert all(group.group in text for group in found.groups)
    same = one.diff(one)
    assert not same and not same.settings and "same units" in str(same)


def test_plans_that_cannot_be_compared() -> None:
    model, scores = wide()
    one = plan(model, scores, 0.2)
    with pytest.raises(InvalidArgumentError, match="other"):
        one.diff(plan(networks.lenet(), chance_scores(networks.lenet()), 0.2))
    with pytest.raises(InvalidArgumentError, match="other"):
        one.diff("plan.json")  # type: ignore[arg-type]


def test_plans_of_the_first_schema_are_read() -> None:
    model, scores = wide()
    decided = plan(model, scores, 0.3)
    content = json.loads(decided.to_json())
    for name in ("round_to", "protected", "layers", "latency_before", "latency_after"):
        del content[name]
    for each in (content["before"], content["after"]):
        del each["memory"]
    for row in content["table"]:
        del row["held"]
    again = Plan.from_json(json.dumps({**content, "schema": 1}))
    assert again == replace(decided, layers=())
    assert torch.equal(apply(model, again)(X), apply(model, decided)(X))
    assert "target: 30.0% of parameters" in str(again)


@pytest.mark.parametrize("units", [[1.5], [True], ["1"], [-1], [None], 3])
def test_units_on_disk_that_are_no_indices(units: object) -> None:
    model, scores = wide()
    content = json.loads(plan(model, scores, 0.3).to_json())
    content["remove"]["inner"] = units
    with pytest.raises(RecordError):
        Plan.from_json(json.dumps(content))


def test_plan_for_another_network_says_what_differs() -> None:
    model, scores = wide()
    other = networks.settle(Wide())
    other.hidden, other.last = nn.Linear(33 * 16, 51), nn.Linear(51, 3)
    with pytest.raises(InvalidArgumentError, match=r"'hidden' has 26,979 parameters"):
        apply(other, plan(model, scores, 0.3))
