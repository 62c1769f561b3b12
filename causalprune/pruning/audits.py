"""What the units chosen for removal really do: an audit by exact ablation, at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph.intervene import check_units
from causalprune.pruning.plans import Plan
from causalprune.scoring import Scores
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.driver import open_job
from causalprune.scoring.estimation import POPULATIONS
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.methods import Job
from causalprune.scoring.outcomes import DEFAULT_OUTCOME

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Audit", "audit"]


Array = np.ndarray[Any, np.dtype[np.float64]]
Unit = tuple[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """Predicted against true effects of the units that were selected.

    Attributes
    ----------
    outcome : str
    n_selected, n_audited, n_images : int
    predicted : float
        Sum of the predicted effects of all selected units.
    estimated, low, high : float
        Sum of their true effects, each removed alone, estimated from the audited ones, with its
        interval.
    joint, joint_low, joint_high : float
        What removing all of them *together* does; NaN for an intervention that has no joint form.
    confidence : float
    units : DataFrame
        One row an audited unit: ``layer``, ``unit``, ``predicted``, ``effect``, ``se``.
    """

    outcome: str
    n_selected: int
    n_audited: int
    n_images: int
    predicted: float
    estimated: float
    low: float
    high: float
    joint: float
    joint_low: float
    joint_high: float
    confidence: float
    units: pd.DataFrame

    def __repr__(self) -> str:
        """Return the sentence."""
        return f"Audit({self.sentence})"

    @property
    def agrees(self) -> bool | None:
        """Whether the prediction lies in the interval; ``None`` where there is no interval."""
        if not math.isfinite(self.high - self.low):
            return None
        return self.low <= self.predicted <= self.high

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        text = (
            f"the {self.n_selected} selected units were predicted to change {self.outcome} by "
            f"{self.predicted:.4g} in sum, each removed alone; ablating {self.n_audited} of them "
            f"on {self.n_images} images says {self.estimated:.4g} ({self.confidence:.0%} interval "
            f"{self.low:.4g} to {self.high:.4g})"
        )
        if self.agrees is None:
            text += ", too few to judge by"
        elif self.agrees:
            text += ", which agrees"
        else:
            off = "high" if self.predicted > self.high else "low"
            text += (
                f": the prediction was too {off}, as is to be expected of units that were selected "
                "by it (winner's curse)"
            )
        if math.isfinite(self.joint):
            text += (
                f"; removing all of them together changes it by {self.joint:.4g} "
                f"({self.joint_low:.4g} to {self.joint_high:.4g})"
            )
        return text


def audit(
    model: nn.Module,
    selection: Plan | Mapping[str, Sequence[int]],
    data: Any,
    predicted: Scores | pd.DataFrame,
    *,
    n_units: int = 32,
    outcome: str | Callable[..., Tensor] = DEFAULT_OUTCOME,
    intervention: str = "zero",
    population: str = "distribution",
    units: str = "groups",
    confidence: float = 0.95,
    max_images: int | None = None,
    batch_size: int = 256,
    max_cache_bytes: int = 2**30,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Ablate a random sample of the units selected for removal, and compare with the prediction.

    Units are selected because their predicted effects are small, and predictions that are small
    by mistake are selected with them: the sum of the predictions is too good on average, even
    where each prediction is right on average. So it has to be checked on the *selected* units,
    best on images that neither scored nor selected them. With a simple random sample of n of the
    N selected units, their true sum is estimated by the sum of the predictions plus N times the
    mean error of the prediction in the sample (difference estimator, unbiased). Its interval
    adds the variance over the units that were not audited to that over images. Removing units
    one by one is not removing them together, so that is measured, too, by one more run.

    Parameters
    ----------
    model : nn.Module
        The network before pruning.
    selection : Plan or Mapping of str to sequence of int
        The units that go: a plan's, or group name to indices.
    data, outcome, intervention, units, confidence, max_images, batch_size, max_cache_bytes
        As :func:`causalprune.scoring.score` takes them; `outcome`, `intervention` and `units` as
        the prediction was made.
    predicted : Scores or DataFrame
        Effects of all selected units, on the scale of `outcome`: scores of a method that has
        them, or a table with ``layer``, ``unit`` and ``effect``, such as the ``units`` of
        :class:`causalprune.analysis.UnitEffects`.
    n_units : int
        How many to audit, at least 2; all where there are no more.
    population : str
        Whether the interval is for the ``"distribution"`` that the images came from, or for the
        ``"images"`` at hand.
    seed : int
        Of the sample, and as in :func:`causalprune.scoring.score`.
    progress : bool

    Raises
    ------
    InvalidArgumentError
        If nothing is selected, a selected unit has no finite prediction, or an argument is out of
        range.
    UnknownNameError
        If a group or population is not known.

    References
    ----------
    Sarndal, Swensson and Wretman (1992), section 6.3, for the difference estimator.

    Examples
    --------
    >>> from causalprune.scoring import score
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> data = torch.randn(30, 4), torch.arange(30) % 2
    >>> exact = score(model, data, "ablation")
    >>> found = audit(model, {"0": [1, 2, 4]}, data, exact, n_units=2, population="images")
    >>> found.n_audited, abs(found.estimated - found.predicted) < 1e-6  # the prediction is exact
    (2, True)
    """
    import pandas as pd

    if population not in POPULATIONS:
        raise UnknownNameError("population", population, POPULATIONS)
    if isinstance(n_units, bool) or not isinstance(n_units, int) or n_units < 2:
        raise InvalidArgumentError(f"n_units: expected an integer of at least 2, got {n_units!r}")
    gone = _selected(selection)
    frame = predicted.frame if isinstance(predicted, Scores) else predicted
    guesses = _predictions(frame, gone)
    with open_job(
        model,
        data,
        "ablation",
        outcome,
        units=units,
        intervention=intervention,
        confidence=confidence,
        max_images=max_images,
        batch_size=batch_size,
        max_cache_bytes=max_cache_bytes,
        seed=seed,
        progress=progress,
        options={},
    ) as (_, job):
        for name, indices in gone.items():
            check_units(job.graph.group(name), indices, "selection")
        order = np.random.default_rng(seed).permutation(len(guesses))[:n_units]
        chosen = [list(guesses)[place] for place in sorted(order)]
        effects, joint = _ablate(job, chosen, gone)
        name = job.outcome.name
    guess = np.array([guesses[unit] for unit in chosen])
    total = sum(guesses.values())
    estimated, low, high = _estimate(
        effects, guess, len(guesses), total, confidence, population == "distribution"
    )
    together = _mean(joint, confidence, population == "distribution")
    n_images = len(effects)
    rows = pd.DataFrame(chosen, columns=["layer", "unit"])
    rows["predicted"], rows["effect"] = guess, effects.mean(0)
    rows["se"] = effects.std(0, ddof=1) / math.sqrt(n_images) if n_images > 1 else math.nan
    return Audit(
        name,
        len(guesses),
        len(chosen),
        n_images,
        total,
        estimated,
        low,
        high,
        *together,
        confidence,
        rows,
    )


