"""Path effects: cut every path from a unit into its consumers, exactly up to the activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import UnitGraph, evaluating, trace
from causalprune.graph.predictions import Prediction, PredictionFit, in_systems
from causalprune.graph.recording import Recorder, frozen
from causalprune.scoring.consumption import (
    Effects,
    Reading,
    readings_of,
    recorder_of,
)
from causalprune.scoring.data import Batch
from causalprune.scoring.explanatory import Walk
from causalprune.scoring.explanatory_pictures import explanation_tables
from causalprune.scoring.methods import Job, MethodResult, register_method
from causalprune.scoring.outcomes import Outcome, evaluate
from causalprune.scoring.path_run import PathRun
from causalprune.scoring.projections import (
    check_projections,
    directions_of,
    distances,
    generator_of,
    n_directions,
)
from causalprune.scoring.tally import Tally

__all__ = ["UnitPaths", "path", "per_image_effects"]

FORWARDS_PER_PASS = 3.0
"""A backward pass of twice a forward's work, and the consumers' products once more."""

CHUNK = 64
"""Images run at once at most: more make no operator faster and push values out of the caches."""

SPARE = 1.5
"""What a run needs at its peak, as a multiple of what it keeps."""


@register_method(
    "path",
    needs_gradient=True,
    shards=("projections",),
    interventions=("zero", "mean", "predicted"),
    compares=True,
)
def path(
    job: Job,
    *,
    edges: bool = False,
    graphs: Sequence[int] = (),
    examples: int = 1,
    test: str = "paired",
    beta: float | None = None,
    projections: int | None = None,
) -> MethodResult:
    """Effect of cutting a unit's paths into its consumers; first order behind their activation.

    For a consumer with pre-activation ``y_j`` (batch norm folded in, shortcut included) the cut
    changes its output by ``d_ij = phi(y_j - c_ij) - phi(y_j)``, exactly; the effect on the
    outcome of image n is ``sum_j sum_p dY/dphi_j * d_ij``, added over the consumers. Exact where
    what follows is linear, so for ``outcome="logit"`` in the last hidden layer. A unit that
    occupies several columns (a flattened map) is cut in all of them at once; a unit that is cut
    on its own branch (``units="filters"``) loses its term of the sum that enters the activation;
    attention heads are cut before the output projection, which is linear. Where an activation is
    not one that the operator knows, it is taken at first order (named in ``Scores.notes``). With
    ``intervention="mean"`` what is cut is a unit's deviation from its mean over the data, with
    ``"predicted"`` that from its linear prediction by the other units of its group.

    For an outcome that compares two outputs the effect is the distance that the path effects on
    all logits come to: for ``"logits"`` the mean square of their centred path effects, from
    random `projections` where there are many classes (unbiased); for another one its value when
    the logits of the image's likeliest classes change by their path effects.
    Source: methods of Ahmad et al. (2023), local form; computed in float32 with float64 sums.

    Parameters
    ----------
    job : Job
        Batches are cut so that what is kept of a run stays within ``max_cache_bytes``.
    edges : bool
        Also give ``Scores.edges[layer]`` [O, I]: for every consumer that is a layer the mean over
        images of the effect of cutting the one edge from its input i to its output j, in units of
        the outcome. I counts the layer's inputs (per group in a grouped convolution); where a
        unit occupies several of them, the units instead, in the order of the groups. Costs the
        kernel also where the unit effects alone are to be had without it.
    graphs : sequence of int
        Classes whose explanatory graph ``Scores.graph(k)`` shall hold
        (:func:`causalprune.scoring.explain`, on the same data).
    examples : int
        Images a class that are stored with these graphs, with their maps
        (:func:`causalprune.scoring.explained`).
    test, beta
        Of these graphs.
    projections : int, optional
        Backward passes for an outcome that compares. Default: 16, or as many as are exact (one
        less than there are classes for ``"logits"``, else one for each class).
    """
    if not isinstance(edges, bool):
        raise InvalidArgumentError(f"edges: expected True or False, got {edges!r}")
    walk = Walk(test, beta, job.seed, job.max_cache_bytes)
    paths, tally = UnitPaths.of(job, edges=edges, projections=projections), Tally(job)
    with job.bar("path effects", job.batches.n_batches) as advance:
        for batch in tally.batches():
            found = paths.effects(batch, tally.batch)
            share = (1 + FORWARDS_PER_PASS * paths.n_passes) / job.n_units
            for name, effects in found.items():
                tally.add(name, effects, cost=share * len(effects))
            advance()
    tables = {}
    if graphs:
        tables = explanation_tables(job.model, job.batches, graphs, walk, examples=examples)
    return MethodResult(tally.scores(), paths.edges, tables=tables)


def per_image_effects(job: Job, batch: Batch) -> dict[str, Tensor]:
    """Path effects of every unit on every image: group name to [N, n_units], float64, CPU.

    For several batches of one network, :class:`UnitPaths` prepares once what does not change.
    """
    return UnitPaths.of(job).effects(batch)


class UnitPaths:
    """Path effects of a network's units on the outcome of each image, batch after batch.

    Parameters
    ----------
    model : nn.Module
        In eval mode. Between runs it must not change.
    graph : UnitGraph
        Captured from `model`.
    outcome : Outcome
        Differentiable.
    max_cache_bytes : int
        Bound on what is kept of a run: as many images run at once as fit, at least one.
    edges : bool
        Whether to sum up :attr:`edges`.
    projections : int, optional
        Backward passes for an outcome that compares; see :func:`path`.
    seed : int
        Of the projections.

    Raises
    ------
    InvalidArgumentError
        If the outcome compares and `edges` are asked for, or does not and `projections` are.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: UnitGraph,
        outcome: Outcome,
        *,
        max_cache_bytes: int = 2**30,
        edges: bool = False,
        projections: int | None = None,
        seed: int = 0,
    ) -> None:
        check_projections(outcome, projections)
        if edges and outcome.compares:
            raise InvalidArgumentError(
                f"edges: expected False with outcome {outcome.name!r}, a distance between two "
                "outputs, which no sum over edges gives; use an outcome such as 'loss'"
            )
        self._model, self._graph, self._outcome = model, graph, outcome
        self._max_cache_bytes = max_cache_bytes
        self._with_edges = edges
        self._projections, self._seed = projections, seed
        self._readings = readings_of(model, graph)
        self._edges: dict[str, Tensor] = {}
        self._n_images = 0
        self._chunk = 0
        self._traced: fx.GraphModule | None = None
        self._run: PathRun | None = None
        self._means: dict[str, Tensor] = {}
        self._predictions: dict[str, list[Prediction]] = {}
        self.n_passes = 1
        """Backward passes that the last batch took."""

    @classmethod
    def of(cls, job: Job, *, edges: bool = False, projections: int | None = None) -> UnitPaths:
        """Prepare what `job` asks for; but for ``intervention="zero"`` this reads the data once.

        Raises
        ------
        InvalidArgumentError
            For ``intervention="resample"``, or as :class:`UnitPaths` itself.
        """
        if job.intervention not in ("zero", "mean", "predicted"):
            raise InvalidArgumentError(
                "intervention: path effects cut to 'zero', to the 'mean' or to what is "
                f"'predicted', got {job.intervention!r}; use method='ablation', with a budget "
                "surrogate='none'"
            )
        paths = cls(
            job.model,
            job.graph,
            job.outcome,
            max_cache_bytes=job.max_cache_bytes,
            edges=edges,
            projections=projections,
            seed=job.seed,
        )
        if job.intervention != "zero":
            paths.calibrate(job.batches, predict=job.intervention == "predicted")
        return paths

    def calibrate(self, batches: Iterable[Batch], *, predict: bool = False) -> None:
        """Cut to what is expected of every unit over `batches`, not to zero.

        To its mean, one for a channel or feature, or with `predict` to its regression on the
        other units of its group (:class:`causalprune.graph.predictions.Prediction`).
        """
        totals: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        fits: dict[str, list[PredictionFit]] = {}

        def add(reading: Reading, value: Tensor) -> Tensor:
            if predict:
                for fit in fits[reading.key]:
                    fit.add(value, value.ndim + reading.consumer.axis)
                return value
            columns = value.movedim(reading.consumer.axis, -1).flatten(0, -2)
            total = totals.get(reading.key, 0.0)
            totals[reading.key] = total + columns.sum(0, dtype=torch.float64)
            counts[reading.key] += len(columns)
            return value

        for reading in self._readings if predict else ():
            fits[reading.key] = [
                PredictionFit(x.units, in_systems(self._graph.group(x.group), x.places))
                for x in reading.layouts
            ]
        recorder: Recorder | None = None
        with torch.no_grad():
            for batch in batches:
                if recorder is None:
                    recorder = recorder_of(self._trace(batch.inputs[:1]), self._readings, add)
                for start in range(0, len(batch.inputs), CHUNK):
                    recorder.run(batch.inputs[start : start + CHUNK])
        self._means = {key: total / counts[key] for key, total in totals.items()}
        self._predictions = {key: [fit.solve() for fit in found] for key, found in fits.items()}
        self._run = None

    def _trace(self, image: Tensor) -> fx.GraphModule:
        if self._traced is None:
            with evaluating(self._model):
                self._traced = trace(self._model, image, exported=self._graph.exported)
        return self._traced

    @property
    def edges(self) -> dict[str, Tensor]:
        """Layer name to the mean over all images so far of its edges' effects, float64."""
        return {layer: total / self._n_images for layer, total in self._edges.items()}

    def effects(self, batch: Batch, index: int = 0) -> Effects:
        """Path effects of every unit on every image of `batch`.

        Parameters
        ----------
        batch : Batch
        index : int
            Of the batch among all: random projections depend on it and on the seed.

        Returns
        -------
        dict of str to Tensor [N, n_units], float64, CPU
            Group name to ``sum dY/dphi * d``; for an outcome that compares, to the distance.

        Raises
        ------
        DataError
            If the outcome or an effect is not finite; the message names the unit.
        """
        if self._run is None:
            traced = self._trace(batch.inputs[:1])
            self._run = PathRun(traced, self._readings, self._with_edges, self._deviation)
        parts = []
        generator = generator_of(self._seed, index)
        with torch.enable_grad(), frozen(self._model):
            chunk = self._chunk = self._chunk or self._images_that_fit(self._run, batch)
            for start in range(0, len(batch.inputs), chunk):
                part = _slice(batch, start, start + chunk)
                parts.append(self._of_chunk(self._run, part, generator))
        self._n_images += len(batch.inputs)
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in found.items():
            if not bool(torch.isfinite(values).all()):
                unit = int((~torch.isfinite(values)).any(0).nonzero()[0])
                raise DataError(f"path effect of unit {unit} of layer {name!r} is not finite")
        return found

    def _of_chunk(self, run: PathRun, batch: Batch, generator: torch.Generator) -> Effects:
        derived = _Derived(self._outcome, self._projections, generator)
        sums: list[Effects] = []
        for results in run(batch, derived):
            of_value = {
                group.name: torch.zeros(len(batch.inputs), group.n_units, dtype=torch.float64)
                for group in self._graph.groups
            }
            for effects, layer, edge in results:
                for name, values in effects.items():
                    of_value[name] += values
                if self._with_edges and edge is not None:
                    self._edges[layer] = self._edges.get(layer, 0.0) + edge
            sums.append(of_value)
        self.n_passes = len(sums)
        return derived.effects(sums)

    def _deviation(self, reading: Reading, value: Tensor) -> Tensor:
        """Return what an intervention takes away: all of the value, or what is not expected."""
        mean = self._means.get(reading.key)
        if mean is not None:
            return value - mean.to(value).reshape(-1, *[1] * (-1 - reading.consumer.axis))
        if reading.key not in self._predictions:
            return value
        axis = value.ndim + reading.consumer.axis
        expected = value
        for prediction in self._predictions[reading.key]:
            expected = prediction.of_all(value, axis, into=expected)
        return value - expected

    def _images_that_fit(self, run: PathRun, batch: Batch) -> int:
        """How many images may run at once; found by running the first one."""
        constants = [*self._model.parameters(), *self._model.buffers()]
        derived = _Derived(self._outcome, self._projections, generator_of(0, 0))
        per_image = run.kept_bytes(_slice(batch, 0, 1), derived, constants)
        return max(1, min(CHUNK, int(self._max_cache_bytes / (SPARE * per_image))))


