"""Captum's methods on a layer's channels: what they compute beside path effects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from causalprune.measures.captum_peers import CAPTUM_PEERS, captum_peers
from causalprune.measures.convolution_layers import ConvolutionLayer
from causalprune.measures.path_timings import path_timings
from causalprune.ops import path_effects

pytest.importorskip("captum")


def test_ablation_is_the_effect_on_units_with_the_sign_turned() -> None:
    x, weight, bias = torch.randn(3, 7, 5, 6), torch.randn(4, 7, 3, 3), torch.randn(4)
    pre = F.conv2d(x, weight, bias, padding=1)
    grad = torch.randn(pre.shape)
    peer = captum_peers(x, weight, bias, grad, 1)["FeatureAblation"]
    with torch.no_grad():
        found = peer.run()
    assert found.shape == x.shape
    assert peer.scale == 8 / 6  # four channels, the rest as one, and the plain pass
    unit = path_effects(x, weight, pre, grad, padding=1).unit
    torch.testing.assert_close(-found[:, :4, 0, 0].double(), unit[:, :4], rtol=1e-3, atol=1e-3)


def test_conductance_adds_up() -> None:
    # Nothing is rectified away, so the gradient is the same at every step.
    x, weight, bias = torch.rand(3, 7, 5, 6), torch.rand(4, 7, 3, 3), torch.ones(4)
    grad = torch.rand(3, 4, 5, 6)
    peer = captum_peers(x, weight, bias, grad, 1)["LayerConductance"]
    assert peer.scale == 51 / 6
    with torch.no_grad():
        found = peer.run().flatten(1).sum(1).float()
    change = ((F.conv2d(x, weight, bias, padding=1) - 1) * grad).flatten(1).sum(1)
    # Captum's steps lie between the first and the last of six Gauss-Legendre nodes.
    torch.testing.assert_close(found / change, torch.full((3,), 0.93247), rtol=1e-3, atol=0.0)


def test_only_when_asked() -> None:
    layer = ConvolutionLayer("small", 5, 4, 6, 3)
    (without,) = path_timings([layer], [2], seconds=0.0)
    (beside,) = path_timings([layer], [2], seconds=0.0, peers=True)
    assert not without.captum_ms and not without.skipped
    assert set(beside.captum_ms) == set(CAPTUM_PEERS) and beside.units == 5
    assert min(beside.captum_ms.values()) > 0
