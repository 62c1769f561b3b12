"""Attributions along a path: conductance, and integrated gradients of a group's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGroup
from causalprune.graph.recording import frozen
from causalprune.scoring.consumption import (
    Effects,
    Reading,
    by_unit,
    images_first,
    per_column,
    readings_of,
    recorder_of,
)
from causalprune.scoring.data import Batch
from causalprune.scoring.methods import Job, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate
from causalprune.scoring.tally import Tally

__all__ = ["conductance", "integrated_gradients"]

FORWARDS_PER_STEP = 3.0
"""A forward pass and a backward pass of twice its work."""

Values = dict[str, Tensor]


@register_method("conductance", needs_gradient=True, shards=("steps",))
def conductance(job: Job, *, steps: int = 16) -> Mapping[str, UnitScores]:
    """Flow of the outcome's change through a unit while the input grows from zero to the image.

    ``-sum dY/da da`` along the straight path of `steps` steps (trapezoids) from the input of
    zeros, over the unit's places at all its consumers (Dhamdhere, Sundararajan and Yan 2019,
    eq. 3); the sign is that of an effect of removal. Through a cut that separates input from
    output the flows of all units add up to ``Y(0) - Y(x)``.

    Parameters
    ----------
    job : Job
    steps : int
    """
    _check_steps(steps)
    readings = readings_of(job.model, job.graph)
    watch = _Watch(job, job.trace(), readings)
    tally, share = Tally(job), FORWARDS_PER_STEP * (steps + 1) / job.n_units
    with job.bar("conductance", job.batches.n_batches) as advance, frozen(job.model):
        for batch in tally.batches():
            flows: dict[str, Tensor] = {}
            before: tuple[Values, Values] | None = None
            for step in range(steps + 1):
                here = watch.run(batch, scale=step / steps)
                if before is not None:
                    for key, value in here[0].items():
                        slope = (here[1][key] + before[1][key]) / 2
                        flows[key] = flows.get(key, 0.0) - slope * (value - before[0][key])
                before = here
            for name, effects in watch.by_group(flows, len(batch.inputs)).items():
                tally.add(name, effects, cost=share * len(effects))
            advance()
    return tally.scores()


@register_method("integrated_gradients", needs_gradient=True, shards=("steps",))
def integrated_gradients(job: Job, *, steps: int = 8) -> Mapping[str, UnitScores]:
    """Effect of removing a unit by degrees, together with all other units of its group.

    ``-sum a * mean over alpha of dY/da``, where the consumers read ``alpha * a`` of every unit of
    the group, alpha at the midpoints of `steps` intervals of [0, 1] (Sundararajan, Taly and Yan
    2017, eq. 1, with the units as features and zero as the baseline). Over the units of a group
    the effects add up to that of removing all of it.

    Parameters
    ----------
    job : Job
    steps : int
    """
    _check_steps(steps)
    readings = readings_of(job.model, job.graph)
    tally = Tally(job, by_group=True)
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * len(job.graph.groups)
    traced = job.trace()
    plain = _Watch(job, traced, readings)
    watches = {
        group.name: _Watch(job, traced, [r for r in readings if group.name in r.sizes], group)
        for group in job.graph.groups
    }
    with job.bar("integrated gradients", total) as advance, frozen(job.model):
        for batch in tally.batches():
            clean = plain.run(batch)[0]
            for group in tally.groups():
                watch = watches[group.name]
                flows: dict[str, Tensor] = {}
                for step in range(steps):
                    alpha = (step + 0.5) / steps
                    scaled = {layer: alpha * clean[layer] for layer in watch.layers}
                    for key, slope in watch.run(batch, replaced=scaled)[1].items():
                        flows[key] = flows.get(key, 0.0) - slope * clean[key] / steps
                effects = watch.by_group(flows, len(batch.inputs))[group.name]
                cost = FORWARDS_PER_STEP * steps * len(effects) / group.n_units
                tally.add(group.name, effects, cost)
                advance()
    return tally.scores()


class _Watch:
    """Runs the network and gives what the readings read, and the outcome's slope there.

    With a group, the places of its units are those of the ``replaced`` values.
    """

    def __init__(
        self,
        job: Job,
        traced: fx.GraphModule,
        readings: Sequence[Reading],
        group: UnitGroup | None = None,
    ) -> None:
        self._job, self._group, self._readings = job, group, readings
        self.layers = [reading.site.layer for reading in readings]
        self._values: Values = {}
        self._of_one: dict[str, torch.Size] = {}
        self._replaced: Mapping[str, Tensor] = {}
        self._recorder = recorder_of(traced, readings, self._see)

    def run(
        self, batch: Batch, *, scale: float = 1.0, replaced: Mapping[str, Tensor] | None = None
    ) -> tuple[Values, Values]:
        """Run on ``scale`` times the images; returns values and slopes by layer, float64."""
        self._values, self._replaced = {}, replaced or {}
        with torch.enable_grad():
            inputs = (batch.inputs.detach() * scale).requires_grad_()
            output = self._recorder.run(inputs)
            value = evaluate(self._job.outcome, output, batch.targets, "on the whole network")
            asked = list(self._values.values())
            found = torch.autograd.grad(value.sum(), asked, allow_unused=True)
        slopes = {
            key: torch.zeros_like(v).double() if g is None else g.double()
            for (key, v), g in zip(self._values.items(), found, strict=True)
        }
        return {key: v.detach().double() for key, v in self._values.items()}, slopes

    def by_group(self, flows: Mapping[str, Tensor], n_images: int) -> Effects:
        """Sum what `flows` (by layer) holds at the places of every unit: [N, n_units]."""
        if not self._of_one:
            self._values, self._replaced = {}, {}
            with torch.no_grad():
                self._recorder.run(self._job.batches.example)
            self._of_one = {layer: value.shape for layer, value in self._values.items()}
        found = {
            g.name: torch.zeros(n_images, g.n_units, dtype=torch.float64)
            for g in self._job.graph.groups
        }
        for reading in self._readings:
            layer = reading.site.layer
            product = images_first(flows[layer], self._of_one[layer])
            columns = per_column(product, reading.consumer.axis, n_images)
            for name, effects in by_unit(reading, columns).items():
                found[name] += effects
        return found

    def _see(self, reading: Reading, value: Tensor) -> Tensor:
        layer = reading.site.layer
        if layer in self._replaced:
            value = self._put_back(reading, value, self._replaced[layer])
        value = value.view_as(value)  # a reading of its own: its slope is that of this consumer
        self._values[layer] = value
        return value

    def _put_back(self, reading: Reading, value: Tensor, replaced: Tensor) -> Tensor:
        assert self._group is not None
        axis = value.ndim + reading.consumer.axis
        shape = [1] * value.ndim
        shape[axis] = value.shape[axis]
        own = torch.zeros(value.shape[axis], dtype=torch.bool)
        for layout in reading.layouts:
            if layout.group == self._group.name:
                own[layout.places.flatten()] = True
        return torch.where(own.reshape(shape).to(value.device), replaced.to(value), value)


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidArgumentError(f"steps: expected a positive integer, got {steps!r}")
