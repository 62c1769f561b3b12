"""The explanatory graph against a walk that really changes the weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ttest_rel
from scoring.explanatory_cases import predicted
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, RecordError, UnsupportedModelError
from causalprune.scoring import (
    ExplanatoryGraph,
    Scores,
    explain,
    explanatory,
    score,
)


class Grouped(nn.Module):
    """A grouped convolution with circular padding behind a rectifier, and a token layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2, padding_mode="circular")
        self.tokens = nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.grouped(F.relu(self.first(x))))
        x = F.relu(self.tokens(x.flatten(2).transpose(1, 2)))
        return self.last(x).mean(1)


# Layer -> the group of its outputs, that of its inputs, and how many columns an input unit has.
STRUCTURE = {
    "lenet": {
        "fc3": ("output", "fc2", 1),
        "fc2": ("fc2", "fc1", 1),
        "fc1": ("fc1", "conv2", 4),
        "conv2": ("conv2", "conv1", 1),
    },
    "residual": {
        "fc": ("output", "block2.conv2", 1),
        "block2.shortcut.0": ("block2.conv2", "stem", 1),
        "block2.conv2": ("block2.conv2", "block2.conv1", 1),
        "block2.conv1": ("block2.conv1", "stem", 1),
        "block1.conv2": ("stem", "block1.conv1", 1),
        "block1.conv1": ("block1.conv1", "stem", 1),
    },
    "vgg": {
        "12": ("output", "10", 1),
        "10": ("10", "4", 4),
        "4": ("4", "0", 1),
    },
    "grouped": {
        "last": ("output", "tokens", 1),
        # A group of the convolution and what it reads are one unit, two columns wide behind it.
        "tokens": ("tokens", "first", 2),
    },
}


def build(name: str) -> nn.Module:
    return networks.settle(Grouped()) if name == "grouped" else networks.ALL[name]()


