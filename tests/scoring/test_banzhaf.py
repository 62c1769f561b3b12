"""Random multi-unit designs against values enumerated over every mask of a small network."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError
from causalprune.graph import capture, removed
from causalprune.scoring import Scores, score
from causalprune.scoring.banzhaf import recorded_masks
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.random_designs import (
    difference_of_means,
    draw_masks,
    regression_on_masks,
)

ESTIMATORS = {"difference": difference_of_means, "regression": regression_on_masks}
X, Y = networks.images(13), networks.targets(13)


def _small(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    return networks.settle(model, seed)


def _all_outcomes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Loss [N, 2**7] of a network with four and three hidden units under every mask."""
    graph = capture(model, x)
    columns = []
    for off in itertools.product((False, True), repeat=7):
        gone = [unit for unit, without in enumerate(off) if without]
        units = {"0": [u for u in gone if u < 4], "2": [u - 4 for u in gone if u >= 4]}
        with removed(model, graph, units), torch.no_grad():
            columns.append(F.cross_entropy(model(x).double(), y, reduction="none"))
    return torch.stack(columns, 1)


def _code(masks: Tensor) -> Tensor:
    """Column of a mask in :func:`_all_outcomes`: its first unit is the highest bit."""
    return (masks.long() * 2 ** torch.arange(masks.shape[-1]).flip(0)).sum(-1)


def _exact_values(outcomes: Tensor, q: float) -> Tensor:
    """Banzhaf values by their definition, mean over images: a sum over the sets of the others."""
    values = torch.zeros(7, dtype=torch.float64)
    for unit in range(7):
        for others in itertools.product((False, True), repeat=6):
            without = torch.tensor([*others[:unit], False, *others[unit:]])
            with_it = torch.tensor([*others[:unit], True, *others[unit:]])
            chance = math.prod(q if off else 1 - q for off in others)
            change = outcomes[:, _code(with_it)] - outcomes[:, _code(without)]
            values[unit] += chance * change.mean()
    return values


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("q", "n_images", "n_masks"), [(0.1, 60, 8), (0.5, 35, 5)])
def test_intervals_cover_the_enumerated_value(
    name: str, q: float, n_images: int, n_masks: int
) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(150, 5, generator=generator)
    y = torch.randint(0, 3, (150,), generator=generator)
    outcomes = _all_outcomes(_small(3), x, y)
    truth = _exact_values(outcomes, q)
    hits, estimates = [], []
    for _ in range(200):
        drawn = torch.randint(0, 150, (n_images,), generator=generator)
        probability = torch.full((7,), q, dtype=torch.float64)
        masks = draw_masks(probability, n_images, n_masks, generator)
        found = ESTIMATORS[name](masks, outcomes[drawn[:, None], _code(masks)])
        quantile = torch.tensor([student_t_quantile(0.975, int(n) - 1) for n in found.n])
        hits.append((found.effect - truth).abs() <= quantile * found.se)
        estimates.append(found.effect)
    spread = torch.stack(estimates).std(0)
    assert ((torch.stack(estimates).mean(0) - truth).abs() < 4 * spread / math.sqrt(200)).all()
    # 1,400 intervals, those of one draw not independent.
    assert 0.92 <= torch.stack(hits).double().mean() <= 0.98


def test_difference_of_means_with_one_image_per_pair_is_the_mean_of_differences() -> None:
    masks = torch.tensor([[[True], [False]], [[False], [True]], [[True], [False]]])
    outcomes = torch.tensor([[4.0, 1.0], [7.0, 9.0], [2.0, 1.0]])
    found = difference_of_means(masks, outcomes)
    differences = torch.tensor([3.0, 2.0, 1.0]).double()
    assert found.effect.item() == pytest.approx(2.0)
    # The jackknife over images of a mean.
    jackknife = torch.tensor([1.5, 2.0, 2.5]).double() - 2.0
    assert found.se.item() == pytest.approx(jackknife.square().sum().sqrt().item())
    assert found.se.item() >= differences.std().item() / math.sqrt(3)


