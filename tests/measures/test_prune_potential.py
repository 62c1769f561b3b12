"""Prune potential on curves made by hand, and tables of them beside a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures.prune_potential import prune_potential, prune_potentials

DISTRIBUTIONS = ("nominal", "noise 0.1", "snow", "fog")


def table(networks: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (f"net{k}", distribution, ratio, rng.uniform(0.08, 0.1) if ratio < 0.9 else 0.5)
        for k in range(networks)
        for distribution in DISTRIBUTIONS
        for ratio in (0.0, 0.2, 0.45, 0.7, 0.95)
    ]
    frame = pd.DataFrame(rows, columns=["network", "distribution", "prune_ratio", "error"])
    return frame.sample(frac=1, random_state=seed)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.1, 0.104, 0.105, 0.106], 0.7),  # a rise of delta itself is allowed
        ([0.1, 0.2, 0.2, 0.2], 0.3),
        ([0.2, 0.2, 0.2, 0.2], 0.0),
        ([0.2, 0.2, 0.2, 0.1], 0.9),  # the largest that qualifies, not the first that fails
        ([0.05, 0.3, 0.1, 0.3], 0.7),
    ],
)
def test_curves_made_by_hand(errors: list[float], expected: float) -> None:
    ratios = [0.3, 0.5, 0.7, 0.9]
    assert prune_potential(ratios, errors, 0.1) == expected
    order = [2, 0, 3, 1]
    assert prune_potential([ratios[k] for k in order], [errors[k] for k in order], 0.1) == expected


def test_counts_of_images_are_not_rounded_away() -> None:
    # 0.07 + 0.005 is a bit below 75 / 1000 in binary.
    assert prune_potential([0.5], [75 / 1000], 70 / 1000) == 0.5
    assert prune_potential([0.5], [76 / 1000], 70 / 1000) == 0.0


def test_nothing_tried_is_no_potential() -> None:
    assert prune_potential([], [], 0.1) == 0.0


def test_delta_is_absolute() -> None:
    assert prune_potential([0.4, 0.8], [0.12, 0.16], 0.1, delta=0.05) == 0.4
    assert prune_potential([0.4, 0.8], [0.12, 0.16], 0.1, delta=0.0) == 0.0


@pytest.mark.parametrize("networks", [1, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_tables_by_a_plain_loop(networks: int, seed: int) -> None:
    rows = table(networks, seed)
    found = prune_potentials(rows)
    expected = {}
    for name in {*rows["network"]}:
        for distribution in DISTRIBUTIONS:
            own = rows[(rows["network"] == name) & (rows["distribution"] == distribution)]
            before = own.loc[own["prune_ratio"] == 0, "error"].item()
            passing = own.loc[own["error"] <= before + 0.005, "prune_ratio"]
            expected[name, distribution] = passing.max()
    got = found.frame.set_index(["network", "distribution"])["potential"].to_dict()
    assert got == expected
    assert 0 < sum(expected.values()) < 0.95 * len(expected)
    for row in found.networks.itertuples():
        own = [expected[row.network, distribution] for distribution in DISTRIBUTIONS]
        assert row.mean == pytest.approx(np.mean(own))
        assert row.minimum == min(own)
    assert found.summary.loc["mean", "mean"] == pytest.approx(np.mean(list(expected.values())))
    minima = [min(expected[f"net{k}", d] for d in DISTRIBUTIONS) for k in range(networks)]
    assert found.summary.loc["minimum", "mean"] == pytest.approx(np.mean(minima))
    snow = [expected[f"net{k}", "snow"] for k in range(networks)]
    sd = np.std(snow, ddof=1) if networks > 1 else math.nan
    assert found.summary.loc["snow", "sd"] == pytest.approx(sd, nan_ok=True)
    assert (found.summary["n"] == networks).all()
    assert "minimum" in str(found)


def test_networks_by_checkpoint_or_any_column() -> None:
    rows = table(3, 5)
    expected = prune_potentials(rows).summary
    for name, given in (("checkpoint", None), ("run", "run")):
        renamed = rows.rename(columns={"network": name})
        pd.testing.assert_frame_equal(prune_potentials(renamed, network=given).summary, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 1.2], [0.1, 0.1], 0.1), r"prune_ratios: expected numbers in \[0, 1\], got 1.2"),
        (([0.1], [math.nan], 0.1), r"errors: expected numbers in \[0, 1\], got nan"),
        (([0.1], [0.1, 0.2], 0.1), r"errors: expected one for each of 1 prune ratios, got 2"),
        (([0.1], [0.1], -0.1), r"unpruned_error: expected numbers in \[0, 1\], got -0.1"),
        (([0.1], [0.1], 0.1, 5.0), r"delta: expected numbers in \[0, 1\], got 5"),
        (([[0.1]], [0.1], 0.1), r"prune_ratios: expected shape \[n\], got \[1, 1\]"),
        ((["x"], [0.1], 0.1), "prune_ratios: expected numbers, got"),
    ],
)
def test_bad_curves_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        prune_potential(*arguments)


def test_bad_tables_are_refused() -> None:
    rows = table(2, 0).sort_values(["network", "distribution", "prune_ratio"], ignore_index=True)
    with pytest.raises(InvalidArgumentError, match="table: expected a DataFrame, got list"):
        prune_potentials([rows])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="error not among"):
        prune_potentials(rows.drop(columns="error"))
    with pytest.raises(InvalidArgumentError, match="expected a network in every row"):
        prune_potentials(rows.assign(network=[None, *rows["network"][1:]]))
    with pytest.raises(DataError, match="expected at least one row, got none"):
        prune_potentials(rows[:0])
    with pytest.raises(DataError, match="got two for net0, fog, 0"):
        prune_potentials(pd.concat([rows, rows[:1]]))
    with pytest.raises(DataError, match=r"error at prune ratio 0 of network net0 on fog, got 0\.2"):
        prune_potentials(rows[1:])
    with pytest.raises(DataError, match="network net0 has none on fog"):
        prune_potentials(rows[5:])
