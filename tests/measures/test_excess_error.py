"""Excess error beside its definition, and its trend on differences with a known slope."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures.excess_error import excess_error, excess_error_trend, excess_errors


def table(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    keys = [
        (k, distribution, ratio)
        for k in range(3)
        for distribution in ("clean", "snow", "fog")
        for ratio in (0.0, 0.4, 0.8)
    ]
    frame = pd.DataFrame(keys, columns=["checkpoint", "distribution", "prune_ratio"])
    return frame.assign(error=rng.uniform(0.05, 0.5, len(frame))).sample(frac=1, random_state=seed)


def test_by_definition() -> None:
    assert excess_error([0.25, 0.5, 0.75], 0.125) == 0.375
    assert excess_error([0.125], 0.25) == -0.125


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tables_by_a_plain_loop(seed: int) -> None:
    rows = table(seed)
    error = rows.set_index(["checkpoint", "distribution", "prune_ratio"])["error"].to_dict()
    found = excess_errors(rows, "clean")
    assert len(found) == 9
    for row in found.itertuples():
        own = {
            ratio: (error[row.network, "snow", ratio] + error[row.network, "fog", ratio]) / 2
            - error[row.network, "clean", ratio]
            for ratio in (0.0, row.prune_ratio)
        }
        assert row.excess_error == pytest.approx(own[row.prune_ratio])
        assert row.difference == pytest.approx(own[row.prune_ratio] - own[0.0])


def test_the_slope_is_least_squares_through_the_origin() -> None:
    rng = np.random.default_rng(3)
    ratios, differences = rng.uniform(0, 1, 40), rng.normal(0, 0.1, 40)
    expected = np.linalg.lstsq(ratios[:, None], differences, rcond=None)[0].item()
    found = excess_error_trend(ratios, differences)
    assert found.slope == pytest.approx(expected)
    assert found.low < found.slope < found.high
    band = found.band([0.0, 0.5])
    assert band["difference"].tolist() == pytest.approx([0.0, expected / 2])
    assert band["high"].tolist() == pytest.approx([0.0, found.high / 2])


def test_the_bootstrap_draws_whole_networks() -> None:
    """Resampled in a plain loop over rows of the drawn networks, with another generator."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(6), [2, 3, 4, 5, 4, 3])
    ratios = rng.uniform(0.1, 1, len(clusters))
    differences = ratios * (0.1 + rng.normal(0, 0.05, 6)[clusters])
    slopes = []
    for _ in range(4000):
        chosen = np.concatenate([np.flatnonzero(clusters == k) for k in rng.integers(0, 6, 6)])
        x, y = ratios[chosen], differences[chosen]
        slopes.append((x @ y) / (x @ x))
    found = excess_error_trend(ratios, differences, [f"net{k}" for k in clusters], level=0.9)
    expected = np.quantile(slopes, [0.05, 0.95])
    assert [found.low, found.high] == pytest.approx(expected, abs=0.1 * np.ptp(expected))
    assert (found.n, found.n_clusters) == (len(clusters), 6)
    alone = excess_error_trend(ratios, differences, level=0.9)
    assert alone.n_clusters == len(clusters)
    assert alone.high - alone.low < found.high - found.low


def test_the_interval_covers_a_planted_slope() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 4)
    ratios, covered = np.tile([0.2, 0.5, 0.7, 0.9], 30), 0
    for _ in range(100):
        noise = rng.normal(0, 0.05, 30)[clusters] * ratios + rng.normal(0, 0.02, len(ratios))
        found = excess_error_trend(ratios, 0.1 * ratios + noise, clusters, n_resamples=500)
        covered += found.low <= 0.1 <= found.high
    assert 84 <= covered <= 100  # 92 at the least expected of so many networks; sd below 3


def test_seeded_and_free_of_the_unpruned_rows() -> None:
    ratios, differences, clusters = [0.2, 0.6, 0.4], [0.01, 0.1, 0.0], ["a", "b", "c"]
    first = excess_error_trend(ratios, differences, clusters, seed=1)
    assert first == excess_error_trend(ratios, differences, clusters, seed=1)
    assert first == excess_error_trend([0, *ratios], [0, *differences], ["d", *clusters], seed=1)


def test_one_network_has_no_interval() -> None:
    found = excess_error_trend([0.0, 0.5, 1.0], [0.0, 0.1, 0.2], ["a", "a", "a"])
    assert found.slope == pytest.approx(0.2)
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.5], [0.0]), {}, r"prune_ratios: expected numbers in \[0, 1\], got 1.5"),
        (([0.5], [math.inf]), {}, r"differences: expected numbers \[n\] in \[-2, 2\], got inf"),
        (([0.5, 0.6], [0.1]), {}, "one for each of 2 prune ratios, got 1 and 2"),
        (([0.5], [0.1], ["a", "b"]), {}, "one for each of 1 prune ratios, got 1 and 2"),
        (([0.5], [0.1], [None]), {}, "clusters: expected a network for every row"),
        (([0.0], [0.0]), {}, "prune_ratios: expected at least one above 0"),
        (([0.5], [0.1]), {"level": 1.0}, "level, n_resamples: .* got 1.0, 10000"),
        (([0.5], [0.1]), {"n_resamples": 9}, "level, n_resamples: .* got 0.95, 9"),
    ],
)
def test_bad_trends_are_refused(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        excess_error_trend(*arguments, **options)


def test_bad_tables_are_refused() -> None:
    rows = table(0)
    with pytest.raises(InvalidArgumentError, match="nominal: expected 'nominal' and at least one"):
        excess_errors(rows)
    with pytest.raises(InvalidArgumentError, match="nominal: expected 'clean' and at least one"):
        excess_errors(rows[rows["distribution"] == "clean"], "clean")
    gap = (rows["checkpoint"] == 1) & (rows["distribution"] == "fog") & (rows["prune_ratio"] == 0.4)
    with pytest.raises(
        InvalidArgumentError, match=r"network 1 at prune ratio 0.4, got none on fog"
    ):
        excess_errors(rows[~gap], "clean")
    with pytest.raises(DataError, match="network 2 has none on snow"):
        excess_errors(rows[(rows["checkpoint"] != 2) | (rows["distribution"] != "snow")], "clean")
    with pytest.raises(InvalidArgumentError, match="shifted_errors: expected at least one"):
        excess_error([], 0.1)
