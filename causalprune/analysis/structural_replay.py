"""Trials beside the answers of a structural model that has not seen them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from causalprune.analysis.counterfactual_results import Replay
from causalprune.analysis.structural_intervals import Calibrated, predict
from causalprune.analysis.structural_support import Question, ask
from causalprune.errors import InvalidArgumentError

__all__: list[str] = []

ANSWER_COLUMNS = ("row", "outcome", "actual", "value", "low", "high", "refused")


def answers_to(frame: pd.DataFrame, calibrated: Calibrated, rows: pd.DataFrame) -> pd.DataFrame:
    """Predict trials as counterfactuals of their networks, one line a trial and outcome.

    Parameters
    ----------
    frame : DataFrame
        Trials that the model was fitted to.
    calibrated : Calibrated
        The model.
    rows : DataFrame
        Trials to predict.

    Returns
    -------
    DataFrame
        Columns `ANSWER_COLUMNS`: position of the trial in `rows`, outcome, what the trial showed
        (NaN: nothing, or a latency on a machine that `frame` does not know), the prediction and
        its 95 % interval, and why there is none (empty where there is one).
    """
    questions: list[Question] = []
    asked: list[int] = []
    reasons: dict[int, str] = {}
    records = rows.to_dict("records")
    machines = set(frame["machine"].astype(str)) if "machine" in frame else set()
    for position, row in enumerate(records):
        if machines and str(row.get("machine")) not in machines:
            # What it costs there nothing tells; what it loses is the same on every machine.
            row.update(machine=None, latency_ms=math.nan)
        try:
            questions.append(ask(frame, **_question_of(row)))
            asked.append(position)
        except InvalidArgumentError as error:
            reasons[position] = str(error)
    parts = [_refused(calibrated.structure.outcomes, reasons)]
    if questions:
        cells = pd.DataFrame([{**each.cell, **each.sizes.columns()} for each in questions])
        bands = predict(calibrated, cells, [q.checkpoints for q in questions], named=True)
        for name, band in bands.items():
            actual = [float(records[position].get(name, math.nan)) for position in asked]
            found = {"row": asked, "outcome": name, "actual": actual, "refused": ""}
            parts.append(
                pd.DataFrame({**found, "value": band.value, "low": band.low, "high": band.high})
            )
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table[list(ANSWER_COLUMNS)]


def summarised(answers: pd.DataFrame) -> tuple[Replay, ...]:
    """Return error and coverage by outcome of what `answers_to` returns."""
    found = []
    for name, own in answers.groupby("outcome", sort=False):
        n_refused = int(own["refused"].ne("").sum())
        known = own[own["refused"].eq("") & own["actual"].notna()]
        error = (known["value"] - known["actual"]).abs()
        inside = known["actual"].between(known["low"], known["high"])
        there = len(known) > 0 and bool(known["low"].notna().all())
        coverage = float(inside.mean()) if there else math.nan
        found.append(Replay(str(name), len(known), float(error.mean()), coverage, n_refused))
    return tuple(found)


def _refused(outcomes: Sequence[str], reasons: Mapping[int, str]) -> pd.DataFrame:
    lines = [
        {"row": position, "outcome": name, "refused": reason}
        for name in outcomes
        for position, reason in reasons.items()
    ]
    numbers = ("actual", "value", "low", "high")
    return pd.DataFrame(lines).assign(**dict.fromkeys(numbers, math.nan))


def _question_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    asked = {
        "network": row.get("architecture"),
        "dataset": row.get("dataset"),
        "method": row.get("method"),
        "machine": row.get("machine"),
        "shift": row.get("shift"),
    }
    said = {name: None if value is None else str(value) for name, value in asked.items()}
    return {**said, "ratio": float(row["ratio"]), "checkpoint": row["checkpoint"]}
