"""Networks behind torch.export: the same function, the same layers, the same units."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
import untraceable
from torch import Tensor, fx, nn

import causalprune as cp
from causalprune.errors import UntraceableModelError
from causalprune.graph import UnitGraph, capture, evaluating
from causalprune.graph.exported import export
from causalprune.graph.trace import exported_in, shape_of, trace

NAMES = sorted(untraceable.EXPORTABLE)


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_network_does_for_every_batch_size(name: str) -> None:
    model = untraceable.EXPORTABLE[name]()
    with pytest.raises(UntraceableModelError):
        trace(model)
    traced = trace(model, untraceable.images(name, 1))
    assert exported_in(traced) is not None
    for n_images in (1, 2, 5, 8):
        x = untraceable.images(name, n_images)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_networks_own(name: str) -> None:
    model = untraceable.EXPORTABLE[name]()
    traced = trace(model, untraceable.images(name, 3))
    called = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    for layer in called:
        assert traced.get_submodule(layer) is model.get_submodule(layer)
    expected = {
        layer
        for layer, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm))
        and "out_proj" not in layer
    }
    assert [layer for layer in called if layer in expected] == sorted(expected, key=called.index)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_its_shape(name: str) -> None:
    model = untraceable.EXPORTABLE[name]()
    traced = trace(model, untraceable.images(name, 2))
    seen: dict[str, tuple[int, ...]] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen[n.name] = tuple(value.shape)
            return value

    Shapes(traced).run(untraceable.images(name, 2))
    assert {n.name: shape_of(n) for n in traced.graph.nodes if n.name in seen} == seen


@pytest.mark.parametrize("name", sorted(networks.ALL))
def test_units_are_those_of_the_symbolic_trace(name: str) -> None:
    plain = capture(networks.ALL[name](), networks.images(2))
    model = untraceable.Sized(networks.ALL[name]())
    assert _without_prefix(capture(model, networks.images(2))) == _without_prefix(plain)


def _without_prefix(graph: UnitGraph) -> object:
    def own(name: str) -> str:
        return name.removeprefix("inner.")

    groups = [
        (
            own(g.name),
            g.kind,
            g.n_units,
            [(own(o.layer), o.role, o.spans) for o in g.owned],
            [(own(c.layer), c.kind, c.spans) for c in g.consumers],
        )
        for g in graph.groups
    ]
    sites = {own(k): (own(s.norm or ""), s.activation) for k, s in graph.sites.items()}
    return (
        groups,
        {own(layer): reason for layer, reason in graph.refused.items()},
        sites,
        {own(layer): n for layer, n in graph.positions.items()},
    )


def test_reads_the_weights_that_the_network_has_now() -> None:
    model = untraceable.EXPORTABLE["loops"]()
    traced = trace(model, untraceable.images("loops", 2))
    x = untraceable.images("loops", 3)
    with torch.no_grad():
        model.conv1.weight.mul_(-2)
        model.fc2.bias.add_(1)
        torch.testing.assert_close(traced(x), model(x))


def test_binds_to_a_copy_with_the_same_names() -> None:
    model = untraceable.EXPORTABLE["loops"]()
    exported = export(model, untraceable.images("loops", 2))
    other = networks.settle(copy.deepcopy(model), seed=7)
    x = untraceable.images("loops", 3)
    first, second = exported.bind(model), exported.bind(other)
    assert [n.name for n in first.graph.nodes] == [n.name for n in second.graph.nodes]
    with torch.no_grad():
        torch.testing.assert_close(second(x), other(x))
        torch.testing.assert_close(first(x), model(x))
        assert not torch.allclose(first(x), second(x))


def test_layer_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(x.shape[1] - 3):
                x = self.again(F.relu(x))
            return self.last(F.relu(x))

    graph = capture(Twice(), torch.randn(3, 4))
    assert graph.groups == ()
    assert "called 2 times" in graph.refused["again"]


def test_training_mode_is_handled_and_restored() -> None:
    model = untraceable.EXPORTABLE["loops"]().train()
    model.bn.eval()
    before = [module.training for module in model.modules()]
    statistics = model.bn.running_mean.clone()
    traced = trace(model, untraceable.images("loops", 2))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model.bn.running_mean, statistics)
    x = untraceable.images("loops", 4)
    with evaluating(model), torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))


class _OnBatchSize(nn.Module):
    def __init__(self, largest: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.largest = nn.Linear(4, 5), nn.Linear(5, 3), largest

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.largest:
            x = 2 * x + 1
        return self.fc2(F.gelu(self.fc1(x)))


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("largest", [1, 2, 5])
def test_a_batch_size_that_is_not_free_is_named(largest: int, n_images: int) -> None:
    with pytest.raises(UntraceableModelError, match="batch"):
        trace(_OnBatchSize(largest), torch.randn(n_images, 4))


def test_a_graph_for_one_batch_size_is_named() -> None:
    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = [self.fc1(x)[k] for k in range(len(x))]
            return self.fc2(torch.stack(rows))

    with pytest.raises(UntraceableModelError, match="OneSize"):
        trace(OneSize(), torch.randn(3, 4))


class _Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for k in range(x.shape[1] // 4):
            x[:, k] = 0.0
        return self.fc2(x)


def test_an_overwritten_view_is_named() -> None:
    with pytest.raises(UntraceableModelError, match="view"):
        trace(_Overwrites(), torch.randn(2, 4))


@pytest.mark.parametrize("method", ["ablation", "path", "taylor"])
@pytest.mark.parametrize("name", ["residual", "lenet"])
def test_scores_are_those_of_the_symbolic_trace(name: str, method: str) -> None:
    x, y = torch.randn(5, 1, 16, 16), torch.randint(3, (5,))
    plain = cp.score(Shifted(networks.ALL[name]()), (x, y), method=method, outcome="logit")
    sized = untraceable.Sized(networks.ALL[name]())
    scores = cp.score(sized, (x, y), method=method, outcome="logit")
    for column in ("effect", "se", "importance"):
        torch.testing.assert_close(
            torch.tensor(scores.frame[column].to_numpy(copy=True)),
            torch.tensor(plain.frame[column].to_numpy(copy=True)),
            rtol=1e-4,
            atol=1e-5,
        )


class Shifted(nn.Module):
    """What `Sized` computes on images of 16 pixels, written so that it can be traced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.5)


def test_ablation_is_zeroing_where_the_consumer_reads() -> None:
    model = untraceable.EXPORTABLE["huggingface"]()
    x, y = untraceable.images("huggingface", 6), torch.randint(3, (6,))
    frame = cp.score(model, (x, y), method="ablation", outcome="logit").frame
    rows = frame[frame["layer"] == "layers.1.up"].set_index("unit")
    assert len(rows) == 9
    chosen = torch.arange(6)
    with torch.no_grad():
        plain = model(x)[chosen, y]
        weight = model.layers[1].down.weight
        for unit in range(9):
            column = weight[:, unit].clone()
            weight[:, unit] = 0
            effect = float((model(x)[chosen, y] - plain).mean())
            weight[:, unit] = column
            assert effect == pytest.approx(rows.loc[unit, "effect"], rel=1e-4, abs=1e-6)
