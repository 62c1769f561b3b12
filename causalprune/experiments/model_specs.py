"""Networks and images named by a text, as the command line takes them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.experiments.datasets import load_data
from causalprune.experiments.networks import build_network, network_spec, registered_networks
from causalprune.experiments.weights import load_weights

__all__ = ["images_from", "model_from"]

CALIBRATION_IMAGES = 256

Images = tuple[Tensor, Tensor] | Tensor


def model_from(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    n_classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Build the network that a text names.

    Parameters
    ----------
    spec : str
        A registered network (``"lenet5"``); ``"package.module:callable"``; or
        ``"path/to/file.py:callable"``. The callable is called without arguments and returns the
        network; it may also be a network itself. Its module is run, as any import is.
    weights : path-like, optional
        State dictionary for :func:`causalprune.experiments.weights.load_weights`.
    n_classes : int
        Logits of a registered network.
    seed : int
        For weights that are drawn; torch's global generator is left as it was.

    Raises
    ------
    UnknownNameError
        If no network is registered under that name.
    InvalidArgumentError
        If the module cannot be imported, lacks the name, or gives no network.
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
        model = _called(spec) if ":" in spec else _registered(spec, n_classes)
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
        The network's own text; a registered one tells `input_shape`.
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
    readers: Mapping[str, Callable[[Path], Images]] = {
        ".npz": _from_npz,
        ".pt": _from_pt,
        ".pth": _from_pt,
    }
    suffix = Path(spec).suffix
    if suffix in readers and not Path(spec).is_dir():
        if not Path(spec).is_file():
            raise DataError(f"data: no such file {spec!r}")
        found = readers[suffix](Path(spec))
        if max_images is None:
            return found
        return found[:max_images] if isinstance(found, Tensor) else _first(found, max_images)
    if input_shape is None and model in registered_networks():
        input_shape = network_spec(model).input_shape
    if input_shape is None:
        raise InvalidArgumentError(
            f"input_shape: expected channels, height and width that the network takes, to bring "
            f"data set {spec!r} to; got none"
        )
    count = CALIBRATION_IMAGES if max_images is None else max_images
    splits = load_data(spec, root=root, input_shape=input_shape, calibration=max(2, count))
    return _first(splits.calibration, count)


def _first(images: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    return images[0][:n], images[1][:n]


def _registered(spec: str, n_classes: int) -> nn.Module:
    if spec not in registered_networks():
        ways = "<module>:<callable>", "<file.py>:<callable>"
        raise UnknownNameError("network", spec, (*registered_networks(), *ways))
    return build_network(spec, n_classes)


def _called(spec: str) -> nn.Module:
    where, _, name = spec.rpartition(":")
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else _imported(where)
    except InvalidArgumentError:
        raise
    except Exception as error:  # a module may fail in any way while it is run
        raise InvalidArgumentError(
            f"model: importing {where!r} failed ({type(error).__name__}: {error})"
        ) from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None or not callable(found):
        raise InvalidArgumentError(f"model: expected a callable {name!r} in {where!r}, got none")
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


def _imported(name: str) -> Any:
    if not name:
        raise InvalidArgumentError("model: expected <module>:<callable>, got no module")
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise InvalidArgumentError(f"model: no such file {str(path)!r}")
    # Under a name of its own, so that it hides no installed module.
    name = f"causalprune_model_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InvalidArgumentError(f"model: expected a Python file, got {str(path)!r}")
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
