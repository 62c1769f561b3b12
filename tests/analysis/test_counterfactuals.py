"""Counterfactuals: planted truth, exact sizes, refusals, replay, root causes, fixed seeds."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_trials import simulate

from causalprune.analysis import (
    AnalysisResult,
    Counterfactual,
    CounterfactualModel,
    Replay,
    cells_to_rerun,
    replay_answers,
    replay_error,
)
from causalprune.analysis.structural_model import CATEGORIES, fit_structure, propagate
from causalprune.analysis.structural_replay import summarised
from causalprune.analysis.structural_support import sizes_of
from causalprune.analysis.tables import completed_trials, read_table
from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError

SLOWER = 2.0
REAL_STUDY = Path(__file__).parents[2] / "benchmarks" / "results" / "lost_in_pruning.csv"
OWN_LOSS = 0.05  # of checkpoint 0 of lenet5, at every ratio


def two_networks() -> pd.DataFrame:
    """lenet5 on two machines, of which one is slower; lenet300 on the other, up to 0.7."""
    first = simulate(3, checkpoints=4, noise=0.003)
    slow = np.random.default_rng(0).random(len(first)) < 0.5
    first.loc[slow, "latency_ms"] *= SLOWER
    first.loc[slow, "machine"] = "machine-b"
    first.loc[first["checkpoint"] == 0, "accuracy_loss"] += OWN_LOSS
    second = simulate(4, checkpoints=3, ratios=(0.0, 0.3, 0.5, 0.7)).assign(architecture="lenet300")
    second["latency_ms"] *= 3
    joined = pd.concat([first, second], ignore_index=True)
    return joined.assign(trial=range(len(joined)))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return two_networks()


@pytest.fixture(scope="module")
def model(table: pd.DataFrame) -> CounterfactualModel:
    return CounterfactualModel.fit(table)


# ---- truth ---------------------------------------------------------------------------------------


def test_held_out_trials_lie_in_their_intervals_as_often_as_they_should():
    trials = simulate(7, checkpoints=8)
    held_out = np.random.default_rng(1).random(len(trials)) < 0.25
    model = CounterfactualModel.fit(trials[~held_out], replay_share=0)
    found = {each.outcome: each for each in model.compare(trials[held_out])}
    assert set(found) == {"accuracy_loss", "memory_bytes", "latency_ms"}
    for each in found.values():
        assert each.n + each.n_refused == held_out.sum() and each.n > 30
        assert 0.75 <= each.coverage <= 1.0
    assert np.mean([each.coverage for each in found.values()]) >= 0.85
    # The noise of a trial is 0.004 on the loss; the mean size of it 0.0032.
    assert 0.002 < found["accuracy_loss"].mean_absolute_error < 0.006


def test_the_networks_own_noise_is_kept(model, table):
    asked = {"network": "lenet5", "method": "l1", "ratio": 0.5}
    own, other, anyone = (model.counterfactual(**asked, checkpoint=c) for c in (0, 1, None))
    gap = own["accuracy_loss"].value - other["accuracy_loss"].value
    losses = table[table["architecture"] == "lenet5"].groupby("checkpoint")["accuracy_loss"].mean()
    assert losses[0] - losses[1] > 0.8 * OWN_LOSS
    assert gap == pytest.approx(losses[0] - losses[1], rel=0.25)
    assert other["accuracy_loss"].value < anyone["accuracy_loss"].value < own["accuracy_loss"].value
    width = [each["accuracy_loss"].high - each["accuracy_loss"].low for each in (other, anyone)]
    assert width[1] > 1.5 * width[0]  # a trial of any network varies by which network it is
    assert own.checkpoint == "lenet5/0" and anyone.checkpoint is None


def told_losses(trials: pd.DataFrame, ratios: tuple[float, ...], method: str) -> pd.DataFrame:
    """What is told of every network at these ratios, without intervals: ratios by networks."""
    levels = {name: tuple(sorted(trials[name].unique())) for name in CATEGORIES if name in trials}
    structure = fit_structure(trials, levels)
    cells = [
        {**row, "ratio": ratio, "method": method}
        for ratio in ratios
        for row in trials.drop_duplicates("checkpoint").to_dict("records")
    ]
    for cell in cells:
        cell |= sizes_of(trials, cell, (str(cell["checkpoint"]),)).columns()
    frame = pd.DataFrame(cells)
    (told,) = propagate([structure], frame, [(str(name),) for name in frame["checkpoint"]])
    return told.assign(checkpoint=frame["checkpoint"]).pivot(
        index="ratio", columns="checkpoint", values="accuracy_loss"
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_level_of_one_network_is_told_in_full_at_every_ratio(seed):
    trials = simulate(seed, checkpoints=3, checkpoint_noise=0)
    usual = trials.groupby("checkpoint")["accuracy_loss"].mean()
    trials.loc[trials["checkpoint"] == 0, "accuracy_loss"] += OWN_LOSS
    told = told_losses(trials, (0.0, 0.3, 0.65, 0.9), "path")
    planted = OWN_LOSS + usual[0] - usual[1:].mean()
    # Sizes differ, too: a point of parameters is 0.2 points of loss at the steep end.
    np.testing.assert_allclose(told[0] - told[[1, 2]].mean(axis=1), planted, atol=0.01)


@pytest.mark.skipif(not REAL_STUDY.is_file(), reason="needs the source tree")
def test_a_cell_that_no_trial_is_in_follows_the_trials_around_it():
    trials = completed_trials(read_table(REAL_STUDY), ("ratio", "accuracy_loss")).frame
    # Of cswap on ResNet-20 at 0.8 this leaves nothing, and little around it: what the last digits
    # of its neighbours told once was a loss of -90 points, where there was one of 11.
    order = np.random.default_rng(5).permutation(len(trials))
    rest = trials.drop(index=np.array_split(order, 10)[7]).reset_index(drop=True)
    cell = rest[(rest["architecture"] == "resnet20") & (rest["method"] == "cswap")]
    assert len(cell) and not (cell["ratio"] == 0.8).any()
    told = told_losses(rest, (0.8,), "cswap")
    own = told[[name for name in told if name.startswith("resnet20")]].to_numpy()
    assert own == pytest.approx(0.115, abs=0.07)


def test_another_machine_changes_the_latency_and_nothing_else(model):
    asked = {"network": "lenet5", "method": "path", "ratio": 0.7, "checkpoint": 2}
    fast, slow = (model.counterfactual(**asked, machine=f"machine-{k}") for k in "ab")
    assert slow["latency_ms"].value / fast["latency_ms"].value == pytest.approx(SLOWER, rel=0.06)
    assert slow["latency_ms"].low > fast["latency_ms"].high
    for outcome in ("accuracy_loss", "memory_bytes"):
        assert slow[outcome].value == pytest.approx(fast[outcome].value, rel=1e-9)
    # lenet300 never ran on machine-b; what lenet5 says of it carries over.
    carried = model.counterfactual(network="lenet300", method="l1", ratio=0.5, machine="machine-b")
    here = model.counterfactual(network="lenet300", method="l1", ratio=0.5)
    factor = carried["latency_ms"].value / here["latency_ms"].value
    assert factor == pytest.approx(SLOWER, rel=0.1)


# ---- sizes ---------------------------------------------------------------------------------------


def own_row(table: pd.DataFrame, ratio: float) -> pd.Series:
    rows = table[(table["architecture"] == "lenet5") & (table["checkpoint"] == 1)]
    return rows[(rows["method"] == "l1") & (rows["ratio"] == ratio)].iloc[0]


def test_sizes_of_a_cell_that_was_run_are_the_recorded_ones(model, table):
    row = own_row(table, 0.6)
    answer = model.counterfactual(network="lenet5", ratio=0.6, method="l1", checkpoint=1)
    assert answer.sizes_exact and answer.sizes_source == "this network's own trial"
    for name in ("parameters", "macs", "achieved_ratio"):
        assert answer.sizes[name] == row[name]
    assert answer.factual["trial"] == row["trial"]
    other = {"machine-a": "machine-b", "machine-b": "machine-a"}[row["machine"]]
    same = model.counterfactual(
        network="lenet5", ratio=0.6, method="l1", checkpoint=1, machine=row["machine"]
    )
    assert same["latency_ms"].observed == row["latency_ms"]
    assert "recorded" in same.sentence
    elsewhere = model.counterfactual(
        network="lenet5", ratio=0.6, method="l1", checkpoint=1, machine=other
    )
    assert elsewhere["latency_ms"].observed is None and "recorded" not in elsewhere.sentence


def test_sizes_between_ratios_are_on_the_networks_own_line(model, table):
    low, high = own_row(table, 0.4), own_row(table, 0.6)
    answer = model.counterfactual(network="lenet5", ratio=0.55, method="l1", checkpoint=1)
    for name in ("parameters", "macs"):
        assert answer.sizes[name] == pytest.approx(0.25 * low[name] + 0.75 * high[name])
    assert not answer.sizes_exact and "0.4 and 0.6" in answer.sizes_source
    assert answer.factual["trial"] == high["trial"]
    # The memory is theirs, too, whatever a model of it would say.
    memory = answer["memory_bytes"]
    assert memory.value == pytest.approx(0.25 * low["memory_bytes"] + 0.75 * high["memory_bytes"])
    assert memory.low < memory.value < memory.high
    exact = model.counterfactual(network="lenet5", ratio=0.6, method="l1", checkpoint=1)
    assert exact["memory_bytes"].value == pytest.approx(high["memory_bytes"])


def test_memory_between_ratios_is_covered_where_it_falls_in_steps():
    rng = np.random.default_rng(3)
    rows = [
        {
            "trial": 1000 * c + k,
            "architecture": "lenet5",
            "checkpoint": c,
            "method": "l1",
            "ratio": ratio,
            "accuracy_loss": 0.05 * ratio**2 + 0.002 * rng.standard_normal(),
            "parameters": 60_000 * (1 - ratio),
            "memory_bytes": 4 * 60_000 * (1 - ratio) + 8_000 * round(12 * (1 - ratio) ** 2),
        }
        for c in range(6)
        for k, ratio in enumerate(np.linspace(0, 0.9, 10))
    ]
    asked = pd.DataFrame([row for row in rows if row["trial"] % 1000 in (3, 6)])
    known = pd.DataFrame([row for row in rows if row["trial"] % 1000 not in (3, 6)])
    fitted = CounterfactualModel.fit(known, replay_share=0)
    answers = replay_answers(fitted, asked)
    memory = answers[answers["outcome"] == "memory_bytes"]
    assert memory["refused"].eq("").all()
    inside = memory["actual"].between(memory["low"], memory["high"])
    assert inside.mean() > 0.85
    assert ((memory["high"] - memory["low"]) / memory["value"]).max() < 0.3


def test_sizes_are_never_those_of_another_architecture(model, table):
    answer = model.counterfactual(network="lenet300", ratio=0.5, method="l1")
    rows = table[(table["architecture"] == "lenet300") & (table["ratio"] == 0.5)]
    assert answer.sizes["macs"] == pytest.approx(rows[rows["method"] == "l1"]["macs"].mean())
    assert answer.sizes_source.startswith("3 networks of this architecture")


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"network": "vgg", "ratio": 0.5}, UnknownNameError, "known: lenet300, lenet5"),
        ({"ratio": 0.5, "method": "l1"}, InvalidArgumentError, "say which: lenet300, lenet5"),
        ({"network": "lenet5", "ratio": 0.5, "method": "pat"}, UnknownNameError, "'path'"),
        ({"network": "lenet5", "ratio": 0.5, "dataset": "mnist"}, UnknownNameError, "digits"),
        ({"network": "lenet5", "ratio": 0.5, "machine": "unseen"}, UnknownNameError, "machine-b"),
        ({"network": "lenet5", "ratio": 0.5, "shift": "fog:3"}, UnknownNameError, "known: none"),
        ({"network": "lenet5", "ratio": 0.5, "checkpoint": 9}, UnknownNameError, "0, 1, 2, 3"),
        ({"network": "lenet5", "ratio": 0.95, "method": "l1"}, InvalidArgumentError, "0 to 0.9"),
        ({"network": "lenet300", "ratio": 0.9, "method": "l1"}, InvalidArgumentError, "0 to 0.7"),
        ({"network": "lenet5", "ratio": math.nan, "method": "l1"}, InvalidArgumentError, "nan"),
        ({"network": "lenet5", "ratio": "0.5", "method": "l1"}, InvalidArgumentError, "number"),
        ({"network": "lenet5", "method": "l1"}, InvalidArgumentError, "ratio: the network has"),
        ({"network": "lenet5", "ratio": 0.5}, InvalidArgumentError, "say which: l1, path, random"),
        ({"network": "lenet5"}, InvalidArgumentError, "at least one of them, got none"),
    ],
)
def test_questions_without_support_are_refused(model, asked, error, words):
    with pytest.raises(error, match=re.escape(words)):
        model.counterfactual(**asked)


def test_a_machine_that_shares_no_network_with_the_others_is_refused():
    apart = simulate(0, checkpoints=2, ratios=(0.0, 0.5, 0.8))
    apart = pd.concat(
        [apart, apart.assign(architecture="vgg11", machine="machine-z")], ignore_index=True
    ).assign(trial=range(2 * len(apart)))
    model = CounterfactualModel.fit(apart, replay_share=0)
    with pytest.raises(InvalidArgumentError, match="no network ran both on 'machine-z'"):
        model.counterfactual(network="lenet5", ratio=0.5, method="l1", machine="machine-z")
    with pytest.raises(InvalidArgumentError, match="count: expected 1 to"):
        cells_to_rerun(model, count=10**6)


def test_wrong_tables_and_arguments():
    trials = simulate(0, checkpoints=2, ratios=(0.0, 0.5))
    with pytest.raises(RecordError, match="expected one of the columns accuracy_loss"):
        CounterfactualModel.fit(trials[["checkpoint", "ratio"]])
    with pytest.raises(RecordError, match="missing columns checkpoint"):
        CounterfactualModel.fit(trials.drop(columns="checkpoint"))
    with pytest.raises(InvalidArgumentError, match="replay_share: expected 0 to"):
        CounterfactualModel.fit(trials, replay_share=0.9)
    with pytest.raises(InvalidArgumentError, match="seed: expected an integer"):
        CounterfactualModel.fit(trials, seed=-1)


def test_too_few_trials_have_no_interval_and_say_so():
    trials = simulate(0, checkpoints=2, ratios=(0.0, 0.5, 0.8), methods=("l1",))
    trials = trials[["checkpoint", "ratio", "accuracy_loss"]]
    answer = CounterfactualModel.fit(trials).counterfactual(ratio=0.5)
    assert math.isfinite(answer["accuracy_loss"].value)
    assert math.isnan(answer["accuracy_loss"].low) and math.isnan(answer["accuracy_loss"].high)
    assert "no interval: fewer than 19 trials" in answer.sentence
    assert answer.to_dict()["predictions"][0]["low"] is None


# ---- replay --------------------------------------------------------------------------------------


def test_the_replay_check_is_published_with_every_answer(model, table):
    answer = model.counterfactual(network="lenet5", ratio=0.6, method="l1")
    assert answer.replay == model.replay
    assert {each.outcome for each in model.replay} == set(model.calibrated.structure.outcomes)
    for each in model.replay:
        assert each.n + each.n_refused == round(0.1 * len(table))
        assert each.mean_absolute_error > 0 and each.coverage >= 0.7
    assert "Replay check" in answer.summary()
    assert json.loads(json.dumps(answer.to_dict()))["replay"][0]["n"] == model.replay[0].n


def test_cells_to_rerun_and_their_comparison(model, table):
    cells = cells_to_rerun(model, seed=3)
    assert len(cells) == round(0.1 * len(table)) and (cells["trial"] >= 0).all()
    assert cells.equals(cells_to_rerun(model, seed=3))
    assert not cells.equals(cells_to_rerun(model, seed=4))
    again = table.set_index("trial").loc[cells["trial"]].reset_index()
    rerun = again.assign(accuracy_loss=again["accuracy_loss"] + 1.0)
    found = {each.outcome: each for each in replay_error(model, rerun)}
    # The recorded trials of these cells are not used: a loss that is off by 1 is off by about 1.
    assert found["accuracy_loss"].mean_absolute_error == pytest.approx(1.0, abs=0.02)
    assert found["accuracy_loss"].coverage == 0.0 and found["latency_ms"].coverage > 0.7


def test_cells_between_the_levels_are_cells_of_a_method_that_nobody_ran(model, table):
    cells = cells_to_rerun(model, count=60, between=0.5, seed=1)
    moved = cells[cells["trial"] < 0]
    assert len(moved) == 30 and len(cells) == 60
    for row in moved.itertuples():
        own = table[(table["architecture"] == row.architecture) & (table["method"] == row.method)]
        assert own["ratio"].min() < row.ratio < own["ratio"].max()
        assert (own["ratio"] - row.ratio).abs().min() > 0.01
    with pytest.raises(InvalidArgumentError, match="between: expected a fraction"):
        cells_to_rerun(model, between=1.5)


def test_answers_tell_row_by_row_what_was_refused_and_leave_out_foreign_latencies(model, table):
    rows = table.iloc[[0, 1, 2]].assign(
        machine=["machine-z", *table["machine"][1:3]], ratio=[*table["ratio"][:2], 0.99]
    )
    long = replay_answers(model, rows)
    answers = long.set_index(["row", "outcome"])
    assert math.isnan(answers.loc[(0, "latency_ms"), "actual"])
    assert answers.loc[(0, "accuracy_loss"), "actual"] == rows["accuracy_loss"].iloc[0]
    assert "ratio: expected" in answers.loc[(2, "accuracy_loss"), "refused"]
    assert math.isnan(answers.loc[(2, "accuracy_loss"), "value"])
    found = {each.outcome: each for each in summarised(long)}
    assert (found["accuracy_loss"].n, found["latency_ms"].n) == (2, 1)
    assert {each.n_refused for each in found.values()} == {1}


@pytest.mark.parametrize(
    ("inside", "words"), [(100, "wider than need be"), (95, "may well hold"), (80, "too narrow")]
)
def test_the_verdict_on_a_coverage(inside, words):
    found = Replay("latency_ms", 100, 0.1, inside / 100)
    low, high = found.coverage_interval
    assert low <= inside / 100 <= high and words in found.verdict
    assert Replay("latency_ms", 5, 0.1, math.nan).verdict == ""


# ---- root causes ---------------------------------------------------------------------------------


def test_root_cause_of_an_accident_is_the_trial_itself(table):
    broken = table.copy()
    row = broken.index[(broken["ratio"] == 0.7) & (broken["architecture"] == "lenet5")][4]
    broken.loc[row, "latency_ms"] *= 3
    model = CounterfactualModel.fit(broken, replay_share=0)
    found = model.attribute(int(broken.loc[row, "trial"]), "latency_ms")
    assert found.unexpected and found.causes[0].cause == "trial"
    assert found.value == broken.loc[row, "latency_ms"]
    assert sum(c.contribution for c in found.causes) == pytest.approx(found.value - found.expected)
    assert all(c.low <= c.contribution <= c.high for c in found.causes)
    assert "it is unexpected" in found.sentence and "latency" in found.sentence
    assert {c.cause for c in found.causes} >= {"ratio", "method", "machine", "sizes", "network"}


def test_root_causes_of_a_bad_network_and_of_heavy_pruning(model, table):
    rows = table[(table["architecture"] == "lenet5") & (table["method"] == "l1")]
    first = rows[(rows["checkpoint"] == 0) & (rows["ratio"] == 0.2)].iloc[0]
    found = AnalysisResult("default", "ratio", "accuracy_loss", 0.0, (0.0, 0.0)).attribute(
        first.to_dict(), table
    )
    shares = {cause.cause: cause for cause in found.causes}
    assert shares["network"].low > 0.02 and shares["ratio"].high < 0
    with pytest.raises(UnknownNameError, match="outcome"):
        model.attribute(0, "accuracy")
    with pytest.raises(InvalidArgumentError, match="row: expected the number"):
        model.attribute(10**6)
    with pytest.raises(RecordError, match="row: missing"):
        model.attribute({"ratio": 0.5})


def test_arrow_strengths_come_with_intervals(model):
    found = {each.cause: each for each in model.arrow_strengths("latency_ms")}
    assert {"macs", "machine", "architecture"} <= set(found)
    assert found["machine"].low > found["method"].high
    assert all(0 <= each.low <= each.strength <= each.high for each in found.values())


# ---- the machinery -------------------------------------------------------------------------------


def test_same_seed_same_numbers_and_the_global_generators_stay_as_they_were():
    from dowhy.gcm import config

    trials = simulate(5, checkpoints=3, ratios=(0.0, 0.4, 0.8), methods=("path", "l1"))
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    before, bars = trials.copy(deep=True), config.show_progress_bars
    first, again = (
        AnalysisResult("default", "ratio", "accuracy_loss", 0.0, (0.0, 0.0)).counterfactual(
            trials, ratio=0.6, method="path", checkpoint=1
        )
        for _ in range(2)
    )
    assert isinstance(first, Counterfactual) and first.to_dict() == again.to_dict()
    assert (random.random(), np.random.random()) == expected
    assert config.show_progress_bars == bars
    pd.testing.assert_frame_equal(trials, before)


def test_models_share_no_graph(model):
    structures = (model.calibrated.structure, *model.calibrated.draws[:3])
    mechanisms = [each.mechanism("accuracy_loss") for each in structures]
    assert len({id(each) for each in mechanisms}) == len(mechanisms)
    assert len({id(each.scm.graph) for each in structures}) == len(structures)
