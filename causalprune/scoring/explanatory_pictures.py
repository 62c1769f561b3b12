"""Explanatory graphs of scores, with example images and maps beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.scoring.data import Batches, as_batches
from causalprune.scoring.explanatory import Network, Walk, explain_on, images_of, network_of
from causalprune.scoring.explanatory_checks import GraphCheck, check_graph
from causalprune.scoring.explanatory_contributions import contributions_on
from causalprune.scoring.explanatory_graph import ExplanatoryGraph, tables_of
from causalprune.scoring.scores import Scores, as_table

__all__ = ["explained", "explanation_tables"]

CHECKS, EXAMPLES, PIXELS = "graph checks", "graph examples", "graph pixels"
"""Names of the tables beside those of :func:`causalprune.scoring.explanatory_graph.tables_of`."""

MAX_CLASSES = 10
SIDE = 64
"""Pixels a side of a stored image, at most."""


def explained(
    scores: Scores,
    model: nn.Module,
    data: Any,
    classes: Sequence[int] | None = None,
    *,
    examples: int = 1,
    test: str = "paired",
    beta: float | None = None,
    max_images: int = 100,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    names: Sequence[str] = (),
) -> Scores:
    """Add explanatory graphs of classes to scores, with example images, maps and checks.

    Parameters
    ----------
    scores : Scores
        Of `model`, by any method. Not changed.
    model : nn.Module
        Takes images [N, ...] and returns logits [N, K]. It is not changed.
    data : DataLoader, Dataset, iterable of (inputs, targets), or pair of tensors
    classes : sequence of int, optional
        Default: the first ten that `data` has images of.
    examples : int
        Images a class that are stored: those whose logit is nearest to the median of the class's
        images, at most 64 pixels a side, 8 bits a colour, with their maps
        (:func:`contribution_map`); 0: none leave the data.
    test, beta, max_images, batch_size, max_cache_bytes, seed
        As for :func:`causalprune.scoring.explain`; `seed` is of the checks' draws, too.
    mean, std : float or sequence of float, optional
        That images were standardised with, one or one a channel, so that they are stored in their
        colours. Default: from each image's smallest value to its largest.
    names : sequence of str
        Of the classes, by number, for readers of ``"graph checks"``; where there are none, numbers.

    Returns
    -------
    Scores
        With four tables more: ``"graph nodes"`` and ``"graph layers"`` (:meth:`Scores.graph`),
        ``"graph checks"`` (a row a class, :class:`GraphCheck`), and where there are examples
        ``"graph examples"`` and ``"graph pixels"`` (``red``, ``green``, ``blue``, and ``map`` in
        logits). A class without a graph has its reason in ``"graph checks"``.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range.
    UnsupportedModelError
        If no unit of the network can be intervened on.

    Examples
    --------
    >>> from causalprune.scoring import score
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ... )
    >>> x = torch.rand(30, 1, 8, 8)
    >>> data = x, model(x).argmax(1)
    >>> scores = explained(score(model, data, method="l1"), model, data)
    >>> sorted(scores.tables)
    ['graph checks', 'graph examples', 'graph layers', 'graph nodes', 'graph pixels']
    """
    walk = Walk(test, beta, seed, max_cache_bytes)
    with torch.inference_mode(False), evaluating(model), torch.no_grad():
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batches = as_batches(data, batch_size=batch_size, device=device)
        chosen = _classes_of(batches) if classes is None else list(classes)
        tables = explanation_tables(
            model,
            batches,
            chosen,
            walk,
            examples=examples,
            max_images=max_images,
            colours=(mean, std),
            names=names,
            lenient=True,
        )
    added = {name: as_table(name, columns) for name, columns in tables.items()}
    return replace(scores, tables={**scores.tables, **added})


def _classes_of(batches: Batches) -> list[int]:
    found: set[int] = set()
    for batch in batches:
        assert batch.targets is not None
        found.update(batch.targets.tolist())
    return sorted(found)[:MAX_CLASSES]


def explanation_tables(
    model: nn.Module,
    batches: Batches,
    classes: Sequence[int],
    walk: Walk,
    *,
    examples: int = 1,
    max_images: int = 100,
    colours: tuple[Any, Any] = (None, None),
    names: Sequence[str] = (),
    lenient: bool = False,
) -> dict[str, dict[str, Any]]:
    """Tables of several classes; see :func:`explained`. The model is in eval mode.

    Where not `lenient`, a class without images raises DataError.
    """
    for name, value, least in (("examples", examples, 0), ("max_images", max_images, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(
                f"{name}: expected an integer of at least {least}, got {value!r}"
            )
    for target in classes:
        if not isinstance(target, int) or isinstance(target, bool) or target < 0:
            raise InvalidArgumentError(f"classes: expected class indices, got {target!r}")
    with torch.no_grad():
        network = network_of(model, batches.example)
        images, reasons = _images(model, batches, classes, max_images, lenient)
        graphs = {k: explain_on(network, found, k, walk) for k, found in images.items()}
        told = {k: GraphCheck(0, 0, reason=reason) for k, reason in reasons.items()}
        pictures: list[_Picture] = []
        for k, graph in graphs.items():
            told[k] = check_graph(model, network, images[k], graph, walk.seed)
            layer = told[k].map_layer
            pictures += _pictures(model, network, images[k], graph, examples, colours, layer)
    tables = tables_of(list(graphs.values()))
    tables[CHECKS] = _check_rows({k: told[k] for k in classes}, names)
    if pictures:
        tables |= {EXAMPLES: _example_rows(pictures), PIXELS: _pixel_rows(pictures)}
    return tables


def _images(
    model: nn.Module, batches: Batches, classes: Sequence[int], max_images: int, lenient: bool
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Images of every class that has some, and why the others have none."""
    try:
        return images_of(model, batches, classes, max_images), {}
    except DataError:
        if not lenient:
            raise
    found: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    for target in classes:
        try:
            found |= images_of(model, batches, [target], max_images)
        except DataError as error:
            reasons[target] = str(error)
    return found, reasons


