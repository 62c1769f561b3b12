"""Races within a budget: what they spend, decide, report, and refuse."""

from __future__ import annotations

from collections.abc import Sequence

import networks
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import Interventions
from causalprune.scoring import Scores, score

N = 150


class Wide(nn.Module):
    """A hidden layer whose units matter by planted factors; input [N, 1, 16, 16]."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, len(factors)), nn.Linear(len(factors), 3)
        networks.settle(self)
        with torch.no_grad():
            self.last.weight *= torch.tensor(list(factors))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.last(self.first(x.flatten(1)).relu())
        return hidden


PLANTED = [0.02, 0.03, 0.05, 0.04, 0.01, 0.02, 0.04, 0.03, 1.0, 0.9, 1.2, 0.8, 1.1, 1.0, 0.7, 1.3]


def data(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 16, 16), torch.arange(n) % 3


def keep(scores: Scores, ratio: float = 0.5) -> np.ndarray:
    importance = scores.frame["importance"].to_numpy()
    order = importance.argsort(kind="stable")
    return np.sort(order[round(ratio * len(order)) :])


@pytest.mark.parametrize("surrogate", [None, "path", "taylor", "log_odds", "logit", "none"])
def test_separated_units_are_decided_on_few_images(surrogate: str | None) -> None:
    model, sample = Wide(PLANTED), data()
    exact = score(model, sample, "ablation")
    race = score(model, sample, "ablation", budget=1e6, surrogate=surrogate)
    assert keep(race).tolist() == keep(exact).tolist() == list(range(8, 16))
    assert race.frame["n"].mean() < 0.75 * N
    assert "8 units decided to stay, 8 to go, 0 undecided" in " ".join(race.notes)
    half = race.frame["high"] - race.frame["low"]
    assert (half > 0).all() and (race.frame["se"] > 0).all()
    # Seven widths of slack: one bound for 16 units that no race of a correct one leaves.
    off = (race.frame["effect"] - exact.frame["effect"]).abs()
    assert (off <= 7 * race.frame["se"]).all()


def test_close_units_race_to_the_end_and_are_then_exact() -> None:
    model, sample = networks.residual(), data(90)
    exact = score(model, sample, "ablation").frame
    race = score(
        model,
        sample,
        "ablation",
        budget=1e6,
        surrogate="none",
        population="images",
        confidence=1 - 1e-9,  # nothing is clear before the end
    ).frame
    ended = (race["n"] == 90).to_numpy()
    assert ended.any() and keep_equal(race, exact)
    for column in ("effect", "importance"):
        np.testing.assert_allclose(race[column][ended], exact[column][ended], atol=1e-6)
    np.testing.assert_allclose(race["low"][ended], race["high"][ended], atol=1e-9)


def keep_equal(race: object, exact: object) -> bool:
    """Equal decisions but for units within a hundredth of the boundary."""
    ours, truth = race["importance"].to_numpy(), exact["importance"].to_numpy()  # type: ignore[index]
    boundary = np.sort(truth)[round(0.5 * len(truth)) - 1 :][:2].mean()
    far = np.abs(truth - boundary) > 0.01 * boundary
    ranks = [values.argsort(kind="stable").argsort() >= len(truth) // 2 for values in (ours, truth)]
    return bool((ranks[0] == ranks[1])[far].all())


@pytest.mark.parametrize("surrogate", ["path", "none"])
@pytest.mark.parametrize("budget", [900.0, 1500.0])
def test_budget_is_kept_and_every_run_is_charged(
    surrogate: str, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = {"exact": 0.0}
    observe, remove = Interventions.observe, Interventions.remove

    def counted_observe(self: Interventions, inputs: Tensor) -> Tensor:
        spent["exact"] += len(inputs)
        return observe(self, inputs)

    def counted_remove(
        self: Interventions, group: str, units: Sequence[int], images: Sequence[int] | None = None
    ) -> Tensor:
        found = remove(self, group, units, images)
        spent["exact"] += self.cost(group) * len(units) * found.shape[1]
        return found

    monkeypatch.setattr(Interventions, "observe", counted_observe)
    monkeypatch.setattr(Interventions, "remove", counted_remove)
    scores = score(networks.residual(), data(), "ablation", budget=budget, surrogate=surrogate)
    total = spent["exact"] + (4 * N if surrogate == "path" else 0)
    assert scores.frame["cost"].sum() == pytest.approx(total) and total <= budget
    assert f"{total:.0f} of {budget:.0f} forward-equivalents spent" in " ".join(scores.notes)
    assert scores.frame["n"].between(16, N).all()


def test_same_seed_same_race() -> None:
    model, sample = networks.residual(), data()
    first, again, other = (
        score(model, sample, "ablation", budget=900, seed=seed).frame for seed in (3, 3, 4)
    )
    assert first.equals(again) and not first.equals(other)


def test_too_small_for_intervals() -> None:
    model, sample = Wide(PLANTED), data()
    cheap = score(model, sample, "path").frame
    scores = score(model, sample, "ablation", budget=4 * N + 10, surrogate="path")
    np.testing.assert_allclose(scores.frame["effect"], cheap["effect"])
    np.testing.assert_allclose(scores.frame["importance"], cheap["importance"])
    plain = score(model, sample, "ablation", budget=12, surrogate="none")
    assert plain.frame["n"].between(1, 15).all() and plain.frame["effect"].notna().all()
    for found in (scores, plain):
        assert found.frame[["se", "low", "high"]].isna().all(axis=None)
        assert (found.frame["category"] == "").all()
        said = " ".join(found.notes)
        assert "too small for intervals" in said
        needed = int(said.split("at least ")[1].split()[0])
        name = "path" if found is scores else "none"
        enough = score(model, sample, "ablation", budget=needed, surrogate=name).frame
        assert enough["se"].notna().all() and (enough["n"] == 16).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 4 * N - 1, "surrogate": "path"}, "surrogate 'path' takes on 150 images"),
        ({"budget": 1, "surrogate": "none"}, "what one image with all units takes"),
        ({"budget": 900, "ratio": 1.0}, r"ratio: expected a number in \(0, 1\), got 1.0"),
        ({"budget": 900, "outcome": "correctness", "surrogate": "path"}, "surrogate='none'"),
        ({"ratio": 0.3}, "budget: expected one with the options"),
        ({"budget": 900, "method": "path"}, "budget: expected none for method 'path'"),
        ({"budget": -1}, "budget: expected a positive number"),
        (
            {"budget": 900, "rank": "effect", "outcome": lambda o, t: o[:, 0]},
            "rank: 'effect' needs an outcome with a better side",
        ),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], words: str) -> None:
    arguments = {"method": "ablation", **options}
    with pytest.raises(InvalidArgumentError, match=words):
        score(networks.mlp(), data(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "value"), [("rank", "size"), ("scope", "x"), ("population", 1)])
def test_unknown_choices_are_named(option: str, value: object) -> None:
    with pytest.raises(UnknownNameError, match=f"{option}"):
        score(networks.mlp(), data(), "ablation", budget=900, **{option: value})


def test_outcome_without_gradient() -> None:
    model, sample = Wide(PLANTED), data()
    scores = score(model, sample, "ablation", "correctness", budget=2000)
    assert "surrogate 'none'" in " ".join(scores.notes)
    assert scores.frame["effect"].between(-1, 1).all() and scores.frame["se"].notna().all()


def test_rank_by_effect_keeps_what_helps() -> None:
    model, sample = networks.residual(), data(80)
    for outcome, sign in (("loss", 1), ("probability", -1)):
        exact = score(model, sample, "ablation", outcome).frame["effect"] * sign
        race = score(
            model, sample, "ablation", outcome, budget=1e6, rank="effect", surrogate="none"
        ).frame
        ended = (race["n"] == 80).to_numpy()
        np.testing.assert_allclose(race["importance"][ended], exact[ended], atol=1e-6)
        np.testing.assert_allclose(race["importance"], race["effect"] * sign, atol=1e-9)


def test_every_layer_has_its_own_boundary() -> None:
    model, sample = networks.lenet(), data(80)
    scores = score(model, sample, "ablation", budget=1e6, scope="layer", ratio=0.25)
    sizes = scores.frame.groupby("group").size()
    gone = int(sum(round(0.25 * size) for size in sizes))
    said = " ".join(scores.notes)
    assert f"{len(scores.frame) - gone} units decided to stay, {gone} to go, 0 undecided" in said


def test_few_images_are_all_taken() -> None:
    scores = score(networks.mlp(), data(9), "ablation", budget=1e5, surrogate="none")
    exact = score(networks.mlp(), data(9), "ablation")
    assert (scores.frame["n"] == 9).all() and scores.frame["se"].notna().all()
    assert len(scores.frame) == len(exact.frame)
