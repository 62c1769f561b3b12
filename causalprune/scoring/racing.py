"""Exact ablation within a budget: a race of all units to the keep/remove boundary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.data import Batch
from causalprune.scoring.estimation import (
    POPULATIONS,
    MeanEstimate,
    SamplingDesign,
    estimate_mean,
    sampling_sizes,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores
from causalprune.scoring.surrogates import Surrogate, surrogate_of

__all__ = ["Race", "RaceOptions", "race"]

RANKS = ("importance", "effect")
SCOPES = ("global", "layer")

FIRST_ROUND = 32
"""Images of the first round; every further one doubles the sample."""

FEWEST_IMAGES = 16
"""Below, an interval of a heavy-tailed mean would be an invention."""

BOUNDARY_SHARE = 0.05
"""Fraction of the units, on either side, whose mean stands for the boundary."""

DEAREST = 0.25
"""A surrogate that costs more than this fraction of all exact effects is no default: networks of
few units have no use for one."""

HEAVY = 0.5
"""A unit is named whose variance rests on a single image to more than this."""

_BATCH = 256


@dataclass(frozen=True)
class RaceOptions:
    """What the race decides, and how.

    Attributes
    ----------
    ratio : float
        Fraction of the units to be removed, in (0, 1): the decision whose boundary is sought.
    surrogate : str or None
        See :func:`causalprune.scoring.surrogates.surrogate_of`.
    rank : str
        ``"importance"``: by the mean over images of abs(Y_do - Y). ``"effect"``: by the mean of
        Y_do - Y, turned so that a high rank is a unit whose removal makes the outcome worse.
    scope : str
        ``"global"``: one boundary for all units. ``"layer"``: one in every group.
    population : str
        What the reported effects are means of: ``"distribution"`` or ``"images"``. The race is
        always about the images at hand: its decision is that of exact ablation on all of them.
    """

    ratio: float = 0.5
    surrogate: str | None = None
    rank: str = "importance"
    scope: str = "global"
    population: str = "distribution"

    def check(self) -> None:
        """Raise where a value is out of range."""
        ratio = self.ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise InvalidArgumentError(f"ratio: expected a number in (0, 1), got {ratio!r}")
        for what, value, known in (
            ("rank", self.rank, RANKS),
            ("scope", self.scope, SCOPES),
            ("population", self.population, POPULATIONS),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)


def race(job: Job, options: RaceOptions) -> MethodResult:
    """Spend ``job.budget`` forward-equivalents where the keep/remove decision is open.

    The surrogate is evaluated on all N images. Images then enter in one random order, those with
    large cheap effects first (:class:`SamplingDesign`), in rounds that double the sample; on each
    the exact effects of all units still in the race are computed and the means estimated by
    :func:`causalprune.scoring.estimation.estimate_mean`. A unit leaves when the interval of the
    difference between its rank value and the boundary's (the mean of the units next to it, on
    the same images) excludes zero. The race ends when all units are decided or the next round
    cannot be paid.

    Intervals are at ``1 - (1 - confidence) / looks``, `looks` being the rounds that all images
    would take, so that each holds at `confidence` whichever round its unit stopped in.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, the outcome has no gradient for the surrogate, or the budget
        does not pay for the surrogate, or without one for one image.

    References
    ----------
    Maron and Moore (1997), Hoeffding races; Even-Dar, Mannor and Mansour (2006), successive
    elimination. Boundary, design and estimator are this package's own.
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
        self._of_surrogate = _surrogate_cost(surrogate, n_images, self._budget)
        self._surrogate_name = "none" if surrogate is None else surrogate.name
        cheap = None if surrogate is None else _evaluated(surrogate, images)
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
        if job.intervention == "mean":  # the units' means take one more pass
            self._charge(torch.ones(n_units, dtype=torch.bool), float(n_images))
        self._looks = len(_schedule(n_images))
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
        fewest = min(FEWEST_IMAGES, self._n_images)
        with torch.no_grad(), self._job.bar("racing", self._looks) as advance:
            for goal in _schedule(self._n_images):
                taken = len(self._exact)
                n = min(goal, taken + self._affordable())
                # A few more images would move nothing; below the fewest they say nothing.
                if n < goal and n < (taken * 1.125 if taken or self._cheap is None else fewest):
                    break
                self._sample(n)
                self._estimate()
                if n >= fewest:
                    self._decide()
                advance()
                if n < goal or not bool((self._verdict == 0).any()):
                    break

    def _per_image(self) -> float:
        open_units = self._verdict == 0
        return 1 + float(self._unit_cost[open_units].sum())

    def _affordable(self) -> int:
        return max(0, math.floor((self._budget - self._spent) / self._per_image()))

    def _charge(self, units: Tensor, amount: float) -> None:
        self._spent += amount
        self._cost[units] += amount / max(1, int(units.sum()))

    def _sample(self, n: int) -> None:
        """Compute the exact effects of the open units on images up to the n-th."""
        taken, open_units = len(self._exact), self._verdict == 0
        rows = [self._exact]
        for start in range(taken, n, _BATCH):
            batch = _chosen(self._images, slice(start, min(start + _BATCH, n)))
            self._exact_effects.observe(batch)
            found = torch.full((len(batch.inputs), len(open_units)), torch.nan).double()
            for name, columns in self._slices.items():
                units = open_units[columns].nonzero().flatten().tolist()
                if units:
                    effects = self._exact_effects.effects(name, units).cpu()
                    found[:, columns][:, units] = effects
            rows.append(found)
        self._exact = torch.cat(rows)
        self._charge(open_units, float(n - taken))
        self._spent += (n - taken) * float(self._unit_cost[open_units].sum())
        self._cost[open_units] += (n - taken) * self._unit_cost[open_units]
        self._n[open_units] = n

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

    def _estimate(self) -> None:
        open_units = self._verdict == 0
        exact = self._exact[:, open_units]
        cheap = None if self._cheap is None else self._cheap[:, open_units]
        effect = self._mean(exact, cheap, self._options.population)
        ranked = None if cheap is None else self._ranked(cheap)
        rank = self._mean(self._ranked(exact), ranked, "images")
        if len(exact) < min(FEWEST_IMAGES, self._n_images):
            effect, rank = effect.without_interval(), rank.without_interval()
        for total, part in ((self._effect, effect), (self._rank, rank)):
            for name, values in vars(part).items():
                getattr(total, name)[open_units] = values

    def _decide(self) -> None:
        """Close the units whose interval lies clear of their boundary."""
        exhausted = len(self._exact) == self._n_images
        for contestants in self._contests():
            n_remove = round(self._options.ratio * len(contestants))
            verdicts = self._verdict[contestants]
            units = contestants[verdicts == 0]
            left = n_remove - int((verdicts == -1).sum())
            units = units[self._rank.mean[units].argsort(stable=True)]
            if exhausted or not 0 < left < len(units):
                left = min(max(left, 0), len(units))
                self._verdict[units[:left]], self._verdict[units[left:]] = -1, 1
                continue
            width = min(left, len(units) - left, max(1, int(BOUNDARY_SHARE * len(contestants))))
            gap = self._gap(units, units[left - width : left + width])
            self._verdict[units[gap.high < 0]] = -1
            self._verdict[units[gap.low > 0]] = 1

    def _gap(self, units: Tensor, boundary: Tensor) -> MeanEstimate:
        """Rank value of `units` minus the mean of those at the boundary, on the same images."""
        exact = self._ranked(self._exact[:, units])
        exact = exact - self._ranked(self._exact[:, boundary]).mean(1, keepdim=True)
        if self._cheap is None:
            return self._mean(exact, None, "images")
        slope = self._rank.slope  # puts the cheap effects of different layers on one scale
        cheap = slope[units] * self._ranked(self._cheap[:, units])
        edge = slope[boundary] * self._ranked(self._cheap[:, boundary])
        return self._mean(exact, cheap - edge.mean(1, keepdim=True), "images")

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
        options, n_taken = self._options, len(self._exact)
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


