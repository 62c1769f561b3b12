"""Simulated trial tables that say which classes paid, with a known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from simulated_trials import simulate

from causalprune.experiments.class_rows import CLASS_COLUMNS, class_columns

NAMES = ("cat", "dog", "$fox$ <b>", "ox", "hen", "ant", "bee", "cow", "elk", "fly")
METHODS = ("path", "l1")
RATIOS = (0.0, 0.5, 0.9)


def with_classes(
    seed: int, hurt: dict[int, float], *, checkpoints: int = 3, n_classes: int = 10, n: int = 100
) -> pd.DataFrame:
    """Trials whose predictions lose the same of all classes; `hurt` adds at the largest ratio."""
    rng = np.random.default_rng(seed)
    table = simulate(seed, checkpoints=checkpoints, methods=METHODS, ratios=RATIOS)
    labels = np.repeat(np.arange(n_classes), n)
    names = NAMES if n_classes == len(NAMES) else tuple(f"kind {k}" for k in range(n_classes))
    extra = np.zeros(n_classes)
    for each, loss in hurt.items():
        extra[each] = loss
    known = {c: rng.random(len(labels)) < 0.97 for c in range(checkpoints)}
    hard = rng.random(len(labels))
    for index, row in table.iterrows():
        draw = np.where(rng.random(len(labels)) < 0.5, hard, rng.random(len(labels)))
        lost = draw < 0.15 * row["ratio"] ** 2 + (extra[labels] if row["ratio"] == 0.9 else 0)
        before = known[row["checkpoint"]]
        columns = class_columns(labels, names, before, before & ~lost)
        table.loc[index, list(CLASS_COLUMNS)] = list(columns.values())
        table.loc[index, "accuracy_before"] = before.mean()
        table.loc[index, "accuracy"] = (before & ~lost).mean()
    return table.assign(n_test=len(labels))
