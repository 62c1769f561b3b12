"""MNIST, and FashionMNIST, which comes in the same files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import DataError
from causalprune.experiments.data_roots import data_root, download_hint
from causalprune.experiments.idx import read_idx_images, read_idx_labels

if TYPE_CHECKING:
    from causalprune.experiments.datasets import ImageSet

__all__ = ["read_mnist"]


@dataclass(frozen=True)
class _Kind:
    """What torchvision calls a data set of this format, folder and class, and its classes."""

    torchvision: str
    classes: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = {
    "mnist": _Kind("MNIST", tuple("0123456789")),
    "fashion-mnist": _Kind(
        "FashionMNIST",
        (
            *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
}
_FILES: Mapping[str, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_NAMES = [name for pair in _FILES.values() for name in pair]


def read_mnist(root: Path | None, name: str) -> ImageSet:
    """Read the four files of MNIST or FashionMNIST.

    Parameters
    ----------
    root : Path or None
        The folder that holds ``MNIST/raw`` (``FashionMNIST/raw``), as torchvision leaves it, or
        the files themselves; default: the folder that the environment variable
        ``CAUSALPRUNE_DATA`` names.
    name : str
        ``"mnist"`` or ``"fashion-mnist"``.

    Returns
    -------
    ImageSet
        60,000 training and 10,000 test images [N, 1, 28, 28] float32 in [0, 1].

    Raises
    ------
    DataError
        A file is missing or broken, or does not belong to the others.
    """
    from causalprune.experiments.datasets import ImageSet

    kind = _KINDS[name]
    folder = _folder(root, name, kind.torchvision)
    train, test = (_part(folder, *names) for names in _FILES.values())
    return ImageSet(*train, *test, kind.classes)


def _part(folder: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images = read_idx_images(folder / images_name)
    labels = read_idx_labels(folder / labels_name)
    if len(images) != len(labels):
        raise DataError(
            f"{folder / labels_name}: {len(labels)} labels for {len(images)} images of "
            f"{images_name}; the two files do not belong together"
        )
    if labels.max() > 9:
        raise DataError(f"{folder / labels_name}: label {labels.max()} found, expected 0 to 9")
    pixels = torch.from_numpy(images.astype(np.float32) / 255.0)[:, None]
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _folder(root: Path | None, name: str, torchvision: str) -> Path:
    inside = f"{torchvision}/raw"
    needed = f"{inside} with {', '.join(_NAMES)}; {download_hint(name, torchvision, None)}"
    given, source = data_root(root, name, needed)
    hint = download_hint(name, torchvision, given)
    if not given.is_dir():
        raise DataError(f"{source}: no such folder {str(given)!r}; {hint}")
    for folder in (given / inside, given / "raw", given):
        if any((folder / file).is_file() for file in _NAMES):
            break
    else:
        raise DataError(
            f"{source}: {str(given)!r} holds none of {', '.join(_NAMES)}, neither itself nor in "
            f"{inside}; {hint}"
        )
    missing = [file for file in _NAMES if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder}: files of data set {name!r} are missing: {', '.join(missing)}; {hint}"
        )
    return folder
