"""Responsibility against its definition: every set of other units, and published examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.graph import capture, removed
from causalprune.scoring import score
from causalprune.scoring.contingency import Search, smallest_contingencies
from causalprune.scoring.responsibility import additive_responsibility, responsibility_map

Flips = Callable[[tuple[int, ...]], bool]


def _model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )
    return networks.settle(model, seed=int(torch.randint(1000, ()))).double()


def _image(n: int = 1) -> Tensor:
    return torch.randn(n, 2, 9, 7, dtype=torch.float64)


def _by_definition(n_units: int, flips: Flips) -> list[float]:
    """1 / (k + 1) with k the size of the smallest set W: W does not flip, W with f does."""
    result = []
    for unit in range(n_units):
        others = [other for other in range(n_units) if other != unit]
        sizes = [
            size
            for size in range(n_units)
            for w in itertools.combinations(others, size)
            if not flips(w) and flips(tuple(sorted((*w, unit))))
        ]
        result.append(1 / (min(sizes) + 1) if sizes else 0.0)
    return result


def _flips_of(model: nn.Module, x: Tensor, group: str, theta: float | None, label: int) -> Flips:
    graph = capture(model, x)

    def logits(units: Iterable[int]) -> Tensor:
        with torch.no_grad(), removed(model, graph, {group: list(units)}):
            return model(x)[0]

    with torch.no_grad():
        plain = model(x)[0]

    def flips(units: tuple[int, ...]) -> bool:
        now = logits(units) if units else plain
        if theta is None:
            return bool(now.argmax() != plain.argmax())
        return bool(now.softmax(0)[label] < plain.softmax(0)[label] - theta)

    return flips


# ---- additive form -------------------------------------------------------------------------------


def test_published_example_of_the_additive_form() -> None:
    effects = [0.3, 0.15, 0.1, 0.04, 0.01, 0.0, -0.2]
    expected = torch.tensor([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(additive_responsibility(effects, 0.21), expected)
    order = torch.randperm(7)
    shuffled = additive_responsibility(torch.tensor(effects)[order], 0.21)
    torch.testing.assert_close(shuffled, expected[order])


def _additive_by_definition(effects: Sequence[float], theta: float) -> list[float]:
    result = []
    for unit, effect in enumerate(effects):
        if effect >= theta:
            result.append(1.0)
            continue
        others = sorted((e for k, e in enumerate(effects) if k != unit and 0 <= e < theta))[::-1]
        total, found = effect, 0.0
        for w, other in enumerate(others, 1):
            total += other
            if total >= theta:
                found = 1 / (w + 1)
                break
        result.append(found if effect > 0 else 0.0)
    return result


def test_additive_form_by_definition() -> None:
    for _ in range(50):
        effects = torch.randn(int(torch.randint(1, 20, ()))).double()
        theta = float(torch.rand(())) * 2 + 1e-3
        expected = _additive_by_definition(effects.tolist(), theta)
        assert additive_responsibility(effects, theta).tolist() == pytest.approx(expected)
    assert additive_responsibility([], 0.5).tolist() == []
    assert additive_responsibility([0.1, 0.2], 1.0).tolist() == [0, 0]
    assert additive_responsibility([0.1, 0.2], 0.1 + 0.2).tolist() == [0.5, 0.5]  # to the ulp


@pytest.mark.parametrize("theta", [0.0, -1, math.inf, math.nan, True, "much"])
def test_additive_threshold_is_checked(theta: object) -> None:
    with pytest.raises(InvalidArgumentError, match="theta"):
        additive_responsibility([0.1], theta)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="theta"):
        score(_model(), (_image(3), torch.arange(3)), "responsibility", theta=theta)


def test_additive_effects_are_checked() -> None:
    for effects in ([[0.1]], [math.nan]):
        with pytest.raises(InvalidArgumentError, match="effects"):
            additive_responsibility(effects, 0.1)  # type: ignore[arg-type]


def test_additive_form_adds_up_the_effects_of_cexcnn() -> None:
    model, x = _model(), _image(30)
    y = model(x).argmax(1)
    for theta, target in ((0.01, None), (0.2, None), (0.02, 3)):
        options = {} if theta == 0.01 else {"theta": theta}
        found = score(model, (x, y), "responsibility", target_class=target, **options)
        effects = score(model, (x, y), "cexcnn", target_class=target)
        np.testing.assert_array_equal(found.frame["effect"], effects.frame["effect"])
        for _, rows in effects.frame.groupby("group"):
            expected = additive_responsibility(rows["importance"].tolist(), theta)
            mine = found.frame.loc[rows.index, "importance"]
            np.testing.assert_array_equal(mine, expected)
        assert found.outcome == effects.outcome


# ---- exact form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [None, 0.03, 0.2])
def test_exact_form_by_definition(theta: float | None) -> None:
    for _ in range(4):
        model, x = _model(), _image()
        label = int(model(x).argmax()) if torch.rand(()) < 0.5 else 2
        options = {"theta": theta}
        if theta is not None:
            options["target_class"] = label
        scores = score(model, x, "responsibility", form="exact", max_contingency=6, **options)
        table = scores.tables["contingencies"]
        assert table["exact"].all() and scores.notes == ("7 left alone: feeds the model's output",)
        for group, rows in scores.frame.groupby("group"):
            flips = _flips_of(model, x, str(group), theta, label)
            assert rows["importance"].tolist() == _by_definition(len(rows), flips)
            for row in table[table["group"] == group].itertuples():
                witness = tuple(map(int, row.witness.split()))
                if row.contingency < 0:
                    assert row.responsibility == 0 and row.witness == ""
                    continue
                assert len(witness) == row.contingency
                assert not flips(witness) and flips(tuple(sorted((*witness, row.unit))))
        assert scores.frame["effect"].isna().all() and (scores.frame["n"] == 1).all()
        assert (scores.frame["cost"] > 0).all()


def test_a_limited_search_bounds_the_responsibility() -> None:
    n, seen = 7, set()
    every = [w for size in range(n + 1) for w in itertools.combinations(range(n), size)]
    for round_number in range(48):
        weights = torch.randn(n).clamp(min=-0.4).numpy()
        pairs = torch.randn(n, n).numpy() * (round_number % 2) / 4  # removals that interact
        need = float(torch.rand(())) * 4
        table = {w: need - weights[[*w]].sum() - pairs[np.ix_(w, w)].sum() for w in every}
        table[()] = need
        truth = torch.tensor(_by_definition(n, lambda w, t=table: t[w] < 0), dtype=torch.float64)
        search = Search(max_contingency=round_number % n, beam_width=round_number // 2 % 4)
        found = smallest_contingencies(
            n, lambda sets, t=table: torch.tensor([t[tuple(w)] for w in sets]), search
        )
        assert (found.responsibility <= truth + 1e-9).all()
        assert (found.upper >= truth - 1e-9).all()
        exact = found.exact
        torch.testing.assert_close(found.responsibility[exact], truth[exact])
        assert (found.upper[~exact] > found.responsibility[~exact]).all()
        for unit, w in enumerate(found.witness):
            assert w is None or (table[w] >= 0 > table[tuple(sorted((*w, unit)))])
        later = [w for w in found.witness if w is not None and len(w) > found.depth]
        seen |= {"bound"} if later else set()
        seen |= {"none"} if bool((~exact & (found.responsibility == 0)).any()) else set()
        seen |= {"exact"} if bool(exact.all()) else set()
    assert seen == {"bound", "none", "exact"}


def test_sizes_with_too_many_sets_are_left_to_the_beam() -> None:
    ran: list[int] = []

    def slack(sets: Sequence[Sequence[int]]) -> Tensor:
        ran.extend(len(units) for units in sets)
        return torch.tensor([4.5 - sum(unit < 6 for unit in units) for units in sets])

    found = smallest_contingencies(40, slack, Search(2, max_sets=800, beam_width=3))
    assert found.depth == 2 and ran.count(2) == math.comb(40, 2)
    assert all(ran.count(size) <= 2 * 3 * 40 for size in (3, 4, 5))
    assert found.responsibility.tolist() == pytest.approx([1 / 5] * 6 + [0] * 34)
    assert not found.exact.any() and found.n_sets == len(ran)
    assert found.upper.tolist() == pytest.approx([1 / 3] * 40)
    single = smallest_contingencies(40, slack, Search(0, max_sets=1, beam_width=0))
    assert single.depth == 1 and single.n_sets == 40


def test_lower_bounds_are_noted() -> None:
    model, x = _model(), _image()
    scores = score(
        model, x, "responsibility", form="exact", max_contingency=0, beam_width=0, theta=0.999
    )
    assert "11 of 11 responsibilities are lower bounds" in scores.notes[-1]
    assert not scores.tables["contingencies"]["exact"].any()
    assert (scores.tables["contingencies"]["upper"] == 0.5).all()


def test_layers_restrict_the_search() -> None:
    model, x = _model(), _image()
    whole = score(model, x, "responsibility", form="exact").frame
    part = score(model, x, "responsibility", form="exact", layers=["5"])
    assert part.frame["importance"][:5].isna().all()
    assert part.frame["importance"][5:].tolist() == whole["importance"][5:].tolist()
    assert set(part.tables["contingencies"]["group"]) == {"5"}
    with pytest.raises(UnknownNameError, match="conv9"):
        score(model, x, "responsibility", form="exact", layers=["conv9"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("form", {"form": "best"}),
        ("layers", {"layers": ["0"]}),
        ("layers", {"form": "exact", "layers": "0"}),
        ("layers", {"form": "exact", "layers": []}),
        ("theta", {"form": "exact", "theta": 1.0}),
        ("target_class", {"form": "exact", "target_class": 0}),
        ("target_class", {"form": "exact", "theta": 0.1, "target_class": 4}),
        ("target_class", {"target_class": "cat"}),
        ("max_contingency", {"max_contingency": -1}),
        ("max_sets", {"max_sets": 0}),
        ("beam_width", {"beam_width": 1.5}),
        ("beam_contingency", {"beam_contingency": True}),
        ("outcome", {"outcome": "loss_of_nerve"}),
        ("outcome", {"outcome": "margin"}),
        ("outcome", {"outcome": "margin", "form": "exact"}),
        ("intervention", {"intervention": "resample", "form": "exact"}),
    ],
)
def test_bad_options(name: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        score(_model(), (_image(), torch.zeros(1, dtype=torch.int64)), "responsibility", **options)


def test_the_exact_form_is_about_one_image() -> None:
    with pytest.raises(DataError, match="blame"):
        score(_model(), _image(2), "responsibility", form="exact")
    with pytest.raises(DataError, match="targets"):
        score(_model(), _image(2), "responsibility")


# ---- heat map ------------------------------------------------------------------------------------


def test_map_is_the_weighted_sum_of_the_feature_maps() -> None:
    model, x = _model(), _image()
    scores = score(model, x, "responsibility", form="exact", theta=0.02)
    with torch.no_grad():
        maps = F.relu(model[1](model[0](x)))[0]
    weights = torch.tensor(scores.frame["importance"][:5].to_numpy())
    expected = sum(w * m for w, m in zip(weights, maps, strict=True))
    expected = F.interpolate(expected[None, None], (9, 7), mode="bilinear")[0, 0]
    for image in (x, x[0]):
        torch.testing.assert_close(responsibility_map(model.train(), image, scores, "0"), expected)
    assert model.training


def test_map_shows_what_decides() -> None:
    """Filter 0 sees bright pixels, filter 1 dark ones; only bright ones speak for class 1."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 30, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        model[0].bias.zero_(), model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([0.5, 0.0]))
        model[3].weight[1, :30] = 1
    image = torch.full((1, 1, 5, 6), -1.0)
    row, column = int(torch.randint(5, ())), int(torch.randint(6, ()))
    image[0, 0, row, column] = 2
    scores = score(model, image, "responsibility", form="exact")
    assert scores.frame["importance"].tolist() == [1, 0]
    heat = responsibility_map(model, image, scores, "0")
    assert heat.shape == (5, 6) and heat[row, column] == 2 and heat.sum() == 2


def test_map_arguments() -> None:
    model, x = _model(), _image()
    scores = score(model, x, "responsibility", form="exact")
    with pytest.raises(UnknownNameError, match="'3'"):
        responsibility_map(model, x, scores, "3")
    with pytest.raises(InvalidArgumentError, match="filters"):
        responsibility_map(model, x, scores, "5")
    with pytest.raises(InvalidArgumentError, match="one image"):
        responsibility_map(model, _image(2), scores, "0")
    with pytest.raises(InvalidArgumentError, match="other parameters"):
        responsibility_map(networks.lenet(), networks.images(1), scores, "conv1")
    with pytest.raises(InvalidArgumentError, match="l1"):
        responsibility_map(model, x, score(model, x, "l1"), "0")
    part = score(model, x, "responsibility", form="exact", layers=["5"])
    with pytest.raises(InvalidArgumentError, match="searched"):
        responsibility_map(model, x, part, "0")