@dataclass(frozen=True)
class _Picture:
    target: int
    example: int
    logit: float
    layer: str
    pixels: np.ndarray[Any, Any]
    """[h, w, 3], uint8"""
    map: np.ndarray[Any, Any]
    """[h, w], float16, in logits; NaN where there is none"""


def _pictures(
    model: nn.Module,
    network: Network,
    images: Tensor,
    graph: ExplanatoryGraph,
    count: int,
    colours: tuple[Any, Any],
    layer: str,
) -> list[_Picture]:
    """Store the images whose logits are nearest to the median, with their maps."""
    if not count or images.ndim != 4 or images.shape[1] not in (1, 3):
        return []
    logits = model(images)[:, graph.target_class].double()
    nearest = (logits - logits.median()).abs().argsort(stable=True)[:count]
    chosen = images[nearest]
    maps = torch.full((len(chosen), *chosen.shape[2:]), torch.nan, device=chosen.device)
    if layer:
        maps = contributions_on(network, model, chosen, graph, layer)
    shown, sized = _small(_visible(chosen, *colours)), _small(maps[:, None])[:, 0]
    area = maps[0].numel() / sized[0].numel()
    return [
        _Picture(
            graph.target_class,
            k,
            float(logits[index]),
            layer,
            (255 * shown[k]).round().byte().permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy(),
            (area * sized[k]).half().cpu().numpy(),
        )
        for k, index in enumerate(nearest.tolist())
    ]


def _visible(images: Tensor, mean: Any, std: Any) -> Tensor:
    """Images [n, C, H, W] as colours in [0, 1], float32."""
    images = images.float()
    if mean is None or std is None:
        low = images.amin((1, 2, 3), keepdim=True)
        span = images.amax((1, 2, 3), keepdim=True) - low
        return (images - low) / torch.where(span > 0, span, torch.ones_like(span))
    centre, spread = (
        torch.as_tensor(value, dtype=torch.float32, device=images.device).reshape(1, -1, 1, 1)
        for value in (mean, std)
    )
    return (images * spread + centre).clamp(0, 1)


def _small(images: Tensor) -> Tensor:
    """Images [n, C, H, W] with at most SIDE pixels a side: means of what each pixel covers."""
    height, width = images.shape[2:]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return images
    return F.adaptive_avg_pool2d(
        images, (max(1, round(factor * height)), max(1, round(factor * width)))
    )


def _check_rows(told: Mapping[int, GraphCheck], names: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {
        "class": list(told),
        "name": [str(names[k]) if k < len(names) else str(k) for k in told],
    }
    for column in fields(GraphCheck):
        found[column.name] = [getattr(check, column.name) for check in told.values()]
    return found


def _example_rows(pictures: Sequence[_Picture]) -> dict[str, list[Any]]:
    columns: dict[str, Callable[[_Picture], Any]] = {
        "class": lambda p: p.target,
        "example": lambda p: p.example,
        "logit": lambda p: p.logit,
        "layer": lambda p: p.layer,
        "height": lambda p: p.map.shape[0],
        "width": lambda p: p.map.shape[1],
    }
    return {name: [of(picture) for picture in pictures] for name, of in columns.items()}


def _pixel_rows(pictures: Sequence[_Picture]) -> dict[str, Any]:
    """One row a pixel, of the smallest types that hold it."""
    parts: list[dict[str, Any]] = []
    for picture in pictures:
        rows, columns = np.indices(picture.map.shape, dtype=np.int16)
        parts.append(
            {
                "class": np.full(rows.size, picture.target, dtype=np.int32),
                "example": np.full(rows.size, picture.example, dtype=np.int16),
                "row": rows.ravel(),
                "column": columns.ravel(),
                **{
                    colour: picture.pixels[..., k].ravel()
                    for k, colour in enumerate(("red", "green", "blue"))
                },
                "map": picture.map.ravel(),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
