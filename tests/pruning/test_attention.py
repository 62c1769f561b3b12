"""Attention heads that are removed for good."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph, capture, removed
from causalprune.measures.size import counted_attention
from causalprune.pruning import Plan, apply, plan
from causalprune.pruning.attention import fewer_heads
from causalprune.pruning.footprint import sizes_of
from causalprune.scoring import score

WIDTH, HEADS = 12, 3
IMAGES = torch.randn(5, 1, 16, 16)


class Attends(nn.Module):
    """Patches, an attention layer with a residual, a normalised MLP, and a classifier."""

    def __init__(self, attention: nn.Module, *, batch_first: bool = True, call: str = "") -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, WIDTH, 5, 5)
        self.attention = attention
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.batch_first, self.call = batch_first, call
        self.register_buffer("causal", torch.ones(9, 9).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2)
        x = x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1)
        x = x + self.attend(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1 if self.batch_first else 0))

    def attend(self, x: Tensor) -> Tensor:
        if self.call == "masked":
            padding = x[..., 0] > 1.0 if self.batch_first else (x[..., 0] > 1.0).transpose(0, 1)
            return self.attention(x, x, x, padding, False, self.causal)[0]
        if self.call == "added":
            bias = self.causal * -0.7
            return self.attention(x, x, x, attn_mask=bias)[0]
        if self.call == "read":
            found, weights = self.attention(x, x, x)
            return found * weights.mean()
        if self.call == "per head":
            bias = (x[:, :1, :1] * 0.0).repeat(HEADS, 9, 9)
            return self.attention(x, x, x, attn_mask=bias, need_weights=False)[0]
        if self.call == "narrow":
            return self.attention(x, x[..., :5], x[..., 2:9], need_weights=False)[0]
        if self.call == "plain":
            return self.attention(x)
        found, _ = self.attention(x, x, x, need_weights=False)
        return found


class Own(nn.Module):
    """Attention as many write it, with the queries, keys and values in one layer."""

    def __init__(self, *, fused: bool = True, form: str = "attributes") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, WIDTH // HEADS, WIDTH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.3)
        self.norm = nn.LayerNorm(self.head_dim) if form == "normed" else nn.Identity()
        self.fused, self.form = fused, form

    def forward(self, x: Tensor) -> Tensor:
        n, m, c = x.shape
        if self.form == "inferred":
            parts = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        elif self.form == "divided":
            parts = self.qkv(x).reshape(n, m, 3, self.num_heads, c // self.num_heads)
        else:
            parts = self.qkv(x).reshape(n, m, 3, self.num_heads, self.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.norm(q), F.rms_norm(k, (self.head_dim,)) if self.form == "normed" else k
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            x = self.drop(weights.softmax(dim=-1)) @ v
        x = x.transpose(1, 2)
        x = x.flatten(2) if self.form == "inferred" else x.reshape(n, m, self.attn_dim)
        return self.proj(x)


def _layer(**options: object) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **options)  # type: ignore[arg-type]


def _first(**options: object) -> nn.MultiheadAttention:
    return _layer(batch_first=True, **options)


LAYERS = {
    "plain": lambda: Attends(_first()),
    "sequence first": lambda: Attends(_layer(bias=False), batch_first=False),
    "dropout": lambda: Attends(_first(dropout=0.4)),
    "dropout, sequence first": lambda: Attends(_layer(dropout=0.1), batch_first=False),
    "masks": lambda: Attends(_first(), call="masked"),
    "masks, sequence first": lambda: Attends(_layer(), batch_first=False, call="masked"),
    "added mask": lambda: Attends(_first(), call="added"),
    "widths": lambda: Attends(_first(kdim=5, vdim=7), call="narrow"),
    "own": lambda: Attends(Own(), call="plain"),
    "own, in steps": lambda: Attends(Own(fused=False), call="plain"),
    "own, normed": lambda: Attends(Own(form="normed"), call="plain"),
    "own, inferred": lambda: Attends(Own(form="inferred"), call="plain"),
}


def _macs(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), counted_attention():
        model(x[:1])
    return counter.get_total_flops() // 2


def _decided(model: nn.Module, remove: Mapping[str, tuple[int, ...]]) -> Plan:
    nothing = plan(model, score(model, IMAGES, "l1"), 0.0)
    graph = capture(model, IMAGES)
    kept = {name: graph.group(name).n_units - len(units) for name, units in remove.items()}
    after = sizes_of(model, graph, IMAGES[:1]).footprint(kept)
    return replace(nothing, remove=dict(remove), after=after)


def _check_equal(model: nn.Module, graph: UnitGraph, decided: Plan) -> nn.Module:
    """The pruned network computes what the masked one does, at the size that was foretold."""
    small = apply(model, decided)
    for training in (False, True):
        for network in (model, small):
            network.train(training)
            for module in network.modules():
                if isinstance(module, nn.Dropout):  # draws other numbers on smaller tensors
                    module.p = 0.0
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0
        with torch.no_grad(), removed(model, graph, decided.remove):
            expected = model(IMAGES)
        assert float((expected - model(IMAGES).detach()).abs().max()) > 1e-3  # the units mattered
        torch.testing.assert_close(small(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert decided.after.macs == _macs(small.eval(), IMAGES)
    assert decided.after.parameters == sum(p.numel() for p in small.parameters())
    tensors = [*small.parameters(), *small.buffers()]
    assert decided.after.bytes == sum(t.numel() * t.element_size() for t in tensors)
    return small


@pytest.mark.parametrize("name", LAYERS)
def test_pruned_heads_equal_masked_ones_again_and_again(name: str) -> None:
    model = networks.settle(LAYERS[name]())
    graph = capture(model, IMAGES)
    assert [(g.name, g.kind, g.n_units) for g in graph.removable] == [
        ("attention", "head", HEADS), ("up", "hidden", 7)
    ]  # fmt: skip
    gone = int(torch.randint(HEADS, (1,)))
    once = _check_equal(model, graph, _decided(model, {"attention": (gone,), "up": (1, 4)}))
    again = capture(once, IMAGES)
    assert [(g.name, g.kind, g.n_units) for g in again.removable] == [
        ("attention", "head", HEADS - 1), ("up", "hidden", 5)
    ]  # fmt: skip
    twice = _check_equal(once, again, _decided(once, {"attention": (0,), "up": (2,)}))
    last = capture(twice, IMAGES)
    assert [(g.name, g.n_units) for g in last.removable] == [("attention", 1), ("up", 4)]
    # What is left is the heads that stayed, in their order.
    both = tuple(sorted([gone, min({*range(HEADS)} - {gone})]))
    direct = apply(model, _decided(model, {"attention": both}))
    found = dict(twice.get_submodule("attention").named_parameters())
    for key, tensor in direct.get_submodule("attention").named_parameters():
        torch.testing.assert_close(found[key], tensor)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("read", "attention weights"),
        ("per head", "mask of its own for each head"),
        ("learnt", "learnt or a zero token"),
        ("zero", "learnt or a zero token"),
        ("twice", "shares its parameters"),
        ("weighed", "read outside"),
        ("divided", "fewer heads"),
        ("masked by hand", "parametrised"),
    ],
)
def test_heads_that_stay_say_why(name: str, reason: str) -> None:
    options = {"learnt": {"add_bias_kv": True}, "zero": {"add_zero_attn": True}}.get(name, {})
    model = Attends(_first(**options), call=name)
    if name == "divided":
        model = Attends(Own(form="divided"), call="plain")
    if name == "twice":
        model.other = _first()
        model.other.out_proj = model.attention.out_proj
    if name == "weighed":
        model = Weighed(_first())
    if name == "masked by hand":
        prune.random_unstructured(model.attention, "in_proj_weight", 0.5)
    graph = capture(networks.settle(model), IMAGES)
    assert reason in graph.group("attention").surgery
    nothing = plan(model, score(model, IMAGES, "l1"), 0.9)
    assert "attention" not in nothing.remove and nothing.remove
    with pytest.raises(InvalidArgumentError, match="attention"):
        apply(model, _renamed(nothing))


class Weighed(Attends):
    """Reads the weights of its attention layer by itself."""

    def attend(self, x: Tensor) -> Tensor:
        return super().attend(x) + F.linear(x, self.attention.out_proj.weight)


def test_heads_inside_a_layer_of_torch_stay() -> None:
    class Encoded(nn.Module):
        """An encoder of torch.nn, which reads the weights of its attention layers itself."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 9, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.up, self.head = nn.Linear(16, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.up(self.encoder(x[:, 0]).mean(1))))

    model = networks.settle(Encoded())
    assert "'encoder'" in capture(model, IMAGES).refused["encoder.layers.1.self_attn"]
    decided = plan(model, score(model, IMAGES, "l1"), 0.5, "units")
    assert set(decided.remove) == {"up"}
    assert apply(model, decided)(IMAGES).shape == (5, 3)


