"""Both networks in step on the calibration images, while layers of the pruned one are fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from causalprune.errors import UnsupportedModelError
from causalprune.graph.trace import shape_of
from causalprune.pruning.joint_fit import Part, error_of, scaled, solve
from causalprune.pruning.lockstep import Amendment, Budget, Passage, peak_bytes
from causalprune.pruning.pairs import Pair
from causalprune.pruning.readers import Reader, Traced
from causalprune.pruning.regression import Change, Moments

__all__ = ["LayerFit", "Run"]

CHUNK_BYTES = 2**24
"""Values of one network that are alive at a time: about what a processor's cache holds."""
SMALLEST_CHUNK = 8
"""Images: with fewer, adding up the moments costs more than computing them."""
ROUNDS = 4
"""Regressions of a layer with a rectifier behind it; more bring nothing on held-out images."""
CHECKED = 8
"""Of the parts of the images, a step of a pair is checked on every eighth."""
PAIR_ROUNDS = 2
ITERATIONS = 6
"""Of conjugate gradients: twice as many bring half a percent."""
STEPS = (1.0, 0.5, 0.25)
SMALLEST_SCALE = 1e-4
"""Channels that a batch norm scales by less than this part of the mean stay as they are."""


@dataclass(frozen=True)
class LayerFit:
    """How far a layer's pre-activation was from the original network's.

    Attributes
    ----------
    layer : str
    before, after : float
        Sum of squared differences over the calibration images without and with the change of
        this layer, all layers before it refitted; `after` without what a rectifier behind the
        layer hides. Where a pair of layers was changed, `layer` is the one that reads, and both
        are without that.
    """

    layer: str
    before: float
    after: float


