"""Recommendations: which case applies, and that every number is the one that was measured."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.measures import (
    PrunePotentials,
    class_losses,
    excess_error_trend,
    noise_similarity,
    prune_potentials,
    recommend,
)

POTENTIALS = {
    ("a", "nominal"): 0.8, ("a", "snow"): 0.4, ("a", "fog"): 0.6,
    ("b", "nominal"): 0.6, ("b", "snow"): 0.6, ("b", "fog"): 0.2,
}  # fmt: skip


def potentials() -> PrunePotentials:
    rows = [
        (*key, ratio, 0.1 if ratio <= potential else 0.2)
        for key, potential in POTENTIALS.items()
        for ratio in (0.0, 0.2, 0.4, 0.6, 0.8)
    ]
    columns = ["network", "distribution", "prune_ratio", "error"]
    return prune_potentials(pd.DataFrame(rows, columns=columns))


@pytest.mark.parametrize(
    ("trained_on", "unexpected", "advice", "ratio", "words"),
    [
        (["snow", "fog"], True, "none", 0.0, "Do not prune"),
        (["snow"], True, "none", 0.0, "Do not prune"),
        (["snow"], False, "moderate", 0.2, "Not part: fog."),
        ([], False, "moderate", 0.2, "Not part: fog, snow."),
        (["snow", "fog"], False, "full", 0.2, "Prune to the full extent"),
        ({"nominal", "snow", "fog"}, False, "full", 0.2, "Prune to the full extent"),
    ],
)
def test_the_three_cases(
    trained_on: list[str], unexpected: bool, advice: str, ratio: float, words: str
) -> None:
    found = recommend(potentials(), trained_on, unexpected_shifts=unexpected)
    assert (found.advice, found.ratio) == (advice, ratio)
    assert words in found.reasons[0]
    assert found.numbers["value"].tolist() == pytest.approx([0.7, 0.2])
    assert "70 %" in found.reasons[1] and "network b on fog" in found.reasons[2]
    assert str(found).splitlines() == list(found.reasons)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.1, 0.12, 0.09], "costs more under shifts"),
        ([-0.1, -0.12, -0.09], "costs less under shifts"),
        ([0.1, -0.1, 0.0], "may be chance"),
    ],
)
def test_excess_error_is_told_at_the_nominal_potential(
    differences: list[float], words: str
) -> None:
    trend = excess_error_trend([0.5, 0.5, 0.5], differences, ["a", "b", "c"])
    found = recommend(potentials(), [], unexpected_shifts=True, excess=trend)
    assert words in found.reasons[3]
    row = found.numbers.iloc[2]
    assert row["value"] == pytest.approx(0.7 * 2 * sum(differences) / 3)
    assert (row["low"], row["high"]) == pytest.approx((0.7 * trend.low, 0.7 * trend.high))


def test_one_network_has_no_interval_and_proves_nothing() -> None:
    trend = excess_error_trend([0.5, 1.0], [0.2, 0.4], ["a", "a"])
    found = recommend(potentials(), [], unexpected_shifts=True, excess=trend)
    assert "may be chance" in found.reasons[3]
    assert math.isnan(found.numbers["low"][2])


def test_noise_and_classes_are_told() -> None:
    network, other = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Flatten()
    noise = noise_similarity(
        network, nn.Sequential(other, nn.Linear(4, 3)), torch.randn(20, 1, 2, 2), n_draws=2
    )
    targets = torch.arange(4).repeat_interleave(40)
    before = torch.nn.functional.one_hot(targets).double()
    after = before.clone()
    after[120:150] = before[0]
    losses = class_losses(before, after, targets)
    found = recommend(potentials(), [], unexpected_shifts=True, noise=noise, losses=losses)
    matching = noise.frame["matching"].iloc[-1]
    assert f"{100 * matching:.1f} %" in found.reasons[3] and "noise of 0.7" in found.reasons[3]
    assert "3 (75.0)" in found.reasons[4]
    assert found.numbers["value"].tolist()[2:] == pytest.approx([matching, 30 / 160])
    same = class_losses(before, before, targets)
    nobody = recommend(potentials(), [], unexpected_shifts=True, losses=same)
    assert "no class loses significantly more" in nobody.reasons[3]


def test_unknown_distributions_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(fog, nominal, snow\), got hail"):
        recommend(potentials(), ["snow", "hail"], unexpected_shifts=False)
    with pytest.raises(InvalidArgumentError, match="got clean"):
        recommend(potentials(), [], unexpected_shifts=False, nominal="clean")