def responses(
    model: nn.Module, layer: str, rows: list[int], unit: int, width: int, value: float, x: Tensor
) -> Tensor:
    """Logits, in float64, of a copy of the network with these weights at `value`."""
    changed = copy.deepcopy(model).double()
    module = changed.get_submodule(layer)
    groups = getattr(module, "groups", 1)
    inputs, outputs = module.weight.shape[1], module.weight.shape[0] // groups
    with torch.no_grad():
        for row in rows:
            columns = torch.arange(unit * width, (unit + 1) * width)
            own = columns[columns // inputs == row // outputs]
            module.weight[row, own % inputs] = value
        return changed(x.double())


@pytest.mark.parametrize("test", ["paired", "unpaired"])
@pytest.mark.parametrize("beta", [None, 0.25])
@pytest.mark.parametrize("name", STRUCTURE)
def test_walk_equals_changed_weights(
    name: str, beta: float | None, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanatory, "BETA_WIDTH", 0.0)  # every draw is beta itself
    model = build(name)
    data, target, images = predicted(model)
    graph = explain(model, data, target, test=test, beta=beta, max_images=40)
    images = images[:40]
    n, observed = len(images), responses(model, *_nothing(name), images)[:, target]
    assert graph.n_images == n
    assert graph.mean == pytest.approx(float(observed.mean()), rel=1e-5)

    kept: dict[str, set[int]] = {"output": {target}}
    structure = STRUCTURE[name]
    assert [x.layer for x in graph.layers] == [
        layer for layer in structure if layer in {x.layer for x in graph.layers}
    ]
    reached = iter(graph.layers)
    for layer, (child, parent, width) in structure.items():
        if not kept.get(child):
            continue
        found = next(reached)
        rows = sorted(kept[child])
        assert (found.layer, found.child, list(found.effects)) == (layer, child, rows)
        under = torch.stack(
            [
                responses(model, layer, rows, c.unit, width, beta or 0.0, images)[:, target]
                for c in found.candidates
            ]
        )
        _check(found, under, observed, test)
        kept.setdefault(parent, set()).update(c.unit for c in found.causes)
        assert {c.parent for c in found.candidates} == {parent}
    assert next(reached, None) is None
    assert {g: set(u) for g, u in graph.kept.items()} == {
        g: u for g, u in kept.items() if g != "output" and u
    }


def _nothing(name: str) -> tuple[str, list[int], int, int, float]:
    return next(iter(STRUCTURE[name])), [], 0, 1, 0.0


def _check(found: explanatory.ExplanatoryLayer, under: Tensor, observed: Tensor, test: str) -> None:
    n, scale = len(observed), float(observed.abs().mean())
    effect = (under - observed).mean(1)
    for row, candidate in enumerate(found.candidates):
        assert candidate.effect == pytest.approx(float(effect[row]), abs=2e-5 * scale + 1e-6)
    if test == "paired":
        tested = ttest_rel(under.T.numpy(), observed[:, None].numpy(), alternative="less")
        statistic, bound = tested.statistic, None
        significant = tested.pvalue < 0.05
    else:
        bound = observed.mean() - 1.65 * (under.var(1) / n + observed.var() / n).sqrt()
        significant = (under.mean(1) < bound).numpy()
        statistic = None
    relative = ((under - observed) / observed.abs()).mean(1).numpy()
    expected, criterion = significant, "test"
    if not significant.any():
        expected, criterion = relative < -0.001, "relative change"
    if not expected.any():
        criterion = "none"
    clear = np.abs(effect.numpy()) > 1e-4 * scale  # rounding decides about no effect at all
    got = np.array([c.cause for c in found.candidates])
    differ = clear & (got != expected)
    if statistic is not None:
        near = np.abs([c.statistic for c in found.candidates] - statistic) < 0.02 * np.abs(
            statistic
        )
        assert near[clear].all()
    # A statistic at the very bound may fall on either side in float32.
    assert differ.sum() <= _at_the_bound(under, observed, test)[clear].sum()
    if not differ.any():
        assert found.criterion == criterion


def _at_the_bound(under: Tensor, observed: Tensor, test: str) -> np.ndarray:
    statistic, critical = explanatory.statistics(observed, under, test)
    return (statistic + critical).abs().numpy() < 0.02 * critical


# ---- the rules of the walk -----------------------------------------------------------------------


class Skipped(nn.Module):
    """The logits vary by what no unit carries; hidden units add little."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.hidden.weight.zero_()
            self.hidden.bias.fill_(1.0)
            self.last.weight.copy_(torch.tensor([[weight, -weight, 0.0], [0.0, 0.0, 0.0]]))
            self.last.bias.copy_(torch.tensor([50.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.hidden(x))) + 10 * x[:, :2]


def test_without_a_significant_unit_the_relative_change_decides() -> None:
    data = torch.randn(40, 4), torch.zeros(40, dtype=torch.int64)
    graph = explain(Skipped(1.0), data, 0, test="unpaired")
    (layer,) = graph.layers
    assert layer.criterion == "relative change"
    assert [c.unit for c in layer.causes] == [0]  # unit 1 speaks against the class
    assert layer.candidates[0].effect == pytest.approx(-1.0, abs=1e-5)
    # Paired, a change of one logit on every image alike is as clear as can be.
    (layer,) = explain(Skipped(1.0), data, 0).layers
    assert layer.criterion == "test" and [c.unit for c in layer.causes] == [0]


def test_without_any_cause_the_walk_ends() -> None:
    data = torch.randn(40, 4), torch.zeros(40, dtype=torch.int64)
    graph = explain(Skipped(0.01), data, 0, test="unpaired")
    (layer,) = graph.layers
    assert layer.criterion == "none" and layer.total == 3 and not layer.causes
    assert graph.kept == {} and graph.to_frame().empty
    assert "0/3" in repr(graph)


def test_a_single_image_has_no_test() -> None:
    graph = explain(Skipped(1.0), (torch.zeros(1, 4), torch.tensor([0])), 0)
    (layer,) = graph.layers
    assert layer.criterion == "relative change" and [c.unit for c in layer.causes] == [0]
    assert all(math.isnan(c.statistic) for c in layer.candidates)


def test_depthwise_layers_are_passed_over() -> None:
    model = networks.depthwise()
    data, target, _ = predicted(model)
    graph = explain(model, data, target)
    assert [(x.layer, x.child) for x in graph.layers] == [("5", "output"), ("2.0", "2.0")]
    assert {c.parent for c in graph.layer("2.0").candidates} == {"0.0"}


def test_outputs_that_are_no_units_are_all_effects() -> None:
    """An embedding that a layer norm mixes: the layers that add to it are taken whole."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 6, 4, stride=4)
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 6)
            self.last_norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = x + self.down(F.gelu(self.up(self.norm(x))))
            return self.head(self.last_norm(x).mean(1))

    model = networks.settle(Mixed())
    data, target, images = predicted(model)
    graph = explain(model, data, target, max_images=1000)
    (layer,) = graph.layers
    assert (layer.layer, layer.child, layer.effects) == ("down", "", ())
    whole = responses(model, "down", [], 0, 1, 0.0, images)[:, target]
    for candidate in layer.candidates:
        cut = responses(model, "down", list(range(6)), candidate.unit, 1, 0.0, images)[:, target]
        assert candidate.effect == pytest.approx(float((cut - whole).mean()), abs=1e-5)
    assert set(graph.to_frame()["child_unit"]) <= {-1}


