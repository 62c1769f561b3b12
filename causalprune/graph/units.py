"""What a captured network consists of: unit groups, their consumers, and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalprune.errors import UnknownNameError
from causalprune.graph.exported import Exported

__all__ = [
    "Consumer",
    "ConsumerSite",
    "Owned",
    "Span",
    "UnitGraph",
    "UnitGroup",
    "columns_in",
    "widths_in",
]


@dataclass(frozen=True)
class Span:
    """Where a run of units lies along a dimension.

    Unit ``unit + k`` (``0 <= k < n_units``) occupies the ``width`` places from
    ``start + k * stride`` on. A concatenation shifts `start`, a flatten widens, a channel shuffle
    strides; any order of units is a tuple of spans.
    """

    unit: int
    n_units: int
    start: int
    stride: int = 1
    width: int = 1


def columns_in(spans: Sequence[Span], units: Sequence[int]) -> Tensor:
    """Places [n], int64, that `units` occupy, unit by unit; units without a place have none.

    Examples
    --------
    >>> columns_in([Span(0, 3, start=10, stride=2, width=2)], [2, 0])
    tensor([14, 15, 10, 11])
    """
    wanted = torch.as_tensor(list(units), dtype=torch.int64)
    places, order = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for span in spans:
        inside = ((wanted >= span.unit) & (wanted < span.unit + span.n_units)).nonzero()
        starts = span.start + (wanted[inside] - span.unit) * span.stride
        places.append((starts + torch.arange(span.width)).flatten())
        order.append(inside.expand(-1, span.width).flatten())
    # Stable: a unit's own places stay in the order of the spans.
    return torch.cat(places)[torch.cat(order).argsort(stable=True)]


def widths_in(spans: Sequence[Span], n_units: int) -> NDArray[np.int64]:
    """Count the places that each unit occupies: [n_units], int64.

    Examples
    --------
    >>> widths_in([Span(0, 2, start=0, stride=2, width=2), Span(1, 1, start=8)], 3).tolist()
    [2, 3, 0]
    """
    widths = np.zeros(n_units, np.int64)
    for span in spans:
        widths[span.unit : span.unit + span.n_units] += span.width
    return widths


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the units of a group, or the branch where they are cut.

    Attributes
    ----------
    layer : str
        Dotted name of the module.
    kind : str
        Where the units are read: ``"conv"`` (channels of the module's input), ``"linear"``
        (features of its input), ``"attention"`` (heads, as the output projection of the
        attention module reads them), or, where units are cut on their own branch rather than at
        their consumers, ``"map"`` (channels [N, C, H, W] of the module's output) and
        ``"features"`` (last dimension of the module's output).
    features_per_unit : int
        Places that each unit occupies: 1, ``H * W`` after a flatten, or the width of a head.
    spans : tuple of Span
        Where the units lie. Units that this consumer does not read have no place.
    """

    layer: str
    kind: str
    features_per_unit: int
    spans: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def axis(self) -> int:
        """Dimension of the units, counted from the end: -3 for channels, -1 for features."""
        return -3 if self.kind in ("conv", "map") else -1

    @property
    def at_output(self) -> bool:
        """Whether the units are cut in the module's output rather than in its input."""
        return self.kind in ("map", "features")

    def columns(self, units: Sequence[int]) -> Tensor:
        """Places [n], int64, along `axis` that `units` occupy, unit by unit."""
        return columns_in(self.spans, units)


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
class Owned:
    """A module with parameters or buffers that belong to the units of a group.

    Attributes
    ----------
    layer : str
        Dotted name of the module.
    role : str
        ``"producer"`` (its output channels are units), ``"norm"``, ``"depthwise"``; ``"heads"``:
        the module whose code computes the attention, of which only the number of heads is sliced.
    spans : tuple of Span
        Which of the module's output channels (or heads) belong to which units.
    """

    layer: str
    role: str
    spans: tuple[Span, ...] = field(default=(), repr=False)

    def columns(self, units: Sequence[int]) -> Tensor:
        """Output channels [n], int64, of the module that belong to `units`."""
        return columns_in(self.spans, units)


@dataclass(frozen=True)
class UnitGroup:
    """Units that exist, and go, together.

    Attributes
    ----------
    name : str
        Dotted name of the first producer; of heads, that of the attention module.
    kind : str
        ``"filter"`` (convolution), ``"hidden"`` (linear layers only) or ``"head"`` (attention).
    n_units : int
        Number of units.
    owned : tuple of Owned
        What belongs to the units, in the order in which the network computes it.
    consumers : tuple of Consumer
        Where an intervention on the units takes place.
    surgery : str
        Why the units can be intervened on but not removed for good; ``""`` where they can.
    training : tuple of Owned or Consumer
        What belongs to the units or reads them in training mode only (an auxiliary classifier).
        In eval mode it is not there, so no effect is measured on it; surgery slices it.
    """

    name: str
    kind: str
    n_units: int
    owned: tuple[Owned, ...]
    consumers: tuple[Consumer, ...]
    surgery: str = ""
    training: tuple[Owned | Consumer, ...] = ()

    def layers(self, role: str) -> tuple[str, ...]:
        """Names of the owned modules with that role."""
        return tuple(owned.layer for owned in self.owned if owned.role == role)

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose output channels are these units; several where an addition couples."""
        return self.layers("producer")


@dataclass(frozen=True)
class UnitGraph:
    """The units of a network, and why other layers are left alone.

    Attributes
    ----------
    groups : tuple of UnitGroup
        In the order in which the network first computes them.
    refused : Mapping of str to str
        Layer name to the reason why its outputs cannot be intervened on.
    sites : Mapping of str to ConsumerSite
        One for every consumer of a group.
    positions : Mapping of str to int
        Output positions per image of every convolution (``Ho * Wo``) and linear layer (tokens).
    traced : bool
        Whether there is a graph of the network's operators. Where there is none, interventions
        are whole forward passes with hooks, and there are no `sites`.
    untraced : str
        Why there is none; ``""`` where there is one.
    exported : Exported or None
        The graph of a network that torch.export had to trace, for
        :func:`causalprune.graph.trace`, because exporting takes seconds.
    masks : Mapping of str to Mapping of str to torch.dtype
        Which masks each ``nn.MultiheadAttention`` is called with: ``"key_padding_mask"`` and
        ``"attn_mask"``.
    """

    groups: tuple[UnitGroup, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, ConsumerSite] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    traced: bool = True
    untraced: str = ""
    exported: Exported | None = field(default=None, repr=False, compare=False)
    masks: Mapping[str, Mapping[str, torch.dtype]] = field(default_factory=dict, repr=False)

    @property
    def removable(self) -> tuple[UnitGroup, ...]:
        """Groups whose units can be removed for good, not only intervened on."""
        return tuple(group for group in self.groups if not group.surgery)

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
