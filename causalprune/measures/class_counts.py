"""What classes lose, from counts of images alone: no logits, so no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from causalprune.errors import DataError, InvalidArgumentError

__all__ = ["COUNTS", "ClassLosses", "class_losses_of_counts"]

COUNTS = ("n", "right", "lost", "won")
"""Of one network's images of a class: all, right before, right before and wrong after, reverse."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ClassLosses:
    """Accuracy lost from one network to another, class by class, on the same images.

    Attributes
    ----------
    frame : DataFrame
        One row for each class that has images: class, n, accuracy_before, accuracy_after, loss
        (before minus after; positive: accuracy fell), low, high (paired interval), excess (loss
        minus the loss of all images), hurt. From :func:`class_losses` also p_value and p_adjusted
        of "this class loses no more than the others"; from :func:`class_losses_of_counts`
        excess_low and excess_high, the interval of the excess for all classes together.
    loss, low, high : float
        Of all images, with its paired interval.
    level : float
        Of the intervals of losses.
    rate : float
        What `hurt` was decided at: false discovery rate over classes, or (from counts) the chance
        that any class is named that loses no more than all images.
    n_networks : int
        Independently trained networks behind each figure, which is their mean.
    """

    frame: pd.DataFrame
    loss: float
    low: float
    high: float
    level: float
    rate: float
    n_networks: int = 1

    @property
    def hurt(self) -> tuple[Any, ...]:
        """Classes that lose significantly more than all images do, in the frame's order."""
        return tuple(self.frame.loc[self.frame["hurt"], "class"].tolist())


def class_losses_of_counts(
    counts: pd.DataFrame, *, level: float = 0.95, rate: float = 0.05
) -> ClassLosses:
    """Compute what every class loses over independently trained networks, and who is hurt.

    For the figures that a run table keeps; of one network's logits: ``class_losses``.

    Parameters
    ----------
    counts : DataFrame
        One row for each network and class: network, class, n (images), right (of them, before),
        lost (right before, wrong after), won (wrong before, right after). Every network with
        every class. Rows of the same network and class are trials of it, and are averaged.
    level : float
        Of the intervals of losses, in (0, 1), each by itself.
    rate : float
        Chance, over all classes, that any of them is wrongly named hurt, in (0, 1).

    Returns
    -------
    ClassLosses
        Classes in the order in which they come; means over networks.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    DataError
        Columns are missing, counts do not fit each other, or a network lacks a class.

    Notes
    -----
    Two things could have come out otherwise: the images, and the networks. The variance of a
    network's loss over images is that of Bonett and Price (2012) for paired proportions (one
    image added to either kind of change). Networks are judged on the same images, so the mean
    over networks keeps all of it (as if every network failed on the same images: an upper
    bound), and the variance between networks over their number is added; Student's t with
    Satterthwaite's degrees of freedom. The interval of a class's excess compares its images with
    all others and has the level ``1 - rate / classes`` (Bonferroni): a class is hurt where it lies
    above zero. That is cautious: of simulated tables in which ten classes lose alike (12, 45 or
    100 images each, 1 to 6 networks, 2 to 70 % lost), 0 to 2.4 % named one.

    References
    ----------
    Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data".

    Examples
    --------
    >>> counts = pd.DataFrame({
    ...     "network": [0, 0, 0, 1, 1, 1], "class": ["cat", "dog", "fox"] * 2, "n": 50,
    ...     "right": 48, "lost": [1, 2, 30, 2, 1, 28], "won": [1, 0, 0, 0, 1, 0],
    ... })
    >>> found = class_losses_of_counts(counts)
    >>> found.hurt, found.frame["loss"].round(2).tolist()
    (('fox',), [0.02, 0.02, 0.58])
    """
    for name, value in (("level", level), ("rate", rate)):
        if not 0 < value < 1:
            raise InvalidArgumentError(f"{name}: expected a number in (0, 1), got {value}")
    classes, (n, right, lost, won) = _checked(counts)
    n_classes = len(classes)
    losses, total = (lost - won) / n, n.sum(1, keepdims=True)
    all_lost, all_won = lost.sum(1, keepdims=True), won.sum(1, keepdims=True)
    before, after = right / n, (right - lost + won) / n
    frame = pd.DataFrame({"class": classes, "n": n.mean(0).round().astype(np.int64)})
    frame["accuracy_before"], frame["accuracy_after"] = before.mean(0), after.mean(0)
    frame["loss"] = losses.mean(0)
    frame["low"], frame["high"] = _over_networks(*adjusted(n, lost, won), level)
    whole = (all_lost - all_won) / total
    frame["excess"] = (losses - whole).mean(0)
    # A class differs from all images by what it differs from the others, less its own share.
    own, others = adjusted(n, lost, won), adjusted(total - n, all_lost - lost, all_won - won)
    apart = 1 - n / total
    each = 1 - rate / n_classes
    low, high = _over_networks(apart * (own[0] - others[0]), apart**2 * (own[1] + others[1]), each)
    alone = n_classes == 1
    frame["excess_low"] = np.nan if alone else low
    frame["excess_high"] = np.nan if alone else high
    frame["hurt"] = frame["excess_low"] > 0
    (low_of_all,), (high_of_all,) = _over_networks(*adjusted(total, all_lost, all_won), level)
    mean = float(whole.mean())
    return ClassLosses(
        frame, mean, float(low_of_all), float(high_of_all), level, rate, n_networks=len(n)
    )


