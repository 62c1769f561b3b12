"""The training loop of the package, and accuracy: the same numbers for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from causalprune.errors import DataError, DivergedError, InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.scoring.data import as_batches, is_pair

__all__ = ["Augmentation", "TrainingLog", "check_numbers", "correct_images", "evaluate", "fit"]

Batch = tuple[Tensor, Tensor]
Augmentation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingLog:
    """What a training run did.

    Attributes
    ----------
    losses : tuple of float
        Mean cross-entropy (nats) over each epoch's batches.
    steps : int
        Optimiser steps.
    """

    losses: tuple[float, ...]
    steps: int


def fit(
    model: nn.Module,
    data: Any,
    optimiser: torch.optim.Optimizer,
    rate: Callable[[float], float],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    augment: Augmentation | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingLog:
    """Train a classifier in place by cross-entropy.

    Parameters
    ----------
    model : nn.Module
        Returns logits ``[N, K]``; every module's mode is given back, also after an error.
    data : pair of Tensor, Dataset, DataLoader, or iterable of (inputs, targets)
        Images ``[N, ...]`` float32 and classes ``[N]`` int64. Tensors and data sets are shuffled
        and cut here (of tensors, a last image alone joins the batch before it); a loader keeps its
        own order and batch size, an iterable without a length is read once and kept.
    optimiser : torch.optim.Optimizer
        Of the network's parameters.
    rate : callable
        Fraction of all steps that are done, in [0, 1), to the learning rate of the next one.
    epochs, batch_size : int
        Passes over the data; images a step.
    seed : int
        Of the order of the images, and of dropout and augmentation. torch's global generators
        are left as they were.
    augment : callable, optional
        Images of a batch to images; may draw from torch's global generator.
    on_epoch : callable, optional
        Called with the number of epochs done and the mean loss of the last one.

    Returns
    -------
    TrainingLog
        For the same seed, device, number of threads and version of torch: the same losses and
        weights.

    Raises
    ------
    DivergedError
        The loss or a weight became infinite or NaN.
    DataError
        There are no images, or not one class for each.

    Examples
    --------
    >>> images, labels = torch.eye(4).repeat(16, 1), torch.arange(4).repeat(16)
    >>> network = nn.Linear(4, 4)
    >>> sgd = torch.optim.SGD(network.parameters(), lr=0.5)
    >>> log = fit(network, (images, labels), sgd, lambda done: 0.5 * (1 - done), epochs=9,
    ...           batch_size=8, seed=0)
    >>> log.steps, log.losses[-1] < log.losses[0]
    (72, True)
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    source = _source(data, batch_size)
    n_steps, total = len(source), epochs * len(source)
    order = torch.Generator().manual_seed(seed)
    modes = [(module, module.training) for module in model.modules()]
    losses: list[float] = []
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.manual_seed(seed)
            model.train()
            for epoch in range(epochs):
                loss = 0.0
                for index, (images, labels) in enumerate(source.epoch(order)):
                    shown = images.to(device)
                    if augment is not None:
                        shown = augment(shown)
                    now = rate((epoch * n_steps + index) / total)
                    loss += _step(model, optimiser, shown, labels.to(device), now)
                losses.append(loss / n_steps)
                if not math.isfinite(losses[-1]):
                    raise DivergedError(
                        f"learning_rate: training diverged in epoch {epoch + 1} (loss "
                        f"{losses[-1]}) with {optimiser.defaults['lr']}; use a smaller one"
                    )
                if on_epoch is not None:
                    on_epoch(epoch + 1, losses[-1])
            if total:
                _check_weights(model, optimiser)
    finally:
        for module, training in modes:
            module.training = training
    return TrainingLog(tuple(losses), total)


def _check_weights(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Refuse what the last step left behind, which no loss has seen."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise DivergedError(
                f"learning_rate: training diverged ({name} is not finite after the last step) "
                f"with {optimiser.defaults['lr']}; use a smaller one"
            )


def check_numbers(epochs: int, batch_size: int, learning_rate: float) -> None:
    """Refuse numbers with which nothing can be trained."""
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name}: expected at least {least}, got {value}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise InvalidArgumentError(f"learning_rate: expected above 0, got {learning_rate}")


