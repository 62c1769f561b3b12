"""What a report shows of explanatory graphs: pictures, maps, and whether they can be believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from explained_class import GRAPH, checks, picture, tables_of
from report_pages import Page
from simulated_trials import LAYERS, add_tables, write_scores

from causalprune.errors import RecordError
from causalprune.reports import report
from causalprune.reports.explanations import explanations
from causalprune.reports.picture_figure import example_picture, regions
from causalprune.reports.score_tables import Picture, ScoreTable, read_scores
from causalprune.reports.story import headline_of_scores


def page_of(tmp_path: Path, tables: dict[str, dict[str, Any]]) -> Page:
    units = [(name, k) for name, n in LAYERS for k in range(n)]
    write_scores(tmp_path / "s.npz", units, np.random.default_rng(0).normal(size=len(units)), "l1")
    add_tables(tmp_path / "s.npz", tables)
    return Page(report(tmp_path / "s.npz", tmp_path / "s.html", overwrite=True).read_text("utf-8"))


def test_graph_image_and_map_of_a_class_stand_in_the_page(tmp_path: Path) -> None:
    shown = picture()
    page = page_of(tmp_path, GRAPH | tables_of(shown) | {"graph checks": checks()})
    assert page.loads == []
    assert "Units that cause the logit of class 3" in page.figures
    title = "An image of class 3 and where the kept units find the class in it"
    assert title in page.figures and "Class 3: cat & <b>" in page.headings
    image, overlaid, legend = page.pictures
    np.testing.assert_array_equal((255 * image[..., :3]).round().astype(int), shown.pixels)
    red, blue = overlaid[..., 0], overlaid[..., 2]
    # The strongest place has the full colour: blue for the class; half of it, orange, against.
    assert blue[0, 8] > red[0, 8] + 0.5 and red[5, 0] > blue[5, 0] + 0.2
    calm = np.abs(shown.map) == 0
    assert np.abs(red - blue)[calm].max() < 0.01
    assert legend[0, 0, 0] > legend[0, 0, 2] and legend[0, -1, 2] > legend[0, -1, 0]
    assert "top right 1 to 2 7 to 9 +2" in page.text
    assert (
        "comes to 1.00 logits, most of all at the top right (2.00); against the class speaks the "
        "bottom left (\N{MINUS SIGN}1.00)."
    ) in page.text


def test_a_page_says_whether_graph_and_map_can_be_believed(tmp_path: Path) -> None:
    page = page_of(tmp_path, GRAPH | {"graph checks": checks()})
    assert "Over 1 class, 95 % of the images are still recognised by the kept units" in page.text
    assert (
        "With the 2 of 9 units of this graph alone 95 % of the 20 images are still taken for "
        "class 3 (with as many drawn at random: 30 %), without them 5 %."
    ) in page.text
    assert "lowers the logit by 6.5; the same shape elsewhere, by 0.6." in page.text
    assert "Class 7: data: no image of class 7 was recognised." in page.text
    assert "says little" not in page.text and "nothing in particular" not in page.text
    poor = checks(recognised_random=0.9, fall_mapped=0.2)
    page = page_of(tmp_path, GRAPH | {"graph checks": poor})
    assert "So the graph says little: other units do as well." in page.text
    assert "So these maps point at nothing in particular." in page.text
    assert "for 0 of 1 classes" in page.text


def test_scores_without_pictures_say_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, GRAPH)
    assert "These scores hold no example images, so there are no maps" in page.text
    assert page.pictures == [] and "Can it be believed" not in page.text
    assert "What explains a class" not in page_of(tmp_path, {}).headings


def test_a_study_shows_two_classes_of_each_network(tmp_path: Path) -> None:
    page_of(tmp_path, GRAPH)
    table = read_scores(tmp_path / "s.npz", "LeNet-5 on MNIST")
    frames = {"graph_nodes": table.graph_nodes, "graph_layers": table.graph_layers}
    of_four: dict[str, Any] = {
        name: pd.concat([frame.assign(**{"class": k}) for k in range(4)])
        for name, frame in frames.items()
    }
    found = explanations([replace(table, **of_four)])
    assert found is not None and [each["target"] for each in found["open"]] == [0, 1]
    assert found["missing"][-1] == "The score file has classes 2 and 3, too."
    alone = explanations([replace(table, place="", **of_four)])
    assert alone is not None
    assert [each["target"] for each in alone["open"] + alone["folded"]] == [0, 1, 2, 3]


def test_pixels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tables = tables_of(picture())
    tables["graph examples"]["width"] = [10]
    with pytest.raises(RecordError, match=r"s\.npz: not a score file"):
        page_of(tmp_path, GRAPH | tables)
    tables = tables_of(picture())
    del tables["graph pixels"]["map"]
    with pytest.raises(RecordError, match="map"):
        page_of(tmp_path, GRAPH | tables)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (7, 5)])
def test_regions_add_up_to_the_map(size: tuple[int, int]) -> None:
    values = np.random.default_rng().normal(size=size)
    shown = Picture(0, 1.0, "conv", np.zeros((*size, 3), dtype=np.uint8), values)
    parts = regions(shown)
    assert len(parts) == 9 and sum(value for *_, value in parts) == pytest.approx(values.sum())
    assert len(example_picture(shown).rows) == 9


def test_an_image_without_a_map_is_shown_alone() -> None:
    values = np.full((4, 4), np.nan)
    shown = Picture(2, 1.0, "", np.zeros((4, 4, 3), dtype=np.uint8), values)
    drawing = example_picture(shown)
    assert drawing.rows == () and drawing.svg.count("<image") == 1
    assert "<title>An image of class 2</title>" in drawing.svg


def test_the_headline_leaves_out_what_there_is_none_of() -> None:
    def headline(*categories: str) -> str:
        frame = pd.DataFrame({"category": list(categories), "effect": 0.0})
        return headline_of_scores(ScoreTable("", "path", "loss", frame))

    assert headline("critical", "neutral") == (
        "Of 2 units, 1 is critical, and 1 makes no difference that could be shown"
    )
    assert headline(*["neutral"] * 1200) == (
        "Of 1,200 units, 1,200 make no difference that could be shown"
    )
    assert headline("critical", "critical", "neutral", "detrimental").endswith(
        "2 are critical, 1 makes no difference that could be shown, and the network would do "
        "better without 1"
    )
