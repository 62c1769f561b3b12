"""Small networks that the tests of several rooms share; deterministic from their seed."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.experiments.cifar_resnets import CifarResNet


class LeNet(nn.Module):
    """LeNet-5 in small: two convolutions, a flatten, three linear layers; input 1 x 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 6, 5)
        self.fc1 = nn.Linear(6 * 2 * 2, 10)
        self.fc2 = nn.Linear(10, 8)
        self.fc3 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x))
        return self.fc3(F.relu(self.fc2(x)))


class Block(nn.Module):
    """Basic residual block with one shared in-place ReLU, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class Residual(nn.Module):
    """A stem, an identity block and a downsampling block; input 1 x 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.block1 = Block(4, 4)
        self.block2 = Block(4, 6, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.fc(torch.flatten(self.pool(x), 1))


def resnet20(weights: Path | None = None) -> nn.Module:
    """The CIFAR ResNet-20; with seeded weights, or those of a checkpoint file (.th)."""
    model = CifarResNet(3)
    if weights is None:
        return settle(model)
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def lenet() -> nn.Module:
    """Small LeNet-5."""
    return settle(LeNet())


def residual() -> nn.Module:
    """Small residual network."""
    return settle(Residual())


def vgg() -> nn.Module:
    """A VGG-like chain with batch norm, dropout and a flatten."""
    return settle(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.0),
            nn.Linear(24, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
    )


def depthwise() -> nn.Module:
    """MobileNet-like: stem, depthwise, pointwise, global mean, classifier."""

    def unit(inputs: int, outputs: int, **options: int) -> nn.Sequential:
        kernel = 1 if "groups" not in options and inputs != 1 else 3
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))

    return settle(
        nn.Sequential(
            unit(1, 4, stride=2),
            unit(4, 4, groups=4),
            unit(4, 6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
    )


def mlp() -> nn.Module:
    """Two hidden layers on flattened images."""
    return settle(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(256, 7),
            nn.ReLU(),
            nn.Linear(7, 5),
            nn.GELU(),
            nn.Linear(5, 3),
        )
    )


ALL = {"lenet": lenet, "residual": residual, "vgg": vgg, "depthwise": depthwise, "mlp": mlp}


def images(n: int = 12, seed: int = 0) -> Tensor:
    """Images [n, 1, 16, 16] in float32."""
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def targets(n: int = 12) -> Tensor:
    """Class indices [n] in {0, 1, 2}."""
    return torch.arange(n) % 3


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor a seeded value; batch norms get statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim == 1:
                tensor.copy_(0.5 + 0.3 * noise if name.endswith("weight") else 0.2 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5 * 1.4)
    return model.eval()
