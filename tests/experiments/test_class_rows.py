"""Accuracy by class: written into rows, and counted again from them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from causalprune.experiments.class_rows import CLASS_COLUMNS, class_columns, class_counts


def test_counts_survive_the_rows() -> None:
    rng = np.random.default_rng()
    labels = rng.integers(0, 130, 4_001)  # more than a hundred classes are told, too
    names = [f"kind {k}" for k in range(130)]
    networks = [(rng.random(4_001) < 0.9, rng.random(4_001) < 0.6) for _ in range(2)]
    rows = [class_columns(labels, names, *network) for network in networks]
    trials = pd.DataFrame(rows, index=[7, 3])
    found = class_counts(trials)
    present = np.unique(labels)
    assert len(found) == 2 * len(present)
    for row, (before, after) in zip((7, 3), networks, strict=True):
        own = found[found["row"] == row].set_index("class")
        assert list(own.index) == [names[k] for k in present]
        for k in present:
            mask = labels == k
            assert own.loc[names[k], ["n", "right", "lost", "won"]].tolist() == [
                mask.sum(),
                before[mask].sum(),
                (before & ~after)[mask].sum(),
                (~before & after)[mask].sum(),
            ]
    assert all(len(row[name]) < 40 * 130 for row in rows for name in CLASS_COLUMNS)


def test_names_are_made_different_and_numbers_stand_in() -> None:
    right = np.ones(5, bool)
    row = class_columns([0, 1, 2, 3, 4], ["crane", "ox", "crane"], right, right)
    names = ["crane (0)", "ox", "crane (2)", "3", "4"]
    assert [list(json.loads(row[name])) for name in CLASS_COLUMNS] == [names] * 3


def test_rows_without_classes_count_nothing() -> None:
    assert class_counts(pd.DataFrame({"accuracy": [0.9]})).empty
    good = class_columns([0, 1], ["a", "b"], [True, True], [True, False])
    wrong = [
        {name: None for name in CLASS_COLUMNS},
        good | {"changes_by_class": "[1, 2]"},
        good | {"changes_by_class": '{"a": [1, 0]}'},
        good | {"accuracy_before_by_class": '{"a": 1'},
        good | {"accuracy_before_by_class": '{"a": 1}'},
    ]
    found = class_counts(pd.DataFrame([*wrong, good]))
    assert found["row"].tolist() == [5, 5] and found["lost"].tolist() == [0, 1]
