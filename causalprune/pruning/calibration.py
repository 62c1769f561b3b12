"""The images of a pruning run: those that units are scored on, and those held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causalprune.errors import DataError
from causalprune.scoring import as_batches

__all__ = ["Images", "collect", "digest", "read_once", "split"]


@dataclass(frozen=True)
class Images:
    """Images [N, ...] on the CPU, and their classes [N] int64 where there are any."""

    inputs: Tensor
    targets: Tensor | None = None

    @property
    def data(self) -> Tensor | tuple[Tensor, Tensor]:
        """The same in the form that ``cp.score`` takes."""
        return self.inputs if self.targets is None else (self.inputs, self.targets)


def read_once(data: Any) -> bool:
    """Tell whether `data` is gone once it has been read."""
    return isinstance(data, Iterator)


def collect(data: Any, *, max_images: int | None, batch_size: int, seed: int) -> Images:
    """Read `data`, of any form that ``cp.score`` takes, into memory, once.

    A loader that shuffles does so from `seed`; torch's own random state is left alone.

    Raises
    ------
    DataError
        If there is no image, or the images are malformed.

    Examples
    --------
    >>> loader = iter([(torch.zeros(3, 2), torch.arange(3)), (torch.ones(3, 2), torch.arange(3))])
    >>> collect(loader, max_images=4, batch_size=8, seed=0).targets
    tensor([0, 1, 2, 0])
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        batches = as_batches(data, batch_size=batch_size, max_images=max_images, labels=False)
        found = batches.collect()
    return Images(found.inputs, found.targets)


def split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Cut off the last `fraction` of the images, at least one and not all.

    Raises
    ------
    DataError
        If there are fewer than two.

    Examples
    --------
    >>> kept, held = split(Images(torch.arange(10.0)[:, None], torch.arange(10)), 0.2)
    >>> held.targets
    tensor([8, 9])
    """
    n_images = len(images.inputs)
    if n_images < 2:
        raise DataError(
            f"data: expected at least two images to hold some out, got {n_images}; give held_out"
        )
    first = min(max(1, n_images - round(fraction * n_images)), n_images - 1)
    inputs, targets = images.inputs, images.targets
    if targets is None:
        return Images(inputs[:first]), Images(inputs[first:])
    return Images(inputs[:first], targets[:first]), Images(inputs[first:], targets[first:])


def digest(images: Images) -> str:
    """SHA-256 over the images and classes, their types and shapes.

    Examples
    --------
    >>> digest(Images(torch.zeros(2, 3))) == digest(Images(torch.zeros(3, 2)))
    False
    """
    found = hashlib.sha256()
    for tensor in (images.inputs, images.targets):
        if tensor is not None:
            found.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
