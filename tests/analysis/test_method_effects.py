"""Methods within networks: planted truth, several comparisons, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_trials import METHODS, RATIOS, confounded, drawn, simulate, true_loss

from causalprune.analysis.method_effects import LEARNER, PAIRED, method_effects
from causalprune.analysis.tables import Trials, completed_trials
from causalprune.errors import UnknownNameError

# As simulate() plants it: path, l1 and random from the best to the worst.
QUALITY = {"path": 0.7, "l1": 1.0, "random": 1.3}


def _trials(frame: pd.DataFrame) -> Trials:
    return completed_trials(frame, ("ratio", "accuracy_loss"))


def _truth(contrast: str) -> float:
    method, control = contrast.split(" instead of ")
    curve = np.mean([true_loss(ratio) for ratio in RATIOS if ratio])
    return float(curve) * (QUALITY[method] - QUALITY[control])


def test_paired_differences_cover_the_truth() -> None:
    hits = []
    for seed in range(400, 408):
        found = method_effects(_trials(simulate(seed, checkpoints=8)))
        assert [item.estimator for item in found] == [PAIRED, PAIRED, LEARNER, LEARNER]
        hits += [item.low <= _truth(item.contrast) <= item.high for item in found]
    assert np.mean(hits) >= 0.85


def test_a_full_grid_makes_both_the_same() -> None:
    found = method_effects(_trials(simulate(1, checkpoints=9)))
    for paired, learnt in zip(found[:2], found[2:], strict=True):
        assert learnt.effect == pytest.approx(paired.effect, rel=1e-9)
        assert learnt.low == pytest.approx(paired.low, rel=1e-6)


def test_drawn_methods_are_weighed_by_their_propensity() -> None:
    hits = []
    for seed in range(500, 508):
        found = method_effects(_trials(drawn(seed, draws=24)), control="l1")
        learnt = [item for item in found if item.estimator == LEARNER]
        assert [item.contrast for item in learnt] == ["path instead of l1", "random instead of l1"]
        hits += [item.low <= _truth(item.contrast) <= item.high for item in learnt]
    assert np.mean(hits) >= 0.83


def test_equal_methods_are_rarely_told_apart_although_there_are_many() -> None:
    alarms = []
    for seed in range(50):
        frame = simulate(seed, checkpoints=6, methods=("l1",))
        rng = np.random.default_rng(7000 + seed)
        again = [
            frame.assign(
                method=name,
                accuracy_loss=frame["accuracy_loss"] + 0.01 * rng.normal(size=len(frame)),
            )
            for name in ("a", "b", "c", "d", "e")
        ]
        trials = _trials(pd.concat(again))
        trials = Trials(trials.frame, 0, 0, designed=False)  # without the learner: it takes longer
        found = [item for item in method_effects(trials) if item.estimator == PAIRED]
        assert all("after Holm's correction for 4 comparisons" in item.sentence for item in found)
        smallest = min(
            float(item.sentence.split("p = ")[1].split(" ")[0]) if "p = " in item.sentence else 0.0
            for item in found
        )
        alarms.append(smallest < 0.05)
    assert np.mean(alarms) <= 0.10


def test_unpruned_trials_are_no_evidence_about_methods() -> None:
    frame = simulate(2, checkpoints=5)
    whole = method_effects(_trials(frame))
    pruned = method_effects(_trials(frame.loc[frame["ratio"] > 0]))
    assert whole == pruned


def test_one_method_has_nothing_beside_it() -> None:
    (found,) = method_effects(_trials(simulate(3, methods=("l1",))))
    assert "only l1" in found.reason and np.isnan(found.effect)
    (found,) = method_effects(_trials(simulate(3).drop(columns="method")))
    assert "no method" in found.reason


def test_methods_that_never_met_are_refused() -> None:
    frame = simulate(4, checkpoints=6)
    alone = frame.loc[(frame["method"] != "path") | (frame["checkpoint"] == 0)]
    found = {(item.estimator, item.contrast): item for item in method_effects(_trials(alone))}
    assert "fewer than two networks" in found[PAIRED, "path instead of random"].reason
    assert found[PAIRED, "l1 instead of random"].estimable
    assert "learnt from nothing" in found[LEARNER, "path instead of random"].reason


def test_propensities_that_nobody_knows_are_refused() -> None:
    found = method_effects(_trials(confounded(5)))
    assert "their propensities are not known" in found[-1].reason
    few = method_effects(_trials(simulate(6, checkpoints=2)))
    assert few[0].estimable and "2 networks are too few" in few[-1].reason


def test_an_unknown_control_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"control.*'l2'"):
        method_effects(_trials(simulate(7)), control="l2")
    assert set(METHODS) == set(QUALITY)
