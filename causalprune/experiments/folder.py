"""Images in folders, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import DataError, MissingDependencyError
from causalprune.experiments.sampling import stratified_split

if TYPE_CHECKING:
    from causalprune.experiments.datasets import ImageSet

__all__ = ["read_image_folder"]

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_TEST_NAMES = ("test", "val", "valid", "validation")
_TEST_SHARE = 0.25


def read_image_folder(folder: Path, input_shape: tuple[int, int, int]) -> ImageSet:
    """Read images from folders, one folder a class.

    Parameters
    ----------
    folder : Path
        Holds either one folder a class (a quarter of each class becomes the test part, always
        the same images), or ``train`` and ``test`` (or ``val``), each with one folder a class.
        Files with other than an image's suffix, and hidden ones, are passed over.
    input_shape : tuple of int
        Channels (1: grey, 3: colour), height and width to bring every image to.

    Returns
    -------
    ImageSet
        Classes numbered in the order of their names.

    Raises
    ------
    DataError
        There are fewer than two classes, a class has no image, an image is broken (the message
        names the file), or the test part has a class that the training part has not.
    MissingDependencyError
        Pillow is not installed.
    """
    from causalprune.experiments.datasets import ImageSet

    if input_shape[0] not in (1, 3):
        raise DataError(
            f"{folder}: images have 1 or 3 channels, the network takes {input_shape[0]}"
        )
    test_folder = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train_x, train_y, classes = _read_classes(folder / "train", input_shape, None)
        test_x, test_y, _ = _read_classes(test_folder, input_shape, classes)
        return ImageSet(train_x, train_y, test_x, test_y, classes)
    images, labels, classes = _read_classes(folder, input_shape, None)
    if len(labels) < 2:
        raise DataError(f"{folder}: {len(labels)} images are too few to split")
    train, test = stratified_split(labels, max(1, round(len(labels) * _TEST_SHARE)))
    return ImageSet(images[train], labels[train], images[test], labels[test], classes)


def _read_classes(
    folder: Path, shape: tuple[int, int, int], known: tuple[str, ...] | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    found = tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )
    classes = known or found
    if len(classes) < 2:
        raise DataError(
            f"{folder}: {len(classes)} class folders found, expected at least 2 "
            "(one folder a class, with its images inside)"
        )
    strange = sorted(set(found) - set(classes))
    if strange:
        raise DataError(f"{folder}: classes without training images: {', '.join(strange)}")
    images: list[Tensor] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        files = _image_files(folder / name) if name in found else []
        if not files and known is None:
            raise DataError(f"{folder / name}: no image in this class folder")
        images.extend(_read_image(file, shape) for file in files)
        labels.extend([number] * len(files))
    if not images:
        raise DataError(f"{folder}: no images")
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64), classes


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in _SUFFIXES and not entry.name.startswith(".")
    )


def _read_image(file: Path, shape: tuple[int, int, int]) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "a folder of images needs Pillow: pip install 'causalprune[vision]'"
        ) from error
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            image = _eight_bit(opened).convert("L" if channels == 1 else "RGB")
    # Pillow raises SyntaxError and ValueError for some broken files, OSError for most.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image ({error}); mend or remove it") from error
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32).reshape(height, width, channels) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _eight_bit(image: Any) -> Any:
    if not image.mode.startswith("I"):
        return image
    # Pillow clips 16-bit grey at 255 instead of scaling it.
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
