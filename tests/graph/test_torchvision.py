"""Torchvision's families: what capture finds is what surgery can take, and nothing is missing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph import UnitGraph, capture, removed
from causalprune.pruning import Footprint, Plan, apply
from causalprune.pruning.footprint import sizes_of
from causalprune.scoring import fingerprint

models = pytest.importorskip("torchvision.models")

PRODUCERS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)

# Name: size of the input image, constructor arguments.
SMALL: dict[str, tuple[int, dict[str, object]]] = {
    "resnet18": (33, {}),
    "resnet50": (32, {}),
    "googlenet": (32, {"init_weights": False}),
    "densenet121": (32, {}),
    "mobilenet_v2": (33, {}),
    "mobilenet_v3_small": (32, {}),
    "mobilenet_v3_large": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnet_y_400mf": (32, {}),
    "regnet_x_400mf": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_1": (33, {}),
    "mnasnet0_5": (32, {}),
}
LARGE: dict[str, tuple[int, dict[str, object]]] = {
    "alexnet": (64, {"num_classes": 10}),
    "vgg11_bn": (32, {"num_classes": 10}),
    "inception_v3": (75, {"init_weights": False}),
    "efficientnet_v2_s": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (35, {}),
    "swin_v2_t": (64, {}),
}
FAMILIES = {**SMALL, **LARGE}


def _image(name: str) -> Tensor:
    size = FAMILIES[name][0]
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))


@functools.lru_cache(maxsize=1)
def _model(name: str) -> nn.Module:
    build: Callable[..., nn.Module] = getattr(models, name)
    options = {"weights": None, **FAMILIES[name][1]}
    try:  # the weights are set here, so their own initialisation, which is slow, is left out
        with torch.device("meta"):
            model = build(**options).to_empty(device="cpu")
    except NotImplementedError:
        model = build(**options)
    for module in model.modules():
        if hasattr(module, "define_relative_position_index"):
            module.define_relative_position_index()
            module.define_relative_position_bias_table()
    return networks.settle(model)


@functools.lru_cache(maxsize=2)
def _graph(name: str, units: str = "groups") -> UnitGraph:
    return capture(_model(name), _image(name), units=units)


def _choice(graph: UnitGraph, ratio: float) -> dict[str, tuple[int, ...]]:
    """Some units of every group that can go, but never all."""
    chosen = {}
    for group in graph.removable:
        count = min(group.n_units - 1, max(1, int(ratio * group.n_units)))
        order = torch.randperm(group.n_units)[:count]
        chosen[group.name] = tuple(sorted(order.tolist()))
    return chosen


def _plan(model: nn.Module, image: Tensor, remove: Mapping[str, Sequence[int]]) -> Plan:
    size = Footprint(0, 0, 0, 0)
    return Plan(
        remove={name: tuple(units) for name, units in remove.items()},
        ratio=0.5,
        achieved_ratio=0.5,
        reached=True,
        of="units",
        scope="layer",
        method="random",
        before=size,
        after=size,
        table=(),
        fingerprint=fingerprint(model),
        example_shape=tuple(image.shape),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    """All that holds for every network, in one test because building one takes its time."""
    model, image = _model(name), _image(name)
    _check_surgery(model, image, _graph(name))
    for units in ("groups", "filters"):
        graph = _graph(name, units)
        _check_complete(model, graph)
        _check_intervention(model, image, graph)


def _check_surgery(model: nn.Module, image: Tensor, graph: UnitGraph) -> None:
    """The pruned network computes what the masked one does, and is of the size it should have."""
    remove = _choice(graph, 0.3)
    small = apply(model, _plan(model, image, remove))
    with torch.no_grad():
        whole = model(image)
        with FlopCounterMode(display=False) as counter:
            pruned = small(image)
        with removed(model, graph, remove):
            masked = model(image)
    scale = float(masked.abs().max())
    assert float((pruned - masked).abs().max()) <= 1e-5 * scale
    assert float((whole - masked).abs().max()) > 1e-2 * scale  # the units mattered
    kept = {group.name: group.n_units - len(remove[group.name]) for group in graph.removable}
    footprint = sizes_of(model, graph, image).footprint(kept)
    tensors = [*small.parameters(), *small.buffers()]
    assert footprint.parameters == sum(p.numel() for p in small.parameters())
    assert footprint.bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert footprint.macs * 2 == counter.get_total_flops()


def _check_complete(model: nn.Module, graph: UnitGraph) -> None:
    """Every layer is in a group, or refused with a reason; every consumer has a site."""
    owned = {item.layer for group in graph.groups for item in group.owned}
    layers = {n for n, module in model.named_modules() if isinstance(module, PRODUCERS)}
    assert layers <= owned | set(graph.refused)
    assert owned.isdisjoint(graph.refused)
    assert all(graph.refused.values())
    consumers = [c for group in graph.groups for c in group.consumers]
    assert {c.layer for c in consumers} == set(graph.sites)
    for group in graph.groups:
        assert group.consumers and group.n_units >= 1
        for place in (*group.owned, *group.consumers):
            every = place.columns(range(group.n_units))
            assert len(every.unique()) == len(every) > 0


def _check_intervention(model: nn.Module, image: Tensor, graph: UnitGraph) -> None:
    """Removing units changes the output, and leaves nothing behind."""
    half = {g.name: range(0, g.n_units, 2) for g in graph.groups}
    with torch.no_grad():
        before = model(image)
        with removed(model, graph, half):
            assert float((model(image) - before).abs().max()) > 1e-3 * float(before.abs().max())
        assert torch.equal(model(image), before)


@pytest.mark.parametrize(("name", "n_filters"), [("resnet18", 4800), ("mobilenet_v2", 17056)])
def test_filters_are_all_output_channels_but_the_classifiers(name: str, n_filters: int) -> None:
    graph = _graph(name, "filters")
    assert sum(group.n_units for group in graph.groups) == n_filters
    assert all(len(group.producers) == 1 for group in graph.groups)
    assert set(graph.refused.values()) == {"feeds the model's output"}
    channels = [m.out_channels for m in _model(name).modules() if isinstance(m, nn.Conv2d)]
    assert sum(channels) == n_filters


def test_attention_heads_are_units() -> None:
    graph = _graph("swin_t")
    heads = [group for group in graph.groups if group.kind == "head"]
    assert [group.n_units for group in heads] == [3, 3, 6, 6, *[12] * 6, 24, 24]
    for group in heads:
        (consumer,) = group.consumers
        assert (consumer.kind, consumer.features_per_unit) == ("attention", 32)
        assert consumer.columns([1]).tolist() == list(range(32, 64))
        assert "heads" in group.surgery
    reasons = ("normalises", "feeds the model's output", "makes the queries")
    assert all(any(r in reason for r in reasons) for reason in graph.refused.values())


def test_shuffled_channels_are_intervened_on_but_stay() -> None:
    graph = _graph("shufflenet_v2_x0_5")
    shuffled = graph.group("stage2.0.branch2.5")
    assert "view" in shuffled.surgery
    assert "stage2.0.branch2.0" in {group.name for group in graph.removable}


def test_gates_are_coupled_with_what_they_scale() -> None:
    graph = _graph("mobilenet_v3_small")
    group = graph.group("features.4.block.0.0")
    assert group.producers == ("features.4.block.0.0", "features.4.block.2.fc2")
    assert group.layers("depthwise") == ("features.4.block.1.0",)
    assert {c.layer for c in group.consumers} == {
        "features.4.block.2.fc1",
        "features.4.block.3.0",
    }


def test_classifiers_that_only_training_uses_are_named() -> None:
    assert "eval mode" in _graph("googlenet").refused["aux1.fc1"]
