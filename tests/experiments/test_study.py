"""Studies from a file to a table: shifts, resumption, several processes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from experiments.study_cases import TEXT, repeatable, study_in

from causalprune.errors import DataError, InvalidArgumentError, RecordError, UnknownNameError
from causalprune.experiments.networks import build_network
from causalprune.experiments.prepared import filled_in, splits_of
from causalprune.experiments.records import SHIFT_COLUMNS, TRIAL_COLUMNS, read_trials
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_workers import Worker
from causalprune.experiments.study import STUDY_COLUMNS, Study, _described
from causalprune.experiments.study_measures import potentials_of_trials
from causalprune.experiments.study_spec import study_cells
from causalprune.experiments.weights import load_weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("study"), TEXT)
    study.run(progress=False)
    return study


def test_the_table_has_every_trial_and_column(finished: Study) -> None:
    frame = finished.frame()
    assert list(frame.columns) == [column.name for column in STUDY_COLUMNS]
    assert sorted(frame["trial"]) == list(range(7)) and (frame["status"] == "ok").all()
    assert set(frame["architecture"]) == {"lenet5", "lenet300"}
    by_network = frame.groupby("architecture")["assignment_probability"].unique()
    assert by_network["lenet5"] == [1 / 6] and by_network["lenet300"] == [1.0]
    assert set(zip(frame["block"], frame["architecture"], strict=True)) == {
        (0, "lenet5"),
        (1, "lenet300"),
    }
    assert (frame["achieved_ratio"][frame["ratio"] == 0.8] > 0.7).all()
    status = finished.status()
    assert (status.ok, status.failed, status.queued, status.running) == (7, 0, 0, 0)
    assert finished.doctor() == []


def test_shifts_are_measured_before_and_after(finished: Study) -> None:
    frame = finished.frame()
    for row in frame.itertuples():
        after, before = json.loads(row.accuracy_by_shift), json.loads(row.accuracy_before_by_shift)
        assert set(after) == set(before) == {"contrast:5", "noise:1"}
        assert before["contrast:5"] < row.accuracy_before
    long = finished.by_shift()
    assert len(long) == 21 and set(long["shift"]) == {"none", "contrast:5", "noise:1"}
    shifted = long[long["shift"] == "contrast:5"].set_index("trial")
    expected = shifted["accuracy_before"] - shifted["accuracy"]
    pd.testing.assert_series_equal(shifted["accuracy_loss"], expected, check_names=False)
    # Classes are told apart on plain images alone.
    assert shifted["accuracy_by_class"].isna().all()
    assert long.loc[long["shift"] == "none", "accuracy_by_class"].notna().all()


def test_its_measures_are_those_of_its_rows(finished: Study) -> None:
    with pytest.raises(DataError, match=r"lenet300, digits, l1: .*prune ratio 0"):
        finished.prune_potentials()  # the second network was pruned at one ratio only
    own = finished.by_shift().query("architecture == 'lenet5'")
    potentials = potentials_of_trials(own, 1.0).potentials  # whatever the error: all may go
    assert set(potentials["shift"]) == {"none", "contrast:5", "noise:1"}
    achieved = own[own["ratio"] == 0.8].set_index(["method", "shift"])["achieved_ratio"]
    for row in potentials.itertuples():
        assert row.potential == achieved[row.method, row.shift]


def test_noise_is_added_to_the_standardised_images(finished: Study) -> None:
    row = finished.frame().query("architecture == 'lenet5'").iloc[0]
    config = filled_in(finished.spec.blocks[0])
    images, labels = splits_of(config).test
    network = build_network("lenet5", 10)
    load_weights(network, finished.folder / "blocks" / "0-lenet5" / "checkpoints" / "0.pt")
    noisy = torch.stack(
        [
            image
            + 2 * torch.from_numpy(np.random.default_rng([0, place]).random(image.shape, "f4"))
            for place, image in enumerate(images)
        ]
    )
    expected = (network.eval()(noisy - 1).argmax(1) == labels).double().mean()
    assert json.loads(row["accuracy_before_by_shift"])["noise:1"] == pytest.approx(float(expected))


def test_the_exported_table_is_a_run_table(finished: Study, tmp_path: Path) -> None:
    read = read_trials(finished.export(tmp_path / "trials.csv"))
    pd.testing.assert_frame_equal(
        read[[c.name for c in TRIAL_COLUMNS]],
        finished.frame()[[c.name for c in TRIAL_COLUMNS]],
        check_dtype=False,
    )
    long = read_trials(finished.export(tmp_path / "long.csv", by_shift=True))
    assert len(long) == 21 and list(long.columns) == [c.name for c in TRIAL_COLUMNS]


def test_running_again_changes_nothing(finished: Study) -> None:
    before = finished.frame()
    pd.testing.assert_frame_equal(finished.run(progress=False), before)
    pd.testing.assert_frame_equal(Study.open(finished.folder).run(progress=False), before)


def test_in_parts_it_is_the_same_table(finished: Study, tmp_path: Path) -> None:
    study = study_in(tmp_path, TEXT)
    assert len(study.run(progress=False, limit=3)) == 3
    assert study.status().queued == 4
    frame = Study.open(study.folder).run(progress=False)
    pd.testing.assert_frame_equal(repeatable(frame), repeatable(finished.frame()))


def test_a_method_that_fails_is_a_failed_trial(tmp_path: Path) -> None:
    text = TEXT.replace("[l1, random]", "[l1, bn_scale]")  # LeNet-5 has no batch norm
    study = study_in(tmp_path, text)
    frame = study.run(progress=False)
    failed = frame[frame["status"] == "failed"]
    assert len(failed) == 3 and set(failed["method"]) == {"bn_scale"}
    assert failed["error"].str.contains("batch norm").all()
    assert study.status().failed == 3
    again = study.run(progress=False, retry_failed=True)
    assert len(again) == 7 and (again["status"] == "failed").sum() == 3


def test_methods_for_single_weights_leave_zeros(tmp_path: Path) -> None:
    text = TEXT.replace("[l1, random]", "[wt, sipp]").replace("methods: [l1], ", "")
    frame = study_in(tmp_path, text).run(progress=False)
    assert (frame["status"] == "ok").all(), frame["error"].unique()
    some = frame[frame["ratio"] > 0]
    # What retraining revived would count as there again.
    assert ((some["achieved_ratio"] - some["ratio"]).abs() < 0.01).all()
    assert (some["achieved_ratio_macs"] > 0.1).all()
    assert frame.groupby("architecture")["parameter_bytes"].nunique().eq(1).all()
    assert frame["macs_counter"].str.contains("less the products with zero weights").all()
    for row in some.to_dict("records"):
        layers = json.loads(row["achieved_ratio_by_layer"])
        assert len(layers) == {"lenet5": 5, "lenet300": 3}[row["architecture"]]
        assert min(layers.values()) >= 0 and 0 < max(layers.values()) <= 1
    with pytest.raises(InvalidArgumentError, match="ratio_of"):
        study_in(tmp_path, text + "ratio_of: macs\n")


def test_another_study_in_the_folder_is_refused(finished: Study) -> None:
    other = study_in(finished.folder.parent, TEXT.replace("0.8", "0.9"))
    with pytest.raises(RecordError, match="another study"):
        other.run(progress=False)
    assert len(finished.frame()) == 7


@pytest.mark.parametrize("version", [1, 2])
def test_a_study_of_an_earlier_release_goes_on(tmp_path: Path, version: int) -> None:
    """Its store has neither the later fields of the study nor the later columns of the table."""
    study = study_in(tmp_path, TEXT)
    described, cells = study.spec.to_dict(), study_cells(study.spec)
    for block in described["blocks"]:
        for name in ("optimiser", "augment", "latency_batches"):
            block.pop(name, None)
    known = tuple(column for column in TRIAL_COLUMNS if column.since <= version) + SHIFT_COLUMNS
    trials = [_described(study.spec, entry) for entry in cells]
    with StudyStore.create(study.folder, described, trials, columns=known) as store:
        worker = Worker.here()
        claimed = store.claim(worker)
        assert claimed is not None
        store.fail(claimed.trial, worker, "as it was then")
    frame = study.run(progress=False, limit=2)
    assert frame["status"].tolist() == ["failed", "ok", "ok"]
    for name in ("checkpoint_digest", "accuracy_by_class", "changes_by_class"):
        assert frame[name].isna().tolist() == [True, False, False]
    with StudyStore.open(study.folder) as store:
        assert "latency_batches" not in store.study["blocks"][0] and store.doctor() == []
    file = study.export(tmp_path / "long.csv", by_shift=True)
    long = pd.read_csv(file, float_precision="round_trip")
    assert list(long.columns) == [column.name for column in TRIAL_COLUMNS]
    plain = long[(long["shift"] == "none") & (long["status"] == "ok")]
    for name in ("block", "accuracy", "peak_process_bytes", "machine"):
        assert plain[name].tolist() == frame[name].tolist()[1:], name
    with pytest.raises(RecordError, match="another study"):
        study_in(tmp_path, TEXT + "latency_batches: [5]\n").run(progress=False)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="contrust"):
        study_in(tmp_path, TEXT.replace("contrast", "contrust"))
    with pytest.raises(UnknownNameError, match="lenet6"):
        study_in(tmp_path, TEXT.replace("lenet5", "lenet6"))
    with pytest.raises(RecordError, match="no such"):
        Study.open(tmp_path / "nowhere")


def test_the_plan_runs_nothing(tmp_path: Path) -> None:
    study = study_in(tmp_path, TEXT)
    first, *_, last = study.plan()
    assert "7 trials in random order" in first and "minutes" in last and "MB" in last
    assert not study.folder.exists()
