"""Image data sets as tensors, split into training, calibration and test images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    MissingDependencyError,
    UnknownNameError,
)
from causalprune.experiments.cifar10 import read_cifar10
from causalprune.experiments.cifar_subset import read_cifar_subset
from causalprune.experiments.folder import read_image_folder
from causalprune.experiments.mnist import read_mnist
from causalprune.experiments.sampling import stratified_split, stratified_subset
from causalprune.experiments.standardisation import Standard, standardised

__all__ = [
    "DataSource",
    "DataSplits",
    "ImageSet",
    "Standard",
    "data_source",
    "load_data",
    "register_data",
    "registered_data",
]

Shape = tuple[int, int, int]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageSet:
    """Images as a loader returns them, before they are brought to a network's shape.

    Attributes
    ----------
    train_x, test_x : Tensor
        ``[N, C, H, W]`` float32 in [0, 1].
    train_y, test_y : Tensor
        ``[N]`` int64 class numbers.
    classes : tuple of str
        Class names, by number.
    standard : pair of tuple of float, optional
        Mean and standard deviation per channel that networks for these images are trained with;
        default: those of all training pixels together.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    standard: Standard | None = None


Loader = Callable[[Path | None, Shape], ImageSet]


@dataclass(frozen=True)
class DataSource:
    """A registered data set.

    Attributes
    ----------
    name : str
        Its name on the command line.
    load : callable
        ``(root, input_shape) -> ImageSet``.
    epochs, retrain_epochs : int
        Passes over the training images that suit it, before and after pruning.
    """

    name: str
    load: Loader
    epochs: int = 12
    retrain_epochs: int = 2


@dataclass(frozen=True)
class DataSplits:
    """A data set ready for a network.

    Attributes
    ----------
    name : str
        Name of the data set.
    train, calibration, test : pair of Tensor
        Images ``[N, C, H, W]`` float32 (standardised) and classes ``[N]`` int64. The
        calibration images come out of the training part and no network is fitted to them:
        on images it was fitted to, a network has hardly any loss that a removal could change.
    classes : tuple of str
        Class names, by number.
    split : str
        Identifies the test images: name, number, digest of pixels and labels.
    mean, std : float or tuple of float
        Of pixels in [0, 1], one or one a channel; all images are standardised with them.
    """

    name: str
    train: Batch
    calibration: Batch
    test: Batch
    classes: tuple[str, ...]
    split: str
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def to(self, device: torch.device | str) -> DataSplits:
        """Return the same splits with every tensor on ``device``."""
        moved = [
            (images.to(device), labels.to(device))
            for images, labels in (self.train, self.calibration, self.test)
        ]
        return replace(self, train=moved[0], calibration=moved[1], test=moved[2])


_SOURCES: dict[str, DataSource] = {}


def register_data(
    name: str, *, epochs: int = 12, retrain_epochs: int = 2
) -> Callable[[Loader], Loader]:
    """Make a function that loads images known under a name.

    Parameters
    ----------
    name : str
        Name for ``RunConfig.data`` and ``causalprune run --data``.
    epochs, retrain_epochs : int
        Passes over the training images that suit the data, before and after pruning.

    Returns
    -------
    callable
        A decorator that returns the function unchanged. The function is called with
        ``(root, input_shape)`` (root is a Path or None) and returns an ``ImageSet``.

    Raises
    ------
    InvalidArgumentError
        The name is taken.

    Examples
    --------
    >>> @register_data("noise-example", epochs=1)
    ... def noise(root, input_shape):
    ...     images, labels = torch.rand(64, *input_shape), torch.arange(64) % 2
    ...     return ImageSet(images, labels, images, labels, ("even", "odd"))
    >>> load_data("noise-example", input_shape=(1, 8, 8), calibration=16).train[0].shape
    torch.Size([48, 1, 8, 8])
    """

    def register(load: Loader) -> Loader:
        known = _SOURCES.get(name)
        if known is not None and known.load.__qualname__ != load.__qualname__:
            raise InvalidArgumentError(f"name: a data set {name!r} is registered already")
        _SOURCES[name] = DataSource(name, load, epochs, retrain_epochs)
        return load

    return register


def registered_data() -> tuple[str, ...]:
    """Return the names of the registered data sets, sorted."""
    return tuple(sorted(_SOURCES))


def data_source(name: str) -> DataSource:
    """Look a data set up: a registered name, or the path of a folder of images.

    Raises
    ------
    UnknownNameError
        Neither a registered name nor a folder; the message lists the names there are.
    """
    if name in _SOURCES:
        return _SOURCES[name]
    if Path(name).is_dir():
        return DataSource(name, lambda root, shape: read_image_folder(Path(name), shape))
    if os.sep in name or name.startswith((".", "~")):
        raise DataError(f"data: no such folder {name!r}; known names: {', '.join(_SOURCES)}")
    raise UnknownNameError("data set", name, [*_SOURCES, "<path of a folder of images>"])


