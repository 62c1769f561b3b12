"""Common corruptions of images, as distribution shifts to judge networks under.

The fifteen corruptions and the four extra ones of D. Hendrycks and T. Dietterich, "Benchmarking
neural network robustness to common corruptions and perturbations", ICLR 2019, severities 1 to 5,
for images of any size from 8 x 8 pixels. This is an implementation of its own in torch and numpy
of the definitions published with that paper, with the parameters of CIFAR-10-C for images whose
smaller side is below 64 pixels and those of ImageNet-C for larger ones; lengths in pixels stay
as published, whatever the size. The libraries that offer the nineteen are not kept up
(imagecorruptions: 2020) or need OpenCV, scikit-image and numba (imagecorruptions-imaug);
albumentations, kornia and torchvision have some of them, with other parameters.

It differs from the published programs where these need photographs or other programs:

- ``frost`` draws a texture (a fractal veil with needles) where the original cuts it out of
  photographs, so its figures do not compare with those of CIFAR-10-C.
- ``glass_blur`` copies a neighbour's value where the original means to exchange the two, because
  on colour images the original copies as well.
- ``spatter`` takes the inner boundary of a drop for its outline, not Canny's edges.
- ``elastic_transform`` interpolates once instead of twice.
- ``motion_blur`` and ``snow`` smear along the line that ImageMagick's motion blur would, by the
  same half Gaussian in whole pixels.
- Nothing is rounded to 8 bits on the way, except by ``jpeg_compression``, and zooms and fractals
  follow both sides of images that are not square.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.experiments.corruptions_base import Corruption, draws_for
from causalprune.experiments.corruptions_blur import BLUR
from causalprune.experiments.corruptions_digital import DIGITAL
from causalprune.experiments.corruptions_noise import NOISE
from causalprune.experiments.corruptions_weather import WEATHER
from causalprune.experiments.standardisation import pixels, standardised

__all__ = ["CORRUPTIONS", "corrupt", "corrupt_standardised"]

CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {each.name: each for each in (*NOISE, *BLUR, *WEATHER, *DIGITAL)}
)
"""The nineteen corruptions by name; ``extra`` marks the four beside the fifteen."""

# Values worked on at a time: some corruptions hold several float64 copies.
_VALUES = 2**22


def corrupt(
    images: Tensor, name: str, severity: int = 3, seed: int = 0, *, first: int = 0
) -> Tensor:
    """Corrupt images as by noise, blur, weather or digital processing.

    Parameters
    ----------
    images : Tensor
        ``[N, C, H, W]`` float32 in [0, 1]; C is 1 or 3, H and W are at least 8.
    name : str
        A key of ``CORRUPTIONS``. ``"saturate"`` needs three channels, and
        ``"jpeg_compression"`` needs Pillow.
    severity : int
        1 (weakest) to 5; 0 returns the images as they are.
    seed : int
        Not negative. Together with the name, the severity and the index of an image it
        determines that image's random numbers: it comes out the same in any batch, and
        different ones for every corruption and severity.
    first : int
        Index of the first image, for batches out of a larger set.

    Returns
    -------
    Tensor
        ``[N, C, H, W]`` float32 in [0, 1] on the device of ``images``; computed on the CPU, so
        that it is the same on all of them.

    Raises
    ------
    UnknownNameError
        No such corruption.
    InvalidArgumentError
        The images have another dtype, shape or range, the corruption is not defined for their
        channels, or a number is out of range.
    MissingDependencyError
        ``"jpeg_compression"`` without Pillow.

    Examples
    --------
    >>> images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> snowy = corrupt(images, "snow", severity=2, seed=1)
    >>> bool((snowy.mean() > images.mean()) & (snowy.max() <= 1))
    True
    >>> torch.equal(corrupt(images[4:], "snow", 2, seed=1, first=4), snowy[4:])
    True
    >>> [name for name, each in CORRUPTIONS.items() if each.extra]
    ['speckle_noise', 'gaussian_blur', 'spatter', 'saturate']
    """
    if name not in CORRUPTIONS:
        raise UnknownNameError("corruption", name, CORRUPTIONS)
    corruption = CORRUPTIONS[name]
    _check_whole("severity", severity, 0, 5)
    _check_whole("seed", seed, 0, None)
    _check_whole("first", first, 0, None)
    _check_images(images, corruption)
    if severity == 0 or not len(images):
        return images
    parameters = corruption.parameters(severity, images.shape[-2], images.shape[-1])
    parts = []
    with torch.no_grad():
        for part in torch.split(images, max(1, _VALUES // images[0].numel())):
            draws = draws_for(seed, name, severity, first, len(part))
            corrupted = corruption.apply(part.detach().cpu(), draws, *parameters)
            parts.append(corrupted.clamp(0.0, 1.0))
            first += len(part)
        return torch.cat(parts).to(images.device)


def corrupt_standardised(
    images: Tensor,
    name: str,
    severity: int = 3,
    seed: int = 0,
    *,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
    first: int = 0,
) -> Tensor:
    """Corrupt images that are standardised, as those of a ``DataSplits`` are.

    The standardisation is undone, the pixels are corrupted, and it is done again.

    Parameters
    ----------
    images : Tensor
        ``[N, C, H, W]`` float32: ``(pixels - mean) / std`` for pixels in [0, 1].
    name, severity, seed, first
        As for ``corrupt``.
    mean, std : float or tuple of float
        Of pixels in [0, 1], one or one a channel: those of the ``DataSplits``.

    Returns
    -------
    Tensor
        ``[N, C, H, W]`` float32, standardised, on the device of ``images``.

    Raises
    ------
    UnknownNameError, InvalidArgumentError, MissingDependencyError
        As for ``corrupt``; also if ``mean`` and ``std`` do not bring the images into [0, 1].

    Examples
    --------
    >>> from causalprune.experiments import load_data
    >>> data = load_data("digits")
    >>> images, labels = data.test
    >>> noisy = corrupt_standardised(
    ...     images, "gaussian_noise", 5, seed=0, mean=data.mean, std=data.std
    ... )
    >>> noisy.shape == images.shape, bool((noisy - images).abs().max() > 0)
    (True, True)
    """
    standard = (_each(mean), _each(std))
    if not min(standard[1]) > 0:
        raise InvalidArgumentError(f"std: expected positive numbers, got {std}")
    undone = pixels(images, standard)
    inside = undone.clamp(0.0, 1.0)
    # Standardising and back again costs a few roundings, no more.
    if not bool(((undone - inside).abs() <= 1e-4).all()):
        raise InvalidArgumentError(
            "images: expected (pixels - mean) / std of pixels in [0, 1], but with mean "
            f"{mean} and std {std} they have pixels from {float(undone.min()):.4g} to "
            f"{float(undone.max()):.4g}"
        )
    corrupted = corrupt(inside, name, severity, seed, first=first)
    return images if severity == 0 else standardised(corrupted, standard)


def _each(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, tuple) else (float(values),)


def _check_whole(argument: str, value: object, lowest: int, highest: int | None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
    if not fits or (highest is not None and isinstance(value, int) and value > highest):
        span = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
        raise InvalidArgumentError(f"{argument}: expected a whole number {span}, got {value!r}")


def _check_images(images: Tensor, corruption: Corruption) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgumentError(f"images: expected a float32 tensor, got {found}")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape[2:]) < 8:
        raise InvalidArgumentError(
            "images: expected [N, C, H, W] with 1 or 3 channels and at least 8 x 8 pixels, "
            f"got {list(shape)}"
        )
    if shape[1] not in corruption.channels:
        raise InvalidArgumentError(
            f"images: {corruption.name} is defined for colour images, expected 3 channels, "
            f"got {shape[1]}"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InvalidArgumentError(
            "images: expected values in [0, 1], got "
            f"{float(images.min()):.4g} to {float(images.max()):.4g}"
        )
