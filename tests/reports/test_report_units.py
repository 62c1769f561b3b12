"""The report of a per-unit table: words, figures, tables; and in a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import simulated_units
from report_pages import Page

from causalprune.analysis import analyze, unit_effects
from causalprune.analysis.wording import amount
from causalprune.errors import RecordError
from causalprune.experiments.records import write_json
from causalprune.reports import report

UNITS = simulated_units.drawn(simulated_units.population(), 0).assign(measured="loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "units"
    folder.mkdir()
    UNITS.to_csv(folder / "units.csv", index=False)
    analyze(UNITS).save(folder / "analysis.json")
    audited = pd.DataFrame(
        {"layer": ["<b>"] * 50, "unit": range(50), "predicted": 0.25, "effect": 0.5, "se": 0.125}
    )
    audited.to_csv(folder / "audit.csv", index=False)
    audit = {"sentence": "the 60 selected units do more", "predicted": 1, "low": 2, "high": 3}
    write_json(folder / "units.json", {"network": "lenet5", "seed": 0, "audit": audit})
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = report(folder, tmp_path_factory.mktemp("pages") / "report.html")
    return Page(path.read_text("utf-8"))


def test_words_come_first_and_every_layer_is_drawn(page: Page) -> None:
    assert page.headings[1] == "In short"
    assert page.headings.index("Does the plan remove what it should?") < page.headings.index(
        "What removing a unit does, layer by layer"
    )
    found = unit_effects(UNITS)
    top = max(found.layers, key=lambda row: abs(row.mean))
    assert f"Units of {top.layer} matter most" in page.text
    assert amount("loss", top.mean) in page.text
    assert "Of 400 units 100 are exact and 300 are predicted" in page.text
    assert sum("Effects on loss: by layer" in str(title) for title in page.figures) == 1
    assert sum("effect of every unit" in str(title) for title in page.figures) == 1
    # Behind the figure, one row a layer.
    for row in found.layers:
        assert f"one unit of {row.layer} removed" in page.text
        assert f"{row.n_ablated} were ablated" in page.text
    assert page.loads == [] and all(page.figures)
    assert set(page.links) <= set(page.ids) and len(set(page.ids)) == len(page.ids)


def test_the_audit_is_told_and_its_units_are_listed(page: Page) -> None:
    assert "The 60 selected units do more." in page.text
    assert "the prediction lies outside the interval" in page.text
    assert "The audit contradicts what was predicted" in page.text
    assert "The audited units (40 of 50)" in page.text and "<b>" in page.text
    assert "No random masks were drawn" in page.text and "No plan was audited" not in page.text


def test_a_bare_table_will_do(tmp_path: Path) -> None:
    text = Page(report(UNITS, tmp_path / "a.html").read_text("utf-8")).text
    assert "Units of" in text and "No plan was audited" in text
    UNITS.to_csv(tmp_path / "any.csv", index=False)
    again = report(tmp_path / "any.csv", tmp_path / "b.html").read_text("utf-8")
    assert Page(again).text.replace("any.csv", "table") == text
    one = UNITS[UNITS["layer"] == "fc"]
    headline = Page(report(one, tmp_path / "c.html").read_text("utf-8")).words
    assert any("Removing one unit alone changes the loss by" in word for word in headline)


def test_a_broken_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "units.csv").write_text("layer,unit\na,0\n")
    with pytest.raises(RecordError, match="missing columns probability"):
        report(broken, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