def test_memory_and_batches_change_nothing() -> None:
    model = networks.residual()
    data, target, _ = predicted(model)
    whole = explain(model, data, target, max_images=9)
    parts = explain(model, data, target, max_images=9, batch_size=7, max_cache_bytes=1)
    for first, second in zip(whole.layers, parts.layers, strict=True):
        assert first.effects == second.effects
        for one, other in zip(first.candidates, second.candidates, strict=True):
            assert other.effect == pytest.approx(one.effect, abs=1e-5)


def test_soft_draws_repeat_with_their_seed() -> None:
    model = networks.lenet()
    data, target, _ = predicted(model)
    graphs = [explain(model, data, target, beta=0.1, seed=seed) for seed in (3, 3, 4)]
    effects = [[c.effect for x in g.layers for c in x.candidates] for g in graphs]
    assert effects[0] == effects[1] != effects[2]


# ---- bad input -----------------------------------------------------------------------------------


def test_classes_without_images() -> None:
    model = networks.lenet()
    (images, targets), target, _ = predicted(model)
    with pytest.raises(DataError, match=r"class 7.*no image"):
        explain(model, (images, targets), 7)
    wrong = torch.full_like(targets, (target + 1) % 3)
    chosen = images[targets == target]
    with pytest.raises(DataError, match=rf"class {(target + 1) % 3}.*none of them predicted"):
        explain(model, (chosen, wrong[: len(chosen)]), (target + 1) % 3)


@pytest.mark.parametrize(
    "options",
    [{"test": "z"}, {"beta": math.nan}, {"beta": "soft"}, {"max_images": 0}, {"target_class": -1}],
)
def test_bad_arguments(options: dict[str, object]) -> None:
    arguments = {"target_class": 0, **options}
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        explain(networks.lenet(), (torch.randn(3, 1, 16, 16), torch.zeros(3).long()), **arguments)


def test_a_network_without_units() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(UnsupportedModelError, match="no unit"):
        explain(model, (torch.randn(3, 1, 16, 16), torch.zeros(3).long()), 0)


# ---- the result ----------------------------------------------------------------------------------


def test_scores_carry_graphs_of_classes() -> None:
    model = networks.residual()
    data, target, _ = predicted(model)
    scores = score(model, data, "path", graphs=[target], test="unpaired")
    graph = scores.graph(target)
    assert graph == explain(model, data, target, test="unpaired")
    again = Scores.load(scores.save("scores.npz"))
    assert again.graph(target) == graph
    with pytest.raises(DataError, match=rf"classes \[{target}\].*got 8"):
        again.graph(8)
    with pytest.raises(DataError, match="no graph"):
        score(model, data, "path").graph(0)


def test_save_and_load(tmp_path: Path) -> None:
    graph = explain(Skipped(1.0), (torch.zeros(1, 4), torch.tensor([0])), 0)
    again = ExplanatoryGraph.load(graph.save(tmp_path / "graph.json"))
    assert repr(again) == repr(graph)
    assert str(again.layers) == str(graph.layers)  # NaN statistics included
    assert list(tmp_path.iterdir()) == [tmp_path / "graph.json"]
    for content in ("{", "[]", '{"schema": 9}', '{"schema": 1}'):
        (tmp_path / "graph.json").write_text(content)
        with pytest.raises(RecordError, match="explanatory graph"):
            ExplanatoryGraph.load(tmp_path / "graph.json")
    with pytest.raises(RecordError):
        ExplanatoryGraph.load(tmp_path / "nothing.json")


def test_frame_and_plot() -> None:
    model = networks.lenet()
    data, target, _ = predicted(model)
    graph = explain(model, data, target)
    frame = graph.to_frame()
    assert len(frame) == sum(len(x.causes) * len(x.effects) for x in graph.layers)
    last = frame[frame["layer"] == "fc3"]
    assert set(last["child_unit"]) == {target} and set(last["child"]) == {"output"}
    assert (frame["effect"] < 0).all()
    pytest.importorskip("matplotlib")
    (axis,) = graph.plot().axes
    assert len(axis.lines) >= len(frame) + sum(map(len, graph.kept.values()))
    with pytest.raises(DataError, match="fc3"):
        graph.layer("conv1")
