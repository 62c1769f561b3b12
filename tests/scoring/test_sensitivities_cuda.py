"""Scores from sensitivities of a network on a GPU; they run wherever one is at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import causalprune as cp
from causalprune.errors import DataError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(17, 10, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(90, 5),
    ).eval()


@pytest.mark.parametrize("method", ["sipp", "pfp"])
def test_scores_are_those_of_the_cpu(method: str) -> None:
    x = torch.randn(12, 3, 8, 8)
    on_cpu = cp.score(network(), x, method=method).frame
    found = cp.score(network().cuda(), x.cuda(), method=method).frame
    torch.testing.assert_close(
        torch.tensor(found["importance"].to_numpy()),
        torch.tensor(on_cpu["importance"].to_numpy()),
        rtol=1e-4,
        atol=0.0,
    )


def test_sums_beyond_float32_are_refused_by_layer() -> None:
    x = torch.full((4, 3, 8, 8), 3e38, device="cuda")
    with pytest.raises(DataError, match="input of layer '0'"):
        cp.score(network().cuda(), x, method="sipp")
