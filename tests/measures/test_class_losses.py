"""Losses of classes by counting, their tests by permuting, and the rates that they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures.losses_by_class import ClassLosses, class_losses


def logits_where(right: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    predicted = torch.where(right, targets, (targets + 1) % n_classes)
    return torch.nn.functional.one_hot(predicted, n_classes).double()


def losses_of(before: Tensor, after: Tensor, targets: Tensor, **options: float) -> ClassLosses:
    k = int(targets.max()) + 1
    return class_losses(
        logits_where(before, targets, k), logits_where(after, targets, k), targets, **options
    )


def test_losses_by_counting() -> None:
    targets = torch.randint(0, 4, (301,)) * 2  # classes 1, 3, 5 have no images
    before, after = torch.rand(301) < 0.9, torch.rand(301) < 0.7
    found = losses_of(before, after, targets)
    assert found.frame["class"].tolist() == [0, 2, 4, 6]
    for row in found.frame.to_dict("records"):
        own = targets == row["class"]
        assert row["n"] == own.sum()
        assert row["accuracy_before"] == pytest.approx(before[own].double().mean().item())
        assert row["accuracy_after"] == pytest.approx(after[own].double().mean().item())
        assert row["loss"] == pytest.approx(row["accuracy_before"] - row["accuracy_after"])
        assert row["low"] < row["loss"] < row["high"]
        assert row["excess"] == pytest.approx(row["loss"] - found.loss)
    total = (before.double().mean() - after.double().mean()).item()
    assert found.loss == pytest.approx(total)


@pytest.mark.parametrize("seed", range(6))
def test_small_classes_by_all_permutations(seed: int) -> None:
    """With a class of one image Welch has nothing to say: the permutation test is the p-value."""
    rng = np.random.default_rng(seed)
    targets = torch.tensor([0] + [1] * 7)
    before, after = (torch.from_numpy(rng.random(8) < share) for share in (0.7, 0.4))
    before[0], after[0] = True, False
    found = losses_of(before, after, targets).frame
    changes = (before.int() - after.int()).tolist()
    at_least = sum(change >= changes[0] for change in changes)
    assert found["p_value"][0] == pytest.approx(at_least / 8)
    # The permutation test bounds every p-value from below.
    sums = [sum(chosen) for chosen in itertools.combinations(changes, 7)]
    exact = np.mean([value >= sum(changes[1:]) for value in sums])
    assert found["p_value"][1] >= exact - 1e-12


def test_a_class_that_is_hurt_is_found_and_no_other() -> None:
    targets = torch.arange(10).repeat_interleave(100)
    generator = torch.Generator().manual_seed(1)
    draws = torch.rand(3, 1000, generator=generator)
    before = draws[0] < 0.95
    after = before & ~((targets == 7) & (draws[1] < 0.4)) & (draws[2] < 0.98)
    found = losses_of(before, after, targets)
    assert found.hurt == (7,)
    assert found.frame["excess"][7] > 0.2


def test_equal_losses_hurt_nobody() -> None:
    targets = torch.arange(10).repeat_interleave(60)
    hurt = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        before = torch.rand(600, generator=generator) < 0.9
        after = before & (torch.rand(600, generator=generator) < 0.8)
        hurt += bool(losses_of(before, after, targets).hurt)
    assert hurt <= 9  # 5 % of 60, and three standard deviations


def test_a_class_that_changes_a_lot_but_loses_nothing_is_not_hurt() -> None:
    """A third of its images is won and a third lost; the others never change."""
    targets = torch.arange(4).repeat_interleave(90)
    found_hurt = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randint(0, 3, (360,), generator=generator)
        before = torch.where(targets == 2, draw == 0, True)
        after = torch.where(targets == 2, draw == 1, True)
        found_hurt += 2 in losses_of(before, after, targets).hurt
    assert found_hurt <= 9


def test_no_change_and_one_class() -> None:
    targets, right = torch.arange(3).repeat(5), torch.rand(15) < 0.5
    found = losses_of(right, right, targets)
    assert found.loss == 0.0 and found.hurt == ()
    assert (found.frame["p_value"] == 1).all()
    assert (found.frame["low"] < 0).all() and (found.frame["high"] > 0).all()
    alone = torch.nn.functional.one_hot(torch.ones(6, dtype=torch.int64)).double()
    only = class_losses(alone, -alone, torch.ones(6, dtype=torch.int64))
    assert only.frame["loss"].tolist() == [1.0]
    assert only.hurt == () and only.high == 1.0


def test_intervals_cover() -> None:
    targets, covered = torch.zeros(40, dtype=torch.int64), 0
    pad = torch.zeros(40, 1, dtype=torch.float64)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        before = torch.rand(40, generator=generator) < 0.95
        after = torch.rand(40, generator=generator) < 0.85
        logits = [torch.cat([right.double()[:, None] - 0.5, pad], 1) for right in (before, after)]
        found = class_losses(*logits, targets)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 181  # 95 % of 200 and three standard deviations


def test_rates_and_levels() -> None:
    targets = torch.arange(5).repeat_interleave(30)
    before = torch.ones(150, dtype=torch.bool)
    after = torch.rand(150) > 0.1 * targets
    strict, loose = (losses_of(before, after, targets, rate=rate) for rate in (1e-6, 0.5))
    assert set(strict.hurt) <= set(loose.hurt) and loose.hurt
    narrow = losses_of(before, after, targets, level=0.5)
    assert (narrow.frame["high"] < strict.frame["high"]).all()
    adjusted = loose.frame.sort_values("p_value")
    raw = adjusted["p_value"].to_numpy() * 5 / np.arange(1, 6)
    expected = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1)
    assert adjusted["p_adjusted"].to_numpy() == pytest.approx(expected)


def test_bad_arguments_are_refused() -> None:
    good, targets = torch.randn(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(InvalidArgumentError, match=r"after_logits: expected the shape"):
        class_losses(good, good[:, :1], targets)
    with pytest.raises(DataError, match=r"targets: expected classes in \[0, 2\), got -1"):
        class_losses(good, good, targets - 1)
    with pytest.raises(InvalidArgumentError, match=r"rate: expected a number in \(0, 1\), got 0"):
        class_losses(good, good, targets, rate=0)
    with pytest.raises(InvalidArgumentError, match=r"level: expected a number in \(0, 1\), got 95"):
        class_losses(good, good, targets, level=95)
