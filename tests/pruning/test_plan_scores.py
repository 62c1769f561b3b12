"""Scores that no plan can be made from."""

from __future__ import annotations

from dataclasses import replace

import networks
import numpy as np
import pandas as pd
import pytest
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.pruning import plan
from causalprune.scoring import Scores, score

X = networks.images(3)


def _broken(scores: Scores, how: str) -> Scores:
    frame = scores.frame
    changed = {
        "missing": lambda: frame.drop(index=3),
        "twice": lambda: pd.concat([frame, frame.iloc[[3]]], ignore_index=True),
        "extra": lambda: frame.assign(unit=frame["unit"] + 5 * (frame["unit"] == 3)),
        "group": lambda: frame.assign(group=frame["group"].replace("fc2", "fc7")),
        "nan": lambda: frame.assign(importance=frame["importance"].where(frame["unit"] != 2)),
        "infinite": lambda: frame.assign(importance=float("inf")),
        "text": lambda: frame.assign(importance="high"),
        "none": lambda: frame.assign(importance=None),
        "truth": lambda: frame.assign(importance=True),
        "fraction": lambda: frame.assign(unit=frame["unit"] + 0.5),
    }
    return replace(scores, frame=changed[how]())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"'conv1'.*lacks 3"),
        ("twice", r"'conv1'.*twice 3"),
        ("extra", r"lacks 3; has also 8"),
        ("group", "'fc7'"),
        ("nan", "unit 2 of 'conv1' is not finite"),
        ("infinite", "finite"),
        ("text", "numbers as importance"),
        ("none", "numbers as importance"),
        ("truth", "numbers as importance"),
        ("fraction", "numbers as unit"),
    ],
)
def test_broken_scores(how: str, message: str) -> None:
    model = networks.lenet()
    with pytest.raises(InvalidArgumentError, match=message):
        plan(model, _broken(score(model, X, "l1"), how))


def test_scores_of_filters_that_are_coupled() -> None:
    model = networks.residual()
    alone = score(model, X, "l1", units="filters")
    with pytest.raises(InvalidArgumentError, match=r"'block1.conv2'.*'stem'.*groups"):
        plan(model, alone)


def test_scores_of_another_network_say_what_differs() -> None:
    scores = score(networks.lenet(), X, "l1")
    with pytest.raises(InvalidArgumentError, match="no layer 'conv1'"):
        plan(networks.mlp(), scores)
    other = networks.LeNet()
    other.fc1 = nn.Linear(24, 11)
    other.fc2 = nn.Linear(11, 8)
    with pytest.raises(InvalidArgumentError, match="'fc1' has 11 outputs, not 10"):
        plan(other, scores)


def _two_layers() -> nn.Module:
    # A unit of the first layer saves far more than one of the second.
    head = nn.ReLU(), nn.Linear(8, 3)
    layers = nn.Flatten(), nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 8), *head
    return networks.settle(nn.Sequential(*layers))


def test_an_order_is_not_divided_by_what_units_save() -> None:
    """A critical unit does not go before a neutral one because it is large."""
    layers = nn.Flatten(), nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 200), nn.ReLU()
    model = networks.settle(nn.Sequential(*layers, nn.Linear(200, 3)))
    scores = score(model, X, "taylor", "logits")
    worth = [1.5 if group == "1" else 0.5 for group in scores.frame["group"]]
    amounts = replace(scores, frame=scores.frame.assign(importance=worth))
    assert len(plan(model, amounts, 0.2).remove["1"]) > 5  # others may fill the last percent
    assert set(plan(model, replace(amounts, method="cswap"), 0.2).remove) == {"3"}


def test_what_units_save_decides_within_a_category() -> None:
    model = _two_layers()
    scores = score(model, X, "taylor", "logits")
    first = (scores.frame["group"] == "1").to_numpy()
    last = (scores.frame["unit"] == 3).to_numpy()
    # Worth per unit: more in the first layer, whose units save more than in proportion.
    marked = scores.frame.assign(
        importance=np.where(first & last, 1.3, np.where(first, 0.6, 0.5)),
        category=np.where(first & last, "critical", "neutral"),
    )
    decided = plan(model, replace(scores, frame=marked, method="cswap"), 0.7)
    assert decided.remove["1"] == (0, 1, 2)
    assert set(decided.remove.get("3", ())) < set(range(8))
    only_order = scores.frame.assign(importance=marked["importance"])
    decided = plan(model, replace(scores, frame=only_order, method="cswap"), 0.05)
    assert set(decided.remove) == {"3"}


def test_what_is_worth_less_than_nothing_goes_the_sooner_the_more_it_saves() -> None:
    model = _two_layers()
    scores = score(model, X, "taylor", "logits")
    worth = [-1.0 if unit == 0 else 1.0 + unit for unit in scores.frame["unit"]]
    decided = plan(model, replace(scores, frame=scores.frame.assign(importance=worth)), 0.24)
    assert decided.remove == {"1": (0,)}