def _renamed(decided: Plan) -> Plan:
    return replace(decided, remove={"attention": (0,)})


def test_a_vision_transformer() -> None:
    pytest.importorskip("torchvision")
    from torchvision.models.vision_transformer import VisionTransformer

    model = networks.settle(
        VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=30,
            num_classes=5,
        )
    )  # fmt: skip
    x = torch.randn(3, 3, 16, 16)
    graph = capture(model, x)
    kinds = [group.kind for group in graph.removable]
    assert kinds == ["head", "hidden"] * 2
    decided = plan(model, score(model, x, "random", seed=int(torch.randint(99, (1,)))), 0.4, "macs")
    small = apply(model, decided)
    assert decided.reached and decided.after.macs == _macs(small, x)
    for training in (False, True):
        model.train(training), small.train(training)
        with torch.no_grad(), removed(model, graph, decided.remove):
            torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    fresh = capture(small, x)
    assert [g.name for g in fresh.groups] == [g.name for g in graph.groups]
    scored = score(small, (x, torch.arange(3)), "ablation").frame
    assert len(scored) == sum(group.n_units for group in fresh.groups)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pit_ti_224"])
def test_attention_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    options = {"depth": 2} if name.startswith("vit") else {"depth": (1, 1, 1)}
    model = networks.settle(
        timm.create_model(name, pretrained=False, num_classes=5, img_size=32, **options)
    )
    x = torch.randn(2, 3, 32, 32)
    graph = capture(model, x)
    heads = [group for group in graph.removable if group.kind == "head"]
    assert heads and all(model.get_submodule(g.name).num_heads == g.n_units for g in heads)
    nothing = plan(model, score(model, x, "l1"), 0.0)
    gone = {group.name: (1,) for group in heads}
    small = apply(model, replace(nothing, remove=gone))
    with torch.no_grad(), removed(model, graph, gone):
        expected = model(x)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    for group in heads:
        attention = small.get_submodule(group.name)
        assert attention.num_heads == group.n_units - 1
        assert attention.proj.in_features == attention.num_heads * attention.head_dim


