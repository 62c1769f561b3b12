"""Operators on tensors, registered with ``torch.library`` under ``causalprune::``."""

from causalprune.ops.path_effects import EDGE_STATISTICS, PathEffects, path_effects

__all__ = ["EDGE_STATISTICS", "PathEffects", "path_effects"]
