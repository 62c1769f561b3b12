"""What a report is made from: the files of a run, or a bare table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from causalprune.analysis import AnalysisResult, load_analyses
from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.records import read_json, read_trials

NUMERIC = (
    "ratio",
    "achieved_ratio",
    "achieved_ratio_macs",
    "accuracy_before",
    "accuracy_pruned",
    "accuracy",
    "accuracy_loss",
    "parameters",
    "macs",
    "memory_bytes",
    "latency_ms",
    "n_test",
    "seconds",
    "output_difference",
)
NEEDED = ("checkpoint", "method", "ratio", "achieved_ratio", "accuracy_before", "accuracy")
SCORE_COLUMNS = ("layer", "unit", "effect", "low", "high", "importance", "category")


@dataclass(frozen=True)
class ScoreTable:
    """Per-unit scores of one checkpoint by one method.

    `frame` has the columns layer, unit, effect, low, high, importance, category.
    """

    checkpoint: str
    method: str
    outcome: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Source:
    """Everything found.

    Attributes
    ----------
    table : DataFrame
        All trials as recorded.
    trials : DataFrame
        Completed ones with numeric columns, by method, ratio and checkpoint.
    config, machine : Mapping
        Empty where there is no file.
    scores : tuple of ScoreTable
    analyses : tuple of AnalysisResult or None
        None where none were saved.
    problems : tuple of str
        Optional files that could not be read.
    name : str
        Folder or file name.
    """

    table: pd.DataFrame
    trials: pd.DataFrame
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    scores: tuple[ScoreTable, ...]
    analyses: tuple[AnalysisResult, ...] | None
    problems: tuple[str, ...]
    name: str

    @property
    def failed(self) -> pd.DataFrame:
        """Trials that did not run through."""
        if "status" not in self.table:
            return self.table.iloc[:0]
        return self.table.loc[self.table["status"].astype(str).str.lower() == "failed"]


def read_source(run_or_table: pd.DataFrame | str | Path) -> Source:
    """Read a run directory, a ``trials.csv`` or take a DataFrame.

    Raises
    ------
    RecordError
        The table is missing, broken or lacks columns that every report needs.
    """
    if isinstance(run_or_table, pd.DataFrame):
        table = run_or_table.copy(deep=True)
        return Source(table, _completed(table), {}, {}, (), None, (), "table")
    if not isinstance(run_or_table, (str, Path)):
        raise InvalidArgumentError(
            "run_or_table: expected a run directory, the path of a trials.csv or a DataFrame, "
            f"got {type(run_or_table).__name__}"
        )
    path = Path(run_or_table)
    table = read_trials(path)
    if not path.is_dir():
        return Source(table, _completed(table), {}, {}, (), None, (), path.name)
    problems: list[str] = []
    config = _optional_json(path / "config.json", problems)
    machine = _optional_json(path / "machine.json", problems)
    scores = _read_scores(path / "scores", problems)
    analyses = _read_analyses(path / "analysis.json", problems)
    name = path.resolve().name
    return Source(
        table, _completed(table), config, machine, scores, analyses, tuple(problems), name
    )


def read_scores(path: Path) -> ScoreTable:
    """Read one ``<checkpoint>-<method>.npz``; nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: np.asarray(archive[name]) for name in SCORE_COLUMNS}
            meta = json.loads(str(archive["meta"][()]))
        frame = pd.DataFrame(columns)
        method, outcome = str(meta["method"]), str(meta["outcome"])
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise RecordError(f"{path}: not a score file ({error})") from error
    return ScoreTable(path.stem.split("-", 1)[0], method, outcome, frame)


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise RecordError(f"table: missing columns {', '.join(missing)}")
    frame = table.copy()
    if "status" in frame:
        frame = frame.loc[frame["status"].astype(str).str.lower() != "failed"].copy()
    for name in NUMERIC:
        if name not in frame:
            continue
        try:
            frame[name] = pd.to_numeric(frame[name]).astype(float)
        except (TypeError, ValueError) as error:
            raise RecordError(f"table: column {name!r} must be numeric ({error})") from error
    frame["accuracy_loss"] = frame["accuracy_before"] - frame["accuracy"]
    frame = frame.dropna(subset=["ratio", "accuracy", "accuracy_before"])
    return frame.sort_values(["method", "ratio", "checkpoint"], ignore_index=True)


def _optional_json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except RecordError as error:
        problems.append(str(error))
        return {}


def _read_scores(folder: Path, problems: list[str]) -> tuple[ScoreTable, ...]:
    tables = []
    for path in sorted(folder.glob("*.npz")):
        try:
            tables.append(read_scores(path))
        except RecordError as error:
            problems.append(str(error))
    return tuple(tables)


def _read_analyses(path: Path, problems: list[str]) -> tuple[AnalysisResult, ...] | None:
    if not path.exists():
        return None
    try:
        return load_analyses(path)
    except RecordError as error:
        problems.append(str(error))
        return None
