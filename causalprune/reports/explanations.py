"""What explains each class: its graph, an image of it, and how much both are worth, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from causalprune.reports.explanation_figure import classes_of, explanatory_graph, graph_caption
from causalprune.reports.numbers import count, listed, share, signed
from causalprune.reports.picture_figure import example_picture
from causalprune.reports.score_tables import Picture, ScoreTable

OPEN, OF_A_STUDY = 3, 2
"""Classes that are shown unfolded; and at all, where a page is about several networks."""

CLEAR = 0.1
"""Difference of shares below which a graph does no better than chance."""


def explanations(scores: Sequence[ScoreTable]) -> dict[str, Any] | None:
    """Everything that the first of some scores with explanatory graphs says of classes."""
    holding = [table for table in scores if not table.graph_layers.empty]
    if not holding:
        return None
    table = holding[0]
    checks = {
        int(row["class"]): row
        for row in table.graph_checks.to_dict("records")
        if row["class"] == row["class"]
    }
    classes = classes_of(table)
    shown = classes[:OF_A_STUDY] if table.place else classes
    found = [_one(table, target, checks.get(target, {})) for target in shown]
    drawn = [each for each in found if each["graph"]]
    reasons = {k: str(row["reason"]) for k, row in checks.items() if row["reason"]}
    return {
        "mapped": any(each.layer for each in table.pictures),
        "summary": _summary(list(checks.values())),
        "open": drawn[:OPEN],
        "folded": drawn[OPEN:],
        "missing": _missing(table, reasons) + _left_out(classes[len(shown) :]),
    }


def _one(table: ScoreTable, target: int, check: Mapping[Any, Any]) -> dict[str, Any]:
    layers = table.graph_layers.loc[table.graph_layers["class"] == target]
    images = int(layers["n_images"].max()) if "n_images" in layers else 0
    pictures = [each for each in table.pictures if each.target == target]
    return {
        "target": target,
        "name": "" if check.get("name") in (None, str(target)) else f": {check['name']}",
        "graph": explanatory_graph(table, target),
        "caption": graph_caption(table, target),
        "pictures": [(example_picture(each), _caption(each)) for each in pictures],
        "sentences": _worth(target, images, check),
    }


def _caption(picture: Picture) -> str:
    start = f"Its image with the median logit, {signed(picture.logit, 1)}"
    return f"{start}; map of layer {picture.layer}." if picture.layer else f"{start}."


def _worth(target: int, images: int, check: Mapping[Any, Any]) -> list[str]:
    """Say what a graph and its maps are worth."""
    told = []
    kept, random, without = (
        _number(check, f"recognised_{name}") for name in ("kept", "random", "without")
    )
    if kept == kept and random == random:
        of_images = f"of the {count(images, 'image')}" if images else "of the images"
        told.append(
            f"With the {int(check['kept'])} of {int(check['units'])} units of this graph alone "
            f"{share(kept)} {of_images} are still taken for class {target} (with as many drawn at "
            f"random: {share(random)}), without them {share(without)}."
        )
        if kept - random < CLEAR:
            told.append("So the graph says little: other units do as well.")
    mapped, elsewhere = (_number(check, f"fall_{name}") for name in ("mapped", "elsewhere"))
    if mapped == mapped:
        told.append(
            f"Blanking the tenth of each image where its map is highest lowers the logit by "
            f"{signed(mapped, 1)}; the same shape elsewhere, by {signed(elsewhere, 1)}."
        )
        if mapped <= elsewhere:
            told.append("So these maps point at nothing in particular.")
    return told


def _number(check: Mapping[Any, Any], name: str) -> float:
    return float(check.get(name, float("nan")))


def _summary(checks: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Say of all classes together whether the graphs and maps can be believed."""
    frame = pd.DataFrame(list(checks))
    needed = {"recognised_kept", "recognised_random", "recognised_without"}
    if frame.empty or not needed <= set(frame) or frame["recognised_kept"].isna().all():
        return []
    frame = frame.loc[frame["recognised_kept"].notna()]
    mean = frame[["recognised_kept", "recognised_random", "recognised_without"]].mean()
    told = [
        f"Can it be believed? Over {len(frame)} {'class' if len(frame) == 1 else 'classes'}, "
        f"{share(mean['recognised_kept'])} of the images are still recognised by the kept units "
        f"alone, {share(mean['recognised_random'])} by as many units drawn at random, and "
        f"{share(mean['recognised_without'])} without the kept ones."
    ]
    falls = frame[["fall_mapped", "fall_elsewhere"]].dropna()
    if len(falls):
        better = int((falls["fall_mapped"] > falls["fall_elsewhere"]).sum())
        told.append(
            f"Blanking what the maps point at costs more of the logit than blanking the same shape "
            f"elsewhere for {better} of {len(falls)} classes."
        )
    return told


def _left_out(classes: Sequence[int]) -> list[str]:
    if not classes:
        return []
    names = listed([str(each) for each in classes])
    return [f"The score file has {'class' if len(classes) == 1 else 'classes'} {names}, too."]


def _missing(table: ScoreTable, reasons: Mapping[int, str]) -> list[str]:
    """Say of which classes something is missing, and why."""
    by_reason: dict[str, list[str]] = {}
    for target, reason in reasons.items():
        by_reason.setdefault(reason, []).append(str(target))
    told = [
        f"{'Class' if len(own) == 1 else 'Classes'} {listed(own)}: {reason}."
        for reason, own in by_reason.items()
    ]
    if not table.pictures and not reasons:
        told.append(
            "These scores hold no example images, so there are no maps: they are stored by "
            "causalprune score --explain, or causalprune.scoring.explained, unless examples=0."
        )
    return told
