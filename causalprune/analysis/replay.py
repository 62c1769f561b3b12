"""Replay: which cells to run for real, and how far counterfactuals were from what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis.counterfactual_results import Replay
from causalprune.analysis.counterfactuals import REPLAY_SHARE, CounterfactualModel
from causalprune.analysis.structural_intervals import calibrate
from causalprune.analysis.structural_replay import answers_to, summarised
from causalprune.analysis.tables import read_table
from causalprune.errors import InvalidArgumentError, RecordError

__all__ = ["cells_to_rerun", "replay_answers", "replay_error"]


def cells_to_rerun(
    model: CounterfactualModel, *, count: int | None = None, between: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Choose at random which cells to run for real, to check the model's answers against them.

    Parameters
    ----------
    model : CounterfactualModel
    count : int, optional
        How many; by default a tenth of the trials, at least one.
    between : float
        Share of them that are moved to another ratio: drawn between the cell's own and the next
        one at which its architecture was pruned by its method.
    seed : int

    Returns
    -------
    DataFrame
        One row a cell: architecture, data set, checkpoint, method and ratio as far as the table
        has them, and ``trial``, the number of the trial where the cell was run and -1 where it
        was not. Cells: every network x method x ratio at which the architecture was pruned by
        that method. `Study.rerun` runs them.

    Raises
    ------
    InvalidArgumentError
        There are fewer cells than `count`, or `between` is no fraction.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from causalprune.analysis import CounterfactualModel, cells_to_rerun
    >>> table = pd.DataFrame([
    ...     {"trial": 4 * c + k, "checkpoint": c, "ratio": k / 4, "accuracy_loss": k * k / 100}
    ...     for c in range(3) for k in range(4) if (c, k) != (2, 3)
    ... ])
    >>> model = CounterfactualModel.fit(table, replay_share=0)
    >>> sorted(cells_to_rerun(model, count=12)["trial"])
    [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    >>> cells_to_rerun(model, count=4, between=0.5)["trial"].tolist().count(-1)
    2
    """
    if isinstance(between, bool) or not isinstance(between, (int, float)) or not 0 <= between <= 1:
        raise InvalidArgumentError(f"between: expected a fraction from 0 to 1, got {between!r}")
    frame = model.frame
    groups = [name for name in ("architecture", "dataset") if name in frame]
    tried = [*groups, *(["method"] if "method" in frame else []), "ratio"]
    networks = frame[[*groups, "checkpoint"]].drop_duplicates()
    levels = frame[tried].drop_duplicates()
    cells = networks.merge(levels, on=groups) if groups else networks.merge(levels, how="cross")
    keys = [name for name in cells if name in frame]
    plain = frame[frame["shift"].astype(str).eq("none")] if "shift" in frame else frame
    numbers = plain.assign(trial=plain["trial"] if "trial" in plain else range(len(plain)))
    known = numbers.drop_duplicates(keys)[[*keys, "trial"]]
    cells = cells.merge(known, on=keys, how="left").fillna({"trial": -1}).astype({"trial": int})
    wanted = max(1, round(REPLAY_SHARE * len(frame))) if count is None else count
    if isinstance(wanted, bool) or not 1 <= wanted <= len(cells):
        raise InvalidArgumentError(f"count: expected 1 to {len(cells)}, the cells, got {count!r}")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(cells), size=wanted, replace=False))
    chosen = cells.iloc[rows].reset_index(drop=True)
    moved = rng.choice(wanted, size=round(between * wanted), replace=False)
    return _moved(chosen, levels, sorted(moved.tolist()), rng)


def _moved(
    cells: pd.DataFrame, levels: pd.DataFrame, which: Sequence[int], rng: np.random.Generator
) -> pd.DataFrame:
    """Return cells of which some lie between the levels of their method."""
    names = [str(name) for name in levels if name != "ratio"]
    ratios, trials = cells["ratio"].to_numpy(dtype=float).copy(), cells["trial"].to_numpy().copy()
    for row in which:
        own = levels
        for name in names:
            own = own[own[name] == cells[name].iloc[row]]
        tried = np.sort(own["ratio"].to_numpy(dtype=float))
        if len(tried) < 2:
            continue  # a single level has nothing beside it
        above = max(int(np.searchsorted(tried, ratios[row])), 1)
        low, high = tried[above - 1], tried[above]
        # Not so near to a level that the cell is as good as tried.
        ratios[row] = round(low + (high - low) * rng.uniform(0.25, 0.75), 4)
        trials[row] = -1
    return cells.assign(ratio=ratios, trial=trials)


def replay_error(model: CounterfactualModel, new_rows: Any) -> tuple[Replay, ...]:
    """Compare the model's answers with trials that were run afterwards.

    The model is fitted anew without the trials of the cells that the new rows repeat, so that no
    trial helps to predict its own repetition.

    Parameters
    ----------
    model : CounterfactualModel
    new_rows : DataFrame, Study or path
        A table of trials of networks that the model knows.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from causalprune.analysis import CounterfactualModel, replay_error
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": k / 4, "accuracy_loss": k / 100 + 0.001 * rng.random()}
    ...     for c in range(8) for k in range(4)
    ... ])
    >>> model = CounterfactualModel.fit(table, replay_share=0)
    >>> replay_error(model, table.iloc[[1, 5]])[0].n
    2
    """
    return summarised(replay_answers(model, new_rows))


def replay_answers(model: CounterfactualModel, new_rows: Any) -> pd.DataFrame:
    """Return what `replay_error` sums up, one line a trial and outcome.

    Parameters
    ----------
    model : CounterfactualModel
    new_rows : DataFrame, Study or path
        As `replay_error` takes them.

    Returns
    -------
    DataFrame
        ``row`` (position among the trials that did not fail), ``outcome``, ``actual`` (what the
        trial showed; NaN: nothing, or a latency on a machine that the model does not know),
        ``value``, ``low`` and ``high`` (the prediction and its 95 % interval), ``refused`` (why
        there is none; empty where there is one).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from causalprune.analysis import CounterfactualModel
    >>> from causalprune.analysis.replay import replay_answers
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": k / 4, "accuracy_loss": (k + c % 2) / 100}
    ...     for c in range(8) for k in range(4)
    ... ])
    >>> model = CounterfactualModel.fit(table, replay_share=0)
    >>> answers = replay_answers(model, table.iloc[[1, 5]])
    >>> answers[["row", "outcome", "actual"]].values.tolist()
    [[0, 'accuracy_loss', 0.01], [1, 'accuracy_loss', 0.02]]
    """
    rows = read_table(new_rows)
    if "status" in rows:
        rows = rows[rows["status"].astype(str).str.lower() != "failed"]
    lacking = [name for name in ("checkpoint", "ratio") if name not in rows]
    if lacking:
        raise RecordError(f"new_rows: missing columns {', '.join(lacking)}")
    keys = [
        name
        for name in ("architecture", "dataset", "method", "ratio")
        if name in rows and name in model.frame
    ]
    again = {_cell_key(row, keys) for row in rows.to_dict("records")}
    kept = [_cell_key(row, keys) not in again for row in model.frame.to_dict("records")]
    rest = model.frame[kept].reset_index(drop=True)
    return answers_to(rest, calibrate(rest, model.seed), rows)


def _cell_key(row: Mapping[Any, Any], keys: Sequence[str]) -> tuple[str, ...]:
    short = str(row["checkpoint"]).rpartition("/")[2]
    return (short, *(f"{row[n]:.9g}" if n == "ratio" else str(row[n]) for n in keys))
