"""Exact ablation within a budget: a race of all units to the keep/remove boundary."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.allocation import best_within, error_reduction, sample_sizes
from causalprune.scoring.data import Batch
from causalprune.scoring.estimation import (
    MeanEstimate,
    SamplingDesign,
    estimate_mean,
    sampling_sizes,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores
from causalprune.scoring.race_options import RaceOptions
from causalprune.scoring.surrogates import Surrogate, evaluated, surrogate_cost, surrogate_of

__all__ = ["Race", "RaceOptions", "race"]

FEWEST_IMAGES = 16
"""Below, an interval of a heavy-tailed mean would be an invention."""

PACE, SLOWEST = 0.25, 0.04
"""A round spends this fraction of what is left, but no less than this one of the budget: estimates
are renewed often while they can still say where to go, and rounds are few."""

FIRST_ROUND = 24
"""Images that all units begin with; where they cannot be paid, as many as can."""

BOUNDARY_SHARE = 0.02
"""Fraction of the units, on either side, whose mean stands for the boundary."""

DEAREST = 0.25
"""A surrogate that costs more than this fraction of all exact effects is no default: networks of
few units have no use for one."""

HEAVY = 0.5
"""A unit is named whose variance rests on a single image to more than this."""

_BATCH = 256

_OVERHEAD = 1e-3
"""Forward-equivalents of a unit and image that keep free units (the last layer's) comparable."""


def race(job: Job, options: RaceOptions) -> MethodResult:
    """Spend ``job.budget`` forward-equivalents where the keep/remove decision is open.

    The surrogate is evaluated on all N images. Images then enter in one random order, those with
    large cheap effects first (:class:`SamplingDesign`), and a unit's sample is the first n of
    them. All units begin with 24; every round raises the samples of those where the probability
    of a wrong decision falls most per forward-equivalent
    (:func:`causalprune.scoring.allocation.error_reduction`): units near the boundary, and cheap
    ones before dear ones. Means are estimated by
    :func:`causalprune.scoring.estimation.estimate_mean`. A unit is decided, and leaves, when its
    interval lies clear of the boundary's, the mean of the units next to it. The race ends when
    all are decided or nothing more can be paid.
    Without a surrogate means over different images do not compare (images differ more than
    units do), so all units still in the race keep the same sample.

    Intervals are at ``1 - (1 - confidence) / looks``, `looks` being the sizes that a sample
    may have, so that each holds at `confidence` whichever round its unit stopped in.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, the outcome has no gradient for the surrogate, or the budget
        does not pay for the surrogate, or without one for one image.

    References
    ----------
    Maron and Moore (1997), Hoeffding races; Even-Dar, Mannor and Mansour (2006), successive
    elimination. Allocation, design and estimator are this package's own.
    """
    options.check()
    if job.share is not None:
        raise InvalidArgumentError("budget: a race cannot be spread over processes")
    if options.rank == "effect" and job.outcome.higher_is_better is None:
        raise InvalidArgumentError(
            f"rank: 'effect' needs an outcome with a better side, {job.outcome.name!r} has none"
        )
    exact = ExactEffects(job)
    surrogate = surrogate_of(options.surrogate, job)
    whole = sum(exact.interventions.cost(g.name) * g.n_units for g in job.graph.groups)
    if options.surrogate is None and surrogate and surrogate.forwards_per_image > DEAREST * whole:
        surrogate = None
    contest = Race(job, options, exact, surrogate)
    contest.run()
    return contest.result()


class Race:
    """The state of a race; columns are the units of all groups side by side.

    Parameters
    ----------
    job : Job
        With a budget.
    options : RaceOptions
        Checked.
    exact : ExactEffects
    surrogate : Surrogate or None
    """

    def __init__(
        self, job: Job, options: RaceOptions, exact: ExactEffects, surrogate: Surrogate | None
    ) -> None:
        assert job.budget is not None
        self._job, self._options, self._budget = job, options, float(job.budget)
        images = job.batches.collect()
        self._n_images = n_images = len(images.inputs)
        self._exact_effects = exact
        self._of_surrogate = surrogate_cost(surrogate, n_images, self._budget)
        self._surrogate_name = "none" if surrogate is None else surrogate.name
        cheap = None if surrogate is None else evaluated(surrogate, images, _BATCH)
        sizes = torch.ones(n_images) if cheap is None else sampling_sizes(cheap)
        self._design = SamplingDesign.draw(sizes, job.seed)
        self._cheap = None if cheap is None else cheap[self._design.order]
        self._images = _chosen(images, self._design.order)
        self._slices = _columns(job)
        self._unit_cost = torch.cat(
            [
                torch.full((g.n_units,), self._exact_effects.interventions.cost(g.name))
                for g in job.graph.groups
            ]
        ).double()
        n_units = job.n_units
        self._spent = self._of_surrogate
        self._cost = torch.full((n_units,), self._of_surrogate / n_units, dtype=torch.float64)
        if job.intervention in ("mean", "predicted"):  # what is expected takes one more pass
            self._charge(torch.ones(n_units, dtype=torch.bool), float(n_images))
        self._sizes = sample_sizes(n_images, FIRST_ROUND)
        self._looks = len(self._sizes)
        self._level = 1 - (1 - job.confidence) / self._looks
        self._exact = torch.zeros(0, n_units, dtype=torch.float64)
        self._n = torch.zeros(n_units, dtype=torch.int64)
        self._verdict = torch.zeros(n_units, dtype=torch.int8)  # 1 keep, -1 remove, 0 open
        guess = torch.full((1, n_units), torch.nan).double() if cheap is None else cheap
        self._rank = MeanEstimate.of_guess(self._ranked(guess).mean(0))
        self._effect = MeanEstimate.of_guess(guess.mean(0))
        self._minimum = self._of_surrogate + min(FEWEST_IMAGES, n_images) * self._per_image()

    # ---- spending ----------------------------------------------------------------------------

    def run(self) -> None:
        """Run rounds until all is decided or nothing more can be paid."""
        if self._cheap is None and self._affordable() < 1:
            raise InvalidArgumentError(
                f"budget: expected at least {self._per_image():.1f} forward-equivalents, what one "
                f"image with all units takes, got {self._budget:g}"
            )
        n, fewest = min(self._sizes[0], self._affordable()), min(FEWEST_IMAGES, self._n_images)
        if n < fewest and self._cheap is not None:
            return  # means of a few images would be worse than the surrogate's
        with torch.no_grad(), self._job.bar("racing", None) as advance:
            purchases = [(torch.ones_like(self._verdict, dtype=torch.bool), n)]
            while purchases:
                for units, goal in purchases:
                    self._sample(units, goal)
                self._estimate(torch.stack([units for units, _ in purchases]).any(0))
                if n >= fewest:
                    self._decide()
                advance()
                purchases = self._purchases() if n == self._sizes[0] else []

    def _per_image(self) -> float:
        open_units = self._verdict == 0
        return 1 + float(self._unit_cost[open_units].sum())

    def _purchases(self) -> list[tuple[Tensor, int]]:
        """Return what the next round buys: units, and the size their samples shall have."""
        sizes, left = torch.tensor(self._sizes), self._budget - self._spent
        open_units = (self._verdict == 0) & (self._n < self._n_images)
        if not bool(open_units.any()):
            return []
        step = torch.searchsorted(sizes, self._n, right=True).clamp_max(len(sizes) - 1)
        more = (sizes[step] - self._n).double()
        if self._cheap is None:  # all open units are at the same size
            n = int(self._n[open_units][0])
            full = int(sizes[step[open_units][0]])
            goal = min(full, n + self._affordable())
            # What is left may pay for one last part of a round, if that can still move something.
            worth = n in self._sizes and (goal == full or goal > 1.125 * n)
            return [(open_units, goal)] if worth else []
        price = self._unit_cost * more
        drop = error_reduction(
            self._distance(), self._rank.se, self._n, sizes[step], self._n_images
        )
        rate = drop / (price + more * _OVERHEAD).clamp_min(1e-300)
        limit = min(left, max(PACE * left, SLOWEST * self._budget))
        rate = torch.where(open_units, rate, -1.0)
        chosen = best_within(rate, price, more, step, limit, left)
        return [(chosen & (step == k), self._sizes[k]) for k in torch.unique(step[chosen]).tolist()]

    def _affordable(self) -> int:
        return max(0, math.floor((self._budget - self._spent) / self._per_image()))

    def _charge(self, units: Tensor, amount: float) -> None:
        self._spent += amount
        self._cost[units] += amount / max(1, int(units.sum()))

    def _sample(self, units: Tensor, n: int) -> None:
        """Compute the exact effects of `units`, all at one size, on images up to the n-th."""
        taken, fresh = int(self._n[units][0]), n - len(self._exact)
        if fresh > 0:
            self._exact = F.pad(self._exact, (0, 0, 0, fresh), value=torch.nan)
        for start in range(taken, n, _BATCH):
            rows = slice(start, min(start + _BATCH, n))
            self._exact_effects.observe(_chosen(self._images, rows))
            for name, columns in self._slices.items():
                wanted = units[columns].nonzero().flatten()
                if len(wanted):
                    effects = self._exact_effects.effects(name, wanted.tolist()).cpu()
                    self._exact[rows, columns.start + wanted] = effects
        self._charge(units, float(n - taken))
        self._spent += (n - taken) * float(self._unit_cost[units].sum())
        self._cost[units] += (n - taken) * self._unit_cost[units]
        self._n[units] = n

    # ---- deciding ----------------------------------------------------------------------------

    def _ranked(self, effects: Tensor) -> Tensor:
        if self._options.rank == "importance":
            return effects.abs()
        return -effects if self._job.outcome.higher_is_better else effects

    def _mean(self, exact: Tensor, cheap: Tensor | None, population: str) -> MeanEstimate:
        return estimate_mean(
            exact,
            self._design.probabilities(len(exact)),
            cheap,
            confidence=self._level,
            population=population,
        )

    def _estimate(self, changed: Tensor) -> None:
        for n in torch.unique(self._n[changed]).tolist():
            units = changed & (self._n == n)
            exact = self._exact[:n, units]
            cheap = None if self._cheap is None else self._cheap[:, units]
            effect = self._mean(exact, cheap, self._options.population)
            ranked = None if cheap is None else self._ranked(cheap)
            rank = self._mean(self._ranked(exact), ranked, "images")
            if n < min(FEWEST_IMAGES, self._n_images):
                effect, rank = effect.without_interval(), rank.without_interval()
            for total, part in ((self._effect, effect), (self._rank, rank)):
                for name, values in vars(part).items():
                    getattr(total, name)[units] = values

    def _decide(self) -> None:
        """Close the units whose interval lies clear of the boundary's."""
        for units, left, edge in self._open_contests():
            exhausted = bool((self._n[units] == self._n_images).all())
            if exhausted or not 0 < left < len(units):  # nothing to learn, or only one side left
                ordered = units[self._rank.mean[units].argsort(stable=True)]
                left = min(max(left, 0), len(units))
                self._verdict[ordered[:left]], self._verdict[ordered[left:]] = -1, 1
                continue
            low, high = self._gap(units, edge)
            self._verdict[units[high < 0]] = -1
            self._verdict[units[low > 0]] = 1

    def _gap(self, units: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of the rank value of `units` minus the boundary's, the mean of `edge`'s.

        With a surrogate the two are estimated on samples of their own. They err together at
        worst, so their half widths add up. Without one the samples are the same.
        """
        rank = self._rank
        if self._cheap is None:
            exact = self._ranked(self._exact[: int(self._n[units[0]])])
            gap = self._mean(exact[:, units] - exact[:, edge].mean(1, keepdim=True), None, "images")
            return gap.low, gap.high
        value, half = rank.mean[edge].mean(), (rank.high - rank.low)[edge].mean() / 2
        return rank.low[units] - value - half, rank.high[units] - value + half

    def _distance(self) -> Tensor:
        """Rank value [n_units] of the open units minus the boundary's."""
        distance = self._rank.mean.clone()
        for units, _, edge in self._open_contests():
            distance[units] -= self._rank.mean[edge].mean()
        return distance

    def _open_contests(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Open units of every contest, how many of them are to go, and those at the boundary."""
        for contestants in self._contests():
            verdicts = self._verdict[contestants]
            units = contestants[verdicts == 0]
            if not len(units):
                continue
            left = round(self._options.ratio * len(contestants)) - int((verdicts == -1).sum())
            place = min(max(left, 1), len(units) - 1)
            width = min(place, len(units) - place, int(BOUNDARY_SHARE * len(contestants)))
            ordered = units[self._rank.mean[units].argsort(stable=True)]
            yield units, left, ordered[max(0, place - max(1, width)) : place + max(1, width)]

    def _contests(self) -> Iterator[Tensor]:
        everything = torch.arange(len(self._verdict))
        if self._options.scope == "global":
            yield everything
        else:
            yield from (everything[columns] for columns in self._slices.values())

    # ---- telling -----------------------------------------------------------------------------

    def result(self) -> MethodResult:
        """Return the scores of all units, and what the race came to."""
        importance = self._rank.mean
        if self._options.rank == "importance":
            importance = importance.clamp_min(0.0)
        effect = self._effect
        units = {
            name: UnitScores(
                importance[columns],
                effect.mean[columns],
                effect.se[columns],
                self._n[columns],
                self._cost[columns],
                effect.low[columns],
                effect.high[columns],
            )
            for name, columns in self._slices.items()
        }
        return MethodResult(units, notes=self._notes())

    def _notes(self) -> tuple[str, ...]:
        options, n_taken = self._options, int(self._n.min())
        kept, removed = int((self._verdict == 1).sum()), int((self._verdict == -1).sum())
        whole = self._n_images * (1 + float(self._unit_cost.sum()))
        notes = [
            f"race at ratio {options.ratio:g} by {options.rank} ({options.scope}): {kept} units "
            f"decided to stay, {removed} to go, {len(self._verdict) - kept - removed} undecided",
            f"{self._spent:.0f} of {self._budget:.0f} forward-equivalents spent, "
            f"{self._of_surrogate:.0f} of them on surrogate {self._surrogate_name!r}; all units on "
            f"all {self._n_images} images would take {whole:.0f}",
        ]
        if n_taken < min(FEWEST_IMAGES, self._n_images):
            notes.append(
                "the budget is too small for intervals: effects are "
                + ("those of the surrogate" if not n_taken else f"means of {n_taken} images")
                + f"; at least {math.ceil(self._minimum)} forward-equivalents are needed"
            )
            return tuple(notes)
        notes.append(
            f"intervals hold at {self._job.confidence:.0%} after optional stopping: each is at "
            f"{self._level:.2%} (Bonferroni over {self._looks} looks); effects are means over the "
            + ("images at hand" if options.population == "images" else "calibration distribution")
        )
        heavy = int((self._effect.heaviest > HEAVY).sum())
        if heavy:
            notes.append(
                f"{heavy} units' intervals rest on one image to more than {HEAVY:.0%} of their "
                "variance and may be too narrow: their effects are too heavy tailed"
            )
        return tuple(notes)


def _columns(job: Job) -> dict[str, slice]:
    found, start = {}, 0
    for group in job.graph.groups:
        found[group.name] = slice(start, start + group.n_units)
        start += group.n_units
    return found


def _chosen(images: Batch, rows: Tensor | slice) -> Batch:
    if isinstance(rows, Tensor):
        rows = rows.to(images.inputs.device)
    targets = None if images.targets is None else images.targets[rows]
    return Batch(images.inputs[rows], targets)
