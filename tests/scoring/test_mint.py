"""MINT against its definitions: log-determinants, hooks, planted parents, masks by hand."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from causalprune import reference
from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.ops import spanning_tree_information
from causalprune.scoring import mint_masks, random_masks, score
from causalprune.scoring.mint import gaussian_information

X, Y = networks.images(60), networks.targets(60)


# ---- the Gaussian estimator ----------------------------------------------------------------------


def log_determinants(
    children: Tensor, parents: Tensor, child_block: int, parent_block: int
) -> Tensor:
    """I(X; Y | Z) of every pair of blocks from four log-determinants, float64."""
    n_children, n = children.shape[1], children.shape[1] + parents.shape[1]
    joint = torch.cat([children, parents], 1).double()
    joint = joint - joint.mean(0)
    s = joint.T @ joint / len(joint) + 1e-2 * torch.eye(n, dtype=torch.float64)

    def entropy(*columns: int) -> Tensor:
        at = torch.tensor(sorted(columns), dtype=torch.int64)
        return torch.linalg.slogdet(s[at][:, at]).logabsdet

    rows = []
    for first in range(0, n_children, child_block):
        x = range(first, min(first + child_block, n_children))
        row = []
        for start in range(n_children, n, parent_block):
            y = range(start, min(start + parent_block, n))
            z = set(range(n_children, n)) - set(y)
            parts = entropy(*x, *z) + entropy(*y, *z) - entropy(*z) - entropy(*x, *y, *z)
            row.append(0.5 * parts)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def standardised(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


@pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (1, 3), (2, 3), (9, 9)])
@pytest.mark.parametrize("sizes", [(4, 7), (5, 5), (1, 2)])
def test_gaussian_equals_the_log_determinants(
    sizes: tuple[int, int], blocks: tuple[int, int]
) -> None:
    parents = torch.randn(400, sizes[1]).double()
    mixed = parents @ torch.randn(sizes[1], sizes[0]).double() / sizes[1] ** 0.5
    children = standardised(mixed + torch.randn(400, sizes[0]).double())
    parents = standardised(parents)
    got = gaussian_information(children, parents, child_block=blocks[0], parent_block=blocks[1])
    want = log_determinants(children, parents, *blocks)
    assert got.shape == want.shape
    # The log-determinants themselves round at some 1e-15; methods.md measured 5e-15.
    torch.testing.assert_close(got, want, rtol=0, atol=5e-15 * max(blocks))


def test_planted_parents_come_first_and_both_estimators_agree() -> None:
    n, strengths = 3000, torch.tensor([3.0, 1.5, 0.7, 0.0])
    parents = standardised(torch.randn(n, 4))
    children = torch.stack([parents @ strengths, parents @ strengths.flip(0)], 1)
    children = standardised(children + 0.7 * torch.randn(n, 2))
    gaussian = gaussian_information(children, parents)
    mst = spanning_tree_information(children, parents)
    order = torch.arange(4)
    assert torch.equal(gaussian[0].argsort(descending=True), order)
    assert torch.equal(gaussian[1].argsort(), order)
    assert gaussian[0, 3] < 5e-3 and gaussian[1, 0] < 5e-3
    assert spearmanr(gaussian.flatten(), mst.flatten()).statistic > 0.8
    for child in (0, 1):
        assert mst[child].argmax() == gaussian[child].argmax()


def test_independent_units_score_nearly_zero() -> None:
    parents, children = torch.randn(3000, 6), torch.randn(3000, 5)
    assert gaussian_information(children, parents).max() < 5e-3
    assert spanning_tree_information(children, parents).mean() < 0.12


# ---- the method on networks ----------------------------------------------------------------------


def behind(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer of the VGG-like chain to what it reads and what the next layer sees of it."""
    with torch.no_grad():
        first = model[:4](x)
        second = model[:7](x)
        flat = model[:10](x)
        hidden = model[:12](x)
        logits = model(x)
    return {
        "4": (second.mean((2, 3)), first.mean((2, 3))),
        "10": (hidden, flat.unflatten(1, (-1, 4)).mean(2)),
        "12": (logits, hidden),
    }


def assert_edges(edges: Any, want: dict[str, Tensor], atol: float) -> None:
    assert set(edges) == set(want)
    for layer, expected in want.items():
        np.testing.assert_allclose(edges[layer], expected.numpy(), atol=atol)


def spread(columns: Tensor) -> Tensor:
    columns = columns.double()
    deviation = columns.std(0, correction=0)
    return torch.where(deviation > 0, (columns - columns.mean(0)) / deviation, 0.0)


