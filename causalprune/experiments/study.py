"""Algorithm 1 at full size: a designed study, worked off a queue that survives its workers."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune import _native
from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError
from causalprune.experiments.corruptions import CORRUPTIONS
from causalprune.experiments.networks import network_spec
from causalprune.experiments.preparation import check_network, weight_digests
from causalprune.experiments.prepared import filled_in, splits_of
from causalprune.experiments.records import SHIFT_COLUMNS, TRIAL_COLUMNS
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_artefacts import Artefact
from causalprune.experiments.store_progress import StudyProgress
from causalprune.experiments.store_queue import StudyStatus
from causalprune.experiments.store_rows import export_rows
from causalprune.experiments.store_schema import STORE_FILE
from causalprune.experiments.store_workers import Worker, ending
from causalprune.experiments.study_file import read_study_file
from causalprune.experiments.study_local import run_here
from causalprune.experiments.study_measures import (
    StudyPotentials,
    excess_errors_of_trials,
    excess_trends_of_trials,
    potentials_of_trials,
)
from causalprune.experiments.study_progress import following
from causalprune.experiments.study_ray import ray_executor
from causalprune.experiments.study_rerun import rerun_cells
from causalprune.experiments.study_spec import NOISE, StudyCell, StudySpec, study_cells
from causalprune.experiments.study_tables import plan_lines, rows_by_shift
from causalprune.experiments.study_work import StudyWork, given_weights
from causalprune.measures import machine_info
from causalprune.measures.prune_potential import DELTA

__all__ = ["EXECUTORS", "Study"]

EXECUTORS = ("local", "ray")
STUDY_COLUMNS = (*TRIAL_COLUMNS, *SHIFT_COLUMNS)


@dataclass(frozen=True)
class Study:
    """A study and the folder of its records.

    Attributes
    ----------
    spec : StudySpec
    folder : Path
        ``study.db`` (queue and log), ``blocks/`` (trained networks and scores of each block),
        ``artefacts/`` (what trials left beside their rows).

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> text = '''
    ... methods: [l1]
    ... ratios: [0.0, 0.5]
    ... checkpoints: 1
    ... epochs: 1
    ... retrain_epochs: 0
    ... train_limit: 300
    ... latency_repeats: 1
    ... shifts: [gaussian_noise:3]
    ... '''
    >>> _ = (folder / "small.yaml").write_text(text)
    >>> study = Study.from_file(folder / "small.yaml")
    >>> trials = study.run(progress=False)
    >>> trials.sort_values("trial")[["method", "ratio", "status"]].values.tolist()
    [['l1', 0.0, 'ok'], ['l1', 0.5, 'ok']]
    """

    spec: StudySpec
    folder: Path

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
    ) -> Study:
        """Read a study from a YAML file.

        Parameters
        ----------
        path : path-like
            See :func:`~causalprune.experiments.study_file.read_study_file`.
        folder : path-like, optional
            Of the records; default: the file's path without its suffix.

        Raises
        ------
        DataError, InvalidArgumentError, UnknownNameError
            The file is not there or does not describe a study.
        """
        spec = read_study_file(path)
        named = (replace(b, network=filled_in(b).network) for b in spec.blocks)
        spec = replace(spec, blocks=tuple(named))
        for shift in spec.shifts:
            if shift.name not in (NOISE, *CORRUPTIONS):
                raise UnknownNameError("shift", shift.name, (NOISE, *CORRUPTIONS))
        return cls(spec, Path(folder) if folder is not None else Path(path).with_suffix(""))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Study:
        """Return the study whose records a folder holds.

        Raises
        ------
        RecordError
            It holds none.
        """
        with StudyStore.open(folder) as store:
            return cls(StudySpec.from_dict(store.study), Path(folder))

    def run(
        self,
        *,
        executor: str = "local",
        address: str | None = None,
        progress: bool = True,
        retry_failed: bool = False,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """Run what is left of the study; several processes may do so at once.

        A process that is killed loses the trials it was at, which the next one takes up again.

        Parameters
        ----------
        executor : str
            ``"local"``: one trial after the other in this process. ``"ray"``: on a Ray cluster,
            one task a trial with ``threads`` processors, and a GPU where the block's device is
            ``"cuda"``, or ``"auto"`` and the cluster has any. Networks are trained and scored
            here (on a node, where they need a GPU and this machine has none) and sent to the
            nodes, which need this version of causalprune and neither the data nor this folder.
            Trials of workers and nodes that are lost run again elsewhere, up to five times in
            all.
        address : str, optional
            Of the cluster: ``"host:6379"``, ``"ray://host:10001"`` or ``"auto"``. Default: Ray
            as this process has started it, ``RAY_ADDRESS``, or else a Ray of this machine alone,
            which ends with the run.
        progress : bool
            Show progress: a live table on a terminal, a few lines elsewhere.
        retry_failed : bool
            Try failed trials again.
        limit : int, optional
            Run so many trials at the most.

        Returns
        -------
        DataFrame
            The rows so far, in the order in which they ran; ``records.TRIAL_COLUMNS`` and
            ``records.SHIFT_COLUMNS``.

        Raises
        ------
        UnknownNameError
            There is no such executor.
        InvalidArgumentError
            An address without a cluster, or another one than that of the Ray already started.
        MissingDependencyError
            Ray is not installed.
        ClusterError
            The address does not answer, no node can run a trial, or causalprune is missing there
            or of another version. What was recorded stays; the other trials are queued again.
        RecordError
            The folder holds another study (its weights may be the difference), or cannot be
            written.
        DataError
            Images or weights are missing or broken, or weights are those of another network; of a
            new study nothing is written then.
        InvalidArgumentError
            A network does not take images of its `image_size`; likewise.
        """
        if executor not in EXECUTORS:
            raise UnknownNameError("executor", executor, EXECUTORS)
        if executor == "local" and address is not None:
            raise InvalidArgumentError(
                f"address: only executor 'ray' has one; expected None, got {address!r}"
            )
        _native.chosen_isa()  # a wrong CAUSALPRUNE_ISA ends the study here, not every trial
        chosen = nullcontext(run_here) if executor == "local" else ray_executor(address)
        cells = study_cells(self.spec)
        if not (self.folder / STORE_FILE).exists():
            self._check_blocks()
        worker = Worker.here()
        with chosen as execute, self._store(cells) as store, ending(worker):
            if retry_failed:
                store.retry_failed()
            store.record_machine(worker, machine_info())
            by_trial = {entry.cell.trial: entry for entry in cells}
            with (
                store.beating(worker),
                following(self.spec, self.folder, show=progress) as follower,
            ):
                work = StudyWork(self.spec, self.folder, by_trial, store, worker, limit, follower)
                try:
                    execute(work)
                finally:
                    # What ends a run is not its trials' fault: the next worker may have them.
                    store.release(None, worker)
            return store.read()

    def rerun(
        self,
        cells: pd.DataFrame,
        path: str | os.PathLike[str] | None = None,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Run cells for real once more, or at another ratio, outside of the study's records.

        See :func:`~causalprune.experiments.study_rerun.rerun_cells`, also for errors.

        Parameters
        ----------
        cells : DataFrame
            ``checkpoint``, ``method``, ``ratio``; ``architecture``, ``dataset``, ``seed``.
        path : path-like, optional
            A ``.csv`` that the rows are written to as they end.
        seed : int
            Of the order and of trials without a seed.
        progress : bool
            Show progress.
        """
        return rerun_cells(self.spec, self.folder, cells, path, seed=seed, progress=progress)

    def plan(self) -> list[str]:
        """Say in words what the study would run: networks to train, trials, disk."""
        return plan_lines(self.spec, self.folder)

    def status(self) -> StudyStatus:
        """Count the trials that are queued, running, finished and failed."""
        with StudyStore.open(self.folder) as store:
            return store.status()

    def progress(self) -> StudyProgress:
        """Count the trials by block, method and ratio, and those who work on them."""
        with StudyStore.open(self.folder) as store:
            return store.progress()

    def frame(self) -> pd.DataFrame:
        """Return the rows so far, in the order in which they ran."""
        with StudyStore.open(self.folder) as store:
            return store.read()

    def by_shift(self) -> pd.DataFrame:
        """Return one row for each trial and shift, the plain test images among them (``none``)."""
        return rows_by_shift(self.frame())

    def export(self, path: str | os.PathLike[str], *, by_shift: bool = False) -> Path:
        """Write the rows so far to a ``.csv`` or ``.parquet`` file.

        Raises
        ------
        RecordError
            The suffix is another one, or the file cannot be written.
        MissingDependencyError
            Parquet without pyarrow.
        """
        with StudyStore.open(self.folder) as store:
            if not by_shift:
                return store.export(path)
            frame = rows_by_shift(store.read())
        # The store of an earlier release has its columns in another order, and may lack some.
        frame = frame.reindex(columns=[column.name for column in TRIAL_COLUMNS]).astype(object)
        rows = list(frame.where(frame.notna(), None).itertuples(index=False, name=None))
        return export_rows(rows, TRIAL_COLUMNS, path)

    def prune_potentials(self, delta: float = DELTA, level: float = 0.95) -> StudyPotentials:
        """Return how much can go before the error rises by more than `delta`, by shift.

        Also what the potentials say over networks, with intervals; see
        :func:`~causalprune.experiments.study_measures.potentials_of_trials`, also for errors.
        """
        return potentials_of_trials(self.by_shift(), delta, level)

    def excess_errors(self) -> pd.DataFrame:
        """Return what the shifts cost each network at each ratio beyond its error on plain images.

        See :func:`~causalprune.experiments.study_measures.excess_errors_of_trials`.
        """
        return excess_errors_of_trials(self.by_shift())

    def excess_error_trends(self, level: float = 0.95) -> pd.DataFrame:
        """Return each method's regression of the excess error's rise on the prune ratio.

        See :func:`~causalprune.experiments.study_measures.excess_trends_of_trials`.
        """
        return excess_trends_of_trials(self.by_shift(), level)

    def artefacts(self, trial: int | None = None, kind: str | None = None) -> tuple[Artefact, ...]:
        """List what trials left beside their rows; see `artefact_path`.

        Parameters
        ----------
        trial : int, optional
            Of this one only.
        kind : str, optional
            ``"plan"``, ``"masks"``, ``"checkpoint"`` or ``"trace"`` only; see
            :class:`~causalprune.experiments.trial_artefacts.TrialArtefacts`.
        """
        with StudyStore.open(self.folder) as store:
            found = store.artefacts(trial)
        return tuple(each for each in found if kind in (None, each.kind))

    def artefact_path(self, digest: str) -> Path:
        """Return where an artefact lies, to be read only.

        Raises
        ------
        RecordError
            The study has none of that digest.
        """
        with StudyStore.open(self.folder) as store:
            return store.artefact_path(digest)

    def doctor(self) -> list[str]:
        """Check the records; return what is wrong with them, in words."""
        with StudyStore.open(self.folder) as store:
            return store.doctor()

    def _store(self, cells: tuple[StudyCell, ...]) -> StudyStore:
        trials = [_described(self.spec, entry) for entry in cells]
        described = self._recorded() or self._described()
        return StudyStore.create(self.folder, described, trials, columns=STUDY_COLUMNS)

    def _described(self) -> dict[str, Any]:
        described = self.spec.to_dict()
        digests = {
            str(number): weight_digests(given_weights(config))
            for number, config in enumerate(self.spec.blocks)
            if config.weights is not None
        }
        if digests:  # by block; other weights are another study
            described["weights_sha256"] = digests
        return described

    def _check_blocks(self) -> None:
        for block in self.spec.blocks:
            config = filled_in(block)
            check_network(config, splits_of(config), given_weights(config))

    def _recorded(self) -> dict[str, Any] | None:
        """Return what the folder's store holds, if it describes this study.

        Earlier releases recorded fewer fields of the same study.
        """
        if not (self.folder / STORE_FILE).is_file():
            return None
        try:
            with StudyStore.open(self.folder) as store:
                recorded = store.study
                same = StudySpec.from_dict(recorded) == self.spec
        except (KeyError, RecordError, InvalidArgumentError):
            return None  # a study of another kind, or none; who makes it there says what is wrong
        weights = self._described().get("weights_sha256")
        return recorded if same and recorded.get("weights_sha256") == weights else None


def _described(spec: StudySpec, entry: StudyCell) -> dict[str, Any]:
    cell = entry.cell
    return {
        "trial": cell.trial,
        "order": cell.order,
        "block": entry.block,
        "architecture": network_spec(spec.blocks[entry.block].network).name,
        "checkpoint": cell.checkpoint,
        "method": cell.method,
        "ratio": cell.ratio,
        "seed": cell.seed,
        "assignment": entry.assignment,
        "assignment_probability": entry.probability,
    }
