"""Simulated per-unit tables with a known truth, all of whose effects are there to be looked up."""

from __future__ import annotations

import numpy as np
import pandas as pd

from causalprune.scoring.unit_designs import draw_units, inclusion_probabilities

LAYERS = ("conv1", "conv2", "conv3", "fc")


def population(seed: int = 0, n_units: int = 400, noise: float = 0.4) -> pd.DataFrame:
    """All units: features, and `truth`, of which a few large ones make most of the sum."""
    rng = np.random.default_rng(seed)
    size = np.exp(1.2 * rng.standard_normal(n_units))
    share = np.sort(rng.integers(0, len(LAYERS), n_units))
    truth = size * (0.5 + 0.2 * share + noise * rng.standard_normal(n_units))
    return pd.DataFrame(
        {
            "layer": np.array(LAYERS)[share],
            "unit": np.arange(n_units),
            "score_path": size,
            "score_l1": size * np.exp(0.3 * rng.standard_normal(n_units)),
            "effect_path": size * (0.5 + 0.2 * share + noise * rng.standard_normal(n_units)),
            "truth": truth,
        }
    )


def drawn(
    units: pd.DataFrame, seed: int, tail: float = 0.05, sample: float = 0.2, floor: float = 0.2
) -> pd.DataFrame:
    """The table in which some units were ablated: `effect` is NaN elsewhere."""
    table = units.copy()
    table["size"] = table["score_path"]
    table["probability"] = inclusion_probabilities(
        table["size"], tail=tail, sample=sample, floor=floor
    )
    table["ablated"] = draw_units(table["probability"], list(table["layer"]), seed)
    table["effect"] = table["truth"].where(table["ablated"])
    return table
