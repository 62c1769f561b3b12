"""A study's folder: artefacts, versions, two studies in one place, exports."""

from __future__ import annotations

import math
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from experiments.store_cases import ENDED, STUDY, cells, claimed, sql

from causalprune import files
from causalprune.errors import (
    ClaimLostError,
    InvalidArgumentError,
    MissingDependencyError,
    RecordError,
)
from causalprune.experiments.records import TRIAL_COLUMNS, Column
from causalprune.experiments.store import StudyStore, Worker

# ---- artefacts ----------------------------------------------------------------------------------


def test_the_same_content_is_stored_once(store: StudyStore, tmp_path: Path) -> None:
    worker = Worker.here()
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "network.pt").write_bytes(content)
    trial = claimed(store, worker)
    digest = store.put_artefact(tmp_path / "network.pt", "checkpoint", trial=trial, worker=worker)
    assert store.put_artefact(content, "checkpoint", trial=trial, worker=worker) == digest
    assert store.put_artefact(content, "weights") == digest
    path = store.artefact_path(digest)
    assert path == store.folder / "artefacts" / digest[:2] / digest[2:]
    assert path.read_bytes() == content
    assert [(a.kind, a.trial, a.n_bytes) for a in store.artefacts()] == [
        ("weights", None, len(content)),
        ("checkpoint", trial, len(content)),
    ]
    assert len([file for file in (store.folder / "artefacts").rglob("*") if file.is_file()]) == 1
    with pytest.raises(InvalidArgumentError, match="worker: expected the one that holds"):
        store.put_artefact(b"plan", "plan", trial=trial)
    with pytest.raises(RecordError, match=r"cannot keep the plan .*No such file"):
        store.put_artefact(tmp_path / "none.json", "plan")
    with pytest.raises(RecordError, match="no artefact 'abc'"):
        store.artefact_path("abc")


def test_artefacts_are_recorded_with_the_row_or_not_at_all(store: StudyStore) -> None:
    worker = Worker.here()
    trial = claimed(store, worker)
    with pytest.raises(RecordError, match="unknown columns"):
        store.finish(trial, worker, ENDED | {"accurracy": 0.5}, {"plan": b"{}"})
    assert store.artefacts() == () and store.status().running == 1
    store.finish(trial, worker, ENDED, {"plan": b"{}", "trace": b"[]"})
    assert [(a.kind, a.n_bytes, a.trial) for a in store.artefacts()] == [
        ("plan", 2, trial),
        ("trace", 2, trial),
    ]
    with pytest.raises(ClaimLostError):
        store.finish(trial, worker, ENDED, {"plan": b"{...}"})
    assert len(store.artefacts()) == 2
    again = claimed(store, worker)
    store.finish(again, worker, {"status": "failed", "error": "broken"}, {"plan": b"{}"})
    assert [a.trial for a in store.artefacts(again)] == [again]
    # The file of the refused row has no owner, and that of two trials is there once.
    assert [text for text in store.doctor() if "belongs to no trial" not in text] == []
    assert len(store.doctor()) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "growing.pt"
    file.write_bytes(b"first")
    digest = files.file_digest(file)
    monkeypatch.setattr(
        "causalprune.experiments.store_artefacts.file_digest",
        lambda path: (file.write_bytes(b"other"), digest)[1],
    )
    with pytest.raises(RecordError, match="changed while it was put"):
        store.put_artefact(file, "checkpoint")
    assert store.doctor() == []


def test_the_doctor_finds_what_is_wrong(store: StudyStore) -> None:
    worker = Worker.here()
    digests = [store.put_artefact(bytes([k]) * 9, "plan") for k in range(3)]
    trials = [claimed(store, worker) for _ in range(2)]
    store.finish(trials[0], worker, ENDED)
    assert store.doctor() == []
    store.artefact_path(digests[0]).unlink()
    store.artefact_path(digests[1]).write_bytes(b"forged!!!")
    strange = store.folder / "artefacts" / "ab" / ("c" * 62)
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes(b"")
    (strange.parent / f".{strange.name}.1234").write_bytes(b"ha")
    sql(store, "DELETE FROM rows")
    sql(store, "INSERT INTO rows (trial, status) VALUES (?, 'ok')", trials[1])
    found = "\n".join(store.doctor())
    assert len(found.splitlines()) == 6
    for words in (
        f"trial {trials[0]} is ok but has no row",
        f"trial {trials[1]} is running but has a row that says ok",
        f"{digests[0][2:]}: missing, the plan of the study",
        f"{digests[1][2:]}: damaged",
        f"{strange}: belongs to no trial",
        "left over from a write that was cut short",
    ):
        assert words in found
    with pytest.raises(RecordError, match=r"missing, though study\.db lists it"):
        store.artefact_path(digests[0])


