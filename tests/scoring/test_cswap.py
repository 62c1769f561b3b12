"""C-SWAP's categories and ranking against hooks, scipy's tests and hand-made cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.scoring import Scores, score
from causalprune.scoring.cswap import cswap_categories, cswap_importance

FLOOR = 1e-3


def _small() -> nn.Module:
    """Two convolutions and a hidden layer in float64; every unit has a zero-able channel."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 25, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    return networks.settle(model, seed=int(torch.randint(1000, ()))).double()


def _data(n: int = 41) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 16, 16, dtype=torch.float64), torch.arange(n) % 3


def _changes(model: nn.Module, x: Tensor, y: Tensor, layer: int, unit: int) -> np.ndarray:
    """d of every image, with the unit's activation set to zero by a hook."""

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, unit] = 0
        return output

    def probability() -> Tensor:
        with torch.no_grad():
            return model(x).softmax(1)[torch.arange(len(y)), y]

    plain = probability()
    handle = model[layer + 1].register_forward_hook(cut)  # behind the ReLU
    removed = probability()
    handle.remove()
    return ((removed - plain) / plain.clamp(min=FLOOR)).numpy()


def _expected_verdict(
    d: np.ndarray, p_value: Callable[[np.ndarray, str], float], smallest_change: float
) -> str:
    if not d.any():
        return ""
    if p_value(d + smallest_change, "less") <= 0.05:
        return "decrease"
    return "increase" if p_value(d - smallest_change, "greater") <= 0.05 else ""


