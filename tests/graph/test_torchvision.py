"""Torchvision's families: what capture finds is what surgery can take, and nothing is missing."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph import UnitGraph, capture, removed
from causalprune.measures.size import counted_attention
from causalprune.pruning import Footprint, Plan, apply
from causalprune.pruning.footprint import sizes_of
from causalprune.scoring import fingerprint

models = pytest.importorskip("torchvision.models")
StochasticDepth = pytest.importorskip("torchvision.ops").StochasticDepth
maxvit = pytest.importorskip("torchvision.models.maxvit")

PRODUCERS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)

# Name: size of the input image, constructor arguments.
SMALL: dict[str, tuple[int, dict[str, object]]] = {
    "resnet18": (33, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "wide_resnet50_2": (32, {}),
    "googlenet": (32, {"init_weights": False}),
    "densenet121": (32, {}),
    "mobilenet_v2": (33, {}),
    "mobilenet_v3_small": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnet_y_400mf": (32, {}),
    "regnet_x_400mf": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_1": (33, {}),
    "mnasnet0_5": (32, {}),
}
LARGE: dict[str, tuple[int, dict[str, object]]] = {
    "alexnet": (64, {"num_classes": 10}),
    "vgg16": (32, {"num_classes": 10}),
    "vgg16_bn": (32, {"num_classes": 10}),
    "inception_v3": (107, {"init_weights": False}),
    "efficientnet_v2_s": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (35, {}),
    "swin_v2_t": (64, {}),
    "maxvit_t": (64, {"input_size": (64, 64), "partition_size": 2}),
}
FAMILIES = {**SMALL, **LARGE}


def _image(name: str) -> Tensor:
    size = FAMILIES[name][0]
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))


@functools.lru_cache(maxsize=1)
def _model(name: str) -> nn.Module:
    build: Callable[..., nn.Module] = _maxvit_t if name == "maxvit_t" else getattr(models, name)
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
        if hasattr(module, "get_relative_positional_bias"):
            index = maxvit._get_relative_position_index(module.size, module.size)
            module.relative_position_index = index
    return networks.settle(_smaller(model, name))


def _maxvit_t(**options: object) -> nn.Module:
    """MaxViT-T, whose builder does not let windows fit a small image."""
    stem = {"stem_channels": 64, "block_channels": [64, 128, 256, 512], "head_dim": 32}
    depth = {"block_layers": [2, 2, 5, 2], "stochastic_depth_prob": 0.2}
    del options["weights"]
    return maxvit.MaxVit(**stem, **depth, **options)


def _smaller(model: nn.Module, name: str) -> nn.Module:
    """Leave out what costs the test its time and is not of the structure."""
    if name.startswith(("vgg", "alexnet")):  # the first linear layer reads 2 x 2 maps of 7 x 7
        first = next(k for k, m in enumerate(model.classifier) if isinstance(m, nn.Linear))
        linear = model.classifier[first]
        n_maps = linear.in_features // math.prod(model.avgpool.output_size)
        model.classifier[first] = nn.Linear(4 * n_maps, linear.out_features)
        model.avgpool = nn.AdaptiveAvgPool2d(2)
    if name == "inception_v3":  # the auxiliary classifier needs 299 pixels for its 5 x 5 kernel
        model.AuxLogits.conv1 = type(model.AuxLogits.conv1)(128, 768, kernel_size=1)
    return model


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
        with counted_attention(), FlopCounterMode(display=False) as counter:
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
    _check_attributes(small)
    _check_training(model, small, graph, remove, image)


def _check_attributes(model: nn.Module) -> None:
    """What a module says of its sizes is what its tensors have."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            n_outputs, n_inputs = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (
                n_outputs,
                n_inputs * module.groups,
            )
            assert f"Conv2d({n_inputs * module.groups}, {n_outputs}," in repr(module)
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)


def _check_training(
    model: nn.Module,
    small: nn.Module,
    graph: UnitGraph,
    remove: Mapping[str, Sequence[int]],
    image: Tensor,
) -> None:
    """In training mode, too: batch statistics, and what only training computes.

    In double precision and with a large epsilon: the statistics of two values behind each of 100
    layers magnify any rounding error. Random numbers are drawn for tensors of other sizes, so
    none are.
    """
    masked, small = copy.deepcopy(model).double().train(), small.double().train()
    for module in [*masked.modules(), *small.modules()]:
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    images = torch.randn(2, *image.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        with removed(masked, graph, remove):
            expected = masked(images)
        got = small(images)
    outputs = [expected] if isinstance(expected, Tensor) else list(expected)
    for value, other in zip([got] if isinstance(got, Tensor) else got, outputs, strict=True):
        assert float((value - other).abs().max()) <= 1e-9 * float(other.abs().max())
    gone: dict[str, list[Tensor]] = {}
    for name, units in remove.items():
        for item in graph.group(name).owned:
            gone.setdefault(item.layer, []).append(item.columns(units))
    for name, norm in masked.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            kept = torch.ones(norm.num_features, dtype=torch.bool)
            kept[torch.cat(gone.get(name, [torch.zeros(0, dtype=torch.int64)]))] = False
            for buffer in ("running_mean", "running_var"):
                found, whole = (getattr(n, buffer) for n in (small.get_submodule(name), norm))
                torch.testing.assert_close(found, whole[kept], rtol=1e-9, atol=1e-9)


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


def test_grouped_convolutions_lose_whole_groups() -> None:
    graph, model = _graph("resnext50_32x4d"), _model("resnext50_32x4d")
    group = graph.group("layer2.1.conv1")
    assert group.producers == ("layer2.1.conv1", "layer2.1.conv2")
    assert (group.n_units, group.surgery) == (32, "")
    assert [item.columns([3]).tolist() for item in group.owned] == [[*range(24, 32)]] * 4
    image = _image("resnext50_32x4d")
    small = apply(model, _plan(model, image, {group.name: (0, 3, 30)}))
    conv = small.get_submodule("layer2.1.conv2")
    assert (conv.groups, conv.in_channels, conv.out_channels) == (29, 232, 232)
    assert torch.equal(conv.weight[:8], model.get_submodule("layer2.1.conv2").weight[8:16])


def test_classifiers_that_only_training_uses_are_sliced_with_what_they_read() -> None:
    graph = _graph("googlenet")
    assert "eval mode" in graph.refused["aux1.fc1"]
    group = graph.group("inception4a.branch2.1.conv")
    (consumer,) = group.training
    assert consumer.layer == "aux1.conv.conv" not in graph.sites
    assert consumer.columns([0, 7]).tolist() == [192, 199]
