"""The command ``causalprune units``: what it writes is what the functions give."""

from __future__ import annotations

import json
from pathlib import Path

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from cli.refusals import refusal
from typer.testing import CliRunner, Result

from causalprune.analysis import AnalysisResult, analyze, unit_effects
from causalprune.cli import app
from causalprune.pruning import Plan
from causalprune.scoring import score, unit_table

MODEL = """
from torch import nn

__all__ = ["small"]


def small():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["units", *arguments])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that name a small network in a file, its weights, and images in an .npz."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "nets.py").write_text(MODEL)
    inputs = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "images.npz", inputs=inputs.numpy(), targets=np.arange(50) % 3)
    torch.save(network().state_dict(), folder / "weights.pt")
    return (
        *("--model", f"{folder / 'nets.py'}:small", "--data", str(folder / "images.npz")),
        *("--weights", str(folder / "weights.pt"), "--sample", "0.4"),
    )


def network() -> torch.nn.Module:
    made: dict[str, object] = {}
    exec(MODEL, made)
    return networks.settle(made["small"](), 3)  # type: ignore[operator]


@pytest.fixture(scope="module")
def written(small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with masks, a plan and a report, and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "units"
    more = ("--masks", "4", "--mask-units", "0", "--ratio", "0.3", "--audited", "3", "--report")
    result = run(*small, *more, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out, result.output


def test_the_table_is_what_unit_table_gives(small: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "units"
    result = run(*small, "--max-images", "30", "--outcome", "margin", "--method", "taylor",
                 "--method", "l1", "--tail", "0.1", "--seed", "3", "--out", str(out))  # fmt: skip
    assert result.exit_code == 0, result.output
    images = np.load(small[3])
    data = torch.from_numpy(images["inputs"][:30]), torch.from_numpy(images["targets"][:30])
    methods = ("taylor", "l1")
    expected = unit_table(network(), data, methods, "margin", tail=0.1, sample=0.4, seed=3)
    found = pd.read_csv(out / "units.csv", float_precision="round_trip", dtype={"layer": str})
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    effects = unit_effects(expected, seed=3)
    layers = pd.read_csv(out / "layers.csv", dtype={"layer": str})
    assert list(layers["layer"]) == ["0", "3"]
    np.testing.assert_allclose(layers["mean"], [row.mean for row in effects.layers])
    assert (pd.read_csv(out / "effects.csv")["source"] == effects.units["source"]).all()
    assert "changes the margin by" in result.output and "conformal intervals" in result.output
    assert result.output.splitlines()[-1] == f"units: {out}"
    assert not (out / "masks.csv").exists() and not (out / "plan.json").exists()


def test_the_folder_holds_everything_and_analyze_reads_it(written: tuple[Path, str]) -> None:
    folder, _ = written
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "units.csv", "effects.csv", "layers.csv", "masks.csv", "treatments.csv", "audit.csv",
        "analysis.json", "units.json", "plan.json", "report.html",
    }  # fmt: skip
    saved = AnalysisResult.load(folder / "analysis.json")
    again = analyze(folder)
    assert again.findings == saved.findings and again.estimate == saved.estimate
    masks = pd.read_csv(folder / "masks.csv")
    assert len(masks) == 4 * 40 and "removed_0_unit5" in masks and "removed_3_unit0" not in masks
    facts = json.loads((folder / "units.json").read_text())
    assert facts["images"] == 40 and facts["outcome"] == "loss" and facts["columns"]["se"]


def test_the_plan_follows_the_table_and_its_audit_is_of_other_images(
    small: tuple[str, ...], written: tuple[Path, str]
) -> None:
    folder, printed = written
    gone = Plan.load(folder / "plan.json").remove
    effects = pd.read_csv(folder / "effects.csv").set_index(["layer", "unit"])["effect"]
    effects.index = effects.index.set_levels(effects.index.levels[0].astype(str), level=0)
    audit = pd.read_csv(folder / "audit.csv", dtype={"layer": str})
    facts = json.loads((folder / "units.json").read_text())["audit"]
    chosen = [(name, unit) for name, units in gone.items() for unit in units]
    assert len(chosen) == facts["n_selected"] and facts["n_audited"] == len(audit) == 3
    assert {(row.layer, row.unit) for row in audit.itertuples()} <= set(chosen)
    assert facts["predicted"] == pytest.approx(sum(effects[unit] for unit in chosen))
    # A fifth of the file was held out for it.
    assert facts["n_images"] == 10
    from causalprune.experiments.image_parts import image_parts
    from causalprune.experiments.model_specs import network_source

    parts = image_parts(small[3], network_source(small[1]), held_out=10)
    exact = score(network(), parts.held_out, "ablation").frame.set_index(["layer", "unit"])
    wanted = [exact["effect"][row.layer, row.unit] for row in audit.itertuples()]
    np.testing.assert_allclose(audit["effect"], wanted, rtol=1e-5, atol=1e-9)
    assert f"audit: {facts['sentence']}" in printed


def test_the_report_says_it_in_words(written: tuple[Path, str]) -> None:
    page = (written[0] / "report.html").read_text("utf-8")
    assert "units · 18 units · 2 layers" in page
    assert "Does the plan remove what it should?" in page
    assert "What removing a unit does, layer by layer" in page


def test_refusals(small: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert "exists; choose another folder" in refusal(run(*small, "--out", str(tmp_path / "there")))
    out = ("--out", str(tmp_path / "new"))
    assert "expected --ratio beside it" in refusal(run(*small, "--held-out", "5", *out))
    assert "unknown" in refusal(run(*small, "--method", "pth", *out))
    assert "floor: expected a number in (0, 1]" in refusal(run(*small, "--floor", "0", *out))
    assert "n_masks" in refusal(run(*small, "--masks", "1", *out))
    assert "expected a number in (0, 1)" in refusal(run(*small, "--confidence", "95", *out))
    assert not (tmp_path / "new").exists()
