"""What the tests of plans share."""

from __future__ import annotations

import functools
from dataclasses import replace

import networks
import torch
from torch import Tensor, nn

from causalprune.scoring import Scores, score

X = networks.images(3)


class Wide(nn.Module):
    """Many small units: a residual stage, a second one, and a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 27, 3, padding=1)
        self.norm = nn.BatchNorm2d(27)
        self.inner = nn.Conv2d(27, 40, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(40, 27, 1)
        self.down = nn.Conv2d(27, 33, 3, stride=4)
        self.hidden = nn.Linear(33 * 16, 50)
        self.last = nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = self.down(x.relu()).relu().flatten(1)
        return self.last(self.hidden(x).relu())


@functools.lru_cache(maxsize=1)
def wide() -> tuple[nn.Module, Scores]:
    model = networks.settle(Wide())
    return model, with_effects(score(model, X, "random", seed=5))


def with_effects(scores: Scores) -> Scores:
    """Scores on the scale of an outcome, which are ranked by what the units save."""
    return replace(scores, frame=scores.frame.assign(effect=scores.frame["importance"]))


def chance_scores(model: nn.Module) -> Scores:
    return with_effects(score(model, X, "random", seed=int(torch.randint(99, (1,)))))
