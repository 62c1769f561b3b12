"""Latency as a target: what layers cost on this machine, and how long a candidate really takes."""

from __future__ import annotations

import numbers
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph, evaluating
from causalprune.measures import Latency, interleaved_latency_ms, torch_threads
from causalprune.pruning.footprint import LayerSize, Sizes
from causalprune.pruning.ranking import Course
from causalprune.pruning.search import TOLERANCE, Choice, meets
from causalprune.pruning.surgery import shrunk_copy

__all__ = ["Timing", "check_timing", "compared", "time_saved", "timed"]

PROFILED_PASSES = 7
CANDIDATES = 16
"""Candidates that a search times at most, repeated ones included."""
FINAL_REPEATS = 4
"""How many times more often the chosen candidate is timed than one on the way."""


@dataclass(frozen=True)
class Timing:
    """How forward passes are timed: `batch` [B, ...] is one pass."""

    batch: Tensor
    repeats: int
    threads: int | None


def check_timing(image: Tensor, batch: object, repeats: object, threads: object) -> Timing:
    """Check the options of timing; `image` [1, ...] is repeated to make a batch."""
    checked = {"latency_batch": batch, "latency_repeats": repeats}
    if threads is not None:
        checked["threads"] = threads
    for name, value in checked.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < 1:  # type: ignore[operator]
            raise InvalidArgumentError(f"{name}: expected an integer of at least 1, got {value!r}")
    many = image.expand(int(batch), *image.shape[1:]).contiguous()  # type: ignore[call-overload]
    return Timing(many, int(repeats), threads)  # type: ignore[call-overload, arg-type]


def compared(
    model: nn.Module, small: nn.Module, timing: Timing, repeats: int | None = None
) -> tuple[Latency, Latency]:
    """Time the whole network and a smaller one, a pass of each in turn."""
    before, after = interleaved_latency_ms(
        [model, small],
        timing.batch,
        warmup=2,
        repeats=repeats or timing.repeats,
        threads=timing.threads,
    )
    return before, after


# ---- what a unit saves ---------------------------------------------------------------------------


def time_saved(model: nn.Module, sizes: Sizes, timing: Timing) -> dict[str, list[float]]:
    """Return the milliseconds that each unit alone saves, by what its layers take.

    Every layer is timed where it stands in the network; a unit saves of that what it has in the
    layer's multiply-accumulates (of its bytes where it has none, as a norm). Multiply-accumulates
    of the whole network tell less: their speed differs much between layers.
    """
    spent = layer_times(model, list(sizes.layers), timing)
    saved: dict[tuple[str, int], float] = {}
    for group, number in sizes.lanes:
        unit = sizes.classes[group].index(number)
        left = sizes.layers_without([(group, unit)])
        saved[group, number] = sum(
            milliseconds * (1 - _share(sizes.layers[layer], left[layer]))
            for layer, milliseconds in spent.items()
        )
    return {g: [saved[g, k] for k in classes] for g, classes in sizes.classes.items()}


def _share(before: LayerSize, after: LayerSize) -> float:
    if before.macs:
        return after.macs / before.macs
    return after.bytes / before.bytes if before.bytes else 1.0


def layer_times(model: nn.Module, layers: list[str], timing: Timing) -> dict[str, float]:
    """Return the median milliseconds that each module takes within a forward pass."""
    found: dict[str, list[float]] = {name: [] for name in layers}
    with (
        evaluating(model),
        torch.inference_mode(),
        torch_threads(timing.threads),
        _clocks(model, found, timing.batch.device),
    ):
        for _ in range(2):
            model(timing.batch)
        for times in found.values():
            times.clear()
        for _ in range(PROFILED_PASSES):
            model(timing.batch)
    return {name: float(np.median(times)) for name, times in found.items() if times}


