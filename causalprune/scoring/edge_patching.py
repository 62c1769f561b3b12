"""Edge attribution patching with integrated gradients, for the edges between layers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph.recording import Recorder, frozen
from causalprune.scoring.consumption import (
    Reading,
    by_unit,
    images_first,
    layer_of,
    per_column,
    readings_of,
)
from causalprune.scoring.data import Batch
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.outcomes import evaluate

__all__ = ["edge_patching"]

FORWARDS_PER_STEP = 3.0
"""A forward pass and a backward pass of twice its work."""


@register_method("edge_patching", needs_gradient=True)
def edge_patching(job: Job, *, steps: int = 5, corrupted: str = "zeros") -> MethodResult:
    """First-order effect of giving an edge what it carries on a corrupted image.

    For the edge from unit i to output j of a consumer, ``-sum_p c_ij g_j``: ``c_ij`` is the
    contribution of the change of i between the corrupted image and the image, ``g_j`` the slope
    of the outcome at the consumer's output, averaged over `steps` images on the straight way
    between the two (Hanna, Pezzelle and Belinkov 2024, "EAP-IG", eq. 3, where edges end in
    attention heads and MLPs of a transformer; here in the outputs of a layer). A unit's effect is
    the sum over its edges; ``Scores.edges[layer]`` [O, I] has their means over the images, I
    being the layer's inputs (of a group, in a grouped convolution). Units that are cut on their
    own branch have their value there as their only edge.

    Parameters
    ----------
    job : Job
    steps : int
    corrupted : str
        ``"zeros"`` (the image of zeros) or ``"shuffled"`` (the next image of the batch).
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidArgumentError(f"steps: expected a positive integer, got {steps!r}")
    if corrupted not in ("zeros", "shuffled"):
        raise UnknownNameError("corruption", corrupted, ("shuffled", "zeros"))
    patching = _Patching(job, steps)
    totals = {g.name: PairedMean(g.n_units) for g in job.graph.groups}
    n_images = 0
    with job.bar("edge patching", job.batches.n_batches) as advance, frozen(job.model):
        for batch in job.batches:
            if corrupted == "shuffled" and len(batch.inputs) < 2:
                raise InvalidArgumentError(
                    "corrupted: expected at least two images in every batch for 'shuffled', got 1"
                )
            other = batch.inputs.roll(1, 0) if corrupted == "shuffled" else batch.inputs * 0
            effects = patching.effects(batch, other)
            for name, total in totals.items():
                total.update(effects[name])
            n_images += len(batch.inputs)
            advance()
    cost = (2 + FORWARDS_PER_STEP * steps) * n_images / job.n_units
    units = {name: UnitScores.of(total, cost) for name, total in totals.items()}
    return MethodResult(units, {k: v / n_images for k, v in patching.edges.items()})


class _Patching:
    """Effects of edges, batch after batch; `edges` sums them over the images."""

    def __init__(self, job: Job, steps: int) -> None:
        self._job, self._steps = job, steps
        self._readings = readings_of(job.model, job.graph)
        self.edges: dict[str, Tensor] = {}
        self._read: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}
        inner = [r for r in self._readings if not r.consumer.at_output]
        outer = [r for r in self._readings if r.consumer.at_output]
        # Not folded: the slope is taken at the output of the layer whose weight is used.
        self._recorder = Recorder(
            job.trace(),
            {r.site.node: partial(self._see_output, r) for r in [*outer, *inner]},
            {r.site.node: partial(self._see_input, r) for r in inner},
            fold=False,
        )

        with torch.no_grad():
            of_one = self._values(job.batches.example)
        self._of_one = {layer: value.shape for layer, value in of_one.items()}

    def effects(self, batch: Batch, other: Tensor) -> dict[str, Tensor]:
        """Effects [N, n_units] of every group on the images of `batch`."""
        job, n_images = self._job, len(batch.inputs)
        with torch.no_grad():
            changes = self._values(other)
            changes = {key: v - changes[key] for key, v in self._values(batch.inputs).items()}
        slopes: dict[str, Tensor] = {}
        for step in range(1, self._steps + 1):
            inputs = other + (batch.inputs - other) * step / self._steps
            for key, slope in self._slopes(inputs, batch).items():
                slopes[key] = slopes.get(key, 0.0) + slope / self._steps
        found = {
            g.name: torch.zeros(n_images, g.n_units, dtype=torch.float64) for g in job.graph.groups
        }
        for reading in self._readings:
            key = reading.site.layer
            back = self._to_inputs(reading, changes[key], slopes[key])
            product = images_first(changes[key] * back, self._of_one[key])
            columns = -per_column(product, reading.consumer.axis, n_images)
            for name, effects in by_unit(reading, columns).items():
                found[name] += effects
        return found

    def _to_inputs(self, reading: Reading, change: Tensor, slope: Tensor) -> Tensor:
        """Slope at what the layer reads; adds up the edges on the way."""
        if reading.weight is None:
            return slope
        layer = layer_of(reading.module)
        weight = layer.weight.detach()
        if isinstance(layer, nn.Linear):
            tokens, given = change.flatten(0, -2), slope.flatten(0, -2)
            self._add(reading, -(given.T @ tokens) * weight)
            return F.linear(slope, weight.T)
        x = change.detach().requires_grad_()
        w = weight.clone().requires_grad_()
        with torch.enable_grad():
            given = layer._conv_forward(x, w, None)
            by_x, by_w = torch.autograd.grad(given, (x, w), slope)
        self._add(reading, -(by_w * weight).sum((2, 3)))
        return by_x

    def _add(self, reading: Reading, edge: Tensor) -> None:
        layer = reading.site.layer
        self.edges[layer] = self.edges.get(layer, 0.0) + edge.detach().double().cpu()

    def _values(self, inputs: Tensor) -> dict[str, Tensor]:
        self._read, self._given = {}, {}
        self._recorder.run(inputs)
        return {
            r.site.layer: (self._given if r.consumer.at_output else self._read)[r.site.layer]
            for r in self._readings
        }

    def _slopes(self, inputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        self._read, self._given = {}, {}
        with torch.enable_grad():
            output = self._recorder.run(inputs.detach().requires_grad_())
            value = evaluate(self._job.outcome, output, batch.targets, "on the whole network")
            found = torch.autograd.grad(value.sum(), list(self._given.values()), allow_unused=True)
        return {
            key: torch.zeros_like(v) if g is None else g
            for (key, v), g in zip(self._given.items(), found, strict=True)
        }

    def _see_input(self, reading: Reading, value: Tensor) -> Tensor:
        self._read[reading.site.layer] = value.detach()
        return value

    def _see_output(self, reading: Reading, value: Tensor) -> Tensor:
        if isinstance(value, tuple):  # attention layers give their weights, too
            first, *rest = value
            return (self._see_output(reading, first), *rest)
        value = value if value.requires_grad else value.detach()
        self._given[reading.site.layer] = value
        return value
