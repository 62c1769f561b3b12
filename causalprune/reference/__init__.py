"""Plain-torch float64 oracles: each operator's definition, written to be read, not to be fast."""

from causalprune.reference.path_effects import ACTIVATIONS, path_effects

__all__ = ["ACTIVATIONS", "path_effects"]
