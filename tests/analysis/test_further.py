"""All questions of a table: which are asked, within which time, without which package."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from simulated_trials import confounded, simulate

from causalprune.analysis.further import STEPS, further_findings
from causalprune.analysis.tables import completed_trials


def _trials(frame, outcome: str = "accuracy_loss"):
    return completed_trials(frame, ("ratio", outcome))


@pytest.mark.parametrize(
    ("outcome", "paths"), [("accuracy_loss", False), ("latency_ms", True), ("macs", False)]
)
def test_every_question_that_makes_sense_is_asked(outcome: str, paths: bool) -> None:
    calls: list[None] = []
    found = further_findings(
        _trials(simulate(1, checkpoints=9), outcome),
        "ratio",
        outcome,
        advance=lambda: calls.append(None),
    )
    questions = {item.question for item in found}
    expected = {"few networks", "by method", "target to achieved", "dose-response", "method"}
    assert questions >= expected | {"where the effect is large"}
    assert ("directly" in questions) == paths
    assert len(calls) == STEPS
    for item in found:
        assert item.estimable == bool(item.sentence) == bool(np.isfinite(item.effect))
        assert not item.estimable or item.low <= item.effect <= item.high


def test_smallest_tables_get_reasons_and_no_numbers_from_nowhere() -> None:
    frame = simulate(2, checkpoints=1, methods=("l1",)).iloc[:5]
    assert all(item.reason for item in further_findings(_trials(frame)))


def test_imported_tables_are_answered_with_their_doubts() -> None:
    found = further_findings(_trials(confounded(3)), adjustment=("method",))
    learnt = [item for item in found if item.question == "dose-response"]
    assert all("treatment learnt" in item.estimator for item in learnt)
    assert any("propensities are not known" in item.reason for item in found)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "econml", None)
    monkeypatch.setitem(sys.modules, "econml.dml", None)
    monkeypatch.setitem(sys.modules, "econml.dr", None)
    found = further_findings(_trials(simulate(4, checkpoints=9)))
    reasons = [item.reason for item in found if item.question in ("dose-response", "method")]
    assert all("causalprune[analysis]" in reason for reason in reasons)
    assert any(item.estimable for item in found if item.question == "by method")
