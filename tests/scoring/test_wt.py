from __future__ import annotations

import copy
import math

import pytest
import torch
from networks import lenet, residual
from scoring.keep_ratio_cases import NETWORKS, importance_of, parameters_of, some_images, weights_of
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import InvalidArgumentError
from causalprune.graph import UnitGraph
from causalprune.scoring import OUTCOMES, Job, as_batches
from causalprune.scoring.keep_budgets import top_weights, weight_layers, weights_to_keep
from causalprune.scoring.sensitivities import relative_sensitivities


@pytest.mark.parametrize("network", NETWORKS)
def test_magnitudes_of_all_weights(network: str) -> None:
    model = NETWORKS[network]()
    scores = cp.score(model, some_images(1), method="wt")
    weights = weights_of(model)
    assert scores.edges.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(scores.edges[name]), weight.abs())
    l1 = importance_of(cp.score(model, some_images(1), method="l1").frame)
    for group, values in importance_of(scores.frame).items():
        torch.testing.assert_close(values, l1[group])


def test_edges_survive_a_file(tmp_path: object) -> None:
    scores = cp.score(lenet(), some_images(1), method="wt")
    loaded = cp.Scores.load(scores.save(f"{tmp_path}/wt.npz"))
    assert all((loaded.edges[name] == scores.edges[name]).all() for name in scores.edges)


@pytest.mark.parametrize("network", NETWORKS)
def test_top_weights_are_the_largest_of_the_network(network: str) -> None:
    model = NETWORKS[network]()
    scores = {name: weight.abs() for name, weight in weights_of(model).items()}
    size, total = parameters_of(model), sum(w.numel() for w in scores.values())
    before: dict[str, Tensor] = {}
    for keep_ratio in (1.0, 0.83, 0.5, 0.31):
        budget = math.floor(keep_ratio * size) - (size - total)
        assert weights_to_keep(model, keep_ratio) == budget
        found = top_weights(model, scores, keep_ratio)
        assert found.kept == budget
        assert found.keep_ratio == pytest.approx((size - total + budget) / size)
        assert abs(found.keep_ratio - keep_ratio) <= 1 / size
        kept = torch.cat([scores[n][m] for n, m in found.masks.items()])
        gone = torch.cat([scores[n][~m] for n, m in found.masks.items()])
        assert not len(gone) or kept.min() >= gone.max()
        for name, mask in found.masks.items():
            assert mask.shape == scores[name].shape and mask.dtype == torch.bool
            assert not before or not bool((mask & ~before[name]).any())
        before = dict(found.masks)


def test_equal_scores_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    scores = {"0": torch.tensor([[1.0, 2.0], [1.0, 1.0]]), "1": torch.tensor([[1.0, 3.0]])}
    masks = top_weights(model, scores, 0.67).masks
    assert masks["0"].tolist() == [[True, True], [True, False]]
    assert masks["1"].tolist() == [[False, True]]


def test_layers_without_scores_stay_whole() -> None:
    model = lenet()
    weights = weights_of(model)
    scores = {name: w.abs() for name, w in weights.items() if name != "fc1"}
    found = top_weights(model, scores, 0.5)
    assert bool(found.masks["fc1"].all())
    assert found.kept == weights_to_keep(model, 0.5)
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: layers without scores \(fc1\)"):
        top_weights(model, scores, 0.15)


def test_size_of_the_original_and_shared_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert list(weight_layers(model)) == ["0"]
    assert weights_to_keep(model, 0.75) == 18 - 8
    assert weights_to_keep(model, 0.5, original_size=40) == 12
    assert weights_to_keep(model, 1.0, original_size=400) == 16


def test_weights_that_are_computed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    for k in (0, 2):
        nn.utils.parametrizations.weight_norm(model[k])
    assert list(weight_layers(model)) == ["0", "2", "4"]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    loss = OUTCOMES["loss"]
    edges, _ = relative_sensitivities(
        Job(model, UnitGraph(()), as_batches(x, labels=False), loss), "max"
    )
    plain = copy.deepcopy(model)
    for k in (0, 2):
        nn.utils.parametrize.remove_parametrizations(plain[k], "weight")
    wanted, _ = relative_sensitivities(
        Job(plain, UnitGraph(()), as_batches(x, labels=False), loss), "max"
    )
    assert edges.keys() == wanted.keys() == {"0", "2", "4"}
    assert all(torch.equal(edges[name], wanted[name]) for name in wanted)


def test_bad_input() -> None:
    model = residual()
    for ratio in (0, -0.5, 1.5, True, "half", math.nan):
        with pytest.raises(InvalidArgumentError, match=r"^keep_ratio: expected a number"):
            weights_to_keep(model, ratio)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: expected at least 0\.\d+"):
        weights_to_keep(model, 0.01)
    with pytest.raises(InvalidArgumentError, match="original_size"):
        weights_to_keep(model, 0.5, original_size=3)
    scores = {name: w.abs() for name, w in weights_of(model).items()}
    for broken in (scores["fc"][:1], torch.full_like(scores["fc"], torch.nan)):
        with pytest.raises(InvalidArgumentError, match=r"scores: .*'fc'"):
            top_weights(model, {**scores, "fc": broken}, 0.5)
    with pytest.raises(InvalidArgumentError, match="'nowhere'"):
        top_weights(model, {"nowhere": scores["fc"]}, 0.5)
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.inf
    with pytest.raises(InvalidArgumentError, match="weight of layer 'fc' is not finite"):
        cp.score(model, some_images(1), method="wt")
