"""The wild cluster bootstrap against a plain loop, its coverage with few networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_trials import RATIOS, simulate

from causalprune.analysis.clustered import fit_clustered
from causalprune.analysis.effects import block_codes
from causalprune.analysis.few_networks import _weights, few_networks, wild_p_value
from causalprune.analysis.tables import Trials, completed_trials


def _trials(frame: pd.DataFrame) -> Trials:
    return completed_trials(frame, ("ratio", "accuracy_loss"))


@pytest.mark.parametrize("networks", [3, 8, 13])
def test_p_values_equal_those_of_refitted_tables(networks: int) -> None:
    rng = np.random.default_rng(networks)
    clusters = np.repeat(np.arange(networks), 5)
    rest = np.column_stack([np.ones(len(clusters)), rng.standard_normal((len(clusters), 2))])
    values = rng.standard_normal(len(clusters))
    target = 0.3 * values + rng.standard_normal(networks)[clusters] * values
    target += rng.standard_normal(len(clusters))
    assumed = 0.2

    def statistic(outcome: np.ndarray) -> float:
        fit = fit_clustered(outcome, np.column_stack([values, rest]), clusters)
        return abs(float((fit.params[0] - assumed) / fit.covariance[0, 0] ** 0.5))

    under = target - assumed * values
    fitted = rest @ np.linalg.lstsq(rest, under, rcond=None)[0]
    weights = _weights(networks, 5, 400)
    drawn = np.array(
        [
            statistic(assumed * values + fitted + weight[clusters] * (under - fitted))
            for weight in weights
        ]
    )
    extreme = np.count_nonzero(drawn >= statistic(target) * (1 - 1e-9))
    listed = networks == 3
    expected = extreme / 216 if listed else (1 + extreme) / 401
    p = wild_p_value(target, values, rest, clusters, seed=5, draws=400)(assumed)
    assert len(weights) == (216 if listed else 400)
    assert p == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("networks", "weights"), [(5, "Webb"), (13, "Rademacher")])
def test_intervals_of_few_networks_cover_the_null(networks: int, weights: str) -> None:
    hits = []
    for seed in range(40):
        frame = simulate(seed, checkpoints=networks, methods=("l1",), ratios=RATIOS[::2], size=0.0)
        own = 0.02 * np.random.default_rng(3000 + seed).standard_normal(networks)
        frame["accuracy_loss"] += own[frame["checkpoint"]] * frame["ratio"]
        (found,) = few_networks(_trials(frame), seed=seed)
        assert weights in found.estimator
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(hits) >= 0.85


def test_an_effect_is_found_and_told_beside_the_clustered_interval() -> None:
    (found,) = few_networks(_trials(simulate(1, checkpoints=6)))
    assert 0 < found.low < found.effect < found.high
    assert "p = 0.00" in found.sentence or "p < 0.001" in found.sentence
    assert "the clustered t interval says" in found.sentence
    assert few_networks(_trials(simulate(1, checkpoints=6))) == (found,)


def test_edges_are_where_slopes_begin_to_be_rejected() -> None:
    trials = _trials(simulate(2, checkpoints=7, methods=("l1",)))
    (found,) = few_networks(trials)
    frame = trials.frame
    own = pd.get_dummies(frame["checkpoint"], dtype=float).to_numpy()
    values, target = frame["ratio"].to_numpy(), frame["accuracy_loss"].to_numpy()
    p = wild_p_value(target, values, own, block_codes(frame, ["checkpoint"]))
    width = 10 * (found.high - found.low)
    for edge, outwards in ((10 * found.low, -1), (10 * found.high, 1)):
        assert p(edge + outwards * 1e-3 * width) < 0.05 <= p(edge - outwards * 1e-3 * width)


def test_two_networks_bound_nothing() -> None:
    (found,) = few_networks(_trials(simulate(3, checkpoints=2)))
    assert "2 networks bound no slope" in found.reason and np.isnan(found.low)
    (found,) = few_networks(_trials(simulate(3, checkpoints=1)))
    assert "one trained network" in found.reason
    (found,) = few_networks(_trials(simulate(3).assign(accuracy_loss=0.1)))
    assert "never varies" in found.reason


def test_many_networks_need_no_help() -> None:
    assert few_networks(_trials(simulate(4, checkpoints=30, methods=("l1",)))) == ()
