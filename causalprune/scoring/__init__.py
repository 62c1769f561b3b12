"""How much a network's outcome depends on each of its units: methods, outcomes, Scores."""

from causalprune.scoring import ablation, chance, norms, path, taylor  # noqa: F401  (register)
from causalprune.scoring.data import Batch, Batches, as_batches
from causalprune.scoring.driver import score
from causalprune.scoring.methods import (
    METHODS,
    Job,
    Method,
    MethodResult,
    UnitScores,
    register_method,
    resolve_method,
)
from causalprune.scoring.outcomes import OUTCOMES, Outcome, register_outcome, resolve_outcome
from causalprune.scoring.scores import Scores, fingerprint

__all__ = [
    "METHODS",
    "OUTCOMES",
    "Batch",
    "Batches",
    "Job",
    "Method",
    "MethodResult",
    "Outcome",
    "Scores",
    "UnitScores",
    "as_batches",
    "fingerprint",
    "register_method",
    "register_outcome",
    "resolve_method",
    "resolve_outcome",
    "score",
]