def adjusted(n: Any, lost: Any, won: Any) -> tuple[Any, Any]:
    """Return centre and variance of a difference of paired proportions, by Bonett and Price."""
    centre = (lost - won) / (n + 2)
    return centre, ((lost + won + 2) / (n + 2) - centre**2) / (n + 2)


def _over_networks(centres: Numbers, variances: Numbers, level: float) -> tuple[Numbers, Numbers]:
    """Return the interval of the mean over networks (rows), class by class (columns)."""
    k = len(centres)
    of_images = variances.mean(0)
    of_networks = centres.var(0, ddof=1) / k if k > 1 else np.zeros_like(of_images)
    variance = of_images + of_networks
    # What the images add is known well; of few networks the spread is not.
    with np.errstate(divide="ignore"):
        degrees = np.minimum((k - 1) * (variance / of_networks) ** 2, 1e9) if k > 1 else 1e9
    half = stdtrit(degrees, (1 + level) / 2) * np.sqrt(variance)
    centre = centres.mean(0)
    return np.maximum(centre - half, -1.0), np.minimum(centre + half, 1.0)


def _checked(counts: pd.DataFrame) -> tuple[list[Any], list[Numbers]]:
    """Return the classes, and each kind of count as networks by classes."""
    missing = [name for name in ("network", "class", *COUNTS) if name not in counts]
    if missing:
        raise DataError(f"counts: missing columns {', '.join(missing)}")
    if counts.empty:
        raise DataError("counts: expected at least one network and class, got no rows")
    wrong = (counts["n"] < 1) | (counts[["lost", "won"]] < 0).any(axis=1)
    wrong |= (counts["lost"] > counts["right"]) | (counts["won"] > counts["n"] - counts["right"])
    if wrong.any():
        row = counts.loc[wrong].iloc[0]
        raise DataError(
            "counts: expected n >= 1, 0 <= lost <= right and 0 <= won <= n - right, got "
            f"{', '.join(f'{name} {row[name]}' for name in COUNTS)} for class {row['class']}"
        )
    classes = list(dict.fromkeys(counts["class"]))
    means = counts.groupby(["network", "class"], sort=False)[list(COUNTS)].mean()
    wide = means.unstack("class")
    if wide.isna().to_numpy().any():
        raise DataError("counts: expected every network to have the same classes")
    return classes, [wide[name][classes].to_numpy(dtype=np.float64) for name in COUNTS]
