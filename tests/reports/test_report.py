"""The report: what it says, that it stands alone, that it survives odd runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from simulated_trials import simulate, write_run

from causalprune.analysis import analyze, save_analyses
from causalprune.errors import InvalidArgumentError, OutputExistsError, RecordError
from causalprune.reports import report, sources, story

HEADINGS = (
    "What pruning did to accuracy",
    "What shrank",
    "What single units do",
    "Do the scores agree with exact ablation?",
    "The causal effect of pruning",
    "Replication: Algorithm 2 of the IISc paper",
    "What these numbers do not show",
    "Set-up",
)


class Page(HTMLParser):
    """Collects text, images and anything that would be loaded; checks that tags close."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.words: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        if tag in {"script", "link", "iframe", "object"}:
            self.loads.append(tag)
        for key in ("src", "href"):
            if key in values and not values[key].startswith("data:image/svg+xml;base64,"):
                self.loads.append(values[key])
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", simulate(1, checkpoints=3))
    table = simulate(1, checkpoints=3)
    results = [analyze(table, preset=preset, n_simulations=10) for preset in (None, "iisc")]
    save_analyses(results, folder / "analysis.json")
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Page:
    path = report(run, tmp_path_factory.mktemp("pages") / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def test_all_parts_are_there_in_order(page):
    places = [page.text.index(heading) for heading in HEADINGS]
    assert places == sorted(places)


def test_page_loads_nothing_and_every_image_is_described(page):
    assert page.loads == []
    assert len(page.images) == 11
    assert all(image["alt"] for image in page.images)


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
    rows = story.agreement(sources.read_source(run).scores)
    assert [(row["checkpoint"], row["method"]) for row in rows] == [
        (str(k), "path") for k in range(3)
    ]
    path, exact = (
        np.load(run / "scores" / f"0-{name}.npz")["importance"] for name in ("path", "ablation")
    )
    expected = np.corrcoef(path.argsort().argsort(), exact.argsort().argsort())[0, 1]
    assert float(rows[0]["spearman"]) == pytest.approx(expected, abs=6e-4)


def test_same_run_same_bytes(run, tmp_path):
    first = report(run, tmp_path / "a.html").read_bytes()
    assert report(run, tmp_path / "b.html").read_bytes() == first


def test_existing_file_is_kept_unless_told(run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="overwrite"):
        report(run, path)
    assert path.read_text() == "precious"
    report(run, path, overwrite=True)
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
        assert "Set-up" not in page.text


def test_analyses_are_computed_where_none_were_saved(tmp_path):
    table = simulate(1, checkpoints=2, ratios=(0.0, 0.5, 0.9), methods=("l1",))
    page = Page(report(table, tmp_path / "report.html").read_text("utf-8"))
    assert "The causal effect of pruning" in page.text


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
    assert page.images == []


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
    names = {name: np.array([{"a": 1}], dtype=object) for name in sources.SCORE_COLUMNS}
    np.savez(path, meta=np.array("{}"), **names)
    with pytest.raises(RecordError, match="not a score file"):
        sources.read_scores(path)


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
    assert story.points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert story.points(-0.00001) == "0.0"
    assert story.share(0.5) == "50 %"
    assert story.points(float("nan")) == "\N{EN DASH}"


def test_bad_arguments(run, tmp_path):
    with pytest.raises(InvalidArgumentError, match="path"):
        report(run, tmp_path)
    with pytest.raises(InvalidArgumentError, match="run_or_table"):
        report(3, tmp_path / "a.html")
    with pytest.raises(InvalidArgumentError, match="analyses"):
        report(run, tmp_path / "a.html", analyses=["x"])
    with pytest.raises(RecordError, match="missing columns method"):
        report(simulate(1).drop(columns="method"), tmp_path / "a.html")
    with pytest.raises(RecordError):
        report(tmp_path / "no-run", tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
