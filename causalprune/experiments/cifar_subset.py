"""The part of CIFAR-10 that comes as one archive of exact pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from causalprune.errors import DataError
from causalprune.experiments.data_roots import data_root
from causalprune.experiments.standardisation import Standard

if TYPE_CHECKING:
    from causalprune.experiments.datasets import ImageSet

__all__ = ["CIFAR_CLASSES", "CIFAR_STANDARD", "CIFAR_SUBSET_FILE", "read_cifar_subset"]

CIFAR_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR_SUBSET_FILE = "cifar10-subset/cifar10_lossless_subset.npz"

# What the published weights of the CIFAR ResNets were trained with.
CIFAR_STANDARD: Standard = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read_cifar_subset(root: Path | None) -> ImageSet:
    """Read CIFAR-10 images from an archive ``cifar10-subset/cifar10_lossless_subset.npz``.

    Parameters
    ----------
    root : Path or None
        The folder that holds ``cifar10-subset``, that folder itself, or the archive; default:
        the folder that the environment variable ``CAUSALPRUNE_DATA`` names. The archive has the
        arrays ``train_x [N, 3, 32, 32]`` uint8 and ``train_y [N]``, ``test_x`` and ``test_y``.

    Returns
    -------
    ImageSet
        The test part of CIFAR-10 is the test part.

    Raises
    ------
    DataError
        The archive is missing, broken, or holds something else.
    """
    from causalprune.experiments.datasets import ImageSet

    path = _archive(root)
    try:
        # Opened here, because np.load leaks the handle of a broken archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = [f"{part}_{axis}" for part in ("train", "test") for axis in "xy"]
            arrays = [archive[name] for name in names]
    except Exception as error:  # zip, header and dtype go wrong in many ways
        raise DataError(f"{path}: not readable as CIFAR-10 images ({error})") from error
    for images, labels in (arrays[:2], arrays[2:]):
        fits = images.shape[1:] == (3, 32, 32) and labels.shape == images.shape[:1]
        if not fits or images.dtype != np.uint8 or not len(labels):
            raise DataError(
                f"{path}: expected images [N, 3, 32, 32] uint8 and N classes, got "
                f"{images.shape} {images.dtype} and {labels.shape}"
            )
        if labels.min() < 0 or labels.max() > 9:
            raise DataError(f"{path}: expected classes 0 to 9, got {labels.min()}..{labels.max()}")
    pixels = [torch.from_numpy(images.astype(np.float32) / 255.0) for images in arrays[::2]]
    classes = [torch.from_numpy(labels.astype(np.int64)) for labels in arrays[1::2]]
    return ImageSet(pixels[0], classes[0], pixels[1], classes[1], CIFAR_CLASSES, CIFAR_STANDARD)


def _archive(root: Path | None) -> Path:
    given, source = data_root(root, "cifar-subset", CIFAR_SUBSET_FILE)
    places = (given / CIFAR_SUBSET_FILE, given / Path(CIFAR_SUBSET_FILE).name, given)
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"{source}: {str(given)!r} holds no {CIFAR_SUBSET_FILE}")
