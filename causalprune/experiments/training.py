"""Training of the networks of an experiment, by Adam or by the recipe of Lost in Pruning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from causalprune.errors import DivergedError, UnknownNameError
from causalprune.pruning.retraining import AUGMENTATIONS, SgdRecipe
from causalprune.pruning.training import (
    TrainingLog,
    check_numbers,
    correct_images,
    evaluate,
    fit,
)

__all__ = ["TrainingLog", "accuracy_of", "evaluate", "images_right", "train"]


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    optimiser: str = "adam",
    augment: str | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingLog:
    """Train a classifier in place.

    Parameters
    ----------
    model : nn.Module
        Returns logits ``[N, K]``.
    data : pair of Tensor
        Images ``[N, ...]`` float32 and classes ``[N]`` int64.
    epochs : int
        Passes over the data; 0 does nothing.
    learning_rate : float
        The largest one.
    optimiser : str
        ``"adam"``, with a learning rate that falls to zero linearly, or ``"sgd"``:
        :class:`~causalprune.pruning.SgdRecipe`.
    augment : str, optional
        ``"crop_flip"``.
    batch_size, seed, on_epoch
        See :func:`causalprune.pruning.training.fit`, also for what is returned and repeats.

    Raises
    ------
    UnknownNameError
        There is no such optimiser or augmentation.
    InvalidArgumentError
        A number is out of range.
    DivergedError
        The loss or a weight became infinite or NaN.
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
    check_numbers(epochs, batch_size, learning_rate)
    if augment is not None and augment not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", augment, AUGMENTATIONS)
    if optimiser == "sgd":
        recipe = SgdRecipe(
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
        )
        return recipe.train(model, data, on_epoch=on_epoch)
    if optimiser != "adam":
        raise UnknownNameError("optimiser", optimiser, ("adam", "sgd"))
    return fit(
        model,
        data,
        torch.optim.Adam(model.parameters(), lr=learning_rate),
        lambda done: learning_rate * (1 - done),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        augment=None if augment is None else AUGMENTATIONS[augment],
        on_epoch=on_epoch,
    )


def accuracy_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Measure accuracy as :func:`evaluate` does, of a network whose logits are finite.

    Raises
    ------
    DivergedError, DataError
        As :func:`images_right`.

    Examples
    --------
    >>> accuracy_of(nn.Identity(), (torch.eye(2), torch.tensor([0, 0])))
    0.5
    """
    hits = images_right(model, data)
    return int(hits.sum()) / len(hits)


def images_right(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Tell for each image whether a network whose logits are finite takes it for its class.

    Finite weights may be large enough to overflow, and the largest of logits that are no numbers
    is some class, too: such a network would pass for one that guesses.

    Returns
    -------
    Tensor
        ``[N]`` bool, on the CPU; their mean is the accuracy.

    Raises
    ------
    DivergedError
        A logit is infinite or NaN.
    DataError
        As :func:`evaluate`.

    Examples
    --------
    >>> network = nn.Linear(2, 2)
    >>> _ = nn.init.constant_(network.weight, 3e38)
    >>> images_right(network, (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)))
    Traceback (most recent call last):
    ...
    causalprune.errors.DivergedError: model: expected finite logits, got infinity or NaN ...
    """

    def refuse(module: nn.Module, inputs: object, logits: Tensor) -> None:
        if not bool(torch.isfinite(logits).all()):
            wrong = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
            raise DivergedError(
                f"model: expected finite logits, got infinity or NaN for {wrong} of "
                f"{len(logits)} images; a learning rate or weights too large"
            )

    handle = model.register_forward_hook(refuse)
    try:
        return correct_images(model, data)
    finally:
        handle.remove()