class Run:
    """Both networks on all calibration images, chunk by chunk, as far as they have been fitted."""

    def __init__(
        self,
        original: Traced,
        small: Traced,
        readers: Sequence[Reader],
        images: Tensor,
        max_cache_bytes: int,
        in_parts: bool,
    ) -> None:
        self._original, self._small, self._readers = original, small, readers
        self._n_images, self._max_cache_bytes = len(images), max_cache_bytes
        budget = Budget(max_cache_bytes)
        n_chunk = max(SMALLEST_CHUNK, CHUNK_BYTES // peak_bytes(original.steps, images[:1]))
        if in_parts:  # enough of them that some can be kept aside
            n_chunk = min(n_chunk, -(-len(images) // CHECKED))
        self._passages = [
            (Passage(original.steps, chunk, budget), Passage(small.steps, chunk, budget))
            for chunk in torch.split(images, n_chunk)
        ]

    def refit(self, index: int, ridge: float, *, stay: bool = False) -> LayerFit:
        """Change one layer; the ones before it are done.

        To `stay` is to hold what layers between need that are still to be changed.
        """
        reader = self._readers[index]
        moments, made = self._add(index, reader, stay=stay), None
        first = change = self._solve(reader, moments, ridge)
        for _ in range(0 if reader.flat_below is None else ROUNDS - 1):
            made = change.weight if made is None else made + change.weight
            moments.restart()
            self._add(index, reader, moments, stay=stay)
            change = self._solve(reader, moments, ridge, made)
        return LayerFit(reader.layer, float(first.before.sum()), float(change.after.sum()))

    def refit_pair(self, pair: Pair, ridge: float) -> list[LayerFit]:
        """Change all layers of a pair; the ones before it are done.

        Returns the fit of the consumer alone, which comes first, and every step that was taken;
        the figures of these are about the parts of the images that they are checked on.
        """
        last = next(k for k, each in enumerate(self._readers) if each is pair.consumer)
        fits = [self.refit(last, ridge, stay=True)]
        parts = self._parts(pair)
        checked = parts[CHECKED - 1 :: CHECKED] or parts[-1:]
        fitted = [part for k, part in enumerate(parts) if k % CHECKED != CHECKED - 1]
        fitted = fitted[:-1] if len(fitted) == len(parts) > 1 else fitted
        flat_below = pair.consumer.flat_below
        for _ in range(PAIR_ROUNDS):
            changes = solve(
                pair.layers, fitted, ridge=ridge, n_iterations=ITERATIONS, flat_below=flat_below
            )
            before = error_of(checked, scaled(changes, 0.0), flat_below)
            for size in STEPS:
                step = scaled(changes, size)
                after = error_of(checked, step, flat_below)
                if after < before:
                    break
            else:
                break
            fits.append(LayerFit(pair.consumer.layer, before, after))
            for layer in pair.layers:
                weight, constant = step[layer.layer]
                layer.module.weight.add_(weight)
                if layer.place is not None:
                    layer.place.add(constant)
        return fits

    def _parts(self, pair: Pair) -> list[Part]:
        """Return the images, with the pre-activation as the layers stand, and its target."""

        def run(small: Passage, addition: Callable[[Reader, Tensor], Tensor]) -> Tensor:
            def amended(layer: Reader) -> Amendment:
                return lambda value, value_of: value + addition(layer, layer.inputs(value_of))

            amend = {layer.step.name: amended(layer) for layer in pair.layers}
            start = (pair.start, small.move(pair.start, ()))
            found: Tensor = small.run(pair.end, (pair.consumer.pre,), start, amend)[
                pair.consumer.pre
            ]
            return found

        def target(original: Passage) -> Tensor:
            name = pair.consumer.target
            end = self._original.places[name] + 1
            return pair.consumer.of_target(original.run(end, (name,))[name])

        shape = shape_of(self._original.nodes[pair.consumer.target]) or (0,)
        fits = 4 * math.prod(shape[1:]) * self._n_images <= self._max_cache_bytes
        hold: Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
        hold = cache if fits else lambda function: function
        return [
            Part(partial(run, small), hold(partial(target, original)))
            for original, small in self._passages
        ]

    @staticmethod
    def _solve(
        reader: Reader, moments: Moments, ridge: float, made: Tensor | None = None
    ) -> Change:
        if not moments.finite:
            raise UnsupportedModelError(
                f"model: expected finite values around {reader.layer!r}, got NaN or infinity"
            )
        change = moments.solve(ridge, constant=reader.place is not None, made=made)
        _change(reader, change)
        return change

    def _add(
        self, index: int, reader: Reader, moments: Moments | None = None, *, stay: bool
    ) -> Moments:
        """Add up the residuals of a layer as it stands; from the second time on, `moments`."""
        hidden = moments is not None
        targets = {later.target for later in self._readers[index:]}
        target_end = self._original.places[reader.target] + 1
        place, end = self._small.places[reader.step.name], self._small.places[reader.pre] + 1
        for original, small in self._passages:
            reach, advance = (each.run if stay else each.move for each in (original, small))
            wanted = reader.of_target(reach(target_end, targets)[reader.target])
            values = advance(place, ())
            inputs = reader.inputs(values.__getitem__)
            got = small.run(end, (reader.pre,), (place, values))[reader.pre]
            if hidden and reader.flat_below is not None:
                # Where the activation is 0 for the target, it may as well stay below.
                wanted = torch.where(
                    wanted > reader.flat_below, wanted, got.clamp(max=reader.flat_below)
                )
            residual = wanted - got
            moments = moments or self._moments_for(reader, residual, len(small.images))
            moments.add(inputs, residual)
        assert moments is not None
        return moments

    def _moments_for(self, reader: Reader, residual: Tensor, n_images: int) -> Moments:
        weight = reader.module.weight
        n_positions = residual.numel() // len(weight) // n_images * self._n_images
        return Moments(reader.module, by_rows=n_positions <= weight[0].numel())


def _change(reader: Reader, change: Change) -> None:
    """Write a change of the pre-activation into the layer and what holds its constant."""
    weight, norm = reader.module.weight, reader.norm
    inverse = torch.ones_like(change.constant)
    if norm is not None:
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        usable = scale.abs() > SMALLEST_SCALE * scale.abs().mean()
        inverse = torch.where(usable, 1 / torch.where(usable, scale, 1.0), 0.0)
    added = change.weight * inverse.reshape(-1, *[1] * (weight.ndim - 1))
    weight.add_(added.to(weight))
    if reader.place is not None:
        reader.place.add(change.constant * inverse)
