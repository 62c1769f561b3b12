"""The report: what it says, that it stands alone, that it survives odd runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from math import nan as NAN
from pathlib import Path

import numpy as np
import pytest
from report_pages import Page
from simulated_trials import simulate, write_run

from causalprune.analysis import AnalysisResult, Finding, analyze, save_analyses
from causalprune.errors import InvalidArgumentError, OutputExistsError, RecordError
from causalprune.reports import listings, numbers, report, score_tables, sources, story, style

HEADINGS = (
    "In short",
    "What pruning did to accuracy",
    "What shrank",
    "What single units do",
    "Do the scores agree with exact ablation?",
    "The causal effect of pruning",
    "Replication: Algorithm 2 of the IISc paper",
    "What these numbers do not show",
    "How it was made",
)
FIGURES = (
    "accuracy after retraining",
    "accuracy before retraining",
    "What is left of parameters",
    "effect of every unit",
    "conv1: change of loss",
    "conv2: change of loss",
    "fc1: change of loss",
    "fc2: change of loss",
    "against exact ablation",
    "Causal graph from prune ratio to accuracy loss",
    "Causal graph from high pruning",
    "level by level",
    "Effects on accuracy loss: method",
)
FINDINGS = (
    Finding(
        "method", "l1 instead of path", "paired differences", 0.01, 0.005, 0.015, sentence="A."
    ),
    Finding("method", "a instead of b", "paired", NAN, NAN, NAN, reason="One network has both."),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", simulate(1, checkpoints=3))
    table = simulate(1, checkpoints=3)
    results = [
        analyze(table, preset=preset, n_simulations=10, time_budget_s=0)
        for preset in (None, "iisc")
    ]
    results[0] = replace(results[0], findings=FINDINGS)
    save_analyses(results, folder / "analysis.json")
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Page:
    path = report(run, tmp_path_factory.mktemp("pages") / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def test_all_parts_are_there_in_order(page):
    places = [page.headings.index(heading) for heading in HEADINGS]
    assert places == sorted(places)


def test_page_loads_nothing_and_every_image_is_described(page):
    assert page.loads == []
    assert all(page.figures), "every figure has a title"
    for told in FIGURES:
        assert sum(told in title for title in page.figures) == 1, told
    assert all(box.startswith("0 0 ") for box in page.boxes)


def test_names_are_unique_and_every_link_has_its_end(page):
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)


def test_structure_can_be_walked_by_keyboard_and_screen_reader(page):
    assert {"main", "header", "footer", "nav"} <= set(page.tags)
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") >= 8
    assert "Skip to the results" in page.text


def test_headline_and_numbers_come_from_the_table(page):
    choice = story.best_choice(simulate(1, checkpoints=3))
    assert choice.loss <= 0.01
    assert f"LeNet-5 lost {100 * choice.removed:.0f} % of its parameters" in page.text
    assert f"With the scoring method “{choice.method}” at a prune ratio of {choice.ratio:g}" in (
        page.text
    )
    assert "61,706 →" in page.text


def test_refutations_are_told_in_sentences(run, page):
    for result in sources.read_source(run).analyses:
        assert result.headline in page.text
        for item in result.refutations:
            assert item.sentence in page.text
            assert item.verdict in page.text
    assert "reconstructed" in page.text
    assert "biased by construction" in page.text


def test_command_repeats_the_run(page):
    assert "causalprune run --network lenet5 --data digits" in page.text
    assert "--ratios 0,0.2,0.4,0.6,0.7,0.8,0.9" in page.text
    assert "--retrain-epochs 2" in page.text


def test_agreement_is_computed_from_the_scores(run):
    rows = listings.agreement(sources.read_source(run).scores)
    assert [(row["checkpoint"], row["method"]) for row in rows] == [
        (str(k), "path") for k in range(3)
    ]
    path, exact = (
        np.load(run / "scores" / f"0-{name}.npz")["importance"] for name in ("path", "ablation")
    )
    expected = np.corrcoef(path.argsort().argsort(), exact.argsort().argsort())[0, 1]
    assert float(rows[0]["spearman"]) == pytest.approx(expected, abs=6e-4)


def test_same_run_same_bytes(run, tmp_path):
    pages = [report(run, tmp_path / f"{k}.html", analyses=()).read_bytes() for k in range(2)]
    assert pages[0] == pages[1]


def test_existing_file_is_kept_unless_told(tmp_path):
    table = simulate(1, checkpoints=1, ratios=(0.0, 0.5), methods=("l1",))
    path = tmp_path / "report.html"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="overwrite"):
        report(table, path, analyses=())
    assert path.read_text() == "precious"
    report(table, path, analyses=(), overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_text_from_the_table_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    table = simulate(1, checkpoints=2, methods=(evil, "l1")).assign(architecture=f"net {evil}")
    table.loc[0, ["status", "error"]] = ["failed", f"broken {evil}"]
    folder = write_run(tmp_path / "run", table)
    (folder / "machine.json").write_text(json.dumps({"name": evil}))
    html = report(folder, tmp_path / "report.html", analyses=()).read_text(encoding="utf-8")
    assert "<script" not in html
    page = Page(html)
    assert f"broken {evil}" in page.text
    assert page.loads == []


def test_bare_table_and_csv_leave_out_what_they_lack(run, tmp_path):
    for number, table in enumerate((simulate(1, checkpoints=3), run / "trials.csv")):
        page = Page(report(table, tmp_path / f"{number}.html", analyses=()).read_text("utf-8"))
        assert "What shrank" in page.text
        assert "What single units do" not in page.text
        assert "The same trials again" not in page.text


def test_analyses_are_computed_where_none_were_saved(tmp_path, monkeypatch):
    quick = partial(analyze, n_simulations=0, time_budget_s=0)
    monkeypatch.setattr("causalprune.reports.page.analyze", quick)
    table = simulate(1, checkpoints=2, ratios=(0.0, 0.5, 0.9), methods=("l1",))
    page = Page(report(table, tmp_path / "report.html").read_text("utf-8"))
    assert "The causal effect of pruning" in page.headings
    assert "The causal effect of pruning on latency" in page.headings
    assert "Replication: Algorithm 2 of the IISc paper" in page.headings


def test_findings_are_drawn_and_those_without_a_number_say_why(page):
    assert "l1 instead of path 1.00 points 0.50 to 1.50 points" in page.text
    assert "a instead of b: One network has both." in page.text


def test_too_small_a_table_still_makes_a_page(tmp_path):
    table = simulate(1, checkpoints=1, ratios=(0.0, 0.5), methods=("l1",))
    page = Page(report(table, tmp_path / "report.html").read_text("utf-8"))
    assert "Not analysed" in page.text
    assert "at least 4 completed trials" in page.text
    assert "1 trained network" in page.text


def test_run_in_which_everything_failed_says_so(tmp_path):
    table = simulate(1, checkpoints=1).assign(status="failed", error="out of memory")
    table[["accuracy", "accuracy_loss"]] = np.nan
    page = Page(report(table, tmp_path / "report.html").read_text("utf-8"))
    assert "No trial on LeNet-5 completed" in page.text
    assert "out of memory" in page.text
    assert page.figures == []


def test_heavy_losses_are_not_called_a_success(tmp_path):
    table = simulate(1, checkpoints=3, size=2.0, ratios=(0.0, 0.6, 0.9))
    page = Page(report(table, tmp_path / "report.html", analyses=()).read_text("utf-8"))
    assert "Every prune ratio tried cost LeNet-5 more than one point" in page.text


def test_broken_extras_are_named_and_the_rest_is_shown(run, tmp_path):
    folder = write_run(tmp_path / "run", simulate(1, checkpoints=2))
    (folder / "machine.json").write_text("{")
    (folder / "analysis.json").write_text('{"schema": 99}')
    (folder / "scores" / "0-path.npz").write_bytes(b"not a zip")
    source = sources.read_source(folder)
    assert len(source.problems) == 3
    assert source.machine == {}
    assert source.analyses is None
    page = Page(report(folder, tmp_path / "report.html", analyses=()).read_text("utf-8"))
    assert "0-path.npz: not a score file" in page.text


def test_scores_with_pickles_are_refused(tmp_path):
    path = tmp_path / "0-path.npz"
    names = {name: np.array([{"a": 1}], dtype=object) for name in score_tables.SCORE_COLUMNS}
    np.savez(path, meta=np.array("{}"), **names)
    with pytest.raises(RecordError, match="not a score file"):
        score_tables.read_scores(path)


def test_scores_without_effects_are_drawn_by_importance(tmp_path):
    folder = write_run(tmp_path / "run", simulate(1, checkpoints=1))
    for path in (folder / "scores").glob("*.npz"):
        arrays = dict(np.load(path))
        for name in ("effect", "se", "low", "high"):
            arrays[name] = np.full(len(arrays["unit"]), np.nan)
        arrays["category"] = np.full(len(arrays["unit"]), "")
        path.unlink()
        meta = json.loads(str(arrays["meta"])) | {"method": "l1"}
        arrays["meta"] = np.array(json.dumps(meta))
        np.savez(folder / "scores" / "0-l1.npz", **arrays)
    page = Page(report(folder, tmp_path / "report.html", analyses=()).read_text("utf-8"))
    assert "What single units do" in page.text
    assert "neutral" not in page.text


def test_result_that_could_not_be_estimated_is_explained(tmp_path):
    table = simulate(1, checkpoints=2).assign(accuracy_loss=0.0)
    result = analyze(table, n_simulations=0)
    page = Page(report(table, tmp_path / "report.html", analyses=result).read_text("utf-8"))
    assert "never varies" in page.text
    assert re.search(r"\bnan\b", page.text, re.IGNORECASE) is None


def test_minus_signs_and_shares():
    assert numbers.points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert numbers.points(-0.00001) == "0.0"
    assert numbers.share(0.5) == "50 %"
    assert numbers.points(float("nan")) == "\N{EN DASH}"


def test_bad_arguments(run, tmp_path):
    with pytest.raises(InvalidArgumentError, match="path"):
        report(run, tmp_path)
    with pytest.raises(InvalidArgumentError, match="source: expected a Study"):
        report(3, tmp_path / "a.html")
    with pytest.raises(InvalidArgumentError, match="analyses"):
        report(run, tmp_path / "a.html", analyses=["x"])
    with pytest.raises(RecordError, match="missing columns method"):
        report(simulate(1).drop(columns="method"), tmp_path / "a.html")
    with pytest.raises(RecordError):
        report(tmp_path / "no-run", tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_numbers_at_the_axes_are_not_rounded():
    def paint(figure):
        axes = figure.subplots()
        axes.plot([0, 1], [0.00123456, 0.2])
        axes.set_yticks([0.0025, 0.125])

    svg = style.draw(3, 2, paint, title="ticks")
    assert "0.0025</text>" in svg and "0.1250</text>" in svg
    places = re.search(r'<path d="(M [^"]+)"[^>]*clip-path', svg)
    assert places and not re.search(r"\d\.\d{3}", places[1])


@pytest.mark.parametrize(("low", "doubted"), [(-0.004, True), (0.002, False)])
def test_what_a_bootstrap_for_few_networks_doubts_is_said(
    tmp_path: Path, low: float, doubted: bool
) -> None:
    source = sources.read_source(write_run(tmp_path / "run", simulate(1, checkpoints=3)))
    wild = Finding("few networks", "+0.1 of prune ratio", "wild", 0.02, low, 0.04)
    result = AnalysisResult(
        "default", "ratio", "accuracy_loss", 0.02, (0.01, 0.03), 0.1, findings=(wild,)
    )
    told = " ".join(story.doubtful(source, [result]))
    assert ("−0.40 to 4.00 points: by that alone it may be none" in told) == doubted  # noqa: RUF001
