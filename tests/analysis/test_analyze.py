"""`analyze` without a preset: truth, verdicts, degenerate tables, bad input."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from simulated_trials import RATIOS, confounded, simulate, true_loss, write_run

from causalprune import analysis
from causalprune.analysis import AnalysisResult, counterfactuals
from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError

# What is asked beside the main effect has tests of its own.
analyze = functools.partial(analysis.analyze, time_budget_s=0)


@pytest.fixture(scope="module")
def planted() -> AnalysisResult:
    return analyze(simulate(1, checkpoints=6), n_simulations=30)


@pytest.fixture(scope="module")
def null() -> AnalysisResult:
    return analyze(simulate(2, checkpoints=6, size=0.0), n_simulations=30)


def test_planted_truth_lies_in_the_interval(planted):
    truth = np.polyfit(RATIOS, [true_loss(r) for r in RATIOS], 1)[0] * 0.1
    low, high = planted.interval
    assert low < truth < high
    assert low < planted.estimate < high
    assert planted.step == 0.1
    assert planted.p_value < 0.01
    assert planted.n_clusters == 6
    assert planted.designed


def test_planted_effect_holds_against_all_three_refuters(planted):
    placebo, common, subset = planted.refutations[:3]
    assert [item.passed for item in planted.refutations[:3]] == [True, True, True]
    assert abs(placebo.refuted_effect) < 0.1 * planted.estimate
    assert not placebo.low <= planted.estimate <= placebo.high
    assert abs(common.refuted_effect / planted.estimate - 1) < 0.02
    assert subset.low > 0.7 * planted.estimate
    assert subset.high < 1.3 * planted.estimate
    assert all(item.estimate == planted.estimate for item in planted.refutations)


def test_null_table_shows_no_effect_and_fails_the_placebo(null):
    assert null.interval[0] <= 0 <= null.interval[1]
    placebo = null.refutations[0]
    assert placebo.passed is False
    assert placebo.low <= null.estimate <= placebo.high
    assert "cannot be told from a shuffled treatment" in placebo.sentence
    assert null.headline.startswith("No effect of prune ratio")
    assert null.p_value > 0.05


def test_confounded_table_passes_the_refuters_and_says_that_this_proves_nothing():
    result = analyze(confounded(0), n_simulations=30)
    assert not result.designed
    # The truth is zero: the estimate is wrong, and no refuter can notice.
    assert result.interval[0] > 0.005
    assert all(item.passed for item in result.refutations[:3])
    assert result.p_value is None
    assert "accuracy_before" in result.adjustment
    assert any("observational" in note and "no refuter can tell" in note for note in result.notes)


def test_same_seed_same_result_and_the_frame_is_left_alone():
    table = simulate(3, checkpoints=3)
    kept = table.copy(deep=True)
    first = analyze(table, seed=7, n_simulations=10)
    pd.testing.assert_frame_equal(table, kept)
    assert analyze(table, seed=7, n_simulations=10) == first
    other = analyze(table, seed=8, n_simulations=10)
    assert other.estimate == first.estimate
    assert other.refutations[0].refuted_effect != first.refutations[0].refuted_effect


def test_global_random_state_is_not_touched():
    np.random.seed(11)
    expected = np.random.random()
    np.random.seed(11)
    analyze(simulate(3, checkpoints=3), n_simulations=5)
    assert np.random.random() == expected


def test_graph_and_words(planted):
    graph = planted.graph
    assert set(graph.predecessors("ratio")) == set()
    assert list(graph.successors("ratio")) == ["achieved_ratio"]
    assert not {"macs", "memory_bytes", "parameters"} & set(graph)
    assert {"architecture", "dataset", "shift"} <= set(planted.constant_nodes)
    assert planted.adjustment == ()
    assert planted.design_covariates == ("checkpoint", "method")
    text = planted.summary()
    assert "points" in text
    assert "architecture = lenet5" in text
    assert "no straight line" in text
    assert "unreliable with so few clusters" in text


def test_one_network_says_that_it_is_one():
    result = analyze(simulate(1, checkpoints=1), n_simulations=5)
    assert result.n_clusters == 1
    assert math.isfinite(result.interval[0])
    subset = result.refutations[2]
    assert subset.passed is None
    assert subset.verdict == "not applicable"
    assert any("one trained network" in note for note in result.notes)


def test_failed_trials_are_left_out_and_named():
    table = simulate(1, checkpoints=3)
    table.loc[:4, "status"] = "failed"
    table.loc[:4, ["accuracy", "accuracy_loss"]] = np.nan
    result = analyze(table, n_simulations=0)
    assert (result.n_trials, result.n_failed) == (58, 5)
    assert result.refutations == ()
    assert any("5 trials failed" in note for note in result.notes)


def test_constant_outcome_gives_a_sentence_and_no_number():
    result = analyze(simulate(1, checkpoints=3).assign(accuracy_loss=0.01), n_simulations=5)
    assert not result.estimable
    assert math.isnan(result.estimate)
    assert result.refutations == ()
    assert "never varies" in result.headline
    assert AnalysisResult.from_json(result.to_json()) == result


def test_treatment_fixed_by_what_the_graph_adjusts_for_gives_a_sentence():
    table = confounded(0).assign(ratio=lambda t: np.where(t["method"] == "l1", 0.2, 0.6))
    result = analyze(table, n_simulations=5)
    assert not result.estimable
    assert "cannot be told apart" in result.reason
    assert "method" in result.reason


def test_other_outcomes_use_the_graph_of_costs():
    result = analyze(simulate(1, checkpoints=4), outcome="latency_ms", n_simulations=5)
    assert result.graph_name == "cost"
    assert result.estimate < 0
    assert "latency" in result.headline
    assert "ms" in result.headline


def test_achieved_ratio_is_adjusted_for_what_causes_it():
    result = analyze(simulate(1, checkpoints=4), treatment="achieved_ratio", n_simulations=5)
    assert {"checkpoint", "method"} <= set(result.adjustment)
    assert result.p_value is None
    assert result.interval[0] > 0


def test_reads_a_run_directory_and_a_csv(tmp_path):
    table = simulate(1, checkpoints=3)
    folder = write_run(tmp_path / "run", table)
    from_folder = analyze(folder, n_simulations=0)
    assert analyze(folder / "trials.csv", n_simulations=0) == from_folder
    assert from_folder.estimate == pytest.approx(analyze(table, n_simulations=0).estimate)


def test_result_survives_json_and_disk(planted, tmp_path):
    assert AnalysisResult.from_json(planted.to_json()) == planted
    assert AnalysisResult.load(planted.save(tmp_path / "result.json")) == planted
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "preset": "x"}'])
def test_broken_records_are_refused(text):
    with pytest.raises(RecordError, match="analysis record"):
        AnalysisResult.from_json(text)


def test_refute_returns_the_record_or_runs_again(planted):
    assert planted.refute() == planted.refutations
    again = planted.refute(simulate(1, checkpoints=6))
    assert again == planted.refutations
    with pytest.raises(InvalidArgumentError, match="table"):
        planted.refute(seed=3)


def test_text_in_a_numeric_column_is_named():
    table = simulate(1).astype({"accuracy_loss": object})
    table.loc[3, "accuracy_loss"] = "lots"
    with pytest.raises(RecordError, match=r"accuracy_loss.*numeric"):
        analyze(table)


def test_all_trials_failed_quotes_the_first_error():
    table = simulate(1).assign(status="failed", error="out of memory")
    with pytest.raises(RecordError, match=r"got 0 of .*out of memory"):
        analyze(table)


def test_constant_treatment_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"treatment.*only 0\.5"):
        analyze(simulate(1, ratios=(0.5,)))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"preset": "paper"}, "unknown preset 'paper'; known: iisc"),
        ({"thresholds": {"ratio": 0.5}}, "thresholds.*iisc"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n_simulations": -1}, "n_simulations"),
        ({"n_simulations": True}, "n_simulations"),
        ({"outcome": "ratio"}, "outcome"),
        ({"treatment": "macs"}, "treatment: expected a cause of 'accuracy_loss'"),
    ],
)
def test_bad_arguments_are_refused(options, pattern):
    with pytest.raises(InvalidArgumentError, match=pattern):
        analyze(simulate(1), **options)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(UnknownNameError):
        analyze(simulate(1), preset="x")


def test_wrong_table_types_and_paths(tmp_path):
    with pytest.raises(InvalidArgumentError, match="table: expected"):
        analyze([1, 2, 3])
    with pytest.raises(RecordError):
        analyze(tmp_path / "nothing.csv")


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, causalprune.analysis, causalprune.reports\n"
        "heavy = {'dowhy', 'statsmodels', 'econml', 'matplotlib', 'networkx', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checkpoint_numbers_of_two_networks_are_two_networks() -> None:
    small = simulate(3, checkpoints=3)
    other = simulate(4, checkpoints=3).assign(architecture="lenet300")
    both = analyze(pd.concat([small, other], ignore_index=True), n_simulations=0)
    assert both.n_clusters == 6 and "architecture" in both.design_covariates
    assert analyze(small, n_simulations=0).n_clusters == 3


def test_what_is_asked_beside_the_main_effect():
    result = analysis.analyze(simulate(1, checkpoints=6), n_simulations=0)
    asked = {finding.question for finding in result.findings}
    assert {"dose-response", "method", "by method", "target to achieved", "few networks"} <= asked
    assert all(finding.sentence or finding.reason for finding in result.findings)
    assert AnalysisResult.from_json(result.to_json()).to_json() == result.to_json()
    assert "l1 instead of random" in result.summary()


@pytest.mark.parametrize("seconds", [-1, "long", float("nan"), True])
def test_a_time_budget_is_a_time(seconds):
    with pytest.raises(InvalidArgumentError, match="time_budget_s"):
        analyze(simulate(1), time_budget_s=seconds)


def test_a_million_rows_are_drawn_from():
    small = simulate(11, checkpoints=4)
    rng = np.random.default_rng(11)
    table = small.iloc[rng.integers(len(small), size=1_000_000)].reset_index(drop=True)
    table["accuracy_loss"] += 0.001 * rng.standard_normal(len(table))
    found = analyze(table, n_simulations=0)
    assert found.n_trials == 10_000 and found.n_clusters == 4
    assert any("10,000 trials were drawn at random from the 1,000,000" in n for n in found.notes)
    assert found.estimate == pytest.approx(analyze(small, n_simulations=0).estimate, rel=0.05)


def test_five_rows_say_what_they_can():
    table = simulate(12, checkpoints=1, methods=("path",), ratios=(0.0, 0.2, 0.4, 0.6, 0.8))
    found = analysis.analyze(table, n_simulations=10)
    assert found.n_trials == 5 and math.isfinite(found.estimate)
    assert any("one trained network" in note for note in found.notes)
    assert all(item.sentence or item.reason for item in found.findings)


def test_a_result_asks_further_questions_of_its_own_table(tmp_path, monkeypatch):
    table = simulate(5, checkpoints=4)
    result = analyze(table, n_simulations=0)
    pd.testing.assert_frame_equal(result.table, table)
    read = AnalysisResult.load(result.save(tmp_path / "result.json"))
    assert read == result and read.table is None
    for ask in (lambda: read.counterfactual(ratio=0.5), lambda: read.attribute(3)):
        with pytest.raises(InvalidArgumentError, match="table: expected the table"):
            ask()
    asked = []
    monkeypatch.setattr(
        counterfactuals, "counterfactual", lambda table, **question: asked.append((table, question))
    )
    result.counterfactual(ratio=0.5, method="l1")
    read.counterfactual("other.csv", ratio=0.5)
    assert asked[0][0] is result.table
    assert asked[0][1] == {"seed": 0, "ratio": 0.5, "method": "l1"}
    assert asked[1] == ("other.csv", {"seed": 0, "ratio": 0.5})


def test_contrasts_that_were_asked_for():
    table = simulate(7, checkpoints=8)
    asked = [(0.4, 0.9), (0.5, 0.7), (0.9, 0.2), (0.2, 0.95)]
    result = analysis.analyze(table, n_simulations=0, contrasts=asked, time_budget_s=60)
    own = [item for item in result.findings if "least squares, spline" in item.estimator]
    double = [item for item in result.findings if item.estimator.startswith("LinearDML")]
    names = ["prune ratio 0.4 to 0.9", "prune ratio 0.5 to 0.7", "prune ratio 0.9 to 0.2"]
    for listed in (own, double):
        assert [item.contrast for item in listed[:3]] == names
        assert "0.95 lies outside" in listed[3].reason and math.isnan(listed[3].effect)
        for item, (start, end) in zip(listed[:3], asked, strict=False):
            truth = true_loss(end) - true_loss(start)
            assert abs(item.effect - truth) < 0.2 * abs(truth)
        assert listed[2].high < 0
    assert [item.end for item in result.contrasts] == list(RATIOS[1:])


@pytest.mark.parametrize("wrong", [[], [0.3], [(0.3, 0.3)], [(0.3, float("nan"))], "0.3:0.7", 3])
def test_contrasts_are_pairs(wrong):
    with pytest.raises(InvalidArgumentError, match="contrasts: expected pairs"):
        analyze(simulate(1), contrasts=wrong)


def test_the_preset_takes_no_contrasts():
    with pytest.raises(InvalidArgumentError, match="contrasts: preset='iisc'"):
        analyze(simulate(1), preset="iisc", contrasts=[(0.3, 0.7)])
