"""Causal analysis of pruning experiments: graphs, estimates, refutations.

Reads tables of trials, never a network: nothing here imports torch, and DoWhy,
statsmodels and networkx are imported by the functions that use them.
"""

from __future__ import annotations

from causalprune.analysis.algorithm import analyze
from causalprune.analysis.counterfactual_results import (
    ArrowStrength,
    Attribution,
    Counterfactual,
    Prediction,
    Replay,
    RootCause,
)
from causalprune.analysis.counterfactuals import CounterfactualModel, counterfactual
from causalprune.analysis.graphs import accuracy_graph, cost_graph, iisc_graph, read_graph
from causalprune.analysis.iisc import threshold_columns
from causalprune.analysis.layer_forests import GroupEffect, LayerForest, layer_forests
from causalprune.analysis.mask_effects import mask_effects
from causalprune.analysis.replay import cells_to_rerun, replay_answers, replay_error
from causalprune.analysis.results import (
    AnalysisResult,
    Contrast,
    Finding,
    Independence,
    Refutation,
    load_analyses,
    save_analyses,
)
from causalprune.analysis.unit_effects import UnitEffects, unit_effects
from causalprune.analysis.unit_means import LayerMean

__all__ = [
    "AnalysisResult",
    "ArrowStrength",
    "Attribution",
    "Contrast",
    "Counterfactual",
    "CounterfactualModel",
    "Finding",
    "GroupEffect",
    "Independence",
    "LayerForest",
    "LayerMean",
    "Prediction",
    "Refutation",
    "Replay",
    "RootCause",
    "UnitEffects",
    "accuracy_graph",
    "analyze",
    "cells_to_rerun",
    "cost_graph",
    "counterfactual",
    "iisc_graph",
    "layer_forests",
    "load_analyses",
    "mask_effects",
    "read_graph",
    "replay_answers",
    "replay_error",
    "save_analyses",
    "threshold_columns",
    "unit_effects",
]
