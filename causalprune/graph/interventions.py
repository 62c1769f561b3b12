"""Outputs of a network under interventions on its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.graph.intervene import check_units, removed
from causalprune.graph.replay import Replay, Suffix
from causalprune.graph.trace import trace
from causalprune.graph.units import UnitGraph

__all__ = ["Interventions"]


class Interventions:
    """Run a network on images under do(units := value), again and again.

    :meth:`observe` runs the network as it is; the other methods then answer for the same images.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    graph : UnitGraph
        Captured from `model`.
    value : str
        ``"zero"``.
    max_cache_bytes : int
        Bound on what is kept of a plain run.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: UnitGraph,
        *,
        value: str = "zero",
        max_cache_bytes: int = 2**30,
    ) -> None:
        self._model, self._graph = model, graph
        self._replay = Replay(trace(model), keep_all=True)
        self._values: dict[Any, Any] = {}
        self._inputs = torch.zeros(0)

    def observe(self, inputs: Tensor) -> Tensor:
        """Run the network on `inputs` [N, ...] as it is; returns its output [N, K]."""
        self._inputs = inputs
        output: Tensor = self._replay(inputs)
        self._values = dict(self._replay.env)
        return output

    def remove(
        self, group: str, units: Sequence[int], images: Sequence[int] | None = None
    ) -> Tensor:
        """Return outputs [len(units), n, K] with each of `units` removed alone, on `images`."""
        parts = []
        for unit in units:
            output = self.remove_jointly({group: [unit]})
            parts.append(output if images is None else output[list(images)])
        return torch.stack(parts)

    def remove_jointly(self, units: Mapping[str, Sequence[int]]) -> Tensor:
        """Return the outputs [N, K] with all of `units` removed at once."""
        if not Suffix.exact(self._replay):
            with removed(self._model, self._graph, units):
                whole: Tensor = self._model(self._inputs)
                return whole
        nodes, columns = {}, {}
        for name, chosen in units.items():
            group = self._graph.group(name)
            for consumer in group.consumers:
                node = self._graph.sites[consumer.layer].node
                nodes[node] = consumer
                columns[node] = consumer.columns(check_units(group, chosen))
        output: Tensor = Suffix(self._replay, nodes)(self._values, columns)
        return output

    def remove_masked(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return outputs [N, K] where image n lacks the units u with ``masks[group][n, u]``.

        Parameters
        ----------
        masks : Mapping of str to Tensor [N, n_units], bool
        """
        rows = []
        for row in range(len(self._inputs)):
            units = {g: mask[row].nonzero().flatten().tolist() for g, mask in masks.items()}
            rows.append(self.remove_jointly({g: u for g, u in units.items() if u})[row])
        return torch.stack(rows)

    def cost(self, group: str) -> float:
        """Forward-equivalents of removing one unit of `group` on one image."""
        return 1.0
