"""Clustered errors against statsmodels, instruments and Hotelling's test against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from causalprune.analysis.clustered import fit_clustered, holm, mean_over_networks


def _table(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.repeat(np.arange(9), 5)) * 7
    columns = np.column_stack([np.ones(45), rng.standard_normal((45, 2))])
    return columns @ [1.0, 2.0, -1.0] + rng.standard_normal(45), columns, clusters


def test_least_squares_equals_statsmodels() -> None:
    from statsmodels.regression.linear_model import OLS

    target, columns, clusters = _table()
    fit = fit_clustered(target, columns, clusters)
    options = {"groups": clusters, "use_correction": True, "df_correction": True}
    other = OLS(target, columns).fit(cov_type="cluster", cov_kwds=options, use_t=True)
    np.testing.assert_allclose(fit.params, other.params, rtol=1e-10)
    np.testing.assert_allclose(fit.covariance, other.cov_params(), rtol=1e-9, atol=1e-14)
    shown = fit.contrast(np.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose((shown.low, shown.high), other.conf_int()[1], rtol=1e-9)
    assert shown.p_value == pytest.approx(other.pvalues[1], rel=1e-8)


def test_instruments_equal_the_two_stages() -> None:
    from statsmodels.sandbox.regression.gmm import IV2SLS

    target, columns, clusters = _table(1)
    rng = np.random.default_rng(2)
    instruments = columns.copy()
    instruments[:, 1] += 0.3 * rng.standard_normal(45)
    fit = fit_clustered(target, columns, clusters, instruments)
    np.testing.assert_allclose(fit.params, IV2SLS(target, columns, instruments).fit().params)


def test_covariance_of_instruments_follows_the_spread_of_estimates() -> None:
    estimates, errors = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(25), 4)
        z, hidden = rng.standard_normal((2, 100))
        x = z + hidden + rng.standard_normal(25)[clusters]
        y = 2 * x + hidden + rng.standard_normal(25)[clusters] * z
        one = np.ones(100)
        fit = fit_clustered(y, np.column_stack([x, one]), clusters, np.column_stack([z, one]))
        estimates.append(fit.params[0])
        errors.append(fit.covariance[0, 0] ** 0.5)
    assert np.mean(estimates) == pytest.approx(2.0, abs=0.05)
    assert np.median(errors) == pytest.approx(np.std(estimates), rel=0.2)


def test_differences_within_networks_are_hotellings_test() -> None:
    rng = np.random.default_rng(3)
    shown = rng.standard_normal((8, 3)) + rng.standard_normal((8, 1))
    levels = np.tile(np.eye(3), (8, 1))
    own = np.kron(np.eye(8), np.ones((3, 1)))
    columns = np.hstack([levels, own[:, 1:]])
    fit = fit_clustered(shown.ravel(), columns, np.repeat(np.arange(8), 3))
    restrictions = np.zeros((2, columns.shape[1]))
    restrictions[:, 0], restrictions[0, 1], restrictions[1, 2] = -1.0, 1.0, 1.0
    differences = shown[:, 1:] - shown[:, :1]
    mean = differences.mean(axis=0)
    squared = 8 * mean @ np.linalg.solve(np.cov(differences.T), mean)
    # CR1 counts the networks' own columns among its coefficients, Hotelling does not.
    squared *= (24 - columns.shape[1]) / 23
    assert fit.test_of(restrictions) == pytest.approx(stats.f.sf(squared * 6 / 14, 2, 6), rel=1e-9)
    assert np.isnan(fit.test_of(np.eye(columns.shape[1])[:8]))


def test_mean_is_students_interval() -> None:
    values = np.random.default_rng(4).standard_normal(7)
    shown = mean_over_networks(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (shown.low, shown.high) == (pytest.approx(low), pytest.approx(high))
    assert shown.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert mean_over_networks(np.full(3, 0.5)).p_value == 0.0
    assert shown.times(-2).low == pytest.approx(-2 * high)


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = list(np.random.default_rng(5).random(6) ** 3)
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_what_cannot_be_fitted_is_said() -> None:
    target, columns, clusters = _table()
    assert "one trained network" in fit_clustered(target, columns, np.zeros(45, dtype=int))
    doubled = np.column_stack([columns, columns[:, 1]])
    assert "move in step" in fit_clustered(target, doubled, clusters)
    assert "too few for 3" in fit_clustered(target[:3], columns[:3], clusters[:3])
