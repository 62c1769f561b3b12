"""Plans that name layers: a share for each, and layers that are protected."""

from __future__ import annotations

import networks
import pytest
from pruning.plan_cases import chance_scores, wide

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.pruning import Plan, plan

# ---- layers by name -----------------------------------------------------------------------------


def test_named_layers_lose_their_share_and_the_others_nothing() -> None:
    model, scores = wide()
    decided = plan(model, scores, scope={"inner": 0.25, "hid*": 0.5})
    assert {row.group: row.units - row.kept for row in decided.table} == {
        "stem": 0, "inner": 10, "down": 0, "hidden": 25,
    }  # fmt: skip
    assert decided.ratio is None and decided.reached
    gone = decided.before.parameters - decided.after.parameters
    assert decided.achieved_ratio == pytest.approx(gone / decided.before.parameters)
    assert "inner: 25.0%" in str(decided)
    assert Plan.from_json(decided.to_json()) == decided
    rounded = plan(model, scores, scope={"hidden": 0.3}, round_to=8)
    assert {row.kept for row in rounded.table if row.group == "hidden"} == {32}


def test_a_layer_that_would_lose_everything_keeps_one_unit() -> None:
    model = networks.lenet()
    decided = plan(model, chance_scores(model), None, scope={"conv1": 0.9})
    assert len(decided.remove["conv1"]) == 3 and not decided.reached
    assert "NOT REACHED" in str(decided)


def test_names_of_layers_go_before_patterns() -> None:
    model = networks.lenet()
    decided = plan(model, chance_scores(model), scope={"conv1": 0.0, "*": 0.5})
    assert {row.group: row.kept for row in decided.table} == {
        "conv1": 4, "conv2": 3, "fc1": 5, "fc2": 4,
    }  # fmt: skip


def test_layers_in_scope_that_make_no_sense() -> None:
    model = networks.residual()
    scores = chance_scores(model)
    with pytest.raises(InvalidArgumentError, match=r"'block1.conv2'.*'stem'|'stem'.*block1.conv2"):
        plan(model, scores, scope={"stem": 0.1, "block1.conv2": 0.2})
    with pytest.raises(InvalidArgumentError, match="protects"):
        plan(model, scores, scope={"stem": 0.1}, protect=["block1.conv2"])
    with pytest.raises(InvalidArgumentError, match="model's output"):
        plan(model, scores, scope={"fc": 0.1})
    with pytest.raises(UnknownNameError, match="stem"):
        plan(model, scores, scope={"stomach": 0.1})
    for share in (1.0, -0.1, True, None, "0.5", float("nan")):
        with pytest.raises(InvalidArgumentError, match="stem"):
            plan(model, scores, scope={"stem": share})  # type: ignore[dict-item]


def test_one_protected_layer_holds_its_whole_group() -> None:
    model = networks.residual()
    decided = plan(
        model, chance_scores(model), 0.9, "units", protect=["block1.conv2", "block2.conv1"]
    )
    assert set(decided.remove) == {"block1.conv1", "block2.conv2"}
    assert decided.protected == {"block1.conv2": ("stem",), "block2.conv1": ("block2.conv1",)}
    assert "held by block1.conv2" in str(decided)


@pytest.mark.parametrize("name", ["block2.*", "block2", "block2.conv?"])
def test_protection_by_pattern(name: str) -> None:
    model = networks.residual()
    decided = plan(model, chance_scores(model), 0.9, "units", protect=name)
    assert set(decided.remove) == {"stem", "block1.conv1"}


def test_a_protected_norm_or_classifier() -> None:
    model = networks.residual()
    assert "stem" not in plan(model, chance_scores(model), 0.9, "units", protect=["bn"]).remove
    assert plan(model, chance_scores(model), 0.5, "units", protect=["fc"]).protected == {"fc": ()}


@pytest.mark.parametrize("protect", [[3], 3, [None]])
def test_protection_by_something_else_than_names(protect: object) -> None:
    model, scores = wide()
    with pytest.raises(InvalidArgumentError, match="protect"):
        plan(model, scores, protect=protect)  # type: ignore[arg-type]


def test_everything_protected() -> None:
    model, scores = wide()
    decided = plan(model, scores, 0.5, protect="*")
    assert decided.remove == {} and not decided.reached
    assert decided.after == decided.before
