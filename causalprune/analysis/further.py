"""Everything that a table can tell beside the main effect, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from causalprune.analysis.causal_forest import causal_forest
from causalprune.analysis.double_ml import double_ml
from causalprune.analysis.evidence import Finding
from causalprune.analysis.few_networks import few_networks
from causalprune.analysis.findings import refused
from causalprune.analysis.heterogeneity import heterogeneity
from causalprune.analysis.instrument import instrument
from causalprune.analysis.mediation import mediation
from causalprune.analysis.method_effects import method_effects
from causalprune.analysis.tables import Trials
from causalprune.errors import MissingDependencyError

__all__ = ["STEPS", "further_findings"]

STEPS = 7
"""How often `further_findings` calls `advance`."""

# What takes its course from the shapes through MACs and memory, not straight from them.
TIMED = ("latency", "energy")

Step = tuple[str, Callable[[], tuple[Finding, ...]]]


def further_findings(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    seed: int = 0,
    time_budget_s: float = 120.0,
    advance: Callable[[], None] = lambda: None,
    *,
    adjustment: Sequence[str] = (),
    contrasts: Sequence[tuple[float, float]] | None = None,
) -> tuple[Finding, ...]:
    """Ask every estimator beside the main one that the table and the outcome give sense to.

    Dose-response by LinearDML, the wild bootstrap of few networks, methods, the declared
    interactions, a causal forest; for latency and energy what goes through MACs and memory; with
    ``achieved_ratio`` in the table, the target ratio as its instrument.

    Parameters
    ----------
    trials : Trials
    treatment, outcome : str
        Numeric columns.
    seed : int
        Same seed, same numbers.
    time_budget_s : float
        Seconds after which nothing more is begun; what is left out says so.
    advance : callable
        Called `STEPS` times, for a progress bar.
    adjustment : sequence of str
        Columns that the graph asks for; needed where nothing was assigned.
    contrasts : sequence of (start, end), optional
        Of the treatment, for LinearDML; by default each level with the smallest.

    Returns
    -------
    tuple of Finding
        A reason in place of a number where the table cannot tell or a package is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from causalprune.analysis.tables import completed_trials
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": r, "accuracy_loss": 0.1 * r + 0.01 * c * r * r}
    ...     for c in range(3) for r in (0.0, 0.3, 0.5, 0.7)
    ... ])
    >>> trials = completed_trials(table, ("ratio", "accuracy_loss"))
    >>> {found.reason for found in further_findings(trials, time_budget_s=0.0)}
    {'Left out: the time given to the analysis was spent.'}
    """
    begin = time.monotonic()
    listed: list[Finding] = []
    steps = list(_steps(trials, treatment, outcome, seed, adjustment, contrasts))
    for question, ask in steps:
        if time.monotonic() - begin >= time_budget_s:
            reason = "Left out: the time given to the analysis was spent."
            listed.append(_without(question, reason, outcome, trials))
        else:
            try:
                listed += ask()
            except MissingDependencyError as error:
                listed.append(_without(question, f"Left out: {error}", outcome, trials))
        advance()
    for _ in range(STEPS - len(steps)):
        advance()
    return tuple(listed)


def _without(question: str, reason: str, outcome: str, trials: Trials) -> Finding:
    return refused(question, "", "", reason, outcome=outcome, n_clusters=trials.n_clusters)


def _steps(
    trials: Trials,
    treatment: str,
    outcome: str,
    seed: int,
    adjustment: Sequence[str],
    contrasts: Sequence[tuple[float, float]] | None,
) -> Iterator[Step]:
    """Yield each question with the way to ask it, the cheapest first."""
    table = (trials, treatment, outcome)
    yield "few networks", lambda: few_networks(*table, seed=seed, adjustment=adjustment)
    yield "by level", lambda: heterogeneity(*table, adjustment=adjustment)
    if "achieved_ratio" in trials.frame and "ratio" in trials.frame and "ratio" in treatment:
        yield "target to achieved", lambda: instrument(trials, outcome, adjustment=adjustment)
    if outcome.startswith(TIMED):
        yield "through MACs and memory", lambda: mediation(*table, seed=seed)
    yield (
        "dose-response",
        lambda: double_ml(*table, seed=seed, adjustment=adjustment, contrasts=contrasts),
    )
    if "method" in trials.frame:
        yield "method", lambda: method_effects(*table, seed=seed)
    yield (
        "where the effect is large",
        lambda: causal_forest(*table, seed=seed, adjustment=adjustment),
    )
