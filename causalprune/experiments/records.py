"""The run table: one row a trial, written to disk as soon as the trial ends.

This module reads and writes records without torch, so that analysis and reports can use it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.errors import RecordError
from causalprune.files import replace_file

__all__ = [
    "MEASURED_COLUMNS",
    "SHIFT_COLUMNS",
    "TABLE_VERSION",
    "TRIALS_FILE",
    "TRIAL_COLUMNS",
    "Column",
    "append_trial",
    "read_json",
    "read_trials",
    "write_json",
    "write_trials",
]

TRIALS_FILE = "trials.csv"
TABLE_VERSION = 3
"""Version of the run table's columns; each says with which it came."""


@dataclass(frozen=True)
class Column:
    """A column of the run table.

    Attributes
    ----------
    name : str
        Name, with the unit in it where there is one.
    kind : str
        ``"int"``, ``"float"`` or ``"text"``.
    description : str
        What the value is.
    measured : bool
        Whether the value depends on the machine's state (time, load), so that it differs from
        run to run. All other columns are the same for the same seed.
    since : int
        Version of the table with which the column came. Tables of earlier versions do not have
        it; where they are read it is there, empty.
    """

    name: str
    kind: str
    description: str
    measured: bool = False
    since: int = 1


TRIAL_COLUMNS: tuple[Column, ...] = (
    Column("trial", "int", "number of the cell checkpoint x method x ratio in the design"),
    Column("order", "int", "position at which the trial ran; drawn at random"),
    Column("checkpoint", "int", "which independently trained network"),
    Column("seed", "int", "seed of this trial's retraining"),
    Column("architecture", "text", "name of the network"),
    Column("dataset", "text", "name of the data set"),
    Column("method", "text", "scoring method that ranked the units"),
    Column("assignment", "text", "how ratio and method were assigned to the trial"),
    Column("assignment_probability", "float", "probability of this method and ratio at a slot"),
    Column("ratio", "float", "target: fraction of ratio_of to remove"),
    Column("achieved_ratio", "float", "fraction of parameters that is gone"),
    Column("achieved_ratio_macs", "float", "fraction of multiply-accumulates that is gone"),
    Column("ratio_of", "text", "what ratio counts: parameters, macs or units"),
    Column("kept_units", "text", "JSON object: units kept, by layer"),
    Column("parameters", "int", "parameters of the pruned network"),
    Column("macs", "int", "multiply-accumulates for one image (torch.utils.flop_counter / 2)"),
    Column("parameter_bytes", "int", "bytes of parameters and buffers"),
    Column("peak_activation_bytes", "int", "most activation bytes alive at once, for one image"),
    Column("memory_bytes", "int", "parameter_bytes + peak_activation_bytes"),
    Column("latency_ms", "float", "median time of a forward pass over latency_batch images", True),
    Column("latency_q25_ms", "float", "first quartile of the same", True),
    Column("latency_q75_ms", "float", "third quartile of the same", True),
    Column("latency_batch", "int", "images in a timed pass"),
    Column("threads", "int", "torch's intra-operator threads during the whole trial"),
    Column("retrain_epochs", "int", "passes over the training images after pruning"),
    Column("shift", "text", "shift applied to the test images"),
    Column("accuracy_before", "float", "fraction right on the test split, unpruned checkpoint"),
    Column("accuracy_pruned", "float", "the same after pruning, before retraining"),
    Column("accuracy", "float", "the same after retraining"),
    Column("accuracy_loss", "float", "accuracy_before - accuracy, a fraction"),
    Column("n_test", "int", "images in the test split"),
    Column("split", "text", "identifier of the test split: name, size, digest of its content"),
    Column("machine", "text", "short name of the machine", True),
    Column("cpu_percent", "float", "mean load of the machine's processors", True),
    Column("memory_percent", "float", "mean share of the machine's memory in use", True),
    Column("swap_percent", "float", "mean share of the machine's swap in use", True),
    Column("cpu_frequency_mhz", "float", "mean processor frequency", True),
    Column("context_switches", "int", "context switches of the process", True),
    Column("instructions", "int", "instructions the process retired in user space", True),
    Column("cycles", "int", "processor cycles of the process in user space", True),
    Column("branch_misses", "int", "mispredicted branches", True),
    Column("l1d_misses", "int", "reads that missed the first-level data cache", True),
    Column("llc_misses", "int", "misses of the last-level cache", True),
    Column("counters_reason", "text", "why a system figure is missing", True),
    Column("gpu_memory_bytes", "float", "mean GPU memory in use", True),
    Column("gpu_load_percent", "float", "mean GPU load", True),
    Column("gpu_power_watts", "float", "mean GPU power", True),
    Column("gpu_reason", "text", "why a GPU figure is missing", True),
    Column("seconds", "float", "time of the whole trial", True),
    Column("status", "text", "ok or failed"),
    Column("error", "text", "what went wrong in a failed trial"),
    Column("output_difference", "float", "largest |pruned - masked| logit, calibration images"),
    Column("block", "int", "which pair of network and data set of the study", since=2),
    Column("checkpoint_digest", "text", "of the unpruned weights: start of a SHA-256", since=2),
    Column(
        "achieved_ratio_by_layer", "text", "JSON object: part of weights gone, by layer", since=2
    ),
    Column("macs_counter", "text", "how macs were counted", since=2),
    Column("retrain_recipe", "text", "optimiser, largest step size, images a step", since=2),
    Column("latency_repeats", "int", "timed passes behind each latency", since=2),
    Column("latency_warmup", "int", "passes before the first timed one", since=2),
    Column(
        "latency_by_batch",
        "text",
        "JSON object: median_ms, q25_ms, q75_ms of a forward pass, by images in it",
        measured=True,
        since=2,
    ),
    Column(
        "peak_process_bytes",
        "int",
        "rise of a fresh process's resident peak: network loaded, run once over latency_batch",
        measured=True,
        since=2,
    ),
    Column("peak_gpu_bytes", "int", "most GPU memory of the same by torch's allocator", True, 2),
    Column("peak_memory_reason", "text", "why a peak is missing", True, 2),
    Column("cpu_energy_joules", "float", "of the machine's processor packages (RAPL)", True, 2),
    Column("energy_reason", "text", "why cpu_energy_joules is missing", True, 2),
    Column("gpu_energy_joules", "float", "of the first GPU during the trial (NVML)", True, 2),
    Column(
        "accuracy_by_class",
        "text",
        "JSON object: accuracy on the plain test images of each class, by its name or number",
        since=3,
    ),
    Column("accuracy_before_by_class", "text", "the same of the unpruned checkpoint", since=3),
    Column(
        "changes_by_class",
        "text",
        "JSON object: by class, [test images, of them right before and wrong now, the reverse]",
        since=3,
    ),
)

