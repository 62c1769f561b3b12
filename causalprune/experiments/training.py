"""Training and evaluation that give the same numbers for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import evaluating

__all__ = ["TrainingLog", "evaluate", "train"]

Batch = tuple[Tensor, Tensor]


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


def train(
    model: nn.Module,
    data: Batch,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingLog:
    """Train a classifier in place with Adam and a learning rate that falls to zero linearly.

    Parameters
    ----------
    model : nn.Module
        Returns logits ``[N, K]``; left in training mode of its own, as it was.
    data : pair of Tensor
        Images ``[N, ...]`` float32 and classes ``[N]`` int64, on the network's device.
    epochs : int
        Passes over the data; 0 does nothing.
    learning_rate : float
        Adam's step size at the start.
    batch_size : int
        Images a step.
    seed : int
        Seed of the order of the images and of dropout. torch's global generators are left as
        they were.
    on_epoch : callable, optional
        Called with the number of epochs done and the mean loss of the last one.

    Returns
    -------
    TrainingLog
        For the same seed, device, number of threads and version of torch: the same losses and
        weights.

    Raises
    ------
    InvalidArgumentError
        A number is out of range, or the loss became infinite or NaN.
    DataError
        There are no images, or not one class for each.

    Examples
    --------
    >>> from torch import nn
    >>> images, labels = torch.eye(4).repeat(16, 1), torch.arange(4).repeat(16)
    >>> network = nn.Linear(4, 4)
    >>> log = train(network, (images, labels), epochs=20, learning_rate=0.1)
    >>> evaluate(network, (images, labels))
    1.0
    """
    images, labels = _checked(data)
    if epochs < 0:
        raise InvalidArgumentError(f"epochs: expected at least 0, got {epochs}")
    if batch_size < 1:
        raise InvalidArgumentError(f"batch_size: expected at least 1, got {batch_size}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise InvalidArgumentError(f"learning_rate: expected above 0, got {learning_rate}")
    steps_an_epoch = math.ceil(len(labels) / batch_size)
    total_steps = epochs * steps_an_epoch
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(seed)
    modes = [(module, module.training) for module in model.modules()]
    losses: list[float] = []
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        for epoch in range(epochs):
            permutation = torch.randperm(len(labels), generator=order).to(images.device)
            loss = 0.0
            for index, chosen in enumerate(torch.split(permutation, batch_size)):
                done = (epoch * steps_an_epoch + index) / total_steps
                loss += _step(
                    model, optimiser, images[chosen], labels[chosen], learning_rate * (1 - done)
                )
            losses.append(loss / steps_an_epoch)
            if not math.isfinite(losses[-1]):
                raise InvalidArgumentError(
                    f"learning_rate: training diverged in epoch {epoch + 1} (loss {losses[-1]}) "
                    f"with {learning_rate}; use a smaller one"
                )
            if on_epoch is not None:
                on_epoch(epoch + 1, losses[-1])
    for module, training in modes:
        module.training = training
    return TrainingLog(tuple(losses), total_steps)


def evaluate(model: nn.Module, data: Batch, *, batch_size: int = 512) -> float:
    """Measure a classifier's accuracy.

    Parameters
    ----------
    model : nn.Module
        Returns logits ``[N, K]``; runs in evaluation mode and gets its mode back.
    data : pair of Tensor
        Images ``[N, ...]`` float32 and classes ``[N]`` int64, on the network's device.
    batch_size : int
        Images a pass.

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
    >>> from torch import nn
    >>> evaluate(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
    0.6666666666666666
    """
    images, labels = _checked(data)
    correct = 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            batch = slice(start, start + batch_size)
            correct += int((model(images[batch]).argmax(1) == labels[batch]).sum())
    return correct / len(labels)


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


def _checked(data: Batch) -> Batch:
    images, labels = data
    if labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"data: expected one class for each image, got images {tuple(images.shape)} and "
            f"classes {tuple(labels.shape)}"
        )
    if not len(labels):
        raise DataError("data: no images")
    return images, labels
