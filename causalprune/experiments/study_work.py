"""What every executor of a study works with: the open store, and how a trial becomes a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalprune.errors import RecordError
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
from causalprune.experiments.study_spec import StudyCell, StudySpec
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
    advance : callable
        Called with a note after each trial.
    """

    spec: StudySpec
    folder: Path
    cells: dict[int, StudyCell]
    store: StudyStore
    worker: Worker
    limit: int | None
    advance: Callable[[str], None]

    def finish(self, trial: int, row: dict[str, Any]) -> None:
        """Record a trial's row and say so."""
        status = self.store.finish(trial, self.worker, row)
        cell = self.cells[trial].cell
        self.advance(f"{cell.method} {cell.ratio:.0%}: {status}")


def prepared_block(spec: StudySpec, folder: Path, number: int) -> Prepared:
    """Train and score the networks of a block, or load what the study's folder has of them.

    Parameters
    ----------
    spec : StudySpec
    folder : Path
        Of the study's records; another process that prepares the same block there is waited for.
    number : int
        Which block.
    """
    config = filled_in(spec.blocks[number])
    block = folder / "blocks" / f"{number}-{config.network}"
    block.parent.mkdir(parents=True, exist_ok=True)
    with torch_threads(config.threads), repeatable_kernels(), _alone(block.with_suffix(".lock")):
        there = block.is_dir() and any(block.iterdir())
        open_output(block, config, resume=there, weights_sha256=None)
        return prepare(
            config, splits_of(config), block, given={}, shifts=spec.shifts, progress=False
        )


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
    return row | {"assignment": entry.assignment, "assignment_probability": entry.probability}


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time prepare a block; the system ends the lock with the process."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise RecordError("studies need a system with file locks (fcntl)") from error
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