def _schedule(n_images: int) -> list[int]:
    """Sample sizes of the rounds: doubling, then all images."""
    sizes, n = [], FIRST_ROUND
    while n < n_images:
        sizes.append(n)
        n *= 2
    return [*sizes, n_images]


def _columns(job: Job) -> dict[str, slice]:
    found, start = {}, 0
    for group in job.graph.groups:
        found[group.name] = slice(start, start + group.n_units)
        start += group.n_units
    return found


def _surrogate_cost(surrogate: Surrogate | None, n_images: int, budget: float) -> float:
    if surrogate is None:
        return 0.0
    cost = surrogate.forwards_per_image * n_images
    if budget < cost:
        raise InvalidArgumentError(
            f"budget: expected at least {cost:.0f} forward-equivalents, what surrogate "
            f"{surrogate.name!r} takes on {n_images} images, got {budget:g}; use fewer images "
            "(max_images) or surrogate='none'"
        )
    return cost


def _evaluated(surrogate: Surrogate, images: Batch) -> Tensor:
    parts = [
        surrogate.effects(_chosen(images, slice(start, start + _BATCH)))
        for start in range(0, len(images.inputs), _BATCH)
    ]
    return torch.cat(parts)


def _chosen(images: Batch, rows: Tensor | slice) -> Batch:
    if isinstance(rows, Tensor):
        rows = rows.to(images.inputs.device)
    targets = None if images.targets is None else images.targets[rows]
    return Batch(images.inputs[rows], targets)
