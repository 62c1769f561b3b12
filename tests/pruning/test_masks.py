"""Masks of single weights: budgets, patterns, training, files."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import (
    InvalidArgumentError,
    RecordError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.graph import capture
from causalprune.pruning.blocks import prune_blocks, remove_vanished, vanished_units
from causalprune.pruning.masks import (
    apply_masks,
    holding,
    load_masks,
    n_of_m_masks,
    save_masks,
)
from causalprune.pruning.weights import prune_n_of_m, prune_weights, spread_blocks
from causalprune.scoring import score
from causalprune.scoring.keep_budgets import weight_layers

X, Y = networks.images(24), networks.targets(24)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def left(model: nn.Module) -> int:
    """Parameters that are not zero; norms and biases count, whatever they are."""
    weights = [layer.weight for layer in weight_layers(model).values()]
    return parameters(model) - sum(int((w == 0).sum()) for w in weights)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# ---- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.37, 0.8])
@pytest.mark.parametrize("method", ["wt", "sipp", "snip"])
@pytest.mark.parametrize("name", ["lenet", "residual", "vgg"])
def test_the_keep_ratio_is_met_to_the_weight(name: str, method: str, ratio: float) -> None:
    model = networks.ALL[name]()
    before = copy.deepcopy(model.state_dict())
    sparse, budget = prune_weights(model, (X, Y), method, ratio)
    assert left(sparse) == math.floor((1 - ratio) * parameters(model) + 1e-9)
    assert budget.keep_ratio == left(sparse) / parameters(model)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    layers = weight_layers(sparse)
    for layer, mask in budget.masks.items():
        assert torch.equal(layers[layer].weight != 0, mask)
        weight = before[f"{layer}.weight"]
        assert torch.equal(layers[layer].weight, torch.where(mask, weight, 0.0))


def test_magnitudes_are_ranked_over_the_whole_network() -> None:
    model = networks.vgg()
    sparse, budget = prune_weights(model, method="wt", ratio=0.6)
    weights = [layer.weight.detach().abs() for layer in weight_layers(model).values()]
    kept = torch.cat([w[m] for w, m in zip(weights, budget.masks.values(), strict=True)])
    gone = torch.cat([w[~m] for w, m in zip(weights, budget.masks.values(), strict=True)])
    assert float(kept.min()) >= float(gone.max())
    assert sparse.training == model.training


@pytest.mark.parametrize("form", ["randomised", "hybrid"])
def test_drawn_weights_come_within_half_a_percent_and_are_scaled(form: str) -> None:
    model = networks.lenet()
    sparse, budget = prune_weights(model, X, "sipp", 0.5, form=form, seed=5)
    assert abs(left(sparse) / parameters(model) - 0.5) < 0.005 * 0.5
    assert budget.keep_ratio == left(sparse) / parameters(model)
    expected = copy.deepcopy(model)
    for name, layer in weight_layers(expected).items():
        with torch.no_grad():
            layer.weight.mul_(budget.scale[name])
    close(sparse(X), expected(X))


def test_what_leaves_no_weight_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: expected at least"):
        prune_weights(networks.residual(), method="wt", ratio=0.999)
    for ratio in (1.0, -0.1, float("nan"), True):
        with pytest.raises(InvalidArgumentError, match="ratio"):
            prune_weights(networks.lenet(), method="wt", ratio=ratio)
    with pytest.raises(UnknownNameError, match="method that scores single weights"):
        prune_weights(networks.lenet(), X, "l1")
    with pytest.raises(UnknownNameError, match="form of sipp"):
        prune_weights(networks.lenet(), X, "sipp", form="drawn")
    with pytest.raises(InvalidArgumentError, match="form"):
        prune_weights(networks.lenet(), X, "wt", form="hybrid")
    with pytest.raises(InvalidArgumentError, match=r"data: method 'sipp' needs images"):
        prune_weights(networks.lenet())
    for method in ("wt", "sipp"):
        with pytest.raises(InvalidArgumentError, match="outcome"):
            prune_weights(networks.lenet(), X, method, outcome="margin")
        with pytest.raises(UnknownNameError, match=f"option of method '{method}'"):
            prune_weights(networks.lenet(), X, method, steps=3)


def test_weights_that_are_computed_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(UnsupportedModelError, match=r"weight of layer '0' is computed"):
        prune_weights(model, method="wt", ratio=0.3)


# ---- n of m --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 5)])
def test_n_of_every_m_inputs_stay_and_they_are_the_best(n: int, m: int) -> None:
    score_of = {"conv": torch.rand(3, 2 * m, 2, 3), "fc": torch.rand(5, m), "odd": torch.rand(2, 7)}
    masks = n_of_m_masks(score_of, n, m)
    assert set(masks) == {"conv", "fc"}
    for name, mask in masks.items():
        runs = mask.movedim(1, -1).reshape(-1, m)
        assert runs.sum(1).eq(n).all()
        values = score_of[name].movedim(1, -1).reshape(-1, m)
        worst = torch.where(runs, values, torch.inf).amin(1)
        assert (worst >= torch.where(runs, -torch.inf, values).amax(1)).all()


def test_two_of_four_by_magnitude_and_by_connections() -> None:
    model = networks.vgg()
    sparse, budget = prune_n_of_m(model)
    assert budget.keep_ratio == left(sparse) / parameters(model)
    assert budget.masks["0"].all()  # one input: no run of four
    runs = sparse[4].weight.movedim(1, -1).reshape(-1, 4)
    assert (runs != 0).sum(1).eq(2).all()
    scores = replace(score(model, X, "l2"), edges={"4": np.random.default_rng(1).random((6, 4))})
    informed, _ = prune_n_of_m(model, scores, layers=("4",))
    kept = (informed[4].weight != 0).flatten(2)
    assert (kept == kept[..., :1]).all()  # all kernel positions of a connection alike
    best = torch.from_numpy(scores.edges["4"]).argsort(1, descending=True)[:, :2]
    assert kept[..., 0].gather(1, best).all()
    assert torch.equal(informed[10].weight, model[10].weight)
    with pytest.raises(InvalidArgumentError, match=r"scores: expected a method .*'l2'"):
        prune_n_of_m(model, score(model, X, "l2"))


def test_patterns_that_do_not_exist_are_refused() -> None:
    for n, m in ((0, 4), (4, 4), (2, 2.0), (True, 4)):
        with pytest.raises(InvalidArgumentError, match="n, m"):
            n_of_m_masks({"a": torch.rand(2, 4)}, n, m)
    with pytest.raises(InvalidArgumentError, match=r"multiple of 64"):
        prune_n_of_m(networks.vgg(), n=2, m=64)
    with pytest.raises(InvalidArgumentError, match=r"multiple of 4 inputs, got 1"):
        prune_n_of_m(networks.vgg(), layers=("0",))
    with pytest.raises(UnknownNameError, match="layer to prune"):
        prune_n_of_m(networks.vgg(), layers=("conv9",))


# ---- holding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_no_optimiser_revives_a_weight(kind: str) -> None:
    torch.manual_seed(3)
    model, budget = prune_weights(networks.residual(), method="wt", ratio=0.5)
    free = copy.deepcopy(model)

    def train(network: nn.Module) -> None:
        made = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
            "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        }
        optimiser = made[kind](network.parameters())
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(X), Y).backward()
            optimiser.step()

    train(free)
    assert left(free) > left(model)  # without holding they do come back
    with holding(model, budget.masks):
        train(model)
    for name, layer in weight_layers(model).items():
        assert torch.equal(layer.weight != 0, budget.masks[name])
    train(model)
    assert left(model) > round(budget.keep_ratio * parameters(model))  # and afterwards, too


def test_masks_that_do_not_fit_are_refused() -> None:
    model = networks.lenet()
    with pytest.raises(InvalidArgumentError, match=r"masks: expected names of .*, got 'bn'"):
        apply_masks(model, {"bn": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(InvalidArgumentError, match=r"masks\['fc3'\]: expected bool of shape"):
        apply_masks(model, {"fc3": torch.ones(8, 3, dtype=torch.bool)})
    with pytest.raises(InvalidArgumentError, match=r"got torch\.float32"):
        apply_masks(model, {"fc3": torch.ones(3, 8)})


# ---- files ---------------------------------------------------------------------------------------


def test_masks_come_back_from_disk() -> None:
    masks = {
        "conv": torch.rand(3, 5, 3, 1) > 0.5,
        "a/b.weight": torch.rand(7) > 0.5,
        "": torch.zeros(0, 4, dtype=torch.bool),
    }
    found = load_masks(save_masks("masks.npz", masks))
    assert list(found) == list(masks)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    assert b"pickle" not in Path("masks.npz").read_bytes()


def test_broken_mask_files_are_told() -> None:
    path = save_masks("masks.npz", {"a": torch.ones(9, 9, dtype=torch.bool)})
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"{}"):
        path.write_bytes(broken)
        with pytest.raises(RecordError, match="masks"):
            load_masks(path)
    np.savez("other.npz", meta=np.array(json.dumps({"schema": 99, "shapes": {}})))
    with pytest.raises(RecordError, match="schema 1, got 99"):
        load_masks("other.npz")
    with pytest.raises(RecordError):
        load_masks("none.npz")
    with pytest.raises(InvalidArgumentError, match="expected bool"):
        save_masks("masks.npz", {"a": torch.ones(2)})


# ---- blocks --------------------------------------------------------------------------------------


def test_connections_behind_a_flatten_take_their_maps_columns() -> None:
    model = networks.lenet()
    scores = score(model, (X, Y), "mint", samples_per_class=8)
    sparse, budget = prune_blocks(model, scores, 0.5)
    assert set(budget.masks) == {"conv2", "fc1", "fc2", "fc3"}
    kernels = (sparse.conv2.weight != 0).flatten(2)
    assert (kernels == kernels[..., :1]).all()
    maps = (sparse.fc1.weight != 0).reshape(10, 6, 4)
    assert (maps == maps[..., :1]).all() and not maps.all()
    edges = {name: torch.from_numpy(edge) for name, edge in scores.edges.items()}
    assert float(edges["fc1"][maps[..., 0]].min()) > float(edges["fc1"][~maps[..., 0]].max())
    with pytest.raises(InvalidArgumentError, match=r"blocks\['fc1'\]"):
        spread_blocks(model, scores, {"fc1": torch.ones(10, 5)})
    with pytest.raises(UnknownNameError, match="layer to mask"):
        prune_blocks(model, scores, 0.5, layers=["conv1"])
    with pytest.raises(InvalidArgumentError, match="scores connections"):
        prune_blocks(model, score(model, X, "l1"), 0.5)


def test_units_without_a_connection_vanish_for_good() -> None:
    model = networks.lenet()
    masks = {
        name: torch.ones(layer.weight.shape, dtype=torch.bool)
        for name, layer in weight_layers(model).items()
    }
    masks["fc1"][:, 8:12] = False  # map 2 of conv2: nobody reads it
    masks["fc1"][:, 12:15] = False  # map 3 keeps one place
    masks["fc2"][:, [1, 7]] = False  # units of fc1 that nobody reads
    masks["fc2"][4] = False  # a unit of fc2 that nothing makes: constant
    apply_masks(model, masks)
    expected = {"conv2": (2,), "fc1": (1, 7), "fc2": (4,)}
    assert vanished_units(model, capture(model, X), masks) == expected
    small, plan = remove_vanished(model, masks, X)
    assert plan.remove == expected
    assert parameters(small) == plan.after.parameters < parameters(model)
    close(small(X), model(X))
    with pytest.raises(InvalidArgumentError, match=r"expected zeros where 'fc1'"):
        remove_vanished(networks.lenet(), masks, X)


def test_the_last_unit_of_a_layer_never_vanishes() -> None:
    model = networks.mlp()
    masks = {"3": torch.zeros(5, 7, dtype=torch.bool)}
    apply_masks(model, masks)
    small, plan = remove_vanished(model, masks, X)
    assert plan.remove == {"1": (1, 2, 3, 4, 5, 6), "3": (1, 2, 3, 4)}
    close(small(X), model(X))
