"""Retraining a pruned network: the recipe of Lost in Pruning, or a user's own function."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.pruning.masks import WeightMasks, holding
from causalprune.pruning.training import Augmentation, TrainingLog, check_numbers, fit

__all__ = ["AUGMENTATIONS", "Retraining", "SgdRecipe", "crop_and_flip", "retrain"]

PADDING = 4
"""Pixels of zeros around an image before a crop of its own size is drawn."""

FIRST = 0.1
"""Where the warm-up begins, as a fraction of the rate: from zero the first step would be lost."""


@dataclass(frozen=True)
class SgdRecipe:
    """Stochastic gradient descent with momentum, a linear warm-up and steps of the rate.

    The rate rises linearly from a tenth to `learning_rate` over the warm-up and is multiplied by
    `gamma` at every milestone. All times are fractions of the epochs, so that a shorter training
    is the same schedule in small. The defaults are those of Lost in Pruning for CIFAR ResNets,
    whose number of epochs is 182: rate 0.1, momentum 0.9, weight decay 1e-4, 128 images a step, a
    tenth of the rate from epochs 91 and 136 on, 5 epochs of warm-up.

    Attributes
    ----------
    epochs : int
        Passes over the data; 0 does nothing.
    learning_rate, momentum, weight_decay : float
    batch_size : int
        Images a step; a DataLoader keeps its own.
    milestones : tuple of float
        Ascending, in [0, 1].
    gamma : float
    warmup : float
        In [0, 1].
    seed : int
        Of the order of the images, dropout and augmentation.
    nesterov : bool
    augment : str or callable, optional
        ``"crop_flip"`` (:func:`crop_and_flip`), or images [N, ...] to images, which may draw from
        torch's global generator.

    Raises
    ------
    InvalidArgumentError
        On construction, when a value is out of range.

    Notes
    -----
    Source: Liebenwein, Baykal, Carter, Gifford, Rus (2021), "Lost in Pruning", appendix. That the
    rate begins at a tenth and rises with every step rather than every epoch is reconstructed.

    Examples
    --------
    >>> recipe = SgdRecipe(epochs=182)
    >>> [round(recipe.rate(epoch / 182), 4) for epoch in (1, 5, 90, 91, 136)]
    [0.028, 0.1, 0.1, 0.01, 0.001]
    """

    epochs: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    milestones: tuple[float, ...] = (91 / 182, 136 / 182)
    gamma: float = 0.1
    warmup: float = 5 / 182
    seed: int = 0
    nesterov: bool = False
    augment: str | Augmentation | None = None

    def __post_init__(self) -> None:
        check_numbers(self.epochs, self.batch_size, self.learning_rate)
        for name in ("momentum", "weight_decay", "gamma"):
            if not 0 <= getattr(self, name) < (1 if name == "momentum" else float("inf")):
                raise InvalidArgumentError(
                    f"{name}: expected a number in [0, {'1' if name == 'momentum' else 'inf'}), "
                    f"got {getattr(self, name)!r}"
                )
        times = (*self.milestones, self.warmup)
        if not all(0 <= time <= 1 for time in times) or list(self.milestones) != sorted(
            self.milestones
        ):
            raise InvalidArgumentError(
                "milestones, warmup: expected ascending fractions of the epochs in [0, 1], got "
                f"{self.milestones!r}, {self.warmup!r}"
            )
        if isinstance(self.augment, str) and self.augment not in AUGMENTATIONS:
            raise UnknownNameError("augmentation", self.augment, AUGMENTATIONS)

    def rate(self, done: float) -> float:
        """Return the learning rate when a fraction of the training is done."""
        risen = min(1.0, FIRST + (1 - FIRST) * done / self.warmup) if self.warmup else 1.0
        return self.learning_rate * risen * self.gamma ** bisect_right(self.milestones, done)

    def train(
        self,
        model: nn.Module,
        data: Any,
        *,
        masks: WeightMasks | None = None,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> TrainingLog:
        """Train a network in place with a fresh optimiser; see :func:`retrain`."""
        optimiser = torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        augment = AUGMENTATIONS[self.augment] if isinstance(self.augment, str) else self.augment
        with holding(model, masks):
            return fit(
                model,
                data,
                optimiser,
                self.rate,
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=self.seed,
                augment=augment,
                on_epoch=on_epoch,
            )


Retraining = SgdRecipe | Callable[[nn.Module], nn.Module | None]
"""How a network is trained again: a recipe, or a function that does it."""


def retrain(
    model: nn.Module,
    data: Any,
    recipe: Retraining,
    *,
    masks: WeightMasks | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a pruned network again, with its masked weights held at zero.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    data : pair of Tensor, Dataset, DataLoader, or iterable of (inputs, targets)
        Images and classes for a recipe; a function has its own.
    recipe : SgdRecipe or callable
        ``f(model)`` trains the network in place and returns ``None``, or returns the network that
        takes its place.
    masks : Mapping of str to Tensor, optional
        Layer name to what stays (:func:`causalprune.pruning.masks.holding`): held after every
        step of every optimiser, that of the function included, and when it is done.
    on_epoch : callable, optional
        Called by a recipe with the number of epochs done and the mean loss of the last one.

    Returns
    -------
    nn.Module
        `model`, or what the function returned.

    Raises
    ------
    InvalidArgumentError
        If `recipe` is neither, the function returns anything else, the training diverges, or
        masks do not fit.
    DataError
        There are no images, or not one class for each.
    Exception
        Whatever the function raises.

    Examples
    --------
    >>> images, labels = torch.eye(4).repeat(16, 1), torch.arange(4).repeat(16)
    >>> recipe = SgdRecipe(epochs=9, learning_rate=0.5, batch_size=8)
    >>> model = retrain(nn.Linear(4, 4), (images, labels), recipe)
    >>> (model(images).argmax(1) == labels).all().item()
    True
    """
    if isinstance(recipe, SgdRecipe):
        recipe.train(model, data, masks=masks, on_epoch=on_epoch)
        return model
    if not callable(recipe):
        raise InvalidArgumentError(
            f"retrain: expected an SgdRecipe or a function of the network, got {recipe!r}"
        )
    with holding(model, masks):
        found = recipe(model)
    if found is None or found is model:
        return model
    if not isinstance(found, nn.Module):
        raise InvalidArgumentError(
            f"retrain: expected the function to return a network or None, got {found!r}"
        )
    with holding(found, masks):
        return found


def crop_and_flip(images: Tensor) -> Tensor:
    """Augment as is usual for CIFAR: a random crop of the bordered image, mirrored half the time.

    Parameters
    ----------
    images : Tensor [N, C, H, W]
        Standardised; the border of 4 pixels is zero.

    Returns
    -------
    Tensor [N, C, H, W]
        Drawn with torch's global generator, each image for itself.

    Raises
    ------
    InvalidArgumentError
        If the images are no maps.

    Examples
    --------
    >>> crop_and_flip(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """
    if images.ndim != 4:
        raise InvalidArgumentError(
            f"augment: 'crop_flip' expects images [N, C, H, W], got {tuple(images.shape)}"
        )
    n, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * PADDING + 1, (2, n, 1))
    across = torch.arange(width).expand(n, width)
    across = torch.where(torch.rand(n, 1) < 0.5, across.flip(1), across)
    rows, columns = down + torch.arange(height), right + across
    bordered = functional.pad(images, [PADDING] * 4)
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return bordered[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS: dict[str, Augmentation] = {"crop_flip": crop_and_flip}
"""By the names that recipes and configurations know them by."""
