"""Potentials and excess errors from a study's rows, beside plain loops over the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.study_measures import (
    excess_errors_of_trials,
    excess_trends_of_trials,
    potentials_of_trials,
)

KINDS = {"wt": "weights", "snip": "weights", "l1": "units", "path": "units"}
SHIFTS = ("none", "fog:3", "noise:0.1")
RATIOS = (0.0, 0.3, 0.6, 0.9)


def drawn_trials(seed: int, checkpoints: int = 3) -> pd.DataFrame:
    """A study's rows by shift, accuracies drawn, what is reached a little off what was asked."""
    generator = np.random.default_rng(seed)
    rows = []
    for network, data in (("lenet5", "digits"), ("lenet300", "mnist")):
        for checkpoint in range(checkpoints):
            for method in KINDS:
                for ratio in RATIOS:
                    reached = ratio + generator.uniform(-0.02, 0.02)
                    for shift in SHIFTS:
                        accuracy = 0.9 - generator.uniform(0, 0.02) - 0.01 * ratio
                        rows.append(
                            (network, data, checkpoint, method, ratio, reached, shift, accuracy)
                        )
    names = ["architecture", "dataset", "checkpoint", "method", "ratio", "achieved_ratio"]
    return pd.DataFrame(rows, columns=[*names, "shift", "accuracy"]).assign(status="ok")


def by_hand(trials: pd.DataFrame, delta: float) -> dict[tuple, float]:
    """Potentials by network, method and shift."""
    found = {}
    for key, own in trials.groupby(["architecture", "checkpoint", "method", "shift"]):
        whole = own.loc[own["ratio"] == 0, "accuracy"].item()
        potential = 0.0
        for row in own[own["ratio"] > 0].itertuples():
            if row.accuracy >= whole - delta:
                potential = max(potential, row.achieved_ratio)
        found[key] = potential
    return found


def interval(values: list[float]) -> tuple[float, float]:
    half = stats.t.ppf(0.95, len(values) - 1) * stats.sem(values)
    return np.mean(values) - half, np.mean(values) + half


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beside_plain_loops(seed: int) -> None:
    trials = drawn_trials(seed)
    expected = by_hand(trials, 0.004)
    found = potentials_of_trials(trials.sample(frac=1, random_state=seed), 0.004, 0.9)
    assert len(found.potentials) == 2 * 3 * 4 * 3
    for row in found.potentials.itertuples():
        key = (row.architecture, row.checkpoint, row.method, row.shift)
        assert row.potential == pytest.approx(expected[key])
    summary = found.summary.set_index(["architecture", "method", "shift"])
    for network in ("lenet5", "lenet300"):
        for method in KINDS:
            plain = [expected[network, k, method, "none"] for k in range(3)]
            shifted = {s: [expected[network, k, method, s] for k in range(3)] for s in SHIFTS[1:]}
            shifted["mean of shifts"] = list(np.mean(list(shifted.values()), axis=0))
            for shift, values in shifted.items():
                row = summary.loc[(network, method, shift)]
                assert row["mean"] == pytest.approx(np.mean(values))
                assert row["sd"] == pytest.approx(np.std(values, ddof=1))
                falls = [p - v for p, v in zip(plain, values, strict=True)]
                assert row["fall"] == pytest.approx(np.mean(falls))
                assert (row["fall_low"], row["fall_high"]) == pytest.approx(interval(falls))
            least = np.min([shifted[s] for s in SHIFTS[1:]], axis=0)
            row = summary.loc[(network, method, "least of shifts")]
            assert row["mean"] == pytest.approx(least.mean()) and np.isnan(row["fall"])
        for shift in SHIFTS:
            differences = []
            for k in range(3):
                of = {
                    kind: np.mean(
                        [expected[network, k, m, shift] for m in KINDS if KINDS[m] == kind]
                    )
                    for kind in ("weights", "units")
                }
                differences.append(of["weights"] - of["units"])
            place = found.weights_minus_filters
            row = place[(place["architecture"] == network) & (place["shift"] == shift)].iloc[0]
            assert row["mean"] == pytest.approx(np.mean(differences))
            assert (row["low"], row["high"]) == pytest.approx(interval(differences))
    assert (found.summary["low"].dropna() >= 0).all() and (found.summary["high"] <= 1).all()


