"""CIFAR-10 as torchvision keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import DataError
from causalprune.experiments.cifar_subset import CIFAR_CLASSES, CIFAR_STANDARD
from causalprune.experiments.data_roots import data_root, download_hint
from causalprune.experiments.library_networks import imported

if TYPE_CHECKING:
    from causalprune.experiments.datasets import ImageSet

__all__ = ["read_cifar10"]


def read_cifar10(root: Path | None) -> ImageSet:
    """Read CIFAR-10 through torchvision's own class, which checks the files' digests.

    Parameters
    ----------
    root : Path or None
        The folder that holds ``cifar-10-batches-py``; default: the folder that the environment
        variable ``CAUSALPRUNE_DATA`` names.

    Returns
    -------
    ImageSet
        50,000 training and 10,000 test images [N, 3, 32, 32] float32 in [0, 1], to be
        standardised as for the published weights of the CIFAR ResNets.

    Raises
    ------
    DataError
        Files are missing or not the published ones; nothing is downloaded.
    MissingDependencyError
        torchvision is not installed, or was built for another torch.
    """
    from causalprune.experiments.datasets import ImageSet

    datasets = imported("torchvision.datasets", "data set 'cifar10'")
    kind = datasets.CIFAR10
    needed = f"{kind.base_folder}; {download_hint('cifar10', 'CIFAR10', None)}"
    given, source = data_root(root, "cifar10", needed)
    hint = download_hint("cifar10", "CIFAR10", given)
    files = [kind.meta["filename"], *(name for name, _ in (*kind.train_list, *kind.test_list))]
    folder = given / kind.base_folder
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{source}: files of data set 'cifar10' are missing in {str(folder)!r}: "
            f"{', '.join(missing)}; {hint}"
        )
    return ImageSet(
        *_part(kind, given, hint, train=True),
        *_part(kind, given, hint, train=False),
        CIFAR_CLASSES,
        CIFAR_STANDARD,
    )


def _part(kind: Any, root: Path, hint: str, *, train: bool) -> tuple[Tensor, Tensor]:
    try:
        found = kind(str(root), train=train, download=False)
    except Exception as error:  # other digests, and whatever unpickling may fail of
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{root / kind.base_folder}: not the files of CIFAR-10 ({reason}); remove them; {hint}"
        ) from error
    pixels = torch.from_numpy(found.data.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    return pixels.contiguous(), torch.tensor(found.targets, dtype=torch.int64)
