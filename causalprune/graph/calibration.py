"""What do() replaces units by that images decide: their means, and how they follow from others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causalprune.graph.plain_run import PlainRun, Rows
from causalprune.graph.predictions import Prediction, PredictionFit, systems_of
from causalprune.graph.recording import projected
from causalprune.graph.replacement import first_of, mean_key, prediction_key, without_heads
from causalprune.graph.steps import Step
from causalprune.graph.suffixes import Cut, first_input
from causalprune.graph.units import UnitGroup

__all__ = ["unit_means", "unit_predictions"]


def unit_means(
    plain: PlainRun, cuts: Sequence[tuple[str, Cut]], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Mean over images and positions of what every cut replaces; see ``Replacement.means``.

    Parameters
    ----------
    plain : PlainRun
    cuts : sequence of (str, Cut)
        Step name and cut.
    batches : iterable of Tensor [N, ...]
    """
    # Groups that a concatenation joins are cut in one value: its means are taken once.
    cuts = list({(name, mean_key(cut)): (name, cut) for name, cut in cuts}.values())
    totals: dict[str, Tensor] = {}
    n_images = 0
    for n_part, read in _plain_values(plain, cuts, batches):
        n_images += n_part
        for step, cut, value_of in read:
            found = _column_means(step, cut, value_of)
            key = mean_key(cut)
            totals[key] = totals.get(key, torch.zeros_like(found)) + found * n_part
    return {key: total / n_images for key, total in totals.items()}


def unit_predictions(
    plain: PlainRun,
    cuts: Sequence[tuple[str, Cut]],
    groups: Mapping[str, UnitGroup],
    batches: Iterable[Tensor],
) -> dict[str, tuple[Prediction, ...]]:
    """Regress every unit on the others of its group; see ``Replacement.predictions``.

    Parameters
    ----------
    plain : PlainRun
    cuts : sequence of (str, Cut)
        Step name and cut.
    groups : Mapping of str to UnitGroup
    batches : iterable of Tensor [N, ...]
    """
    fits = {
        prediction_key(cut): [
            PredictionFit(*system) for system in systems_of(groups[cut.group], cut.consumer)
        ]
        for _, cut in cuts
    }
    for _, read in _plain_values(plain, cuts, batches):
        for step, cut, value_of in read:
            value = _value_at(step, cut, value_of)
            for fit in fits[prediction_key(cut)]:
                fit.add(value, value.ndim + cut.consumer.axis)
    return {key: tuple(fit.solve() for fit in found) for key, found in fits.items()}


Reading = tuple[Step, Cut, Callable[[str], Any]]


def _plain_values(
    plain: PlainRun, cuts: Sequence[tuple[str, Cut]], batches: Iterable[Tensor]
) -> Iterator[tuple[int, list[Reading]]]:
    """Run all images; yields of every part its number of images and how to look at each cut."""
    steps = {step.name: step for step in plain.steps}
    read = frozenset(itertools.chain.from_iterable((n, *steps[n].inputs) for n, _ in cuts))
    plain.keep(read)
    for inputs in batches:
        for part in torch.split(inputs, min(len(inputs), plain.images_per_part)):
            plain.run(part)
            plain.bring(0, len(part), read)
            value_of = functools.partial(plain.value, rows=Rows(None, len(part)))
            yield len(part), [(steps[name], cut, value_of) for name, cut in cuts]


def _value_at(step: Step, cut: Cut, value_of: Callable[[str], Any]) -> Tensor:
    """Return the value in which the cut replaces units; for heads, what the projection reads."""
    if cut.consumer.kind != "attention":
        value: Tensor = value_of(step.name if cut.consumer.at_output else first_input(step))
        return value
    seen: list[Tensor] = []

    def watch(heads: Tensor) -> Tensor:
        seen.append(heads)
        return heads

    projected(step, value_of, watch)
    return seen[0]


def _column_means(step: Step, cut: Cut, value_of: Callable[[str], Any]) -> Tensor:
    if cut.consumer.kind == "attention":
        heads = range(max(span.unit + span.n_units for span in cut.consumer.spans))
        output = first_of(value_of(step.name))
        return torch.stack(
            [
                (output - first_of(without_heads(step, value_of, cut.consumer.columns([head]))))
                .double()
                .flatten(0, -2)
                .mean(0)
                for head in heads
            ]
        )
    columns = _value_at(step, cut, value_of).double().movedim(cut.consumer.axis, -1)
    return columns.flatten(0, -2).mean(0)
