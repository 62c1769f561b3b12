"""From measures to a recommendation: whether to prune, how far, and which numbers say so."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from causalprune.errors import InvalidArgumentError
from causalprune.measures.excess_error import ExcessErrorTrend
from causalprune.measures.prune_potential import PrunePotentials

if TYPE_CHECKING:
    from causalprune.measures.class_counts import ClassLosses
    from causalprune.measures.similarity_under_noise import NoiseSimilarity

__all__ = ["Recommendation", "recommend"]

_ADVICE = {
    "none": "Do not prune: shifts may occur that nobody has tried, and what pruning costs there "
    "cannot be told beforehand.",
    "moderate": "Prune moderately: some of the expected shifts were not part of training.",
    "full": "Prune to the full extent: all expected shifts were part of training.",
}


@dataclass(frozen=True)
class Recommendation:
    """Advice on pruning, with the numbers that it rests on.

    Attributes
    ----------
    advice : str
        ``"none"``, ``"moderate"`` or ``"full"``.
    ratio : float
        Largest prune ratio that the measures support: 0 for ``"none"``, else the smallest prune
        potential of any network on any distribution.
    reasons : tuple of str
        Sentences, the advice first.
    numbers : DataFrame
        One row for each number in the reasons: measure, value, low, high (NaN where it has no
        interval).
    """

    advice: str
    ratio: float
    reasons: tuple[str, ...]
    numbers: pd.DataFrame

    def __str__(self) -> str:
        return "\n".join(self.reasons)


@dataclass(frozen=True)
class _Reason:
    sentence: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")


def recommend(
    potentials: PrunePotentials,
    trained_on: Collection[Hashable],
    *,
    unexpected_shifts: bool,
    nominal: Hashable = "nominal",
    excess: ExcessErrorTrend | None = None,
    noise: NoiseSimilarity | None = None,
    losses: ClassLosses | None = None,
) -> Recommendation:
    """Recommend how far to prune, by the guidelines of "Lost in Pruning".

    No pruning where shifts may occur that were not tried; moderate pruning where all that may
    occur were tried and some of them were part of training; full pruning where all of them were.

    Parameters
    ----------
    potentials : PrunePotentials
        On every distribution that is expected where the network will run.
    trained_on : collection of hashable
        Those of them that training and retraining accounted for (say by augmentation).
    unexpected_shifts : bool
        Whether others may occur as well. The one thing that no measurement tells.
    nominal : hashable
        Name of the training distribution; it counts as trained on.
    excess : ExcessErrorTrend, optional
        Of the pruned networks.
    noise : NoiseSimilarity, optional
        Of the pruned network beside the unpruned one.
    losses : ClassLosses, optional
        From the unpruned to the pruned network.

    Returns
    -------
    Recommendation

    Raises
    ------
    InvalidArgumentError
        If the potentials lack a distribution that is named.

    Notes
    -----
    The order of the three cases is the published one. The ratio is ours: the smallest potential
    that was measured, because a network has to hold on the worst of its distributions, and the
    next network may be the worst of those tried.

    References
    ----------
    Liebenwein, Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning": its guidelines.

    Examples
    --------
    >>> from causalprune.measures import prune_potentials
    >>> table = pd.DataFrame({
    ...     "network": "a", "distribution": ["nominal"] * 3 + ["snow"] * 3,
    ...     "prune_ratio": [0, 0.5, 0.8] * 2, "error": [0.08, 0.08, 0.08, 0.2, 0.2, 0.3],
    ... })
    >>> found = recommend(prune_potentials(table), ["nominal"], unexpected_shifts=False)
    >>> found.advice, found.ratio
    ('moderate', 0.5)
    >>> print(found)
    Prune moderately: some of the expected shifts were not part of training. Not part: snow.
    The prune potential on nominal is 80 % (mean of 1; up to 0.5 points of accuracy may go).
    The smallest of all is 50 % (network a on snow).
    """
    frame = potentials.frame
    known = set(frame["distribution"])
    absent = [str(each) for each in (nominal, *trained_on) if each not in known]
    if absent:
        raise InvalidArgumentError(
            "nominal, trained_on: expected distributions of the potentials "
            f"({', '.join(sorted(map(str, known)))}), got {', '.join(absent)}"
        )
    strange = sorted(str(each) for each in known - {nominal, *trained_on})
    advice = "none" if unexpected_shifts else "moderate" if strange else "full"
    ratio = 0.0 if advice == "none" else float(frame["potential"].min())
    reasons = _of_potentials(potentials, nominal)
    if excess is not None:
        reasons.append(_of_excess(excess, _mean(potentials, nominal)))
    if noise is not None:
        reasons.append(_of_noise(noise))
    if losses is not None:
        reasons.append(_of_losses(losses))
    first = _ADVICE[advice] + (f" Not part: {', '.join(strange)}." if advice == "moderate" else "")
    numbers = pd.DataFrame(
        [(each.measure, each.value, each.low, each.high) for each in reasons],
        columns=["measure", "value", "low", "high"],
    )
    return Recommendation(advice, ratio, (first, *(each.sentence for each in reasons)), numbers)


def _mean(potentials: PrunePotentials, distribution: Hashable) -> float:
    return float(potentials.summary["mean"].to_dict()[distribution])


def _of_potentials(potentials: PrunePotentials, nominal: Hashable) -> list[_Reason]:
    frame, n = potentials.frame, len(potentials.networks)
    mean = _mean(potentials, nominal)
    smallest = min(frame.to_dict("records"), key=lambda row: float(row["potential"]))
    return [
        _Reason(
            f"The prune potential on {nominal} is {100 * mean:.3g} % (mean of {n}; up to "
            f"{100 * potentials.delta:g} points of accuracy may go).",
            f"prune potential, {nominal}",
            mean,
        ),
        _Reason(
            f"The smallest of all is {100 * smallest['potential']:.3g} % (network "
            f"{smallest['network']} on {smallest['distribution']}).",
            "prune potential, smallest",
            float(smallest["potential"]),
        ),
    ]


def _of_excess(excess: ExcessErrorTrend, ratio: float) -> _Reason:
    value, low, high = (ratio * each for each in (excess.slope, excess.low, excess.high))
    told = f"{100 * value:+.1f} points (interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        verdict = "so pruning costs more under shifts than it does on nominal data"
    elif high < 0:
        verdict = "so pruning costs less under shifts than it does on nominal data"
    else:
        verdict = "which may be chance"
    return _Reason(
        f"At a prune ratio of {ratio:.3f} shifts add {told} of error to what they add unpruned, "
        f"{verdict}.",
        f"difference in excess error at {ratio:.3f}",
        value,
        low,
        high,
    )


def _of_noise(noise: NoiseSimilarity) -> _Reason:
    last = max(noise.frame.to_dict("records"), key=lambda row: float(row["level"]))
    return _Reason(
        f"Under uniform noise of {last['level']:g} the pruned network predicts what the unpruned "
        f"one does on {100 * last['matching']:.1f} % of the images.",
        f"matching predictions under noise of {last['level']:g}",
        float(last["matching"]),
    )


def _of_losses(losses: ClassLosses) -> _Reason:
    told = f"Accuracy on all images falls by {100 * losses.loss:.1f} points"
    if losses.hurt:
        worst = losses.frame.set_index("class")["loss"].to_dict()
        each = ", ".join(f"{label} ({100 * worst[label]:.1f})" for label in losses.hurt)
        told += f"; these classes lose significantly more: {each}."
    else:
        told += "; no class loses significantly more than that."
    return _Reason(told, "accuracy loss, all images", losses.loss, losses.low, losses.high)
