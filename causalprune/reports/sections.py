"""What each section of the page shows, as the template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from causalprune.analysis import AnalysisResult, Finding
from causalprune.analysis.wording import OF_UNITS, amount, name_of, p_text, span, unit_of
from causalprune.reports import effect_figures, figures, listings, story
from causalprune.reports.explanations import explanations
from causalprune.reports.graph_figure import causal_graph, columns_of
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.sources import Source

PREFERRED = ("path", "ablation")
MAX_LAYERS = 6


def methods_of(trials: pd.DataFrame) -> list[str]:
    """Methods in the order of the page: the preferred first, chance last."""
    names = sorted(set(trials["method"]))
    first = [name for name in PREFERRED if name in names]
    last = [name for name in names if name == "random"]
    return first + [name for name in names if name not in (*first, *last)] + last


def pruning(source: Source, choices: story.Choices) -> list[dict[str, Any]]:
    """Curves, costs and results of each pair of network and data set."""
    found = []
    for place, choice in choices.items():
        trials = source.trials.loc[source.trials["place"] == place]
        methods = methods_of(trials)
        before = "accuracy_pruned" in trials and trials["accuracy_pruned"].notna().any()
        shown = choice.method if choice else methods[0]
        own = trials.loc[trials["method"] == shown]
        found.append(
            {
                "place": place if len(choices) > 1 else "",
                "after": figures.prune_curve(trials, "accuracy", methods),
                "before": figures.prune_curve(trials, "accuracy_pruned", methods)
                if before
                else None,
                "cost": figures.cost_curve(trials, shown),
                "method": shown,
                "results": listings.results_table(trials),
                "layers": effect_figures.layer_map(own, listings.layer_shares(own)),
            }
        )
    return found


def units(scores: Sequence[ScoreTable]) -> list[dict[str, Any]]:
    """Effects of single units, of one network a place, and their check against exact ablation."""
    places = dict.fromkeys(table.place for table in scores)
    return [_units([table for table in scores if table.place == place]) for place in places]


def _units(scores: Sequence[ScoreTable]) -> dict[str, Any]:
    first = scores[0].checkpoint
    tables = {table.method: table for table in scores if table.checkpoint == first}
    preferred = [name for name in PREFERRED if name in tables]
    with_effects = [name for name, table in tables.items() if table.has_effects]
    main = tables[(preferred or with_effects or list(tables))[0]]
    layers = list(dict.fromkeys(main.frame["layer"]))
    scatter, hidden = None, 0
    if "ablation" in tables and main.method != "ablation":
        scatter, hidden = effect_figures.check_scatter(main, tables["ablation"])
    return {
        "place": main.place,
        "checkpoint": first,
        "method": main.method,
        "outcome": main.outcome,
        "has_effects": main.has_effects,
        "confidence": f"{100 * main.confidence:g}",
        "layers": [effect_figures.unit_effects(main, layer) for layer in _strongest(main, layers)],
        "more_layers": max(0, len(layers) - MAX_LAYERS),
        "mapped": "Every layer"
        if len(layers) <= effect_figures.MAPPED
        else f"The first {effect_figures.MAPPED} of {len(layers)} layers, each",
        "map": effect_figures.effect_map(main),
        "categories": listings.categories(main) if main.has_categories else [],
        "scatter": scatter,
        "hidden": hidden,
        "agreement": listings.agreement(scores),
        "explanations": explanations(list(tables.values())),
    }


def _strongest(scores: ScoreTable, layers: Sequence[str]) -> list[str]:
    """Return the layers whose strongest units matter most, in the network's order."""
    top = scores.frame.groupby("layer")[scores.column].agg(lambda values: values.abs().max())
    chosen = set(top.sort_values(ascending=False, kind="stable").index[:MAX_LAYERS])
    return [layer for layer in layers if layer in chosen]


def analysis(result: AnalysisResult) -> dict[str, Any]:
    """One analysis: its answer, its graph, its curve, its findings, the attempts to refute it."""
    iisc = result.preset == "iisc"
    return {
        "iisc": iisc,
        "of_units": result.preset in OF_UNITS,
        "outcome": name_of(result.outcome),
        "headline": result.headline,
        "estimand": result.estimand,
        "graph": causal_graph(result),
        "graph_columns": columns_of(result),
        "dose": None if iisc else figures.dose_curve(result),
        "contrasts": _contrasts(result),
        "refutations": [_refutation(result, item, iisc) for item in result.refutations],
        "findings": _findings(result.findings),
        "graph_check": result.graph_check,
        "independencies": [
            (item.sentence, item.violated)
            for item in sorted(result.independencies, key=lambda item: not item.violated)
        ],
        "notes": result.notes,
        "p_value": "" if result.p_value is None else p_text(result.p_value),
        "interval_kind": result.interval_kind,
        "adjustment": ", ".join(result.adjustment) or "nothing",
        "covariates": ", ".join(result.design_covariates),
    }


def _refutation(result: AnalysisResult, item: Any, iisc: bool) -> dict[str, str]:
    tones = {True: "good", False: "bad", None: "none"}
    return {
        "name": item.name,
        "effect": "" if item.refuted_effect != item.refuted_effect
        else amount(result.outcome, item.refuted_effect),
        "verdict": item.verdict or {True: "holds", False: "fails", None: "not tried"}[item.passed],
        "tone": tones[item.passed if not iisc else None],
        "sentence": item.sentence,
        "rule": item.threshold,
    }  # fmt: skip


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


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Group findings by question, outcome and estimator."""
    keys = dict.fromkeys((item.question, item.outcome, item.estimator) for item in findings)
    groups = []
    for question, outcome, estimator in keys:
        own = [
            item
            for item in findings
            if (item.question, item.outcome, item.estimator) == (question, outcome, estimator)
        ]
        groups.append(
            {
                "question": question,
                "estimator": estimator,
                "figure": effect_figures.forest(own),
                "rows": [
                    {
                        "contrast": item.contrast,
                        "estimator": item.estimator,
                        "effect": amount(outcome, item.effect) if item.estimable else "",
                        "interval": effect_figures.interval_text(outcome, item.low, item.high),
                        "networks": str(item.n_clusters or ""),
                        "sentence": item.sentence or item.reason,
                    }
                    for item in own
                    if item.estimable
                ],
                "refused": [
                    (item.contrast, item.reason) for item in own if not item.estimable
                ],
            }
        )  # fmt: skip
    return groups
