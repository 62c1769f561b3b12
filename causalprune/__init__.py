"""causalprune: find out what a network causally depends on, and remove the rest.

    import causalprune as cp

    scores = cp.score(model, data)                  # the causal effect of every unit
    plan = cp.plan(model, scores, ratio=0.5)        # what would go, and what it saves
    small = cp.apply(model, plan)                   # a new, physically smaller module
    fast = cp.accelerate(small, example)            # the fastest way to run it here, never slower
    result = cp.analyze("causalprune-run")          # what pruning caused, over recorded trials

Names are loaded when they are first used, so that reading records needs no torch and importing
the package costs nothing beyond it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causalprune import nn
    from causalprune.analysis import AnalysisResult, analyze, counterfactual
    from causalprune.errors import CausalPruneError
    from causalprune.experiments import RunConfig, RunResult, Study, run_experiment
    from causalprune.measures import info
    from causalprune.nn import accelerate
    from causalprune.pruning import Plan, Trace, apply, audit, plan, prune
    from causalprune.reports import report
    from causalprune.scoring import (
        Scores,
        register_method,
        register_outcome,
        score,
        unit_table,
    )

_HOME = {
    "AnalysisResult": "analysis",
    "CausalPruneError": "errors",
    "Plan": "pruning",
    "RunConfig": "experiments",
    "RunResult": "experiments",
    "Scores": "scoring",
    "Study": "experiments",
    "Trace": "pruning",
    "accelerate": "nn",
    "analyze": "analysis",
    "apply": "pruning",
    "counterfactual": "analysis",
    "audit": "pruning",
    "info": "measures",
    "plan": "pruning",
    "prune": "pruning",
    "register_method": "scoring",
    "register_outcome": "scoring",
    "report": "reports",
    "run_experiment": "experiments",
    "score": "scoring",
    "unit_table": "scoring",
}

__all__ = [
    "AnalysisResult",
    "CausalPruneError",
    "Plan",
    "RunConfig",
    "RunResult",
    "Scores",
    "Study",
    "Trace",
    "__version__",
    "accelerate",
    "analyze",
    "apply",
    "audit",
    "counterfactual",
    "info",
    "nn",
    "plan",
    "prune",
    "register_method",
    "register_outcome",
    "report",
    "run_experiment",
    "score",
    "unit_table",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("causalprune")
    if name == "nn":
        return import_module(f"{__name__}.nn")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
