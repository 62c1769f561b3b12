"""What the methods remove: single weights, or units; known without torch."""

from __future__ import annotations

__all__ = ["WEIGHT_METHODS"]

WEIGHT_METHODS = ("sipp", "snip", "wt")
"""Methods that score every single weight; all others score units."""
