"""The network as a graph: its units, the groups that go together, and who reads them.

One :class:`UnitGroup` serves both the intervention ``do(unit := 0)`` (:func:`removed`) and the
surgery that removes the unit for good (:func:`causalprune.pruning.apply`), so that a score
intervenes on exactly what pruning would take away.
"""

from causalprune.graph.capture import capture
from causalprune.graph.hooked import capture_by_hooks
from causalprune.graph.intervene import INTERVENTIONS, removed
from causalprune.graph.interventions import Interventions
from causalprune.graph.recording import Recorder, frozen
from causalprune.graph.trace import evaluating, trace
from causalprune.graph.units import Consumer, ConsumerSite, Owned, Span, UnitGraph, UnitGroup

__all__ = [
    "INTERVENTIONS",
    "Consumer",
    "ConsumerSite",
    "Interventions",
    "Owned",
    "Recorder",
    "Span",
    "UnitGraph",
    "UnitGroup",
    "capture",
    "capture_by_hooks",
    "evaluating",
    "frozen",
    "removed",
    "trace",
]
