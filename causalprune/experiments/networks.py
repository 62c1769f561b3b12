"""Reference networks, and a registry for one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.experiments.cifar_resnets import CIFAR_DEPTHS, cifar_resnet
from causalprune.experiments.library_networks import LIBRARIES, LibraryNetwork, library_network
from causalprune.experiments.standardisation import Standard

__all__ = [
    "NetworkSpec",
    "build_network",
    "debbi",
    "lenet5",
    "lenet300",
    "mlp",
    "network_spec",
    "register_network",
    "registered_networks",
]

Builder = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class NetworkSpec:
    """A network of an experiment.

    Attributes
    ----------
    name : str
        Its name on the command line; torchvision's and timm's with their library.
    build : callable
        ``(in_channels, n_classes) -> nn.Module``, which returns logits in training, too.
    input_shape : tuple of int
        Channels, height and width of the images it takes.
    standard : pair of tuple of float, or None
        Mean and standard deviation per channel, of pixels in [0, 1], that published weights
        were trained with; None: those of the data set.
    left_out : tuple of str
        Modules that published weights have and this network has not: auxiliary heads.
    """

    name: str
    build: Builder
    input_shape: tuple[int, int, int]
    standard: Standard | None = None
    left_out: tuple[str, ...] = ()


_NETWORKS: dict[str, NetworkSpec] = {}


def register_network(
    name: str, *, input_shape: tuple[int, int, int]
) -> Callable[[Builder], Builder]:
    """Make a function that builds a network known under a name.

    Parameters
    ----------
    name : str
        Name for ``RunConfig.network`` and ``causalprune run --network``.
    input_shape : tuple of int
        Channels, height and width of the images; data sets are brought to this shape.

    Returns
    -------
    callable
        A decorator that returns the function unchanged. The function is called with
        ``(in_channels, n_classes)`` and returns a network with logits ``[N, n_classes]``.

    Raises
    ------
    InvalidArgumentError
        The name is taken.

    Examples
    --------
    >>> @register_network("perceptron-example", input_shape=(1, 28, 28))
    ... def perceptron(in_channels, n_classes):
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 784, n_classes))
    >>> "perceptron-example" in registered_networks()
    True
    """

    def register(build: Builder) -> Builder:
        known = _NETWORKS.get(name)
        # Re-running a module (a notebook cell, a reload) registers the same function again.
        if known is not None and known.build.__qualname__ != build.__qualname__:
            raise InvalidArgumentError(f"name: a network {name!r} is registered already")
        _NETWORKS[name] = NetworkSpec(name, build, input_shape)
        return build

    return register


def registered_networks() -> tuple[str, ...]:
    """Return the names of the registered networks, sorted."""
    return tuple(sorted(_NETWORKS))


def network_spec(name: str) -> NetworkSpec:
    """Look a network up; nothing is built or downloaded.

    Parameters
    ----------
    name : str
        A registered name; ``"torchvision:alexnet"``, ``"timm:resnet10t"``; or a library's bare
        name, then torchvision's where both have it.

    Returns
    -------
    NetworkSpec
        Inception v3 and GoogLeNet of torchvision come without their auxiliary heads, which only
        training would call: what is counted, timed and pruned is what classifies, and images may
        be smaller than the heads take.

    Raises
    ------
    UnknownNameError
        No network has this name; the message lists those there are.
    MissingDependencyError
        The library that is named is not installed, or was built for another torch.

    Examples
    --------
    >>> network_spec("resnet20").input_shape
    (3, 32, 32)
    """
    if name in _NETWORKS:
        return _NETWORKS[name]
    before, colon, _ = name.partition(":")
    found = None if colon and before not in LIBRARIES else library_network(name)
    if found is None:
        ways = (f"{library}:<name>" for library in LIBRARIES)
        raise UnknownNameError("network", name, (*_NETWORKS, *ways))
    standard = (found.mean, found.std)
    return NetworkSpec(found.name, _classifier(found), found.input_shape, standard, found.auxiliary)


def _classifier(found: LibraryNetwork) -> Builder:
    def build(in_channels: int, n_classes: int) -> nn.Module:
        model = found.build(n_classes)
        for name in found.auxiliary:  # as torchvision does it where it loads published weights
            setattr(model, name, None)
        if found.auxiliary:
            model.aux_logits = False  # type: ignore[assignment]
        return model

    return build


def build_network(name: str, n_classes: int = 10, *, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    name : str
        See :func:`network_spec`.
    n_classes : int
        Number of logits.
    seed : int, optional
        Seed of the weights; torch's global generator is left as it was. Without a seed the
        global generator is used.

    Returns
    -------
    nn.Module
        The network, on the CPU, in training mode.

    Raises
    ------
    UnknownNameError, MissingDependencyError
        See :func:`network_spec`.
    InvalidArgumentError
        ``n_classes`` is below 2.

    Examples
    --------
    >>> network = build_network("lenet5", seed=0)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    spec = network_spec(name)
    if n_classes < 2:
        raise InvalidArgumentError(f"n_classes: expected at least 2, got {n_classes}")
    if seed is None:
        return spec.build(spec.input_shape[0], n_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(spec.input_shape[0], n_classes)


@register_network("lenet5", input_shape=(1, 28, 28))
def lenet5(in_channels: int = 1, n_classes: int = 10) -> nn.Module:
    """LeNet-5 with rectifiers and max pooling: 61,706 parameters for one channel, ten classes.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Returns
    -------
    nn.Module
        Takes ``[N, in_channels, 28, 28]`` float32, returns logits ``[N, n_classes]``. Layers:
        ``conv1`` 6@5x5 (padding 2), ``conv2`` 16@5x5, each followed by 2x2 pooling, then
        ``fc1`` 120, ``fc2`` 84 and ``fc3``.

    Notes
    -----
    After LeCun, Bottou, Bengio and Haffner (1998), with today's usual activation, pooling and
    fully connected second convolution.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in lenet5().parameters())
    61706
    """
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(in_channels, 6, 5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(16 * 5 * 5, 120),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(120, 84),
        "relu4": nn.ReLU(),
        "fc3": nn.Linear(84, n_classes),
    }
    return _named(layers)


@register_network("lenet300", input_shape=(1, 28, 28))
def lenet300(in_channels: int = 1, n_classes: int = 10) -> nn.Module:
    """LeNet-300-100, a multilayer perceptron: 266,610 parameters for one channel, ten classes.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Returns
    -------
    nn.Module
        Takes ``[N, in_channels, 28, 28]`` float32, returns logits ``[N, n_classes]``. Layers:
        ``fc1`` 300, ``fc2`` 100 and ``fc3``.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in lenet300().parameters())
    266610
    """
    return _perceptron(in_channels * 28 * 28, (300, 100), n_classes)


@register_network("mlp", input_shape=(1, 28, 28))
def mlp(in_channels: int = 1, n_classes: int = 10) -> nn.Module:
    """MLP 784-500-300-10: 545,810 parameters for one channel, ten classes.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Returns
    -------
    nn.Module
        Takes ``[N, in_channels, 28, 28]`` float32, returns logits ``[N, n_classes]``. Layers:
        ``fc1`` 500, ``fc2`` 300 and ``fc3``.

    Notes
    -----
    Source: the multilayer perceptron of Ganesh, Corso and Sekeh, "MINT: Deep Network Compression
    via Mutual Information-based Neuron Trimming" (2020).

    Examples
    --------
    >>> sum(parameter.numel() for parameter in mlp().parameters())
    545810
    """
    return _perceptron(in_channels * 28 * 28, (500, 300), n_classes)


@register_network("debbi", input_shape=(1, 28, 28))
def debbi(in_channels: int = 1, n_classes: int = 10) -> nn.Module:
    """Debbi's (2021) network: 639,760 parameters for one channel, ten classes.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Returns
    -------
    nn.Module
        Takes ``[N, in_channels, 28, 28]`` float32, returns logits ``[N, n_classes]``. Layers:
        ``conv1`` 20@3x3 and ``conv2`` 50@3x3 without padding, each followed by 2x2 pooling,
        then ``fc1`` 500 and ``fc2``.

    Notes
    -----
    Source: Debbi, "Causal explanation of convolutional neural networks" (2021). Removing 13 of
    the 20 and 28 of the 50 filters leaves 281,988 parameters.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in debbi().parameters())
    639760
    """
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(in_channels, 20, 3),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 3),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(50 * 5 * 5, 500),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(500, n_classes),
    }
    return _named(layers)


def _register_cifar_resnets() -> None:
    def builder(depth: int) -> Builder:
        return lambda in_channels, n_classes: cifar_resnet(depth, in_channels, n_classes)

    for depth in CIFAR_DEPTHS:
        register_network(f"resnet{depth}", input_shape=(3, 32, 32))(builder(depth))


_register_cifar_resnets()


def _perceptron(inputs: int, hidden: tuple[int, ...], n_classes: int) -> nn.Module:
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, width in enumerate((*hidden, n_classes), 1):
        layers[f"fc{number}"] = nn.Linear(inputs, width)
        if number <= len(hidden):
            layers[f"relu{number}"] = nn.ReLU()
        inputs = width
    return _named(layers)


def _named(layers: dict[str, nn.Module]) -> nn.Module:
    # torch's own container: a pruned copy can be pickled and used without this package.
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network
