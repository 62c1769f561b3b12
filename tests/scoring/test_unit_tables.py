"""Per-unit tables: what is ablated, with what chance, and what stands in the rows."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch

import causalprune as cp
from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring import score, unit_table
from causalprune.scoring.unit_designs import draw_units, inclusion_probabilities

X, Y = networks.images(21), networks.targets(21)


def test_ablated_units_have_the_effects_of_exact_ablation() -> None:
    model = networks.lenet()
    table = unit_table(model, (X, Y), tail=0.1, sample=0.4, batch_size=8, units="filters")
    exact = score(model, (X, Y), "ablation", units="filters").frame
    assert (table[["layer", "unit"]] == exact[["layer", "unit"]]).all().all()
    done = table["ablated"]
    assert done.sum() == 14
    for column in ("effect", "se", "importance"):
        np.testing.assert_allclose(table[column][done], exact[column][done], rtol=1e-6, atol=1e-9)
        assert table[column][~done].isna().all()
    np.testing.assert_allclose(table["cost_ablation"], exact["cost"], rtol=1e-9)
    assert set(table["n"]) == {0, 21}


def test_features_are_the_scores_of_their_methods() -> None:
    model = networks.residual()
    table = unit_table(model, (X, Y), ("taylor", "l1"), "margin", intervention="mean")
    taylor = score(model, (X, Y), "taylor", "margin", intervention="mean").frame
    np.testing.assert_allclose(table["score_taylor"], taylor["importance"])
    np.testing.assert_allclose(table["effect_taylor"], taylor["effect"])
    assert "effect_l1" not in table and table.attrs["outcome"] == "margin"
    assert (table["size"] == table["score_taylor"]).all()
    # The largest are certain, and no unit is out of reach.
    certain = table["probability"] == 1
    assert table["size"][certain].min() >= table["size"][~certain].max()
    assert table["probability"].between(0, 1, inclusive="right").all()


def test_methods_that_do_not_take_an_outcome_stand_in_with_their_own() -> None:
    model = networks.lenet()
    table = unit_table(model, (X, Y), ("path",), "correctness", tail=0.5, sample=0.5)
    assert "effect_path" not in table  # it is the loss's
    exact = score(model, (X, Y), "ablation", "correctness").frame
    np.testing.assert_allclose(table["effect"], exact["effect"])


def test_callables_and_images_without_labels_will_do() -> None:
    def spread(logits: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        return logits.std(1)

    table = unit_table(networks.lenet(), X, ("path", "l2"), spread, sample=0.3)
    assert table["effect"].notna().sum() == table["ablated"].sum() > 5
    assert table.attrs["outcome"] == "spread" and "effect_path" in table


def test_a_seed_gives_the_same_table_and_the_network_stays_as_it_is() -> None:
    model = networks.lenet().train()
    before = [p.clone() for p in model.parameters()]
    tables = [unit_table(model, (X, Y), ("l1",), sample=0.3, seed=s) for s in (4, 4, 5)]
    assert tables[0].equals(tables[1]) and not tables[0]["ablated"].equals(tables[2]["ablated"])
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_inclusion_frequencies_are_the_recorded_probabilities() -> None:
    rng = np.random.default_rng(0)
    size, layers = rng.exponential(size=37) ** 2, ["a"] * 5 + ["b"] * 20 + ["c"] * 12
    chance = inclusion_probabilities(size, tail=0.05, sample=0.3, floor=0.2)
    assert chance.sum() == pytest.approx(13)
    drawn = np.array([draw_units(chance, layers, seed) for seed in range(4000)])
    assert (drawn.sum(1) == 13).all()
    error = np.sqrt(chance * (1 - chance) / len(drawn))
    assert (np.abs(drawn.mean(0) - chance) <= 4.5 * error + 1e-12).all()
    for layer in "abc":
        inside = np.array(layers) == layer
        counts, expected = drawn[:, inside].sum(1), chance[inside].sum()
        assert (np.abs(counts - expected) < 1 + 1e-9).all()


def test_uniform_sizes_and_dead_units_are_drawn_alike() -> None:
    even = inclusion_probabilities(np.array([0.0, 1.0, 5.0, 9.0]), tail=0, sample=0.5, floor=1)
    np.testing.assert_allclose(even, 0.5)
    np.testing.assert_allclose(
        inclusion_probabilities(np.zeros(8), tail=0.25, sample=0.25, floor=0.1)[2:], 1 / 3
    )


def test_wrong_arguments_are_refused_by_name() -> None:
    model, data = networks.lenet(), (X, Y)
    with pytest.raises(InvalidArgumentError, match="tail, sample"):
        unit_table(model, data, ("l1",), tail=0.6, sample=0.6)
    with pytest.raises(InvalidArgumentError, match="sample: expected a fraction that draws"):
        unit_table(model, data, ("l1",), tail=0.3, sample=0.0)
    with pytest.raises(InvalidArgumentError, match="floor"):
        unit_table(model, data, ("l1",), floor=0)
    with pytest.raises(InvalidArgumentError, match="different scoring methods"):
        unit_table(model, data, ("l1", "l1"))
    with pytest.raises(UnknownNameError, match="scoring method"):
        unit_table(model, data, ("l7",))
    with pytest.raises(InvalidArgumentError, match="at least 0 from the first one, 'banzhaf'"):
        unit_table(model, data, ("banzhaf", "l1"))
    with pytest.raises(InvalidArgumentError, match="size: expected finite"):
        inclusion_probabilities([1, -1], tail=0, sample=1, floor=1)


def test_it_is_public_and_feeds_the_analysis() -> None:
    table = cp.unit_table(networks.lenet(), (X, Y), sample=0.5)
    from causalprune.analysis import unit_effects

    found = unit_effects(table, "importance")
    exact = score(networks.lenet(), (X, Y), "ablation").frame
    assert found.units["effect"].corr(exact["importance"]) > 0.8
    assert found.cost == pytest.approx(table["cost"].sum())
    assert found.cost_exact == pytest.approx(exact["cost"].sum() + 21)
