"""Path effects: cut every path from a unit into its consumers, exactly up to the activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import UnitGraph, evaluating, trace
from causalprune.graph.recording import Recorder, Watcher, frozen
from causalprune.scoring.consumption import (
    Effects,
    Reading,
    cut,
    first_order,
    images_first,
    readings_of,
    recorder_of,
)
from causalprune.scoring.data import Batch
from causalprune.scoring.explanatory import Walk, explain_classes
from causalprune.scoring.explanatory_graph import tables_of
from causalprune.scoring.methods import Job, MethodResult, register_method
from causalprune.scoring.outcomes import Outcome, evaluate
from causalprune.scoring.tally import Tally

__all__ = ["UnitPaths", "path", "per_image_effects"]

FORWARDS_PER_IMAGE = 4.0
"""A forward, a backward of twice its work, and the consumers' products once more."""

CHUNK = 64
"""Images run at once at most: more make no operator faster and push values out of the caches."""

SPARE = 1.5
"""What a run needs at its peak, as a multiple of what it keeps."""

Result = tuple[Effects, str, "Tensor | None"]


@register_method("path", needs_gradient=True, shards=(), interventions=("zero", "mean"))
def path(
    job: Job,
    *,
    edges: bool = False,
    graphs: Sequence[int] = (),
    test: str = "paired",
    beta: float | None = None,
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
    ``intervention="mean"`` what is cut is a unit's deviation from its mean over the data.
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
    test, beta
        Of these graphs.
    """
    if not isinstance(edges, bool):
        raise InvalidArgumentError(f"edges: expected True or False, got {edges!r}")
    walk = Walk(test, beta, job.seed, job.max_cache_bytes)
    paths = UnitPaths.of(job, edges=edges)
    tally, share = Tally(job), FORWARDS_PER_IMAGE / job.n_units
    with job.bar("path effects", job.batches.n_batches) as advance:
        for batch in tally.batches():
            for name, effects in paths.effects(batch).items():
                tally.add(name, effects, cost=share * len(effects))
            advance()
    found = explain_classes(job.model, job.batches, graphs, walk) if graphs else []
    return MethodResult(tally.scores(), paths.edges, tables=tables_of(found) if found else {})


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
    """

    def __init__(
        self,
        model: nn.Module,
        graph: UnitGraph,
        outcome: Outcome,
        *,
        max_cache_bytes: int = 2**30,
        edges: bool = False,
    ) -> None:
        self._model, self._graph, self._outcome = model, graph, outcome
        self._max_cache_bytes = max_cache_bytes
        self._with_edges = edges
        self._readings = readings_of(model, graph)
        self._edges: dict[str, Tensor] = {}
        self._n_images = 0
        self._chunk = 0
        self._traced: fx.GraphModule | None = None
        self._run: _Run | None = None
        self._means: dict[str, Tensor] = {}

    @classmethod
    def of(cls, job: Job, *, edges: bool = False) -> UnitPaths:
        """Prepare what `job` asks for; for ``intervention="mean"`` this reads the data once.

        Raises
        ------
        InvalidArgumentError
            For ``intervention="resample"``.
        """
        if job.intervention not in ("zero", "mean"):
            raise InvalidArgumentError(
                "intervention: path effects cut to 'zero' or to the 'mean', got "
                f"{job.intervention!r}; use method='ablation', with a budget surrogate='none'"
            )
        paths = cls(
            job.model, job.graph, job.outcome, max_cache_bytes=job.max_cache_bytes, edges=edges
        )
        if job.intervention == "mean":
            paths.calibrate(job.batches)
        return paths

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Cut to every unit's mean over `batches`, one for a channel or feature, not to zero."""
        totals: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()

        def add(reading: Reading, value: Tensor) -> Tensor:
            columns = value.movedim(reading.consumer.axis, -1).flatten(0, -2)
            total = totals.get(reading.key, 0.0)
            totals[reading.key] = total + columns.sum(0, dtype=torch.float64)
            counts[reading.key] += len(columns)
            return value

        recorder: Recorder | None = None
        with torch.no_grad():
            for batch in batches:
                if recorder is None:
                    recorder = recorder_of(self._trace(batch.inputs[:1]), self._readings, add)
                for start in range(0, len(batch.inputs), CHUNK):
                    recorder.run(batch.inputs[start : start + CHUNK])
        self._means = {key: total / counts[key] for key, total in totals.items()}
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

    def effects(self, batch: Batch) -> Effects:
        """Path effects of every unit on every image of `batch`.

        Returns
        -------
        dict of str to Tensor [N, n_units], float64, CPU
            Group name to ``sum dY/dphi * d``.

        Raises
        ------
        DataError
            If the outcome or an effect is not finite; the message names the unit.
        """
        n_images = len(batch.inputs)
        found = {
            group.name: torch.zeros(n_images, group.n_units, dtype=torch.float64)
            for group in self._graph.groups
        }
        if self._run is None:
            traced = self._trace(batch.inputs[:1])
            self._run = _Run(traced, self._readings, self._with_edges, self._means)
        with torch.enable_grad(), frozen(self._model):
            chunk = self._chunk = self._chunk or self._images_that_fit(self._run, batch)
            for start in range(0, n_images, chunk):
                part = _slice(batch, start, start + chunk)
                for effects, layer, edge in self._run(part, self._outcome):
                    for name, values in effects.items():
                        found[name][start : start + chunk] += values
                    if self._with_edges and edge is not None:
                        self._edges[layer] = self._edges.get(layer, 0.0) + edge
        self._n_images += n_images
        for name, values in found.items():
            if not bool(torch.isfinite(values).all()):
                unit = int((~torch.isfinite(values)).any(0).nonzero()[0])
                raise DataError(f"path effect of unit {unit} of layer {name!r} is not finite")
        return found

    def _images_that_fit(self, run: _Run, batch: Batch) -> int:
        """How many images may run at once; found by running the first one."""
        constants = [*self._model.parameters(), *self._model.buffers()]
        per_image = run.kept_bytes(_slice(batch, 0, 1), self._outcome, constants)
        return max(1, min(CHUNK, int(self._max_cache_bytes / (SPARE * per_image))))


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    targets = None if batch.targets is None else batch.targets[start:stop]
    return Batch(batch.inputs[start:stop], targets)


def _on_gradient(value: Tensor, function: Callable[[Tensor], None]) -> None:
    value.register_hook(function)  # type: ignore[no-untyped-call]


class _Run:
    """One forward and one backward pass; effects are taken as the gradients arrive.

    Taken then, not afterwards: the values of a layer, and its gradient, can go as soon as its
    effects are known, so the backward pass frees memory instead of needing more.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        readings: Sequence[Reading],
        edges: bool,
        means: Mapping[str, Tensor],
    ) -> None:
        self._means = means
        self._of_one_image: dict[str, torch.Size] = {}
        self._kept: dict[str, Tensor] = {}
        self._leaves: list[Tensor] = []
        self._results: list[Result] = []
        self._n_images = 0
        self._uses: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._first_order: dict[str, Reading] = {}
        self._exact: dict[str, list[Reading]] = {}
        inputs: dict[str, Watcher] = {}
        values: set[str] = set()
        for reading in readings:
            site, key, at_output = reading.site, reading.key, reading.consumer.at_output
            if reading.is_linear and (at_output or not edges):
                self._first_order[key] = reading
            else:
                self._exact.setdefault(site.out, []).append(reading)
                self._uses[site.pre] += 1
                values.update((site.pre, site.out))
            self._uses[key] += 1
            if at_output:
                values.add(site.node)
            else:
                inputs[site.node] = partial(self._read, key)
        self._recorder = Recorder(traced, {n: partial(self._pass, n) for n in values}, inputs)

    def __call__(self, batch: Batch, outcome: Outcome) -> list[Result]:
        """Effects through every reading, the layer it belongs to, and its edges' sums."""
        value = self._forward(batch, outcome)
        if not value.requires_grad:
            raise InvalidArgumentError(
                f"outcome: expected one that can be differentiated, {outcome.name!r} gives no "
                "gradient; use method='ablation'"
            )
        # What is asked for does not matter: the hooks fire on the way there.
        torch.autograd.grad(value.sum(), self._leaves, allow_unused=True)
        results = self._results
        self._clear()
        return results

    def kept_bytes(self, batch: Batch, outcome: Outcome, constants: Iterable[Tensor]) -> int:
        """Bytes that are alive between the forward and the backward pass, `constants` aside."""
        found: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            value = self._forward(batch, outcome)
        for name, tensor in self._kept.items():
            self._of_one_image[name] = tensor.shape
            count(tensor)
        del value
        self._clear()
        for constant in (*constants, *self._recorder.constants):
            found.pop(constant.untyped_storage().data_ptr(), None)
        return sum(found.values()) + batch.inputs.nbytes

    def _forward(self, batch: Batch, outcome: Outcome) -> Tensor:
        self._clear()
        self._n_images = len(batch.inputs)
        output = self._recorder.run(batch.inputs.detach())
        return evaluate(outcome, output, batch.targets, "on the whole network")

    def _clear(self) -> None:
        self._kept, self._leaves, self._results = {}, [], []
        self._left = self._uses.copy()

    def _read(self, key: str, value: Tensor) -> Tensor:
        if key in self._first_order:
            value = self._leaf(value).view_as(value)  # a gradient of this reading alone
            _on_gradient(value, partial(self._arrive_first_order, key))
        self._kept[key] = value
        return value

    def _pass(self, name: str, value: Tensor) -> Tensor:
        if name in self._first_order or name in self._exact:
            value = self._leaf(value)
        if name in self._first_order:
            _on_gradient(value, partial(self._arrive_first_order, name))
        if name in self._exact:
            _on_gradient(value, partial(self._arrive, name))
        if name in self._uses:
            self._kept[name] = value
        return value

    def _leaf(self, value: Tensor) -> Tensor:
        """`value`, or where nothing before it asked for a gradient, the place where one begins."""
        if value.requires_grad:
            return value
        value = value.detach().requires_grad_()
        self._leaves.append(value)
        return value

    def _take(self, key: str) -> Tensor:
        """Return a value, and forget it where no other reading waits for it."""
        self._left[key] -= 1
        return self._kept[key] if self._left[key] else self._kept.pop(key)

    def _images_first(self, key: str, *values: Tensor) -> list[Tensor]:
        """Bring the images of tensors that are laid out as value `key` to dimension 0.

        Their dimension is the one that grew since the run of a single image.
        """
        return [images_first(value, self._of_one_image[key]) for value in values]

    def _deviation(self, reading: Reading, value: Tensor) -> Tensor:
        """Return what an intervention takes away: all of the value, or its deviation."""
        mean, value = self._means.get(reading.key), value.detach()
        if mean is None:
            return value
        return value - mean.to(value).reshape(-1, *[1] * (-1 - reading.consumer.axis))

    def _arrive_first_order(self, key: str, gradient: Tensor) -> None:
        reading = self._first_order[key]
        value, gradient = self._images_first(key, self._take(key), gradient)
        effects = first_order(reading, self._deviation(reading, value), gradient, self._n_images)
        self._results.append((effects, reading.site.layer, None))

    def _arrive(self, out: str, gradient: Tensor) -> None:
        for reading in self._exact[out]:
            site, key = reading.site, reading.key
            (value,) = self._images_first(key, self._take(key))
            pre, grad = self._images_first(site.pre, self._take(site.pre), gradient)
            value = self._deviation(reading, value)
            effects, edges = cut(reading, value, pre, grad, self._n_images)
            self._results.append((effects, site.layer, edges))
