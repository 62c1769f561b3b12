"""How alike the outputs of two networks are, and how far a network's confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.outcomes import OUTCOMES

__all__ = [
    "CalibrationError",
    "MeanOverImages",
    "OutputAgreement",
    "calibration_error",
    "output_agreement",
]


@dataclass(frozen=True)
class MeanOverImages:
    """A mean over images with its standard error (NaN for a single image).

    Attributes
    ----------
    mean, standard_error : float
    n : int
        Images.
    """

    mean: float
    standard_error: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.standard_error:.2g} (n = {self.n})"


@dataclass(frozen=True)
class OutputAgreement:
    """How alike the outputs of two networks are on the same images.

    Attributes
    ----------
    labels : MeanOverImages
        Fraction of images on which both predict the same class.
    divergence : MeanOverImages
        Kullback-Leibler divergence ``KL(p || q)`` of the two softmax outputs, in nats.
    """

    labels: MeanOverImages
    divergence: MeanOverImages


def output_agreement(p_logits: Tensor, q_logits: Tensor) -> OutputAgreement:
    """Compare two networks' outputs on the same images.

    Parameters
    ----------
    p_logits : Tensor [N, K], floating, any device
        Of the network that is the reference, say the unpruned one.
    q_logits : Tensor [N, K], floating
        Of the other one. Both are turned to float64 before the softmax.

    Returns
    -------
    OutputAgreement
        Mean and standard error over images of equal labels (the first of tied classes) and of
        ``KL(p || q) = sum_k p_k (log p_k - log q_k)``, in nats.

    Raises
    ------
    InvalidArgumentError
        If the tensors are not that, or not finite.

    Examples
    --------
    >>> p, q = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    >>> found = output_agreement(p, q)
    >>> found.labels.mean, round(found.divergence.mean, 4)
    (0.5, 0.537)
    """
    p, q = logits_of(p_logits, "p_logits"), logits_of(q_logits, "q_logits")
    if p.shape != q.shape:
        raise InvalidArgumentError(
            f"q_logits: expected the shape of p_logits {list(p.shape)}, got {list(q.shape)}"
        )
    divergence = OUTCOMES["divergence"].function(p, q)
    same = (p.argmax(1) == q.argmax(1)).double()
    return OutputAgreement(_mean(same), _mean(divergence))


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error, and the bins behind it.

    Attributes
    ----------
    value : float
        In [0, 1].
    bins : DataFrame
        One row a bin: low, high (its confidences are in (low, high]), n, confidence and accuracy
        (means over its images; NaN where it has none).
    """

    value: float
    bins: pd.DataFrame


def calibration_error(logits: Tensor, targets: Tensor, n_bins: int = 15) -> CalibrationError:
    """Compute the expected calibration error of a network's confidence.

    ``ECE = sum_b n_b / N |accuracy_b - confidence_b|`` over bins of equal width of the largest
    softmax probability.

    Parameters
    ----------
    logits : Tensor [N, K], floating, any device
        The softmax is taken in float64.
    targets : Tensor [N], integer
        True classes.
    n_bins : int
        At least 1.

    Returns
    -------
    CalibrationError

    Raises
    ------
    InvalidArgumentError, DataError
        If the tensors are not that or `n_bins` is out of range.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", equation
    3: 15 bins. The value depends on the number of bins, and is biased upwards where bins hold
    few images.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> round(calibration_error(logits, torch.tensor([1, 0])).value, 4)
    0.2737
    """
    found = logits_of(logits, "logits")
    truth = targets_of(targets, found)
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise InvalidArgumentError(f"n_bins: expected an integer >= 1, got {n_bins!r}")
    confidence, predicted = found.softmax(1).max(1)
    correct = (predicted == truth).double()
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)
    # Bins are closed above; rounding may put a probability a bit above 1.
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, n_bins - 1)
    n = torch.bincount(place, minlength=n_bins)
    sums = [torch.bincount(place, weights, n_bins) for weights in (confidence, correct)]
    value = float((sums[1] - sums[0]).abs().sum() / len(found))
    bins = {
        "low": edges[:-1],
        "high": edges[1:],
        "n": n,
        "confidence": sums[0] / n,
        "accuracy": sums[1] / n,
    }
    return CalibrationError(value, pd.DataFrame({key: each.numpy() for key, each in bins.items()}))


def logits_of(logits: object, name: str) -> Tensor:
    """Return logits [N, K] on the CPU in float64.

    Raises
    ------
    InvalidArgumentError
        If they are not finite floating numbers of that shape, N, K >= 1.
    """
    if not isinstance(logits, Tensor):
        raise InvalidArgumentError(f"{name}: expected a tensor [N, K], got {type(logits).__name__}")
    if logits.ndim != 2 or not logits.numel() or not logits.is_floating_point():
        raise InvalidArgumentError(
            f"{name}: expected floating logits [N, K] of at least one image, got {logits.dtype} "
            f"of shape {list(logits.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise InvalidArgumentError(f"{name}: expected finite logits, got NaN or infinity")
    return logits.detach().to("cpu", torch.float64)


def targets_of(targets: object, logits: Tensor) -> Tensor:
    """Return class indices [N] on the CPU in int64.

    Raises
    ------
    InvalidArgumentError
        If they are no integers [N].
    DataError
        If one is no class of the logits.
    """
    n, n_classes = logits.shape
    if not isinstance(targets, Tensor):
        raise InvalidArgumentError(f"targets: expected a tensor, got {type(targets).__name__}")
    if targets.shape != (n,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InvalidArgumentError(
            f"targets: expected class indices [{n}] of an integer dtype, got {targets.dtype} of "
            f"shape {list(targets.shape)}"
        )
    truth = targets.detach().to("cpu", torch.int64)
    low, high = int(truth.min()), int(truth.max())
    if low < 0 or high >= n_classes:
        wrong = low if low < 0 else high
        raise DataError(f"targets: expected classes in [0, {n_classes}), got {wrong}")
    return truth


def _mean(values: Tensor) -> MeanOverImages:
    total = PairedMean(1)
    total.update(values[:, None])
    return MeanOverImages(total.mean.item(), total.standard_error.item(), total.n)
