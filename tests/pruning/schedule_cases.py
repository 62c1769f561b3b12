"""What the tests of schedules share."""

from __future__ import annotations

import warnings
from typing import Any

import networks
import torch
from torch import Tensor, nn

from causalprune.errors import TargetNotReachedWarning
from causalprune.pruning import Trace, prune

X = networks.images(45, seed=7)


def labelled(model: nn.Module, x: Tensor = X) -> tuple[Tensor, Tensor]:
    """Images with the classes that the network gives them: it is right on all."""
    with torch.no_grad():
        return x, model(x).argmax(1)


def traced(model: nn.Module, data: Any, *args: Any, **options: Any) -> tuple[nn.Module, Trace]:
    """prune() with its trace, whether or not it reaches its target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetNotReachedWarning)
        return prune(model, data, *args, return_trace=True, **options)
