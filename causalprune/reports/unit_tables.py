"""Per-unit tables as a report reads and tells them; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import AnalysisResult, UnitEffects, unit_effects
from causalprune.analysis.results import load_analyses
from causalprune.analysis.unit_analysis import (
    ANALYSIS_FILE,
    AUDIT_FILE,
    FACTS_FILE,
    UnitTables,
    analyze_unit_tables,
    masked_layers,
    recognised,
)
from causalprune.analysis.wording import amount, name_of, span
from causalprune.errors import RecordError
from causalprune.experiments.records import read_json
from causalprune.reports.numbers import count, listed
from causalprune.reports.score_tables import ScoreTable

MAX_AUDITED = 40


@dataclass(frozen=True, eq=False)
class UnitReport:
    """A per-unit table, what was estimated from it, and the audit of a plan, if there was one.

    Attributes
    ----------
    effects : UnitEffects
    result : AnalysisResult
    facts : Mapping
        How it was made; empty for a bare table.
    audited : DataFrame
        One row an audited unit; empty without an audit.
    """

    effects: UnitEffects
    result: AnalysisResult
    facts: Mapping[str, Any] = field(default_factory=dict)
    audited: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def audit(self) -> Mapping[str, Any]:
        """What the audit found; empty without one."""
        return self.facts.get("audit") or {}

    @property
    def scores(self) -> ScoreTable:
        """The effects of all units, exact or predicted, in the form in which scores are drawn."""
        frame = self.effects.units.copy()
        for name in ("low", "high"):
            frame[name] = frame[name].where(np.isfinite(frame[name]))
        frame["importance"], frame["category"] = frame["effect"].abs(), ""
        return ScoreTable(
            "",
            "exact ablation of some, predictions of the others",
            self.effects.measured,
            frame,
            confidence=self.effects.unit_confidence,
        )


def read_unit_report(source: Path | pd.DataFrame, tables: UnitTables) -> UnitReport:
    """Read a folder of ``causalprune units``, or make what it holds from a bare table.

    Raises
    ------
    RecordError
        If a file is broken.
    """
    folder = source if isinstance(source, Path) and source.is_dir() else None
    facts: Mapping[str, Any] = {}
    if folder is not None and (folder / FACTS_FILE).is_file():
        facts = read_json(folder / FACTS_FILE)
    if tables.units is None:
        raise RecordError("source: expected the per-unit table beside the random masks")
    levels = {k: facts[k] for k in ("confidence", "unit_confidence", "seed") if k in facts}
    effects = unit_effects(tables.units, **levels)
    if folder is None or not (folder / ANALYSIS_FILE).is_file():
        return UnitReport(effects, analyze_unit_tables(tables), facts)
    audited = folder / AUDIT_FILE
    return UnitReport(
        effects,
        load_analyses(folder / ANALYSIS_FILE)[0],
        facts,
        pd.read_csv(audited) if audited.is_file() else pd.DataFrame(),
    )


def tables_of(source: Any) -> UnitTables | None:
    """Return the per-unit table that a source holds; None for any other source."""
    found = recognised(source)
    return found if found is not None and found.units is not None else None


def headline(units: UnitReport) -> str:
    """Say the main result in one sentence."""
    measured = units.effects.measured
    if len(units.effects.layers) < 2:
        return units.result.headline.partition(" (")[0]
    top = max(units.effects.layers, key=lambda row: abs(row.mean))
    return (
        f"Units of {top.layer} matter most: removing one alone changes the {name_of(measured)} by "
        f"{amount(measured, top.mean)} on average"
    )


def lead(units: UnitReport) -> list[str]:
    """Say what was measured, and what the audit of the plan says."""
    effects, measured = units.effects, units.effects.measured
    told = [units.result.headline]
    clear = [row for row in effects.layers if not row.low <= 0 <= row.high]
    told.append(
        f"In {len(clear)} of {count(len(effects.layers), 'layer')} the mean effect could be told "
        "from zero."
    )
    strong = sorted(effects.layers, key=lambda row: -abs(row.mean))[:3]
    if len(effects.layers) > 3:
        told.append(
            "The strongest are "
            + listed(
                [
                    f"{row.layer} ({amount(measured, row.mean)}, "
                    f"{span(measured, row.low, row.high)})"
                    for row in strong
                ]
            )
            + "."
        )
    whole = [f for f in units.result.findings if f.question == "any layer, others removed too"]
    told += [item.sentence for item in whole]
    if units.audit:
        told.append(f"{_capital(str(units.audit['sentence']))}.")
    return told


def sure(units: UnitReport) -> list[str]:
    """Say what the intervals promise."""
    return [
        f"{_capital(units.effects.sentence)}.",
        f"{_capital(units.effects.coverage)}.",
    ]


def doubts(units: UnitReport) -> list[str]:
    """Say what is not known."""
    told = [f"{_capital(note)}." for note in units.effects.notes]
    agrees = _agrees(units.audit)
    if agrees is False:
        told.append("The audit contradicts what was predicted of the units that the plan removes.")
    return told


def limits(units: UnitReport) -> list[str]:
    """Say what the table does not show."""
    told = [
        "A unit's effect is that of removing it alone; several together may matter more, or less, "
        "than their sum.",
        "Effects are of these images and these weights; intervals are over which units were "
        "ablated, not over images.",
    ]
    if not masked_layers(units.result):
        told.append(
            "No random masks were drawn (causalprune units --masks), so nothing is known of units "
            "while others are missing."
        )
    if not units.audit:
        told.append(
            "No plan was audited (causalprune units --ratio): units that are selected because "
            "their predicted effects are small do more than predicted, on average."
        )
    return told


def settings(units: UnitReport) -> dict[str, Any]:
    """How it was made, for the list at the end."""
    left_out = ("columns", "machine", "audit", "coverage")
    return {key: value for key, value in units.facts.items() if key not in left_out}


def audit_table(units: UnitReport) -> dict[str, Any] | None:
    """Return the audit's sentence and its units, as the template takes them."""
    if not units.audit or units.audited.empty:
        return None
    measured = units.effects.measured
    rows = [
        (
            str(row["layer"]),
            str(row["unit"]),
            amount(measured, float(row["predicted"])),
            amount(measured, float(row["effect"])),
            amount(measured, float(row["se"])),
        )
        for row in units.audited.head(MAX_AUDITED).to_dict("records")
    ]
    return {
        "sentence": f"{_capital(str(units.audit['sentence']))}.",
        "agrees": _agrees(units.audit),
        "columns": ("layer", "unit", "predicted", "exact", "standard error over images"),
        "rows": rows,
        "more": max(0, len(units.audited) - MAX_AUDITED),
    }


def _agrees(audit: Mapping[str, Any]) -> bool | None:
    low, high, predicted = (audit.get(key) for key in ("low", "high", "predicted"))
    if low is None or high is None or predicted is None:
        return None
    return bool(low <= predicted <= high)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
