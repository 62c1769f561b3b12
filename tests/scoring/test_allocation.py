"""Where a race spends: the gain it expects, what it buys, and what that saves on planted truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import networks
import numpy as np
import pytest
import torch
from torch import Tensor

from causalprune.scoring.allocation import best_within, error_reduction, sample_sizes
from causalprune.scoring.data import Batch
from causalprune.scoring.driver import open_job
from causalprune.scoring.racing import Race, RaceOptions
from causalprune.scoring.surrogates import Surrogate


@pytest.mark.parametrize(("n_images", "first"), [(512, 24), (97, 16), (24, 24), (7, 7)])
def test_sizes_grow_to_all_images(n_images: int, first: int) -> None:
    sizes = sample_sizes(n_images, first)
    assert sizes[0] == first and sizes[-1] == n_images and sizes == sorted(set(sizes))
    assert all(after <= 1.5 * before for before, after in pairwise(sizes))


def test_gain_is_that_of_simulated_decisions() -> None:
    n, goal, n_images = 20, 60, 150
    distance, se = torch.tensor([0.0, 0.7, -1.5]).double(), torch.tensor([1.0, 1.0, 0.8]).double()
    left = (1 / goal - 1 / n_images) / (1 / n - 1 / n_images)
    found = error_reduction(distance, se, torch.full((3,), n), torch.full((3,), goal), n_images)
    draws = torch.randn(2, 400_000, 3, dtype=torch.float64)
    later = distance + se * math.sqrt(1 - left) * draws[0]
    true = later + se * math.sqrt(left) * draws[1]
    wrong_now = (true.sign() != torch.where(distance >= 0, 1.0, -1.0)).double().mean(0)
    wrong_later = (true.sign() != later.sign()).double().mean(0)
    np.testing.assert_allclose(found, wrong_now - wrong_later, atol=0.015)


def test_gain_of_the_certain_and_the_unknown() -> None:
    zero, n = torch.zeros(3).double(), torch.full((3,), 16)
    se = torch.tensor([0.0, math.nan, 1.0]).double()
    found = error_reduction(zero, se, n, torch.full((3,), 100), 100)
    assert found[:2].tolist() == [0.0, 0.5] and found[2] == pytest.approx(0.5, abs=0.05)


def test_cheap_units_are_bought_first_and_the_limit_holds() -> None:
    price = torch.tensor([5.0, 1.0, 1.0, 4.0]).double()
    images, block = torch.tensor([8, 8, 16, 8]), torch.tensor([0, 0, 1, 0])
    rate = torch.tensor([0.4, 0.3, 0.2, -1.0]).double()
    assert best_within(rate, price, images, block, 14.0, 99.0).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert best_within(rate, price, images, block, 31.0, 99.0).tolist() == [True, True, True, False]
    # Too dear for the round is bought alone; too dear for the budget gives way to the next.
    assert best_within(rate, price, images, block, 1.0, 99.0).tolist() == [True, *[False] * 3]
    assert best_within(rate, price, images, block, 1.0, 10.0).tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_planted_units_at_the_boundary_take_the_budget() -> None:
    n_images, model = 300, networks.mlp()
    inputs = networks.images(n_images)
    inputs.flatten(1)[:, 0] = torch.arange(n_images).float()  # tells a row of the planted effects
    with open_job(
        model, (inputs, networks.targets(n_images)), "ablation", options={}, batch_size=n_images
    ) as (_, job):
        n_units = job.n_units
        close = torch.zeros(n_units, dtype=torch.bool)
        close[torch.randperm(n_units)[: n_units // 4]] = True
        size = torch.where(torch.rand(n_units) < 0.5, 0.1, 10.0)
        size[close] = torch.linspace(0.9, 1.1, int(close.sum()))
        drawn = torch.randn(2, n_images, n_units, dtype=torch.float64)
        effects = size * (1 + 0.5 * drawn[0])
        cheap = effects * (1 + 0.3 * drawn[1])
        places, start = {}, 0
        for group in job.graph.groups:
            places[group.name], start = start, start + group.n_units
        present = {}

        def rows(batch: Batch) -> Tensor:
            return batch.inputs.flatten(1)[:, 0].long()

        def looked_up(name: str, units: Sequence[int]) -> Tensor:
            return effects[present["rows"]][:, [places[name] + unit for unit in units]]

        exact = SimpleNamespace(
            observe=lambda batch: present.update(rows=rows(batch)),
            effects=looked_up,
            interventions=SimpleNamespace(cost=lambda name: 0.5),
        )
        surrogate = Surrogate("planted", 1.0, lambda batch: cheap[rows(batch)])
        budget = n_images * (1 + 0.15 * n_units)
        race = Race(replace(job, budget=budget), RaceOptions(), exact, surrogate)  # type: ignore[arg-type]
        race.run()
        units = race.result().units.values()
    n, cost = (torch.cat([getattr(u, field) for u in units]).double() for field in ("n", "cost"))
    assert n[close].mean() > 2 * n[~close].mean() and float(cost.sum()) <= budget
    importance = torch.cat([u.importance for u in units])
    assert importance[size > 5].min() > importance[size < 0.5].max()
