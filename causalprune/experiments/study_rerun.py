"""Cells of a study run for real once more, or at another ratio, beside the study's own records."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causalprune.errors import (
    DivergedError,
    InvalidArgumentError,
    OutputExistsError,
    RecordError,
    UnknownNameError,
)
from causalprune.experiments.config import RunConfig
from causalprune.experiments.design import Cell, derive_seed
from causalprune.experiments.outputs import checkpoint_file, score_file
from causalprune.experiments.prepared import Prepared, filled_in
from causalprune.experiments.progress import stage
from causalprune.experiments.records import SHIFT_COLUMNS, TRIAL_COLUMNS, read_trials
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_rows import export_rows, table_of, typed_row
from causalprune.experiments.study_progress import Follower
from causalprune.experiments.study_spec import StudyCell, StudySpec
from causalprune.experiments.study_work import block_folder, block_in, study_row
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.pruning.weights import WEIGHT_METHODS
from causalprune.scoring import resolve_method

__all__ = ["rerun_cells"]

ASSIGNMENT = "chosen to be run again, random order"
_COLUMNS = (*TRIAL_COLUMNS, *SHIFT_COLUMNS)
_NEEDED = ("checkpoint", "method", "ratio")


def rerun_cells(
    spec: StudySpec,
    folder: Path,
    cells: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Run trials with the networks, scores and recipe of a study, outside of its records.

    What counterfactuals are checked against (`causalprune.analysis.cells_to_rerun` and
    `replay_error`). In this process and in random order; the study's queue and log are only read.

    Parameters
    ----------
    spec : StudySpec
    folder : Path
        Of the study's records.
    cells : DataFrame
        One row a trial: ``checkpoint``, ``method`` and ``ratio``, which the study need not have
        tried; ``architecture`` and ``dataset`` where the study has several. A method needs scores
        in the study's folder, or none (those of single weights). With a column ``seed`` the trial
        is run with it (that of the study's own trial repeats it); else it draws a new one.
    path : path-like, optional
        A ``.csv`` that the rows are written to as they end. What an interrupted call left there
        is not run again.
    seed : int
        Of the order and the trials; another one gives other trials of the same cells.
    progress : bool
        Show progress: a bar on a terminal, a line at the end elsewhere.

    Returns
    -------
    DataFrame
        As `Study.frame`, in the order in which they ran; numbers of trials go on after the
        study's. A trial that fails is a row with its error.

    Raises
    ------
    UnknownNameError
        A network, data set, checkpoint or method that is not there.
    InvalidArgumentError
        Columns or values of `cells` are missing or wrong, or a method has no scores.
    OutputExistsError
        `path` holds other trials.
    RecordError
        The folder has no trials, or its networks are not those that they pruned.

    Examples
    --------
    >>> import tempfile
    >>> from causalprune.experiments import Study
    >>> file = Path(tempfile.mkdtemp()) / "small.yaml"
    >>> _ = file.write_text(
    ...     "{methods: [l1], ratios: [0.5], checkpoints: 1, epochs: 1, retrain_epochs: 0, "
    ...     "train_limit: 300, latency_repeats: 1}"
    ... )
    >>> study = Study.from_file(file)
    >>> _ = study.run(progress=False)
    >>> cells = pd.DataFrame({"checkpoint": [0], "method": ["l1"], "ratio": [0.3]})
    >>> study.rerun(cells, progress=False)[["trial", "ratio", "status"]].values.tolist()
    [[1, 0.3, 'ok']]
    """
    target = None if path is None else _target(path)
    recorded = _recorded(folder)
    entries = _entries(_Blocks.of(spec, folder, recorded), cells, recorded, seed)
    rows = _rows_there(target, entries)
    ready: dict[int, Prepared] = {}
    quiet = Follower({}, lambda line: None)
    with stage(f"{len(entries)} trials again", len(entries), progress=progress) as advance:
        for entry in entries:
            if entry.cell.trial in rows:
                advance("already on disk")
                continue
            if entry.block not in ready:
                block = block_in(spec, folder, entry.block, stages_of=quiet.stages)
                ready[entry.block] = _as_recorded(block, entry.block, folder, recorded)
            config = spec.blocks[entry.block]
            row = study_row(config, entry, ready[entry.block], TrialArtefacts(()))
            rows[entry.cell.trial] = typed_row(_COLUMNS, row, f"trial {entry.cell.trial}")
            if target is not None:
                export_rows(_tuples(rows, entries), _COLUMNS, target)
            result = row["error"] or f"accuracy {row['accuracy']:.3f}"
            advance(f"{config.network}, {entry.cell.method} {entry.cell.ratio:.0%}: {result}"[:60])
    return table_of(_tuples(rows, entries), _COLUMNS)


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a study that have trials: by number, and by network and data set."""

    configs: Mapping[int, RunConfig]
    names: Mapping[int, tuple[str, str]]
    folder: Path

    @classmethod
    def of(cls, spec: StudySpec, folder: Path, recorded: pd.DataFrame) -> _Blocks:
        there = recorded.dropna(subset=["block", "architecture", "dataset"])
        named = there.drop_duplicates("block")[["block", "architecture", "dataset"]]
        names = {int(n): (str(a), str(d)) for n, a, d in named.itertuples(index=False)}
        return cls({n: filled_in(spec.blocks[n]) for n in sorted(names)}, names, folder)

    def number(self, row: Mapping[Any, Any]) -> int:
        """Return the block that a cell is of."""
        left = list(self.configs)
        for place, (column, word) in enumerate(
            (("architecture", "network"), ("dataset", "data set"))
        ):
            known = {self.names[n][place] for n in left}
            asked = row.get(column)
            if asked is None and len(known) > 1:
                raise InvalidArgumentError(
                    f"cells: the study has several, expected a column {column!r} with one of "
                    f"{', '.join(sorted(known))}"
                )
            if asked is not None and str(asked) not in known:
                raise UnknownNameError(f"{word} of the study", str(asked), known)
            left = [n for n in left if asked is None or self.names[n][place] == str(asked)]
        return left[0]

    def checkpoint(self, number: int, value: object) -> int:
        """Return which network of a block is meant: 2, "2" or "lenet5/mnist/2"."""
        config = self.configs[number]
        short = str(value).rpartition("/")[2].removesuffix(".0")
        known = [str(k) for k in range(config.checkpoints)]
        if short not in known:
            raise UnknownNameError(f"checkpoint of {config.network}", value, known)
        own = block_folder(self.folder, config, number)
        if not checkpoint_file(own, int(short)).is_file():
            raise RecordError(
                f"{own}: checkpoint {short} is not there; expected the folder of a study that has "
                "trained its networks"
            )
        return int(short)

    def method(self, number: int, checkpoint: int, value: object) -> str:
        """Return a method that can prune this network without scoring it anew."""
        config, name = self.configs[number], resolve_method(str(value)).name
        own = block_folder(self.folder, config, number)
        if name in WEIGHT_METHODS and config.ratio_of != "parameters":
            raise InvalidArgumentError(
                f"method: {name!r} removes single weights, but a ratio of this study counts "
                f"{config.ratio_of}"
            )
        if name not in WEIGHT_METHODS and not score_file(own, checkpoint, name).is_file():
            raise InvalidArgumentError(
                f"method: {name!r} has no scores of checkpoint {checkpoint} of {config.network} "
                f"in this study; expected one of {', '.join(config.methods)}"
            )
        return name


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() != ".csv":
        raise InvalidArgumentError(f"path: expected a name that ends in .csv, got {str(target)!r}")
    return target


def _recorded(folder: Path) -> pd.DataFrame:
    with StudyStore.open(folder) as store:
        rows = store.read()
    if rows.empty:
        raise RecordError(f"{folder}: the study has no trials yet, so there is nothing to rerun")
    return rows.reindex(columns=[column.name for column in _COLUMNS])


def _entries(
    blocks: _Blocks, cells: pd.DataFrame, recorded: pd.DataFrame, seed: int
) -> list[StudyCell]:
    """Return the trials in the order in which they are to run; their numbers follow the study's."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidArgumentError(f"seed: expected an integer from 0, got {seed!r}")
    missing = [name for name in _NEEDED if name not in cells]
    if missing:
        raise InvalidArgumentError(f"cells: missing columns {', '.join(missing)}")
    if cells.empty:
        raise InvalidArgumentError("cells: expected at least one row, got none")
    first = int(recorded["trial"].max()) + 1
    order = np.random.default_rng(seed).permutation(len(cells))
    times: Counter[tuple[object, ...]] = Counter()
    found = []
    for position, row in enumerate(cells.to_dict("records")):
        given = {str(name): value for name, value in row.items() if not pd.isna(value)}
        lacking = [name for name in _NEEDED if name not in given]
        if lacking:
            raise InvalidArgumentError(f"cells, row {position}: no value for {', '.join(lacking)}")
        number = blocks.number(given)
        checkpoint = blocks.checkpoint(number, given["checkpoint"])
        method = blocks.method(number, checkpoint, given["method"])
        ratio = _ratio(given["ratio"], position)
        what = (checkpoint, method, ratio)
        times[(number, *what)] += 1
        drawn = derive_seed(
            blocks.configs[number].seed, "again", *what, int(seed), times[(number, *what)]
        )
        # A seed of the study repeats its trial; without one the trial draws a retraining anew.
        own = int(given.get("seed", drawn))
        trial = first + position
        cell = Cell(trial, first + int(order[position]), checkpoint, method, ratio, own)
        found.append(StudyCell(number, cell, ASSIGNMENT, math.nan))
    return sorted(found, key=lambda entry: entry.cell.order)