def load_data(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    input_shape: Shape = (1, 28, 28),
    calibration: int = 256,
    train_limit: int | None = None,
    test_limit: int | None = None,
    standard: Standard | None = None,
) -> DataSplits:
    """Load a data set, split it and bring it to a network's input shape.

    Parameters
    ----------
    name : str
        ``"digits"`` (ships with scikit-learn), ``"mnist"`` and ``"fashion-mnist"`` (need their
        four files), ``"cifar10"`` (needs its batches, and torchvision), ``"cifar-subset"`` (needs
        its archive), a name registered with ``register_data``, or a folder with one sub-folder
        of images a class. Nothing is downloaded.
    root : path-like, optional
        Where the files of a data set are; default: the folder that the environment variable
        ``CAUSALPRUNE_DATA`` names.
    input_shape : tuple of int
        Channels, height and width that the network takes.
    calibration : int
        Number of training images to set aside for scoring.
    train_limit, test_limit : int, optional
        Use only so many training (calibration included) and test images, classes in
        proportion.
    standard : pair of tuple of float, optional
        Mean and standard deviation per channel that the network's weights were trained with;
        default: the data set's own.

    Returns
    -------
    DataSplits
        The same images for the same arguments: the splits are fixed, no seed enters.

    Raises
    ------
    UnknownNameError
        No such data set.
    DataError
        Files are missing or broken, or there are too few images.
    InvalidArgumentError
        A number is out of range.

    Examples
    --------
    >>> splits = load_data("digits")
    >>> [len(labels) for _, labels in (splits.train, splits.calibration, splits.test)]
    [1091, 256, 450]
    """
    for argument, value in (("train_limit", train_limit), ("test_limit", test_limit)):
        if value is not None and value < 1:
            raise InvalidArgumentError(f"{argument}: expected at least 1, got {value}")
    if calibration < 2:
        raise InvalidArgumentError(f"calibration: expected at least 2, got {calibration}")
    source = data_source(name)
    images = source.load(Path(root) if root is not None else None, input_shape)
    if standard is not None:
        images = replace(images, standard=standard)
    return _split(source.name, images, input_shape, calibration, train_limit, test_limit)


def _split(
    name: str,
    images: ImageSet,
    input_shape: Shape,
    calibration: int,
    train_limit: int | None,
    test_limit: int | None,
) -> DataSplits:
    label = Path(name).name if name not in _SOURCES else name
    train_x, train_y = stratified_subset(images.train_x, images.train_y, train_limit)
    test_x, test_y = stratified_subset(images.test_x, images.test_y, test_limit)
    if len(train_y) <= calibration or not len(test_y):
        raise DataError(
            f"data set {label!r}: {len(train_y)} training and {len(test_y)} test images are too "
            f"few; expected more than {calibration} (the calibration images) and at least 1"
        )
    train_x, test_x = _fit(train_x, input_shape), _fit(test_x, input_shape)
    standard = images.standard or ((float(train_x.mean()),), (float(train_x.std()),))
    if not min(standard[1]) > 0:
        raise DataError(f"data set {label!r}: all training pixels have the same value")
    rest, chosen = stratified_split(train_y, calibration)
    train_x, test_x = standardised(train_x, standard), standardised(test_x, standard)
    return DataSplits(
        name=label,
        train=(train_x[rest], train_y[rest]),
        calibration=(train_x[chosen], train_y[chosen]),
        test=(test_x, test_y),
        classes=images.classes,
        split=f"{label}-test-{len(test_y)}-{_digest(test_x, test_y)}",
        mean=_one_or_all(standard[0]),
        std=_one_or_all(standard[1]),
    )


def _one_or_all(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(values) == 1 else values


def _fit(images: Tensor, shape: Shape) -> Tensor:
    channels, height, width = shape
    if images.shape[-2:] != (height, width):
        images = functional.interpolate(
            images, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return images.contiguous()


def _digest(images: Tensor, labels: Tensor) -> str:
    # Rounded to 1/16 of a standard deviation: the last bits may differ between machines.
    coarse = (images * 16).round().to(torch.int16)
    digest = hashlib.sha256(coarse.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:8]


@register_data("digits")
def _digits(root: Path | None, input_shape: Shape) -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "data set 'digits' ships with scikit-learn: pip install 'causalprune[analysis]'"
        ) from error
    digits = load_digits()
    images = torch.from_numpy(np.asarray(digits.images, dtype=np.float32) / 16.0)[:, None]
    labels = torch.from_numpy(np.asarray(digits.target, dtype=np.int64))
    train, test = stratified_split(labels, 450)
    classes = tuple(str(digit) for digit in range(10))
    return ImageSet(images[train], labels[train], images[test], labels[test], classes)


@register_data("cifar-subset", epochs=20, retrain_epochs=5)
def _cifar_subset(root: Path | None, input_shape: Shape) -> ImageSet:
    return read_cifar_subset(root)


@register_data("cifar10", epochs=20, retrain_epochs=5)
def _cifar10(root: Path | None, input_shape: Shape) -> ImageSet:
    return read_cifar10(root)


@register_data("mnist", epochs=2, retrain_epochs=1)
def _mnist(root: Path | None, input_shape: Shape) -> ImageSet:
    return read_mnist(root, "mnist")


@register_data("fashion-mnist", epochs=4, retrain_epochs=1)
def _fashion_mnist(root: Path | None, input_shape: Shape) -> ImageSet:
    return read_mnist(root, "fashion-mnist")
