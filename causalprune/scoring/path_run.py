"""One run of a network for path effects: forward once, backward for every value derived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from causalprune.graph.recording import Recorder, Watcher
from causalprune.scoring.consumption import Effects, Reading, cut, first_order, images_first
from causalprune.scoring.data import Batch

__all__ = ["PathRun", "Result", "Values"]

Result = tuple[Effects, str, "Tensor | None"]
"""Effects through a reading, the layer it belongs to, and the sums of its edges' effects."""

Values = Callable[[Any, "Tensor | None"], Sequence[Tensor]]


def _on_gradient(value: Tensor, function: Callable[[Tensor], None]) -> None:
    value.register_hook(function)  # type: ignore[no-untyped-call]


class PathRun:
    """One forward pass and backward passes; effects are taken as the gradients arrive.

    Taken then, not afterwards: the values of a layer, and its gradient, can go as soon as its
    effects are known, so the last backward pass frees memory instead of needing more.

    Parameters
    ----------
    traced : fx.GraphModule
    readings : sequence of Reading
    edges : bool
        Whether the effects of single edges are asked for.
    deviation : callable
        Takes a reading and its value; returns what an intervention takes away of it.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        readings: Sequence[Reading],
        edges: bool,
        deviation: Callable[[Reading, Tensor], Tensor],
    ) -> None:
        self._deviation = deviation
        self._of_one_image: dict[str, torch.Size] = {}
        self._kept: dict[str, Tensor] = {}
        self._leaves: list[Tensor] = []
        self._results: list[Result] = []
        self._n_images = 0
        self._is_last = True
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

    def __call__(self, batch: Batch, values_of: Values) -> Iterator[list[Result]]:
        """Yield, of every value, its effects through every reading and the sums of their edges.

        Parameters
        ----------
        batch : Batch
        values_of : callable
            Takes the output and the targets; returns what is derived, each a Tensor [N].
        """
        values = self._forward(batch, values_of)
        for index, value in enumerate(values):
            self._is_last = index == len(values) - 1
            self._left = self._uses.copy()
            # What is asked for does not matter: the hooks fire on the way there.
            torch.autograd.grad(
                value.sum(), self._leaves, allow_unused=True, retain_graph=not self._is_last
            )
            results, self._results = self._results, []
            yield results
        self._clear()

    def kept_bytes(self, batch: Batch, values_of: Values, constants: Iterable[Tensor]) -> int:
        """Bytes that are alive between the forward and a backward pass, `constants` aside."""
        found: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            values = self._forward(batch, values_of)
        for name, tensor in self._kept.items():
            self._of_one_image[name] = tensor.shape
            count(tensor)
        del values
        self._clear()
        for constant in (*constants, *self._recorder.constants):
            found.pop(constant.untyped_storage().data_ptr(), None)
        return sum(found.values()) + batch.inputs.nbytes

    def _forward(self, batch: Batch, values_of: Values) -> Sequence[Tensor]:
        self._clear()
        self._n_images = len(batch.inputs)
        return values_of(self._recorder.run(batch.inputs.detach()), batch.targets)

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
        waited_for = self._left[key] or not self._is_last
        return self._kept[key] if waited_for else self._kept.pop(key)

    def _images_first(self, key: str, *values: Tensor) -> list[Tensor]:
        """Bring the images of tensors that are laid out as value `key` to dimension 0.

        Their dimension is the one that grew since the run of a single image.
        """
        return [images_first(value, self._of_one_image[key]) for value in values]

    def _arrive_first_order(self, key: str, gradient: Tensor) -> None:
        reading = self._first_order[key]
        value, gradient = self._images_first(key, self._take(key), gradient)
        effects = first_order(
            reading, self._deviation(reading, value.detach()), gradient, self._n_images
        )
        self._results.append((effects, reading.site.layer, None))

    def _arrive(self, out: str, gradient: Tensor) -> None:
        for reading in self._exact[out]:
            site, key = reading.site, reading.key
            (value,) = self._images_first(key, self._take(key))
            pre, grad = self._images_first(site.pre, self._take(site.pre), gradient)
            value = self._deviation(reading, value.detach())
            effects, edges = cut(reading, value, pre, grad, self._n_images)
            self._results.append((effects, site.layer, edges))
