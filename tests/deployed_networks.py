"""Networks whose pickles refer to torch and to this file only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """ResNet-like: a stem, and a block with a projection as its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
        self.conv1, self.bn1 = nn.Conv2d(5, 7, 3, 2, 1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 7, 3, 1, 1, bias=False), nn.BatchNorm2d(7)
        self.shortcut = nn.Sequential(nn.Conv2d(5, 7, 1, 2, bias=False), nn.BatchNorm2d(7))
        self.relu, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(3)
        self.head = nn.Linear(63, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.head(torch.flatten(self.pool(self.relu(y)), 1))


class Inverted(nn.Module):
    """MobileNet-like: expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.expand = nn.Sequential(nn.Conv2d(6, 11, 1, bias=False), nn.BatchNorm2d(11))
        self.depthwise = nn.Sequential(
            nn.Conv2d(11, 11, 3, 1, 1, groups=11, bias=False), nn.BatchNorm2d(11), nn.Hardswish()
        )
        self.down, self.up = nn.Conv2d(11, 4, 1), nn.Conv2d(4, 11, 1)
        self.project = nn.Sequential(nn.Conv2d(11, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = self.depthwise(F.relu6(self.expand(x)))
        y = y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Layer(nn.Module):
    """An encoder layer of a vision transformer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 12, 5, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.places = nn.Parameter(torch.zeros(1, 17, 12))
        self.layers = nn.Sequential(Layer(12, 3, 10), Layer(12, 4, 7))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])
