"""`report`: one self-contained HTML page about a study, a run, a pruned network or scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causalprune.analysis import AnalysisResult, analyze
from causalprune.errors import (
    CausalPruneError,
    InvalidArgumentError,
    MissingDependencyError,
    OutputExistsError,
)
from causalprune.files import replace_file
from causalprune.reports import listings, pruned_network, sections, story, unit_tables
from causalprune.reports.class_losses import by_class
from causalprune.reports.losses import losses
from causalprune.reports.numbers import count
from causalprune.reports.sources import Source, read_source

__all__ = ["report"]

# What is computed where no analysis was saved: outcome, preset, what it is called.
COMPUTED = (
    ("accuracy_loss", None, "The causal analysis of the accuracy loss"),
    ("latency_ms", None, "The causal analysis of the latency"),
    ("accuracy_loss", "iisc", "Algorithm 2 of the IISc paper"),
)


def report(
    source: Any,
    path: str | Path,
    *,
    analyses: Sequence[AnalysisResult] | AnalysisResult | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page about a study, a run, a pruned network, scores or a per-unit table.

    In the page: what pruning did, how sure that is, what is doubtful and what to do, in words;
    accuracy against removal by method, for each network; what shrank; what single classes lost,
    and which of them are hurt more than others; what was lost under shifts, with prune potentials
    and the guideline of Lost in Pruning; what each layer lost; the effects of single units, their
    check against exact ablation and the explanatory graphs of classes, each with an image and a
    map; the causal graph, the dose-response curve, further findings and the refutations; limits,
    and how it was made. Parts without data are left out. Figures are SVG in the page, with their
    numbers as a table; the page loads nothing and reads on phones, on paper and on dark screens.

    Parameters
    ----------
    source : Study, str, Path or DataFrame
        The folder of a study (or its ``study.db``), of a run, or of a pruned network (as
        ``causalprune prune`` writes it), or of ``causalprune units``; a ``.csv`` or ``.parquet``;
        the ``.npz`` of ``Scores.save``; or a table: of units, or of trials (at least checkpoint,
        method, ratio, achieved_ratio, accuracy_before, accuracy).
    path : str or Path
        The page; written whole or not at all.
    analyses : AnalysisResult or sequence of them, optional
        Shown in order. By default those of the folder's ``analysis.json``, and where there is none
        the effect of the prune ratio on the accuracy loss and, where it was measured, on the
        latency, and the preset ``"iisc"`` are computed.
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
        The records are missing, broken or lack columns.
    InvalidArgumentError
        `source` is none of these.
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
    found = read_source(source)
    results, problems = _analyses(found, analyses)
    html = template.render(**_context(found, results, problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A number and its percent sign belong on one line.
    html = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", html)
    replace_file(target, html)
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
    if source.kind in ("pruned", "scores"):
        return [], []
    for outcome, preset, name in COMPUTED:
        if outcome == "latency_ms" and not _varies(source, outcome):
            continue
        try:
            results.append(analyze(source.table, outcome=outcome, preset=preset))
        except CausalPruneError as error:
            problems.append(f"{name} could not be run. {error}")
    return results, problems


def _varies(source: Source, column: str) -> bool:
    return column in source.trials and source.trials[column].nunique() > 1


def _context(source: Source, results: list[AnalysisResult], problems: list[str]) -> dict[str, Any]:
    places = source.places or [""]
    choices: story.Choices = {
        place: story.best_choice(source.trials.loc[source.trials["place"] == place])
        for place in source.places
    }
    shown = sections.pruning(source, choices)
    lost = [
        losses(source, place, each["method"]) for place, each in zip(places, shown, strict=False)
    ]
    classes = [by_class(source, place, choices.get(place)) for place in source.places]
    context = {
        "kind": source.kind,
        "name": source.name,
        "counts": _counts(source),
        "title": "",
        "lead": [],
        "tiles": [],
        "sure": story.how_sure(results),
        "doubtful": [],
        "paid": story.paid([item for item in classes if item]),
        "advice": story.advice([item for item in lost if item]),
        "pruning": shown,
        "classes": [item for item in classes if item],
        "lost": [item for item in lost if item],
        "units": sections.units(source.scores),
        "analyses": [sections.analysis(result) for result in results],
        "analysis_problems": problems,
        "failures": listings.failures(source),
        "limits": [],
        "config": (listings.study_settings if source.kind == "study" else listings.settings)(
            source.config
        ),
        "machines": [listings.settings(each) for each in source.machines or (source.machine,)],
        "versions": listings.versions(results),
        "command": listings.command(source.config) if source.kind == "run" else [],
        "pruned": None,
        "audit": None,
    }
    return context | _particular(source, results, choices)


def _particular(
    source: Source, results: list[AnalysisResult], choices: story.Choices
) -> dict[str, Any]:
    """Title, lead and limits, which depend on what the page is about."""
    if source.pruned is not None:
        pruned = source.pruned
        settings = {
            key: value
            for key, value in pruned.summary.items()
            if key not in ("before", "after", "change", "machine", "confidence")
        }
        return {
            "title": pruned_network.headline(pruned),
            "lead": pruned_network.lead(pruned),
            "doubtful": pruned_network.doubts(pruned)[
                : 1 if pruned.summary.get("reached", True) else 2
            ],
            "limits": pruned_network.doubts(pruned),
            "config": listings.settings(settings),
            "machines": [listings.settings(pruned.summary.get("machine") or {})],
            "pruned": {
                "rows": pruned_network.comparison(pruned),
                "steps": pruned_network.step_figure(pruned),
                "groups": pruned_network.group_figure(pruned),
                "stopped": pruned.trace.get("stopped", ""),
            },
        }
    if source.units is not None:
        units = source.units
        return {
            "title": unit_tables.headline(units),
            "lead": unit_tables.lead(units),
            "sure": unit_tables.sure(units),
            "doubtful": unit_tables.doubts(units),
            "limits": unit_tables.limits(units),
            "config": listings.settings(unit_tables.settings(units)),
            "audit": unit_tables.audit_table(units),
        }
    if source.kind == "scores":
        scores = source.scores[0]
        return {
            "title": story.headline_of_scores(scores),
            "lead": story.lead_of_scores(scores),
            "limits": listings.limits_of_scores(source.scores),
        }
    return {
        "title": story.headline(source, choices),
        "lead": story.lead(source, choices),
        "tiles": story.tiles(source.trials, next(iter(choices.values())))
        if len(choices) == 1
        else [],
        "doubtful": story.doubtful(source, results),
        "limits": listings.limits(source),
    }


def _counts(source: Source) -> str:
    if source.kind in ("scores", "units"):
        frame = source.scores[0].frame
        return f"{count(len(frame), 'unit')} · {count(frame['layer'].nunique(), 'layer')}"
    if source.pruned is not None:
        return "one pruned network"
    trials = source.trials
    if trials.empty:
        return count(len(source.table), "trial")
    methods = trials["method"].nunique()
    networks = len(trials[["place", "checkpoint"]].drop_duplicates())
    parts = [count(len(source.table), "trial"), count(methods, "scoring method")]
    parts += [count(trials["ratio"].nunique(), "prune ratio"), count(networks, "trained network")]
    return " · ".join(parts)