def _selected(selection: Plan | Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    chosen = selection.remove if isinstance(selection, Plan) else selection
    if not isinstance(chosen, Mapping):
        raise InvalidArgumentError(
            "selection: expected a Plan or a mapping of group name to units, got "
            f"{type(selection).__name__}"
        )
    gone = {name: sorted({int(unit) for unit in units}) for name, units in chosen.items()}
    gone = {name: units for name, units in gone.items() if units}
    if not gone:
        raise InvalidArgumentError("selection: expected at least one unit, got none")
    return gone


def _predictions(frame: pd.DataFrame, gone: Mapping[str, Sequence[int]]) -> dict[Unit, float]:
    missing = [name for name in ("layer", "unit", "effect") if name not in frame]
    if missing:
        raise InvalidArgumentError(
            f"predicted: expected columns layer, unit, effect; missing {', '.join(missing)}"
        )
    keys = zip(frame["layer"].astype(str), frame["unit"].astype(int), strict=True)
    known = dict(zip(keys, frame["effect"].astype(float), strict=True))
    wanted = [(name, unit) for name, units in gone.items() for unit in units]
    found = {unit: known.get(unit, math.nan) for unit in wanted}
    unknown = [unit for unit, value in found.items() if not math.isfinite(value)]
    if unknown:
        raise InvalidArgumentError(
            f"predicted: expected a finite effect for every selected unit, {len(unknown)} of "
            f"{len(found)} have none, first {unknown[0][0]} {unknown[0][1]}; a norm predicts no "
            "effect"
        )
    return found


def _ablate(
    job: Job, chosen: Sequence[Unit], gone: Mapping[str, Sequence[int]]
) -> tuple[Array, Array]:
    """Return effects [N, n] of the chosen units alone, and [N] of all that go together."""
    exact, alone, together = ExactEffects(job), [], []
    by_group: dict[str, list[int]] = {}
    for name, unit in chosen:
        by_group.setdefault(name, []).append(unit)
    with torch.no_grad(), job.bar("audit", job.batches.n_batches) as advance:
        for batch in job.batches:
            plain = exact.observe(batch)
            parts = [exact.effects(name, units).cpu() for name, units in by_group.items()]
            alone.append(torch.cat(parts, 1))
            if job.intervention == "predicted":  # it predicts units from those that are gone
                together.append(torch.full(plain.shape, torch.nan).double())
            else:
                output = exact.interventions.remove_jointly(gone)
                where = "with all selected units removed"
                together.append((exact.outcome_of(output, where) - plain).cpu())
            advance()
    return torch.cat(alone).numpy(), torch.cat(together).numpy()


def _estimate(
    effects: Array,
    guess: Array,
    n_selected: int,
    total: float,
    confidence: float,
    over_images: bool,
) -> tuple[float, float, float]:
    """Sum of the true effects of all selected units, with its interval."""
    n_images, n = effects.shape
    error = effects.mean(0) - guess
    estimated = total + n_selected * float(error.mean())
    parts: list[tuple[float, int]] = []
    if n < n_selected:
        spread = float(error.var(ddof=1)) if n > 1 else math.nan
        parts.append((n_selected**2 * (1 - n / n_selected) * spread / n, n - 1))
    if over_images:
        whole = effects.mean(1) * n_selected
        spread = float(whole.var(ddof=1)) if n_images > 1 else math.nan
        parts.append((spread / n_images, n_images - 1))
    half = _half_width(parts, confidence)
    return estimated, estimated - half, estimated + half


def _mean(values: Array, confidence: float, over_images: bool) -> tuple[float, float, float]:
    n, mean = len(values), float(values.mean())
    spread = float(values.var(ddof=1)) if n > 1 else math.nan
    half = _half_width([(spread / n, n - 1)], confidence) if over_images else 0.0
    return mean, mean - half, mean + half


def _half_width(parts: Sequence[tuple[float, int]], confidence: float) -> float:
    """Half width for a sum of variances, each with its degrees of freedom (Satterthwaite)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    if not math.isfinite(variance):
        return math.nan
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts if part)
    return student_t_quantile((1 + confidence) / 2, degrees) * math.sqrt(variance)
