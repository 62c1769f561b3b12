"""Networks and images named by a text, as the command line takes them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.experiments.datasets import Standard, load_data
from causalprune.experiments.library_networks import LIBRARIES, library_network
from causalprune.experiments.networks import build_network, network_spec, registered_networks
from causalprune.experiments.weights import load_weights

__all__ = [
    "Images",
    "NetworkSource",
    "callable_from",
    "file_of_images",
    "images_from",
    "is_file_of_images",
    "model_from",
    "network_source",
]

CALIBRATION_IMAGES = 256
CLASSES = 10

Images = tuple[Tensor, Tensor] | Tensor


@dataclass(frozen=True)
class NetworkSource:
    """Where a network comes from, and what images it takes as far as that is known.

    Attributes
    ----------
    name : str
        The text that named it; torchvision's and timm's with their library.
    build : callable
        ``(n_classes or None) -> nn.Module``; None: the source's own number of classes.
    input_shape : tuple of int or None
        Channels, height and width.
    standard : pair of tuple of float, or None
        Mean and standard deviation per channel, of pixels in [0, 1], that published weights
        were trained with.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    input_shape: tuple[int, int, int] | None = None
    standard: Standard | None = None


def network_source(spec: str) -> NetworkSource:
    """Look up what a text names; nothing is built yet.

    Parameters
    ----------
    spec : str
        See :func:`model_from`.

    Raises
    ------
    UnknownNameError, InvalidArgumentError, MissingDependencyError
        See :func:`model_from`.

    Examples
    --------
    >>> network_source("resnet20").input_shape
    (3, 32, 32)
    """
    if spec in registered_networks():
        known = network_spec(spec)

        def build(n_classes: int | None) -> nn.Module:
            return build_network(spec, CLASSES if n_classes is None else n_classes)

        return NetworkSource(spec, build, known.input_shape)
    before, colon, _ = spec.partition(":")
    if colon and before not in LIBRARIES:
        return NetworkSource(spec, lambda n_classes: _called(spec))
    found = library_network(spec)
    if found is None:
        ways = ("<module>:<callable>", "<file.py>:<callable>", *(f"{n}:<name>" for n in LIBRARIES))
        raise UnknownNameError("network", spec, (*registered_networks(), *ways))
    return NetworkSource(found.name, found.build, found.input_shape, (found.mean, found.std))


