"""Numbers as words: one place for units, so that report and terminal agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causalprune.analysis.results import AnalysisResult

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"

# Below this many checkpoints a clustered interval rests on its assumptions.
FEW_CLUSTERS = 30

NAMES = {
    "accuracy_loss": "accuracy loss",
    "High_Accuracy_Loss": "share of trials with a high accuracy loss",
    "High_Pruning": "high pruning",
    "latency_ms": "latency",
    "memory_bytes": "memory",
    "ratio": "prune ratio",
}


OF_UNITS = {
    "units": "Removing one unit alone",
    "masks": "With other units missing at random, removing one more unit",
}
"""What was done where no trials were analysed but units or random masks, by preset."""


def name_of(column: str) -> str:
    """Return a column name as a reader would say it."""
    return NAMES.get(column, column.replace("_", " "))


def is_share(outcome: str) -> bool:
    """Whether the outcome is a fraction that reads best in percentage points."""
    return outcome.startswith("accuracy") or outcome == "High_Accuracy_Loss"


def amount(outcome: str, value: float) -> str:
    """Return a difference of the outcome with its unit."""
    if not math.isfinite(value):
        return "not estimable"
    return f"{number(outcome, value)} {unit_of(outcome, value)}".strip()


def number(outcome: str, value: float) -> str:
    """Return a difference of the outcome without its unit."""
    if not math.isfinite(value):
        return DASH
    if outcome == "High_Accuracy_Loss":
        text = f"{100 * value:.1f}"
    else:
        text = f"{100 * value:.2f}" if is_share(outcome) else f"{value:.4g}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def unit_of(outcome: str, value: float = math.nan) -> str:
    """Return the unit of a difference of the outcome."""
    if is_share(outcome):
        return "points"
    for ending, unit in (("_ms", "ms"), ("_bytes", "bytes"), ("_percent", "%"), ("_mhz", "MHz")):
        if outcome.endswith(ending):
            return unit
    return ""


def span(outcome: str, low: float, high: float) -> str:
    """Return an interval of the outcome without its unit."""
    return f"{number(outcome, low)} to {number(outcome, high)}"


def percent(value: float) -> str:
    """Return a fraction as a percentage with sensible digits."""
    if not math.isfinite(value):
        return DASH
    size = abs(100 * value)
    return f"{100 * value:.0f} %" if size >= 10 else f"{100 * value:.2g} %"


def p_text(value: float) -> str:
    """Return a p-value; never a bare zero."""
    return (
        "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"
    )


def derivative(treatment: str, outcome: str, adjustment: tuple[str, ...]) -> str:
    """Return the backdoor estimand as DoWhy writes it, on one line."""
    given = f" | {', '.join(adjustment)}" if adjustment else ""
    return f"dE[{outcome}{given}]/d[{treatment}]"


def headline(result: AnalysisResult) -> str:
    """Return the answer in one sentence."""
    outcome, value = result.outcome, result.estimate
    if not result.estimable:
        return f"The effect of {name_of(result.treatment)} could not be estimated: {result.reason}"
    low, high = result.interval
    if result.preset in OF_UNITS:
        return (
            f"{OF_UNITS[result.preset]} changes the {name_of(outcome)} by {amount(outcome, value)} "
            f"on average ({interval_words(result.interval_kind)} {span(outcome, low, high)})."
        )
    known = math.isfinite(low) and math.isfinite(high)
    interval = f" (95 % interval {span(outcome, low, high)})" if known else ""
    verb = "raises" if value > 0 else "lowers" if value < 0 else "leaves unchanged"
    if result.preset == "iisc" and known and low <= 0 <= high:
        return (
            f"Taken at face value, pruning above the threshold moves the {name_of(outcome)} by "
            f"{amount(outcome, value)}, which DoWhy's own 95 % interval, "
            f"{span(outcome, low, high)}, cannot tell from zero."
        )
    if result.preset == "iisc":
        return (
            f"Taken at face value, pruning above the threshold {verb} the {name_of(outcome)} "
            f"by {amount(outcome, abs(value))}{_flipped(result)}."
        )
    cause = (
        f"Each +{result.step:g} of {name_of(result.treatment)}"
        if result.step != 1
        else f"Each unit of {name_of(result.treatment)}"
    )
    if known and low <= 0 <= high:
        return (
            f"No effect of {name_of(result.treatment)} on {name_of(outcome)} could be shown: "
            f"{amount(outcome, value)} for each +{result.step:g}{interval}."
        )
    if known and value < 0:
        interval = f" (95 % interval {span(outcome, -high, -low)})"
    return f"{cause} {verb} the {name_of(outcome)} by {amount(outcome, abs(value))}{interval}."


def interval_words(kind: str) -> str:
    """Return the level that the kind of an interval begins with, as "95 % interval"."""
    return f"{kind.partition(',')[0]} interval"


def _flipped(result: AnalysisResult) -> str:
    low, high = result.interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if result.estimate < 0:
        low, high = -high, -low
    return f" (DoWhy's own 95 % interval {span(result.outcome, low, high)})"
