"""Effects by declared levels, and the forest's check on networks it has not seen."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from simulated_trials import RATIOS, simulate, true_loss

from causalprune.analysis.causal_forest import causal_forest
from causalprune.analysis.heterogeneity import effects_by_level, heterogeneity
from causalprune.analysis.tables import Trials, completed_trials

SLOPE = 0.1 * np.polyfit(RATIOS, [true_loss(ratio) for ratio in RATIOS], 1)[0]
QUALITY = {"path": 0.7, "l1": 1.0, "random": 1.3}


def _trials(frame: pd.DataFrame) -> Trials:
    return completed_trials(frame, ("ratio", "accuracy_loss"))


def _two_kinds(seed: int, more: float = 0.0, **options: object) -> pd.DataFrame:
    """Half of the networks are of a second architecture, which loses `more` for each ratio."""
    frame = simulate(seed, **options)
    second = frame["checkpoint"] >= frame["checkpoint"].max() / 2
    frame["architecture"] = np.where(second, "wide", "lenet5")
    frame["accuracy_loss"] += more * second * frame["ratio"]
    return frame


def test_effects_of_levels_cover_the_truth() -> None:
    hits = []
    for seed in range(600, 615):
        found = heterogeneity(_trials(_two_kinds(seed, 0.05, checkpoints=12)))
        assert {item.question for item in found} == {"by architecture", "by method"}
        for item in found:
            level = item.contrast.rsplit(" ", 1)[1]
            # Of two kinds of networks, the methods' intervals hold what kinds differ by, too.
            truth = {"lenet5": SLOPE, "wide": SLOPE + 0.005}
            truth |= {name: quality * SLOPE + 0.0025 for name, quality in QUALITY.items()}
            hits.append(item.low <= truth[level] <= item.high)
            assert item.n_clusters == (6 if level in ("lenet5", "wide") else 12)
            assert "Levels differ" in item.sentence and "Holm" in item.sentence
    assert np.mean(hits) >= 0.88


def test_no_difference_is_found_as_often_as_the_level_says() -> None:
    alarms: dict[str, list[bool]] = {"architecture": [], "method": []}
    for seed in range(50):
        frame = _two_kinds(seed, checkpoints=8, methods=("l1", "wt"), size=0.0, ratios=RATIOS[::2])
        own = 0.02 * np.random.default_rng(800 + seed).standard_normal(8)
        frame["accuracy_loss"] += own[frame["checkpoint"]] * frame["ratio"]
        for name, listed in alarms.items():
            listed.append(
                effects_by_level(_trials(frame), "ratio", "accuracy_loss", name)[1] < 0.05
            )
    for listed in alarms.values():
        assert np.mean(listed) <= 0.12


def test_accuracies_under_shifts_are_levels_of_shift() -> None:
    frame = simulate(1, checkpoints=8)
    before = frame["accuracy_before"] - 0.1
    after = before - 2 * frame["accuracy_loss"]
    frame["accuracy_before_by_shift"] = [json.dumps({"fog:3": value}) for value in before]
    frame["accuracy_by_shift"] = [json.dumps({"fog:3": value}) for value in after]
    found = heterogeneity(_trials(frame))
    fog, plain = (item for item in found if item.question == "by shift")
    assert fog.contrast.endswith("fog:3") and plain.contrast.endswith("none")
    assert fog.effect == pytest.approx(2 * plain.effect, rel=1e-9)
    assert "Levels differ" in fog.sentence
    # The methods are told on plain images, as without shifts.
    plain_table = frame.drop(columns=["accuracy_by_shift", "accuracy_before_by_shift"])
    only = heterogeneity(_trials(plain_table))
    assert [item.effect for item in found if item.question == "by method"] == [
        item.effect for item in only
    ]
    elsewhere = heterogeneity(
        completed_trials(frame, ("ratio", "latency_ms")), "ratio", "latency_ms"
    )
    assert {item.question for item in elsewhere} == {"by method"}


def test_levels_of_one_network_or_one_ratio_are_refused() -> None:
    frame = simulate(2, checkpoints=5)
    frame["architecture"] = np.where(frame["checkpoint"] == 0, "lone", "lenet5")
    frame.loc[frame["method"] == "path", "ratio"] = 0.5
    found = {item.contrast.rsplit(" ", 1)[1]: item for item in heterogeneity(_trials(frame))}
    assert "only one network with architecture lone" in found["lone"].reason
    assert "never varies where method is path" in found["path"].reason
    assert found["lenet5"].estimable and "Too few" in found["lenet5"].sentence
    assert found["l1"].estimable


def test_tables_without_levels_have_no_findings() -> None:
    assert heterogeneity(_trials(simulate(3, methods=("l1",)))) == ()


def test_a_layer_column_is_a_modifier() -> None:
    frame = simulate(4, checkpoints=6, methods=("l1",))
    frame["layer"] = np.where(frame.groupby("checkpoint").cumcount() % 2, "conv1", "conv2")
    frame["accuracy_loss"] += 0.2 * (frame["layer"] == "conv2") * frame["ratio"]
    conv1, conv2 = heterogeneity(_trials(frame))
    assert conv1.question == "by layer" and conv2.effect - conv1.effect == pytest.approx(
        0.02, abs=0.01
    )


def test_a_forest_that_is_right_calibrates() -> None:
    trials = _trials(_two_kinds(5, 0.05, checkpoints=12))
    found = causal_forest(trials, seed=1)
    assert [item.contrast.split(", ")[1] for item in found] == [
        f"{name} predicted effects" for name in ("smallest", "middle", "largest")
    ]
    assert found[0].high < found[-1].low
    assert all("The forest calibrates on held-out networks" in item.sentence for item in found)
    assert causal_forest(trials, seed=1) == found


def test_a_forest_of_noise_does_not_calibrate() -> None:
    noise = [causal_forest(_trials(_two_kinds(s, checkpoints=12, size=0.0))) for s in range(4)]
    # One in forty does so by chance.
    assert sum("does not calibrate" in found[0].sentence for found in noise) >= 3


def test_forests_of_few_trials_are_refused() -> None:
    (found,) = causal_forest(_trials(simulate(6, checkpoints=7)))
    assert "147 trials of 7 networks are too few" in found.reason
    (found,) = causal_forest(_trials(simulate(7, checkpoints=20, methods=("l1",))))
    assert "nothing to split on" in found.reason
    flat = simulate(8, checkpoints=10).assign(accuracy_loss=0.1)
    (found,) = causal_forest(_trials(flat))
    assert "never varies" in found.reason
