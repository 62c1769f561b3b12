"""What a report is made from: a study, a run, a pruned network, scores, or a bare table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.analysis import AnalysisResult, load_analyses
from causalprune.analysis.tables import read_table
from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.records import TRIALS_FILE, read_json
from causalprune.experiments.shift_rows import has_shift_rows, rows_by_shift
from causalprune.experiments.store_reader import StudyReader
from causalprune.experiments.store_schema import STORE_FILE
from causalprune.reports.names import place_name
from causalprune.reports.pruned_network import PrunedNetwork, is_pruned_folder, read_pruned
from causalprune.reports.score_tables import ScoreTable, read_scores
from causalprune.reports.unit_tables import UnitReport, read_unit_report, tables_of

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
READABLE = (
    "a Study, the folder of a study, a run, a pruned network or units, a table (.csv, .parquet, "
    "study.db), a score file (.npz) or a DataFrame"
)


@dataclass(frozen=True)
class Source:
    """Everything found.

    Attributes
    ----------
    kind : str
        ``"study"``, ``"run"``, ``"table"``, ``"pruned"``, ``"scores"`` or ``"units"``.
    name : str
        Folder or file name.
    table : DataFrame
        All trials as recorded.
    trials : DataFrame
        Completed ones with numeric columns, by place, method, ratio and checkpoint; `place` names
        network and data set as a reader would.
    shifts : DataFrame
        One row for each completed trial and shift; empty without shifts.
    config, machine : Mapping
        Empty where there is no file.
    machines : tuple of Mapping
        Where a study ran, if on several.
    scores : tuple of ScoreTable
    analyses : tuple of AnalysisResult or None
        None where none were saved.
    pruned : PrunedNetwork or None
        A single pruned network, in place of trials.
    units : UnitReport or None
        A per-unit table, in place of trials.
    problems : tuple of str
        Optional files that could not be read, and trials that are still to come.
    """

    kind: str
    name: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    shifts: pd.DataFrame = field(default_factory=pd.DataFrame)
    config: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    machines: tuple[Mapping[str, Any], ...] = ()
    scores: tuple[ScoreTable, ...] = ()
    analyses: tuple[AnalysisResult, ...] | None = None
    pruned: PrunedNetwork | None = None
    units: UnitReport | None = None
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> pd.DataFrame:
        """Trials that did not run through."""
        if "status" not in self.table:
            return self.table.iloc[:0]
        return self.table.loc[self.table["status"].astype(str).str.lower() == "failed"]

    @property
    def places(self) -> list[str]:
        """Pairs of network and data set, as a reader would name them."""
        return list(dict.fromkeys(self.trials["place"])) if len(self.trials) else []


def read_source(source: Any) -> Source:
    """Read whatever a report can be about.

    Raises
    ------
    RecordError
        It is missing, broken, or lacks columns that every report needs.
    InvalidArgumentError
        It is nothing of the kind.
    """
    of_units = tables_of(source)
    if of_units is not None:
        place = source if isinstance(source, pd.DataFrame) else Path(source)
        units = read_unit_report(place, of_units)
        name = "table" if isinstance(source, pd.DataFrame) else Path(source).resolve().name
        return Source(
            "units",
            name,
            machine=units.facts.get("machine") or {},
            scores=(units.scores,),
            analyses=(units.result,),
            units=units,
        )
    if isinstance(source, pd.DataFrame):
        return _of_table(source.copy(deep=True), "table", "table")
    if hasattr(source, "frame") and hasattr(source, "folder"):  # a Study, which brings torch
        source = source.folder
    if not isinstance(source, (str, Path)):
        raise InvalidArgumentError(f"source: expected {READABLE}, got {type(source).__name__}")
    path = Path(source)
    folder = path.parent if path.name == STORE_FILE else path
    if (folder / STORE_FILE).is_file():
        return _read_study(folder)
    if is_pruned_folder(path):
        return Source("pruned", path.resolve().name, pruned=read_pruned(path))
    if path.suffix == ".npz":
        return Source("scores", path.name, scores=(read_scores(path),))
    if not path.exists():
        raise RecordError(f"{path}: no such file or folder; expected {READABLE}")
    if path.is_dir() and not (path / TRIALS_FILE).is_file():
        raise RecordError(f"{path}: no records in this folder; expected {READABLE}")
    if not path.is_dir():
        return _of_table(read_table(path), "table", path.name)
    return _read_run(path)


def _of_table(table: pd.DataFrame, kind: str, name: str, **more: Any) -> Source:
    trials = _completed(table)
    shifts = pd.DataFrame()
    if has_shift_rows(trials):
        shifts = rows_by_shift(trials)
    elif "shift" in trials and trials["shift"].nunique() > 1:  # exported by shift
        shifts = trials
        trials = trials.loc[trials["shift"] == "none"].reset_index(drop=True)
        table = table.loc[table["shift"] == "none"].reset_index(drop=True)
    return Source(kind, name, table, trials, shifts, **more)


def _read_run(path: Path) -> Source:
    problems: list[str] = []
    found = {
        "config": _optional_json(path / "config.json", problems),
        "machine": _optional_json(path / "machine.json", problems),
        "scores": _read_scores(path / "scores", problems),
        "analyses": _read_analyses(path / "analysis.json", problems),
    }
    name = path.resolve().name
    return _of_table(read_table(path), "run", name, **found, problems=tuple(problems))


def _read_study(folder: Path) -> Source:
    problems: list[str] = []
    with StudyReader.open(folder) as store:
        table, study = store.read(), store.study
        machines, status = tuple(store.machines().values()), store.status()
    left = status.queued + status.running
    if left:
        problems.append(f"The study goes on: {left} of its trials are still to come.")
    scores: list[ScoreTable] = []
    for number, block in enumerate(study.get("blocks", ())):
        place = place_name(block.get("network"), block.get("data"))
        parts = folder / "blocks" / f"{number}-{block.get('network')}" / "scores"
        scores += _first_scores(parts, place, problems)
    return _of_table(
        table,
        "study",
        str(study.get("name") or folder.resolve().name),
        config=study,
        machine=machines[0] if len(machines) == 1 else {},
        machines=machines if len(machines) > 1 else (),
        scores=tuple(scores),
        analyses=_read_analyses(folder / "analysis.json", problems),
        problems=tuple(problems),
    )


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
    frame["place"] = _places(frame)
    keys = ["place", "method", "ratio", "checkpoint"]
    return frame.sort_values(keys, ignore_index=True)


def _places(frame: pd.DataFrame) -> list[str]:
    several = "dataset" in frame and "architecture" in frame
    several = several and len(frame[["architecture", "dataset"]].drop_duplicates()) > 1
    names = frame["architecture"] if "architecture" in frame else [None] * len(frame)
    data = frame["dataset"] if several else [None] * len(frame)
    return [
        "" if name is None or pd.isna(name) else place_name(name, own)
        for name, own in zip(names, data, strict=True)
    ]


def _optional_json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except RecordError as error:
        problems.append(str(error))
        return {}


def _read_scores(folder: Path, problems: list[str], place: str = "") -> list[ScoreTable]:
    return _readable(sorted(folder.glob("*.npz")), problems, place)


def _first_scores(folder: Path, place: str, problems: list[str]) -> list[ScoreTable]:
    """Scores of the first network of a block: a study has many, a page has room for one."""
    files = sorted(folder.glob("*.npz"))
    first = files[0].stem.partition("-")[0] if files else ""
    return _readable([f for f in files if f.stem.partition("-")[0] == first], problems, place)


def _readable(files: list[Path], problems: list[str], place: str) -> list[ScoreTable]:
    tables = []
    for path in files:
        try:
            tables.append(read_scores(path, place))
        except RecordError as error:
            problems.append(str(error))
    return tables


def _read_analyses(path: Path, problems: list[str]) -> tuple[AnalysisResult, ...] | None:
    if not path.exists():
        return None
    try:
        return load_analyses(path)
    except RecordError as error:
        problems.append(str(error))
        return None
