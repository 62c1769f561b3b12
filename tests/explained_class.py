"""An explanatory graph of one class with a picture, in the layout of score files."""

from __future__ import annotations

from typing import Any

import numpy as np

from causalprune.reports.score_tables import Picture

GRAPH: dict[str, dict[str, Any]] = {
    "graph layers": {
        "class": [3, 3], "step": [0, 1], "layer": ["fc2", "fc1"], "n_images": [20, 20],
    },
    "graph nodes": {
        "class": [3, 3, 3], "step": [0, 0, 1], "layer": ["fc2", "fc2", "fc1"],
        "parent": ["fc1", "fc1", "conv2"], "unit": [4, 5, 1], "effect": [-2.0, -1.0, -0.5],
        "cause": [True, False, True],
    },
}  # fmt: skip


def checks(**changed: Any) -> dict[str, Any]:
    found = {
        "class": 3, "name": "cat & <b>", "kept": 2, "units": 9,
        "recognised_kept": 0.95, "recognised_random": 0.3, "recognised_without": 0.05,
        "logit": 9.0, "logit_kept": 11.0, "logit_random": 1.0,
        "logit_without": -1.0, "map_layer": "fc1", "fall_mapped": 6.5, "fall_elsewhere": 0.6,
        "reason": "",
    }  # fmt: skip
    none = {name: "" if isinstance(value, str) else np.nan for name, value in found.items()}
    lost = none | {"class": 7, "reason": "data: no image of class 7 was recognised"}
    return {name: [(found | changed)[name], lost[name]] for name in found}


def picture(height: int = 6, width: int = 9) -> Picture:
    """Colours at random; the class is found at the top right, and something against it below."""
    random = np.random.default_rng()
    values = np.zeros((height, width))
    values[0, width - 1], values[height - 1, 0] = 2.0, -1.0
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(3, 9.25, "fc1", pixels, values)


def tables_of(shown: Picture) -> dict[str, dict[str, Any]]:
    height, width = shown.map.shape
    rows, columns = np.indices(shown.map.shape)
    colours = {
        name: shown.pixels[..., k].ravel() for k, name in enumerate(("red", "green", "blue"))
    }
    one = {"class": [3], "example": [0], "logit": [shown.logit], "layer": [shown.layer]}
    places = {"class": np.full(rows.size, 3), "example": np.zeros(rows.size, dtype=int)}
    places |= {"row": rows.ravel(), "column": columns.ravel()}
    return {
        "graph examples": one | {"height": [height], "width": [width]},
        "graph pixels": places | colours | {"map": shown.map.ravel().astype(np.float16)},
    }


def explained_class() -> dict[str, dict[str, Any]]:
    """Everything that the scores hold of the class."""
    return GRAPH | tables_of(picture()) | {"graph checks": checks()}