def model_from(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    n_classes: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build the network that a text names.

    Parameters
    ----------
    spec : str
        A registered network (``"lenet5"``, ``"resnet20"``); a classifier of torchvision or timm
        (``"resnet50"``; ``"timm:resnet50"`` where both have the name, else torchvision's is
        taken); ``"package.module:callable"``; or ``"path/to/file.py:callable"``. The callable is
        called without arguments and returns the network; it may also be a network itself. Its
        module is run, as any import is. Nothing is downloaded.
    weights : path-like, optional
        State dictionary for :func:`causalprune.experiments.weights.load_weights`.
    n_classes : int, optional
        Logits; default: 10 of a registered network, else as many as the library's own.
    seed : int
        For weights that are drawn; torch's global generator is left as it was.

    Raises
    ------
    UnknownNameError
        If there is no network of that name.
    InvalidArgumentError
        If the module cannot be imported, lacks the name, or gives no network.
    MissingDependencyError
        If the library that is named is not installed.
    DataError
        If the weights do not fit.

    Examples
    --------
    >>> model_from("lenet300", n_classes=3)[-1].out_features
    3
    >>> model_from("causalprune.experiments:lenet5")[0]
    Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = network_source(spec).build(n_classes)
    if weights is not None:
        load_weights(model, weights)
    return model


def images_from(
    spec: str,
    *,
    model: str = "",
    input_shape: tuple[int, int, int] | None = None,
    max_images: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Images:
    """Read the images that a text names.

    Parameters
    ----------
    spec : str
        ``"digits"``, ``"mnist"``, another registered data set, or a folder with one folder of
        images a class: the calibration images of :func:`causalprune.experiments.load_data`,
        brought to `input_shape` and standardised with the training images' mean and spread.
        An ``.npz`` with ``inputs`` and ``targets``, or a ``.pt`` of two tensors: taken as they
        are; without targets where the file has none.
    model : str
        The network's own text; one of a registry or library tells `input_shape`, and one of a
        library the mean and spread that its published weights were trained with.
    input_shape : tuple of int, optional
        Channels, height and width.
    max_images : int, optional
        Default: 256 of a data set, all of a file.
    root : path-like, optional
        Where the files of a data set are.

    Returns
    -------
    pair of Tensor, or Tensor
        Inputs [N, ...] and targets [N], or inputs alone.

    Raises
    ------
    DataError
        If the file is missing, broken, or holds something else.
    InvalidArgumentError
        If a data set is to be brought to a shape that is not known.

    Examples
    --------
    >>> inputs, targets = images_from("digits", model="lenet5", max_images=20)
    >>> tuple(inputs.shape), tuple(targets.shape)
    ((20, 1, 28, 28), (20,))
    """
    if is_file_of_images(spec):
        found = file_of_images(spec)
        if max_images is None:
            return found
        return found[:max_images] if isinstance(found, Tensor) else _first(found, max_images)
    source = network_source(model) if model else None
    if input_shape is None and source is not None:
        input_shape = source.input_shape
    if input_shape is None:
        raise InvalidArgumentError(
            f"input_shape: expected channels, height and width that the network takes, to bring "
            f"data set {spec!r} to; got none"
        )
    count = CALIBRATION_IMAGES if max_images is None else max_images
    splits = load_data(
        spec,
        root=root,
        input_shape=input_shape,
        calibration=max(2, count),
        standard=None if source is None else source.standard,
    )
    return _first(splits.calibration, count)


def is_file_of_images(spec: str) -> bool:
    """Tell whether a text names a file of tensors by its suffix: .npz, .pt or .pth."""
    return Path(spec).suffix in _READERS and not Path(spec).is_dir()


def file_of_images(spec: str, argument: str = "data") -> Images:
    """Read an ``.npz`` or ``.pt`` of ``inputs`` and ``targets``, as they are.

    Parameters
    ----------
    spec : str
        The file.
    argument : str
        What an error calls it.

    Raises
    ------
    DataError
        If the file is missing, broken, or holds something else.
    """
    if not Path(spec).is_file():
        raise DataError(f"{argument}: no such file {spec!r}")
    if Path(spec).suffix not in _READERS:
        raise DataError(f"{argument}: expected a file .npz or .pt, got {spec!r}")
    return _READERS[Path(spec).suffix](Path(spec))


def _first(images: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    return images[0][:n], images[1][:n]


def callable_from(spec: str, argument: str = "model") -> Callable[..., Any]:
    """Import what ``package.module:callable`` or ``file.py:callable`` names.

    Parameters
    ----------
    spec : str
        Module or file, a colon, and the name in it, with dots for what lies deeper.
    argument : str
        What an error calls it.

    Raises
    ------
    InvalidArgumentError
        If the module cannot be imported, or has no callable of that name.

    Examples
    --------
    >>> callable_from("math:sqrt")(9.0)
    3.0
    """
    where, _, name = spec.rpartition(":")
    try:
        is_file = where.endswith(".py")
        found: Any = (
            _module_of_file(Path(where), argument) if is_file else _imported(where, argument)
        )
    except InvalidArgumentError:
        raise
    except Exception as error:  # a module may fail in any way while it is run
        raise InvalidArgumentError(
            f"{argument}: importing {where!r} failed ({type(error).__name__}: {error})"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None or not callable(found):
        raise InvalidArgumentError(
            f"{argument}: expected a callable {name!r} in {where!r}, got none"
        )
    called: Callable[..., Any] = found
    return called


def _called(spec: str) -> nn.Module:
    found: Any = callable_from(spec)
    if not isinstance(found, nn.Module):
        try:
            found = found()
        except Exception as error:  # it is the user's code
            raise InvalidArgumentError(
                f"model: calling {spec!r} without arguments failed "
                f"({type(error).__name__}: {error})"
            ) from error
    if not isinstance(found, nn.Module):
        raise InvalidArgumentError(
            f"model: expected a torch.nn.Module from {spec!r}, got {type(found).__name__}"
        )
    return found


def _imported(name: str, argument: str) -> Any:
    if not name:
        raise InvalidArgumentError(f"{argument}: expected <module>:<callable>, got no module")
    return importlib.import_module(name)


def _module_of_file(path: Path, argument: str) -> Any:
    if not path.is_file():
        raise InvalidArgumentError(f"{argument}: no such file {str(path)!r}")
    # Under a name of its own, so that it hides no installed module.
    name = f"causalprune_model_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InvalidArgumentError(f"{argument}: expected a Python file, got {str(path)!r}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _from_npz(path: Path) -> Images:
    try:
        # Opened here, because np.load leaks the handle of a broken archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            found = {name: archive[name] for name in ("inputs", "targets") if name in names}
        if "inputs" not in found:
            raise DataError(f"{path}: expected arrays 'inputs' and 'targets', got {names}")
        inputs = torch.from_numpy(found["inputs"])
        targets = torch.from_numpy(found["targets"]) if "targets" in found else None
    except DataError:
        raise
    except Exception as error:  # zip, header and dtype go wrong in many ways
        raise DataError(f"{path}: not readable as .npz ({error})") from error
    return inputs if targets is None else (inputs, targets)


def _from_pt(path: Path) -> Images:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler trips over bad bytes in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not readable as tensors ({reason})") from error
    if isinstance(content, Mapping) and "inputs" in content:
        content = [content[name] for name in ("inputs", "targets") if name in content]
    parts = [content] if isinstance(content, Tensor) else content
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Tensor) for p in parts):
        parts = []
    if len(parts) == 1:
        return parts[0]
    if len(parts) != 2:
        raise DataError(f"{path}: expected two tensors, inputs and targets, got other content")
    return parts[0], parts[1]


_READERS: Mapping[str, Callable[[Path], Images]] = {
    ".npz": _from_npz,
    ".pt": _from_pt,
    ".pth": _from_pt,
}
