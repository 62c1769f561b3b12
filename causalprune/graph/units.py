"""What a captured network consists of: unit groups, their consumers, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from causalprune.errors import UnknownNameError

__all__ = ["Consumer", "ConsumerSite", "UnitGraph", "UnitGroup"]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the units of a group.

    Attributes
    ----------
    layer : str
        Dotted name of the module.
    kind : str
        ``"conv"`` or ``"linear"``.
    features_per_unit : int
        Adjacent columns of the module's input that each unit occupies: 1, or ``H * W`` after
        a flatten. Unit ``c`` owns the columns ``c * features_per_unit`` up to, not including,
        ``(c + 1) * features_per_unit``.
    """

    layer: str
    kind: str
    features_per_unit: int


@dataclass(frozen=True)
class ConsumerSite:
    """Where the path effects of one consumer are evaluated.

    Attributes
    ----------
    layer : str
        Dotted name of the consumer.
    node : str
        Name of the consumer's node in the traced graph.
    norm : str or None
        The batch norm directly behind the consumer, folded into its weights.
    activation : str
        ``"relu"``, ``"gelu"``, ``"silu"``, ``"hardswish"``, or ``"identity"`` where none of
        them follows; the effect is then linear in the cut.
    pre : str
        Node whose value enters the activation (shortcut included).
    out : str
        Node whose value leaves the activation; equal to `pre` for ``"identity"``.
    reason : str
        Why a nonlinearity behind the consumer is taken at first order, or ``""``.
    """

    layer: str
    node: str
    norm: str | None
    activation: str
    pre: str
    out: str
    reason: str = ""


@dataclass(frozen=True)
class UnitGroup:
    """Units that exist, and go, together.

    Attributes
    ----------
    name : str
        Dotted name of the first producer.
    producers : tuple of str
        Modules whose output channels are these units; several where a residual addition
        couples them.
    kind : str
        ``"filter"`` (convolution) or ``"hidden"`` (linear layers only).
    n_units : int
        Number of units; unit ``c`` is output channel ``c`` of every producer.
    norms : tuple of str
        Batch norms whose channels are these units.
    depthwise : tuple of str
        Depthwise convolutions the units pass through; they shrink with them.
    consumers : tuple of Consumer
        The layers that read the units.
    """

    name: str
    producers: tuple[str, ...]
    kind: str
    n_units: int
    norms: tuple[str, ...]
    depthwise: tuple[str, ...]
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True)
class UnitGraph:
    """The removable units of a network, and why the other layers are left alone.

    Attributes
    ----------
    groups : tuple of UnitGroup
        In the order in which the network first computes them.
    refused : Mapping of str to str
        Layer name to the reason why its outputs cannot be removed.
    sites : Mapping of str to ConsumerSite
        One for every consumer of a group.
    positions : Mapping of str to int
        Output positions per image of every convolution (``Ho * Wo``) and linear layer (tokens).
    """

    groups: tuple[UnitGroup, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, ConsumerSite] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)

    def group(self, name: str) -> UnitGroup:
        """Return the group called `name`.

        Raises
        ------
        UnknownNameError
            If there is none; the message lists the names that are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise UnknownNameError("unit group", name, [group.name for group in self.groups])
