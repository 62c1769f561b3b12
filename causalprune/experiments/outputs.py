"""The folder of a run: what lies where, and whether a run may write there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalprune.errors import InvalidArgumentError, OutputExistsError, RecordError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.records import (
    TRIAL_COLUMNS,
    TRIALS_FILE,
    read_json,
    read_trials,
    write_json,
)

__all__ = [
    "CONFIG_FILE",
    "checkpoint_file",
    "folder_name",
    "open_output",
    "read_rows",
    "score_file",
]

CONFIG_FILE = "config.json"
_FOLDERS = ("checkpoints", "scores")


def checkpoint_file(out: Path, checkpoint: int) -> Path:
    """Where a checkpoint's weights are."""
    return out / "checkpoints" / f"{checkpoint}.pt"


def score_file(out: Path, checkpoint: int, method: str) -> Path:
    """Where a checkpoint's scores by a method are."""
    return out / "scores" / folder_name(f"{checkpoint}-{method}.npz")


def folder_name(text: str) -> str:
    """Return a text with ``_`` for what the names of files and folders cannot have everywhere."""
    return re.sub(r"[^a-zA-Z0-9_.-]", "_", text)


def open_output(
    out: Path, config: RunConfig, *, resume: bool, weights_sha256: Mapping[str, str] | None
) -> None:
    """Make a run's folder, or check that the one there belongs to the same experiment.

    Parameters
    ----------
    out : Path
        The folder.
    config : RunConfig
        The experiment, all defaults filled in.
    resume : bool
        Whether to go on with a run that is there.
    weights_sha256 : mapping of str to str, optional
        Digests of the weights that stand in for training, by checkpoint number.

    Raises
    ------
    OutputExistsError
        The folder is not empty and ``resume`` is false, or it is a file.
    RecordError
        There is something else than a run in the folder.
    InvalidArgumentError
        The run there has another configuration; the message lists the fields.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"out: {str(out)!r} is a file; choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not resume:
        raise OutputExistsError(
            f"out: {str(out)!r} exists and is not empty; resume it (--resume) or choose another "
            "folder (--out)"
        )
    _sweep(out)
    described = config.to_dict() | {
        "weights_sha256": dict(weights_sha256) if weights_sha256 else None
    }
    if (out / CONFIG_FILE).is_file():
        _check_same(out, config, described, given_weights=weights_sha256 is not None)
    elif any(out.iterdir()):
        raise RecordError(
            f"out: {str(out)!r} holds no {CONFIG_FILE}, so it is no run to resume; choose "
            "another folder (--out)"
        )
    else:
        write_json(out / CONFIG_FILE, described)
    for name in _FOLDERS:
        (out / name).mkdir(exist_ok=True)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows on disk that need no second attempt, exactly as they were written.

    Raises
    ------
    RecordError
        The table is broken.
    """
    if not (out / TRIALS_FILE).is_file():
        return []
    frame = read_trials(out)
    done = frame[frame["status"] == "ok"].astype(object)
    records = done.where(done.notna(), None).to_dict("records")
    return [
        _whole_numbers({str(name): value for name, value in record.items()}) for record in records
    ]


def _whole_numbers(record: dict[str, Any]) -> dict[str, Any]:
    # A missing value in another row turned the column into floats.
    for column in TRIAL_COLUMNS:
        if column.kind == "int" and record[column.name] is not None:
            record[column.name] = int(record[column.name])
    return record


def _check_same(
    out: Path, config: RunConfig, described: dict[str, Any], *, given_weights: bool
) -> None:
    recorded = read_json(out / CONFIG_FILE)
    differences = RunConfig.from_dict(recorded).differences(config)
    weights = recorded.get("weights_sha256")
    if given_weights and weights != described["weights_sha256"]:
        differences.append("weights: not the ones the run was started with")
    if differences:
        raise InvalidArgumentError(
            f"resume: {str(out)!r} was started with another configuration "
            f"({'; '.join(differences)}); repeat its options or choose another folder (--out)"
        )


def _sweep(out: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for folder in (out, *(out / name for name in _FOLDERS)):
        for kind in ("json", "csv", "pt", "npz", "html"):
            for left_over in folder.glob(f".*.{kind}[-.]*"):
                with contextlib.suppress(OSError):
                    os.unlink(left_over)
