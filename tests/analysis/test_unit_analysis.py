"""`analyze` knows tables of units and of masks by their columns, and says what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulated_units

from causalprune.analysis import AnalysisResult, analyze, mask_effects, unit_effects
from causalprune.analysis.unit_analysis import UNIT_COLUMNS, masked_layers
from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.scoring import MaskTable

UNITS = simulated_units.drawn(simulated_units.population(), 0).assign(measured="loss")


def masks(n_images: int = 60, seed: int = 0) -> MaskTable:
    """Two layers of five units: one of the first adds 0.5, of the second 0.1 for later images."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(n_images), 8)
    first, second = rng.random((2, len(image), 5)) < 0.2
    late = image >= n_images // 2
    frame = pd.DataFrame(
        {
            "image": image,
            "mask": np.tile(np.arange(8), n_images),
            "outcome": 0.5 * first.sum(1) + 0.1 * late * second.sum(1) + late,
            "outcome_whole": 1.0 * late,
            "n_removed": first.sum(1) + second.sum(1),
            "removed_a": first.mean(1),
            "removed_b": second.mean(1),
        }
    )
    treatments = pd.DataFrame(
        {"column": ["removed_a", "removed_b"], "layer": ["a", "b"], "unit": -1, "n_units": 5,
         "mean": 0.2, "variance": 0.032, "measured": "margin"}
    )  # fmt: skip
    return MaskTable(frame, treatments)


def folder_of(path: Path) -> Path:
    path.mkdir()
    UNITS.to_csv(path / "units.csv", index=False)
    masks().frame.to_csv(path / "masks.csv", index=False)
    masks().treatments.to_csv(path / "treatments.csv", index=False)
    return path


def test_a_table_of_units_gives_the_effects_of_its_layers() -> None:
    result, effects = analyze(UNITS), unit_effects(UNITS)
    assert result.findings == effects.findings()
    assert (result.estimate, result.interval[0]) == (effects.whole.mean, effects.whole.low)
    assert result.headline.startswith("Removing one unit alone changes the loss by ")
    assert "95 % interval" in result.headline and result.designed
    assert any("conformal intervals" in note for note in result.notes)
    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.refute(UNITS) == ()
    other = UNITS.assign(importance=UNITS["effect"].abs())
    assert "loss (absolute change)" in analyze(other, outcome="importance").headline


def test_every_column_of_the_table_is_explained() -> None:
    known = {name.rstrip("*") for name in UNIT_COLUMNS}
    unexplained = [c for c in UNITS if not any(c.startswith(name) for name in known)]
    assert unexplained == ["truth"]


def test_random_masks_give_layers_and_where_they_matter() -> None:
    table = masks()
    result = analyze(table)
    by_layer = dict(masked_layers(result))
    expected = mask_effects(table.frame, table.treatments).set_index("layer")["per_unit"]
    assert {layer: item.effect for layer, item in by_layer.items()} == expected.to_dict()
    assert by_layer["a"].low <= 0.5 <= by_layer["a"].high
    # Equal chances: of any unit, the mean of the two layers.
    assert result.interval[0] <= 0.275 <= result.interval[1]
    assert "the margin" in result.headline and "random masks of 2 layers" in result.notes[0]
    few = masks(10)
    assert "expected at least 40 images" in analyze(few).notes[0]
    forests = [f for f in result.findings if f.estimator.startswith("causal forest")]
    assert [f.contrast.split()[4] for f in forests] == ["b"] * 3
    assert abs(forests[0].effect) < 0.05 < forests[-1].effect
    hurried = analyze(table, time_budget_s=0)
    assert "time budget was spent" in hurried.notes[0] and hurried.estimate == result.estimate


def test_a_folder_holds_both_and_files_do_as_well(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "units")
    both, alone = analyze(folder, time_budget_s=0), analyze(folder / "units.csv")
    assert both.findings[: len(alone.findings)] == alone.findings == analyze(UNITS).findings
    assert len(masked_layers(both)) == 2
    assert both.findings[-1].question == "any layer, others removed too"
    only = analyze(folder / "masks.csv", time_budget_s=0)
    assert only.preset == "masks" and both.findings[-1].effect == only.estimate


def test_what_cannot_be_analysed_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"analysis\.mask_effects\(table, treatments\)"):
        analyze(masks().frame)
    with pytest.raises(InvalidArgumentError, match="preset, graph, contrasts: expected None"):
        analyze(UNITS, preset="iisc")
    with pytest.raises(RecordError, match="missing columns margin"):
        analyze(UNITS, outcome="margin")
    folder = folder_of(tmp_path / "units")
    (folder / "treatments.csv").unlink()
    with pytest.raises(RecordError, match="the treatments beside"):
        analyze(folder / "masks.csv")
    (folder / "units.csv").write_text('"')
    with pytest.raises(RecordError, match="not a readable table"):
        analyze(folder)
