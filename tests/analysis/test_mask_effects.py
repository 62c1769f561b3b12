"""Random-mask tables with known propensities, against values enumerated over every mask."""

from __future__ import annotations

import itertools
import math

import networks
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causalprune.analysis import layer_forests, mask_effects
from causalprune.analysis.mask_effects import layer_findings, one_more_unit
from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError
from causalprune.graph import capture, removed
from causalprune.scoring import MaskTable, mask_table, score

SIZES = {"0": 3, "2": 2}
Q = {"0": (0.2, 0.5, 0.3), "2": (0.4, 0.1)}
MODEL = networks.settle(
    nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)), 3
)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = torch.randint(0, 3, (60,), generator=GENERATOR)


def enumerated() -> np.ndarray:
    """Loss [N, 2**5] of every image under every mask; the first unit is the highest bit."""
    graph, columns = capture(MODEL, X), []
    for off in itertools.product((False, True), repeat=5):
        gone = {"0": np.flatnonzero(off[:3]).tolist(), "2": np.flatnonzero(off[3:]).tolist()}
        with removed(MODEL, graph, gone), torch.no_grad():
            columns.append(F.cross_entropy(MODEL(X).double(), Y, reduction="none"))
    return torch.stack(columns, 1).numpy()


OUTCOMES = enumerated()
CHANCE = np.array([*Q["0"], *Q["2"]])
MASKS = np.array(list(itertools.product((0, 1), repeat=5)))
NAMES = [f"removed_{layer}_unit{unit}" for layer, n in SIZES.items() for unit in range(n)]


def banzhaf_values() -> np.ndarray:
    """By definition: mean over the images and over the masks of the others, by their chance."""
    means, values = OUTCOMES.mean(0), []
    for unit in range(5):
        others = [k for k in range(5) if k != unit]
        total = 0.0
        for code, mask in enumerate(MASKS):
            if not mask[unit]:
                chance = np.prod([CHANCE[k] if mask[k] else 1 - CHANCE[k] for k in others])
                total += chance * (means[code + 2 ** (4 - unit)] - means[code])
        values.append(total)
    return np.array(values)


VALUES = banzhaf_values()


def layer_slopes() -> dict[str, float]:
    spread = CHANCE * (1 - CHANCE)
    return {
        f"removed_{layer}": float(np.average(VALUES[part], weights=spread[part]) * SIZES[layer])
        for layer, part in (("0", slice(0, 3)), ("2", slice(3, 5)))
    }


