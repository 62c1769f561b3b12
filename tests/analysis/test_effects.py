"""The least-squares part: planted truth, null coverage, exactness against DoWhy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_trials import RATIOS, simulate, true_loss

from causalprune.analysis import effects, identification, randomisation
from causalprune.analysis.graphs import accuracy_graph
from causalprune.analysis.tables import completed_trials


def _design(frame: pd.DataFrame, treatment: str = "ratio") -> effects.Design:
    return effects.build_design(frame, treatment, (), effects.design_blocks(frame, treatment))


def _trials(**options: object) -> pd.DataFrame:
    return completed_trials(simulate(**options), ("ratio", "accuracy_loss")).frame


def test_slope_is_the_best_line_through_the_true_curve():
    frame = _trials(checkpoints=40, noise=0.0, checkpoint_noise=0.0)
    found = effects.linear_effect(frame, "ratio", "accuracy_loss", _design(frame))
    truth = np.polyfit(RATIOS, [true_loss(r) for r in RATIOS], 1)[0] * 0.1
    assert found.effect == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("checkpoints", [3, 12])
def test_null_intervals_cover_zero_as_often_as_they_say(checkpoints):
    covered = 0
    repeats = 250
    for seed in range(repeats):
        frame = _trials(
            seed=seed, checkpoints=checkpoints, methods=("l1",), ratios=RATIOS[::2], size=0.0
        )
        # A response of its own for every checkpoint: what independent errors would ignore.
        rng = np.random.default_rng(10_000 + seed)
        slopes = 0.02 * rng.standard_normal(checkpoints)
        frame["accuracy_loss"] += slopes[frame["checkpoint"]] * frame["ratio"]
        found = effects.linear_effect(frame, "ratio", "accuracy_loss", _design(frame))
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / repeats <= 0.98


def test_independent_errors_would_not_cover():
    # The reason for clustering: rows of one checkpoint are no independent evidence.
    from statsmodels.regression.linear_model import OLS

    covered = 0
    for seed in range(100):
        frame = _trials(seed=seed, checkpoints=12, methods=("l1",), size=0.0)
        rng = np.random.default_rng(10_000 + seed)
        frame["accuracy_loss"] += (
            0.02 * rng.standard_normal(12)[frame["checkpoint"]] * frame["ratio"]
        )
        matrix = np.column_stack([np.ones(len(frame)), frame["ratio"], _design(frame).columns])
        low, high = OLS(frame["accuracy_loss"].to_numpy(), matrix).fit().conf_int()[1]
        covered += low <= 0 <= high
    assert covered < 80


def test_dose_response_contrasts_cover_the_truth():
    hits = []
    for seed in range(40):
        frame = _trials(seed=seed, checkpoints=10)
        contrasts, sentence = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
        assert not sentence
        assert [item.end for item in contrasts] == list(RATIOS[1:])
        hits += [item.low <= true_loss(item.end) <= item.high for item in contrasts]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_dose_response_without_noise_is_exact_at_every_level():
    frame = _trials(checkpoints=4, noise=0.0, checkpoint_noise=0.0)
    contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
    for item in contrasts:
        assert item.effect == pytest.approx(true_loss(item.end), abs=1e-9)


def test_level_that_not_every_network_saw_is_compared_within_those_that_did():
    frame = _trials(checkpoints=4, noise=0.0, checkpoint_noise=0.0)
    frame = frame.loc[(frame["checkpoint"] != 2) | (frame["ratio"] != 0.9)].reset_index(drop=True)
    contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
    assert [item.clusters for item in contrasts] == [4] * 5 + [3]
    assert contrasts[-1].effect == pytest.approx(true_loss(0.9), abs=1e-9)


def test_level_of_one_network_is_refused():
    frame = _trials(checkpoints=4)
    frame = frame.loc[(frame["checkpoint"] == 2) | (frame["ratio"] != 0.9)].reset_index(drop=True)
    contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
    assert [bool(item.reason) for item in contrasts] == [False] * 5 + [True]
    assert "1 of 4" in contrasts[-1].reason
    assert np.isnan(contrasts[-1].effect)


def test_where_networks_are_compared_every_one_must_have_seen_a_level():
    frame = _trials(checkpoints=4)
    frame = frame.loc[(frame["checkpoint"] != 2) | (frame["ratio"] != 0.9)].reset_index(drop=True)
    between = effects.build_design(frame, "ratio", (), ("method",))
    contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", between)
    assert [bool(item.reason) for item in contrasts] == [False] * 5 + [True]
    assert "3 of 4" in contrasts[-1].reason


def test_contrasts_of_a_design_with_gaps_cover_the_truth():
    hits, rng = [], np.random.default_rng(5)
    for seed in range(40):
        frame = _trials(seed=seed, checkpoints=10)
        frame = frame.loc[rng.random(len(frame)) < 0.4].reset_index(drop=True)
        contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
        kept = [item for item in contrasts if not item.reason]
        hits += [item.low <= true_loss(item.end) <= item.high for item in kept]
    assert len(hits) > 200 and 0.9 <= np.mean(hits) <= 0.995


def test_many_levels_give_a_grid_within_the_support():
    rng = np.random.default_rng(3)
    ratios = tuple(np.sort(rng.random(40)))
    frame = _trials(checkpoints=5, methods=("l1",), ratios=ratios, noise=0.001)
    contrasts, _ = effects.dose_response(frame, "ratio", "accuracy_loss", _design(frame))
    assert len(contrasts) == 9
    last = contrasts[-1]
    assert (last.start, last.end) == (pytest.approx(ratios[0]), pytest.approx(ratios[-1]))
    assert last.effect == pytest.approx(true_loss(last.end) - true_loss(last.start), rel=0.2)


def test_natural_spline_is_linear_beyond_its_knots():
    knots = np.array([0.0, 0.3, 0.5, 0.9])
    outside = np.array([1.0, 1.5, 2.0])
    basis = effects.natural_spline(outside, knots)
    assert basis.shape == (3, 3)
    np.testing.assert_allclose(np.diff(basis, 2, axis=0), 0, atol=1e-12)


def test_randomisation_test_is_uniform_under_the_null_and_small_under_an_effect():
    values = []
    for seed in range(150):
        frame = _trials(seed=seed, checkpoints=3, methods=("l1",), size=0.0)
        design = _design(frame)
        assignment = randomisation.assignment_of(frame, "ratio", design.covariates)
        values.append(
            randomisation.randomisation_p_value(
                frame, "ratio", "accuracy_loss", design, assignment, seed=seed, draws=199
            )
        )
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.10
    assert 0.4 <= np.mean(values) <= 0.6
    frame = _trials(checkpoints=3)
    design = _design(frame)
    assignment = randomisation.assignment_of(frame, "ratio", design.covariates)
    p = randomisation.randomisation_p_value(
        frame, "ratio", "accuracy_loss", design, assignment, draws=999
    )
    assert p == pytest.approx(1 / 1000)


def test_one_ratio_per_checkpoint_is_shuffled_by_whole_checkpoints():
    frame = _trials(checkpoints=14)
    own = dict(enumerate(RATIOS * 2))
    frame = frame.loc[frame["ratio"] == frame["checkpoint"].map(own)].reset_index(drop=True)
    design = _design(frame)
    assert design.dropped == ("checkpoint",)
    assignment = randomisation.assignment_of(frame, "ratio", design.covariates)
    assert assignment.where == "between whole checkpoints"
    rng = np.random.default_rng(0)
    shuffled = randomisation.shuffle(frame["ratio"].to_numpy(), assignment, rng)
    assert pd.Series(shuffled).groupby(frame["checkpoint"]).nunique().max() == 1
    assert sorted(shuffled) == sorted(frame["ratio"])
    assert not np.array_equal(shuffled, frame["ratio"])


def test_rows_of_one_trial_under_several_shifts_are_shuffled_together():
    plain = _trials(checkpoints=3, size=0.0)
    rng = np.random.default_rng(2)
    parts = [
        plain.assign(shift=shift, accuracy_loss=plain["accuracy_loss"] + rng.normal(0, 1e-4))
        for shift in ("none", "fog:3", "noise:0.2")
    ]
    frame = pd.concat(parts, ignore_index=True)
    design = effects.build_design(frame, "ratio", (), ("checkpoint", "method", "shift"))
    assignment = randomisation.assignment_of(frame, "ratio", design.covariates)
    assert assignment.where == "between whole trials"
    shuffled = randomisation.shuffle(frame["ratio"].to_numpy(), assignment, rng)
    assert pd.Series(shuffled).groupby(frame["trial"]).nunique().max() == 1
    cells = frame.assign(ratio=shuffled).groupby(["checkpoint", "method"])["ratio"]
    assert (cells.value_counts() == 3).all()
    # Copies of a trial are no further evidence.
    once = completed_trials(plain, ("ratio", "accuracy_loss")).frame
    alone = effects.build_design(once, "ratio", (), ("checkpoint", "method"))
    p_values = [
        randomisation.randomisation_p_value(
            rows,
            "ratio",
            "accuracy_loss",
            chosen,
            randomisation.assignment_of(rows, "ratio", chosen.covariates),
        )
        for rows, chosen in ((frame, design), (once, alone))
    ]
    assert p_values[0] == pytest.approx(p_values[1], abs=0.05)


def test_shuffle_keeps_every_block_and_reaches_every_order():
    blocks = np.array([0, 1, 0, 1, 0, 2])
    values = np.arange(6.0)
    assignment = randomisation.Assignment(np.arange(6), blocks)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        shuffled = randomisation.shuffle(values, assignment, rng)
        for code in range(3):
            assert set(shuffled[blocks == code]) == set(values[blocks == code])
        seen.add(tuple(shuffled))
    assert len(seen) == 12


def test_fast_slopes_equal_dowhy_refitted_on_the_same_shuffle():
    frame = _trials(checkpoints=3)
    design = _design(frame)
    graph = accuracy_graph(frame.columns)
    identified = identification.identify(frame, graph, "ratio", "accuracy_loss")
    estimand = identification.with_columns(identified, list(design.columns))
    data = pd.concat([frame[["ratio", "accuracy_loss"]], design.columns], axis=1)
    fitted = identification.estimate(data, identified, estimand, step=0.1)
    assignment = randomisation.assignment_of(frame, "ratio", design.covariates)
    slopes = randomisation.shuffled_slopes(
        frame, "ratio", "accuracy_loss", design.columns, assignment, seed=5, draws=3
    )
    assert fitted.value == pytest.approx(0.1 * slopes[0], rel=1e-9)
    rng = np.random.default_rng(5)
    for slope in slopes[1:]:
        shuffled = randomisation.shuffle(frame["ratio"].to_numpy(), assignment, rng)
        again = identification.refit(data.assign(ratio=shuffled), estimand, fitted)
        assert again == pytest.approx(0.1 * slope, rel=1e-8)
