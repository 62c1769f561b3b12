"""Cells of a study run again: exactly, anew, at other ratios; interrupted; what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from experiments.study_cases import repeatable, study_in

from causalprune.errors import (
    InvalidArgumentError,
    OutputExistsError,
    RecordError,
    UnknownNameError,
)
from causalprune.experiments import study_rerun
from causalprune.experiments.networks import build_network
from causalprune.experiments.study import STUDY_COLUMNS, Study
from causalprune.experiments.weights import save_weights

ONE = """\
methods: [l1]
ratios: [0.5]
checkpoints: 1
epochs: 1
retrain_epochs: 1
calibration: 10
train_limit: 120
test_limit: 60
latency_repeats: 1
latency_batch: 1
device: cpu
check_by_ablation: false
shifts: ["noise:1"]
"""
TEXT = f"{ONE}blocks:\n- {{network: lenet5, ratios: [0.0, 0.5]}}\n- {{network: lenet300}}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("study"), TEXT)
    study.run(progress=False)
    return study


def cell(**changes: object) -> pd.DataFrame:
    usual = {"architecture": "lenet5", "checkpoint": 0, "method": "l1", "ratio": 0.5}
    return pd.DataFrame([usual | changes])


def test_with_its_seed_a_trial_is_repeated_exactly_and_the_study_stays(finished: Study) -> None:
    before = finished.frame()
    cells = before[["architecture", "dataset", "checkpoint", "method", "ratio", "seed"]]
    again = finished.rerun(cells, progress=False)
    assert list(again) == [column.name for column in STUDY_COLUMNS]
    assert sorted(again["trial"]) == list(range(3, 6)) == sorted(again["order"])
    # The rows of the cells have their order, so trial 3 + k repeats the k-th row of the table.
    repeated = again.sort_values("trial").assign(trial=before["trial"].to_numpy())
    given = ["assignment", "assignment_probability"]
    pd.testing.assert_frame_equal(
        repeatable(repeated.drop(columns=given)), repeatable(before.drop(columns=given))
    )
    pd.testing.assert_frame_equal(finished.frame(), before)


def test_without_a_seed_trials_are_new_and_ratios_may_lie_between(finished: Study) -> None:
    cells = pd.concat([cell(), cell(), cell(ratio=0.65, checkpoint="lenet5/digits/0")])
    cells = pd.concat([cells, cell(architecture="lenet300", method="wt", ratio=0.9)])
    rows = finished.rerun(cells, progress=False).set_index("trial").sort_index()
    assert (rows["status"] == "ok").all()
    seeds = rows["seed"].tolist()
    assert len(set(seeds)) == 4  # of one cell twice, too
    assert not set(seeds) & set(finished.frame()["seed"])
    assert rows["ratio"].tolist() == [0.5, 0.5, 0.65, 0.9]
    assert rows["achieved_ratio"].iloc[2] == pytest.approx(0.65, abs=0.06)
    # Neither the method nor the ratio is of the study; single weights need no scores.
    assert rows["achieved_ratio"].iloc[3] == pytest.approx(0.9, abs=0.01)
    assert rows["assignment_probability"].isna().all()
    others = finished.rerun(cells, seed=1, progress=False)["seed"]
    assert not set(others) & set(seeds)


def test_an_interrupted_rerun_goes_on_where_it_was(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cells = tmp_path / "again.csv", pd.concat([cell(), cell(ratio=0.3), cell(ratio=0.7)])
    run, done = study_rerun.study_row, []

    def until_the_third(config, entry, block, artefacts):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(entry.cell.trial)
        return run(config, entry, block, artefacts)

    monkeypatch.setattr(study_rerun, "study_row", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        finished.rerun(cells, path, progress=False)
    assert pd.read_csv(path)["trial"].tolist() == done
    first, done[:] = list(done), []
    rows = finished.rerun(cells, path, progress=False)
    assert len(done) == 1 and rows["trial"].tolist() == first + done
    assert pd.read_csv(path)["trial"].tolist() == first + done


@pytest.mark.parametrize(
    ("cells", "error", "words"),
    [
        (cell(architecture="vgg11"), UnknownNameError, "known: lenet300, lenet5"),
        (cell(dataset="mnist"), UnknownNameError, "unknown data set of the study 'mnist'"),
        (cell(architecture=None), InvalidArgumentError, "expected a column 'architecture'"),
        (cell(checkpoint=1), UnknownNameError, "checkpoint of lenet5 1; known: 0"),
        (cell(method="l7"), UnknownNameError, "unknown scoring method 'l7'"),
        (cell(method="taylor"), InvalidArgumentError, "'taylor' has no scores of checkpoint 0"),
        (cell(ratio=1.0), InvalidArgumentError, "row 0: expected a ratio in [0, 1), got 1.0"),
        (cell(ratio="half"), InvalidArgumentError, "got 'half'"),
        (cell(ratio=None), InvalidArgumentError, "row 0: no value for ratio"),
        (cell().drop(columns="method"), InvalidArgumentError, "missing columns method"),
        (cell().head(0), InvalidArgumentError, "at least one row"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    finished: Study, cells: pd.DataFrame, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        finished.rerun(cells, progress=False)


def test_files_and_folders_that_do_not_fit_are_refused(finished: Study, tmp_path: Path) -> None:
    path = tmp_path / "again.csv"
    finished.rerun(cell(ratio=0.0), path, progress=False)
    with pytest.raises(OutputExistsError, match="holds other trials"):
        finished.rerun(cell(ratio=0.8), path, progress=False)
    with pytest.raises(InvalidArgumentError, match=r"ends in \.csv"):
        finished.rerun(cell(), tmp_path / "again.parquet", progress=False)
    with pytest.raises(InvalidArgumentError, match="seed: expected an integer from 0"):
        finished.rerun(cell(), seed=-1, progress=False)
    fresh = study_in(tmp_path, ONE)
    fresh.run(limit=0, progress=False)
    with pytest.raises(RecordError, match="no trials yet"):
        fresh.rerun(cell(), progress=False)


def test_networks_that_are_gone_or_changed_are_refused(tmp_path: Path) -> None:
    study = study_in(tmp_path, ONE)
    study.run(progress=False)
    (file,) = (study.folder / "blocks" / "0-lenet5" / "checkpoints").glob("0.pt")
    cells = cell().drop(columns="architecture")
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(RecordError, match="checkpoint 0 is not there"):
        study.rerun(cells, progress=False)
    save_weights(build_network("lenet5", 10, seed=7), file)
    with pytest.raises(RecordError, match="another network than its trials pruned"):
        study.rerun(cells, progress=False)
    file.write_bytes(kept)
    assert study.rerun(cells, progress=False)["status"].tolist() == ["ok"]
