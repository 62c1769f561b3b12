"""Where in the image a unit of an explanatory graph has its causes, and how stable the graph is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import UnitGraph, capture, evaluating, trace
from causalprune.graph.recording import Recorder
from causalprune.scoring.consumption import Reading, layer_of, readings_of
from causalprune.scoring.data import as_batches
from causalprune.scoring.explanatory import Walk, explain_on, images_of, network_of
from causalprune.scoring.explanatory_graph import ExplanatoryGraph, ExplanatoryLayer

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Grid",
    "attribution_map",
    "check_images",
    "grid_of",
    "outputs_of",
    "places_of",
    "stability",
]

Grid = tuple[int, int]


def attribution_map(
    model: nn.Module,
    images: Tensor,
    graph: ExplanatoryGraph,
    layer: str,
    unit: int | None = None,
) -> Tensor:
    """Show where the causes of a unit act: a map over each image.

    For child j of a layer and each of its causes i, the contribution ``c_ij = W[j, i] * x_i`` over
    the positions of the layer's output goes through a softmax over space, is resized to the image
    (bilinear) and averaged over the causes. In a linear layer behind a flattened map, the
    positions are those of the map.

    Parameters
    ----------
    model : nn.Module
        The network that `graph` explains. It is evaluated in eval mode and not changed.
    images : Tensor [N, C, H, W]
    graph : ExplanatoryGraph
    layer : str
        A layer of ``graph.layers``.
    unit : int, optional
        One of the layer's effects. Default: the average over all of them.

    Returns
    -------
    Tensor [N, H, W], dtype of the layer's output, on the device of `images`
        Not negative.

    Raises
    ------
    DataError
        If the graph does not hold the layer or the unit, or nothing causes it.
    InvalidArgumentError
        If the layer has no positions, or `images` are none.

    Notes
    -----
    Source: Ahmad, Béreux, Baret et al. 2023; the resizing's kind is ours.

    Examples
    --------
    >>> from causalprune.scoring import explain
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ... )
    >>> x = torch.rand(30, 1, 8, 8)
    >>> k = int(model(x).argmax(1).mode().values)
    >>> graph = explain(model, (x, torch.full((30,), k)), k)
    >>> attribution_map(model, x[:2], graph, "2").shape
    torch.Size([2, 8, 8])
    """
    check_images(images)
    found = graph.layer(layer)
    if not found.causes:
        raise DataError(f"layer: nothing causes what {layer!r} computes, so there is no map")
    if unit is not None and unit not in found.effects:
        raise DataError(
            f"unit: expected an effect of layer {layer!r} ({list(found.effects)}), got {unit!r}"
        )
    with torch.inference_mode(False), evaluating(model), torch.no_grad():
        captured = capture(model, images[:1])
        reading = next(r for r in readings_of(model, captured) if r.site.layer == layer)
        outputs = outputs_of(model, captured, found, unit)
        traced = trace(model, images[:1], exported=captured.exported)
        value, grid = _read(traced, reading, images), grid_of(traced, reading)
        maps = [
            _resized(_contributions(reading, value, grid, places, outputs), images)
            for places in places_of(reading, found)
        ]
    return torch.stack(maps).mean(0)


def check_images(images: object) -> None:
    """Raise InvalidArgumentError unless `images` is a Tensor [N, C, H, W] of at least one."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgumentError(f"images: expected a tensor [N, C, H, W], got {got}")


def outputs_of(
    model: nn.Module, captured: UnitGraph, found: ExplanatoryLayer, unit: int | None
) -> Tensor:
    """Output channels of the layer that the map is of."""
    if not found.child:
        return torch.arange(layer_of(model.get_submodule(found.layer)).weight.shape[0])
    units = found.effects if unit is None else (unit,)
    if found.child == "output":
        return torch.tensor(units)
    owned = next(o for o in captured.group(found.child).owned if o.layer == found.layer)
    outputs: Tensor = owned.columns(units)
    return outputs


def places_of(reading: Reading, found: ExplanatoryLayer) -> list[Tensor]:
    """Return the inputs [m] of the layer that each of its causes occupies."""
    of_unit = {
        (layout.group, unit): places
        for layout in reading.layouts
        for unit, places in zip(layout.units.tolist(), layout.places, strict=True)
    }
    return [of_unit[cause.parent, cause.unit] for cause in found.causes]


def _read(traced: fx.GraphModule, reading: Reading, images: Tensor) -> Tensor:
    """Return what the layer reads."""
    seen: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    Recorder(traced, {}, {reading.site.node: note}, fold=False).run(images)
    (value,) = seen
    return value


