"""The causal explanatory graph of a class: a walk over path interventions, last layer to first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from causalprune.errors import DataError, InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture, evaluating, trace
from causalprune.scoring.consumption import Reading, layer_of, readings_of
from causalprune.scoring.data import Batches, as_batches
from causalprune.scoring.explanatory_graph import Candidate, ExplanatoryGraph, ExplanatoryLayer
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.weight_cuts import Draw, WeightCuts, value_bytes

__all__ = ["Walk", "explain", "explain_classes", "explain_on", "images_of", "network_of"]

TESTS = ("paired", "unpaired")
Z = 1.65
"""Critical value of the one-sided test in the authors' code."""

CONFIDENCE = 0.95
RELATIVE_CHANGE = -0.001
"""Mean relative change of the logit below which a unit is a cause where the test finds none."""

BETA_WIDTH = 0.01
RESOLUTION = 16 * torch.finfo(torch.float32).eps
"""A change of the logit below this part of it is rounding, not an effect."""


@dataclass(frozen=True)
class Walk:
    """How causes are found.

    Attributes
    ----------
    test : str
        ``"paired"``: one-sided t test of the per-image changes; ``"unpaired"``: the authors' z
        test of two samples, ``mean(Y_i) < m - 1.65 * sqrt(s_i**2 / n + s**2 / n)``.
    beta : float or None
        ``None``: weights are set to zero ("hard"); else each to a draw of its own from
        U(beta, beta + 0.01) ("soft").
    seed : int
        Of these draws.
    max_cache_bytes : int
        Bound on what is kept of a run of the network.
    """

    test: str = "paired"
    beta: float | None = None
    seed: int = 0
    max_cache_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.test not in TESTS:
            raise InvalidArgumentError(f"test: expected one of {TESTS}, got {self.test!r}")
        beta = self.beta
        if beta is not None and (
            isinstance(beta, bool) or not isinstance(beta, (int, float)) or not abs(beta) < 1e6
        ):
            raise InvalidArgumentError(f"beta: expected a finite number or None, got {beta!r}")


def explain(
    model: nn.Module,
    data: Any,
    target_class: int,
    *,
    test: str = "paired",
    beta: float | None = None,
    max_images: int = 100,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
) -> ExplanatoryGraph:
    """Find the units and edges that explain why a network predicts a class.

    On images of the class that are predicted as it, the outcome is the class logit Y. Walking
    from the last layer to the first, with the effect set E = {class} at first: for every input
    unit i of a layer the weights ``W[e, i]`` into all e in E are set to zero (or to a small draw,
    `beta`) jointly; i is a **cause** when that lowers Y significantly (`test`). Where no unit of
    a layer does, those are kept that lower it by 0.1 % on average; where none does either, the
    walk ends on this path. Causes are the effects of the layers that produce them. Biases and
    batch norms stay; depthwise layers are passed over; a unit that was flattened into several
    columns is cut in all of them.

    The walk follows the captured graph, so a unit of a residual stream is an effect for every
    layer that adds to it. A layer whose outputs are no units of their own (an embedding that
    layer norms mix) is taken with all its outputs as effects.

    Parameters
    ----------
    model : nn.Module
        Takes images [N, ...] and returns logits [N, K]. It is not changed.
    data : DataLoader, Dataset, iterable of (inputs, targets), or pair of tensors
        As for :func:`causalprune.score`.
    target_class : int
    test : {"paired", "unpaired"}
        ``"paired"``: Student-t on the changes per image, at 5 %. ``"unpaired"``: the authors' z
        test, which compares the two means as if they came from different images and so keeps
        fewer units.
    beta : float, optional
        Set weights to draws from U(beta, beta + 0.01), one for each weight, instead of zero.
    max_images : int
        Use the first `max_images` images of the class that are predicted as it (the authors: 100).
    batch_size : int
        Images per batch where the data does not come in batches.
    max_cache_bytes : int
        Bound on what is kept of a run of the network.
    seed : int
        Of the draws.

    Returns
    -------
    ExplanatoryGraph

    Raises
    ------
    DataError
        If no image is of the class, or none of those is predicted as it.
    InvalidArgumentError
        If an argument is out of range.
    UnsupportedModelError
        If no unit of the network can be intervened on.

    Notes
    -----
    Source: Ahmad, Béreux, Baret et al. 2023, "Causal analysis for robust interpretability", their
    released procedure; residual networks, the paired test and batched interventions are ours.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0] * 4]))
    ...     _ = model[0].bias.fill_(5.0)
    >>> graph = explain(model, (torch.rand(20, 3), torch.zeros(20, dtype=torch.int64)), 0)
    >>> graph
    ExplanatoryGraph(class 0, 20 images; kept/total: 2 2/4)
    >>> graph.kept  # unit 2 is not read, unit 3 speaks against the class
    {'0': (0, 1)}
    """
    if not isinstance(max_images, int) or isinstance(max_images, bool) or max_images < 1:
        raise InvalidArgumentError(f"max_images: expected a positive integer, got {max_images!r}")
    walk = Walk(test, beta, seed, max_cache_bytes)
    with torch.inference_mode(False), evaluating(model):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batches = as_batches(data, batch_size=batch_size, device=device)
        (graph,) = explain_classes(model, batches, [target_class], walk, max_images)
    return graph


