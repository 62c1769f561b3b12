"""The residual networks for CIFAR of He et al. (2016), with shortcuts that pad."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from causalprune.errors import InvalidArgumentError

__all__ = ["CIFAR_DEPTHS", "CifarBlock", "CifarResNet", "cifar_resnet"]

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
"""Depths of section 4.2: 6n + 2 layers."""


class CifarBlock(nn.Module):
    """Basic block; where the shape changes, the shortcut subsamples and pads with zero channels.

    That is option A of He et al. (2016, section 3.3): shortcuts have no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = outputs // 4 if stride != 1 or inputs != outputs else 0

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            sides = (0, 0, 0, 0, self.padding, self.padding)
            x = functional.pad(x[:, :, ::2, ::2], sides, "constant", 0)
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-(6n + 2): a stem of 16 channels, three stages of n blocks with 16, 32, 64 channels.

    Parameters
    ----------
    blocks : int
        n, blocks a stage.
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Notes
    -----
    Source: He, Zhang, Ren and Sun (2016), section 4.2. The names in the state dictionary are
    those of the weights at github.com/akamaster/pytorch_resnet_cifar10.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in CifarResNet(3).parameters())
    269722
    """

    def __init__(self, blocks: int, in_channels: int = 3, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, 32, 32] to logits [N, n_classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.avg_pool2d(x, x.size()[3])
        logits: Tensor = self.linear(x.view(x.size(0), -1))
        return logits


def cifar_resnet(depth: int, in_channels: int = 3, n_classes: int = 10) -> CifarResNet:
    """Build a CIFAR ResNet by its depth, with weights drawn as He et al. draw them.

    Parameters
    ----------
    depth : int
        6n + 2 for a whole n: 20, 32, 44, 56 or 110 in the paper.
    in_channels : int
        Channels of the image.
    n_classes : int
        Number of logits.

    Returns
    -------
    nn.Module
        Takes ``[N, in_channels, 32, 32]`` float32, returns logits ``[N, n_classes]``.

    Raises
    ------
    InvalidArgumentError
        If `depth` is not 6n + 2 for an n of at least 1.

    Examples
    --------
    >>> len([m for m in cifar_resnet(20).modules() if isinstance(m, nn.Conv2d)])
    19
    """
    if depth < 8 or depth % 6 != 2:
        raise InvalidArgumentError(f"depth: expected 6n + 2 such as 20, 32 or 56, got {depth}")
    network = CifarResNet((depth - 2) // 6, in_channels, n_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    first = CifarBlock(inputs, outputs, outputs // inputs)
    return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
