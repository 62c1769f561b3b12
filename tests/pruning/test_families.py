"""A sample of timm's networks: each prunes to what the masked one computes, in both modes."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from torch import Tensor, nn

from causalprune.graph import UnitGraph, capture, removed
from causalprune.pruning import Plan, apply
from causalprune.pruning.footprint import sizes_of
from causalprune.scoring import fingerprint

timm = pytest.importorskip("timm")

# Name: how many of the units that can be intervened on can also be removed for good.
SAMPLE = {
    "resnet10t": 1.0,
    "convnext_atto": 1.0,
    "tinynet_e": 1.0,
    "mobilenetv3_small_050": 1.0,
    "regnety_002": 1.0,
    "repvgg_a0": 1.0,
    "ghostnet_050": 1.0,
    "vit_tiny_patch16_224": 1.0,
    "mixer_s32_224": 1.0,
}


def _built(name: str) -> nn.Module:
    sizes = {"img_size": 64} if name.endswith("_224") else {}
    model = timm.create_model(name, pretrained=False, num_classes=7, drop_rate=0.0, **sizes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1  # two values behind each of many layers magnify rounding errors
    return networks.settle(model).double()


def _plan(model: nn.Module, graph: UnitGraph, images: Tensor) -> Plan:
    remove = {}
    for group in graph.removable:
        n_gone = min(group.n_units - 1, max(1, group.n_units // 3))
        remove[group.name] = tuple(sorted(torch.randperm(group.n_units)[:n_gone].tolist()))
    sizes = sizes_of(model, graph, images[:1])
    after = sizes.without([(name, unit) for name, units in remove.items() for unit in units])
    return Plan(
        remove={name: units for name, units in remove.items() if units},
        ratio=0.3,
        achieved_ratio=0.3,
        reached=True,
        of="units",
        scope="layer",
        method="random",
        before=sizes.whole,
        after=after,
        table=(),
        fingerprint=fingerprint(model),
        example_shape=tuple(images[:1].shape),
        example_dtype="float64",
    )


@pytest.mark.parametrize("name", SAMPLE)
def test_timm(name: str) -> None:
    model = _built(name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = capture(model, images)
    n_removable = sum(group.n_units for group in graph.removable)
    assert n_removable >= SAMPLE[name] * sum(group.n_units for group in graph.groups) > 0
    assert all(group.surgery or group in graph.removable for group in graph.groups)
    assert all(graph.refused.values())
    decided = _plan(model, graph, images)
    small = apply(model, decided)
    assert decided.after.parameters == sum(p.numel() for p in small.parameters())
    assert decided.after.parameters < 0.8 * decided.before.parameters
    masked = copy.deepcopy(model)
    for training in (False, True):
        masked.train(training), small.train(training)
        with torch.no_grad(), removed(masked, graph, decided.remove):
            expected = masked(images)
        torch.testing.assert_close(small(images), expected, rtol=1e-9, atol=1e-9)
