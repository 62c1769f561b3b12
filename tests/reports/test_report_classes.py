"""Losses by class in the report: a planted one is named, noise is not, old tables say why."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from report_pages import Page
from simulated_classes import METHODS, NAMES, with_classes

from causalprune.experiments.class_rows import CLASS_COLUMNS
from causalprune.reports import report, sources, story
from causalprune.reports.class_losses import ByClass, by_class, class_name


def found_in(table: pd.DataFrame) -> ByClass | None:
    source = sources.read_source(table)
    (place,) = source.places
    return by_class(source, place, story.best_choice(source.trials))


def test_a_planted_loss_is_named_with_its_interval(tmp_path):
    table = with_classes(1, {2: 0.5})
    path = report(table, tmp_path / "report.html", analyses=())
    page = Page(path.read_text("utf-8"))
    assert "Who paid for it: single classes" in page.headings
    assert page.loads == []
    # Of every method at the heaviest ratio.
    named = re.findall(
        r"lass “\$fox\$ <b>” loses (\d+\.\d) points \((?:95.% interval )?(\d+\.\d) to (\d+\.\d)\) "
        r"where the average is (\d+\.\d): it is hurt more than others\.",
        page.text,
    )
    assert len(named) >= len(METHODS)
    own = table[(table["ratio"] == 0.9) & (table["method"] == "path")]
    mean = 100 * (own["accuracy_before"] - own["accuracy"]).mean()
    for loss, low, high, average in (map(float, each) for each in named):
        assert low < loss < high
        assert low > average
    assert any(float(each[3]) == pytest.approx(mean, abs=0.051) for each in named)
    for other in set(NAMES) - {NAMES[2]}:
        assert f"class “{other}” loses" not in page.text.lower()
    titles = [title for title in page.figures if title and "lost by each class" in title]
    assert len(titles) == 2
    assert "do not say which classes" not in page.text


def test_noise_names_no_class_and_says_so():
    for seed in range(2):
        found = found_in(with_classes(seed, {}, n=40))
        told = (*found.sentences, *found.methods)
        assert not any("hurt more" in sentence for sentence in told)
        assert any("may be chance" in sentence for sentence in told)
        assert all(row[-1] == "" for row in found.table.rows)


def test_the_method_of_the_headline_comes_first():
    table = with_classes(3, {4: 0.6})
    source = sources.read_source(table)
    choice = story.Choice("l1", 0.5, table, 0.0, 0.0, 0.5)
    found = by_class(source, source.places[0], choice)
    assert (found.method, found.ratio, found.heaviest) == ("l1", "0.5", "0.9")
    assert found.short.startswith("With “l1” at ratio 0.5")
    assert [sentence.split(":")[0] for sentence in found.methods] == ["“path”", "“l1”"]
    assert len(found.table.rows) == 3 * len(NAMES)
    assert "corrected for 10 classes" in found.sentences[0]


def test_many_classes_are_drawn_in_part_and_one_network_is_said():
    found = found_in(with_classes(2, {130: 0.9}, checkpoints=1, n_classes=140, n=30))
    assert "the 20 of 140 classes that lose most" in found.dots.svg
    assert len(found.dots.rows) == 100
    assert "the 100 that lose most" in found.dots.columns[0]
    assert "kind 130" in found.methods[0] + found.short
    assert "seen by 1 network" in found.sentences[1]


def test_older_tables_are_quiet_and_say_why(tmp_path):
    table = with_classes(1, {2: 0.5})
    page = Page(
        report(table.drop(columns=list(CLASS_COLUMNS)), tmp_path / "a.html", analyses=())
        .read_text("utf-8")
    )  # fmt: skip
    assert "Who paid for it: single classes" not in page.headings
    assert "made before the run table had accuracies by class" in page.text
    part = table.copy()
    part.loc[part["checkpoint"] == 0, list(CLASS_COLUMNS)] = None
    page = Page(report(part, tmp_path / "b.html", analyses=()).read_text("utf-8"))
    assert "Who paid for it: single classes" in page.headings
    assert "6 of 18 trials were recorded without accuracies by class" in page.text
    assert "test images, seen by 2 networks" in page.text


def test_networks_of_other_classes_are_not_compared(tmp_path):
    table = with_classes(1, {})
    other = with_classes(1, {}, n_classes=4)
    mixed = pd.concat([table[table["checkpoint"] == 0], other[other["checkpoint"] == 1]])
    found = found_in(mixed)
    assert found.dots is None
    assert "expected every network to have the same classes" in found.problem
    page = Page(report(mixed, tmp_path / "a.html", analyses=()).read_text("utf-8"))
    assert "Losses of classes cannot be compared" in page.text


def test_only_the_whole_network_loses_nothing_to_tell():
    table = with_classes(1, {})
    assert found_in(table[table["ratio"] == 0]) is None
    assert class_name("07") == "class 07"
