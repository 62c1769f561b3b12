"""Plain-torch float64 oracles: the definition of every operator, written to be read, not to be fast."""

from causalprune.reference.path_effects import ACTIVATIONS, path_effects

__all__ = ["ACTIVATIONS", "path_effects"]