def test_estimates_equal_least_squares_with_a_constant_per_image() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = draw_masks(torch.tensor([0.2, 0.5, 0.7, 0.4, 0.3]), 11, 6, generator)
    outcomes = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    constants = np.kron(np.eye(11), np.ones((6, 1)))
    z, y = masks.flatten(0, 1).double().numpy(), outcomes.flatten().numpy()
    joint = np.linalg.lstsq(np.hstack([z, constants]), y, rcond=None)[0][:5]
    np.testing.assert_allclose(regression_on_masks(masks, outcomes).effect, joint, atol=1e-10)
    alone = [
        np.linalg.lstsq(np.hstack([z[:, [u]], constants]), y, rcond=None)[0][0] for u in range(5)
    ]
    np.testing.assert_allclose(difference_of_means(masks, outcomes).effect, alone, atol=1e-10)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_standard_errors_are_those_of_leaving_images_out(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    masks = draw_masks(torch.full((3,), 0.4), 9, 6, generator)
    outcomes = torch.randn(9, 6, generator=generator, dtype=torch.float64) + 5 * masks[..., 1]
    found = ESTIMATORS[name](masks, outcomes)
    left_out = [
        ESTIMATORS[name](
            torch.cat([masks[:i], masks[i + 1 :]]), torch.cat([outcomes[:i], outcomes[i + 1 :]])
        ).effect
        for i in range(9)
    ]
    expected = (torch.stack(left_out) - found.effect).square().sum(0).sqrt()
    torch.testing.assert_close(found.se, expected)


def test_regression_has_the_smaller_error_where_several_units_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    strength = torch.tensor([0.0, 3.0, 3.0, -3.0, 3.0], dtype=torch.float64)
    errors: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS}
    for _ in range(60):
        masks = draw_masks(torch.full((5,), 0.5), 20, 5, generator)
        outcomes = masks.double() @ strength + torch.randn(20, 1, generator=generator)
        for name, estimate in ESTIMATORS.items():
            errors[name].append((estimate(masks, outcomes).effect - strength).abs())
    means = {name: torch.stack(parts).mean() for name, parts in errors.items()}
    assert means["regression"] < 0.1 * means["difference"]


def test_the_method_runs_the_masks_it_records() -> None:
    model = networks.lenet()
    scores = score(model, (X, Y), "banzhaf", n_masks=3, q=0.3, batch_size=5, seed=11)
    design, masks = scores.tables["design"], recorded_masks(scores)
    graph = capture(model, X)
    assert {g.name: (39, g.n_units) for g in graph.groups} == {
        name: mask.shape for name, mask in masks.items()
    }
    columns = scores.tables["layers"].set_index("group")["column"]
    for index, row in enumerate(design.to_dict("records")):
        gone = {name: mask[index].nonzero()[0].tolist() for name, mask in masks.items()}
        with removed(model, graph, gone), torch.no_grad():
            output = model(X[row["image"]][None]).double()
        loss = F.cross_entropy(output, Y[row["image"]][None]).item()
        assert row["outcome"] == pytest.approx(loss, abs=2e-5)
        assert row["target"] == Y[row["image"]]
        assert row["n_removed"] == sum(len(units) for units in gone.values())
        kept = sum(mask.shape[1] for mask in masks.values()) - row["n_removed"]
        chance = row["n_removed"] * math.log(0.3) + kept * math.log(0.7)
        assert row["log_probability"] == pytest.approx(chance)
        for name, units in gone.items():
            assert row[columns[name]] == pytest.approx(len(units) / masks[name].shape[1])
    with torch.no_grad():
        plain = F.cross_entropy(model(X).double(), Y, reduction="none")
    np.testing.assert_allclose(design["outcome_whole"][::3], plain, atol=2e-5)
    expected = difference_of_means(
        torch.from_numpy(np.concatenate(list(masks.values()), 1)).reshape(13, 3, -1),
        torch.from_numpy(design["outcome"].to_numpy()).reshape(13, 3),
    )
    np.testing.assert_array_equal(scores.frame["effect"], expected.effect)
    assert scores.frame["cost"].sum() == pytest.approx(13 * 4)


def test_masks_do_not_depend_on_batches_and_follow_the_seed() -> None:
    model = networks.mlp()
    first, again = (score(model, (X, Y), "banzhaf", n_masks=2, batch_size=b) for b in (4, 13))
    other = score(model, (X, Y), "banzhaf", n_masks=2, seed=1)
    for group, masks in recorded_masks(first).items():
        np.testing.assert_array_equal(masks, recorded_masks(again)[group])
    assert any((m != recorded_masks(other)[g]).any() for g, m in recorded_masks(first).items())


def test_probabilities_per_group_and_per_unit() -> None:
    model = networks.lenet()
    q = {"conv1": 0.9, "conv2": [0.01, 0.01, 0.99, 0.99, 0.5, 0.5]}
    scores = score(model, (X, Y), "banzhaf", n_masks=40, q=q)
    masks = recorded_masks(scores)
    assert masks["conv1"].mean() > 0.85 and 0.05 < masks["fc1"].mean() < 0.15
    assert (masks["conv2"][:, 2:4].mean(0) > 0.95).all()
    assert (masks["conv2"][:, :2].mean(0) < 0.05).all()
    assert scores.tables["layers"]["q"].tolist() == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_as_few_are_removed_the_value_becomes_the_effect_of_ablation() -> None:
    model = networks.settle(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)), 4)
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    exact = score(model, (x, y), "ablation").frame["effect"]
    found = score(model, (x, y), "banzhaf", q=0.02, n_masks=600).frame
    assert (abs(found["effect"] - exact) <= 5 * found["se"] + 0.02 * abs(exact)).all()
    assert found["importance"].tolist() == found["effect"].tolist()  # of the loss: more is worse
    logit = score(model, (x, y), "banzhaf", "logit", q=0.3, n_masks=20).frame
    assert logit["importance"].tolist() == (-logit["effect"]).tolist()


