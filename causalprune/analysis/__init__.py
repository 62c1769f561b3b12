"""Causal analysis of pruning experiments: graphs, estimates, refutations.

Reads tables of trials, never a network: nothing here imports torch, and DoWhy,
statsmodels and networkx are imported by the functions that use them.
"""

from __future__ import annotations

from causalprune.analysis.algorithm import analyze
from causalprune.analysis.graphs import accuracy_graph, cost_graph, iisc_graph
from causalprune.analysis.iisc import threshold_columns
from causalprune.analysis.results import (
    AnalysisResult,
    Contrast,
    Finding,
    Independence,
    Refutation,
    load_analyses,
    save_analyses,
)

__all__ = [
    "AnalysisResult",
    "Contrast",
    "Finding",
    "Independence",
    "Refutation",
    "accuracy_graph",
    "analyze",
    "cost_graph",
    "iisc_graph",
    "load_analyses",
    "save_analyses",
    "threshold_columns",
]
