"""What every executor of a study works with: the open store, and how a trial becomes a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalprune.errors import DivergedError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.outputs import folder_name, open_output
from causalprune.experiments.preparation import weight_digests, weight_files
from causalprune.experiments.prepared import (
    Prepared,
    filled_in,
    prepare,
    repeatable_kernels,
    splits_of,
)
from causalprune.experiments.progress import Stages
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_rows import one_line
from causalprune.experiments.store_workers import Worker
from causalprune.experiments.study_progress import Follower
from causalprune.experiments.study_spec import StudyCell, StudySpec
from causalprune.experiments.study_steps import BLOCKS, preparing
from causalprune.experiments.trial import run_trial
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.measures import torch_threads

__all__ = [
    "StudyWork",
    "block_folder",
    "block_in",
    "given_weights",
    "prepared_block",
    "study_row",
]


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

    def finish(self, trial: int, row: dict[str, Any], artefacts: Mapping[str, bytes]) -> None:
        """Record a trial's row and what it leaves, and say so."""
        status = self.store.finish(trial, self.worker, row, artefacts)
        cell = self.cells[trial].cell
        told = {**row, "trial": trial, "method": cell.method, "ratio": cell.ratio}
        self.follower.ended(self.cells[trial].block, told, status)


def given_weights(config: RunConfig) -> dict[int, Path]:
    """Find the files that stand in for training, by checkpoint number."""
    return weight_files(config.weights, config.checkpoints)


def prepared_block(
    work: StudyWork,
    number: int,
    elsewhere: Callable[[RunConfig, DataSplits, Path], Prepared] | None = None,
) -> Prepared | DivergedError:
    """Train and score the networks of a block, or load what the study's folder has of them.

    Parameters
    ----------
    work : StudyWork
        Another process that prepares the same block in its folder is waited for.
    number : int
        Which block.
    elsewhere : callable, optional
        What does it on another machine, given configuration, images and the block's folder.

    Returns
    -------
    Prepared or DivergedError
        The error where the loss of a network became infinite or NaN.
    """
    return block_in(
        work.spec, work.folder, number, stages_of=work.follower.stages, elsewhere=elsewhere
    )


def block_in(
    spec: StudySpec,
    root: Path,
    number: int,
    *,
    stages_of: Callable[[Path], Stages],
    elsewhere: Callable[[RunConfig, DataSplits, Path], Prepared] | None = None,
) -> Prepared | DivergedError:
    """Do as `prepared_block` in the folder of a study whose queue is not worked off here.

    Parameters
    ----------
    spec : StudySpec
    root : Path
        Of the study's records.
    number : int
        Which block.
    stages_of : callable
        Given the block's folder, what the preparation reports its steps to.
    elsewhere : callable, optional
        As for `prepared_block`.
    """
    config = filled_in(spec.blocks[number])
    folder = block_folder(root, config, number)
    given = given_weights(config)
    stages = stages_of(folder)
    with preparing(folder), torch_threads(config.threads), repeatable_kernels():
        there = folder.is_dir() and any(folder.iterdir())
        open_output(folder, config, resume=there, weights_sha256=weight_digests(given))
        with stages("loading images", 1):
            splits = splits_of(config)
        try:
            if elsewhere is not None:
                return elsewhere(config, splits, folder)
            return prepare(config, splits, folder, given=given, shifts=spec.shifts, progress=stages)
        except DivergedError as error:
            return error


def block_folder(root: Path, config: RunConfig, number: int) -> Path:
    """Return where a study keeps the networks and scores of a block, defaults filled in."""
    return root / BLOCKS / folder_name(f"{number}-{config.network}")


def study_row(
    config: RunConfig,
    entry: StudyCell,
    block: Prepared | DivergedError,
    artefacts: TrialArtefacts,
) -> dict[str, Any]:
    """Run one trial of a study; return its row.

    Parameters
    ----------
    config : RunConfig
        Of the trial's block.
    entry : StudyCell
    block : Prepared or DivergedError
        As `prepared_block` returns it, on the device that the trial is to run on. Where its
        networks did not train, its trials fail and those of other blocks go on.
    artefacts : TrialArtefacts
        Takes what is to be kept beside the row.
    """
    if isinstance(block, DivergedError):
        return {"status": "failed", "error": f"networks of the block: {one_line(block)}"}
    with torch_threads(config.threads), repeatable_kernels():
        checkpoint = block.checkpoints[entry.cell.checkpoint]
        row = run_trial(block.setting, entry.cell, checkpoint, artefacts)
    return row | {
        "block": entry.block,
        "assignment": entry.assignment,
        "assignment_probability": entry.probability,
    }
