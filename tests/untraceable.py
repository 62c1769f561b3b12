"""Networks that torch.fx's symbolic tracer cannot trace; input 1 x 12 x 12."""

from __future__ import annotations

from typing import Any

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sized(nn.Module):
    """Another network behind a test on the size of its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        for size in range(x.shape[2] // 8):
            x = x + 0.5 * size
        return self.inner(x)


class Loops(nn.Module):
    """Loops over sizes, functions in place, a split and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        self.conv3 = nn.Conv2d(6, 4, 1, bias=False)
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.register_buffer("shift", torch.randn(3))
        self.fc1 = nn.Linear(8, 5)
        self.norm = nn.LayerNorm(5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv1(x)))
        while x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        first = self.conv2(x)
        first += self.conv3(x) * self.scale
        F.relu(first, inplace=True)
        second = torch.tanh_(self.conv3.weight.mean() + F.hardswish(first))
        both = torch.cat([first, second], 1).mean((2, 3))
        parts = [part.view(part.size(0), -1) for part in both.chunk(4, 1)]
        x = F.gelu(self.fc1(F.dropout(torch.cat(parts, 1), 0.5, self.training)))
        return self.fc2(self.norm(x)) + self.shift + torch.tensor([0.5, 0.0, -0.5])


class HuggingFaceLike(nn.Module):
    """Keyword arguments handed through, type tests, and a frozen stem."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down = nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 6)

        def forward(self, states: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(states, Tensor):
                raise TypeError("expected a tensor")
            return (states + self.down(self.act(self.up(states))), *args)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.layers = nn.ModuleList([self.Layer(), self.Layer()])
        self.classifier = nn.Linear(6, 3)

    def forward(self, pixels: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if pixels.dim() != 4 or kwargs.get("output_attentions"):
            raise ValueError("expected images")
        with torch.no_grad():
            states = self.patches(pixels)
        batch, channels, *grid = states.shape
        states = states.reshape(batch, channels, -1).permute(0, 2, 1)
        assert states.shape[1] == grid[0] * grid[1]
        for layer in self.layers:
            states = layer(states, mask, **kwargs)[0]
        return self.classifier(states[:, 0] - states[:, 1:].mean(1))


class Attention(nn.Module):
    """Tokens, self-attention, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 4:
            x = F.pad(x, (0, 4 - x.shape[-1] % 4))
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(F.relu(self.up(x))).mean(1)


class OnValues(nn.Module):
    """Branches on a value: no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4, 5)
        self.tanh = nn.Tanh()
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        x = self.pool(self.drop(self.act(self.bn1(self.conv1(x)))))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return F.log_softmax(self.fc2(self.tanh(self.fc1(x.mean((2, 3))))), 1)


EXPORTABLE = {
    **{f"sized {name}": (lambda make=make: Sized(make())) for name, make in networks.ALL.items()},
    "loops": lambda: networks.settle(Loops()),
    "huggingface": lambda: networks.settle(HuggingFaceLike()),
    "attention": lambda: networks.settle(Attention()),
}


def images(name: str, n: int) -> Tensor:
    """Images [n, 1, H, H], fresh every time, of the size that the network takes."""
    size = 16 if name.startswith("sized") else 12
    return torch.randn(n, 1, size, size)
