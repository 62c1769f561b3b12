"""A network and its pruned copy side by side: size, time, and accuracy with intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.datasets import Batch
from causalprune.graph import evaluating
from causalprune.measures import (
    Latency,
    count_macs,
    count_parameters,
    interleaved_latency_ms,
    parameter_bytes,
    peak_activation_bytes,
)
from causalprune.scoring.intervals import student_t_quantile

__all__ = ["BeforeAfter", "Share", "compare_networks", "correct_images", "wilson_interval"]


@dataclass(frozen=True)
class Share:
    """A mean over the test images with its interval.

    Attributes
    ----------
    value, low, high : float
        Fraction of the images, or difference of two such fractions.
    n : int
        Images.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Measured:
    """What one of the two networks costs and gets right.

    Attributes
    ----------
    parameters, macs : int
        Scalars; multiply-accumulates of one image.
    bytes : int
        Of parameters and buffers.
    activation_bytes : int
        Most activation memory alive at once for one image.
    latency : Latency
        Of one image.
    accuracy : Share or None
        On the test images, with Wilson's interval; None without test images.
    """

    parameters: int
    macs: int
    bytes: int
    activation_bytes: int
    latency: Latency
    accuracy: Share | None


@dataclass(frozen=True)
class BeforeAfter:
    """Both networks, and the paired change of accuracy.

    Attributes
    ----------
    before, after : Measured
    change : Share or None
        Accuracy after less accuracy before, on the same images; Student-t interval of the
        per-image differences.
    confidence : float
        Level of the intervals.
    """

    before: Measured
    after: Measured
    change: Share | None
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """Return nested dictionaries of numbers, as JSON takes them."""
        return asdict(self)


def compare_networks(
    before: nn.Module,
    after: nn.Module,
    example: Tensor,
    test: Batch | None = None,
    *,
    confidence: float = 0.95,
    batch_size: int = 256,
    repeats: int = 30,
) -> BeforeAfter:
    """Measure two networks on the same images, timing them in turns.

    Parameters
    ----------
    before, after : nn.Module
        Take the same inputs; return logits ``[N, K]``.
    example : Tensor
        One image ``[1, ...]`` on the networks' device.
    test : pair of Tensor, optional
        Images ``[N, ...]`` and classes ``[N]`` that neither network was fitted to.
    confidence : float
        Level of the intervals.
    batch_size : int
        Images a pass.
    repeats : int
        Timed passes of each.

    Raises
    ------
    DataError
        If the test images and classes do not fit.
    InvalidArgumentError
        If a number is out of range.

    Examples
    --------
    >>> wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    >>> narrow = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> test = torch.randn(10, 4), torch.arange(10) % 2
    >>> found = compare_networks(wide, narrow, test[0][:1], test, repeats=3)
    >>> found.before.macs, found.after.macs, found.change.n
    (54, 18, 10)
    """
    if not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: expected a number in (0, 1), got {confidence}")
    times = interleaved_latency_ms([before, after], example, repeats=repeats)
    hits = [correct_images(model, test, batch_size) for model in (before, after)] if test else []
    first, second = (
        Measured(
            parameters=count_parameters(model),
            macs=count_macs(model, example),
            bytes=parameter_bytes(model),
            activation_bytes=peak_activation_bytes(model, example),
            latency=time,
            accuracy=wilson_interval(int(hits[k].sum()), len(hits[k]), confidence)
            if hits
            else None,
        )
        for k, (model, time) in enumerate(zip((before, after), times, strict=True))
    )
    change = _paired(hits[1].double() - hits[0].double(), confidence) if hits else None
    return BeforeAfter(first, second, change, confidence)


def correct_images(model: nn.Module, test: Batch, batch_size: int = 256) -> Tensor:
    """Tell for each image whether the largest logit is the one of its class.

    Parameters
    ----------
    model : nn.Module
        Runs in evaluation mode and gets its mode back.
    test : pair of Tensor
        Images ``[N, ...]`` and classes ``[N]``, on any device.
    batch_size : int
        Images a pass.

    Returns
    -------
    Tensor
        ``[N]`` bool, on the CPU.

    Raises
    ------
    DataError
        If there are no images, or not one class for each.

    Examples
    --------
    >>> correct_images(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
    tensor([ True,  True, False])
    """
    images, labels = test
    if labels.dim() != 1 or len(images) != len(labels) or not len(labels):
        raise DataError(
            f"test: expected one class for each image, got images {tuple(images.shape)} and "
            f"classes {tuple(labels.shape)}"
        )
    parameter = next(model.parameters(), None)
    device = images.device if parameter is None else parameter.device
    parts = zip(
        torch.split(images, batch_size),
        torch.split(labels, batch_size),
        strict=True,
    )
    with evaluating(model), torch.inference_mode():
        hits = [(model(x.to(device)).argmax(1).cpu() == y.cpu()) for x, y in parts]
    return torch.cat(hits)


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> Share:
    """Return a share and its score interval, which holds near 0 and 1 as well.

    Notes
    -----
    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Examples
    --------
    >>> share = wilson_interval(932, 1017)
    >>> f"{share.value:.3f} {share.low:.3f} {share.high:.3f}"
    '0.916 0.898 0.932'
    """
    if not 0 <= hits <= n or n < 1:
        raise InvalidArgumentError(f"hits: expected between 0 and n = {n}, got {hits}")
    z = float(ndtri(0.5 + confidence / 2))
    p, spread = hits / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    # Rounding must not leave the share itself outside, where all or none are hits.
    return Share(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def _paired(differences: Tensor, confidence: float) -> Share:
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Share(mean, -1.0, 1.0, n)
    half = student_t_quantile(0.5 + confidence / 2, n - 1) * float(differences.std()) / math.sqrt(n)
    return Share(mean, max(-1.0, mean - half), min(1.0, mean + half), n)
