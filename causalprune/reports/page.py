"""`report`: one self-contained HTML page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.analysis import AnalysisResult, analyze
from causalprune.analysis.wording import amount, p_text, span, unit_of
from causalprune.errors import (
    CausalPruneError,
    InvalidArgumentError,
    MissingDependencyError,
    OutputExistsError,
)
from causalprune.files import replace_file
from causalprune.reports import figures, story
from causalprune.reports.graph_figure import causal_graph
from causalprune.reports.sources import ScoreTable, Source, read_source

__all__ = ["report"]

PREFERRED = ("path", "ablation")
MAX_LAYERS = 6


def report(
    run_or_table: pd.DataFrame | str | Path,
    path: str | Path,
    *,
    analyses: Sequence[AnalysisResult] | AnalysisResult | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page about a run, with nothing in it loaded from elsewhere.

    Headline in words, accuracy against removal by method, what shrank, the effects
    of single units and their check against exact ablation, the causal graph, the
    dose-response curve, the refutations in sentences, limits, set-up, and the
    command that repeats the run. Parts without data are left out.

    Parameters
    ----------
    run_or_table : DataFrame, str or Path
        A run directory, a ``trials.csv``, or a table with the same columns (at
        least checkpoint, method, ratio, achieved_ratio, accuracy_before, accuracy).
    path : str or Path
        The page; written whole or not at all.
    analyses : AnalysisResult or sequence of them, optional
        Shown in order. By default those of the run's ``analysis.json``, and where
        there is none the default analysis and the preset ``"iisc"`` are computed.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    OutputExistsError
        `path` exists and `overwrite` is False.
    RecordError
        The table is missing, broken or lacks columns.
    MissingDependencyError
        matplotlib or jinja2 is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pandas as pd
    >>> from causalprune.reports import report
    >>> trials = pd.DataFrame({
    ...     "checkpoint": [0, 0, 1, 1], "method": "l1", "ratio": [0.0, 0.5] * 2,
    ...     "achieved_ratio": [0.0, 0.51] * 2, "accuracy_before": [0.97, 0.97, 0.96, 0.96],
    ...     "accuracy": [0.972, 0.966, 0.961, 0.956],
    ... })
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(trials, pathlib.Path(folder) / "report.html", analyses=())
    ...     "of its parameters for 0.4 points" in page.read_text(encoding="utf-8")
    True
    """
    target = Path(path)
    if target.is_dir():
        raise InvalidArgumentError(f"path: expected a file to write, got the directory {target}")
    if target.exists() and not overwrite:
        raise OutputExistsError(f"path: {target} exists; pass overwrite=True to replace it")
    if analyses is not None and not isinstance(analyses, AnalysisResult):
        wrong = [item for item in analyses if not isinstance(item, AnalysisResult)]
        if wrong:
            raise InvalidArgumentError(
                f"analyses: expected AnalysisResult objects, got {type(wrong[0]).__name__}"
            )
    template = _template()
    source = read_source(run_or_table)
    results, problems = _analyses(source, analyses)
    html = template.render(**_context(source, results, problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A number and its percent sign belong on one line.
    replace_file(target, html.replace(" %", "\N{NO-BREAK SPACE}%"))
    return target


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError(
            "reports need jinja2; install the extra: pip install 'causalprune[analysis]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("causalprune.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _analyses(
    source: Source, given: Sequence[AnalysisResult] | AnalysisResult | None
) -> tuple[list[AnalysisResult], list[str]]:
    if isinstance(given, AnalysisResult):
        return [given], []
    if given is not None:
        return list(given), []
    if source.analyses is not None:
        return list(source.analyses), []
    results, problems = [], []
    for preset in (None, "iisc"):
        try:
            results.append(analyze(source.table, preset=preset))
        except CausalPruneError as error:
            name = "The causal analysis" if preset is None else "Algorithm 2 of the IISc paper"
            problems.append(f"{name} could not be run. {error}")
    return results, problems


def _context(source: Source, results: list[AnalysisResult], problems: list[str]) -> dict[str, Any]:
    choice = story.best_choice(source.trials)
    return {
        "title": story.headline(source, choice),
        "lead": story.lead(source, choice),
        "tiles": story.tiles(source, choice),
        "name": source.name,
        "counts": _counts(source),
        "figures": _figures(source, choice),
        "results": story.results_table(source.trials),
        "units": _units(source),
        "analyses": [_analysis(result) for result in results],
        "analysis_problems": problems,
        "failures": story.failures(source),
        "limits": story.limits(source),
        "config": story.settings(source.config),
        "machine": story.settings(source.machine),
        "command": story.command(source.config),
    }


def _counts(source: Source) -> str:
    trials = source.trials
    methods, networks = trials["method"].nunique(), trials["checkpoint"].nunique()

    def count(number: int, noun: str) -> str:
        return f"{number} {noun}{'' if number == 1 else 's'}"

    parts = [count(len(source.table), "trial"), count(methods, "scoring method")]
    parts += [count(trials["ratio"].nunique(), "prune ratio"), count(networks, "trained network")]
    return " · ".join(parts)


def _methods(trials: pd.DataFrame) -> list[str]:
    names = sorted(set(trials["method"]))
    first = [name for name in PREFERRED if name in names]
    last = [name for name in names if name == "random"]
    return first + [name for name in names if name not in (*first, *last)] + last


def _figures(source: Source, choice: story.Choice | None) -> dict[str, Any]:
    trials = source.trials
    if trials.empty:
        return {"after": None, "before": None, "cost": None, "cost_method": ""}
    methods = _methods(trials)
    before = "accuracy_pruned" in trials and trials["accuracy_pruned"].notna().any()
    shown = choice.method if choice else methods[0]
    return {
        "after": figures.prune_curve(trials, "accuracy", methods),
        "before": figures.prune_curve(trials, "accuracy_pruned", methods) if before else None,
        "cost": figures.cost_curve(trials, shown),
        "cost_method": shown,
    }


def _units(source: Source) -> dict[str, Any] | None:
    """Figures of one checkpoint: the preferred method's effects and its check."""
    if not source.scores:
        return None
    first = source.scores[0].checkpoint
    tables = {table.method: table for table in source.scores if table.checkpoint == first}
    main = _main_scores(tables)
    layers = list(dict.fromkeys(main.frame["layer"]))
    scatter, hidden = None, 0
    if "ablation" in tables and main.method != "ablation":
        scatter, hidden = figures.check_scatter(main, tables["ablation"])
    return {
        "checkpoint": first,
        "method": main.method,
        "outcome": main.outcome,
        "layers": [(layer, figures.unit_effects(main, layer)) for layer in layers[:MAX_LAYERS]],
        "more_layers": max(0, len(layers) - MAX_LAYERS),
        "categories": story.categories(main),
        "has_categories": bool((main.frame["category"] != "").any()),
        "scatter": scatter,
        "hidden": hidden,
        "agreement": story.agreement(source.scores),
    }


def _main_scores(tables: dict[str, ScoreTable]) -> ScoreTable:
    for name in PREFERRED:
        if name in tables:
            return tables[name]
    return next(iter(tables.values()))


def _analysis(result: AnalysisResult) -> dict[str, Any]:
    iisc = result.preset == "iisc"
    return {
        "iisc": iisc,
        "headline": result.headline,
        "estimand": result.estimand,
        "graph": causal_graph(result),
        "dose": None if iisc else figures.dose_curve(result),
        "contrasts": _contrasts(result),
        "refutations": [
            {
                "name": item.name,
                "effect": amount(result.outcome, item.refuted_effect),
                "verdict": item.verdict,
                "tone": {True: "good", False: "bad", None: "none"}[
                    item.passed if not iisc else None
                ],
                "sentence": item.sentence,
                "rule": item.threshold,
            }
            for item in result.refutations
        ],
        "notes": result.notes,
        "p_value": "" if result.p_value is None else p_text(result.p_value),
        "interval_kind": result.interval_kind,
        "trials": result.n_trials,
        "adjustment": ", ".join(result.adjustment) or "nothing",
        "covariates": ", ".join(result.design_covariates),
    }


def _contrasts(result: AnalysisResult) -> list[dict[str, str]]:
    rows = []
    for item in result.contrasts:
        effect = item.reason or amount(result.outcome, item.effect)
        interval = "" if item.reason else span(result.outcome, item.low, item.high)
        rows.append(
            {
                "move": f"{item.start:g} → {item.end:g}",
                "effect": effect,
                "interval": f"{interval} {unit_of(result.outcome)}".strip() if interval else "",
            }
        )
    return rows
