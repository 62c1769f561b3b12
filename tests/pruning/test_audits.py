"""Audits of selected units: against exact ablation, coverage, the winner's curse, refusals."""

from __future__ import annotations

import math

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import causalprune as cp
from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import capture, removed
from causalprune.pruning import audit
from causalprune.pruning.audits import _estimate
from causalprune.scoring import score

X, Y = networks.images(24), networks.targets(24)


def test_all_audited_gives_the_sum_of_exact_effects_and_the_joint_one() -> None:
    model = networks.lenet()
    guess = score(model, (X, Y), "taylor")
    gone = {"conv2": [1, 3], "fc1": [0, 5, 7]}
    found = audit(model, gone, (X, Y), guess, batch_size=7)
    exact = score(model, (X, Y), "ablation").frame.set_index(["layer", "unit"])["effect"]
    units = [(name, unit) for name, several in gone.items() for unit in several]
    assert found.estimated == pytest.approx(sum(exact[unit] for unit in units), rel=1e-5)
    predicted = guess.frame.set_index(["layer", "unit"])["effect"]
    assert found.predicted == pytest.approx(sum(predicted[unit] for unit in units))
    assert (found.n_selected, found.n_audited, found.n_images) == (5, 5, 24)
    with torch.no_grad():
        loss = nn.CrossEntropyLoss(reduction="none")
        before = loss(model(X), Y)
        with removed(model, capture(model, X), gone):
            change = (loss(model(X), Y) - before).double()
    assert found.joint == pytest.approx(change.mean().item(), rel=1e-4)
    se = change.std().item() / math.sqrt(24)
    assert found.joint_high - found.joint == pytest.approx(2.0687 * se, rel=1e-3)
    assert found.low < found.estimated < found.high


def test_a_sample_covers_the_true_sum_and_a_good_prediction_narrows_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(60) ** 3
    hits, widths = [], {"good": [], "none": []}
    for _ in range(300):
        chosen = rng.choice(60, 20, replace=False)
        for name, noise in (("good", 0.2), ("none", 3.0)):
            guess = truth + noise * rng.standard_normal(60)
            effects = np.tile(truth[chosen], (5, 1))
            _, low, high = _estimate(effects, guess[chosen], 60, guess.sum(), 0.95, False)
            hits.append(low <= truth.sum() <= high)
            widths[name].append(high - low)
    assert 0.91 <= np.mean(hits) <= 0.99
    assert 5 * np.median(widths["good"]) < np.median(widths["none"])


def test_intervals_over_images_cover_the_distribution() -> None:
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        # Ten units that all depend on the same images: their sum is as uncertain as ten times one.
        shared = rng.exponential(size=(40, 1))
        effects = shared * np.linspace(0.5, 1.5, 10)
        _, low, high = _estimate(effects, np.zeros(10), 10, 0.0, 0.95, True)
        hits.append(low <= 10.0 <= high)
    assert 0.88 <= np.mean(hits) <= 0.98


def test_the_winners_curse_is_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 60), nn.ReLU(), nn.Linear(60, 3))
    data = torch.randn(200, 8), torch.randint(0, 3, (200,))
    exact = score(model, data, "ablation").frame
    rng = np.random.default_rng(0)
    noisy = exact[["layer", "unit"]].copy()
    # Right on average, for every unit.
    noisy["effect"] = exact["effect"] + exact["effect"].std() * 2 * rng.standard_normal(60)
    lowest = noisy.nsmallest(30, "effect")["unit"].tolist()
    found = audit(model, {"0": lowest}, data, noisy, n_units=15, population="images")
    truth = exact["effect"][lowest].sum()
    assert found.predicted < found.low <= truth <= found.high
    assert found.agrees is False and "too low" in found.sentence and "curse" in repr(found)
    assert (found.n_audited, len(found.units)) == (15, 15)
    fair = audit(model, {"0": lowest}, data, exact, n_units=15)
    assert fair.agrees is True and "agrees" in fair.sentence


def test_a_plan_is_audited_by_its_own_scores() -> None:
    model = networks.residual()
    scores = score(model, (X, Y), "path")
    plan = cp.plan(model, scores, ratio=0.4)
    found = cp.audit(model, plan, (X, Y), scores, n_units=3, seed=2)
    assert found.n_selected == sum(map(len, plan.remove.values())) and found.n_audited == 3
    for row in found.units.itertuples():
        assert row.unit in plan.remove[row.layer]


def test_a_prediction_by_the_others_has_no_joint_form() -> None:
    scores = score(networks.lenet(), (X, Y), "irreplaceable", "logits")
    found = audit(
        networks.lenet(), {"fc1": [0, 1, 2]}, (X, Y), scores, outcome="logits",
        intervention="predicted",
    )  # fmt: skip
    assert math.isnan(found.joint) and "together" not in found.sentence
    assert found.estimated == pytest.approx(found.predicted, rel=1e-4)


def test_wrong_arguments_are_refused_by_name() -> None:
    model, data = networks.lenet(), (X, Y)
    exact = score(model, data, "path")
    with pytest.raises(InvalidArgumentError, match="at least one unit, got none"):
        audit(model, {"fc1": []}, data, exact)
    with pytest.raises(InvalidArgumentError, match="selection: expected a Plan"):
        audit(model, [1, 2], data, exact)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="3 of 3 have none, first fc1 0"):
        audit(model, {"fc1": [0, 1, 2]}, data, score(model, data, "l1"))
    with pytest.raises(InvalidArgumentError, match="missing layer, unit"):
        audit(model, {"fc1": [0]}, data, pd.DataFrame({"effect": [1.0]}))
    with pytest.raises(InvalidArgumentError, match="n_units"):
        audit(model, {"fc1": [0]}, data, exact, n_units=1)
    with pytest.raises(UnknownNameError, match="population"):
        audit(model, {"fc1": [0]}, data, exact, population="all")
    beyond = pd.DataFrame({"layer": ["fc1", "fc9"], "unit": [99, 0], "effect": [0.0, 0.0]})
    with pytest.raises(InvalidArgumentError, match=r"selection: expected units of 'fc1'"):
        audit(model, {"fc1": [99]}, data, beyond)
    with pytest.raises(UnknownNameError, match="fc9"):
        audit(model, {"fc9": [0]}, data, beyond)