def _ratio(value: object, position: int) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.number))
        or not 0 <= value < 1
    ):
        raise InvalidArgumentError(
            f"cells, row {position}: expected a ratio in [0, 1), got {value!r}"
        )
    return float(value)


def _rows_there(target: Path | None, entries: list[StudyCell]) -> dict[int, dict[str, Any]]:
    """Return the rows of these very trials that an interrupted rerun left in its file."""
    if target is None or not target.exists():
        return {}
    frame = read_trials(target).reindex(columns=[column.name for column in _COLUMNS])
    wanted = {entry.cell.trial: entry.cell for entry in entries}
    kept = {}
    for row in frame.to_dict("records"):
        cell = wanted.get(row["trial"])
        if cell is None or any(
            row[name] != getattr(cell, name) for name in ("checkpoint", "method", "ratio", "seed")
        ):
            raise OutputExistsError(
                f"path: {str(target)!r} holds other trials than these; choose another file"
            )
        if row["status"] == "ok":
            values = {str(name): value for name, value in row.items()}
            kept[cell.trial] = typed_row(_COLUMNS, values, f"trial {cell.trial}")
    return kept


def _as_recorded(
    block: Prepared | DivergedError, number: int, folder: Path, recorded: pd.DataFrame
) -> Prepared:
    """Return a block whose networks are those that the study pruned; refuse another."""
    if isinstance(block, DivergedError):
        raise RecordError(f"{folder}: the networks of block {number} are not there: {block}")
    own = recorded[(recorded["block"] == number) & recorded["checkpoint_digest"].notna()]
    pruned = dict(zip(own["checkpoint"], own["checkpoint_digest"], strict=True))
    for checkpoint in block.checkpoints:
        expected = pruned.get(checkpoint.number, checkpoint.digest)
        if expected != checkpoint.digest:
            raise RecordError(
                f"{folder}: checkpoint {checkpoint.number} of block {number} is another network "
                f"than its trials pruned; expected digest {expected}, got {checkpoint.digest}"
            )
    return block


def _tuples(
    rows: Mapping[int, Mapping[str, Any]], entries: list[StudyCell]
) -> list[tuple[Any, ...]]:
    done = [rows[entry.cell.trial] for entry in entries if entry.cell.trial in rows]
    return [tuple(row.get(column.name) for column in _COLUMNS) for row in done]
