"""Which slices go together: torch-pruning's dependency graph as an oracle on plain CNNs."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from causalprune.graph import UnitGroup, capture

pruning = pytest.importorskip("torch_pruning")
models = pytest.importorskip("torchvision.models")

# (layer, "out" or "in"): the channels of that side that go with a unit.
Slices = dict[tuple[str, str], set[int]]

FAMILIES = {
    "resnet18": {},
    "vgg11_bn": {"num_classes": 10},
    "densenet121": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "googlenet": {"init_weights": False, "aux_logits": False},
}


def _network(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(models, name)(weights=None, **FAMILIES[name])
    return networks.settle(model.to_empty(device="cpu"))


def _ours(group: UnitGroup, unit: int) -> Slices:
    found: Slices = {}
    for owned in group.owned:
        found[owned.layer, "out"] = set(owned.columns([unit]).tolist())
    for consumer in group.consumers:
        found[consumer.layer, "in"] = set(consumer.columns([unit]).tolist())
    return found


def _theirs(dependencies: object, names: dict[nn.Module, str], layer: nn.Module, at: int) -> Slices:
    prune = pruning.prune_linear_out_channels
    if isinstance(layer, nn.Conv2d):
        prune = pruning.prune_conv_out_channels
    found: Slices = {}
    for item, indices in dependencies.get_pruning_group(layer, prune, idxs=[at]):  # type: ignore[attr-defined]
        module = item.target.module
        if module not in names:  # torch-pruning's own nodes for reshapes and concatenations
            continue
        inwards = "in_channels" in item.handler.__name__
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        side = "in" if inwards and not depthwise else "out"
        if isinstance(module, (nn.BatchNorm2d, nn.Conv2d, nn.Linear)):
            found.setdefault((names[module], side), set()).update(indices)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_slices_go_with_every_producer(name: str) -> None:
    model, image = _network(name), torch.randn(1, 3, 64, 64)
    graph = capture(model, image)
    dependencies = pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    names = {module: layer for layer, module in model.named_modules()}
    generator = torch.Generator().manual_seed(len(name))
    for group in graph.groups:
        unit = int(torch.randint(group.n_units, (1,), generator=generator))
        for owned in group.owned:
            if owned.role == "producer":
                layer = model.get_submodule(owned.layer)
                at = int(owned.columns([unit]))
                assert _ours(group, unit) == _theirs(dependencies, names, layer, at), owned.layer
