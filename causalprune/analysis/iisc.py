"""Algorithm 2 of the IISc paper (Ratnawat, Garai, Shekhar, Vaisakh), as it stands there.

CSV -> three thresholded columns -> four-node graph -> identify -> estimate ->
random common cause, data subset, placebo treatment. Kept as a replication; what
is wrong with it is said in the notes of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import identification
from causalprune.analysis.evidence import Refutation
from causalprune.analysis.graphs import iisc_graph
from causalprune.analysis.results import AnalysisResult
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import amount, derivative, number, p_text
from causalprune.errors import InvalidArgumentError

TREATMENT = "High_Pruning"
OUTCOME = "High_Accuracy_Loss"
MEMORY = "High_Memory_Consumption"
NODES = (TREATMENT, OUTCOME, MEMORY, "macs")
SOURCES = {"accuracy": "accuracy", "ratio": "ratio", "memory": "memory_bytes"}
NUMERIC = ("accuracy", "ratio", "memory_bytes", "macs")
SIGNIFICANCE = 0.05

RECONSTRUCTED = (
    "The causal graph is reconstructed: the paper's figure could not be had, and its text treats "
    "memory and FLOPs (MACs here) as common causes of pruning and accuracy loss."
)
DESCENDANTS = (
    "This graph is biased by construction: memory and MACs follow from pruning, they do not cause "
    "it. Adjusting for descendants of the treatment takes part of its effect away."
)


def resolve_thresholds(
    frame: pd.DataFrame, thresholds: Mapping[str, float] | None
) -> dict[str, float]:
    """Fill in X (accuracy), Y (ratio) and Z (memory, bytes); the median where not given."""
    given = dict(thresholds or {})
    unknown = sorted(set(given) - set(SOURCES))
    if unknown:
        raise InvalidArgumentError(
            f"thresholds: expected keys among {', '.join(SOURCES)}, got {', '.join(unknown)}"
        )
    chosen = {}
    for key, column in SOURCES.items():
        value = given.get(key, float(frame[column].median()))
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise InvalidArgumentError(f"thresholds: {key!r} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise InvalidArgumentError(f"thresholds: {key!r} must be finite, got {value!r}")
        chosen[key] = float(value)
    return chosen


def threshold_columns(frame: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """Return a new frame with the paper's three 0/1 columns and ``macs``.

    ``High_Accuracy_Loss``: accuracy below X; ``High_Pruning``: ratio above Y;
    ``High_Memory_Consumption``: memory above Z. Integers, as DoWhy wants them.

    Examples
    --------
    >>> import pandas as pd
    >>> from causalprune.analysis import threshold_columns
    >>> trials = pd.DataFrame({
    ...     "accuracy": [0.9, 0.5], "ratio": [0.2, 0.8], "memory_bytes": [9.0, 3.0],
    ...     "macs": [8.0, 2.0],
    ... })
    >>> cut = {"accuracy": 0.7, "ratio": 0.5, "memory": 5.0}
    >>> threshold_columns(trials, cut).iloc[1].tolist()
    [1.0, 1.0, 0.0, 2.0]
    """
    return pd.DataFrame(
        {
            TREATMENT: (frame["ratio"] > thresholds["ratio"]).astype(int),
            OUTCOME: (frame["accuracy"] < thresholds["accuracy"]).astype(int),
            MEMORY: (frame["memory_bytes"] > thresholds["memory"]).astype(int),
            "macs": frame["macs"].astype(float),
        }
    )


def replicate(
    trials: Trials,
    thresholds: Mapping[str, float] | None,
    seed: int,
    simulations: int,
    advance: Callable[[], None] = lambda: None,
) -> AnalysisResult:
    """Run Algorithm 2 on completed trials."""
    cut = resolve_thresholds(trials.frame, thresholds)
    data = threshold_columns(trials.frame, cut)
    if data[TREATMENT].nunique() < 2:
        raise InvalidArgumentError(
            f"thresholds: 'ratio' = {cut['ratio']:g} puts all {len(data)} trials on one side; "
            f"the ratios run from {trials.frame['ratio'].min():g} to "
            f"{trials.frame['ratio'].max():g}"
        )
    graph = iisc_graph()
    identified = identification.identify(data, graph, TREATMENT, OUTCOME)
    advance()
    common: dict[str, Any] = {
        "preset": "iisc",
        "treatment": TREATMENT,
        "outcome": OUTCOME,
        "step": 1.0,
        "estimand": _estimand(identified.adjustment),
        "graph_name": str(graph.name),
        "nodes": tuple(graph.nodes),
        "edges": tuple(graph.edges),
        "adjustment": identified.adjustment,
        "thresholds": cut,
        "n_trials": len(data),
        "n_failed": trials.n_failed,
        "n_clusters": trials.n_clusters,
        "designed": trials.designed,
        "seed": seed,
        "n_simulations": simulations,
        "versions": {"dowhy": str(identification.import_dowhy().__version__)},
    }
    reason = _why_not(data, cut)
    if reason:
        notes = (RECONSTRUCTED, DESCENDANTS, _overlap(data))
        return AnalysisResult(
            estimate=math.nan, interval=(math.nan, math.nan), reason=reason, notes=notes, **common
        )
    estimand = identified.estimand
    fitted = identification.estimate(data, identified, estimand, intervals=True)
    low, high = _interval(fitted)
    advance()
    return AnalysisResult(
        estimate=float(fitted.value),
        interval=(low, high),
        interval_kind="DoWhy's per-row least-squares interval (trials treated as independent)",
        refutations=_refute(data, estimand, fitted, seed, simulations, advance),
        notes=_notes(data, trials.frame, cut, float(fitted.value)),
        **common,
    )


def _estimand(adjustment: tuple[str, ...]) -> str:
    return (
        "Difference in the probability of a high accuracy loss between pruning above and below "
        f"the threshold, given memory and MACs (backdoor adjustment, linear model): "
        f"{derivative(TREATMENT, OUTCOME, adjustment)}"
    )


def _why_not(data: pd.DataFrame, cut: Mapping[str, float]) -> str:
    if data[OUTCOME].nunique() < 2:
        return (
            f"every trial is on the same side of the accuracy threshold {cut['accuracy']:g}, so "
            f"{OUTCOME} never varies."
        )
    others = data[[MEMORY, "macs"]].to_numpy(dtype=float)
    scale = np.abs(others).max(axis=0)
    base = np.column_stack([np.ones(len(data)), others / np.where(scale > 0, scale, 1)])
    treated = data[TREATMENT].to_numpy(dtype=float)
    rest = treated - base @ np.linalg.lstsq(base, treated, rcond=None)[0]
    if float(rest @ rest) < 1e-9 * len(data):
        return (
            f"{TREATMENT} is a linear function of {MEMORY} and macs in this table (pruning sets "
            "both), so adjusting for them leaves nothing of the treatment. Another memory "
            "threshold may leave some trials to compare; the default analysis does not need one."
        )
    if len(data) <= data.shape[1]:
        return f"{len(data)} trials are too few for four coefficients."
    return ""


def _interval(fitted: Any) -> tuple[float, float]:
    with identification.quiet_dowhy():
        bounds = np.asarray(fitted.get_confidence_intervals(confidence_level=0.95), dtype=float)
    low, high = (float(value) for value in bounds.reshape(-1)[:2])
    # A model that fits every row exactly has no error to build an interval from.
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)


def _refute(
    data: pd.DataFrame,
    estimand: Any,
    fitted: Any,
    seed: int,
    simulations: int,
    advance: Callable[[], None],
) -> tuple[Refutation, ...]:
    if simulations < 1:
        return ()
    refuters = (
        ("random common cause", identification.random_common_cause, "an unrelated random cause"),
        ("data subset", identification.data_subset, "a random 80 % of the rows"),
        ("placebo treatment", identification.placebo_treatment, "a shuffled treatment"),
    )
    found = []
    for offset, (name, refuter, change) in enumerate(refuters):
        result = refuter(data, estimand, fitted, seed + offset, simulations)
        found.append(_describe(name, change, result, float(fitted.value), simulations))
        advance()
    return tuple(found)


def _describe(name: str, change: str, result: Any, estimate: float, simulations: int) -> Refutation:
    effect = float(result.new_effect)
    p_value = float(np.asarray(result.refutation_result["p_value"]).reshape(-1)[0])
    passed = p_value > SIGNIFICANCE
    expected = "zero" if name == "placebo treatment" else "the estimate"
    meaning = (
        f"the refuter did not reject. That is all it says: the new estimates are compatible with "
        f"{expected}; it does not show that the estimate is right"
        if passed
        else f"the refuter rejects: the new estimates are not compatible with {expected}"
    )
    return Refutation(
        name,
        estimate,
        effect,
        p_value,
        f"p > {SIGNIFICANCE:g} (did not reject; no support)",
        passed,
        f"With {change} the estimate became {amount(OUTCOME, effect)} (was "
        f"{amount(OUTCOME, estimate)}; mean of {simulations} simulations). {p_text(p_value)}: "
        f"{meaning}.",
        simulations=simulations,
        verdict="did not reject" if passed else "rejected",
    )


def _notes(
    data: pd.DataFrame, frame: pd.DataFrame, cut: Mapping[str, float], estimate: float
) -> tuple[str, ...]:
    cuts = (
        f"Thresholds: accuracy below {cut['accuracy']:.4g} is a high loss, ratio above "
        f"{cut['ratio']:g} is high pruning, memory above {cut['memory']:.6g} bytes is high memory."
    )
    p_values = (
        "All three refuters pass on confounded, over-controlled and pure-noise tables with known "
        "truth: p > 0.05 validates nothing."
    )
    rows = "The interval treats trials of one network as independent and is too narrow for that."
    absurd = (
        "Taken literally, a negative number says that heavy pruning protects the accuracy; that is "
        "what adjusting for consequences of pruning can do."
        if estimate < 0
        else ""
    )
    notes = (
        RECONSTRUCTED,
        DESCENDANTS,
        absurd,
        cuts,
        _overlap(data),
        _sensitivity(frame, cut),
        p_values,
    )
    return tuple(note for note in (*notes, rows) if note)


def _overlap(data: pd.DataFrame) -> str:
    cells = {
        (pruned, memory): int(((data[TREATMENT] == pruned) & (data[MEMORY] == memory)).sum())
        for pruned in (0, 1)
        for memory in (0, 1)
    }
    counts = (
        f"Trials with high pruning: {cells[1, 1]} with high memory, {cells[1, 0]} without; "
        f"with low pruning: {cells[0, 1]} with, {cells[0, 0]} without."
    )
    if all(cells.values()):
        return counts
    return counts + " An empty cell means that the linear model extrapolates into it."


def _sensitivity(frame: pd.DataFrame, cut: Mapping[str, float]) -> str:
    """Move Y over the levels in the table, everything else kept."""
    levels = np.unique(frame["ratio"])[:-1]
    effects = {}
    for level in levels[:: max(1, len(levels) // 8)]:
        data = threshold_columns(frame, {**cut, "ratio": float(level)})
        if _why_not(data, cut):
            continue
        others = data[[MEMORY, "macs"]].to_numpy(dtype=float)
        scale = np.where(np.abs(others).max(axis=0) > 0, np.abs(others).max(axis=0), 1)
        matrix = np.column_stack([np.ones(len(data)), data[TREATMENT], others / scale])
        effects[float(level)] = float(np.linalg.lstsq(matrix, data[OUTCOME], rcond=None)[0][1])
    if len(effects) < 2:
        return ""
    least, most = min(effects, key=effects.__getitem__), max(effects, key=effects.__getitem__)
    return (
        "The number belongs to the threshold as much as to the network: with the pruning threshold "
        f"at {least:g} it is {number(OUTCOME, effects[least])} points, at {most:g} "
        f"{number(OUTCOME, effects[most])}."
    )