def explain_classes(
    model: nn.Module, batches: Batches, classes: Sequence[int], walk: Walk, max_images: int = 100
) -> list[ExplanatoryGraph]:
    """Explanatory graphs of several classes; see :func:`explain`. The model is in eval mode."""
    for target in classes:
        if not isinstance(target, int) or isinstance(target, bool) or target < 0:
            raise InvalidArgumentError(f"target_class: expected a class index, got {target!r}")
    with torch.no_grad():
        network = network_of(model, batches.example)
        images = images_of(model, batches, classes, max_images)
        return [explain_on(network, images[target], target, walk) for target in classes]


def images_of(
    model: nn.Module, batches: Batches, classes: Sequence[int], max_images: int
) -> dict[int, Tensor]:
    """Class to its first `max_images` images [n, ...] that are predicted as it.

    Raises
    ------
    DataError
        If there is none; the message names the class.
    """
    found: dict[int, list[Tensor]] = {target: [] for target in classes}
    seen = dict.fromkeys(classes, 0)
    for batch in batches:
        assert batch.targets is not None
        if all(sum(map(len, parts)) >= max_images for parts in found.values()):
            break
        predicted = model(batch.inputs).argmax(1)
        for target, parts in found.items():
            of_class = batch.targets == target
            seen[target] += int(of_class.sum())
            parts.append(batch.inputs[of_class & (predicted == target)])
    for target, parts in found.items():
        if not sum(map(len, parts)):
            count = f"{seen[target]} images" if seen[target] else "no image"
            wrong = ", none of them predicted as it" if seen[target] else ""
            raise DataError(
                f"data: expected images of class {target} that are predicted as it, "
                f"got {count} of the class{wrong}"
            )
    return {target: torch.cat(parts)[:max_images] for target, parts in found.items()}


# ---- the walk ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A captured network, ready for walks.

    Attributes
    ----------
    traced : fx.GraphModule
    graph : UnitGraph
    readings : tuple of Reading
        Last layer first.
    last : frozenset of str
        Layers whose outputs are the logits.
    sizes : Mapping of str to int
        From :func:`causalprune.scoring.weight_cuts.value_bytes`.
    """

    traced: fx.GraphModule
    graph: UnitGraph
    readings: tuple[Reading, ...]
    last: frozenset[str]
    sizes: Mapping[str, int]


def network_of(model: nn.Module, example: Tensor) -> Network:
    """Capture `model`, in eval mode, for walks over images like `example` [1, ...].

    Raises
    ------
    UnsupportedModelError
        If no unit of it can be intervened on.
    """
    graph = capture(model, example)
    if not graph.groups:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in graph.refused.items())
        raise UnsupportedModelError(f"model: no unit can be intervened on ({reasons})")
    readings = [r for r in readings_of(model, graph) if not r.consumer.at_output]
    traced = trace(model, example, exported=graph.exported)
    order = {node.name: k for k, node in enumerate(traced.graph.nodes)}
    readings.sort(key=lambda reading: -order[reading.site.node])
    last = _feed_the_output(traced, readings, model(example).shape[-1])
    return Network(traced, graph, tuple(readings), last, value_bytes(traced, example))


def _feed_the_output(
    traced: fx.GraphModule, readings: Sequence[Reading], n_classes: int
) -> frozenset[str]:
    """Layers of one output per class with no other layer behind them."""
    by_node = {reading.site.node: reading for reading in readings}
    before_another: set[fx.Node] = set()
    found = set()
    for node in reversed(traced.graph.nodes):
        if any(user in before_another or user.name in by_node for user in node.users):
            before_another.add(node)
        elif node.name in by_node:
            reading = by_node[node.name]
            if layer_of(reading.module).weight.shape[0] == n_classes:
                found.add(reading.site.layer)
    return frozenset(found)


def explain_on(network: Network, images: Tensor, target: int, walk: Walk) -> ExplanatoryGraph:
    """Walk once, on images [n, ...] that are predicted as `target`; see :func:`explain`."""
    observed = network.traced(images)[:, target].double()
    kept: dict[str, set[int]] = {}
    layers = []
    for step, reading in enumerate(network.readings):
        child, effects, outputs = _effects(network, reading, target, kept)
        if not len(outputs):
            continue
        cuts = WeightCuts(network.traced, network.sizes, reading, images, walk.max_cache_bytes)
        plain, changed = cuts.responses(outputs, _draw(walk, step))
        found = _judged(reading, plain[:, target], [part[..., target] for part in changed], walk)
        layers.append(ExplanatoryLayer(reading.site.layer, child, effects, *found))
        for cause in layers[-1].causes:
            kept.setdefault(cause.parent, set()).add(cause.unit)
    deviation = float(observed.std()) if len(observed) > 1 else 0.0
    mean = float(observed.mean())
    return ExplanatoryGraph(
        target, len(images), mean, deviation, walk.test, walk.beta, tuple(layers)
    )


def _effects(
    network: Network, reading: Reading, target: int, kept: Mapping[str, set[int]]
) -> tuple[str, tuple[int, ...], Tensor]:
    """Return the effect set of a layer: its group, its units, and the layer's output channels."""
    layer = reading.site.layer
    for group in network.graph.groups:
        for owned in group.owned:
            if owned.layer == layer and owned.role == "producer":
                units = tuple(sorted(kept.get(group.name, ())))
                return group.name, units, owned.columns(units)
    if layer in network.last:
        return "output", (target,), torch.tensor([target])
    return "", (), torch.arange(layer_of(reading.module).weight.shape[0])


