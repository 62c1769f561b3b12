"""Whether a network on the way has lost too much held-out accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from causalprune.pruning.run import Run, share_of
from causalprune.pruning.schedules import Progressive
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.paired_tests import t_tests

__all__ = ["Finding", "look", "p_of_fall"]


@dataclass(frozen=True)
class Finding:
    """What the guard found of a network.

    Attributes
    ----------
    accuracy : float or None
        Fraction of the held-out images that it gets right; ``None`` without held-out images.
    passes : bool
    reason : str
        In words, with the figures that decided.
    """

    accuracy: float | None
    passes: bool
    reason: str


def look(run: Run, schedule: Progressive, candidate: nn.Module) -> Finding:
    """Compare a network with the original one on the held-out images.

    It does not pass where its accuracy is more than the tolerance lower, and a paired one-sided
    t test says so at the schedule's `guard_level`: the difference of two accuracies on a thousand
    images has a standard error of half a point itself.

    Parameters
    ----------
    run : Run
    schedule : Progressive
    candidate : nn.Module
    """
    after, before, tolerance = run.correct(candidate), run.correct_before, run.trace.tolerance
    accuracy, first = share_of(after), share_of(before)
    if after is None or before is None or accuracy is None or first is None:
        return Finding(None, True, "no held-out images")
    told = f"held-out accuracy {accuracy:.4f}"
    if tolerance is None:
        return Finding(accuracy, True, f"{told}, no guard")
    # An accuracy is a count of images: rounding must not make one more of them.
    if first - accuracy <= tolerance + 1e-9:
        return Finding(accuracy, True, f"{told} is not more than {tolerance:g} below {first:.4f}")
    p_value = p_of_fall(before, after, tolerance)
    told += f" is more than {tolerance:g} below {first:.4f} (p = {p_value:.2g})"
    if p_value > schedule.guard_level:
        return Finding(accuracy, True, f"{told}, which may be chance")
    return Finding(accuracy, False, told)


def p_of_fall(before: Tensor, after: Tensor, tolerance: float) -> float:
    """Test whether accuracy on the same images fell by more than a tolerance.

    Parameters
    ----------
    before, after : Tensor [N], bool
        Which images are right.
    tolerance : float
        Fraction of the images.

    Returns
    -------
    float
        One-sided p-value of "accuracy does not fall by more", from a paired t test; of a single
        image 0 where it fell by more and else 1.

    Examples
    --------
    >>> import torch
    >>> before, after = torch.ones(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)
    >>> after[:8] = False
    >>> [round(p_of_fall(before, after, tolerance), 3) for tolerance in (0.0, 0.01, 0.04)]
    [0.002, 0.016, 0.5]
    """
    changes = after.double() - before.double()
    if len(changes) < 2:
        return 0.0 if -float(changes.sum()) > tolerance else 1.0
    mean = PairedMean(1)
    mean.update(changes[:, None])
    return float(t_tests(mean, 1.0, tolerance)[0][0])
