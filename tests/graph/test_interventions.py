"""Interventions by suffix replay against whole forward passes patched by hand."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from interventions_by_hand import NETWORKS, by_hand, close, readings
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import Consumer, Interventions, UnitGraph, capture, removed

X = networks.images(9, seed=3)


def cases(name: str, units: str = "groups") -> tuple[nn.Module, UnitGraph]:
    model = NETWORKS[name]()
    return model, capture(model, X[:2], units=units)


@pytest.mark.parametrize(
    ("units", "cache"), [("groups", 2**30), ("groups", 30_000), ("groups", 1), ("filters", 2**30)]
)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_removing_each_unit_equals_whole_passes(name: str, units: str, cache: int) -> None:
    model, graph = cases(name, units)
    run = Interventions(model, graph, example=X[:1], max_cache_bytes=cache)
    close(run.observe(X), model(X))
    for group in graph.groups:
        outputs = run.remove(group.name, range(group.n_units))
        for unit, output in enumerate(outputs):
            with removed(model, graph, {group.name: [unit]}):
                close(output, model(X))
        some = run.remove(group.name, [group.n_units - 1, 0], [7, 1, 2])
        close(some, outputs[[group.n_units - 1, 0]][:, [7, 1, 2]])


@pytest.mark.parametrize("cache", [2**30, 1])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_several_units_at_once(name: str, cache: int) -> None:
    model, graph = cases(name)
    run = Interventions(model, graph, example=X[:1], max_cache_bytes=cache)
    run.observe(X)
    draw = torch.Generator().manual_seed(1)
    masks = {g.name: torch.rand(9, g.n_units, generator=draw) < 0.3 for g in graph.groups}
    rows = run.remove_masked(masks)
    for row in range(9):
        gone = {g: mask[row].nonzero().flatten().tolist() for g, mask in masks.items()}
        with removed(model, graph, gone):
            expected = model(X)
        close(run.remove_jointly(gone), expected)
        close(rows[row], expected[row])
    close(run.remove_jointly({}), model(X))


@pytest.mark.parametrize("units", ["groups", "filters"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "tokens"])
@torch.no_grad()
def test_mean_is_over_images_and_positions(name: str, units: str) -> None:
    model, graph = cases(name, units)
    run = Interventions(model, graph, example=X[:1], value="mean")
    run.calibrate([X[:4], X[4:]])
    run.observe(X)
    for group in graph.groups:
        plain = readings(model, group, X)

        def fill(consumer: Consumer, value: Tensor, axis: int, columns: Tensor) -> Tensor:
            mean = plain[consumer.layer].movedim(axis, -1).flatten(0, -2).mean(0)[columns]  # noqa: B023
            shape = [1] * value.ndim
            shape[axis] = len(columns)
            return mean.reshape(shape).expand_as(value.index_select(axis, columns))

        for unit in range(group.n_units):
            expected = by_hand(model, group, unit, X, fill)
            close(run.remove(group.name, [unit])[0], expected)
            close(run.remove_jointly({group.name: [unit]}), expected)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "tokens"])
@torch.no_grad()
def test_resample_takes_the_value_of_another_image(name: str) -> None:
    model, graph = cases(name)
    run = Interventions(model, graph, example=X[:1], value="resample", seed=4)
    run.observe(X)
    for group in graph.groups:
        plain = readings(model, group, X)
        outputs = run.remove(group.name, range(group.n_units))
        close(run.remove_jointly({group.name: [0]}), outputs[0])
        for unit, output in enumerate(outputs):
            options = []
            for shift in range(1, 9):
                donors = torch.arange(9).roll(shift)

                def fill(consumer: Consumer, value: Tensor, axis: int, columns: Tensor) -> Tensor:
                    return plain[consumer.layer][donors].index_select(axis, columns)  # noqa: B023

                options.append(by_hand(model, group, unit, X, fill))
            # Every image's output is that of some donor other than itself.
            distance = (torch.stack(options) - output).abs().amax(2).amin(0)
            assert distance.max() <= 1e-5 * output.abs().max()


@torch.no_grad()
def test_heads_by_mean_and_resample() -> None:
    """The layer's output is linear in what its heads read out."""
    model, graph = cases("tokens")
    (heads,) = [group for group in graph.groups if group.kind == "head"]
    y = model.norm(model.patch(X).flatten(2).transpose(1, 2))
    whole = model.attention(y, y, y, need_weights=False)[0]
    with removed(model, graph, {heads.name: [1]}):
        without = model.attention(y, y, y, need_weights=False)[0]
    given = whole - without

    def output(attended: Tensor) -> Tensor:
        handle = model.attention.register_forward_hook(lambda m, a, out: (attended, None))
        result: Tensor = model(X)
        handle.remove()
        return result

    run = Interventions(model, graph, example=X[:1], value="mean")
    run.calibrate([X])
    run.observe(X)
    expected = output(without + given.mean((0, 1)))
    close(run.remove(heads.name, [1])[0], expected)
    close(run.remove_jointly({heads.name: [1]}), expected)
    mask = torch.zeros(9, 2, dtype=torch.bool)
    mask[:, 1] = True
    close(run.remove_masked({heads.name: mask}), expected)
    run = Interventions(model, graph, example=X[:1], value="resample")
    run.observe(X)
    got = run.remove(heads.name, [1])[0]
    options = torch.stack([output(without + given.roll(k, 0)) for k in range(1, 9)])
    assert (options - got).abs().amax(2).amin(0).max() < 1e-5
    assert (got - run.remove_jointly({})).abs().max() > 1e-3


