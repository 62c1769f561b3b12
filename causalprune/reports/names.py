"""Networks and data sets by the names that a reader knows."""

from __future__ import annotations

from typing import Any

NETWORK_NAMES = {"lenet5": "LeNet-5", "lenet300": "LeNet-300-100", "debbi": "Debbi"} | {
    f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 20, 32, 34, 50, 56)
}
DATA_NAMES = {"mnist": "MNIST", "cifar-subset": "a CIFAR-10 subset", "cifar10": "CIFAR-10"}
COUNTED = {"macs": "MACs"}


def network_name(network: Any) -> str:
    """Name a network: ``"LeNet-5"``."""
    return NETWORK_NAMES.get(str(network), str(network))


def place_name(network: Any, data: Any) -> str:
    """Name a network and its data set: ``"LeNet-5 on MNIST"``."""
    name = network_name(network)
    return f"{name} on {DATA_NAMES.get(str(data), str(data))}" if data is not None else name
