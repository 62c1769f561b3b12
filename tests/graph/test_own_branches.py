"""Interventions that surgery cannot follow: heads, shuffles, padded shortcuts, own branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture, removed
from causalprune.pruning import apply, plan
from causalprune.scoring import score

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _without(model: nn.Module, graph: UnitGraph, group: str, units: list[int]) -> Tensor:
    with torch.no_grad(), removed(model, graph, {group: units}):
        output: Tensor = model(IMAGE)
    return output


# --- the CIFAR ResNet ----------------------------------------------------------------------------


def _resnet20(x: Tensor, model: nn.Module, edit: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The network written out; `edit` sees every normalised branch, and the sums before ReLU."""
    x = F.relu(edit("bn1", model.bn1(model.conv1(x))))
    for stage in range(1, 4):
        for block in range(3):
            name = f"layer{stage}.{block}"
            layer = model.get_submodule(name)
            out = F.relu(edit(f"{name}.bn1", layer.bn1(layer.conv1(x))))
            out = edit(f"{name}.bn2", layer.bn2(layer.conv2(out)))
            if stage > 1 and block == 0:
                width = out.shape[1] // 4
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, width, width))
            x = F.relu(edit(f"{name}.sum", out + x))
    return model.linear(x.mean((2, 3)))


def _zero(at: str, *channels: int) -> Callable[[str, Tensor], Tensor]:
    def edit(name: str, value: Tensor) -> Tensor:
        if name != at:
            return value
        value = value.clone()
        value[:, list(channels)] = 0
        return value

    return edit


def test_every_filter_of_the_cifar_resnet_is_a_unit() -> None:
    model = networks.resnet20()
    graph = capture(model, IMAGE, units="filters")
    assert sum(group.n_units for group in graph.groups) == 688
    assert {group.kind for group in graph.groups} == {"filter"}
    assert graph.refused == {"linear": "feeds the model's output"}


@pytest.mark.parametrize(
    ("layer", "branch"),
    [
        ("conv1", "bn1"),
        ("layer1.0.conv1", "layer1.0.bn1"),
        ("layer2.0.conv2", "layer2.0.bn2"),
        ("layer2.1.conv1", "layer2.1.bn1"),
        ("layer3.2.conv2", "layer3.2.bn2"),
    ],
)
def test_a_filter_is_cut_on_its_own_branch(layer: str, branch: str) -> None:
    model = networks.resnet20()
    graph = capture(model, IMAGE, units="filters")
    got = _without(model, graph, layer, [0, 5, 15])
    with torch.no_grad():
        expected = _resnet20(IMAGE, model, _zero(branch, 0, 5, 15))
        assert not torch.allclose(expected, model(IMAGE), rtol=1e-3)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_own_branches_are_evaluated_at_the_activation_behind_the_sum() -> None:
    graph = capture(networks.resnet20(), IMAGE, units="filters")
    (cut,) = graph.group("layer2.1.conv2").consumers
    assert (cut.layer, cut.kind, cut.at_output, cut.axis) == ("layer2.1.bn2", "map", True, -3)
    site = graph.sites[cut.layer]
    assert (site.activation, site.norm, site.node) == ("relu", None, "layer2_1_bn2")
    assert (site.pre, site.out) == ("add_4", "relu_10")
    (read,) = graph.group("layer2.1.conv1").consumers
    assert (read.layer, read.kind) == ("layer2.1.conv2", "conv")


def test_padded_shortcuts_couple_the_stages() -> None:
    model = networks.resnet20()
    graph = capture(model, IMAGE)
    group = graph.group("conv1")
    assert group.n_units == 64 and len(group.producers) == 10
    assert "pad" in group.surgery
    # Unit 3 is channel 3 of stage 1, 3 + 8 of stage 2, 3 + 8 + 16 of stage 3.
    channels = {owned.layer: owned.columns([3]).tolist() for owned in group.owned}
    assert channels["layer1.2.conv2"] == [3]
    assert channels["layer2.0.conv2"] == [11]
    assert channels["layer3.1.bn2"] == [27]
    got = _without(model, graph, "conv1", [3])

    def edit(name: str, value: Tensor) -> Tensor:
        value = value.clone()
        if name == "bn1" or name.endswith(".sum"):
            value[:, {16: 3, 32: 11, 64: 27}[value.shape[1]]] = 0
        return value

    with torch.no_grad():
        torch.testing.assert_close(got, _resnet20(IMAGE, model, edit), rtol=1e-5, atol=1e-5)


