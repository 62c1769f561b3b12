"""Classifiers of torchvision and timm by their own names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from causalprune.errors import InvalidArgumentError, MissingDependencyError, UnknownNameError

__all__ = ["LIBRARIES", "LibraryNetwork", "imported", "library_network"]

LIBRARIES = ("torchvision", "timm")
"""Looked through in this order when a name comes without its library."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET_SHAPE = (3, 224, 224)
_TORCHVISION_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True)
class LibraryNetwork:
    """A classifier that another library builds.

    Attributes
    ----------
    name : str
        With its library: ``"torchvision:resnet50"``.
    build : callable
        ``(n_classes or None) -> nn.Module`` with drawn weights; None: as many as the library's.
    input_shape : tuple of int
        Channels, height and width of the images its published weights take.
    mean, std : tuple of float
        Per channel, of pixels in [0, 1], that those weights were trained with.
    auxiliary : tuple of str
        Modules that only training calls, for losses of their own (Inception v3, GoogLeNet);
        None in their place takes them away.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    auxiliary: tuple[str, ...] = ()


def library_network(name: str) -> LibraryNetwork | None:
    """Look a classifier of torchvision or timm up; nothing is downloaded.

    Parameters
    ----------
    name : str
        ``"torchvision:resnet50"``, ``"timm:vit_tiny_patch16_224"``, or the bare name: then
        torchvision's, where both libraries have one.

    Returns
    -------
    LibraryNetwork or None
        ``None`` for a bare name that no library here has.

    Raises
    ------
    UnknownNameError
        If the library that is named has no such classifier.
    MissingDependencyError
        If the library that is named is not installed, or was built for another torch.

    Examples
    --------
    >>> library_network("perceptron-of-mine") is None
    True
    """
    library, colon, rest = name.partition(":")
    if colon:
        models = _imported(library)
        found = _READERS[library](models, rest)
        if found is None:
            close = _close(models, library, rest)
            raise UnknownNameError(f"{library} classifier", rest, close)
        return found
    for library in LIBRARIES:
        try:
            found = _READERS[library](_imported(library), name)
        except MissingDependencyError:
            continue  # a name that nobody asked this library for
        if found is not None:
            return found
    return None


def imported(module: str, use: str) -> Any:
    """Import a library that need not be there.

    Parameters
    ----------
    module : str
        The library, or a module in it.
    use : str
        What needs it, for the error.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or was built for another torch.
    """
    library = module.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own imports
            return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{use} needs {library}: pip install {library}") from error
    except RuntimeError as error:
        # A torchvision whose operators were built for another torch cannot even be imported.
        raise MissingDependencyError(
            f"{use}: importing {library} failed ({error}); install the "
            f"{library} that was built for torch {torch.__version__}"
        ) from error


def _imported(library: str) -> Any:
    module = "torchvision.models" if library == "torchvision" else library
    return imported(module, f"network '{library}:...'")


def _of_torchvision(models: Any, name: str) -> LibraryNetwork | None:
    if name not in models.list_models(module=models):
        return None
    published = models.get_model_weights(name).DEFAULT.transforms()
    # Those of vit_h_14 are for larger images than the network it builds without them.
    side = 224 if name.startswith("vit_") else int(published.crop_size[0])
    auxiliary = _TORCHVISION_AUXILIARY.get(name, ())

    def build(n_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
        if auxiliary:
            options["init_weights"] = False  # theirs takes half a minute, and warns
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    mean, std = tuple(published.mean), tuple(published.std)
    return LibraryNetwork(f"torchvision:{name}", build, (3, side, side), mean, std, auxiliary)


def _of_timm(timm: Any, name: str) -> LibraryNetwork | None:
    if not timm.is_model(name):
        return None
    published = timm.get_pretrained_cfg(name)

    def build(n_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    channels, height, width = published.input_size if published else _IMAGENET_SHAPE
    mean, std = (published.mean, published.std) if published else (_IMAGENET_MEAN, _IMAGENET_STD)
    shape = (int(channels), int(height), int(width))
    return LibraryNetwork(f"timm:{name}", build, shape, tuple(mean), tuple(std))


_READERS: dict[str, Callable[[Any, str], LibraryNetwork | None]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}


def _close(library: Any, kind: str, name: str) -> list[str]:
    """Names that look like the one asked for: all would fill a screen."""
    from difflib import get_close_matches

    if not name:
        raise InvalidArgumentError(f"network: expected '{kind}:<name>', got no name")
    known = library.list_models(module=library) if kind == "torchvision" else library.list_models()
    return get_close_matches(name, known, 5, 0.4) or [f"the names of {kind}.list_models()"]
