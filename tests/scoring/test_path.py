"""Path effects against their definition, cut by cut, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, capture
from causalprune.scoring import Batch, Job, Scores, as_batches, resolve_outcome, score
from causalprune.scoring.path import UnitPaths, per_image_effects


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Fresh images at every run, an odd number of them."""
    return torch.randn(11, 1, 16, 16), torch.randint(3, (11,))


def _paths(
    model: nn.Module, data: tuple[Tensor, Tensor], outcome: str = "loss", **options: object
) -> tuple[dict[str, Tensor], UnitGraph]:
    units = str(options.pop("units", "groups"))
    graph = capture(model, data[0][:1], units=units)
    batches = as_batches(data, batch_size=4)
    job = Job(model, graph, batches, resolve_outcome(outcome), **options)  # type: ignore[arg-type]
    return per_image_effects(job, Batch(*data)), graph


def _outcome(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    return resolve_outcome(name).function(logits, targets)


def _gradient(outcome_of: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    value = value.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(outcome_of(value).sum(), value)
    return gradient


# ---- one oracle for chains -----------------------------------------------------------------------


def _chain_oracle(
    model: nn.Sequential, at: int, data: tuple[Tensor, Tensor]
) -> Callable[[Tensor], Tensor]:
    """Per-image effect [N, O] of setting entries of layer `at`'s weight to zero.

    In float64 and without the graph or the operator: the layer is really run with the changed
    weight; behind the activation the change is weighted with the gradient of the loss.
    """
    model = copy.deepcopy(model).double().eval()
    images, targets = data[0].double(), data[1]
    stop = at + 1
    while stop < len(model) and isinstance(model[stop], (nn.BatchNorm2d, nn.ReLU, nn.GELU)):
        stop += 1
        if not isinstance(model[stop - 1], nn.BatchNorm2d):
            break
    with torch.no_grad():
        entry = model[:at](images)
        whole = model[at:stop](entry)
    gradient = _gradient(lambda v: _outcome("loss", model[stop:](v), targets), whole)

    def effect(cut: Tensor) -> Tensor:
        changed = copy.deepcopy(model[at:stop])
        with torch.no_grad():
            changed[0].weight[cut] = 0
            change = gradient * (changed(entry) - whole)
        return change.flatten(2).sum(2) if change.ndim == 4 else change

    return effect


def _chain(kind: str) -> tuple[nn.Sequential, int, int]:
    """A chain, the place of the layer to look at, and how many of its inputs make up a unit."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    if kind == "norm":
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, bias=False),
                  nn.BatchNorm2d(5), nn.ReLU(inplace=True), *head]  # fmt: skip
        return networks.settle(nn.Sequential(*layers)), 2, 1
    if kind == "grouped":
        layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, groups=2),
                  nn.GELU(), *head[:2], nn.Linear(4, 3)]  # fmt: skip
        return networks.settle(nn.Sequential(*layers)), 2, 1
    if kind == "linear":
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.MaxPool2d(2),
                  *head]  # fmt: skip
        return networks.settle(nn.Sequential(*layers)), 2, 1
    assert kind == "flattened"
    layers = [nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 7), nn.ReLU(),
              nn.Linear(7, 3)]  # fmt: skip
    return networks.settle(nn.Sequential(*layers)), 3, 9


@pytest.mark.parametrize("kind", ["norm", "grouped", "linear", "flattened"])
def test_units_and_edges_equal_zeroed_weights(kind: str, data: tuple[Tensor, Tensor]) -> None:
    model, at, width = _chain(kind)
    effect = _chain_oracle(model, at, data)
    weight = model[at].weight
    groups = getattr(model[at], "groups", 1)
    n_outputs, n_units = weight.shape[0], weight.shape[1] // width

    by_edge = torch.zeros(n_outputs, n_units, dtype=torch.float64)
    by_unit = torch.zeros(len(data[0]), n_units * groups, dtype=torch.float64)
    for i in range(n_units * groups):
        rows = slice(i // n_units * (n_outputs // groups), (i // n_units + 1) * n_outputs // groups)
        cut = torch.zeros_like(weight, dtype=torch.bool)
        cut[rows, (i % n_units) * width : (i % n_units + 1) * width] = True
        per_output = effect(cut)  # outputs that lose nothing have no effect
        by_unit[:, i] = per_output.sum(1)
        by_edge[rows, i % n_units] = per_output[:, rows].mean(0)
    # One edge, alone, really is one row of what all rows lost.
    alone = torch.zeros_like(weight, dtype=torch.bool)
    alone[0, :width] = True
    assert effect(alone).sum(1).mean() == pytest.approx(float(by_edge[0, 0]), abs=1e-12)

    # Surgery takes whole groups of a grouped convolution; the channels alone are its layer's own.
    units = "filters" if kind == "grouped" else "groups"
    scores = score(model, data, "path", batch_size=4, edges=True, units=units)
    plain, _ = _paths(model, data, units=units)
    tolerance = 1e-5 * max(1e-3, float(by_unit.abs().max()))
    torch.testing.assert_close(plain["0"], by_unit, atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(scores.edges[str(at)], by_edge, atol=tolerance, rtol=1e-4)
    chosen = scores.frame[scores.frame["group"] == "0"]
    np.testing.assert_allclose(chosen["effect"], by_unit.mean(0), atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(
        chosen["importance"], by_unit.abs().mean(0), atol=tolerance, rtol=1e-4
    )


def test_edges_are_saved_and_only_computed_when_asked_for(data: tuple[Tensor, Tensor]) -> None:
    model = networks.vgg()
    assert score(model, data, "path").edges == {}
    scores = score(model, data, "path", edges=True)
    assert {k: v.shape for k, v in scores.edges.items()} == {
        "4": (6, 4),
        "10": (8, 6),
        "12": (3, 8),
    }
    again = Scores.load(scores.save("scores.npz"))
    np.testing.assert_array_equal(again.edges["10"], scores.edges["10"])
    with pytest.raises(InvalidArgumentError, match="edges"):
        score(model, data, "path", edges="all")


# ---- units that sit elsewhere --------------------------------------------------------------------


class _Concatenated(nn.Module):
    """Two branches side by side, one of them twice, read by a convolution with a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
        self.last = nn.Conv2d(7, 3, 3)

    def entry(self, x: Tensor) -> Tensor:
        right = F.relu(self.right(x))
        return torch.cat([right, F.relu(self.left(x)), right], 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.entry(x))).mean((2, 3))


@pytest.mark.parametrize("edges", [False, True])
def test_concatenations_and_units_that_are_read_twice(
    edges: bool, data: tuple[Tensor, Tensor]
) -> None:
    """Where the suffix is linear the path effect is the exact one, units cut everywhere at once."""
    model = networks.settle(_Concatenated())
    twin = copy.deepcopy(model).double()
    places = {"left": [[2], [3], [4]], "right": [[0, 5], [1, 6]]}
    graph = capture(model, data[0][:1])
    paths = UnitPaths(model, graph, resolve_outcome("logit"), edges=edges)
    found = paths.effects(Batch(*data))
    assert {group.name for group in graph.groups} == set(places)
    with torch.no_grad():
        whole = _outcome("logit", twin(data[0].double()), data[1])
        for name, units in places.items():
            for unit, columns in enumerate(units):
                cut = copy.deepcopy(twin)
                cut.last.weight[:, columns] = 0
                exact = _outcome("logit", cut(data[0].double()), data[1]) - whole
                torch.testing.assert_close(found[name][:, unit], exact, atol=1e-5, rtol=1e-4)
    if edges:
        by_unit = torch.cat([found[name] for name in ("left", "right")], 1).mean(0)
        torch.testing.assert_close(paths.edges["last"].sum(0), by_unit, atol=1e-6, rtol=1e-5)


def test_branches_are_cut_where_they_join(data: tuple[Tensor, Tensor]) -> None:
    """Last block: what follows the rectifier is linear, so its branches' effects are exact."""
    model = networks.residual()
    found, graph = _paths(model, data, "logit", units="filters")
    twin = copy.deepcopy(model).double()
    for layer, branch in (("block2.conv2", "block2.bn2"), ("block2.shortcut.0", "block2.shortcut")):
        (consumer,) = graph.group(layer).consumers
        assert consumer.at_output
        for unit in range(6):
            with torch.no_grad():
                exact = _outcome("logit", _zeroed(twin, branch, unit)(data[0].double()), data[1])
                exact = exact - _outcome("logit", twin(data[0].double()), data[1])
            torch.testing.assert_close(found[layer][:, unit], exact, atol=1e-5, rtol=1e-4)


def _zeroed(model: nn.Module, layer: str, channel: int) -> nn.Module:
    model = copy.deepcopy(model)

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.index_fill(1, torch.tensor([channel]), 0.0)

    model.get_submodule(layer).register_forward_hook(hook)
    return model


class _Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 5, stride=5)
        self.attention = nn.MultiheadAttention(6, 3, batch_first=batch_first)
        self.head = nn.Linear(6, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        if self.batch_first:
            out, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        else:
            tokens = tokens.transpose(0, 1)
            out, _ = self.attention(tokens, tokens, tokens)
            out = out.transpose(0, 1)
        return self.head(out.mean(1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("edges", [True, False])
def test_heads_are_cut_before_the_output_projection(
    batch_first: bool, edges: bool, data: tuple[Tensor, Tensor]
) -> None:
    model = networks.settle(_Attention(batch_first))
    graph = capture(model, data[0][:1])
    (heads,) = [group for group in graph.groups if group.kind == "head"]
    paths = UnitPaths(model, graph, resolve_outcome("logit"), edges=edges)
    found = paths.effects(Batch(*data))[heads.name]
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        whole = _outcome("logit", twin(data[0].double()), data[1])
        for head in range(3):
            cut = copy.deepcopy(twin)
            cut.attention.out_proj.weight[:, 2 * head : 2 * head + 2] = 0
            exact = _outcome("logit", cut(data[0].double()), data[1]) - whole
            torch.testing.assert_close(found[:, head], exact, atol=1e-5, rtol=1e-4)
    if edges:
        assert paths.edges["attention"].shape == (6, 3)
        sums = paths.edges["attention"].sum(0)
        torch.testing.assert_close(sums, found.mean(0), atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_read_and_is_itself_a_branch(data: tuple[Tensor, Tensor]) -> None:
    """Heads are read by the attention layer whose own outputs may be cut behind it."""

    class Residual(_Attention):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            tokens = tokens + self.attention(tokens, tokens, tokens)[0]
            return self.head(tokens.mean(1))

    model = networks.settle(Residual(batch_first=True))
    found, graph = _paths(model, data, "logit", units="filters")
    assert {"head"} <= {group.kind for group in graph.groups}
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        whole = _outcome("logit", twin(data[0].double()), data[1])
        for group in graph.groups:
            if group.name == "patch":  # its suffix is not linear
                continue
            for unit in range(group.n_units):
                cut, width = copy.deepcopy(twin), 6 // group.n_units
                places = slice(unit * width, (unit + 1) * width)
                projection = cut.attention.out_proj
                if group.kind == "head":
                    projection.weight[:, places] = 0
                else:
                    projection.weight[places], projection.bias[places] = 0, 0
                exact = _outcome("logit", cut(data[0].double()), data[1]) - whole
                torch.testing.assert_close(found[group.name][:, unit], exact, atol=1e-5, rtol=1e-4)


# ---- what is cut to, and what must not matter ----------------------------------------------------


def test_cutting_to_the_mean(data: tuple[Tensor, Tensor]) -> None:
    """Linear suffix: exactly what setting the unit to its mean over all images does."""
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(),
              nn.AdaptiveAvgPool2d(1), nn.Flatten()]  # fmt: skip
    model = networks.settle(nn.Sequential(*layers))
    found, _ = _paths(model, data, "logit", intervention="mean")
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        entry = twin[:2](data[0].double())
        whole = _outcome("logit", twin[2:](entry), data[1])
        for unit in range(4):
            held = entry.clone()
            held[:, unit] = entry[:, unit].mean()
            exact = _outcome("logit", twin[2:](held), data[1]) - whole
            torch.testing.assert_close(found["0"][:, unit], exact, atol=1e-5, rtol=1e-4)
    frame = score(model, data, "path", "logit", intervention="mean", batch_size=4).frame
    np.testing.assert_allclose(frame["effect"], found["0"].mean(0), atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="intervention"):
        score(model, data, "path", intervention="resample")


@pytest.mark.parametrize("network", ["residual", "vgg", "depthwise"])
def test_a_small_cache_changes_nothing(network: str, data: tuple[Tensor, Tensor]) -> None:
    model = networks.ALL[network]()
    whole, _ = _paths(model, data)
    image_by_image, _ = _paths(model, data, max_cache_bytes=1)
    for name, effects in whole.items():
        torch.testing.assert_close(image_by_image[name], effects, atol=1e-6, rtol=1e-4)


def test_the_network_is_left_as_it_was(data: tuple[Tensor, Tensor]) -> None:
    model = networks.residual().train()
    model.fc.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    score(model, data, "path", edges=True)
    assert all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["fc.bias"]
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_hooks_of_the_network_still_run(data: tuple[Tensor, Tensor]) -> None:
    """A hooked convolution cannot be folded with its batch norm."""
    plain, _ = _paths(networks.residual(), data)
    model = networks.residual()
    model.block1.conv1.register_forward_hook(lambda module, args, output: output * 2)
    doubled, _ = _paths(model, data)
    by_weight = networks.residual()
    with torch.no_grad():
        by_weight.block1.conv1.weight.mul_(2)
    expected, _ = _paths(by_weight, data)
    torch.testing.assert_close(doubled["block1.conv1"], expected["block1.conv1"])
    assert not torch.allclose(doubled["block1.conv1"], plain["block1.conv1"])


def test_an_outcome_without_a_gradient(data: tuple[Tensor, Tensor]) -> None:
    def rank(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.argsort(1)[:, 0].double()

    with pytest.raises(InvalidArgumentError, match="outcome: expected one that can be diff"):
        score(networks.lenet(), data, "path", rank)


def test_a_graph_without_sites_is_refused(data: tuple[Tensor, Tensor]) -> None:
    model = networks.lenet()
    graph = capture(model, data[0][:1])
    blind = UnitGraph(graph.groups)
    with pytest.raises(UnsupportedModelError, match="method='ablation'"):
        UnitPaths(model, blind, resolve_outcome("loss"))