def test_plan_leaves_alone_what_surgery_cannot_take() -> None:
    model = networks.resnet20()
    decided = plan(model, score(model, IMAGE, "l1"), 0.99, "units")
    assert "conv1" not in {row.group for row in decided.table} and len(decided.table) == 9
    small = apply(model, decided)
    with torch.no_grad(), removed(model, capture(model, IMAGE), decided.remove):
        torch.testing.assert_close(small(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-4)


def test_weights_of_the_published_network_fit(data_root: Path) -> None:
    model = networks.resnet20(data_root / "weights" / "resnet20-12fca82f.th")
    with torch.no_grad():
        expected = _resnet20(IMAGE, model, _zero("nowhere"))
        torch.testing.assert_close(model(IMAGE), expected, rtol=1e-4, atol=1e-4)


# --- attention -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Patches, one attention layer with a residual, and a classifier."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        self.head = nn.Linear(12, 4)
        self.first = batch_first

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        return x.permute(0, 2, 1) if self.first else x.permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return self.head((x + y).mean(1 if self.first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_equal_attention_computed_by_hand(batch_first: bool) -> None:
    model = networks.settle(Attention(batch_first))
    graph = capture(model, IMAGE)
    assert graph.group("attention").kind == "head" and graph.group("attention").n_units == 3
    got = _without(model, graph, "attention", [1])
    with torch.no_grad():
        x = model.tokens(IMAGE)
        tokens = model.norm(x if batch_first else x.transpose(0, 1))
        layer = model.attention
        qkv = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, 3, 4))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heads = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        heads[:, 1] = 0
        mixed = layer.out_proj(heads.permute(0, 2, 1, 3).flatten(2))
        tokens = x if batch_first else x.transpose(0, 1)
        expected = model.head((tokens + mixed).mean(1))
        assert not torch.allclose(expected, model(IMAGE), rtol=1e-3)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_projection_is_put_back_even_on_an_exception() -> None:
    model = networks.settle(Attention(True))
    graph = capture(model, IMAGE)
    weight = model.attention.out_proj.weight
    with pytest.raises(RuntimeError, match="inside"), removed(model, graph, {"attention": [0, 2]}):
        assert not model.attention.out_proj.weight[:, :4].any()
        raise RuntimeError("inside")
    assert model.attention.out_proj.weight is weight


def test_heads_that_cannot_be_removed_for_good() -> None:
    model = networks.settle(Attention(True))
    model.attention.add_zero_attn = True
    assert [group.name for group in capture(model, IMAGE).groups] == ["attention"]
    scores = score(model, IMAGE, "l2")
    with pytest.raises(UnsupportedModelError, match=r"for good.*attention.*add_zero_attn"):
        plan(model, scores)
    mlp, images = networks.mlp(), networks.images()
    other = plan(mlp, score(mlp, images, "l1"), 0.2)
    stolen = replace(
        other,
        remove={"attention": (0,)},
        fingerprint=scores.fingerprint,
        example_shape=scores.example_shape,
    )
    with pytest.raises(InvalidArgumentError, match=r"plan\.remove.*add_zero_attn"):
        apply(model, stolen)


def test_norm_of_a_head_is_that_of_its_queries_keys_and_values() -> None:
    model = networks.settle(Attention(True))
    weight = model.attention.in_proj_weight.detach().reshape(3, 3, 4, 12).double()
    frame = score(model, IMAGE, "l1").frame
    expected = weight.abs().sum((0, 2, 3)).tolist()
    assert frame["importance"].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_heads_of_shifted_windows_equal_heads_without_values(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    swin = models.SwinTransformer
    blocks = models.swin_transformer
    block = blocks.SwinTransformerBlockV2 if name == "swin_v2_t" else None
    merging = blocks.PatchMergingV2 if name == "swin_v2_t" else blocks.PatchMerging
    model = swin(
        [4, 4], 12, [2, 2], [3, 6], [4, 4], num_classes=5, block=block, downsample_layer=merging
    ).eval()
    graph = capture(model, IMAGE)
    layer = "features.1.1.attn"  # the shifted one
    got = _without(model, graph, layer, [2])
    attention = model.get_submodule(layer)
    with torch.no_grad():
        assert not torch.allclose(got, model(IMAGE), rtol=1e-4)
        rows = slice(24 + 8, 24 + 12)  # the values of the last of three heads, 4 wide
        attention.qkv.weight[rows] = 0
        attention.qkv.bias[rows] = 0
        torch.testing.assert_close(got, model(IMAGE), rtol=1e-5, atol=1e-6)


def test_position_embeddings_and_class_tokens_are_not_part_of_a_branch() -> None:
    class Embedded(Attention):
        def __init__(self) -> None:
            super().__init__(True)
            self.token, self.place = (
                nn.Parameter(torch.ones(1, 1, 12)),
                nn.Parameter(torch.ones(12)),
            )
            self.drop = nn.Dropout(0.0)

        def tokens(self, x: Tensor) -> Tensor:
            x = super().tokens(x)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            return self.drop(x + self.place)

    model = networks.settle(Embedded())
    graph = capture(model, IMAGE, units="filters")
    (cut,) = graph.group("patches").consumers
    assert (cut.layer, cut.kind) == ("patches", "map")
    assert "normalises" in capture(model, IMAGE).refused["patches"]
    got = _without(model, graph, "patches", [2])
    with torch.no_grad():
        model.patches.weight[2], model.patches.bias[2] = 0, 0
        torch.testing.assert_close(got, model(IMAGE), rtol=1e-5, atol=1e-5)


def test_an_attention_layer_that_is_called_twice_is_refused() -> None:
    class Twice(Attention):
        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(x)
            for _ in range(2):
                x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(x.mean(1))

    graph = capture(networks.settle(Twice(True)), IMAGE)
    assert "called" in graph.refused["attention"]
    assert "attention.out_proj" in graph.refused


# --- gates and shuffles --------------------------------------------------------------------------


class Gated(nn.Module):
    """A squeeze-excitation gate, whose hard sigmoid does not leave zero a zero."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.gate = nn.Hardsigmoid() if layer else F.hardsigmoid
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        scale = self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * scale).mean((2, 3)))


def test_a_gate_is_cut_behind_its_activation() -> None:
    model = networks.settle(Gated(True))
    graph = capture(model, IMAGE, units="filters")
    (cut,) = graph.group("up").consumers
    assert (cut.layer, cut.kind) == ("gate", "map")
    got = _without(model, graph, "up", [2])
    with torch.no_grad():
        x = F.relu(model.norm(model.stem(IMAGE)))
        scale = model.gate(model.up(F.relu(model.down(F.adaptive_avg_pool2d(x, 1)))))
        scale[:, 2] = 0
        expected = model.head((x * scale).mean((2, 3)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # The stem is read by the gate's own branch and by the product: cut before both.
    assert graph.group("stem").consumers[0].layer == "norm"


def test_a_gate_without_a_layer_behind_its_activation_is_refused() -> None:
    graph = capture(networks.settle(Gated(False)), IMAGE, units="filters")
    assert "hardsigmoid lies between" in graph.refused["up"]
    whole = capture(networks.settle(Gated(False)), IMAGE)
    assert whole.group("stem").producers == ("stem", "up") and not whole.group("stem").surgery


def test_shuffled_channels_are_cut_where_they_are_read() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(6, 4)

        def mixed(self, x: Tensor) -> Tensor:
            first, second = self.stem(x).chunk(2, dim=1)
            both = torch.cat((first, self.side(second)), dim=1)
            n, c, h, w = both.size()
            both = both.view(n, 2, c // 2, h, w)
            return torch.transpose(both, 1, 2).contiguous().view(n, -1, h, w)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mixed(x).mean([2, 3]))

    model = networks.settle(Shuffled())
    graph = capture(model, IMAGE)
    group = graph.group("stem")
    assert {c.layer: c.columns([1, 4]).tolist() for c in group.consumers} == {
        "side": [1],
        "head": [2],
    }
    got = _without(model, graph, "stem", [1])
    with torch.no_grad():
        maps = model.mixed(IMAGE).mean([2, 3])
        maps[:, 2] = 0
        torch.testing.assert_close(got, model.head(maps), rtol=1e-5, atol=1e-5)


def test_a_layer_may_read_units_and_be_where_its_own_are_cut() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, padding=1)
            self.inner, self.outer = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            y = self.outer(F.relu(self.inner(x)))
            return self.head(F.relu(x + y).mean((2, 3)))

    model = networks.settle(Plain())
    graph = capture(model, IMAGE, units="filters")
    assert [(c.layer, c.kind) for g in graph.groups for c in g.consumers] == [
        ("first", "map"),
        ("outer", "conv"),
        ("outer", "map"),
    ]
    data = (IMAGE, torch.arange(2))
    exact, path = (
        score(model, data, method, "logit", units="filters").frame
        for method in ("ablation", "path")
    )
    linear_behind = exact["layer"] != "first"  # path effects are exact there
    torch.testing.assert_close(
        torch.tensor(path["effect"][linear_behind].to_numpy()),
        torch.tensor(exact["effect"][linear_behind].to_numpy()),
        rtol=1e-4,
        atol=1e-5,
    )
