"""Exact ablation: run the network again without each unit, one unit at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from causalprune.graph import Replay, Suffix, UnitGroup, removed, trace
from causalprune.graph.intervene import columns_of
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate

__all__ = ["ablation"]

FORWARDS_PER_UNIT = 1.0


@register_method("ablation")
def ablation(job: Job) -> Mapping[str, UnitScores]:
    """Total effect of do(unit := 0) on the outcome: the reference of every cheaper score.

    Per image, Y with the unit zeroed where its consumers read, minus Y. What lies before the
    consumers is computed once a batch (suffix replay), which changes no value. The cost is
    given as one forward-equivalent per unit, an upper bound.
    """
    runner = _Runner(job)
    totals = {group.name: PairedMean(group.n_units) for group in job.graph.groups}
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * job.n_units
    with torch.no_grad(), job.bar("exact ablation", total) as advance:
        for batch in job.batches:
            plain = evaluate(
                job.outcome, runner.plain(batch.inputs), batch.targets, "on the whole network"
            )
            for group in job.graph.groups:
                effects = []
                for unit, output in runner.without_each(group, batch.inputs):
                    where = f"after removing unit {unit} of layer {group.name!r}"
                    value = evaluate(job.outcome, output, batch.targets, where)
                    effects.append(value - plain)
                    advance()
                totals[group.name].update(torch.stack(effects, 1))
    return {name: UnitScores.of(mean, FORWARDS_PER_UNIT) for name, mean in totals.items()}


class _Runner:
    """Outputs with and without a unit, by suffix replay where that is exact."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._replay = Replay(trace(job.model), keep_all=True)
        self._exact = Suffix.exact(self._replay)
        self._suffixes: dict[str, Suffix] = {}
        for group in job.graph.groups:
            nodes = {job.graph.sites[c.layer].node: c for c in group.consumers}
            self._suffixes[group.name] = Suffix(self._replay, nodes)
        self._values: dict[Any, Any] = {}

    def plain(self, inputs: Tensor) -> Any:
        output = self._replay(inputs)
        self._values = dict(self._replay.env)
        return output

    def without_each(self, group: UnitGroup, inputs: Tensor) -> Iterator[tuple[int, Any]]:
        run = self._replayed if self._exact else self._hooked
        for unit in range(group.n_units):
            yield unit, run(group, inputs)(unit)

    def _replayed(self, group: UnitGroup, inputs: Tensor) -> Callable[[int], Any]:
        suffix, sites = self._suffixes[group.name], self._job.graph.sites

        def run(unit: int) -> Any:
            columns = {sites[c.layer].node: columns_of(c, [unit]) for c in group.consumers}
            return suffix(self._values, columns)

        return run

    def _hooked(self, group: UnitGroup, inputs: Tensor) -> Callable[[int], Any]:
        def run(unit: int) -> Any:
            with removed(self._job.model, self._job.graph, {group.name: [unit]}):
                return self._job.model(inputs)

        return run
