"""Reports of studies, of pruned networks and of scores: what each page shows and says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_pages import Page
from simulated_trials import LAYERS, add_tables, simulate, write_run, write_scores

from causalprune.errors import RecordError
from causalprune.experiments.records import SHIFT_COLUMNS, TRIAL_COLUMNS
from causalprune.experiments.store import StudyStore, Worker
from causalprune.reports import listings, losses, report, sources

FALL = {"fog:3": 0.05, "noise:0.2": 0.2}


def shifted(seed: int, architecture: str, first: int) -> pd.DataFrame:
    """Trials of one network under two shifts; noise hurts more, the more is gone."""
    table = simulate(seed, checkpoints=3, methods=("path", "wt"), ratios=(0.0, 0.4, 0.8))
    table = table.assign(architecture=architecture)
    table["trial"] += first
    table["order"] += first
    layers = [{"conv1": 0.5 * r, "fc1": r} for r in table["achieved_ratio"]]
    table["achieved_ratio_by_layer"] = [json.dumps(each) for each in layers]
    for column, source in (
        ("accuracy_by_shift", "accuracy"),
        ("accuracy_before_by_shift", "accuracy_before"),
    ):
        extra = table["ratio"] if source == "accuracy" else 0 * table["ratio"]
        table[column] = [
            json.dumps({k: a - fall * (0.5 + e) for k, fall in FALL.items()})
            for a, e in zip(table[source], extra, strict=True)
        ]
    return table


def stored(folder: Path, table: pd.DataFrame, left: int = 0) -> Path:
    """Write a study with these rows, `left` of its trials still to come."""
    blocks = [{"network": "lenet5", "data": "digits"}, {"network": "lenet300", "data": "digits"}]
    study = {"name": "two networks", "blocks": blocks, "seed": 7, "shifts": list(FALL)}
    cells = [{"trial": int(row.trial), "order": int(row.order)} for row in table.itertuples()]
    rows = table.set_index("trial")
    columns = (*TRIAL_COLUMNS, *SHIFT_COLUMNS)
    with StudyStore.create(folder, study, cells, columns=columns) as store:
        worker = Worker.here()
        store.record_machine(worker, {"name": "Example CPU", "torch": "2.13.0"})
        for _ in range(len(cells) - left):
            claimed = store.claim(worker)
            row = rows.loc[claimed.trial].dropna().to_dict()
            store.finish(claimed.trial, worker, {**row, "trial": claimed.trial})
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    table = pd.concat([shifted(1, "lenet5", 0), shifted(2, "lenet300", 18)], ignore_index=True)
    folder = stored(tmp_path_factory.mktemp("studies") / "study", table)
    scores = folder / "blocks" / "0-lenet5" / "scores"
    scores.mkdir(parents=True)
    units = [(name, k) for name, n in LAYERS for k in range(n)]
    effect = np.random.default_rng(0).gamma(0.6, 0.05, len(units))
    write_scores(scores / "0-path.npz", units, effect, "path")
    return folder


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> Page:
    path = report(study, tmp_path_factory.mktemp("pages") / "report.html", analyses=())
    return Page(path.read_text(encoding="utf-8"))


def test_every_network_of_a_study_has_its_own_figures(page):
    assert "For at most one point of accuracy" in page.text
    for place in ("LeNet-5 on digits", "LeNet-300-100 on digits"):
        assert page.text.count(place) >= 4
    # Two curves, costs, layers, shifts and potentials of each; three more of single units.
    titles = page.figures
    assert sum("after retraining" in title for title in titles) == 2
    assert sum("each layer lost" in title for title in titles) == 2
    assert sum("shifted images" in title for title in titles) == 2
    assert sum(title.startswith("Prune potential") for title in titles) == 2
    assert page.loads == []
    assert len(set(page.ids)) == len(page.ids)


def test_a_study_says_how_it_was_made(page):
    assert "two networks" in page.text
    assert "Example CPU" in page.text
    assert "fog:3, noise:0.2" in page.text
    assert "seed 7" in page.text


def test_potentials_and_guideline_are_those_of_the_study(study, page):
    found = sources.read_source(study)
    expected = losses.potentials_of_trials(
        found.shifts.loc[found.shifts["architecture"] == "lenet5"]
    ).summary
    own = expected.set_index(["method", "shift"])["mean"]
    mean = 100 * own["all methods", "mean of shifts"]
    assert f"{mean:.0f} % on average under the shifts" in page.text
    assert own["all methods", "none"] >= own["all methods", "noise:0.2"]
    assert "If the shifts tried here are all that can occur: prune moderately" in page.text
    assert "fog 3" in page.text
    assert "uniform noise 0.2" in page.text


def test_a_study_object_and_its_database_are_the_same_report(study, tmp_path):
    class Study:
        frame, folder = None, study

    first, *others = (sources.read_source(each) for each in (study, study / "study.db", Study()))
    for other in others:
        pd.testing.assert_frame_equal(first.shifts, other.shifts)
        assert (other.kind, other.name, other.config) == ("study", "two networks", first.config)


def test_a_study_that_goes_on_says_what_is_still_to_come(tmp_path):
    folder = stored(tmp_path / "study", shifted(1, "lenet5", 0), left=17)
    page = Page(report(folder, tmp_path / "r.html", analyses=()).read_text("utf-8"))
    assert "17 of its trials are still to come" in page.text
    assert "Prune potentials need networks at ratio 0 and above" in page.text
    empty = stored(tmp_path / "empty", shifted(1, "lenet5", 0), left=18)
    page = Page(report(empty, tmp_path / "e.html").read_text("utf-8"))
    assert "No trial has ended yet" in page.text


def test_layer_shares_are_read_row_by_row():
    table = pd.DataFrame({"achieved_ratio_by_layer": ['{"a": 0.25}', None, "broken"]})
    assert listings.layer_shares(table) == {0: {"a": 0.25}}


def test_scores_alone_have_effects_categories_and_graphs(tmp_path):
    units = [(name, k) for name, n in LAYERS for k in range(n)]
    effect = np.random.default_rng(0).gamma(0.6, 0.05, len(units)) - 0.004
    path = tmp_path / "scores.npz"
    write_scores(path, units, effect, "path")
    layers = {"class": [3, 3], "step": [0, 1], "layer": ["fc2", "fc1"]}
    nodes = {
        "class": [3, 3, 3], "step": [0, 0, 1], "layer": ["fc2", "fc2", "fc1"],
        "parent": ["fc1", "fc1", "conv2"], "unit": [4, 5, 1], "effect": [-2.0, -1.0, -0.5],
        "cause": [True, False, True],
    }  # fmt: skip
    add_tables(path, {"graph layers": layers, "graph nodes": nodes}, notes=["fc3: refused"])
    page = Page(report(path, tmp_path / "report.html").read_text("utf-8"))
    with np.load(path) as archive:
        critical = int((archive["category"] == "critical").sum())
    assert f"Of 226 units, {critical} are critical" in page.text
    assert "Units that cause the logit of class 3" in page.figures
    assert "fc1 4 -2" in page.text
    assert "fc1 5 -1" not in page.text
    assert "hold no example images" in page.text
    assert "fc3: refused" in page.text
    assert "The causal effect of pruning" not in page.text


def pruned_folder(folder: Path, *, change: dict | None) -> Path:
    accuracy = {"value": 0.97, "low": 0.95, "high": 0.98, "n": 450}
    latency = {"median_ms": 2.0, "q25_ms": 1.9, "q75_ms": 2.1}
    side = {"parameters": 1000, "macs": 4000, "bytes": 4096, "activation_bytes": 512,
            "latency": latency, "accuracy": accuracy if change else None}  # fmt: skip
    summary = {
        "schema": 1, "network": "lenet5", "method": "path", "of": "macs", "ratio": 0.5,
        "achieved_ratio": 0.48, "reached": False, "stopped": "", "before": side,
        "after": side | {"parameters": 400, "macs": 2080}, "change": change,
        "machine": {"name": "Example CPU"},
    }  # fmt: skip
    table = [{"group": "conv1", "units": 6, "kept": 6}, {"group": "fc1", "units": 120, "kept": 30}]
    steps = [
        {"verdict": "kept", "removed": [{}] * 90, "accuracy": 0.96, "footprint": {"macs": 2080}},
        {"verdict": "reverted", "removed": [{}], "accuracy": 0.5, "footprint": {"macs": 2000}},
    ]
    folder.mkdir()
    trace = {"steps": steps, "accuracy": 0.97, "stopped": "no unit left that may go"}
    for name, content in (("summary", summary), ("plan", {"table": table}), ("trace", trace)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_pruned_network_is_set_beside_the_one_it_came_from(tmp_path):
    change = {"value": -0.02, "low": -0.03, "high": -0.01, "n": 450}
    folder = pruned_folder(tmp_path / "pruned", change=change)
    page = Page(report(folder, tmp_path / "report.html").read_text("utf-8"))
    assert "LeNet-5 lost 60 % of its parameters for 2.0 points of accuracy" in page.text
    assert "90 units were taken out" in page.text
    assert "4,000 2,080 \N{MINUS SIGN}48.0 %" in page.text
    assert "Why the run ended: no unit left that may go" in page.text
    assert "The target was not reached" in page.text
    assert len(page.figures) == 2


def test_a_pruned_network_without_test_images_claims_nothing(tmp_path):
    folder = pruned_folder(tmp_path / "pruned", change=None)
    page = Page(report(folder, tmp_path / "report.html").read_text("utf-8"))
    assert "what this cost in accuracy is not known" in page.text
    (folder / "summary.json").write_text("{}")
    with pytest.raises(RecordError, match="not the folder of a pruned network"):
        report(folder, tmp_path / "again.html")


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no records in this folder"):
        report(tmp_path, tmp_path / "a.html")
    with pytest.raises(RecordError, match="no such file or folder"):
        report(tmp_path / "nothing", tmp_path / "a.html")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(RecordError, match="not a score file"):
        report(tmp_path / "broken.npz", tmp_path / "a.html")


def test_a_table_by_shift_is_read_like_the_study_it_came_from(tmp_path):
    from causalprune.experiments.shift_rows import rows_by_shift

    table = shifted(3, "lenet5", 0)
    found = sources.read_source(rows_by_shift(table))
    assert len(found.trials) == len(table)
    assert set(found.shifts["shift"]) == {"none", *FALL}


def test_run_folder_still_reads(tmp_path):
    folder = write_run(tmp_path / "run", simulate(1, checkpoints=1))
    assert sources.read_source(folder).kind == "run"