def design(seed: int, n_masks: int = 6) -> MaskTable:
    """The table that such a run would give, its outcomes looked up."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(len(X)), n_masks)
    off = (rng.random((len(image), 5)) < CHANCE).astype(int)
    frame = pd.DataFrame(off, columns=NAMES)
    frame["image"] = image
    frame["outcome"] = OUTCOMES[image, off @ 2 ** np.arange(4, -1, -1)]
    frame["outcome_whole"] = OUTCOMES[image, 0]
    frame["n_removed"] = off.sum(1)
    frame["removed_0"], frame["removed_2"] = off[:, :3].mean(1), off[:, 3:].mean(1)
    return MaskTable(frame, TREATMENTS)


SCORES = score(MODEL, (X, Y), "banzhaf", q=Q, n_masks=6)
TREATMENTS = mask_table(SCORES).treatments


def test_one_more_unit_of_any_layer_is_the_weighted_mean_of_all_values() -> None:
    truth = float(np.average(VALUES, weights=CHANCE * (1 - CHANCE)))
    tables = [design(seed, 10) for seed in range(40)]
    found = np.array([one_more_unit(t.frame, t.treatments, seed=0) for t in tables])
    error = found[:, 0].std() / math.sqrt(len(found))
    assert abs(found[:, 0].mean() - truth) < 3.5 * error
    assert np.mean((found[:, 1] <= truth) & (truth <= found[:, 2])) >= 0.85


def test_the_table_holds_the_masks_and_their_known_propensities() -> None:
    table = mask_table(SCORES)
    assert list(table.treatments["column"]) == ["removed_0", *NAMES[:3], "removed_2", *NAMES[3:]]
    units = table.treatments[table.treatments["unit"] >= 0]
    np.testing.assert_allclose(units["mean"], CHANCE)
    np.testing.assert_allclose(units["variance"], CHANCE * (1 - CHANCE))
    off = table.frame[NAMES].to_numpy()
    assert (off.sum(1) == table.frame["n_removed"]).all()
    codes = off @ 2 ** np.arange(4, -1, -1)
    np.testing.assert_allclose(
        table.frame["outcome"], OUTCOMES[table.frame["image"], codes], atol=1e-5
    )
    chance = np.where(off, np.log(CHANCE), np.log1p(-CHANCE)).sum(1)
    np.testing.assert_allclose(table.frame["log_probability"], chance)
    whole = table.treatments.set_index("column").loc["removed_0"]
    fraction = off[:, :3].mean(1)
    np.testing.assert_allclose(table.frame["removed_0"], fraction)
    exact = sum(
        np.prod(np.where(m, CHANCE[:3], 1 - CHANCE[:3])) * (m.mean() - whole["mean"]) ** 2
        for m in np.array(list(itertools.product((0, 1), repeat=3)))
    )
    assert whole["variance"] == pytest.approx(exact)


@pytest.mark.parametrize("estimator", ["ipw", "dml"])
def test_effects_are_the_enumerated_values(estimator: str) -> None:
    truth = dict(zip(NAMES, VALUES, strict=True)) | layer_slopes()
    found = []
    for seed in range(60):
        table = design(seed)
        found.append(mask_effects(table.frame, TREATMENTS, estimator=estimator, seed=seed))
    rows = pd.concat(found)
    rows["truth"] = rows["column"].map(truth)
    spread = rows.groupby("column")["effect"].std()
    bias = rows.groupby("column")["effect"].mean() - pd.Series(truth)
    # Seven treatments, each within what 60 draws allow.
    assert (bias.abs() < 3.5 * spread / math.sqrt(60) + 1e-12).all()
    # These 60 images are the population here, so intervals over images cover more than 95 %.
    inside = rows["truth"].between(rows["low"], rows["high"])
    assert inside.mean() >= 0.93
    assert (rows["high"] > rows["low"]).all()


def test_taking_out_what_is_known_narrows_the_intervals() -> None:
    table = design(0)
    widths = {
        name: mask_effects(table.frame, TREATMENTS, estimator=name)["se"].median()
        for name in ("ipw", "dml")
    }
    assert widths["ipw"] > 1.5 * widths["dml"]


def test_intervals_cover_the_distribution_of_images() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(120):
        image = np.repeat(np.arange(50), 4)
        level = rng.exponential(size=50)[image]
        off = (rng.random(200) < 0.3).astype(int)
        frame = pd.DataFrame({"image": image, "outcome_whole": level, "removed_a": off * 1.0})
        # The effect differs from image to image, the noise is the image's own.
        frame["outcome"] = level + off * (0.5 + level) + 0.3 * rng.standard_normal(50)[image]
        treatments = pd.DataFrame(
            {"column": ["removed_a"], "layer": "a", "unit": 0, "n_units": 1, "mean": 0.3,
             "variance": 0.21}
        )  # fmt: skip
        row = mask_effects(frame, treatments).iloc[0]
        hits.append(row["low"] <= 1.5 <= row["high"])
    assert 0.89 <= np.mean(hits) <= 0.99


def test_dowhy_weights_by_the_known_propensities() -> None:
    table = design(1)
    before = table.frame.copy()
    theirs = mask_effects(table.frame, TREATMENTS, estimator="dowhy")
    groups = [before.groupby(name)["outcome"].mean() for name in NAMES]
    np.testing.assert_allclose(theirs["effect"], [g[1] - g[0] for g in groups], rtol=1e-9)
    ours = mask_effects(table.frame, TREATMENTS, NAMES)
    assert ((theirs["effect"] - ours["effect"]).abs() < 4 * theirs["se"]).all()
    pd.testing.assert_frame_equal(table.frame, before)


def test_findings_are_per_unit() -> None:
    found = mask_effects(design(2).frame, TREATMENTS, ["removed_2"])
    (finding,) = layer_findings(found, "loss", 60)
    assert finding.effect == found["per_unit"][0] == found["effect"][0] / 2
    assert "one more unit of 2" in finding.sentence


def heterogeneous(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Layer a matters in proportion to the image's level; layer b alike everywhere."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(80), 8)
    level = rng.exponential(size=80)[image]
    a, b = rng.random((640, 5)) < 0.2, rng.random((640, 4)) < 0.2
    frame = pd.DataFrame({"image": image, "outcome_whole": level})
    frame["n_removed"] = a.sum(1) + b.sum(1)
    frame["removed_a"], frame["removed_b"] = a.mean(1), b.mean(1)
    noise = 0.1 * rng.standard_normal(640)
    frame["outcome"] = level + 0.4 * level * a.sum(1) + 0.3 * b.sum(1) + noise
    treatments = pd.DataFrame(
        {"column": ["removed_a", "removed_b"], "layer": ["a", "b"], "unit": -1, "n_units": [5, 4],
         "mean": 0.2, "variance": [0.16 / 5, 0.16 / 4]}
    )  # fmt: skip
    return frame, treatments


def test_forests_find_where_a_layer_matters_and_invent_nothing() -> None:
    frame, treatments = heterogeneous(0)
    a, b = layer_forests(frame, treatments, n_trees=40, outcome="loss")
    level = frame["outcome_whole"]
    assert a.whole.low <= 0.4 * level.mean() <= a.whole.high
    assert b.whole.low <= 0.3 <= b.whole.high
    assert a.differs and 0.5 < a.calibration < 2
    least, _, most = a.groups
    assert most.effect > 2 * least.effect
    assert most.modifiers["outcome_whole"] > 2 * least.modifiers["outcome_whole"]
    assert not b.differs and "no difference" in b.sentence and "a forest predicts" in a.sentence
    assert a.findings()[0].effect == a.whole.effect
    assert len(a.findings()) == 4
    shares = [frame["removed_a"] * 5, frame["n_removed"]]
    elsewhere = (shares[1] - shares[0]).mean()
    assert a.whole.modifiers["removed_elsewhere"] == pytest.approx(elsewhere)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t, q: t.drop(columns="outcome", inplace=True), "table: missing columns outcome"),
        (lambda t, q: q.drop(columns="mean", inplace=True), "treatments: missing columns mean"),
        (lambda t, q: t.drop(columns=NAMES[0], inplace=True), "missing treatments removed_0_unit0"),
        (lambda t, q: t.__setitem__("outcome", math.nan), "outcome: expected finite numbers, 360"),
        (lambda t, q: q.__setitem__("mean", 1.0), r"expected a mean in \(0, 1\)"),
        (lambda t, q: q.__setitem__("variance", 0.9), "variance of a random treatment"),
        (lambda t, q: t.__setitem__("image", 0), "at least 5 images, got 1"),
    ],
)
def test_broken_tables_are_refused_by_name(damage, words: str) -> None:
    frame, treatments = design(0).frame, TREATMENTS.copy()
    damage(frame, treatments)
    with pytest.raises(RecordError, match=words):
        mask_effects(frame, treatments)


def test_wrong_arguments_are_refused_by_name() -> None:
    frame = design(0).frame
    with pytest.raises(UnknownNameError, match="estimator"):
        mask_effects(frame, TREATMENTS, estimator="ols")
    with pytest.raises(UnknownNameError, match="treatment"):
        mask_effects(frame, TREATMENTS, ["removed_7"])
    with pytest.raises(InvalidArgumentError, match="confidence"):
        mask_effects(frame, TREATMENTS, confidence=95)
    with pytest.raises(InvalidArgumentError, match="0/1 columns"):
        mask_effects(frame, TREATMENTS, ["removed_0"], estimator="dowhy")
    with pytest.raises(InvalidArgumentError, match="expected a DataFrame"):
        mask_effects([1], TREATMENTS)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="layer"):
        layer_forests(frame, TREATMENTS, ["9"])
    with pytest.raises(UnknownNameError, match="modifier"):
        layer_forests(frame, TREATMENTS, modifiers=["mood"])
    with pytest.raises(InvalidArgumentError, match="n_trees"):
        layer_forests(frame, TREATMENTS, n_trees=3)
    with pytest.raises(InvalidArgumentError, match="at least 40 images"):
        layer_forests(frame[frame["image"] < 30], TREATMENTS)


def test_tables_of_other_scores_are_refused() -> None:
    with pytest.raises(RecordError, match="masks of method 'banzhaf'"):
        mask_table(score(MODEL, (X, Y), "l1"))
    with pytest.raises(UnknownNameError, match="unit group"):
        mask_table(SCORES, ["9"])
    with pytest.raises(InvalidArgumentError, match=r"units of '2' in \[0, 2\)"):
        mask_table(SCORES, {"2": [2]})
    few = mask_table(SCORES, ["2"])
    assert list(few.treatments["unit"]) == [-1, -1, 0, 1]