def evaluate(model: nn.Module, data: Any, *, batch_size: int | None = None) -> float:
    """Measure a classifier's accuracy.

    Parameters
    ----------
    model : nn.Module
        Returns logits ``[N, K]``; runs in evaluation mode and gets its mode back.
    data : pair of Tensor, Dataset, DataLoader, or iterable of (inputs, targets)
        Images ``[N, ...]`` float32 and classes ``[N]`` int64.
    batch_size : int, optional
        Images a pass, where the data does not come in batches; default: 128 on a CPU, whose
        caches more would outgrow, 512 elsewhere.

    Returns
    -------
    float
        Fraction of the images whose largest logit is the one of their class.

    Raises
    ------
    DataError
        There are no images, or not one class for each.

    Examples
    --------
    >>> evaluate(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
    0.6666666666666666
    """
    hits = correct_images(model, data, batch_size=batch_size)
    return int(hits.sum()) / len(hits)


def correct_images(model: nn.Module, data: Any, *, batch_size: int | None = None) -> Tensor:
    """Tell for each image whether the largest logit is the one of its class.

    Parameters
    ----------
    model, data, batch_size
        See :func:`evaluate`.

    Returns
    -------
    Tensor
        ``[N]`` bool, on the CPU.

    Raises
    ------
    DataError
        There are no images, or not one class for each.

    Examples
    --------
    >>> correct_images(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
    tensor([ True,  True, False])
    """
    if is_pair(data):
        _check_pair(*data)
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    if batch_size is None:
        batch_size = 128 if device.type == "cpu" else 512
    hits = []
    with evaluating(model), torch.no_grad():
        for batch in as_batches(data, batch_size=batch_size, device=device):
            assert batch.targets is not None
            hits.append((model(batch.inputs).argmax(1) == batch.targets).cpu())
    return torch.cat(hits)


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    learning_rate: float,
) -> float:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())


# ---- where batches come from ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensors:
    """Images and classes in memory, shuffled anew for every epoch.

    A last image that would be a batch by itself joins the one before: batch norms behind which
    an image is one pixel cannot train on a single value.
    """

    images: Tensor
    labels: Tensor
    batch_size: int

    def __len__(self) -> int:
        counted = len(self.labels) - (self.batch_size > 1)
        return max(1, math.ceil(counted / self.batch_size))

    def epoch(self, order: torch.Generator) -> Iterator[Batch]:
        permutation = torch.randperm(len(self.labels), generator=order).to(self.images.device)
        batches = list(torch.split(permutation, self.batch_size))
        if len(batches) > len(self):
            batches[-2:] = [torch.cat(batches[-2:])]
        for chosen in batches:
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class _Loader:
    """A user's batches, in the user's order; those of a Dataset are shuffled here."""

    batches: Iterable[Any]
    shuffled: Dataset[Any] | None
    batch_size: int
    n_batches: int

    def __len__(self) -> int:
        return self.n_batches

    def epoch(self, order: torch.Generator) -> Iterator[Batch]:
        batches = self.batches
        if self.shuffled is not None:
            batches = DataLoader(self.shuffled, self.batch_size, shuffle=True, generator=order)
        for batch in as_batches(batches):
            assert batch.targets is not None
            yield batch.inputs, batch.targets


def _source(data: Any, batch_size: int) -> _Tensors | _Loader:
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if is_pair(data):
        return _Tensors(*_check_pair(*data), batch_size)
    if isinstance(data, Dataset) and isinstance(data, Sized):
        if not len(data):
            raise DataError("data: no images")
        return _Loader((), data, batch_size, math.ceil(len(data) / batch_size))
    n_batches = _length(data)
    if n_batches is None:
        whole = as_batches(data, batch_size=batch_size).collect()
        assert whole.targets is not None
        return _Tensors(whole.inputs, whole.targets, batch_size)
    if not n_batches:
        raise DataError("data: no images")
    return _Loader(data, None, batch_size, n_batches)


def _length(data: object) -> int | None:
    if isinstance(data, (Tensor, str, bytes)):  # as_batches has the words for these
        return None
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a loader over an iterable data set has a length it does not know
        return None


def _check_pair(images: Tensor, labels: Tensor) -> Batch:
    if labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"data: expected one class for each image, got images {tuple(images.shape)} and "
            f"classes {tuple(labels.shape)}"
        )
    if not len(labels):
        raise DataError("data: no images")
    return images, labels
