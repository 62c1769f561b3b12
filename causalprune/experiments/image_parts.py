"""Images by what pruning may do with them: calibrate, guard, retrain, judge."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.datasets import Batch, load_data
from causalprune.experiments.model_specs import (
    Images,
    NetworkSource,
    file_of_images,
    is_file_of_images,
)
from causalprune.experiments.sampling import stratified_split
from causalprune.pruning.retraining import SgdRecipe

__all__ = ["CALIBRATION_IMAGES", "ImageParts", "TrainOn", "image_parts"]

CALIBRATION_IMAGES = 512

GUARD_IMAGES = 1000
"""So many that one image more or less does not decide whether accuracy fell by a point."""


@dataclass(frozen=True)
class ImageParts:
    """Images of one source in parts that have no image in common.

    Attributes
    ----------
    calibration : Tensor, or pair of Tensor
        Inputs [N, ...], with targets [N] where they are known: for scores and compensation.
    held_out : pair of Tensor or None
        For the guard of a progressive run.
    train : pair of Tensor or None
        What may be trained on: the calibration images and all others but the two parts beside.
    test : pair of Tensor or None
        For the final judgement alone.
    """

    calibration: Images
    held_out: Batch | None = None
    train: Batch | None = None
    test: Batch | None = None


@dataclass(frozen=True, eq=False)
class TrainOn:
    """A function that trains a network in place, by a recipe on images of its own.

    Attributes
    ----------
    recipe : SgdRecipe
    images : pair of Tensor
        Inputs [N, ...] and targets [N].
    """

    recipe: SgdRecipe
    images: Batch

    def __call__(self, model: nn.Module) -> None:
        """Train `model`."""
        self.recipe.train(model, self.images)


def image_parts(
    spec: str,
    network: NetworkSource,
    *,
    input_shape: tuple[int, int, int] | None = None,
    n_calibration: int | None = None,
    held_out: int | str | None = None,
    guarded: bool = False,
    test: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> ImageParts:
    """Read the images that a text names and part them; always the same way.

    Parameters
    ----------
    spec : str
        A data set for :func:`causalprune.experiments.load_data`, whose training part gives
        calibration, held-out and training images, and whose test part the test images; or an
        ``.npz`` or ``.pt`` file of inputs and targets, taken as they are, without a test part.
    network : NetworkSource
        Tells the shape of the images, and the mean and spread its published weights want.
    input_shape : tuple of int, optional
        Channels, height and width, where the network does not tell.
    n_calibration : int, optional
        Default: 512 of a data set, all of a file.
    held_out : int or str, optional
        So many further images, classes in proportion; or a file of them. Default: none, but
        where the run is `guarded`.
    guarded : bool
        Whether held-out accuracy decides what may go: of a data set 1000 further training images
        are held out then, or half of what it has.
    test : str, optional
        A file of test images; they take the place of the data set's.
    root : path-like, optional
        Where the files of a data set are.

    Raises
    ------
    DataError
        If a file is missing or broken, or there are too few images.
    InvalidArgumentError
        If a number is out of range, or the shape of a data set's images is not known.

    Examples
    --------
    >>> from causalprune.experiments.model_specs import network_source
    >>> parts = image_parts("digits", network_source("lenet5"), n_calibration=64, held_out=30)
    >>> len(parts.calibration[1]), len(parts.held_out[1]), len(parts.train[1])
    (64, 30, 1317)
    """
    if n_calibration is not None and n_calibration < 2:
        raise InvalidArgumentError(f"images: expected at least 2, got {n_calibration}")
    if isinstance(held_out, int) and held_out < 1:
        raise InvalidArgumentError(f"held_out: expected at least 1, got {held_out}")
    if is_file_of_images(spec):
        parts = _of_file(spec, n_calibration, held_out if isinstance(held_out, int) else 0)
    else:
        parts = _of_data_set(spec, network, input_shape, n_calibration, held_out, guarded, root)
    guard = _labelled(held_out, "held_out") if isinstance(held_out, str) else parts.held_out
    judged = _labelled(test, "test") if test is not None else parts.test
    return ImageParts(parts.calibration, guard, parts.train, judged)


def _of_data_set(
    spec: str,
    network: NetworkSource,
    input_shape: tuple[int, int, int] | None,
    n_calibration: int | None,
    held_out: int | str | None,
    guarded: bool,
    root: str | os.PathLike[str] | None,
) -> ImageParts:
    shape = input_shape or network.input_shape
    if shape is None:
        raise InvalidArgumentError(
            f"input_shape: expected channels, height and width that {network.name!r} takes, to "
            f"bring data set {spec!r} to; got none"
        )
    splits = load_data(
        spec,
        root=root,
        input_shape=shape,
        calibration=n_calibration or CALIBRATION_IMAGES,
        standard=network.standard,
    )
    rest, guard = splits.train, None
    if guarded and held_out is None:
        held_out = min(GUARD_IMAGES, len(rest[1]) // 2) or None
    if isinstance(held_out, int):
        others, chosen = stratified_split(rest[1], held_out)
        guard = rest[0][chosen], rest[1][chosen]
        rest = rest[0][others], rest[1][others]
    train = torch.cat([splits.calibration[0], rest[0]]), torch.cat([splits.calibration[1], rest[1]])
    return ImageParts(splits.calibration, guard, train, splits.test)


def _of_file(spec: str, n_calibration: int | None, n_held_out: int) -> ImageParts:
    images = file_of_images(spec)
    if isinstance(images, Tensor):
        if n_held_out:
            raise DataError(f"held_out: {spec} has no targets, so no accuracy can be held out")
        return ImageParts(images[:n_calibration])
    inputs, targets = images
    if len(inputs) != len(targets):
        raise DataError(f"{spec}: {len(inputs)} inputs and {len(targets)} targets")
    guard = None
    if n_held_out:
        rest, chosen = stratified_split(targets, n_held_out)
        guard = inputs[chosen], targets[chosen]
        inputs, targets = inputs[rest], targets[rest]
    calibration = inputs[:n_calibration], targets[:n_calibration]
    return ImageParts(calibration, guard, (inputs, targets))


def _labelled(spec: str, argument: str) -> Batch:
    images = file_of_images(spec, argument)
    if isinstance(images, Tensor):
        raise DataError(f"{argument}: {Path(spec)} has no targets; expected inputs and targets")
    if len(images[0]) != len(images[1]) or not len(images[1]):
        raise DataError(f"{argument}: {spec}: {len(images[0])} inputs and {len(images[1])} targets")
    return images
