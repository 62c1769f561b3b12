"""Losses of classes from counts: against those from logits, over networks, and what noise names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures import ClassLosses, class_losses, class_losses_of_counts


def counted(labels: np.ndarray, networks: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    rows = [
        (k, each, own.sum(), before[own].sum(), (before & ~after)[own].sum(),
         (~before & after)[own].sum())
        for k, (before, after) in enumerate(networks)
        for each in np.unique(labels)
        if (own := labels == each).any()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["network", "class", "n", "right", "lost", "won"])


def drawn(
    rng: np.random.Generator, losses: list[float], per_class: int = 150, networks: int = 3
) -> pd.DataFrame:
    """Networks that lose these shares of the classes, partly on the same images."""
    labels = np.repeat(np.arange(len(losses)), per_class)
    hard = rng.random(len(labels))
    found = []
    for _ in range(networks):
        draw = np.where(rng.random(len(labels)) < 0.7, hard, rng.random(len(labels)))
        before = rng.random(len(labels)) < 0.97
        found.append((before, before & (draw >= np.array(losses)[labels])))
    return counted(labels, found)


def test_of_one_network_the_figures_are_those_from_its_logits() -> None:
    rng = np.random.default_rng()
    labels = rng.integers(0, 4, 301)
    before, after = rng.random(301) < 0.9, rng.random(301) < 0.7
    found = class_losses_of_counts(counted(labels, [(before, after)]))
    logits = [
        one_hot(torch.from_numpy(np.where(right, labels, (labels + 1) % 4)), 4).double()
        for right in (before, after)
    ]
    expected = class_losses(*logits, torch.from_numpy(labels))
    same = ["class", "n", "accuracy_before", "accuracy_after", "loss", "low", "high", "excess"]
    pd.testing.assert_frame_equal(found.frame[same], expected.frame[same], rtol=1e-6)
    assert (found.loss, found.low, found.high) == pytest.approx(
        (expected.loss, expected.low, expected.high), rel=1e-6
    )


def test_a_class_that_is_hurt_is_named_and_no_other() -> None:
    found = class_losses_of_counts(drawn(np.random.default_rng(), [0.04] * 6 + [0.5] + [0.04] * 3))
    assert found.hurt == (6,) and found.n_networks == 3
    row = found.frame.iloc[6]
    assert row["excess_low"] > 0.1 and row["low"] < row["loss"] < row["high"]
    assert row["excess"] == pytest.approx(row["loss"] - found.loss)


def test_noise_names_no_class() -> None:
    """Equal losses: the largest of ten is far above the mean, and still not named."""
    rng, named, uncorrected = np.random.default_rng(5), 0, 0
    for _ in range(60):
        counts = drawn(rng, [0.3] * 10, per_class=100, networks=1)
        named += bool(class_losses_of_counts(counts).hurt)
        # Ten times the rate undoes the correction for ten classes.
        uncorrected += bool(class_losses_of_counts(counts, rate=0.5).hurt)
    assert named <= 5  # 2.5 % of 60, and three standard deviations
    assert uncorrected >= 6


def test_networks_that_disagree_name_no_class() -> None:
    """One of three networks fails on a class; the next network need not."""
    one = drawn(np.random.default_rng(), [0.04] * 10, per_class=400)
    failed = (one["network"] == 1) & (one["class"] == 2)
    one.loc[failed, "lost"] = one.loc[failed, "right"] // 2
    found = class_losses_of_counts(one)
    assert found.frame["excess"].idxmax() == 2 and found.hurt == ()
    alone = class_losses_of_counts(one[one["network"] == 1])
    assert alone.hurt == (2,) and alone.n_networks == 1


def test_intervals_cover_and_the_correction_widens_them() -> None:
    rng, covered = np.random.default_rng(6), []
    for _ in range(40):
        frame = class_losses_of_counts(drawn(rng, [0.2] * 5, per_class=60)).frame
        covered += ((frame["low"] <= 0.97 * 0.2) & (frame["high"] >= 0.97 * 0.2)).tolist()
    assert np.mean(covered) > 0.9
    counts = drawn(rng, [0.2] * 5)
    mild, strict = (class_losses_of_counts(counts, rate=rate).frame for rate in (0.5, 0.01))
    assert (strict["excess_low"] < mild["excess_low"]).all()
    assert (strict["low"] == mild["low"]).all()


def test_repeated_trials_of_a_network_are_no_more_networks() -> None:
    counts = drawn(np.random.default_rng(), [0.1, 0.3, 0.2])
    twice = class_losses_of_counts(pd.concat([counts, counts]))
    once = class_losses_of_counts(counts)
    pd.testing.assert_frame_equal(twice.frame, once.frame)


def test_a_single_class_has_no_others() -> None:
    counts = pd.DataFrame({"network": [0], "class": ["a"], "n": 9, "right": 9, "lost": 5, "won": 0})
    found: ClassLosses = class_losses_of_counts(counts)
    assert found.hurt == () and found.loss == pytest.approx(5 / 9)
    assert np.isnan(found.frame["excess_low"][0]) and found.frame["excess"][0] == 0


def test_bad_counts_are_refused() -> None:
    counts = drawn(np.random.default_rng(0), [0.1, 0.2])
    with pytest.raises(DataError, match="missing columns lost"):
        class_losses_of_counts(counts.drop(columns="lost"))
    with pytest.raises(DataError, match="no rows"):
        class_losses_of_counts(counts.iloc[:0])
    with pytest.raises(DataError, match=r"got n 150, right 150, lost 0, won 1 for class 1"):
        class_losses_of_counts(
            counts.assign(right=counts["n"], lost=0, won=[int(c == 1) for c in counts["class"]])
        )
    with pytest.raises(DataError, match="every network to have the same classes"):
        class_losses_of_counts(counts.iloc[:-1])
    with pytest.raises(InvalidArgumentError, match="rate: expected"):
        class_losses_of_counts(counts, rate=1.5)
