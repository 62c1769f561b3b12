"""The replication of the IISc paper's Algorithm 2."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from simulated_trials import simulate

from causalprune.analysis import (
    AnalysisResult,
    analyze,
    identification,
    iisc_graph,
    threshold_columns,
)
from causalprune.errors import InvalidArgumentError, RecordError


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulate(1, checkpoints=4)


@pytest.fixture(scope="module")
def result(table) -> AnalysisResult:
    return analyze(table, preset="iisc", n_simulations=100)


def test_columns_are_the_papers(table):
    cut = {"accuracy": 0.94, "ratio": 0.5, "memory": 150_000.0}
    data = threshold_columns(table, cut)
    assert list(data) == ["High_Pruning", "High_Accuracy_Loss", "High_Memory_Consumption", "macs"]
    assert all(data[name].dtype.kind == "i" for name in list(data)[:3])
    assert data["High_Pruning"].tolist() == [int(r > 0.5) for r in table["ratio"]]
    assert data["High_Accuracy_Loss"].tolist() == [int(a < 0.94) for a in table["accuracy"]]
    expected = [int(m > 150_000) for m in table["memory_bytes"]]
    assert data["High_Memory_Consumption"].tolist() == expected


def test_graph_is_the_reconstructed_one(result):
    expected = {
        ("High_Memory_Consumption", "High_Pruning"),
        ("High_Memory_Consumption", "High_Accuracy_Loss"),
        ("macs", "High_Pruning"),
        ("macs", "High_Accuracy_Loss"),
        ("High_Pruning", "High_Accuracy_Loss"),
    }
    assert set(iisc_graph().edges) == expected
    assert set(result.graph.edges) == expected
    assert result.adjustment == ("High_Memory_Consumption", "macs")
    assert "reconstructed" in result.graph_name
    assert "reconstructed" in result.notes[0]
    assert "descendants" in result.notes[1]


def test_default_thresholds_are_medians_and_are_recorded(table, result):
    assert result.thresholds == {
        "accuracy": pytest.approx(table["accuracy"].median()),
        "ratio": pytest.approx(table["ratio"].median()),
        "memory": pytest.approx(table["memory_bytes"].median()),
    }


def test_estimate_is_the_regression_coefficient(table, result):
    data = threshold_columns(table, result.thresholds)
    others = data[["High_Memory_Consumption", "macs"]].to_numpy(float) / [1, 1e6]
    matrix = np.column_stack([np.ones(len(data)), data["High_Pruning"], others])
    expected = np.linalg.lstsq(matrix, data["High_Accuracy_Loss"], rcond=None)[0][1]
    assert result.estimate == pytest.approx(expected, rel=1e-6)
    assert result.interval[0] < result.estimate < result.interval[1]


def test_refuters_run_in_the_papers_order_and_their_p_values_are_explained(result):
    names = [item.name for item in result.refutations]
    assert names == ["random common cause", "data subset", "placebo treatment"]
    for item in result.refutations:
        assert 0 <= item.p_value <= 1
        assert item.passed == (item.p_value > 0.05)
        assert ("does not show that the estimate is right" in item.sentence) == item.passed
        assert "no support" in item.threshold
    placebo = result.refutations[2]
    assert abs(placebo.refuted_effect) < 0.3 * abs(result.estimate)


def test_fresh_draws_in_every_simulation(table, result):
    # An integer seed would make DoWhy draw one subset a hundred times: p would be 0 or 1.
    data = threshold_columns(table, result.thresholds)
    found = identification.identify(data, iisc_graph(), "High_Pruning", "High_Accuracy_Loss")
    fitted = identification.estimate(data, found, found.estimand)
    one = identification.data_subset(data, found.estimand, fitted, 1, 1).new_effect
    many = identification.data_subset(data, found.estimand, fitted, 1, 20).new_effect
    assert one != many


def test_frames_are_never_changed(table):
    kept = table.copy(deep=True)
    analyze(table, preset="iisc", n_simulations=5)
    pd.testing.assert_frame_equal(table, kept)


def test_own_thresholds_and_seed_repeat(table):
    options = {"preset": "iisc", "thresholds": {"ratio": 0.4}, "seed": 4, "n_simulations": 8}
    first = analyze(table, **options)
    assert first.thresholds["ratio"] == 0.4
    assert analyze(table, **options) == first
    assert AnalysisResult.from_json(first.to_json()) == first
    assert first.refute(table) == first.refutations


def test_threshold_is_shown_to_decide_the_number(result):
    assert any("belongs to the threshold" in note for note in result.notes)


def test_memory_that_mirrors_pruning_gives_a_sentence_and_no_number():
    table = simulate(1, checkpoints=3, ratios=(0.0, 0.2, 0.8, 0.9))
    result = analyze(table, preset="iisc", n_simulations=5)
    assert not result.estimable
    assert math.isnan(result.estimate)
    assert "linear function" in result.reason
    assert "could not be estimated" in result.summary()


def test_constant_accuracy_gives_a_sentence():
    table = simulate(1, checkpoints=3).assign(accuracy=0.9)
    result = analyze(table, preset="iisc", n_simulations=5)
    assert not result.estimable
    assert "accuracy threshold" in result.reason


@pytest.mark.parametrize(
    ("thresholds", "pattern"),
    [
        ({"speed": 1}, "expected keys among accuracy, ratio, memory, got speed"),
        ({"ratio": "half"}, "'ratio' must be a number"),
        ({"ratio": float("nan")}, "'ratio' must be finite"),
        ({"ratio": 0.95}, "all .* trials on one side"),
    ],
)
def test_bad_thresholds_are_refused(table, thresholds, pattern):
    with pytest.raises(InvalidArgumentError, match=pattern):
        analyze(table, preset="iisc", thresholds=thresholds)


def test_treatment_is_fixed_by_the_preset(table):
    with pytest.raises(InvalidArgumentError, match="fixes both"):
        analyze(table, "achieved_ratio", preset="iisc")


def test_missing_memory_is_named(table):
    with pytest.raises(RecordError, match="memory_bytes"):
        analyze(table.drop(columns="memory_bytes"), preset="iisc")
