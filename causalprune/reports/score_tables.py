"""Per-unit scores as a report reads them: from their file, without torch, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from causalprune.errors import RecordError

Values = np.ndarray[Any, Any]

SCORE_COLUMNS = ("layer", "unit", "effect", "low", "high", "importance", "category")
GRAPH_NODES, GRAPH_LAYERS = "graph nodes", "graph layers"
GRAPH_CHECKS, GRAPH_EXAMPLES, GRAPH_PIXELS = "graph checks", "graph examples", "graph pixels"
COLOURS = ["red", "green", "blue"]


@dataclass(frozen=True)
class Picture:
    """An image of a class and a map over it.

    Attributes
    ----------
    target : int
        The class.
    logit : float
    layer : str
        Whose causes the map is of; empty where there is no map.
    pixels : ndarray [h, w, 3], uint8
    map : ndarray [h, w], float64
        In logits a pixel; NaN where there is none.
    """

    target: int
    logit: float
    layer: str
    pixels: Values
    map: Values


@dataclass(frozen=True)
class ScoreTable:
    """Per-unit scores of one checkpoint by one method.

    Attributes
    ----------
    checkpoint : str
        Which network; "" where the file does not say.
    method, outcome : str
    frame : DataFrame
        Columns layer, unit, effect, low, high, importance, category.
    place : str
        Which network and data set of a study; "" elsewhere.
    n_images : int
        Most images behind a unit; 0 where none were used.
    confidence : float
        Level of the intervals.
    notes : tuple of str
        What the method refused or took at first order.
    graph_nodes, graph_layers : DataFrame
        Explanatory graphs of classes; empty where the scores hold none.
    graph_checks : DataFrame
        What these graphs and their maps are worth; empty where that was not looked at.
    pictures : tuple of Picture
        Example images of these classes.
    """

    checkpoint: str
    method: str
    outcome: str
    frame: pd.DataFrame
    place: str = ""
    n_images: int = 0
    confidence: float = 0.95
    notes: tuple[str, ...] = ()
    graph_nodes: pd.DataFrame = field(default_factory=pd.DataFrame)
    graph_layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    graph_checks: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: tuple[Picture, ...] = ()

    @property
    def has_effects(self) -> bool:
        """Whether the method measures effects, not an importance alone."""
        return bool(np.isfinite(self.frame["effect"].to_numpy(dtype=float)).any())

    @property
    def has_categories(self) -> bool:
        """Whether units are sorted into critical, neutral and detrimental."""
        return bool((self.frame["category"] != "").any())

    @property
    def column(self) -> str:
        """What is drawn of a unit."""
        return "effect" if self.has_effects else "importance"


def read_scores(path: Path, place: str = "") -> ScoreTable:
    """Read ``<checkpoint>-<method>.npz`` of a run, or what ``Scores.save`` wrote.

    Raises
    ------
    RecordError
        The file is missing, broken, or something else; nothing in it is unpickled.
    """
    try:
        # Opened here, because np.load leaks the handle of a broken archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            columns = {name: np.asarray(archive[name]) for name in SCORE_COLUMNS}
            images = int(archive["n"].max(initial=0)) if "n" in archive.files else 0
            meta = json.loads(str(archive["meta"][()]))
            tables = meta.get("tables", {})
            nodes, layers, checks = (
                _table(archive, tables, name) for name in (GRAPH_NODES, GRAPH_LAYERS, GRAPH_CHECKS)
            )
            pictures = _pictures(
                _table(archive, tables, GRAPH_EXAMPLES), _table(archive, tables, GRAPH_PIXELS)
            )
        frame = pd.DataFrame(columns)
        method, outcome = str(meta["method"]), str(meta["outcome"])
        confidence = float(meta.get("confidence", 0.95))
        notes = tuple(map(str, meta.get("notes", ())))
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise RecordError(f"{path}: not a score file ({error})") from error
    checkpoint, dash, _ = path.stem.partition("-")
    named = checkpoint if dash and checkpoint.isdigit() else ""
    return ScoreTable(
        named,
        method,
        outcome,
        frame,
        place,
        images,
        confidence,
        notes,
        nodes,
        layers,
        checks,
        pictures,
    )


def _table(archive: Any, tables: Mapping[str, Any], name: str) -> pd.DataFrame:
    return pd.DataFrame({key: archive[f"tables/{name}/{key}"] for key in tables.get(name, ())})


def _pictures(examples: pd.DataFrame, pixels: pd.DataFrame) -> tuple[Picture, ...]:
    found = []
    for row in examples.to_dict("records"):
        own = pixels.loc[(pixels["class"] == row["class"]) & (pixels["example"] == row["example"])]
        own = own.sort_values(["row", "column"])
        size = int(row["height"]), int(row["width"])
        colours = own[COLOURS].to_numpy(dtype=np.uint8).reshape(*size, 3)
        values = own["map"].to_numpy(dtype=float).reshape(size)
        told = int(row["class"]), float(row["logit"]), str(row["layer"])
        found.append(Picture(*told, colours, values))
    return tuple(found)
