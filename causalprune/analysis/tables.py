"""From a run, a CSV or a DataFrame to the completed trials an analysis may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causalprune.errors import InvalidArgumentError, MissingDependencyError, RecordError
from causalprune.experiments.records import TRIAL_COLUMNS, read_trials
from causalprune.experiments.store_reader import StudyReader
from causalprune.experiments.store_schema import STORE_FILE

# Fewer completed trials leave nothing to judge an estimate by.
MIN_TRIALS = 4

# Words in the column `assignment` that say nobody assigned anything.
OBSERVATIONAL = ("observ", "import", "unknown", "none", "nan")

MEANINGS = {column.name: column.description for column in TRIAL_COLUMNS}

# What an experiment sets; everything else in the table follows from it.
DESIGN_COLUMNS = (
    "architecture",
    "dataset",
    "checkpoint",
    "method",
    "retrain_epochs",
    "shift",
    "ratio",
)


@dataclass(frozen=True)
class Trials:
    """Completed trials, ready to analyse.

    Attributes
    ----------
    frame : DataFrame
        Own copy, fresh index; treatment and outcome are float64; where a table has several
        architectures or data sets, `checkpoint` names them, too: it is one name a network.
    n_failed : int
        Trials with status ``failed``.
    n_incomplete : int
        Completed trials without a finite treatment or outcome.
    designed : bool
        The column `assignment` says that the treatments were assigned.
    n_not_drawn : int
        Completed trials that are left aside because there are so many; see `thinned`.
    """

    frame: pd.DataFrame
    n_failed: int
    n_incomplete: int
    designed: bool
    n_not_drawn: int = 0

    @property
    def n_clusters(self) -> int:
        """How many independently trained networks the trials come from."""
        return int(self.frame["checkpoint"].nunique()) if "checkpoint" in self.frame else 0


def read_table(table: Any) -> pd.DataFrame:
    """Return a copy of a table of trials, from wherever it is.

    Parameters
    ----------
    table : DataFrame, Study or path
        A path is the folder of a study or a run, a ``study.db``, a ``.csv`` (a run table, or any
        other with named columns) or a ``.parquet``.

    Raises
    ------
    RecordError
        There is no such table, or it cannot be read.
    InvalidArgumentError
        It is none of these.
    """
    if isinstance(table, pd.DataFrame):
        return table.copy(deep=True)
    if hasattr(table, "frame") and hasattr(table, "folder"):  # a Study, which brings torch
        table = table.folder
    if not isinstance(table, (str, Path)):
        raise InvalidArgumentError(
            "table: expected a DataFrame, a Study, a folder of a run or a study, or the path of a "
            f"table, got {type(table).__name__}"
        )
    path = Path(table)
    folder = path.parent if path.name == STORE_FILE else path
    if (folder / STORE_FILE).is_file():
        with StudyReader.open(folder) as store:
            return store.read()
    if path.suffix == ".parquet":
        return _read_file(path, pd.read_parquet)
    if path.is_file() and not _is_run_table(path):
        return _read_file(path, pd.read_csv)
    return read_trials(path)


def _is_run_table(path: Path) -> bool:
    names = _read_file(path, lambda file: pd.read_csv(file, nrows=0)).columns
    return {column.name for column in TRIAL_COLUMNS if column.since == 1} <= set(names)


def _read_file(path: Path, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    try:
        return read(path)
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} needs pyarrow: pip install 'causalprune[parquet]'"
        ) from error
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise RecordError(f"{path}: not a readable table ({problem})") from error


def completed_trials(
    table: pd.DataFrame, numeric: Sequence[str], *, required: Sequence[str] = ("checkpoint",)
) -> Trials:
    """Keep the trials that ran through and have finite numbers in the `numeric` columns."""
    if not table.columns.is_unique:
        doubled = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
        raise RecordError(f"table: columns appear twice: {', '.join(doubled)}")
    missing = [name for name in (*numeric, *required) if name not in table.columns]
    if missing:
        told = "; ".join(
            f"{name} ({MEANINGS[name]})" if name in MEANINGS else name for name in missing
        )
        raise RecordError(f"table: missing columns {told}; it has {', '.join(map(str, table))}")
    failed = (
        table["status"].astype(str).str.lower().eq("failed")
        if "status" in table
        else pd.Series(False, index=table.index)
    )
    frame = table.loc[~failed].copy()
    for name in numeric:
        frame[name] = _as_float(frame[name])
    finite = np.isfinite(frame[list(numeric)].to_numpy(dtype=float)).all(axis=1)
    for name in required:
        finite &= frame[name].notna().to_numpy()
    frame = _one_name_a_network(frame.loc[finite].reset_index(drop=True))
    n_failed, n_incomplete = int(failed.sum()), int((~finite).sum())
    if len(frame) < MIN_TRIALS:
        raise RecordError(_too_few(table, failed, len(frame), n_failed, n_incomplete))
    return Trials(frame, n_failed, n_incomplete, _is_designed(frame))


def thinned(trials: Trials, limit: int, seed: int) -> Trials:
    """Draw at most `limit` trials: how sure an analysis is depends on networks, not on rows.

    Permutations and bootstraps over a million rows would take hours and gigabytes.
    """
    spare = len(trials.frame) - limit
    if spare <= 0:
        return trials
    drawn = np.sort(np.random.default_rng(seed).choice(len(trials.frame), limit, replace=False))
    frame = trials.frame.iloc[drawn].reset_index(drop=True)
    return replace(trials, frame=frame, n_not_drawn=spare)


def check_treatment(frame: pd.DataFrame, treatment: str) -> None:
    """Refuse a treatment that never varies: there is nothing to compare."""
    values = frame[treatment].unique()
    if len(values) < 2:
        raise InvalidArgumentError(
            f"treatment: expected at least two values of {treatment!r} among the completed "
            f"trials, got only {values[0]:g} in all {len(frame)}"
        )


def _one_name_a_network(frame: pd.DataFrame) -> pd.DataFrame:
    """Tell checkpoint 0 of one architecture or data set from checkpoint 0 of another."""
    above = [
        name
        for name in ("architecture", "dataset")
        if name in frame and frame[name].nunique(dropna=False) > 1
    ]
    if not above or "checkpoint" not in frame:
        return frame
    names = frame[[*above, "checkpoint"]].astype(str).agg("/".join, axis=1)
    return frame.assign(checkpoint=names)


def _as_float(column: pd.Series[float]) -> pd.Series[float]:
    try:
        return pd.to_numeric(column, errors="raise").astype(float)
    except (TypeError, ValueError) as error:
        raise RecordError(f"table: column {column.name!r} must be numeric ({error})") from error


def _is_designed(frame: pd.DataFrame) -> bool:
    if "assignment" not in frame:
        return False
    words = frame["assignment"].fillna("").astype(str).str.strip().str.lower()
    return bool((words.ne("") & ~words.str.startswith(OBSERVATIONAL)).all())


def _too_few(
    table: pd.DataFrame, failed: pd.Series[bool], kept: int, n_failed: int, n_incomplete: int
) -> str:
    message = (
        f"table: expected at least {MIN_TRIALS} completed trials, got {kept} of {len(table)} "
        f"({n_failed} failed, {n_incomplete} without a finite number)"
    )
    if n_failed and "error" in table:
        first = table.loc[failed, "error"].dropna().astype(str)
        if len(first):
            message += f"; first error: {first.iloc[0][:200]}"
    return message