@torch.no_grad()
def test_overwritten_views_are_left_to_whole_passes() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(256, 6), nn.Linear(6, 3)
            self.skip = nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.skip(x.flatten(1))
            view = skip.view(-1, 3)
            out = self.last(F.relu(self.first(x.flatten(1)))) + skip
            view.mul_(0.5)
            return out + skip

    model = networks.settle(Shared())
    graph = capture(model, X[:2])
    for value in ("zero", "resample"):
        run = Interventions(model, graph, example=X[:1], value=value)
        close(run.observe(X), model(X))
        if value == "zero":
            for unit in range(6):
                with removed(model, graph, {"first": [unit]}):
                    close(run.remove("first", [unit])[0], model(X))
            assert run.cost("first") == 1.0


@torch.no_grad()
def test_images_on_which_the_unit_is_zero_are_skipped_exactly() -> None:
    model = networks.vgg()
    with torch.no_grad():
        model[1].bias[2] = -100.0  # a filter that never fires
    graph = capture(model, X[:2])
    run = Interventions(model, graph, example=X[:1])
    plain = run.observe(X)
    assert torch.equal(run.remove("0", [2])[0], plain) and run.rows_run == 0
    run.remove("0", [0])
    assert 0 < run.rows_run <= 9


@torch.no_grad()
def test_cost_is_the_share_of_the_work() -> None:
    model, graph = cases("lenet")
    run = Interventions(model, graph, example=X[:1])
    macs = {"conv1": 4 * 25 * 256, "conv2": 6 * 100 * 16, "fc1": 240, "fc2": 80, "fc3": 24}
    total = sum(macs.values())
    # The consumer's share of one input channel, then everything behind it.
    expected = macs["conv2"] / 4 + macs["fc1"] + macs["fc2"] + macs["fc3"]
    assert run.cost("conv1") == pytest.approx(expected / total)
    assert run.cost("fc2") == pytest.approx(macs["fc3"] / 8 / total)


@torch.no_grad()
def test_memory_is_bounded_by_parts() -> None:
    model, graph = cases("vgg")
    run = Interventions(model, graph, example=X[:1], max_cache_bytes=20_000)
    assert 1 <= run.images_per_part < 9
    whole = Interventions(model, graph, example=X[:1])
    assert whole.images_per_part > 9
    run.observe(X), whole.observe(X)
    for group in graph.groups:
        every = range(group.n_units)
        close(run.remove(group.name, every), whole.remove(group.name, every))


def test_nothing_of_the_network_changes() -> None:
    model, graph = cases("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        run = Interventions(model, graph, example=X[:1])
        run.observe(X)
        run.remove("stem", [0, 1])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_bad_input() -> None:
    model, graph = cases("lenet")
    with pytest.raises(UnknownNameError, match="one"):
        Interventions(model, graph, example=X[:1], value="one")
    with pytest.raises(InvalidArgumentError, match="calibrate"):
        Interventions(model, graph, example=X[:1], value="mean").observe(X)
    with pytest.raises(InvalidArgumentError, match="at least two images"):
        Interventions(model, graph, example=X[:1], value="resample").observe(X[:1])
    run = Interventions(model, graph, example=X[:1])
    run.observe(X)
    with pytest.raises(InvalidArgumentError, match="units"):
        run.remove("conv1", [4])
    with pytest.raises(UnknownNameError, match="conv9"):
        run.remove("conv9", [0])
    with pytest.raises(InvalidArgumentError, match="masks"):
        run.remove_masked({"conv1": torch.zeros(9, 5, dtype=torch.bool)})


@torch.no_grad()
def test_a_vision_transformer() -> None:
    """Heads and hidden units of torchvision's own class, small, all outputs at work."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = networks.settle(VisionTransformer(32, 8, 2, 4, 32, 24, num_classes=5))
    x = torch.randn(4, 3, 32, 32)
    graph = capture(model, x[:2])
    assert {group.kind for group in graph.groups} == {"head", "hidden"}
    run = Interventions(model, graph, example=x[:1])
    plain = run.observe(x)
    for group in graph.groups:
        chosen = [0, group.n_units // 2, group.n_units - 1]
        for unit, output in zip(chosen, run.remove(group.name, chosen), strict=True):
            with removed(model, graph, {group.name: [unit]}):
                expected = model(x)
            close(output, expected)
            assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()
