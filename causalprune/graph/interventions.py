"""Outputs of a network under interventions on its units, by running only what they reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError, UnsupportedModelError
from causalprune.graph.calibration import unit_means, unit_predictions
from causalprune.graph.intervene import INTERVENTIONS, check_units
from causalprune.graph.jobs import ROW_BYTES, Job, batched, jobs_of
from causalprune.graph.plain_run import PlainRun, Rows
from causalprune.graph.replacement import Removal, Replacement
from causalprune.graph.suffix_run import run_suffix
from causalprune.graph.suffixes import Cut, Suffix, first_input, suffix_of
from causalprune.graph.units import UnitGraph

__all__ = ["Interventions"]


class Interventions:
    """Run a network on images under do(units := value), again and again.

    :meth:`observe` runs the network as it is; the other methods then answer for the same images.
    What an intervention cannot reach is taken from that run, the first convolution or linear
    layer behind it is updated instead of run again, images on which the unit has the value
    already are skipped, and batch norms are folded: the outputs equal those of whole forward
    passes up to rounding. Use inside ``torch.no_grad()``, with the network in eval mode.

    Parameters
    ----------
    model : nn.Module
        In eval mode; takes [N, ...] and returns one tensor [N, ...].
    graph : UnitGraph
        Captured from `model`.
    example : Tensor [1, ...]
        One image.
    value : str
        ``"zero"``, ``"mean"`` (of the units over the images given to :meth:`calibrate`; one for
        each column of a linear layer, one for each channel of a convolution), ``"resample"``
        (the unit's value on another of the images that are kept together) or ``"predicted"``
        (the ridge regression, with a constant, of what a consumer reads of the unit on what it
        reads of the group's other units at the same position, fitted by :meth:`calibrate`).
    max_cache_bytes : int
        Bound on the values of the plain run that are kept. Where those of all images do not fit,
        images are taken in parts (:attr:`images_per_part`), and what was dropped is computed
        again when it is asked for.
    seed : int
        For ``"resample"``.

    Raises
    ------
    UnknownNameError
        If `value` is none of the four.
    UnsupportedModelError
        If an intervention asks for what the captured graph cannot give.

    Examples
    --------
    >>> from causalprune.graph import capture
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> x = torch.randn(5, 4)
    >>> with torch.no_grad():
    ...     run = Interventions(model, capture(model, x), example=x[:1])
    ...     plain = run.observe(x)
    ...     outputs = run.remove("0", [0, 2])
    >>> outputs.shape, run.cost("0") < 1
    (torch.Size([2, 5, 2]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        graph: UnitGraph,
        *,
        example: Tensor,
        value: str = "zero",
        max_cache_bytes: int = 2**30,
        seed: int = 0,
    ) -> None:
        if value not in INTERVENTIONS:
            raise UnknownNameError("intervention", value, INTERVENTIONS)
        self._model, self._graph, self._value = model, graph, value
        self._replace = Replacement(value)
        self._inputs = self._output = torch.zeros(0)
        self.rows_run = 0
        """(unit, image) pairs run so far; those skipped because nothing changes are not."""
        at_output = {c.layer for group in graph.groups for c in group.consumers if c.at_output}
        cut = {graph.sites[layer].node for layer in at_output} if graph.traced else set()
        self._plain = (
            PlainRun.of(
                model,
                example,
                keep=cut,
                max_cache_bytes=max_cache_bytes,
                seed=seed,
                exported=graph.exported,
            )
            if graph.traced
            else None
        )
        self._suffixes: dict[str, Suffix] = {}
        if self._plain is not None:
            for group in graph.groups:
                self._suffixes[group.name] = self._suffix([group.name])
            self._plain.keep(self._all_needed())

    @property
    def images_per_part(self) -> int:
        """Images whose plain values are kept at once; larger runs are taken in parts."""
        return 2**62 if self._plain is None else self._plain.images_per_part

    def cost(self, group: str) -> float:
        """Forward-equivalents of removing one unit of `group` on one image."""
        self._graph.group(group)
        if self._plain is None:
            return 1.0
        return self._suffixes[group].macs / self._plain.seen.total_macs

    @property
    def needs_calibration(self) -> bool:
        """Whether :meth:`calibrate` must come before :meth:`observe`."""
        return self._value in ("mean", "predicted")

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Take the units' means or regressions over all images of `batches` [N, ...].

        Regressions see every image and position once (tokens and pixels alike), in float64. From
        few images they fit what they are given too well: see to many more positions than units.
        """
        if self._plain is None:
            raise UnsupportedModelError(
                f"model: do(unit := {self._value}) needs a network that can be traced and does "
                "not overwrite tensors that are read elsewhere"
            )
        cuts = [
            (self._graph.sites[consumer.layer].node, Cut(group.name, consumer))
            for group in self._graph.groups
            for consumer in group.consumers
        ]
        if self._value == "predicted":
            groups = {group.name: group for group in self._graph.groups}
            found = unit_predictions(self._plain, cuts, groups, batches)
            self._replace = Replacement(self._value, predictions=found)
        else:
            means = unit_means(self._plain, cuts, batches)
            self._replace = Replacement(self._value, means)
        self._plain.keep(self._all_needed())

    def observe(self, inputs: Tensor) -> Tensor:
        """Run the network on `inputs` [N, ...] as it is; returns its output [N, K]."""
        if self.needs_calibration and not (self._replace.means or self._replace.predictions):
            raise InvalidArgumentError(f"value: do(unit := {self._value}) needs calibrate() first")
        if self._value == "resample" and len(inputs) < 2:
            raise InvalidArgumentError(
                "inputs: expected at least two images for do(unit := resample), got 1"
            )
        self._inputs = inputs
        self._output = self._model(inputs) if self._plain is None else self._plain.run(inputs)
        return self._output

    def remove(
        self, group: str, units: Sequence[int], images: Sequence[int] | None = None
    ) -> Tensor:
        """Return outputs [len(units), n, K] with each of `units` removed alone, on `images`.

        Parameters
        ----------
        group : str
        units : sequence of int
        images : sequence of int, optional
            Indices into the observed images. Default: all.
        """
        for unit in units:
            check_units(self._graph.group(group), [unit])
        chosen = self._chosen(images)
        result = self._output[chosen.to(self._output.device)].repeat(
            len(units), *[1] * self._output.ndim
        )
        result = result.reshape(len(units), len(chosen), *self._output.shape[1:])
        if self._plain is None:
            alone = self._value == "zero"  # otherwise the other images lend their values
            inputs = self._inputs[chosen.to(self._inputs.device)] if alone else self._inputs
            for place, unit in enumerate(units):
                found = self._replace.whole_run(self._model, self._graph, inputs, {group: [unit]})
                result[place] = found if alone else found[chosen.to(found.device)]
            self.rows_run += len(units) * len(inputs)
            return result
        suffix = self._suffixes[group]
        self._check_resampling(suffix, group)
        for start, stop in self._plain.parts():
            where = ((chosen >= start) & (chosen < stop)).nonzero().flatten()
            if not len(where):
                continue
            self._plain.bring(start, stop, self._needed(suffix))
            zero = self._value == "zero"
            jobs = jobs_of(
                self._plain, suffix, group, units, chosen[where] - start, where, zero=zero
            )
            size = max(1, ROW_BYTES // suffix.row_bytes) if suffix.by_image else 1
            for several in batched(jobs, size):
                outputs = run_suffix(self._plain, self._replace, suffix, several)
                for job, output in zip(several, outputs, strict=True):
                    own = output if job.picked is None else output[job.picked]
                    result[job.place, job.images] = own
                    self.rows_run += job.rows.n
        return result

    def remove_jointly(self, units: Mapping[str, Sequence[int]]) -> Tensor:
        """Return the outputs [N, K] with all of `units` (by group) removed at once."""
        chosen = {g: check_units(self._graph.group(g), indices) for g, indices in units.items()}
        return self._remove_on_all({name: found for name, found in chosen.items() if found})

    def remove_masked(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return outputs [N, K] where image n lacks the units u with ``masks[group][n, u]``.

        Parameters
        ----------
        masks : Mapping of str to Tensor [N, n_units], bool
        """
        for name, mask in masks.items():
            expected = (len(self._inputs), self._graph.group(name).n_units)
            if mask.shape != expected or mask.dtype != torch.bool:
                raise InvalidArgumentError(
                    f"masks: expected bool {list(expected)} for {name!r}, "
                    f"got {mask.dtype} {list(mask.shape)}"
                )
        return self._remove_on_all(masks)

    def _chosen(self, images: Sequence[int] | None) -> Tensor:
        """Check indices into the observed images; returns [n], int64."""
        n_images = len(self._inputs)
        chosen = range(n_images) if images is None else [int(image) for image in images]
        if not all(0 <= image < n_images for image in chosen):
            raise InvalidArgumentError(
                f"images: expected indices in [0, {n_images}), got {list(chosen)[:20]}"
            )
        return torch.tensor(list(chosen), dtype=torch.int64)

    def _remove_on_all(self, removal: Removal) -> Tensor:
        if not removal:
            return self._output.clone()
        if self._value == "predicted":
            raise InvalidArgumentError(
                "value: do(unit := predicted) predicts a unit from the others, so it is for one "
                "at a time; use remove(), or 'zero', 'mean' or 'resample' for several"
            )
        if self._plain is None:
            return self._replace.whole_run(self._model, self._graph, self._inputs, removal)
        suffix = self._suffix(list(removal), jointly=True)
        self._check_resampling(suffix, ", ".join(removal))
        if not self._can_mask(self._plain, suffix):
            masks = {g: r for g, r in removal.items() if isinstance(r, Tensor)}
            if masks:
                return self._remove_row_by_row(masks)
        size = max(1, ROW_BYTES // suffix.row_bytes) if suffix.by_image else 2**62
        parts = []
        for start, stop in self._plain.parts():
            self._plain.bring(start, stop, self._needed(suffix))
            for first in range(0, stop - start, size):
                last = min(first + size, stop - start)
                whole = not suffix.by_image
                rows = Rows(None if whole else slice(first, last), last - first)
                own = {
                    g: r[start + first : start + last] if isinstance(r, Tensor) else r
                    for g, r in removal.items()
                }
                job = Job(own, rows, torch.arange(start + first, start + last))
                parts += run_suffix(self._plain, self._replace, suffix, [job])
        self.rows_run += len(self._inputs)
        return torch.cat(parts)

    def _remove_row_by_row(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Answer masks where a value that is cut does not show which image is where."""
        names, width = list(masks), [mask.shape[1] for mask in masks.values()]
        together = torch.cat([mask.cpu() for mask in masks.values()], 1)
        different, place = torch.unique(together, dim=0, return_inverse=True)
        result = self._output.clone()
        for index, row in enumerate(different):
            gone = zip(names, row.split(width), strict=True)
            outputs = self.remove_jointly({g: m.nonzero().flatten().tolist() for g, m in gone})
            where = (place == index).nonzero().flatten().to(result.device)
            result[where] = outputs[where]
        return result

    @staticmethod
    def _can_mask(plain: PlainRun, suffix: Suffix) -> bool:
        """Whether every value that is cut has a dimension whose places are the images."""
        cut = [
            (step.name if any(c.consumer.at_output for c in suffix.cuts[step.name]) else None)
            or first_input(step)
            for step in plain.steps
            if step.name in suffix.cuts
        ]
        tensors = [name for name in cut if name in plain.seen.shapes]
        return all(plain.seen.images_axis(name) is not None for name in tensors)

    # ---- what has to be run ------------------------------------------------------------------

    def _suffix(self, groups: Sequence[str], *, jointly: bool = False) -> Suffix:
        assert self._plain is not None
        cuts: dict[str, tuple[Cut, ...]] = {}
        for name in groups:
            for consumer in self._graph.group(name).consumers:
                node = self._graph.sites[consumer.layer].node
                cuts[node] = (*cuts.get(node, ()), Cut(name, consumer))
        return suffix_of(self._plain.steps, self._plain.seen, cuts, jointly=jointly)

    def _all_needed(self) -> frozenset[str]:
        return frozenset().union(*map(self._needed, self._suffixes.values()))

    def _check_resampling(self, suffix: Suffix, groups: str) -> None:
        if self._value == "resample" and not suffix.by_image:
            raise UnsupportedModelError(
                f"model: do(unit := resample) on {groups!r} needs values whose first dimension is "
                "the images; use 'zero' or 'mean'"
            )

    def _needed(self, suffix: Suffix) -> frozenset[str]:
        """Plain values that running a suffix reads."""
        if self._value != "resample":
            return suffix.plain
        assert self._plain is not None
        cut = [step for step in self._plain.steps if step.name in suffix.cuts]
        return suffix.plain.union(*({step.name, *step.inputs} for step in cut))
