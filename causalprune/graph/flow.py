"""Bookkeeping of one walk through a traced network: which units flow where."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from causalprune.graph.units import Consumer

__all__ = ["Flow", "Space", "Walk"]


@dataclass(frozen=True)
class Flow:
    """The units that a value carries: space `space` on dimension `axis`, `repeat` columns each."""

    space: int
    axis: int
    repeat: int = 1


@dataclass
class Space:
    """A set of units under construction; spaces that an addition couples are merged."""

    n_units: int
    producers: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    norms: list[str] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    refusal: str = ""

    def absorb(self, other: Space) -> None:
        """Take over everything that belongs to `other`."""
        self.producers += other.producers
        self.kinds |= other.kinds
        self.norms += other.norms
        self.depthwise += other.depthwise
        self.consumers += other.consumers
        self.refusal = self.refusal or other.refusal


class Walk:
    """State of a capture: the flow of every node and the union-find forest of spaces."""

    def __init__(self, modules: dict[str, nn.Module], unusable: dict[str, str]) -> None:
        self.modules = modules
        self.unusable = unusable
        self.flows: dict[fx.Node, Flow] = {}
        self._spaces: list[Space] = []
        self._parents: list[int] = []

    def new_space(self, n_units: int, *, producer: str = "", kind: str = "") -> int:
        """Open a space of `n_units` units; without a producer it stands for the input."""
        space = Space(n_units)
        if producer:
            space.producers.append(producer)
            space.kinds.add(kind)
        self._spaces.append(space)
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def root(self, space: int) -> int:
        """Index of the space that `space` has been merged into."""
        while self._parents[space] != space:
            self._parents[space] = self._parents[self._parents[space]]
            space = self._parents[space]
        return space

    def __getitem__(self, space: int) -> Space:
        """Return the merged space that `space` belongs to."""
        return self._spaces[self.root(space)]

    def merge(self, first: int, second: int) -> None:
        """Couple two spaces: unit c of one goes with unit c of the other."""
        kept, gone = sorted((self.root(first), self.root(second)))
        if kept != gone:
            self._spaces[kept].absorb(self._spaces[gone])
            self._parents[gone] = kept

    def refuse(self, space: int, reason: str) -> None:
        """Declare the units of `space` unremovable; the first reason is kept."""
        self[space].refusal = self[space].refusal or reason

    def roots(self) -> list[Space]:
        """All merged spaces, in the order in which they were opened."""
        return [s for i, s in enumerate(self._spaces) if self._parents[i] == i]