def grid_of(traced: fx.GraphModule, reading: Reading) -> Grid | None:
    """Return the size of the map that the layer reads, or that was flattened into its features."""
    node = next(n for n in traced.graph.nodes if n.name == reading.site.node)
    layers = {other.name for other in traced.graph.nodes if _is_layer(other, traced)}
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        meta = node.meta.get("tensor_meta")
        if isinstance(meta, TensorMetadata) and len(meta.shape) == 4:
            return int(meta.shape[2]), int(meta.shape[3])
        if node.name in layers:
            break
    return None


def _is_layer(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op != "call_module":
        return False
    return isinstance(traced.get_submodule(str(node.target)), (nn.Conv2d, nn.Linear))


def _contributions(
    reading: Reading, x: Tensor, grid: Grid | None, places: Tensor, outputs: Tensor
) -> Tensor:
    """``c_ij`` of one cause i for every output j: [N, E, h, w]."""
    layer = layer_of(reading.module)
    weight = layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        only = torch.zeros_like(x)
        only[:, places] = x[:, places]
        contribution: Tensor = layer._conv_forward(only, weight, None)[:, outputs]
        return contribution
    if grid is None or not 1 < len(places) == grid[0] * grid[1] or x.ndim != 2:
        raise InvalidArgumentError(
            f"layer: expected one with positions, {reading.site.layer!r} reads units without any"
        )
    product = x[:, None, places] * weight[outputs][None, :, places]
    return product.reshape(len(x), len(outputs), *grid)


def _resized(contributions: Tensor, images: Tensor) -> Tensor:
    """Softmax over space, on the image's grid, averaged over the outputs: [N, H, W]."""
    weights = contributions.flatten(2).softmax(2).reshape(contributions.shape)
    sized = F.interpolate(weights, images.shape[2:], mode="bilinear", align_corners=False)
    return sized.mean(1)


def stability(
    model: nn.Module,
    data: Any,
    target_class: int,
    *,
    betas: Sequence[float] | None = None,
    repeats: int = 10,
    test: str = "paired",
    max_images: int = 100,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
) -> pd.DataFrame:
    """Count how often each node of an explanatory graph reappears under soft interventions.

    Parameters
    ----------
    model, data, target_class, test, max_images, batch_size, max_cache_bytes
        As for :func:`causalprune.scoring.explain`.
    betas : sequence of float, optional
        Weights are set to draws from U(beta, beta + 0.01). Default: 0, 0.01, ..., 0.5.
    repeats : int
        Walks with fresh draws for each beta.
    seed : int
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        One row for every unit that was kept at least once, in the order of the walk: ``layer``
        (that reads it), ``parent`` (its group), ``unit``, ``times``, ``runs`` (walks in all) and
        ``frequency`` (their ratio).

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range.
    DataError
        As for :func:`causalprune.scoring.explain`.

    Notes
    -----
    Source: the stability test of Ahmad, Béreux, Baret et al. 2023.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0] * 4]))
    ...     _ = model[0].bias.fill_(5.0)
    >>> data = torch.rand(20, 3), torch.zeros(20, dtype=torch.int64)
    >>> stability(model, data, 0, betas=[0.0, 0.1], repeats=2)["times"].tolist()
    [4, 4]
    """
    import pandas as pd

    chosen = [k / 100 for k in range(51)] if betas is None else list(betas)
    if not chosen or not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise InvalidArgumentError(
            f"betas, repeats: expected at least one of each, got {chosen} and {repeats!r}"
        )
    counts: Counter[tuple[str, str, int]] = Counter()
    with torch.inference_mode(False), evaluating(model), torch.no_grad():
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batches = as_batches(data, batch_size=batch_size, device=device)
        network = network_of(model, batches.example)
        images = images_of(model, batches, [target_class], max_images)[target_class]
        for index, beta in enumerate(chosen):
            for repeat in range(repeats):
                draws = seed + (index * repeats + repeat) * len(network.readings)
                walk = Walk(test, beta, draws, max_cache_bytes)
                for layer in explain_on(network, images, target_class, walk).layers:
                    counts.update((layer.layer, c.parent, c.unit) for c in layer.causes)
    order = {reading.site.layer: k for k, reading in enumerate(network.readings)}
    runs = len(chosen) * repeats
    rows = [
        (layer, parent, unit, times, runs, times / runs)
        for (layer, parent, unit), times in sorted(
            counts.items(), key=lambda item: (order[item[0][0]], item[0][1:])
        )
    ]
    columns = ["layer", "parent", "unit", "times", "runs", "frequency"]
    return pd.DataFrame(rows, columns=columns)
