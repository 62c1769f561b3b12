"""What every executor of a study works with: the open store, and how a trial becomes a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalprune.experiments.config import RunConfig
from causalprune.experiments.outputs import open_output
from causalprune.experiments.prepared import (
    Prepared,
    filled_in,
    prepare,
    repeatable_kernels,
    splits_of,
)
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_workers import Worker
from causalprune.experiments.study_progress import Follower
from causalprune.experiments.study_spec import StudyCell, StudySpec
from causalprune.experiments.study_steps import BLOCKS, preparing
from causalprune.experiments.trial import run_trial
from causalprune.measures import torch_threads

__all__ = ["StudyWork", "prepared_block", "study_row"]


@dataclass(frozen=True)
class StudyWork:
    """A study that is being worked off.

    Attributes
    ----------
    spec : StudySpec
    folder : Path
        Of the records.
    cells : dict of int to StudyCell
        By trial.
    store : StudyStore
        Open in this process.
    worker : Worker
        This process, which beats in the store.
    limit : int or None
        Trials to run at the most.
    follower : Follower
        Is told what happens here.
    """

    spec: StudySpec
    folder: Path
    cells: dict[int, StudyCell]
    store: StudyStore
    worker: Worker
    limit: int | None
    follower: Follower

    def finish(self, trial: int, row: dict[str, Any]) -> None:
        """Record a trial's row and say so."""
        status = self.store.finish(trial, self.worker, row)
        self.follower.ended(self.cells[trial].block, row, status)


def prepared_block(work: StudyWork, number: int) -> Prepared:
    """Train and score the networks of a block, or load what the study's folder has of them.

    Parameters
    ----------
    work : StudyWork
        Another process that prepares the same block in its folder is waited for.
    number : int
        Which block.
    """
    config = filled_in(work.spec.blocks[number])
    folder = work.folder / BLOCKS / f"{number}-{config.network}"
    stages = work.follower.stages(folder)
    with preparing(folder), torch_threads(config.threads), repeatable_kernels():
        there = folder.is_dir() and any(folder.iterdir())
        open_output(folder, config, resume=there, weights_sha256=None)
        with stages("loading images", 1):
            splits = splits_of(config)
        return prepare(config, splits, folder, given={}, shifts=work.spec.shifts, progress=stages)


def study_row(config: RunConfig, entry: StudyCell, block: Prepared) -> dict[str, Any]:
    """Run one trial of a study; return its row.

    Parameters
    ----------
    config : RunConfig
        Of the trial's block.
    entry : StudyCell
    block : Prepared
        As `prepared_block` returns it, on the device that the trial is to run on.
    """
    with torch_threads(config.threads), repeatable_kernels():
        row = run_trial(block.setting, entry.cell, block.checkpoints[entry.cell.checkpoint])
    return row | {
        "block": entry.block,
        "assignment": entry.assignment,
        "assignment_probability": entry.probability,
    }