@pytest.mark.parametrize("smallest_change", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_every_unit_and_class_against_hooks_and_scipy(test: str, smallest_change: float) -> None:
    def p_value(d: np.ndarray, alternative: str) -> float:
        if test == "t":
            return stats.ttest_1samp(d, 0.0, alternative=alternative).pvalue
        return stats.wilcoxon(d[d != 0], alternative=alternative, method="exact").pvalue

    model, (x, y) = _small(), _data()
    scores = score(model, (x, y), "cswap", test=test, batch_size=7, smallest_change=smallest_change)
    table = scores.tables["classes"]
    for row in scores.frame.itertuples():
        d = _changes(model, x, y, int(row.group), row.unit)
        assert row.effect == pytest.approx(d.mean(), abs=1e-12)
        assert row.se == pytest.approx(d.std(ddof=1) / 41**0.5, abs=1e-12)
        assert (row.n, row.cost > 0) == (41, True)
        verdicts, xi = [], []
        mine = table[(table["group"] == row.group) & (table["unit"] == row.unit)]
        assert mine["class"].tolist() == [0, 1, 2]
        for entry in mine.itertuples():
            of_class = d[y.numpy() == entry[3]]
            xi.append(of_class.mean())
            verdicts.append(_expected_verdict(of_class, p_value, smallest_change))
            assert entry.xi == pytest.approx(xi[-1], abs=1e-12)
            assert entry.n == len(of_class)
            if of_class.any():
                fall = p_value(of_class + smallest_change, "less")
                assert entry.p_decrease == pytest.approx(fall, rel=1e-6)
                rise = p_value(of_class - smallest_change, "greater")
                assert entry.p_increase == pytest.approx(rise, rel=1e-6)
                equivalent = max(
                    p_value(of_class - 0.05, "less"), p_value(of_class + 0.05, "greater")
                )
                assert entry.p_equivalent == pytest.approx(equivalent, rel=1e-6)
        assert mine["verdict"].tolist() == verdicts
        falls, rises = "decrease" in verdicts, "increase" in verdicts
        expected = "critical" if falls else "detrimental" if rises else "neutral"
        assert row.category == expected
        extremes = {"critical": 1 + -min(xi) / (1 - min(xi)) if falls else 0}
        extremes["detrimental"] = -max(xi) / (1 + max(xi))
        extremes["neutral"] = np.abs(xi).max() / (1 + np.abs(xi).max())
        if test == "t":  # means and tests of means agree in sign
            assert row.importance == pytest.approx(extremes[expected], abs=1e-9)


def test_removal_order_is_detrimental_then_neutral_then_critical() -> None:
    generator = np.random.default_rng()
    xi = generator.normal(0, 0.3, (60, 4))
    falls, rises = generator.random((2, 60, 4)) < 0.2
    falls, rises = falls & (xi < 0), rises & (xi > 0)
    category = np.array(cswap_categories(falls, rises))
    assert set(category) == {"critical", "detrimental", "neutral"}
    frame = pd.DataFrame({"category": category, "importance": cswap_importance(xi, category)})
    frame["rise"], frame["size"] = xi.max(1), np.abs(xi).max(1)
    frame["fall"] = -xi.min(1)
    ordered = frame.sort_values("importance", kind="stable")
    tiers = ordered["category"].map({"detrimental": 0, "neutral": 1, "critical": 2})
    assert tiers.is_monotonic_increasing
    by_tier = dict(list(ordered.groupby("category")))
    assert by_tier["detrimental"]["rise"].is_monotonic_decreasing
    assert by_tier["neutral"]["size"].is_monotonic_increasing
    assert by_tier["critical"]["fall"].is_monotonic_increasing


def _planted(n: int, n_classes: int, harm: float) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A linear readout of hidden units: 0 carries class 0, 1 harms class 1, 2 is not read."""
    model = nn.Sequential(nn.Linear(n_classes, 3), nn.ReLU(), nn.Linear(3, n_classes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[0, 0] = model[0].weight[1, 1] = model[0].weight[2, 2] = 1
        model[2].weight[0, 0], model[2].weight[1, 1] = 2.0, -harm
    y = torch.arange(n) % n_classes
    x = torch.eye(n_classes, dtype=torch.float64)[y] + 0.1 * torch.rand(n, n_classes)
    return model, (x, y)


def test_planted_critical_detrimental_and_neutral_units() -> None:
    model, data = _planted(90, 3, harm=1.0)
    with torch.no_grad():  # unit 0 must not be seen by the images of other classes
        model[0].bias[0] = -0.5
    scores = score(model, data, "cswap")
    assert scores.frame["category"].tolist() == ["critical", "critical", "neutral"]
    # What harms class 1 helps class 2: significant decreases decide.
    with torch.no_grad():
        model[0].bias[1] = -0.5
    scores = score(model, data, "cswap")
    assert scores.frame["category"].tolist() == ["critical", "detrimental", "neutral"]
    assert scores.frame["importance"].is_monotonic_increasing is False
    assert scores.top(3)["unit"].tolist() == [0, 2, 1]
    assert scores.tables["units"]["verdict"].tolist() == ["critical", "detrimental", "equivalent"]
    assert scores.tables["units"]["class_highest"][1] == 1
    assert any("1 neutral units 1 are equivalent" in note for note in scores.notes)
    assert scores.outcome == "relative probability"


def test_neutral_is_undecided_until_images_or_the_margin_suffice() -> None:
    x = torch.randn(12, 4, dtype=torch.float64)
    y = (torch.arange(12) // 2) % 2
    model = networks.settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))).double()
    tight = score(model, (x, y), "cswap", alpha=1e-6, margin=1e-9)
    assert (tight.frame["category"] == "neutral").all()
    assert (tight.tables["units"]["verdict"] == "undecided").all()
    wide = score(model, (x, y), "cswap", alpha=1e-6, margin=1e9)
    assert (wide.tables["units"]["verdict"] == "equivalent").all()


def test_more_images_make_a_small_change_certain_but_not_critical() -> None:
    model, (x, y) = _planted(3000, 3, harm=0.0)
    with torch.no_grad():
        model[2].weight[0, 0] = 0.02  # its class loses less than a percent without unit 0
    found = [score(model, (x, y), "cswap", smallest_change=least) for least in (0.0, 0.01, 0.03)]
    fall = found[0].tables["classes"].query("unit == 0 and `class` == 0")
    assert -0.02 < fall["xi"].item() < -0.01 and fall["p_decrease"].item() < 1e-12
    assert [scores.frame["category"][0] for scores in found] == ["critical", "critical", "neutral"]


def test_false_discovery_rate_over_units() -> None:
    model, data = _small(), _data(60)
    table = score(model, data, "cswap", fdr=False).tables["classes"]
    controlled = score(model, data, "cswap", fdr=True)
    for _, rows in table.groupby("class"):
        adjusted = stats.false_discovery_control(rows["p_decrease"])
        mine = controlled.tables["classes"].loc[rows.index]
        assert ((mine["verdict"] == "decrease") == (adjusted <= 0.05)).all()
        pd.testing.assert_series_equal(mine["p_decrease"], rows["p_decrease"])
    for n_classes, word in ((20, "uncorrected"), (21, "Benjamini")):
        model, data = _planted(3 * n_classes, n_classes, harm=0.5)
        assert any(word in note for note in score(model, data, "cswap").notes)
        assert not any(
            word in note for note in score(model, data, "cswap", fdr=n_classes == 20).notes
        )


def test_the_floor_keeps_hopeless_images_from_dominating() -> None:
    model, (x, y) = _planted(30, 3, harm=40.0)
    plain = score(model, (x, y), "cswap", floor=1e-12).frame["effect"][1]
    assert plain > 1e6 > 1e3 > score(model, (x, y), "cswap", floor=1e-3).frame["effect"][1] > 10


def test_classes_without_images_or_with_one_are_noted_and_left_out() -> None:
    model, (x, y) = _small(), _data(20)
    y = torch.where(y == 2, 0, y)
    y[0] = 2
    scores = score(model, (x, y), "cswap")
    assert "class 2 has one image: not tested" in scores.notes
    assert sorted(set(scores.tables["classes"]["class"])) == [0, 1]
    assert (scores.frame["n"] == 20).all()
    scores = score(model, (x[y != 2], y[y != 2]), "cswap")
    assert "class 2 has no images: not tested" in scores.notes
    with pytest.raises(DataError, match="at least two images"):
        score(model, (x[:3], torch.arange(3)), "cswap")


def test_batches_do_not_matter_and_tables_are_saved(tmp_path: Path) -> None:
    model, data = _small(), _data(23)
    whole = score(model, data, "cswap")
    parts = score(model, data, "cswap", batch_size=5)
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(parts.tables[name], table, atol=1e-10)
    again = Scores.load(whole.save(tmp_path / "scores.npz"))
    pd.testing.assert_frame_equal(again.tables["classes"], whole.tables["classes"])


def test_a_huge_table_of_classes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = _small(), _data(12)
    monkeypatch.setattr("causalprune.scoring.cswap.LARGEST_TABLE", 12 * 3)
    assert set(score(model, data, "cswap").tables) == {"units", "classes"}
    monkeypatch.setattr("causalprune.scoring.cswap.LARGEST_TABLE", 12 * 3 - 1)
    scores = score(model, data, "cswap")
    assert set(scores.tables) == {"units"} and len(scores.tables["units"]) == 12
    assert "no table of classes: it would have 36 rows" in scores.notes


@pytest.mark.parametrize(
    "options",
    [
        {"test": "z"},
        {"alpha": 0.0},
        {"alpha": True},
        {"fdr": 0.05},
        {"margin": -0.1},
        {"floor": 0.0},
        {"smallest_change": -0.1},
        {"smallest_change": 1.0},
        {"outcome": "margin"},
        {"outcome": lambda logits, targets: logits[:, 0]},
    ],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        score(_small(), _data(), "cswap", **options)  # type: ignore[arg-type]


def test_unknown_options_and_missing_labels() -> None:
    with pytest.raises(UnknownNameError, match="alpha"):
        score(_small(), _data(), "cswap", level=0.05)
    with pytest.raises(DataError, match="targets"):
        score(_small(), _data()[0], "cswap")
