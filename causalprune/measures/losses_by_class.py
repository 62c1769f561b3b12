"""Who is hurt: the accuracy that each class loses, beside what all images lose."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr
from torch import Tensor

from causalprune.errors import InvalidArgumentError
from causalprune.measures.agreement import logits_of, targets_of
from causalprune.measures.class_counts import ClassLosses, adjusted

__all__ = ["ClassLosses", "class_losses"]

Changes = NDArray[np.int64]


def class_losses(
    before_logits: Tensor,
    after_logits: Tensor,
    targets: Tensor,
    *,
    level: float = 0.95,
    rate: float = 0.05,
) -> ClassLosses:
    """Compute what every class loses, and find those that lose more than all images together.

    Parameters
    ----------
    before_logits, after_logits : Tensor [N, K], floating, any device
        Of the unpruned and the pruned network on the same images; the prediction is the first of
        the largest logits.
    targets : Tensor [N], integer
        True classes.
    level : float
        Of the intervals, in (0, 1).
    rate : float
        False discovery rate over classes (Benjamini and Hochberg), in (0, 1).

    Returns
    -------
    ClassLosses

    Raises
    ------
    InvalidArgumentError, DataError
        If the tensors are not that, or a number is out of range.

    Notes
    -----
    An image's change is -1, 0 or 1. Intervals: Bonett and Price (2012), one image added to either
    kind of change, which keeps its level where few images change. The test compares the images of
    a class with all others (a class loses more than all images if and only if it loses more than
    the others do) and takes the larger p-value of two: the exact one-sided permutation test,
    which holds with few images but asks for equal distributions, and Welch's t test, which asks
    for equal means only but for many images. A class that is all the images has p-value 1.

    Examples
    --------
    >>> import torch
    >>> targets = torch.arange(3).repeat_interleave(20)
    >>> before = torch.nn.functional.one_hot(targets).double()
    >>> after = before.clone()
    >>> after[40:50] = before[0]  # half of class 2 is taken for class 0
    >>> found = class_losses(before, after, targets)
    >>> found.hurt, round(found.loss, 4), found.frame["loss"].tolist()
    ((2,), 0.1667, [0.0, 0.0, 0.5])
    """
    before, after = (
        logits_of(before_logits, "before_logits"),
        logits_of(after_logits, "after_logits"),
    )
    if before.shape != after.shape:
        raise InvalidArgumentError(
            f"after_logits: expected the shape of before_logits {list(before.shape)}, "
            f"got {list(after.shape)}"
        )
    truth = targets_of(targets, before)
    for name, value in (("level", level), ("rate", rate)):
        if not 0 < value < 1:
            raise InvalidArgumentError(f"{name}: expected a number in (0, 1), got {value}")
    right = [(logits.argmax(1) == truth).numpy().astype(np.int64) for logits in (before, after)]
    changes, classes = right[0] - right[1], truth.numpy()
    rows = [
        _class_row(each, classes == each, right[0], right[1], level)
        for each in np.unique(classes).tolist()
    ]
    frame = pd.DataFrame(rows)
    frame["excess"] = frame["loss"] - changes.mean()
    frame["p_value"] = [_p_value(changes, classes == each) for each in frame["class"]]
    frame["p_adjusted"] = _adjusted(frame["p_value"].to_numpy())
    frame["hurt"] = frame["p_adjusted"] <= rate
    low, high = _interval(changes, level)
    return ClassLosses(frame, float(changes.mean()), low, high, level, rate)


def _class_row(
    each: int, own: NDArray[np.bool_], before: Changes, after: Changes, level: float
) -> dict[str, float]:
    low, high = _interval((before - after)[own], level)
    return {
        "class": each,
        "n": int(own.sum()),
        "accuracy_before": float(before[own].mean()),
        "accuracy_after": float(after[own].mean()),
        "loss": float((before - after)[own].mean()),
        "low": low,
        "high": high,
    }


def _interval(changes: Changes, level: float) -> tuple[float, float]:
    """Return the adjusted Wald interval of a difference of paired proportions."""
    lost, won = (int((changes == sign).sum()) for sign in (1, -1))
    centre, variance = adjusted(len(changes), lost, won)
    half = float(ndtri((1 + level) / 2)) * variance**0.5
    return max(-1.0, centre - half), min(1.0, centre + half)


def _p_value(changes: Changes, own: NDArray[np.bool_]) -> float:
    if own.all():
        return 1.0
    return max(_permutation(changes, own), _welch(changes[own], changes[~own]))


def _permutation(changes: Changes, own: NDArray[np.bool_]) -> float:
    """P(sum of as many changes drawn without replacement >= the class's own sum), exactly."""
    from scipy.stats import hypergeom

    total, n, observed = len(changes), int(own.sum()), int(changes[own].sum())
    lost, won = int((changes == 1).sum()), int((changes == -1).sum())
    # Of the n drawn, `drawn` are images won; of the others, at least so many must be images lost.
    drawn = np.arange(min(n, won) + 1)
    chance = hypergeom.pmf(drawn, total, won, n)
    enough = hypergeom.sf(observed + drawn - 1, total - won, lost, n - drawn)
    return float(min(1.0, (chance * enough).sum()))


def _welch(own: Changes, others: Changes) -> float:
    """One-sided p-value of "own mean is not larger"; 0 where no spread speaks against it."""
    difference = own.mean() - others.mean()
    if min(len(own), len(others)) < 2:
        return 0.0 if difference > 0 else 1.0
    parts = np.array([own.var(ddof=1) / len(own), others.var(ddof=1) / len(others)])
    variance = parts.sum()
    if variance == 0:
        return 0.0 if difference > 0 else 1.0
    degrees = variance**2 / (parts**2 / [len(own) - 1, len(others) - 1]).sum()
    return float(stdtr(degrees, -difference / variance**0.5))


def _adjusted(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_values), dtype=np.float64)
