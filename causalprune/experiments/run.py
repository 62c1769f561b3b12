"""Algorithm 1: train, score, prune at each ratio, retrain, measure, record.

Source: the experiment of Ratnawat, Garai, Shekhar and Vaisakh, with pruning made physical, so
that parameters, operations and memory fall with the ratio, and with every trial recorded at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune import _native
from causalprune.errors import RecordError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.design import trial_cells
from causalprune.experiments.outputs import (
    open_output,
    read_rows,
)
from causalprune.experiments.preparation import check_network, weight_digests, weight_files
from causalprune.experiments.prepared import filled_in, prepare, repeatable_kernels, splits_of
from causalprune.experiments.progress import stage
from causalprune.experiments.records import TRIALS_FILE, append_trial, read_trials
from causalprune.experiments.trial import Checkpoint, Setting, run_trial
from causalprune.measures import torch_threads

__all__ = ["RunResult", "run_experiment"]


@dataclass(frozen=True)
class RunResult:
    """What an experiment left behind.

    Attributes
    ----------
    out : Path
        Its folder: ``config.json``, ``machine.json``, ``trials.csv``, ``checks.json``,
        ``checkpoints/`` and ``scores/``.
    trials : DataFrame
        The run table, one row a trial; see ``records.TRIAL_COLUMNS``.
    checks : dict
        How each method's scores correlate with exact ablation.
    """

    out: Path
    trials: pd.DataFrame
    checks: dict[str, Any]

    @property
    def n_failed(self) -> int:
        """Number of trials that failed."""
        return int((self.trials["status"] == "failed").sum())

    @property
    def failures(self) -> list[str]:
        """The distinct errors of failed trials, each with its number."""
        failed = self.trials.loc[self.trials["status"] == "failed", "error"]
        return [f"{count} x {error}" for error, count in failed.value_counts().items()]


def run_experiment(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> RunResult:
    """Run an experiment: every checkpoint, method and ratio, one trial each.

    Networks are trained (or loaded) and saved; units are scored once for each checkpoint and
    method, and by exact ablation as the check; then each trial prunes a copy physically,
    evaluates it, retrains it, evaluates it again and is recorded at once, in random order. A
    trial that fails is recorded with its error, and the others go on.

    Parameters
    ----------
    config : RunConfig
        What to do.
    out : path-like
        Folder to write; made when it is not there.
    resume : bool
        Finish the run that ``out`` holds. Trials on disk are kept, failed ones tried again.
    weights : path-like, optional
        Weights to load instead of training: a file (for one checkpoint), or a folder with
        ``0.pt``, ``1.pt`` and so on; default: ``config.weights``.
    progress : bool
        Show progress: bars on a terminal, one line a stage elsewhere.

    Returns
    -------
    RunResult
        For the same configuration, machine and versions the same numbers in every column that
        is not in ``records.MEASURED_COLUMNS``, whether or not the run was interrupted.

    Raises
    ------
    UnknownNameError
        Network, data set or method is not known.
    DataError
        Files of the data set or weights are missing or broken, or weights do not fit the network.
    OutputExistsError
        ``out`` is not empty and ``resume`` is false.
    InvalidArgumentError
        The run to resume has another configuration, ``weights`` does not fit
        ``config.checkpoints``, or the network does not take images of ``config.image_size``.
    RecordError
        ``out`` holds no run, or its records are broken.

    Examples
    --------
    >>> import tempfile
    >>> config = RunConfig(
    ...     methods=("l1",), ratios=(0.0, 0.5), checkpoints=1, epochs=1, retrain_epochs=0,
    ...     train_limit=300, latency_repeats=1,
    ... )
    >>> result = run_experiment(config, tempfile.mkdtemp(), progress=False)
    >>> result.trials.sort_values("trial")[["method", "ratio", "status"]].values.tolist()
    [['l1', 0.0, 'ok'], ['l1', 0.5, 'ok']]
    """
    _native.chosen_isa()  # a wrong CAUSALPRUNE_ISA ends the run here, not every trial
    config = filled_in(config)
    given = weight_files(config.weights if weights is None else weights, config.checkpoints)
    data = splits_of(config)
    check_network(config, data, given)
    folder = Path(out)
    open_output(folder, config, resume=resume, weights_sha256=weight_digests(given))
    rows = read_rows(folder)
    _check_rows(rows, config, folder)
    with torch_threads(config.threads), repeatable_kernels():
        ready = prepare(config, data, folder, given=given, progress=progress)
        setting, checkpoints, checks = ready.setting, ready.checkpoints, ready.checks
        _run_trials(setting, folder, checkpoints, rows, progress)
    return RunResult(folder, read_trials(folder), checks)


def _check_rows(rows: list[dict[str, Any]], config: RunConfig, folder: Path) -> None:
    design = {cell.trial: cell for cell in trial_cells(config)}
    for row in rows:
        cell = design.get(row["trial"])
        if cell is None or (cell.checkpoint, cell.method, cell.ratio) != (
            row["checkpoint"],
            row["method"],
            row["ratio"],
        ):
            raise RecordError(
                f"{folder / TRIALS_FILE}: trial {row['trial']} is not of the experiment in "
                "config.json"
            )


def _run_trials(
    setting: Setting,
    folder: Path,
    checkpoints: list[Checkpoint],
    rows: list[dict[str, Any]],
    progress: bool,
) -> None:
    cells = trial_cells(setting.config)
    done = {row["trial"] for row in rows}
    title = f"{len(cells)} trials: prune, retrain, measure"
    with stage(title, len(cells), progress=progress) as advance:
        for cell in cells:
            if cell.trial in done:
                advance("already on disk")
                continue
            row = run_trial(setting, cell, checkpoints[cell.checkpoint])
            rows = append_trial(folder / TRIALS_FILE, rows, row)
            result = row["error"] or f"accuracy {row['accuracy']:.3f}"
            advance(f"{cell.method} {cell.ratio:.0%}: {result}"[:60])
