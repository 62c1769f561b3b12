"""Setting the weights of one input unit into several outputs, unit after unit, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph.recording import Recorder
from causalprune.scoring.consumption import Layout, Reading, layer_of

__all__ = ["Draw", "WeightCuts", "value_bytes"]

Draw = Callable[[torch.Size], Tensor]
"""From a shape to the values [shape], float32, that weights are set to."""

ROWS = 512
"""Rows (unit, image) run at once at most: more make no operator faster."""

INPUT = ":input"
"""Under which what the layer reads is kept, beside values under their nodes' names."""

WORKSPACE = 4
"""Values of the largest size that a suffix holds at once, at most."""


class WeightCuts:
    """Run a network under ``W[e, i] := u`` for all e in a set of outputs of one layer.

    The layer itself is not run again: its output loses ``(W[e, i] - u) * x_i`` in the outputs e,
    and only what comes behind it is computed, many units and images a batch.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    sizes : Mapping of str to int
        From :func:`value_bytes`.
    reading : Reading
        Of the layer.
    images : Tensor [N, ...]
    max_cache_bytes : int
        Bound on what is kept of a run.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        sizes: Mapping[str, int],
        reading: Reading,
        images: Tensor,
        max_cache_bytes: int,
    ) -> None:
        self._reading, self._images = reading, images
        self._axis = -3 if isinstance(reading.module, nn.Conv2d) else -1
        self._kept: dict[str, Any] = {}
        node = next(n for n in traced.graph.nodes if n.name == reading.site.node)
        suffix, self._crossing = _suffix(traced, node, sizes)
        self._suffix = Recorder(suffix, {}, {})
        per_row = WORKSPACE * max(sizes.get(n.name, 0) for n in suffix.graph.nodes)
        per_row += sum(sizes[name] for name in (node.name, *self._crossing))
        self._rows = max(1, min(ROWS, max_cache_bytes // max(per_row, 1)))
        self._plain = Recorder(
            traced,
            {name: partial(self._keep, name) for name in (node.name, *self._crossing)},
            {node.name: partial(self._keep, INPUT)},
            fold=False,
        )

    def responses(self, outputs: Tensor, draw: Draw | None) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs of the network as it is and under every intervention.

        Parameters
        ----------
        outputs : Tensor [E], int64
            The outputs e of the layer.
        draw : callable or None
            What weights are set to; ``None``: zero.

        Returns
        -------
        plain : Tensor [N, K]
        changed : list of Tensor [n_units, N, K]
            One for each layout of the reading.
        """
        chunk = min(self._rows, len(self._images))
        weights = [self._set_to(layout, draw) for layout in self._reading.layouts]
        plain, changed = [], []
        for start in range(0, len(self._images), chunk):
            images = self._images[start : start + chunk]
            output = self._plain.run(images)
            x, y = self._kept[INPUT], self._kept[self._reading.site.node]
            plain.append(self._as_it_is(y, output))
            step = max(1, self._rows // len(images))
            parts = [
                self._changed(x, y, layout.places, outputs, weight, step)
                for layout, weight in zip(self._reading.layouts, weights, strict=True)
            ]
            changed.append([part.reshape(-1, len(images), part.shape[-1]) for part in parts])
            self._kept = {}
        return torch.cat(plain), [torch.cat(parts, 1) for parts in zip(*changed, strict=True)]

    def _keep(self, name: str, value: Any) -> Any:
        self._kept[name] = value
        return value

    def _set_to(self, layout: Layout, draw: Draw | None) -> Tensor:
        """Return what the weights [O, n_units, m, ...] of a layout's units are set to."""
        weight = layer_of(self._reading.module).weight
        shape = torch.Size((weight.shape[0], *layout.places.shape, *weight.shape[2:]))
        if draw is None:
            return torch.zeros((), dtype=weight.dtype, device=weight.device).expand(shape)
        return draw(shape).to(weight)

    def _changed(
        self, x: Tensor, y: Any, places: Tensor, outputs: Tensor, values: Tensor, step: int
    ) -> Tensor:
        """Return outputs [n_units * N, K], unit by unit."""
        found = []
        for start in range(0, len(places), step):
            chosen = slice(start, start + step)
            lost = self._lost(x, places[chosen], outputs, values[:, chosen])
            found.append(self._run_behind(y, lost, outputs))
        return torch.cat(found)

    def _lost(self, x: Tensor, places: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """``(W[e, i] - u) * x_i`` for units i [C, m]: [C, ..., E, ...], as the layer's output."""
        layer = layer_of(self._reading.module)
        weight = layer.weight.detach()
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        inputs, rows = weight.shape[1], weight.shape[0] // groups
        # Outside of its own group of the convolution a unit has no weight, and loses none.
        own = (places // inputs)[None] == (outputs // rows)[:, None, None]
        taken = weight[outputs[:, None, None], places[None] % inputs] - values[outputs]
        taken = taken * own.reshape(*own.shape, *[1] * (taken.ndim - 3)).to(taken)
        if isinstance(layer, nn.Linear):
            summed: Tensor = torch.einsum("n...cm,ecm->cn...e", x[..., places], taken)
            return summed
        assert isinstance(layer, nn.Conv2d)
        padding: Any = layer.padding
        read = x[:, places.flatten()]
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            read, padding = F.pad(read, layer._reversed_padding_repeated_twice, mode=mode), 0
        kernels = taken.transpose(0, 1).flatten(0, 1)
        lost = F.conv2d(
            read, kernels, None, layer.stride, padding, layer.dilation, groups=len(places)
        )
        split = (len(lost), len(places), len(outputs), *lost.shape[2:])
        return lost.reshape(split).transpose(0, 1)

    def _run_behind(self, y: Any, lost: Tensor, outputs: Tensor) -> Tensor:
        tensor = y if isinstance(y, Tensor) else y[0]
        changed = tensor.expand(len(lost), *tensor.shape).clone()
        changed.index_add_(changed.ndim + self._axis, outputs, -lost.to(changed.dtype))
        changed = changed.flatten(0, 1)
        value = changed if isinstance(y, Tensor) else (changed, *y[1:])
        crossing = [_repeated(self._kept[name], len(lost)) for name in self._crossing]
        output: Tensor = self._suffix.run(value, *crossing)
        return output

    def _as_it_is(self, y: Any, output: Tensor) -> Tensor:
        """Return the network's output as interventions compute it, held to the network's own."""
        tensor = y if isinstance(y, Tensor) else y[0]
        nothing = tensor.new_zeros((2, *tensor.shape)).narrow(self._axis, 0, 0)
        twice = self._run_behind(
            y, nothing, torch.zeros(0, dtype=torch.int64, device=tensor.device)
        )
        tolerance = 1e-3 * float(output.abs().max())
        if len(twice) != 2 * len(output) or not all(
            torch.allclose(part, output, rtol=1e-3, atol=tolerance)
            for part in (twice[: len(output)], twice[len(output) :])
        ):
            raise UnsupportedModelError(
                f"model: what follows {self._reading.site.layer!r} cannot be run for several "
                "interventions at once: its values do not have the images as first dimension"
            )
        return twice[: len(output)]


def value_bytes(traced: fx.GraphModule, image: Tensor) -> dict[str, int]:
    """Bytes of every node's value for one image [1, ...]; nodes without tensors are left out."""
    found: dict[str, int] = {}

    def note(name: str, value: Any) -> Any:
        tensors = list(_tensors(value))
        if tensors:
            found[name] = sum(tensor.nbytes for tensor in tensors)
        return value

    Recorder(traced, {n.name: partial(note, n.name) for n in traced.graph.nodes}, {}).run(image)
    return found


def _suffix(
    traced: fx.GraphModule, start: fx.Node, sizes: Mapping[str, int]
) -> tuple[fx.GraphModule, list[str]]:
    """Everything behind `start` as a network of its own.

    Returns
    -------
    suffix : fx.GraphModule
        Takes the value of `start` and those that cross.
    crossing : list of str
        Nodes before `start` whose tensors are read behind it. Sizes, and values that depend on no
        input, do not cross: they are computed again.
    """
    graph, copies, crossing = fx.Graph(), dict[fx.Node, fx.Node](), list[str]()
    behind, from_input = {start}, set[fx.Node]()
    for node in traced.graph.nodes:
        if node.op == "placeholder" or not from_input.isdisjoint(node.all_input_nodes):
            from_input.add(node)
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node is start or (node not in behind and node in from_input and node.name in sizes):
                copies[node] = graph.placeholder(node.name)
                if node is not start:
                    crossing.append(node.name)
            else:
                for source in node.all_input_nodes:
                    copied(source)
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    copied(start)
    for node in traced.graph.nodes:
        if node in behind:
            copied(node)
    return fx.GraphModule(traced, graph), crossing


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _repeated(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat(times, *[1] * (value.ndim - 1))
    if isinstance(value, (tuple, list)):
        return type(value)(_repeated(part, times) for part in value)
    return value
