"""Every form of data that a score accepts, as checked batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from causalprune.errors import DataError, InvalidArgumentError

__all__ = ["Batch", "Batches", "as_batches", "is_pair"]


@dataclass(frozen=True)
class Batch:
    """Checked images [N, ...], floating, and class indices [N], int64, or ``None``."""

    inputs: Tensor
    targets: Tensor | None


class Batches:
    """Checked batches; every iteration is a pass over the data.

    Attributes
    ----------
    example : Tensor [1, ...]
        The first image.
    n_batches : int or None
        How many batches will come, where the data tells.
    """

    def __init__(self, open_pass: Callable[[], Iterator[Batch]], n_batches: int | None) -> None:
        self._open_pass = open_pass
        opened = open_pass()
        first = next(opened, None)
        if first is None:
            raise DataError("data: expected at least one image, got none")
        self._begun: Iterator[Batch] | None = itertools.chain([first], opened)
        self.example = first.inputs[:1]
        self.n_batches = n_batches

    def __iter__(self) -> Iterator[Batch]:
        """Begin a pass; the first one goes on where looking at the first image left off."""
        begun, self._begun = self._begun, None
        return self._open_pass() if begun is None else begun

    def labelled(self) -> Iterator[Batch]:
        """Begin a pass whose targets are class indices, for methods that need them at times.

        Raises
        ------
        DataError
            If targets are missing or are no class indices.
        """
        for index, batch in enumerate(self):
            targets = _class_indices(batch.targets, len(batch.inputs), index)
            yield Batch(batch.inputs, targets)

    def collect(self) -> Batch:
        """Return all images as one batch, for methods that draw them in an order of their own."""
        parts = list(self)
        targets = [part.targets for part in parts if part.targets is not None]
        return Batch(
            torch.cat([part.inputs for part in parts]),
            torch.cat(targets) if len(targets) == len(parts) else None,
        )


def as_batches(
    data: Any,
    *,
    batch_size: int = 256,
    max_images: int | None = None,
    labels: bool = True,
    device: torch.device | str = "cpu",
) -> Batches:
    """Normalise `data` to batches, as many passes over them as the data allows.

    Parameters
    ----------
    data : DataLoader, Dataset, iterable, pair of tensors, or Tensor
        A DataLoader or another iterable of ``(inputs, targets)`` (or of inputs alone) keeps its
        own batches; a Dataset of samples, a pair ``(inputs [N, ...], targets [N])`` and a bare
        tensor ``[N, ...]`` are cut into batches of `batch_size`.
    batch_size : int
        Images per batch.
    max_images : int, optional
        Use the first `max_images` images only.
    labels : bool
        Whether class indices are required.
    device : torch.device or str
        Where the batches go.

    Raises
    ------
    DataError
        If there is not one image, a tensor has the wrong type or shape, an input is not finite,
        or required targets are missing or are no class indices.

    Examples
    --------
    >>> batches = as_batches((torch.zeros(5, 1, 8, 8), torch.arange(5)), batch_size=2, max_images=3)
    >>> [tuple(batch.inputs.shape) for batch in batches]
    [(2, 1, 8, 8), (1, 1, 8, 8)]
    """
    raw, n_images, n_batches = _open(data, batch_size)
    if max_images is not None and n_images is not None:
        n_batches = -(-min(max_images, n_images) // batch_size)
    spent: list[bool] = []

    def open_pass() -> Iterator[Batch]:
        if spent and isinstance(raw, Iterator):
            raise DataError(
                "data: expected something that can be read twice (a Dataset, a DataLoader, "
                f"tensors), because the method needs two passes, got a {type(raw).__name__}"
            )
        spent.append(True)
        return _checked(raw, max_images, labels, torch.device(device))

    return Batches(open_pass, n_batches)


def _open(data: Any, batch_size: int) -> tuple[Iterable[Any], int | None, int | None]:
    """Return an iterable of batches, and how many images and batches it holds if known."""
    if isinstance(data, Tensor):
        if data.ndim < 2:
            raise DataError(f"data: expected images [N, ...], got shape {tuple(data.shape)}")
        data = TensorDataset(data)
    elif is_pair(data):
        inputs, targets = data
        if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets):
            raise DataError(
                "data: expected inputs [N, ...] and targets [N], got shapes "
                f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        data = TensorDataset(inputs, targets)
    if isinstance(data, TensorDataset):
        # Slicing keeps what a sample-wise loader would collate again, at a fraction of the time.
        tensors, n = data.tensors, len(data)
        return _Slices(tensors, batch_size), n, -(-n // batch_size)
    if isinstance(data, Dataset):
        n_samples: int | None = len(data) if isinstance(data, Sized) else None
        if n_samples == 0:  # DataLoader's own complaint would name no argument
            raise DataError("data: expected at least one image, got an empty data set")
        loader = DataLoader(data, batch_size=batch_size)
        return loader, n_samples, None if n_samples is None else -(-n_samples // batch_size)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return data, None, _length(data)
    raise InvalidArgumentError(
        "data: expected a DataLoader, a Dataset, an iterable of (inputs, targets), a pair of "
        f"tensors or a tensor, got {type(data).__name__}"
    )


@dataclass(frozen=True)
class _Slices:
    """Tensors [N, ...] cut into batches, as often as one likes."""

    tensors: tuple[Tensor, ...]
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for i in range(0, len(self.tensors[0]), self.batch_size):
            yield tuple(tensor[i : i + self.batch_size] for tensor in self.tensors)


def _length(data: object) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a loader over an iterable data set has a length it does not know
        return None


def is_pair(data: Any) -> bool:
    """Tell whether `data` is two tensors: inputs and targets."""
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
    )


def _checked(
    raw: Iterable[Any], max_images: int | None, labels: bool, device: torch.device
) -> Iterator[Batch]:
    left, shape = max_images, None
    for index, item in enumerate(raw):
        if left is not None and left <= 0:
            return
        inputs, targets = _split(item, index)
        if left is not None:
            inputs = inputs[:left]
            targets = None if targets is None else targets[:left]
            left -= len(inputs)
        if not len(inputs):
            continue
        shape = shape or inputs.shape[1:]
        if inputs.shape[1:] != shape:
            raise DataError(
                f"data: expected images of shape {tuple(shape)} in batch {index}, "
                f"got {tuple(inputs.shape[1:])}"
            )
        _check_inputs(inputs, index)
        if labels:
            targets = _class_indices(targets, len(inputs), index)
        inputs = inputs.detach().to(device)
        if inputs.is_inference():  # such a tensor cannot take part in a gradient
            inputs = inputs.clone()
        yield Batch(inputs, None if targets is None else targets.to(device))


def _split(item: Any, index: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        inputs, targets = item[0], item[1] if len(item) == 2 else None
        if isinstance(inputs, Tensor) and (targets is None or isinstance(targets, Tensor)):
            return inputs, targets
    raise DataError(
        f"data: expected (inputs, targets) tensors or an input tensor in batch {index}, "
        f"got {type(item).__name__}"
    )


def _check_inputs(inputs: Tensor, index: int) -> None:
    if inputs.ndim < 2 or not inputs.is_floating_point():
        raise DataError(
            f"data: expected floating images [N, ...] in batch {index}, got {inputs.dtype} "
            f"of shape {tuple(inputs.shape)}"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"data: expected finite images, got NaN or infinity in batch {index}")


def _class_indices(targets: Tensor | None, n: int, index: int) -> Tensor:
    if targets is None:
        raise DataError(
            "data: this method and outcome need targets, expected (inputs, targets), "
            f"got inputs alone in batch {index}"
        )
    if targets.shape != (n,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise DataError(
            f"data: expected class indices [{n}] of an integer dtype in batch {index}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        raise DataError(f"data: expected targets >= 0, got {int(targets.min())} in batch {index}")
    return targets.long()
