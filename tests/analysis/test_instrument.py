"""The target as an instrument: a hidden cause that least squares falls for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from simulated_trials import simulate

from causalprune.analysis.instrument import instrument
from causalprune.analysis.tables import Trials, completed_trials


def _planted(seed: int, strength: float = 1.0) -> Trials:
    """0.01 of loss for each +0.1 achieved; something hidden moves both."""
    rng = np.random.default_rng(seed)
    frame = simulate(seed, checkpoints=10)
    hidden = rng.standard_normal(len(frame))
    frame["achieved_ratio"] = strength * frame["ratio"] + 0.1 * hidden
    frame["accuracy_loss"] = 0.1 * frame["achieved_ratio"] + 0.02 * hidden
    frame["accuracy_loss"] += 0.01 * rng.standard_normal(10)[frame["checkpoint"]]
    return _trials(frame)


def _trials(frame: pd.DataFrame) -> Trials:
    return completed_trials(frame, ("accuracy_loss",))


def test_the_instrument_covers_what_least_squares_misses() -> None:
    hits, fooled = [], []
    for seed in range(40):
        first, second = instrument(_planted(seed))
        hits.append([first.low <= 0.1 <= first.high, second.low <= 0.01 <= second.high])
        least = float(second.sentence.split("least squares says ")[1].split(" ")[0]) / 100
        fooled.append(least > second.high)
        assert first.outcome == "achieved_ratio" and "far from weak" in first.sentence
        assert "through the achieved ratio alone" in second.sentence
    assert np.all(np.mean(hits, axis=0) >= 0.88)
    assert np.mean(fooled) > 0.9


def test_a_weak_instrument_is_refused() -> None:
    first, second = instrument(_planted(50, strength=0.01))
    assert "weak" in first.sentence and first.estimable
    assert "weak instrument" in second.reason and np.isnan(second.effect)


def test_targets_that_fix_what_is_achieved_leave_least_squares() -> None:
    frame = simulate(51, checkpoints=6)
    frame["achieved_ratio"] = frame["ratio"]
    first, second = instrument(_trials(frame))
    assert "over a million" in first.sentence and abs(first.effect - 0.1) < 1e-9
    assert second.low < second.effect < second.high


def test_what_is_missing_is_named() -> None:
    frame = simulate(52)
    (found,) = instrument(_trials(frame.drop(columns="achieved_ratio")))
    assert "no column achieved_ratio" in found.reason
    (found,) = instrument(_trials(frame.assign(ratio=0.5)))
    assert "prune ratio never varies" in found.reason
    (found,) = instrument(_trials(frame.loc[frame["checkpoint"] == 0]))
    assert "one trained network" in found.reason


def test_an_imported_target_may_share_causes() -> None:
    frame = simulate(53).drop(columns=["assignment"])
    assert "Nobody drew the target" in instrument(_trials(frame))[-1].sentence
