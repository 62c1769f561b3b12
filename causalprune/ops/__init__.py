"""Operators on tensors, registered with ``torch.library`` under ``causalprune::``."""

from causalprune.ops.channel_conv2d import channel_conv2d
from causalprune.ops.channel_update import channel_update
from causalprune.ops.count_contingencies import count_contingencies
from causalprune.ops.histogram_information import histogram_information
from causalprune.ops.path_effects import EDGE_STATISTICS, PathEffects, path_effects
from causalprune.ops.relative_sensitivity import relative_sensitivity
from causalprune.ops.spanning_tree_information import (
    spanning_tree_crossings,
    spanning_tree_information,
)
from causalprune.ops.sparse_conv2d import sparse_conv2d

__all__ = [
    "EDGE_STATISTICS",
    "PathEffects",
    "channel_conv2d",
    "channel_update",
    "count_contingencies",
    "histogram_information",
    "path_effects",
    "relative_sensitivity",
    "spanning_tree_crossings",
    "spanning_tree_information",
    "sparse_conv2d",
]