def _draw(walk: Walk, step: int) -> Draw | None:
    if walk.beta is None:
        return None
    generator = torch.Generator().manual_seed(walk.seed + step)
    return partial(_uniform, float(walk.beta), generator)


def _uniform(beta: float, generator: torch.Generator, shape: torch.Size) -> Tensor:
    return beta + BETA_WIDTH * torch.rand(shape, generator=generator)


# ---- who is a cause ------------------------------------------------------------------------------


def _judged(
    reading: Reading, plain: Tensor, changed: Sequence[Tensor], walk: Walk
) -> tuple[str, tuple[Candidate, ...]]:
    """By what the causes of a layer were chosen, and all its units."""
    parents = [(x.group, unit) for x in reading.layouts for unit in x.units.tolist()]
    observed, under = plain.double(), torch.cat(list(changed)).double()
    effect = (under - observed).mean(1)
    statistic, critical = statistics(observed, under, walk.test)
    # Of the absolute value: the authors' Y_i / Y - 1 would take a rise of a negative Y for a fall.
    relative = ((under - observed) / observed.abs()).mean(1)
    real = effect < -RESOLUTION * observed.abs().mean()
    cause, criterion = real & (statistic < -critical), "test"
    if not bool(cause.any()):
        cause, criterion = real & (relative < RELATIVE_CHANGE), "relative change"
    if not bool(cause.any()):
        criterion = "none"
    rows = zip(parents, effect, statistic, relative, cause, strict=True)
    return criterion, tuple(
        Candidate(parent, unit, float(e), float(s), float(r), bool(c))
        for (parent, unit), e, s, r, c in rows
    )


def statistics(observed: Tensor, under: Tensor, test: str) -> tuple[Tensor, float]:
    """Test statistics [C] of a fall of the outcome, and the value they must fall below, negated.

    Parameters
    ----------
    observed : Tensor [n], float64
    under : Tensor [C, n], float64
        Under each of C interventions, on the same images.
    test : {"paired", "unpaired"}

    Returns
    -------
    statistic : Tensor [C], float64
        Mean change in standard errors; 0 where nothing changes, NaN for a single image.
    critical : float
    """
    change = under - observed
    n = len(observed)
    if n < 2:
        return torch.full((len(under),), torch.nan, dtype=torch.float64), Z
    if test == "paired":
        error = (change.var(1) / n).sqrt()
        critical = student_t_quantile(CONFIDENCE, n - 1)
    else:
        error = ((under.var(1) + observed.var()) / n).sqrt()
        critical = Z
    mean = change.mean(1)
    return torch.where(mean == 0, mean, mean / error), critical
