"""Studies in which training diverges, the disk fills, or the store is of another time."""

from __future__ import annotations

import json
import resource
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from experiments.study_cases import TEXT, repeatable, study_in

from causalprune.errors import DivergedError, RecordError
from causalprune.experiments import study_work
from causalprune.experiments.config import RunConfig
from causalprune.experiments.run import run_experiment
from causalprune.experiments.study import Study

ONE = TEXT[: TEXT.index("blocks")].replace("l1, random", "l1, wt").replace("epochs: 4", "epochs: 1")


# ---- training that diverges ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "batch_size", "words"),
    [
        (1e30, 64, "learning_rate: training diverged in epoch 1 (loss nan)"),
        # One step an epoch: its loss is that of the weights before, and finite.
        (1e30, 400, "expected finite logits, got infinity or NaN"),
    ],
)
def test_retraining_that_diverges_is_a_failed_trial(
    tmp_path: Path, rate: float, batch_size: int, words: str
) -> None:
    text = ONE + f"retrain_learning_rate: {rate}\nbatch_size: {batch_size}\n"
    text += "blocks:\n- {network: lenet5, ratios: [0.5]}\n"
    text += "- {network: lenet300, ratios: [0.5], retrain_learning_rate: 0.001}\n"
    study = study_in(tmp_path, text)
    frame = study.run(progress=False).set_index("architecture")
    failed = frame.loc["lenet5"]
    assert (failed["status"] == "failed").all() and len(failed) == 2
    assert failed["error"].str.startswith("DivergedError: ").all()
    assert failed["error"].str.contains(words, regex=False).all(), failed["error"].tolist()
    assert failed["accuracy"].isna().all() and failed["seconds"].notna().all()
    assert (frame.loc["lenet300", "status"] == "ok").all()
    assert study.status().failed == 2 and study.doctor() == []
    # What was removed is kept of a failed trial, too.
    assert len(study.artefacts(kind="plan")) == len(study.artefacts(kind="masks")) == 2


def test_it_is_a_failed_trial_of_a_plain_run(tmp_path: Path) -> None:
    config = RunConfig(
        methods=("l1",),
        ratios=(0.0, 0.5),
        checkpoints=1,
        epochs=1,
        retrain_epochs=1,
        retrain_learning_rate=1e30,
        batch_size=400,
        calibration=40,
        train_limit=340,
        test_limit=90,
        latency_repeats=1,
    )
    result = run_experiment(config, tmp_path / "run", progress=False)
    assert result.n_failed == 2 and len(result.trials) == 2
    assert result.trials["error"].str.contains("DivergedError").all()


def test_networks_that_diverge_fail_the_trials_of_their_block_alone(tmp_path: Path) -> None:
    text = ONE + "blocks:\n- {network: lenet5, learning_rate: 1.0e+30}\n"
    text += "- {network: lenet300, methods: [l1], ratios: [0.5]}\n"
    frame = study_in(tmp_path, text).run(progress=False).set_index("architecture")
    failed = frame.loc["lenet5"]
    assert len(failed) == 6 and (failed["status"] == "failed").all()
    assert failed["error"].str.contains("networks of the block: DivergedError: learning_").all()
    assert set(failed["method"]) == {"l1", "wt"} and failed["ratio"].notna().all()
    assert frame.loc["lenet300", "status"] == "ok"
    config = RunConfig(epochs=1, learning_rate=1e30, train_limit=340, checkpoints=1)
    with pytest.raises(DivergedError, match="training diverged"):
        run_experiment(config, tmp_path / "run", progress=False)


# ---- disks, clocks, versions --------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("study"), ONE)
    study.run(progress=False)
    return study


def test_a_disk_that_fills_costs_the_trial_in_flight(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path, ONE)
    study.run(progress=False, limit=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run_trial(*arguments: Any) -> dict[str, Any]:
        row = original(*arguments)
        # From now on the system refuses to let a file grow beyond this, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
        return row

    original = study_work.run_trial
    monkeypatch.setattr(study_work, "run_trial", run_trial)
    try:
        with pytest.raises(RecordError, match="make room and start again"):
            study.run(progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert study.status().ok == 2
    # In the same process, where the worker that held the trial would count as alive.
    frame = study.run(progress=False)
    assert study.status().ok == len(frame) == 6
    assert [text for text in study.doctor() if "belongs to no trial" not in text] == []
    frame_of = repeatable(frame)
    assert json.loads(frame_of["accuracy_by_shift"][0])
    assert frame_of.equals(repeatable(undisturbed.frame()))


def test_a_clock_that_jumps_changes_nothing(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter([1e9, -3e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    study = study_in(tmp_path, ONE)
    frame = study.run(progress=False)
    monkeypatch.undo()
    assert repeatable(frame).equals(repeatable(undisturbed.frame()))
    assert (frame["seconds"] > 0).all() and study.doctor() == []


def test_a_store_of_a_newer_version_is_refused(undisturbed: Study, tmp_path: Path) -> None:
    study = study_in(tmp_path, ONE)
    study.run(progress=False, limit=1)
    connection = sqlite3.connect(study.folder / "study.db", isolation_level=None)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    for step in (
        lambda: Study.open(study.folder),
        lambda: study.run(progress=False),
        study.frame,
        study.status,
        study.doctor,
    ):
        with pytest.raises(RecordError, match="schema 99, written by a newer causalprune"):
            step()