def test_it_saves_and_loads_with_its_tables(tmp_path: Path) -> None:
    scores = score(networks.residual(), (X, Y), "banzhaf", n_masks=3)
    loaded = Scores.load(scores.save(tmp_path / "scores.npz"))
    assert loaded.tables["masks"]["bits"].dtype == np.uint8
    for name, masks in recorded_masks(scores).items():
        np.testing.assert_array_equal(masks, recorded_masks(loaded)[name])
    bits = sum(mask.size for mask in recorded_masks(scores).values())
    assert len(loaded.tables["masks"]) == -(-bits // 8)


class _Additive(nn.Module):
    """Logits of which the first is planted: minus 0.5 per unit present, plus the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.bias.fill_(1.0)
            self.last.weight.copy_(torch.tensor([[-0.5], [0.0]]).expand(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))) + x[:, :1]


def test_the_design_recovers_a_planted_effect_by_regression_and_in_dowhy() -> None:
    x = torch.randn(30, 4)

    def first_logit(logits: Tensor, targets: Tensor | None) -> Tensor:
        return logits[:, 0]

    scores = score(_Additive(), x, "banzhaf", first_logit, n_masks=6, q=0.4)
    # Each unit adds 0.5 when it goes; all six of the layer add 3.
    np.testing.assert_allclose(
        score(_Additive(), x, "banzhaf", first_logit, n_masks=6, estimator="regression").frame[
            "effect"
        ],
        0.5,
        atol=1e-6,
    )
    design = scores.tables["design"]
    (column,) = scores.tables["layers"]["column"]
    slope = np.polyfit(design[column], design["outcome"] - design["outcome_whole"], 1)[0]
    assert slope == pytest.approx(3.0, abs=1e-5)

    dowhy = pytest.importorskip("dowhy", reason="needs dowhy (extra: analysis)")
    model = dowhy.CausalModel(
        design, treatment=column, outcome="outcome", common_causes=["outcome_whole"]
    )
    estimand = model.identify_effect(proceed_when_unidentifiable=True)
    estimate = model.estimate_effect(estimand, method_name="backdoor.linear_regression")
    assert estimate.value == pytest.approx(3.0, abs=1e-5)


def test_a_budget_buys_masks_or_says_what_it_would_take() -> None:
    model = networks.mlp()
    scores = score(model, (X, Y), "banzhaf", budget=13 * 6 + 5)
    assert scores.tables["design"]["mask"].max() == 4
    assert scores.frame["cost"].sum() <= 13 * 6 + 5
    with pytest.raises(InvalidArgumentError, match=r"budget: expected at least 39 .* got 38"):
        score(model, (X, Y), "banzhaf", budget=38)


def test_a_unit_never_off_or_never_on_has_no_effect_and_says_so() -> None:
    model = networks.settle(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)), 4)
    x, y = torch.randn(3, 5), torch.arange(3)
    scores = score(model, (x, y), "banzhaf", q=[1e-9, 0.5, 0.5], n_masks=4)
    assert scores.frame["effect"].isna().tolist() == [True, False, False]
    assert scores.frame["category"][0] == "" and scores.frame["n"][0] == 0
    assert any("1 units have no effect here" in note for note in scores.notes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"q": 0.0}, InvalidArgumentError, r"q: expected removal probabilities in \(0, 1\)"),
        ({"q": 1.0}, InvalidArgumentError, "q: expected"),
        ({"q": float("nan")}, InvalidArgumentError, "q: expected"),
        ({"q": "some"}, InvalidArgumentError, "got 'some'"),
        ({"q": {"conv9": 0.5}}, UnknownNameError, "unknown unit group in q 'conv9'; known: 0"),
        ({"q": [0.5, 0.5]}, InvalidArgumentError, "one or 3, for '0'"),
        ({"n_masks": 1}, InvalidArgumentError, "n_masks: expected an integer of at least 2, got 1"),
        ({"n_masks": 2.5}, InvalidArgumentError, "n_masks: expected an integer"),
        ({"estimator": "guess"}, UnknownNameError, "unknown estimator 'guess'"),
        (
            {"estimator": "regression", "n_masks": 2},
            InvalidArgumentError,
            "cannot tell 3 units apart by 2 masks on each of 2 images",
        ),
        (
            {"estimator": "regression", "max_cache_bytes": 71},
            InvalidArgumentError,
            "takes 72 bytes, more than max_cache_bytes=71",
        ),
    ],
)
def test_bad_options_are_refused(options: dict, error: type[Exception], words: str) -> None:
    model = networks.settle(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)), 4)
    with pytest.raises(error, match=words):
        score(model, (torch.randn(2, 5), torch.arange(2)), "banzhaf", **options)


def test_masks_of_other_scores_are_refused() -> None:
    with pytest.raises(RecordError, match="expected masks of method 'banzhaf'"):
        recorded_masks(score(networks.mlp(), X, "l1"))
    with pytest.raises(InvalidArgumentError, match=r"expected bool \[N, T, U\]"):
        difference_of_means(torch.zeros(2, 3, 4), torch.zeros(2, 3))