def test_gaussian_on_a_network() -> None:
    model = networks.vgg()
    scores = score(model, (X, Y), "mint", batch_size=17)
    want = {
        layer: gaussian_information(spread(children), spread(parents))
        for layer, (children, parents) in behind(model, X).items()
    }
    assert_edges(scores.edges, want, 1e-4)
    for group, consumer in (("0", "4"), ("4", "10"), ("10", "12")):
        got = scores.frame[scores.frame["layer"] == group]["importance"].to_numpy()
        np.testing.assert_allclose(got, scores.edges[consumer].sum(0), rtol=1e-9)
    assert (scores.frame["n"] == 60).all() and scores.frame["cost"].sum() == pytest.approx(60)


def test_mst_on_a_network() -> None:
    model = networks.vgg()
    scores = score(model, (X, Y), "mint", estimator="mst", seed=5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    for layer, (children, parents) in behind(model, X).items():
        x, p = spread(children)[order], spread(parents)[order]
        crossings = reference.spanning_tree_crossings(x, p)
        alive = (p != 0).any(0)[None] & (x != 0).any(0)[:, None]
        want = torch.where(alive, (1 - crossings / 20).clamp(min=0), 0.0)
        # float32 in the network's last bits may exchange one edge of a tree.
        np.testing.assert_allclose(scores.edges[layer], want.numpy(), atol=0.1001)
        assert np.mean(scores.edges[layer] != want.numpy()) < 0.2


@pytest.mark.parametrize("name", networks.ALL)
def test_every_network_of_the_tests_has_finite_scores(name: str) -> None:
    for estimator in ("gaussian", "mst"):
        frame = score(networks.ALL[name](), (X, Y), "mint", estimator=estimator).frame
        assert np.isfinite(frame["importance"]).all() and (frame["importance"] >= 0).all()
        assert frame["importance"].max() > 0


def test_a_dead_unit_scores_zero() -> None:
    model = networks.vgg()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 0.0
        model[1].running_mean[1], model[1].bias[1] = 0.0, -1.0
    frame = score(model, (X, Y), "mint").frame
    assert frame["importance"][1] == 0.0 and frame["importance"][0] > 0


@pytest.mark.parametrize("options", [{"group_size": 2}, {"n_groups": 2}])
def test_groups_share_a_score(options: dict[str, int]) -> None:
    model = networks.vgg()
    scores = score(model, (X, Y), "mint", **options)
    children, parents = behind(model, X)["4"]
    child, parent = (2, 2) if "group_size" in options else (3, 2)
    blocks = gaussian_information(
        spread(children), spread(parents), child_block=child, parent_block=parent
    )
    want = blocks.repeat_interleave(child, 0).repeat_interleave(parent, 1)
    np.testing.assert_allclose(scores.edges["4"], want.numpy(), atol=1e-4)
    got = scores.frame["importance"].to_numpy()[:4]
    np.testing.assert_allclose(got, blocks.sum(0).repeat_interleave(parent).numpy(), atol=1e-4)


# ---- the images ----------------------------------------------------------------------------------


def test_the_first_images_of_every_class_are_used() -> None:
    model = networks.lenet()
    few = score(model, (X[:15], Y[:15]), "mint", samples_per_class=5)
    many = score(model, (X, Y), "mint", samples_per_class=5, batch_size=7)
    np.testing.assert_allclose(few.frame["importance"], many.frame["importance"], atol=1e-4)
    assert (many.frame["n"] == 15).all() and not any("fewer" in note for note in many.notes)


def test_a_small_class_gives_what_it_has_and_is_noted() -> None:
    keep = (Y != 2) | (torch.arange(60) < 9)
    scores = score(networks.lenet(), (X[keep], Y[keep]), "mint", samples_per_class=20)
    assert (scores.frame["n"] == 43).all()
    assert "classes with fewer than 20 images: 2 (3)" in scores.notes


def test_too_few_images_for_the_parents_are_noted() -> None:
    few, enough = (score(networks.mlp(), (X[:n], Y[:n]), "mint").notes for n in (6, 9))
    assert any("mostly ridge: 3" in note for note in few)
    assert not any("ridge" in note for note in enough)


def test_bad_data_is_named() -> None:
    model = networks.lenet()
    with pytest.raises(DataError, match="none of 0, 2"):
        score(model, (X, torch.ones_like(Y)), "mint")
    with pytest.raises(DataError, match=r"below 3.*got 7"):
        score(model, (X, Y + 5 * (Y == 2)), "mint")
    with pytest.raises(DataError, match="6 images, got 3"):
        score(model, (X, Y), "mint", samples_per_class=1)
    with pytest.raises(DataError, match="targets"):
        score(model, X, "mint")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples_per_class": 0}, "samples_per_class.*0"),
        ({"group_size": 1.5}, "group_size.*1.5"),
        ({"n_groups": True}, "n_groups.*True"),
        ({"n_groups": 2, "group_size": 2}, "n_groups.*group_size"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        score(networks.lenet(), (X, Y), "mint", **options)
    with pytest.raises(UnknownNameError, match="gaussian, mst"):
        score(networks.lenet(), (X, Y), "mint", estimator="knn")


# ---- masks ---------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    scores = {"a": torch.tensor([[0.1, 0.5], [0.2, 0.6]]), "b": torch.tensor([[0.9, 0.3, 0.8]])}
    masks = mint_masks(scores, 3 / 7)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [[True, False, True]]
    capped = mint_masks(scores, 3 / 7, gamma=0.25)
    assert capped["a"].tolist() == [[False, True], [True, True]]  # its own quantile: one of four
    assert capped["b"].tolist() == [[True, True, True]]  # none of three stays below a quarter


def test_masks_take_a_global_share_and_no_more_than_gamma_of_a_layer() -> None:
    # Distinct values: torch.rand repeats some, and ties go together.
    low, high = torch.randperm(600) / 600, torch.randperm(1000) / 1000 + 0.5001
    scores = {"low": low.view(20, 30), "high": high.view(40, 25)}
    free, capped = mint_masks(scores, 0.4), mint_masks(scores, 0.4, gamma=0.7)
    masked = sum(int((~m).sum()) for m in free.values())
    assert masked == int(0.4 * 1600)
    assert (~free["low"]).double().mean() > 0.7
    assert (~capped["low"]).double().mean() == pytest.approx(0.7)
    assert torch.equal(free["high"], capped["high"])
    for layer, mask in free.items():
        if mask.any() and not mask.all():
            assert scores[layer][mask].min() > scores[layer][~mask].max()


def test_masks_at_the_ends_and_under_ties() -> None:
    scores = {"a": torch.tensor([[0.0, 0.0, 0.0, 1.0]])}
    assert mint_masks(scores, 0.0)["a"].all() and not mint_masks(scores, 1.0)["a"].any()
    assert mint_masks(scores, 0.25)["a"].tolist() == [[False, False, False, True]]


def test_masked_blocks_change_a_network_as_zeroed_weights_do() -> None:
    model = networks.vgg()
    scores = score(model, (X, Y), "mint")
    masks = mint_masks(scores.edges, 0.5, 0.6)
    for layer, mask in masks.items():
        weight = model.get_submodule(layer).weight
        wide = mask.repeat_interleave(weight.shape[1] // mask.shape[1], 1)
        assert wide.shape == weight.shape[:2]
        with torch.no_grad():
            weight.mul_(wide.reshape(*wide.shape, *[1] * (weight.ndim - 2)))
    with torch.no_grad():
        assert torch.isfinite(F.softmax(model(X), 1)).all()


@pytest.mark.parametrize("options", [{}, {"group_size": 2}, {"n_groups": 3}])
def test_random_masks_are_as_sparse_and_no_better_than_chance(options: dict[str, int]) -> None:
    model = networks.depthwise()
    scores = score(model, (X, Y), "mint", **options)
    masks = mint_masks(scores.edges, 0.6)
    drawn = [random_masks(masks, scores.edges, **options, seed=seed) for seed in range(40)]
    size = options.get("group_size", 1)
    for layer, mask in masks.items():
        edges = torch.from_numpy(scores.edges[layer])
        rows, columns = (
            -(-n // options["n_groups"]) if "n_groups" in options else size for n in mask.shape
        )
        blocks = mask[::rows, ::columns]
        for other in drawn:
            got = other[layer][::rows, ::columns]
            assert got.sum() == blocks.sum()
            assert torch.equal(other[layer][edges == 0], mask[edges == 0])
            wide = got.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            assert torch.equal(wide[: len(mask), : mask.shape[1]], other[layer])
        tied = edges[::rows, ::columns] > 0
        if 0 < blocks[tied].sum() < tied.sum():
            share = blocks[tied].double().mean()
            often = torch.stack([o[layer][::rows, ::columns][tied] for o in drawn]).double().mean(0)
            # Of 40 draws: six standard deviations
            assert ((often - share).abs() <= 6 * (share * (1 - share) / 40).sqrt()).all()
    again = random_masks(masks, scores.edges, **options, seed=7)
    assert all(torch.equal(again[layer], drawn[7][layer]) for layer in masks)


def test_random_masks_want_the_scores_of_the_masks() -> None:
    masks = {"a": torch.ones(2, 3, dtype=torch.bool)}
    for scores in ({"b": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}):
        with pytest.raises(InvalidArgumentError, match=r"scores\['a'\]"):
            random_masks(masks, scores)


@pytest.mark.parametrize(
    ("scores", "delta", "gamma", "words"),
    [
        ({"a": torch.ones(2, 2)}, 1.5, 1.0, "delta_quantile.*1.5"),
        ({"a": torch.ones(2, 2)}, 0.5, -0.1, "gamma.*-0.1"),
        ({}, 0.5, 0.5, "at least one score"),
        ({"a": torch.tensor([[float("nan")]])}, 0.5, 0.5, "finite.*'a'"),
    ],
)
def test_bad_masks_are_named(
    scores: dict[str, Tensor], delta: float, gamma: float, words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        mint_masks(scores, delta, gamma)