def test_a_damaged_database_is_found(store: StudyStore) -> None:
    worker = Worker.here()
    for _ in range(6):
        trial = claimed(store, worker)
        store.finish(trial, worker, ENDED | {"kept_units": "x" * 3000})
    file = store.folder / "study.db"
    ((root,),) = sql(store, "SELECT rootpage FROM sqlite_master WHERE name = 'rows'")
    sql(store, "PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    content = bytearray(file.read_bytes())
    start = 4096 * (root - 1)
    content[start : start + 64] = b"\xff" * 64
    file.write_bytes(content)
    with StudyStore.open(store.folder) as broken:
        assert all("the database is damaged" in text for text in broken.doctor())
        assert broken.doctor()
        with pytest.raises(RecordError, match="put a copy of it in its place"):
            broken.read()


# ---- opening, versions, two studies -------------------------------------------------------------


def test_the_same_study_goes_on(store: StudyStore) -> None:
    worker = Worker.here()
    done = claimed(store, worker)
    store.finish(done, worker, ENDED)
    with StudyStore.create(store.folder, dict(reversed(STUDY.items())), cells(6)) as again:
        assert again.study_id == store.study_id and again.study == STUDY
        assert again.status().ok == 1 and claimed(again, worker) != done


@pytest.mark.parametrize(
    ("study", "trials", "words"),
    [
        (STUDY | {"network": "debbi"}, cells(6), r'network \("lenet5", not "debbi"\)'),
        (STUDY | {"retrain": {"epochs": 2}}, cells(6), r"retrain.rate \(0.1, not nothing\)"),
        (STUDY, cells(7), r"trials \(6, not 7\)"),
        (STUDY, cells(6, seed=1), r"trials \(the first that differs is \d: .*trial \d, not \d"),
    ],
)
def test_another_study_in_the_folder_is_refused(
    store: StudyStore, study: dict[str, Any], trials: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(RecordError, match=f"another study: .*{words}"):
        StudyStore.create(store.folder, study, trials)
    assert store.study == STUDY and store.status().queued == 6


def test_new_columns_are_added_and_other_kinds_refused(store: StudyStore) -> None:
    worker = Worker.here()
    store.finish(claimed(store, worker), worker, ENDED)
    more = (*TRIAL_COLUMNS, Column("energy_joules", "float", "energy of a forward pass", True))
    with StudyStore.create(store.folder, STUDY, cells(6), columns=more) as again:
        again.finish(claimed(again, worker), worker, ENDED | {"energy_joules": 2.5})
        values = again.read()["energy_joules"].tolist()
    assert math.isnan(values[0]) and values[1] == 2.5
    # A process that opened the study before does not know the column, and goes on.
    assert store.finish(claimed(store, worker), worker, ENDED) == "ok"
    changed = (*TRIAL_COLUMNS, Column("energy_joules", "text", "energy in words"))
    with pytest.raises(RecordError, match="'energy_joules' is of kind 'float' there"):
        StudyStore.create(store.folder, STUDY, cells(6), columns=changed)


@pytest.mark.parametrize(
    ("study", "trials", "words"),
    [
        ({}, [], "trials: expected at least one"),
        ({"rate": math.nan}, cells(2), "study: expected what JSON can hold"),
        ({}, [{"order": 0, "cut": object()}], r"trials\[0\]: expected what JSON can hold"),
        ({}, [{"trial": 1}, {"trial": 1}], "a whole number 'trial' in each, none of them twice"),
        ({}, [{"order": 1}, {"order": 1}], "a whole number 'order' in each, none of them twice"),
        ({}, [{"trial": "first"}], "trial is 'first', expected a whole number"),
        ({}, [{"ratio": "high"}], "ratio is 'high', expected a number"),
    ],
)
def test_a_study_that_is_none_is_refused(
    tmp_path: Path, study: dict[str, Any], trials: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        StudyStore.create(tmp_path / "study", study, trials)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (TRIAL_COLUMNS[1:], "expected 'trial' of kind 'int'"),
        ((*TRIAL_COLUMNS, Column("Ratio", "float", "")), "every name once"),
        ((*TRIAL_COLUMNS, Column('x" TEXT); --', "float", "")), "letters, digits and _"),
        ((*TRIAL_COLUMNS, Column("x", "blob", "")), "kinds"),
    ],
)
def test_columns_that_are_none_are_refused(
    tmp_path: Path, columns: tuple[Column, ...], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        StudyStore.create(tmp_path, {}, cells(1), columns=columns)
    with pytest.raises(InvalidArgumentError, match="outcomes: expected numeric columns"):
        StudyStore.create(tmp_path, {}, cells(1), outcomes=["method"])


def test_files_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such store"):
        StudyStore.open(tmp_path)
    (tmp_path / "study.db").write_bytes(b"")  # killed before the first step was done
    with pytest.raises(RecordError, match="no study in it yet"):
        StudyStore.open(tmp_path)
    StudyStore.create(tmp_path, {}, cells(1)).close()
    other = tmp_path / "other" / "study.db"
    other.parent.mkdir()
    other.write_bytes(b"not a database, though long enough to be looked at" * 99)
    with pytest.raises(RecordError, match=r"not a database.*damaged or no store"):
        StudyStore.create(other.parent, {}, cells(1))
    other.unlink()
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    with pytest.raises(RecordError, match="expected a study, got tables birds"):
        StudyStore.create(other.parent, {}, cells(1))
    with pytest.raises(RecordError, match="cannot make the folder"):
        StudyStore.create(tmp_path / "study.db" / "inside", {}, cells(1))


def as_version_1(store: StudyStore) -> Path:
    """Turn a store into one of version 1, whose trials had no last_error."""
    store.close()
    file = store.folder / "study.db"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("ALTER TABLE trials DROP COLUMN last_error")
    connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    connection.close()
    return file


def test_a_store_of_an_older_version_is_migrated_beside_a_copy(store: StudyStore) -> None:
    worker = Worker.here()
    store.fail(claimed(store, worker), worker, "broken")
    store.finish(claimed(store, worker), worker, ENDED)
    before = store.read()
    file = as_version_1(store)
    with StudyStore.open(store.folder) as migrated:
        pd.testing.assert_frame_equal(migrated.read(), before)
        migrated.fail(claimed(migrated, worker), worker, "broken too")
        assert migrated.retry_failed() == 2
        assert migrated.doctor() == []
        assert sql(migrated, "SELECT count(last_error) FROM trials") == [(1,)]
    copy = file.with_name("study.v1.db")
    connection = sqlite3.connect(copy)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(trials)")]
    rows = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.close()
    assert "last_error" not in columns and rows == (2,)
    assert sorted(p.name for p in store.folder.iterdir()) == ["study.db", "study.v1.db"]
    # The copy is a store of its own, as it was.
    os.replace(copy, file)
    with StudyStore.open(store.folder) as again:
        pd.testing.assert_frame_equal(again.read(), before)


def test_a_migration_without_room_for_the_copy_changes_nothing(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = as_version_1(store)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"No space left.*make room"):
        StudyStore.open(store.folder)
    monkeypatch.undo()
    assert [path.name for path in file.parent.iterdir()] == ["study.db"]
    connection = sqlite3.connect(file)
    version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    connection.close()
    assert version == ("1",)


def test_a_store_of_a_newer_version_is_refused(store: StudyStore) -> None:
    worker = Worker.here()
    trial = claimed(store, worker)
    sql(store, "UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    # Taken over by a newer program while it was open.
    with pytest.raises(RecordError, match="is of schema 99 by now"):
        store.finish(trial, worker, ENDED)
    for again in (
        lambda: StudyStore.open(store.folder),
        lambda: StudyStore.create(store.folder, STUDY, cells(6)),
    ):
        with pytest.raises(RecordError, match="of schema 99, written by a newer causalprune"):
            again()
    assert sql(store, "SELECT count(*) FROM rows") == [(0,)]


# ---- export and machines ------------------------------------------------------------------------


def test_parquet_keeps_whole_numbers_and_missing_values(store: StudyStore, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    worker = Worker.here()
    store.finish(claimed(store, worker), worker, ENDED | {"macs": 2**60 + 1})
    store.fail(claimed(store, worker), worker, "broken")
    frame = pd.read_parquet(store.export(tmp_path / "trials.parquet"))
    assert list(frame) == [column.name for column in TRIAL_COLUMNS]
    assert frame["macs"].tolist() == [2**60 + 1, pd.NA]
    assert frame["accuracy_loss"].tolist() == [0.1 + 0.2, pd.NA]
    assert frame["error"].tolist() == [pd.NA, "broken"]


def test_exports_that_cannot_be(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"ends in \.csv or \.parquet, got"):
        store.export(tmp_path / "trials.xlsx")
    with pytest.raises(RecordError, match="cannot export the study"):
        store.export(tmp_path / "nowhere" / "trials.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"causalprune\[parquet\]"):
        store.export(tmp_path / "trials.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_machine_is_described_once(store: StudyStore) -> None:
    description = {"name": "a processor, 2 cores", "memory_bytes": None}
    workers = [Worker.here(), Worker.here()]
    (digest,) = {store.record_machine(worker, description) for worker in workers}
    assert store.machines() == {digest: description}
    assert sql(store, "SELECT DISTINCT machine FROM workers") == [(digest,)]
    other = store.record_machine(workers[0], {"name": "another"})
    assert len(store.machines()) == 2 and other != digest