class _Derived:
    """What is derived of an output, and what the derivatives' sums come to."""

    def __init__(
        self, outcome: Outcome, projections: int | None, generator: torch.Generator
    ) -> None:
        self._outcome, self._projections = outcome, projections
        self._generator = generator
        self._logits = self._directions = torch.zeros(0)

    def __call__(self, output: Any, targets: Tensor | None) -> list[Tensor]:
        outcome = self._outcome
        if not outcome.compares:
            value = evaluate(outcome, output, targets, "on the whole network")
            if not value.requires_grad:
                raise InvalidArgumentError(
                    f"outcome: expected one that can be differentiated, {outcome.name!r} gives no "
                    "gradient; use method='ablation'"
                )
            return [value]
        n = n_directions(outcome, output, self._projections)
        evaluate(outcome, output.detach(), None, "on the whole network", output.detach())
        logits = output.double()
        self._logits = logits.detach()
        self._directions = directions_of(outcome, self._logits, n, self._generator)
        return [(logits * self._directions[:, k]).sum(1) for k in range(n)]

    def effects(self, sums: Sequence[Effects]) -> Effects:
        """Return the effects of the outcome out of those of every value derived."""
        if not self._outcome.compares:
            (only,) = sums
            return only
        return {
            name: distances(
                self._outcome,
                self._logits,
                self._directions,
                torch.stack([of_value[name] for of_value in sums], 2),
            )
            for name in sums[0]
        }


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    targets = None if batch.targets is None else batch.targets[start:stop]
    return Batch(batch.inputs[start:stop], targets)