SHIFT_COLUMNS: tuple[Column, ...] = (
    Column("accuracy_by_shift", "text", "JSON object: accuracy on the test images of each shift"),
    Column("accuracy_before_by_shift", "text", "the same of the unpruned checkpoint"),
)
"""Columns of a study's table beyond those of a run's."""

MEASURED_COLUMNS: tuple[str, ...] = tuple(c.name for c in TRIAL_COLUMNS if c.measured)

_NAMES = [column.name for column in TRIAL_COLUMNS]
_STATUSES = ("ok", "failed")


def read_trials(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a run table and check that it is whole.

    Parameters
    ----------
    path : path-like
        A ``trials.csv``, or the folder of a run that holds one.

    Returns
    -------
    DataFrame
        One row a trial, in the order in which they ran. Integer columns are ``int64`` where no
        value is missing and ``float64`` where one is; missing text is NaN. Columns that came with
        later versions of the table than the file's are there without values.

    Raises
    ------
    RecordError
        There is no such file, it cannot be parsed, columns of the first version are missing, a
        number is not one, or a trial appears twice (under one shift).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = append_trial(folder / "trials.csv", [], {"trial": 0, "order": 0, "status": "failed"})
    >>> read_trials(folder)[["trial", "status"]].to_dict("records")
    [{'trial': 0, 'status': 'failed'}]
    """
    file = Path(path)
    if file.is_dir():
        file = file / TRIALS_FILE
    if not file.is_file():
        raise RecordError(f"{file}: no such run table; expected a {TRIALS_FILE} or its folder")
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        # ValueError covers pandas' parser and empty-data errors and broken encodings.
        raise RecordError(f"{file}: not a readable run table ({_one_line(error)})") from error
    absent = [column for column in TRIAL_COLUMNS if column.name not in frame.columns]
    missing = [column.name for column in absent if column.since == 1]
    if missing:
        raise RecordError(f"{file}: columns are missing: {', '.join(missing)}")
    for column in absent:
        frame[column.name] = ""
    for column in TRIAL_COLUMNS:
        frame[column.name] = _typed(frame[column.name], column, file)
    bad = sorted(set(frame["status"].fillna("")) - set(_STATUSES))
    if bad:
        line = int(frame.index[~frame["status"].isin(_STATUSES)][0]) + 2
        raise RecordError(f"{file}, line {line}: status is {bad[0]!r}, expected ok or failed")
    # A table by shift has a row of each trial for each shift.
    twice = frame.loc[frame.duplicated(["trial", "shift"]), "trial"]
    if len(twice):
        raise RecordError(f"{file}: trial {twice.iloc[0]} appears twice")
    return frame


def append_trial(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Add a row to a run table on disk, at once and safely.

    The whole table is written anew beside the old one and put in its place in one step, so a
    process killed at any moment leaves every earlier row readable.

    Parameters
    ----------
    path : path-like
        The table's file.
    rows : sequence of mappings
        Rows already there.
    row : mapping
        The new row, by column name; a row of the same trial is replaced.

    Returns
    -------
    list of dict
        The rows now on disk, by ``order``.
    """
    kept = [dict(other) for other in rows if other["trial"] != row["trial"]]
    kept.append(dict(row))
    kept.sort(key=lambda entry: entry["order"])
    write_trials(path, kept)
    return kept


def write_trials(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a run table in one step; unknown columns are an error.

    Raises
    ------
    RecordError
        A row has a column that the table has not.
    """
    for row in rows:
        unknown = sorted(set(row) - set(_NAMES))
        if unknown:
            raise RecordError(f"row of trial {row.get('trial')}: unknown columns {unknown}")
    frame = pd.DataFrame([dict(row) for row in rows], columns=_NAMES, dtype=object)
    replace_file(path, frame.to_csv(index=False, lineterminator="\n"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON in one step; NaN is an error, not a token."""
    replace_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    RecordError
        There is no such file, or it holds no JSON object.
    """
    file = Path(path)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecordError(f"{file}: no such file") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: not a readable JSON file ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _typed(values: pd.Series[str], column: Column, file: Path) -> pd.Series[Any]:
    present = values.notna() & (values != "")
    if column.kind == "text":
        return values.where(present)
    numbers = pd.Series(float("nan"), index=values.index, dtype="float64")
    for index in values.index[present]:
        try:
            numbers[index] = float(values[index])
        except ValueError:
            raise RecordError(
                f"{file}, line {int(index) + 2}: {column.name} is {values[index]!r}, "
                "expected a number"
            ) from None
    if column.kind == "int" and bool(present.all()):
        return numbers.astype("int64")
    return numbers


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