@pytest.mark.parametrize("seed", [0, 4])
def test_excess_errors_beside_plain_loops(seed: int) -> None:
    trials = drawn_trials(seed)
    found = excess_errors_of_trials(trials)
    assert len(found) == 2 * 3 * 4 * 4
    wide = trials.pivot(
        index=["architecture", "checkpoint", "method", "ratio"], columns="shift", values="accuracy"
    )
    excess = wide["none"] - wide[list(SHIFTS[1:])].mean(axis=1)
    rise = excess - excess.xs(0.0, level="ratio")
    own = found[(found["architecture"] == "lenet300") & (found["method"] == "path")]
    for checkpoint, rows in own.groupby("checkpoint"):
        ascending = rows.sort_values("prune_ratio")["difference"].to_numpy()
        expected = rise.loc["lenet300", checkpoint, "path"].sort_index().to_numpy()
        assert ascending == pytest.approx(expected)
    trends = excess_trends_of_trials(trials)
    row = trends[(trends["architecture"] == "lenet300") & (trends["method"] == "path")].iloc[0]
    x, y = own["prune_ratio"].to_numpy(), own["difference"].to_numpy()
    assert row["slope"] == pytest.approx((x @ y) / (x @ x))
    assert row["low"] <= row["slope"] <= row["high"] and row["n_networks"] == 3


def test_failed_trials_are_left_out_and_repeated_ones_averaged() -> None:
    trials = drawn_trials(3)
    failed = trials.copy()
    failed.loc[failed["ratio"] == 0.9, ["status", "accuracy"]] = ["failed", None]
    found = potentials_of_trials(failed)
    assert found.potentials["largest_ratio"].max() < 0.65
    # A randomised design may draw a cell twice: half of the errors each is the same errors.
    less, more = trials.copy(), trials.copy()
    less["accuracy"] -= 0.003
    more["accuracy"] += 0.003
    both = potentials_of_trials(pd.concat([less, more]))
    pd.testing.assert_frame_equal(both.summary, potentials_of_trials(trials).summary)


def test_one_network_has_no_interval_and_no_shift_no_fall() -> None:
    single = potentials_of_trials(drawn_trials(0, checkpoints=1))
    assert single.summary[["sd", "low", "high", "fall_low"]].isna().all().all()
    assert single.summary["mean"].notna().all()
    trials = drawn_trials(0)
    plain = potentials_of_trials(trials[trials["shift"] == "none"])
    assert set(plain.summary["shift"]) == {"none"} and plain.summary["fall"].isna().all()
    assert set(plain.weights_minus_filters["shift"]) == {"none"}
    units = potentials_of_trials(trials[trials["method"].isin(["l1", "path"])])
    assert units.weights_minus_filters.empty
    with pytest.raises(InvalidArgumentError, match="shift"):
        excess_errors_of_trials(trials[trials["shift"] == "none"])


def test_refusals() -> None:
    trials = drawn_trials(0)
    lacking = trials[~((trials["ratio"] == 0) & (trials["method"] == "l1"))]
    with pytest.raises(DataError, match=r"lenet5, digits, l1: .*prune ratio 0"):
        potentials_of_trials(lacking)
    with pytest.raises(DataError, match="none of 288"):
        potentials_of_trials(trials.assign(status="failed"))
    with pytest.raises(InvalidArgumentError, match="level"):
        potentials_of_trials(trials, level=95)
    with pytest.raises(InvalidArgumentError, match="delta"):
        potentials_of_trials(trials, delta=-0.1)