@contextmanager
def _clocks(
    model: nn.Module, found: Mapping[str, list[float]], device: torch.device
) -> Iterator[None]:
    """Time every leaf module of `found` on each call."""
    started: dict[str, int] = {}

    def now() -> int:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    def before(name: str) -> Any:
        def hook(*_: Any) -> None:
            started[name] = now()

        return hook

    def after(name: str) -> Any:
        def hook(*_: Any) -> None:
            found[name].append((now() - started[name]) / 1e6)

        return hook

    handles = []
    try:
        for name in found:
            module = model.get_submodule(name)
            # What a module with children takes is mostly theirs.
            if name and (not any(module.children()) or isinstance(module, nn.MultiheadAttention)):
                handles.append(module.register_forward_pre_hook(before(name)))
                handles.append(module.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- how many units go ---------------------------------------------------------------------------


def timed(
    course: Course, model: nn.Module, graph: UnitGraph, timing: Timing, ratio: float
) -> tuple[Choice, tuple[Latency, Latency]]:
    """Find how much of the order has to go for the median latency to fall by `ratio`.

    Real candidates are timed, each in alternation with the whole network. Latency falls with
    every block but for noise and for widths that the kernels do not like, so that an isotonic
    regression over all candidates timed so far says where the target is crossed, and the next one
    is taken from there. What is returned was timed anew, and longer.

    Returns
    -------
    Choice
    (Latency, Latency)
        Of the whole network and of what is left, from the same passes.
    """
    search = _Search(course, model, graph, timing)
    best = search.measure(len(course.order), FINAL_REPEATS)
    if best.saved <= ratio:
        return best.choice(course, best.saved >= ratio * (1 - TOLERANCE)), best.latencies
    finals = [best]
    for round_ in range(CANDIDATES):
        n = search.crossing(ratio, halve=round_ % 2 == 1)
        candidate = search.measure(n)
        if meets(candidate.saved, ratio) or search.exhausted(ratio):
            finals.append(search.measure(search.crossing(ratio, halve=False), FINAL_REPEATS))
            if meets(finals[-1].saved, ratio):
                break
    best = min(finals, key=lambda each: abs(each.saved - ratio))
    return best.choice(course, True), best.latencies


@dataclass(frozen=True)
class _Timed:
    """The first `n` blocks of the order gone: the fraction of the latency that this saved."""

    n: int
    latencies: tuple[Latency, Latency]

    @property
    def saved(self) -> float:
        before, after = self.latencies
        return 1 - after.median_ms / before.median_ms

    def choice(self, course: Course, reached: bool) -> Choice:
        return Choice(course.first(self.n), self.saved, reached)


class _Search:
    """Candidates that were timed, and where by all of them the target is crossed."""

    def __init__(self, course: Course, model: nn.Module, graph: UnitGraph, timing: Timing) -> None:
        self._course, self._model, self._graph, self._timing = course, model, graph, timing
        self._found: list[_Timed] = []

    def measure(self, n: int, longer: int = 1) -> _Timed:
        remove = self._course.remove(self._course.first(n))
        small = shrunk_copy(self._model, self._graph, remove)
        repeats = longer * self._timing.repeats
        self._found.append(_Timed(n, compared(self._model, small, self._timing, repeats)))
        return self._found[-1]

    def exhausted(self, ratio: float) -> bool:
        """Whether no run of the order between those around the target is left to be timed."""
        (low, _), (high, _) = self._around(ratio)
        return high - low <= 1

    def crossing(self, ratio: float, *, halve: bool) -> int:
        """Return the run of the order to time next: where the target is crossed, or half-way."""
        (low, below), (high, above) = self._around(ratio)
        if halve:
            return (low + high + 1) // 2
        # Both ends are candidates too: they are timed again when the target lies next to them.
        share = 0.5 if above <= below else (ratio - below) / (above - below)
        return max(1, low + round((high - low) * share))

    def _around(self, ratio: float) -> tuple[tuple[int, float], tuple[int, float]]:
        """Return the longest run that is below the target and the next: (blocks, saved) each."""
        runs = sorted({each.n for each in self._found})
        saved, weight = [0.0], [1e9]
        for n in runs:
            same = [each for each in self._found if each.n == n]
            weights = [each.latencies[1].repeats for each in same]
            saved.append(float(np.average([each.saved for each in same], weights=weights)))
            weight.append(float(sum(weights)))
        fitted = isotonic_regression(saved, weights=weight).x
        place = min(int(np.searchsorted(fitted, ratio, side="right")), len(runs))
        knots = [0, *runs]
        return (
            (knots[place - 1], float(fitted[place - 1])),
            (knots[place], float(fitted[place])),
        )
