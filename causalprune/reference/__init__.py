"""Plain-torch float64 oracles: each operator's definition, written to be read, not to be fast."""

from causalprune.reference.channel_update import channel_update
from causalprune.reference.count_contingencies import count_contingencies
from causalprune.reference.histogram_information import histogram_information
from causalprune.reference.path_effects import ACTIVATIONS, path_effects
from causalprune.reference.relative_sensitivity import relative_sensitivity
from causalprune.reference.spanning_tree_information import spanning_tree_crossings
from causalprune.reference.sparse_conv2d import (
    CONVOLUTION_ACTIVATIONS,
    channel_conv2d,
    sparse_conv2d,
)

__all__ = [
    "ACTIVATIONS",
    "CONVOLUTION_ACTIVATIONS",
    "channel_conv2d",
    "channel_update",
    "count_contingencies",
    "histogram_information",
    "path_effects",
    "relative_sensitivity",
    "spanning_tree_crossings",
    "sparse_conv2d",
]
