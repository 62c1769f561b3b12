"""`analyze`: a table of pruning trials in, an effect with its refutations out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from causalprune.analysis import (
    effects,
    further,
    gate,
    identification,
    iisc,
    notes,
    randomisation,
    refutations,
)
from causalprune.analysis.evidence import Contrast, Finding
from causalprune.analysis.falsification import falsify
from causalprune.analysis.findings import curve_finding
from causalprune.analysis.graphs import COST_OUTCOMES, accuracy_graph, check_graph, cost_graph
from causalprune.analysis.results import AnalysisResult
from causalprune.analysis.tables import (
    Trials,
    check_treatment,
    completed_trials,
    read_table,
    thinned,
)
from causalprune.analysis.unit_analysis import analyze_unit_tables, recognised
from causalprune.analysis.wording import derivative
from causalprune.errors import InvalidArgumentError, UnknownNameError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["analyze"]

PRESETS = ("iisc",)
DEFAULT_SIMULATIONS = 100
DEFAULT_SECONDS = 120.0
MAX_TRIALS = 10_000


def analyze(
    table: Any,
    treatment: str = "ratio",
    outcome: str = "accuracy_loss",
    *,
    preset: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    graph: nx.DiGraph | None = None,
    contrasts: Sequence[tuple[float, float]] | None = None,
    seed: int = 0,
    progress: bool = False,
    n_simulations: int = DEFAULT_SIMULATIONS,
    time_budget_s: float = DEFAULT_SECONDS,
) -> AnalysisResult:
    """Estimate what pruning did in a table of trials, and try to refute it.

    By default the estimand is the total effect of the treatment on the outcome, as
    the average change of the outcome per step of the treatment (0.1 for a ratio)
    over the trials' design, and as contrasts of each treatment level with the
    smallest. It is identified by DoWhy on a causal graph of the experiment,
    estimated by least squares within design blocks with checkpoint-clustered
    intervals, and attacked by refuters that are judged by effect sizes: the three of
    Algorithm 2 and those of :mod:`causalprune.analysis.gate`.

    ``preset="iisc"`` runs Algorithm 2 of the IISc paper instead: thresholded columns
    ``High_Accuracy_Loss``, ``High_Pruning``, ``High_Memory_Consumption``, the paper's
    four-node graph (*reconstructed*, and biased: it adjusts for memory and MACs,
    which are descendants of pruning), DoWhy's ``backdoor.linear_regression`` and
    DoWhy's three refuters with their p-values.

    Parameters
    ----------
    table : DataFrame, Study or path
        One row a trial (10,000 are drawn where there are more): a frame, which is never
        changed, a study, the folder of a study or of a run, or a ``.csv`` or ``.parquet`` with
        named columns. A table of units (:func:`causalprune.scoring.unit_table`), a
        :class:`causalprune.scoring.MaskTable` and the folder of ``causalprune units`` are known
        by their columns: the result's findings are then effects by layer, without refuters. Of
        trials, needs the treatment, the outcome and ``checkpoint`` (which network a trial
        started from); ``status``, ``assignment`` and the design columns are used where present.
    treatment : str
        Numeric column that causes the outcome in the graph, usually ``"ratio"``.
    outcome : str
        Numeric column; fractions for accuracies.
    preset : {None, "iisc"}
        None is the analysis to trust.
    thresholds : mapping, optional
        Only for ``"iisc"``: ``accuracy`` (X, fraction), ``ratio`` (Y) and ``memory``
        (Z, bytes of ``memory_bytes``). Medians by default; recorded in the result.
    graph : networkx.DiGraph, optional
        Over column names, in place of the default one (:func:`accuracy_graph`,
        :func:`cost_graph`).
    contrasts : sequence of (start, end), optional
        Moves of the treatment to tell the effects of, such as ``[(0.3, 0.7)]``, in
        `AnalysisResult.findings`; by default, and in `AnalysisResult.contrasts`, from the smallest
        level to each other.
    seed : int
        Same seed, same numbers.
    progress : bool
        Show a progress bar.
    n_simulations : int
        Simulations of each refuter; 0 leaves the refuters out.
    time_budget_s : float
        Seconds for what is asked beside the main effect (dose-response by LinearDML, methods,
        levels, mediation, instrument, causal forest); nothing new begins after them. 0 leaves
        it all out.

    Returns
    -------
    AnalysisResult
        With `estimate` NaN and a `reason` where the table cannot tell (an outcome
        that never varies, a treatment that its covariates fix).

    Raises
    ------
    RecordError
        The table is unreadable, lacks columns or has too few completed trials.
    InvalidArgumentError
        An argument is wrong, or the treatment never varies.
    MissingDependencyError
        DoWhy is not installed.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import causalprune.analysis as analysis
    >>> rng = np.random.default_rng(0)
    >>> rows = [
    ...     {"checkpoint": c, "method": m, "ratio": r, "assignment": "randomised",
    ...      "accuracy_loss": 0.05 * r + 0.002 * rng.standard_normal()}
    ...     for c in range(4) for m in ("path", "random") for r in (0.0, 0.3, 0.6, 0.9)
    ... ]
    >>> result = analysis.analyze(pd.DataFrame(rows), n_simulations=20, time_budget_s=0)
    >>> bool(result.interval[0] < 0.005 < result.interval[1])
    True
    >>> [item.name for item in result.refutations][:4]
    ['placebo treatment', 'random common cause', 'data subset', 'assignment']
    >>> result.doubts
    ()
    """
    _check_arguments(treatment, outcome, preset, thresholds, seed, n_simulations, time_budget_s)
    of_units = recognised(table)
    if of_units is not None:
        if preset is not None or graph is not None or contrasts is not None:
            raise InvalidArgumentError(
                "preset, graph, contrasts: expected None for a table of units or masks, whose "
                "design is known"
            )
        return analyze_unit_tables(of_units, outcome, seed=seed, time_budget_s=time_budget_s)
    for name, given in (("graph", graph), ("contrasts", contrasts)):
        if preset is not None and given is not None:
            raise InvalidArgumentError(f"{name}: preset={preset!r} has its own; expected None")
    pairs = _checked_contrasts(contrasts)
    frame = read_table(table)
    if preset == "iisc":
        trials = completed_trials(frame, iisc.NUMERIC, required=())
        check_treatment(trials.frame, "ratio")
        with _progress(progress, "Algorithm 2", 5) as advance:
            found = iisc.replicate(trials, thresholds, seed, n_simulations, advance)
            return replace(found, table=frame)
    trials = thinned(completed_trials(frame, (treatment, outcome)), MAX_TRIALS, seed)
    check_treatment(trials.frame, treatment)
    if graph is not None:
        check_graph(graph, trials.frame.columns, treatment, outcome)
    with _progress(progress, "causal analysis", 14 + further.STEPS) as advance:
        chosen = graph if graph is not None else _graph(trials, outcome)
        found = _analyze_design(trials, treatment, outcome, chosen, seed, n_simulations, advance)
        asked = _asked(trials, found, pairs)
        result = replace(found, table=frame, findings=asked)
        if not result.estimable or not time_budget_s:
            return result
        findings = further.further_findings(
            trials,
            treatment,
            outcome,
            seed,
            time_budget_s,
            advance,
            adjustment=result.adjustment,
            contrasts=pairs,
        )
        return replace(result, findings=(*asked, *findings))


def _check_arguments(
    treatment: str,
    outcome: str,
    preset: str | None,
    thresholds: Mapping[str, float] | None,
    seed: int,
    n_simulations: int,
    time_budget_s: float,
) -> None:
    if isinstance(time_budget_s, bool) or not isinstance(time_budget_s, (int, float)):
        raise InvalidArgumentError(f"time_budget_s: expected seconds, got {time_budget_s!r}")
    if not time_budget_s >= 0:
        raise InvalidArgumentError(f"time_budget_s: expected at least 0, got {time_budget_s}")
    if preset is not None and preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    if preset is None and thresholds is not None:
        raise InvalidArgumentError("thresholds: only preset='iisc' has thresholds, got preset=None")
    if preset == "iisc" and (treatment, outcome) != ("ratio", "accuracy_loss"):
        raise InvalidArgumentError(
            "treatment, outcome: preset='iisc' fixes both (High_Pruning, High_Accuracy_Loss), "
            f"got {treatment!r}, {outcome!r}"
        )
    if treatment == outcome:
        raise InvalidArgumentError(f"outcome: must differ from the treatment, got {outcome!r}")
    for name, value, high in (("seed", seed, 2**32 - 4), ("n_simulations", n_simulations, 10**6)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InvalidArgumentError(f"{name}: expected an integer, got {value!r}")
        if not 0 <= value <= high:
            raise InvalidArgumentError(f"{name}: expected 0 to {high}, got {value}")


def _checked_contrasts(
    contrasts: Sequence[tuple[float, float]] | None,
) -> list[tuple[float, float]] | None:
    if contrasts is None:
        return None
    wrong = "contrasts: expected pairs of two different finite numbers, such as [(0.3, 0.7)], got"
    try:
        pairs = [(float(start), float(end)) for start, end in contrasts]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{wrong} {contrasts!r}") from error
    if not pairs or not all(math.isfinite(end - start) and start != end for start, end in pairs):
        raise InvalidArgumentError(f"{wrong} {contrasts!r}")
    return pairs


def _asked(
    trials: Trials, result: AnalysisResult, pairs: list[tuple[float, float]] | None
) -> tuple[Finding, ...]:
    """Answer the contrasts that were asked for by the curve behind `AnalysisResult.contrasts`."""
    if pairs is None or not result.estimable:
        return ()
    frame, treatment, outcome = trials.frame, result.treatment, result.outcome
    design = effects.build_design(frame, treatment, result.adjustment, result.design_covariates)
    curve, shortfall = effects.dose_response(frame, treatment, outcome, design, pairs)
    nothing = math.nan
    refused = [Contrast(*pair, nothing, nothing, nothing, reason=shortfall) for pair in pairs]
    return tuple(curve_finding(each, treatment, outcome) for each in curve or refused)


@contextmanager
def _progress(show: bool, title: str, total: int) -> Iterator[Callable[[], None]]:
    if not show:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
        bar.update(task, completed=total)


def _graph(trials: Trials, outcome: str) -> nx.DiGraph:
    columns = [str(name) for name in trials.frame.columns if trials.frame[name].notna().all()]
    if outcome in COST_OUTCOMES:
        return cost_graph(columns, outcome)
    return accuracy_graph(columns, outcome, designed=trials.designed)


def _analyze_design(
    trials: Trials,
    treatment: str,
    outcome: str,
    graph: nx.DiGraph,
    seed: int,
    simulations: int,
    advance: Callable[[], None],
) -> AnalysisResult:
    frame = trials.frame
    step = 0.1 if "ratio" in treatment else 1.0
    identified = identification.identify(frame, graph, treatment, outcome)
    advance()
    blocks = effects.design_blocks(frame, treatment)
    # Without random assignment a design column may be anything; only what the graph asks for.
    covariates = blocks if trials.designed else ()
    needed = tuple(c for c in identified.adjustment if frame[c].nunique() > 1)
    design = effects.build_design(frame, treatment, needed, covariates)
    assignment = randomisation.assignment_of(frame, treatment, covariates)
    linear = effects.linear_effect(frame, treatment, outcome, design, step=step)
    common = _common(trials, treatment, outcome, graph, identified, design)
    common |= {"seed": seed, "n_simulations": simulations, "step": step}
    if isinstance(linear, str):
        return AnalysisResult(
            estimate=math.nan,
            interval=(math.nan, math.nan),
            reason=linear,
            notes=notes.notes_of(trials, treatment, design, ()),
            **common,
        )
    contrasts, shortfall = effects.dose_response(frame, treatment, outcome, design)
    randomised = trials.designed and treatment != "achieved_ratio"
    p_value = (
        randomisation.randomisation_p_value(
            frame, treatment, outcome, design, assignment, seed=seed
        )
        if randomised
        else None
    )
    advance()
    target = _target(frame, identified, design, assignment, (linear.low, linear.high), step)
    found = refutations.refute_all(target, seed, simulations, advance)
    if simulations:
        attack = gate.Attack(trials, target, design, step, seed)
        found += gate.refute_further(attack, advance)
        check = falsify(trials, graph, seed=seed)
        common |= {"independencies": check.tested, "graph_check": check.sentence}
        advance()
    bend = notes.curve(outcome, step, linear, contrasts)
    told = notes.notes_of(trials, treatment, design, (shortfall, bend))
    return AnalysisResult(
        estimate=target.estimate,
        interval=(linear.low, linear.high),
        interval_kind=notes.interval_kind(linear.n_clusters),
        p_value=p_value,
        contrasts=contrasts,
        refutations=found,
        notes=told,
        **common,
    )


def _common(
    trials: Trials,
    treatment: str,
    outcome: str,
    graph: nx.DiGraph,
    identified: identification.Identified,
    design: effects.Design,
) -> dict[str, Any]:
    frame = trials.frame
    given = f" given {', '.join(identified.adjustment)}" if identified.adjustment else ""
    return {
        "preset": "default",
        "treatment": treatment,
        "outcome": outcome,
        "estimand": (
            f"Total effect of {treatment} on {outcome}{given}, averaged over the trials of the "
            f"table: {derivative(treatment, outcome, identified.adjustment)}"
        ),
        "graph_name": str(graph.name) or "given",
        "nodes": tuple(graph.nodes),
        "edges": tuple(graph.edges),
        "constant_nodes": tuple(n for n in graph if frame[n].nunique(dropna=False) < 2),
        "adjustment": identified.adjustment,
        "design_covariates": design.covariates,
        "n_trials": len(frame),
        "n_failed": trials.n_failed,
        "n_clusters": trials.n_clusters,
        "designed": trials.designed,
        "versions": {"dowhy": str(identification.import_dowhy().__version__)},
    }


def _target(
    frame: pd.DataFrame,
    identified: identification.Identified,
    design: effects.Design,
    assignment: randomisation.Assignment,
    interval: tuple[float, float],
    step: float,
) -> refutations.Target:
    estimand = identification.with_columns(identified, [str(name) for name in design.columns])
    treatment, outcome = estimand.treatment_variable[0], estimand.outcome_variable[0]
    data = pd.concat([frame[[treatment, outcome]], design.columns], axis=1)
    fitted = identification.estimate(data, identified, estimand, step=step)
    clusters = effects.block_codes(frame, ["checkpoint"])
    return refutations.Target(
        data, treatment, outcome, estimand, fitted, assignment, clusters, interval
    )