def test_the_layer_itself_is_copied_whole() -> None:
    layer = _first(dropout=0.25).double().train()
    layer.in_proj_weight.requires_grad_(False)
    state = copy.deepcopy(layer.state_dict())
    before = torch.get_rng_state()
    fewer = fewer_heads(layer, torch.tensor([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], tensor) for key, tensor in layer.state_dict().items())
    assert fewer.training and fewer.dropout.training and fewer.dropout.p == 0.25
    assert {p.dtype for p in fewer.parameters()} == {torch.float64}
    assert not fewer.q_proj.weight.requires_grad and fewer.out_proj.weight.requires_grad
    assert fewer.q_proj.bias.requires_grad
    storages = {t.data_ptr() for t in layer.parameters()}
    assert storages.isdisjoint(t.data_ptr() for t in fewer.parameters())


def test_all_heads_compute_what_the_layer_does() -> None:
    layer = _first().eval()
    fewer = fewer_heads(layer, torch.arange(HEADS))
    query, key = torch.randn(4, 6, WIDTH), torch.randn(4, 8, WIDTH)
    value = torch.randn(4, 8, WIDTH)
    expected, _ = layer(query, key, value)
    found, weights = fewer(query, key=key, value=value, need_weights=True)
    torch.testing.assert_close(found, expected)
    assert weights is None


def test_masks_that_were_not_there_are_not_ignored() -> None:
    fewer = fewer_heads(_first(), torch.tensor([0]))
    x = torch.randn(2, 4, WIDTH)
    for copy_of in (fewer, pickle.loads(pickle.dumps(fewer))):
        with pytest.raises(AssertionError, match="attn_mask"):
            copy_of(x, x, x, attn_mask=torch.zeros(4, 4))
        with pytest.raises(AssertionError, match="key_padding_mask"):
            copy_of(x, x, x, torch.zeros(2, 4))
        with pytest.raises(AssertionError, match="is_causal"):
            copy_of(x, x, x, is_causal=True)


def test_dropout_of_attention_weights_follows_the_mode() -> None:
    fewer = fewer_heads(_first(dropout=0.5).train(), torch.tensor([0, 2]))
    x = torch.randn(2, 5, WIDTH)
    assert not torch.equal(fewer(x, x, x)[0], fewer(x, x, x)[0])
    fewer.eval()
    assert torch.equal(fewer(x, x, x)[0], fewer(x, x, x)[0])
