"""LinearDML with the known design: planted truth, clustering, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_trials import METHODS, RATIOS, confounded, drawn, simulate, true_loss

from causalprune.analysis import double_ml as module
from causalprune.analysis.double_ml import double_ml
from causalprune.analysis.effects import block_codes
from causalprune.analysis.known_design import expected_features, propensities
from causalprune.analysis.splines import natural_spline
from causalprune.analysis.tables import Trials, completed_trials


def _trials(frame: pd.DataFrame) -> Trials:
    return completed_trials(frame, ("ratio", "accuracy_loss"))


def test_contrasts_cover_the_truth() -> None:
    hits = []
    for seed in range(200, 225):
        found = double_ml(_trials(simulate(seed, checkpoints=10)))
        assert [item.contrast for item in found][:2] == [
            "prune ratio 0 to 0.2",
            "prune ratio 0 to 0.4",
        ]
        hits += [
            item.low <= true_loss(end) <= item.high
            for item, end in zip(found, RATIOS[1:], strict=True)
        ]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_drawn_trials_cover_the_truth_and_do_not_find_what_is_not_there() -> None:
    for size in (0.12, 0.0):
        hits = []
        for seed in range(300, 320):
            (found,) = double_ml(_trials(drawn(seed, size=size)), contrasts=[(0.2, 0.8)])
            truth = true_loss(0.8, size) - true_loss(0.2, size)
            hits.append(found.low <= truth <= found.high)
        assert np.mean(hits) >= 0.85


def test_networks_with_responses_of_their_own_need_the_clusters() -> None:
    clustered, independent = [], []
    for seed in range(25):
        frame = simulate(seed, checkpoints=10, size=0.0)
        slopes = 0.03 * np.random.default_rng(900 + seed).standard_normal(10)
        frame["accuracy_loss"] += slopes[frame["checkpoint"]] * frame["ratio"]
        trials = _trials(frame)
        fitted = module._fit(
            trials, "ratio", "accuracy_loss", np.unique(frame["ratio"]), (), True, 0
        )
        shown, (low, high) = fitted.contrast(0.0, 0.9)
        assert shown.value == pytest.approx((low + high) / 2, rel=1e-6, abs=1e-9)
        clustered.append(shown.covers(0.0))
        independent.append(low <= 0 <= high)
    assert np.mean(clustered) >= 0.87
    assert np.mean(independent) < 0.8


def test_econml_and_the_clustered_fit_agree_on_the_effect() -> None:
    trials = _trials(drawn(7))
    fitted = module._fit(trials, "ratio", "accuracy_loss", np.array(RATIOS), (), True, 0)
    ends = np.array([[0.25]]), np.array([[0.7]])
    own = float(np.ravel(fitted.learner.effect(T0=ends[0], T1=ends[1]))[0])
    assert fitted.contrast(0.25, 0.7)[0].value == pytest.approx(own, rel=1e-9)


def test_levels_between_those_of_the_table_are_read_from_the_curve() -> None:
    (found,) = double_ml(_trials(simulate(8, checkpoints=20)), contrasts=[(0.3, 0.7)])
    assert found.effect == pytest.approx(true_loss(0.7) - true_loss(0.3), rel=0.1)
    assert found.low <= true_loss(0.7) - true_loss(0.3) <= found.high
    assert "its distribution is known" in found.sentence


def test_outside_the_support_is_refused() -> None:
    frame = simulate(9, checkpoints=6)
    beyond = double_ml(_trials(frame), contrasts=[(0.3, 0.95), (0.9, -0.1)])
    assert all("lies outside" in item.reason and np.isnan(item.effect) for item in beyond)
    frame = frame.loc[(frame["checkpoint"] == 2) | (frame["ratio"] != 0.9)]
    *others, last = double_ml(_trials(frame))
    assert all(item.estimable for item in others)
    assert "of the networks of lenet5, digits, 1 completed a trial at 0.9" in last.reason


def test_one_network_is_refused() -> None:
    found = double_ml(_trials(simulate(10, checkpoints=1)))
    assert len(found) == 6 and all("One trained network" in item.reason for item in found)


def test_imported_tables_are_told_as_such() -> None:
    found = double_ml(_trials(confounded(1)), contrasts=[(0.3, 0.7)])[0]
    assert found.estimator.endswith("treatment learnt")
    assert "a common cause that is not among them biases this" in found.sentence


def test_many_levels_give_ten_points() -> None:
    ratios = tuple(np.sort(np.random.default_rng(11).random(30)))
    found = double_ml(_trials(simulate(11, checkpoints=6, ratios=ratios, methods=("l1",))))
    assert len(found) == 9
    truth = true_loss(ratios[-1]) - true_loss(ratios[0])
    assert found[-1].effect == pytest.approx(truth, rel=0.2)


def test_the_design_and_not_the_finished_trials_is_what_is_expected() -> None:
    frame = simulate(12, checkpoints=4).reset_index(drop=True)
    spline = natural_spline(frame["ratio"].to_numpy(), np.array(RATIOS))
    whole = natural_spline(np.array(RATIOS), np.array(RATIOS)).mean(axis=0)
    np.testing.assert_allclose(
        expected_features(frame, "ratio", spline), np.tile(whole, (len(frame), 1))
    )
    lost = (frame["ratio"] > 0.6) & (frame["checkpoint"] > 0)
    kept = frame.loc[~lost].reset_index(drop=True)
    np.testing.assert_allclose(
        expected_features(kept, "ratio", spline[~lost]), np.tile(whole, (len(kept), 1))
    )


def test_recorded_probabilities_count() -> None:
    frame = pd.DataFrame(
        {"ratio": [0.2, 0.8, 0.2, 0.8], "assignment_probability": [0.75, 0.25] * 2}
    )
    shown = expected_features(frame, "ratio", frame[["ratio"]].to_numpy())
    np.testing.assert_allclose(shown, 0.35)


def test_cells_that_were_never_drawn_are_still_in_the_design() -> None:
    # Two methods and two ratios, one of the four cells never drawn: probabilities add up to 0.75.
    frame = pd.DataFrame(
        {"method": ["a", "a", "b"], "ratio": [0.2, 0.8, 0.2], "assignment_probability": 0.25}
    )
    np.testing.assert_allclose(expected_features(frame, "ratio", frame[["ratio"]].to_numpy()), 0.5)
    np.testing.assert_allclose(propensities(frame, ["a", "b"]), 0.5)
    # Three cells are the whole design: then b was never to be pruned at 0.8.
    whole = frame.assign(assignment_probability=[0.25, 0.25, 0.5])
    shown = expected_features(whole, "ratio", frame[["ratio"]].to_numpy())[:, 0]
    np.testing.assert_allclose(shown, [0.5, 0.5, 0.2])
    np.testing.assert_allclose(
        propensities(whole, ["a", "b"]), [[1 / 3, 2 / 3], [1, 0], [1 / 3, 2 / 3]]
    )


def test_methods_of_the_simulation_are_those_of_the_propensities() -> None:
    frame = simulate(13, checkpoints=2)
    np.testing.assert_allclose(propensities(frame, sorted(METHODS)), 1 / 3)
    assert len(np.unique(block_codes(frame, ["method"]))) == 3
