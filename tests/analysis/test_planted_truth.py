"""The default pipeline against planted truth, 60 tables of each kind: minutes, not seconds."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_trials import CURVE, simulate
from simulated_truth import intervals_of, judge, null_is_rejected, truths

REPETITIONS = 60

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [CURVE, 0.0], ids=["effect", "none"])
def test_intervals_hold_the_truth_as_often_as_they_say(size: float) -> None:
    tables = [simulate(31_000 + k, checkpoints=6, size=size) for k in range(REPETITIONS)]
    found = [intervals_of(table, size) for table in tables]
    held = {name: np.mean([each[name].covers for each in found]) for name in truths(size)}
    # 95 % less what 60 repetitions scatter by: below 87 % comes once in two hundred.
    assert min(held.values()) >= 0.87, held
    assert np.mean(list(held.values())) <= 0.995, held


def test_the_randomisation_test_keeps_its_level() -> None:
    rejected = sum(null_is_rejected(33_000 + k) for k in range(REPETITIONS))
    # Of 60 tests at 5 %, more than 8 reject once in a hundred.
    assert rejected <= 8


@pytest.mark.parametrize(
    "name",
    ["pure noise", "confounded, no trace", "confounded, quality omitted", "over-controlled"],
)
def test_the_gate_doubts_what_the_three_refuters_pass(name: str) -> None:
    found = [judge(name, 35_000 + k) for k in range(REPETITIONS)]
    assert sum(each.refuters_pass for each in found) >= 0.8 * REPETITIONS
    assert sum(bool(each.doubts) for each in found) >= 0.95 * REPETITIONS


def test_the_gate_leaves_sound_tables_alone() -> None:
    found = [judge("sound", 37_000 + k) for k in range(REPETITIONS)]
    assert sum(bool(each.doubts) for each in found) <= 0.05 * REPETITIONS
    assert sum(each.covers for each in found) >= 0.87 * REPETITIONS
