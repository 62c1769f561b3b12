"""Informative features: the pixels by which a network decides, and whether others agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures.latency import torch_threads
from causalprune.measures.network_outputs import device_of, logits_from, measuring
from causalprune.measures.pixel_removal import PixelRemoval, pixel_removal
from causalprune.scoring.data import as_batches
from causalprune.scoring.intervals import PairedMean

__all__ = [
    "InformativeFeatures",
    "cross_confidence",
    "informative_features",
]


@dataclass(frozen=True)
class InformativeFeatures:
    """The pixels that a network needs least to be left without.

    Attributes
    ----------
    images : Tensor [N, C, H, W]
        As they were given; on the CPU, as all tensors here.
    mask : Tensor [N, H, W], bool
        True at the pixels that are left.
    order : Tensor [N, removed], int64
        Removed pixels, flat places ``row * W + column``, the first removed first.
    labels : Tensor [N], int64
        The network's own predictions on the whole images.
    confidence : Tensor [N], float64
        Softmax probability of that class on the whole images.
    confidence_left : Tensor [N], float64
        The same on what is left.
    n_rows : int
        Images with one more pixel removed that were looked at, by whatever way.
    """

    images: Tensor
    mask: Tensor
    order: Tensor
    labels: Tensor
    confidence: Tensor
    confidence_left: Tensor
    n_rows: int

    @property
    def features(self) -> Tensor:
        """Images [N, C, H, W] with zeros at the removed pixels."""
        return self.images * self.mask[:, None]


def informative_features(
    model: nn.Module,
    data: Any,
    *,
    keep: float = 0.1,
    pixels_per_step: int | float = 1,
    n_images: int = 32,
    batch_size: int = 1024,
) -> InformativeFeatures:
    """Find the pixels by which a network decides, by greedy backward selection (BackSelect).

    From the whole image on, remove the pixel (all its channels set to 0 in the space that the
    network takes) whose absence leaves the probability of the network's own prediction highest;
    again, until a fraction `keep` of the pixels is left.

    Parameters
    ----------
    model : nn.Module
        Takes ``[N, C, H, W]``, returns logits ``[N, K]``. It runs in eval mode on its own device
        and gets its modes back.
    data : DataLoader, Dataset, iterable, pair of tensors, or Tensor
        Normalised images ``[N, C, H, W]``, with or without labels.
    keep : float
        Fraction of the pixels that is left, in (0, 1); at least one pixel stays.
    pixels_per_step : int or float
        1, the default: the definition, exactly. More, or as a float in (0, 1) this fraction of
        the pixels that are still there (at least one): as many of the best pixels of one ranking
        go at once, which is an approximation that sees no interplay between them, at a fraction
        of the time.
    n_images : int
        The first so many are used, together in memory.
    batch_size : int
        Images with one more pixel removed that run at a time; bounds the memory.

    Returns
    -------
    InformativeFeatures

    Raises
    ------
    InvalidArgumentError, DataError
        If an argument is out of range or the data holds no finite images [N, C, H, W].
    UnsupportedModelError
        If the network does not return finite logits [N, K].

    Notes
    -----
    All candidates of all images share batches. Three ways give the same values but for rounding:
    of a network that begins with convolutions, poolings and activations, only the windows that
    the pixel reaches are computed, as changes from the image as it is, up to the first layer that
    the pixel reaches as a whole; of one that begins with a linear layer the layer's sums are
    updated; any other runs as a whole. The first two run on one thread (share images among
    processes to use more cores). A pixel that is zero already is not run. Pixels are ranked
    by the log-odds of the class, which order as the probability does and do not saturate; of
    pixels that tie the first in reading order goes.

    Measured for 32 noise images of 28 x 28, a LeNet-5 with random weights and `keep` 0.1 on one
    core with AVX-512: 52 s of CPU time, 5.4 microseconds a candidate; fractions of 0.02 and 0.05
    a step take a seventh and a twentieth of the time. Of the pixels that the exact selection kept
    on digits, with a trained LeNet-5, those kept 82 and 75 % (2, 5 and 10 pixels a step: 83, 81
    and 78 %).

    References
    ----------
    Carter, Mueller, Jain and Gifford (2019), "What made you do this?": BackSelect. Liebenwein,
    Baykal, Carter, Gifford and Rus (2021), "Lost in Pruning": 10 % of the pixels.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    >>> found = informative_features(network, torch.randn(2, 1, 6, 6), keep=0.25)
    >>> found.mask.sum((1, 2)).tolist(), found.order.shape, found.n_rows
    ([9, 9], torch.Size([2, 27]), 1242)
    """
    _check(keep, pixels_per_step, n_images, batch_size)
    with measuring(model=model):
        images = _images(model, data, n_images, batch_size)
        logits = logits_from(model, images)
        labels = logits.argmax(1)
        removal = pixel_removal(model, images, labels, batch_size)
        with torch_threads(removal.threads):
            order, left, n_rows = _select(removal, keep, pixels_per_step)
        whole, rest = (
            _chance(each, labels) for each in (logits, logits_from(model, removal.images))
        )
    mask = torch.zeros(len(images), images[0, 0].numel(), dtype=torch.bool)
    mask = mask.scatter_(1, left.cpu(), True).view(len(images), *images.shape[2:])
    return InformativeFeatures(images.cpu(), mask, order.cpu(), labels.cpu(), whole, rest, n_rows)


def _select(
    removal: PixelRemoval, keep: float, pixels_per_step: int | float
) -> tuple[Tensor, Tensor, int]:
    """Return the pixels that went, in order, those that are left, and how many rows were run."""
    n, n_pixels = len(removal.images), removal.images[0, 0].numel()
    left = torch.arange(n_pixels, device=removal.images.device).repeat(n, 1)
    n_left, n_rows, order = max(1, round(keep * n_pixels)), 0, [left[:, :0]]
    while left.shape[1] > n_left:
        take = min(_at_once(pixels_per_step, left.shape[1]), left.shape[1] - n_left)
        values = removal.log_odds(left)
        n_rows += left.numel()
        chosen = values.sort(dim=1, descending=True, stable=True).indices[:, :take]
        order.append(left.gather(1, chosen))
        removal.remove(order[-1])
        stays = torch.ones_like(left, dtype=torch.bool).scatter_(1, chosen, False)
        left = left[stays].view(n, -1)
    return torch.cat(order, 1), left, n_rows


def cross_confidence(
    networks: Mapping[str, nn.Module], features: Mapping[str, InformativeFeatures]
) -> pd.DataFrame:
    """Test every network on the pixels that others selected.

    Parameters
    ----------
    networks : mapping of str to nn.Module
        By name; each runs on its own device.
    features : mapping of str to InformativeFeatures
        By the name of the network that selected them; of the same images or others.

    Returns
    -------
    DataFrame
        One row for each pair: selected_by, tested_on, confidence (mean over images of the softmax
        probability that `tested_on` gives, on the pixels that `selected_by` selected, to the
        class that `selected_by` predicted on the whole image), standard_error, matching (fraction
        of images on which that is also its prediction), n. ``frame.pivot(index="selected_by",
        columns="tested_on", values="confidence")`` is the cross table.

    Raises
    ------
    InvalidArgumentError
        If there is nothing to compare, or a network knows fewer classes than were predicted.
    UnsupportedModelError
        If a network does not return finite logits [N, K].

    References
    ----------
    Liebenwein et al. (2021), "Lost in Pruning".

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> one, other = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2))
    >>> images = torch.randn(4, 1, 4, 4)
    >>> features = {"one": informative_features(one, images)}
    >>> table = cross_confidence({"one": one, "other": other}, features)
    >>> table["tested_on"].tolist(), table["n"].tolist()
    (['one', 'other'], [4, 4])
    """
    if not networks or not features:
        raise InvalidArgumentError(
            "networks, features: expected at least one of each, "
            f"got {len(networks)} and {len(features)}"
        )
    rows = []
    for selected_by, found in features.items():
        for tested_on, network in networks.items():
            with measuring(**{f"networks[{tested_on!r}]": network}):
                logits = logits_from(network, found.features, f"networks[{tested_on!r}]")
            if int(found.labels.max()) >= logits.shape[1]:
                raise InvalidArgumentError(
                    f"networks[{tested_on!r}]: expected the classes that {selected_by!r} predicts, "
                    f"up to {int(found.labels.max())}, got {logits.shape[1]} classes"
                )
            mean = PairedMean(1)
            mean.update(_chance(logits, found.labels)[:, None])
            matching = (logits.argmax(1).cpu() == found.labels).double().mean()
            rows.append(
                {
                    "selected_by": selected_by,
                    "tested_on": tested_on,
                    "confidence": mean.mean.item(),
                    "standard_error": mean.standard_error.item(),
                    "matching": float(matching),
                    "n": mean.n,
                }
            )
    return pd.DataFrame(rows)


def _check(keep: float, pixels_per_step: int | float, n_images: int, batch_size: int) -> None:
    if not 0 < keep < 1:
        raise InvalidArgumentError(f"keep: expected a fraction in (0, 1), got {keep}")
    whole = isinstance(pixels_per_step, int) and not isinstance(pixels_per_step, bool)
    good = pixels_per_step >= 1 if whole else 0 < pixels_per_step < 1
    if not good or isinstance(pixels_per_step, bool):
        raise InvalidArgumentError(
            "pixels_per_step: expected an integer >= 1 or a fraction in (0, 1), "
            f"got {pixels_per_step!r}"
        )
    for name, value in (("n_images", n_images), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgumentError(f"{name}: expected an integer >= 1, got {value!r}")


def _images(model: nn.Module, data: Any, n_images: int, batch_size: int) -> Tensor:
    batches = as_batches(
        data, batch_size=batch_size, max_images=n_images, labels=False, device=device_of(model)
    )
    images = batches.collect().inputs
    if images.ndim != 4:
        raise DataError(f"data: expected images [N, C, H, W], got shape {list(images.shape)}")
    return images


def _at_once(pixels_per_step: int | float, n_left: int) -> int:
    if isinstance(pixels_per_step, int):
        return pixels_per_step
    return max(1, int(pixels_per_step * n_left))


def _chance(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the softmax probability [N] of the labels, float64, on the CPU."""
    return logits.cpu().double().softmax(1).gather(1, labels.cpu()[:, None])[:, 0]
