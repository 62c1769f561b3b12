"""The queue and the log of a study: every trial once, whoever ends when."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from experiments.store_cases import ENDED, cells, claimed, ended_worker, sql

from causalprune.errors import (
    ClaimLostError,
    RecordError,
)
from causalprune.experiments import store_schema, store_workers
from causalprune.experiments.records import TRIAL_COLUMNS, read_trials
from causalprune.experiments.store import StudyStore, Worker
from causalprune.experiments.store_workers import life_of

# ---- queue and rows -----------------------------------------------------------------------------


def test_trials_come_in_the_randomised_order_once_each(store: StudyStore) -> None:
    worker = Worker.here()
    order = []
    while found := store.claim(worker):
        assert found.order == len(order) and found.attempt == 1 and found.last_error is None
        assert found.cell["ratio"] == found.trial / 6
        order.append(found.trial)
        assert store.finish(found.trial, worker, ENDED) == "ok"
    assert order == [cell["trial"] for cell in cells(6)]
    frame = store.read()
    assert frame["trial"].tolist() == order and frame["order"].tolist() == list(range(6))
    assert frame["ratio"].tolist() == [trial / 6 for trial in order]
    assert store.doctor() == []


def test_rows_are_as_the_run_table_reads_them(store: StudyStore, tmp_path: Path) -> None:
    worker = Worker.here()
    texts = ['a, "b"\nc', "ä\ud800", "nul\0byte"]
    for text in texts:
        row = ENDED | {"parameters": 7, "counters_reason": text, "cycles": 2**53 + 1}
        store.finish(claimed(store, worker), worker, row)
    store.finish(claimed(store, worker), worker, ENDED)
    frame = store.read()
    assert frame["accuracy_loss"].tolist() == [0.1 + 0.2] * 4
    assert frame["counters_reason"].tolist()[:3] == ['a, "b"\nc', "ä\\ud800", "nul\\0byte"]
    assert frame["trial"].dtype == "int64" and frame["cycles"].dtype == "float64"
    store.export(tmp_path / "trials.csv")
    pd.testing.assert_frame_equal(frame, read_trials(tmp_path))
    # Whole numbers are not rounded on their way into the file.
    assert f",{2**53 + 1}," in (tmp_path / "trials.csv").read_text()


def test_an_empty_study_reads_as_an_empty_table(store: StudyStore, tmp_path: Path) -> None:
    frame = store.read()
    assert len(frame) == 0 and list(frame) == [column.name for column in TRIAL_COLUMNS]
    store.export(tmp_path / "trials.csv")
    pd.testing.assert_frame_equal(frame, read_trials(tmp_path))


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"accuracy": 0.5, "accuracy_loss": math.nan}, "accuracy_loss is nan"),
        ({"accuracy": -math.inf, "accuracy_loss": 0.0}, "accuracy is -inf"),
        ({"accuracy": None, "accuracy_loss": 0.0}, "accuracy is missing"),
        ({"accuracy": 0.5}, "accuracy_loss is missing"),
    ],
)
def test_a_trial_that_diverges_is_recorded_as_failed(
    store: StudyStore, outcome: dict[str, Any], words: str
) -> None:
    worker = Worker.here()
    trial = claimed(store, worker)
    assert store.finish(trial, worker, outcome | {"parameters": 12}) == "failed"
    row = store.read().iloc[0]
    assert (row["status"], row["parameters"], row["trial"]) == ("failed", 12, trial)
    assert row["error"] == f"no finite outcome: {words}"
    assert store.status().failed == 1


def test_failures_keep_their_error_and_can_be_tried_again(store: StudyStore) -> None:
    worker = Worker.here()
    first, second = claimed(store, worker), claimed(store, worker)
    store.fail(first, worker, ValueError("two\n lines"), {"parameters": 3})
    # As experiments.trial.run_trial hands over a trial that failed.
    row = {"status": "failed", "error": "RuntimeError: no scores", "seconds": 0.1}
    assert store.finish(second, worker, row) == "failed"
    frame = store.read()
    assert frame["error"].tolist() == ["ValueError: two lines", "RuntimeError: no scores"]
    assert frame["method"].notna().all() and math.isnan(frame["accuracy"][0])
    assert store.retry_failed() == 2
    assert len(store.read()) == 0 and store.status().queued == 6
    again = store.claim(worker)
    assert again is not None and again.trial == first and again.attempt == 1
    assert again.last_error == "ValueError: two lines"
    assert store.finish(first, worker, ENDED) == "ok"
    assert store.doctor() == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"flops": 1}, r"unknown columns \['flops'\]"),
        ({"macs": 1.5}, "macs is 1.5, expected a whole number"),
        ({"macs": 2**63}, "macs is 9223372036854775808, expected a whole number"),
        ({"macs": math.inf}, "macs is inf, expected a whole number"),
        ({"macs": "many"}, "macs is 'many', expected a whole number"),
        ({"latency_ms": "slow"}, "latency_ms is 'slow', expected a number"),
        ({"machine": 3}, "machine is 3, expected text"),
        ({"method": "l2"}, "method is 'l2', the design has"),
        ({"trial": 77}, "trial is 77, the design has"),
        ({"status": "fine"}, "status is 'fine', expected ok or failed"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_the_trial_stays_held(
    store: StudyStore, row: dict[str, Any], words: str
) -> None:
    worker = Worker.here()
    trial = claimed(store, worker)
    with pytest.raises(RecordError, match=words):
        store.finish(trial, worker, ENDED | row)
    assert store.status().running == 1 and len(store.read()) == 0
    assert store.finish(trial, worker, ENDED | {"macs": 4.0}) == "ok"
    assert store.read()["macs"].tolist() == [4]


def test_status_and_time_left(store: StudyStore) -> None:
    assert store.status().seconds_per_trial is None and store.status().seconds_left() is None
    now = [100.0]
    with StudyStore.open(store.folder, monotonic=lambda: now[0]) as other:
        worker = Worker.here()
        for seconds in (4.0, 8.0):
            trial = claimed(other, worker)
            now[0] += seconds
            other.finish(trial, worker, ENDED)
        other.claim(worker)
        status = other.status()
    assert (status.queued, status.running, status.ok, status.failed) == (3, 1, 2, 0)
    assert (status.total, status.finished) == (6, 2)
    assert status.seconds_per_trial == 6.0 and status.seconds_left(2) == 12.0


# ---- claims -------------------------------------------------------------------------------------


def test_only_the_holder_records_and_only_once(store: StudyStore) -> None:
    holder, other = Worker.here(), Worker.here()
    trial = claimed(store, holder)
    with pytest.raises(ClaimLostError, match="held by another worker"):
        store.finish(trial, other, ENDED)
    with pytest.raises(ClaimLostError, match="held by another worker"):
        store.fail(trial, other, "broken")
    with pytest.raises(ClaimLostError, match="held by another"):
        store.release(trial, other)
    with pytest.raises(RecordError, match="99 is not of this study"):
        store.finish(99, holder, ENDED)
    store.finish(trial, holder, ENDED)
    with pytest.raises(ClaimLostError, match="recorded ok"):
        store.finish(trial, holder, ENDED)
    assert len(store.read()) == 1


def test_a_released_trial_is_the_next_one_again(store: StudyStore) -> None:
    worker = Worker.here()
    trial = claimed(store, worker)
    store.release(trial, worker)
    with pytest.raises(ClaimLostError, match="it is queued"):
        store.finish(trial, worker, ENDED)
    again = store.claim(Worker.here())
    assert again is not None and (again.trial, again.attempt) == (trial, 1)


def test_a_worker_gives_back_all_that_it_holds_and_nothing_else(store: StudyStore) -> None:
    worker, other = Worker.here(), Worker.here()
    done, left, others = claimed(store, worker), claimed(store, worker), claimed(store, other)
    store.finish(done, worker, ENDED)
    store.release(None, worker)
    store.release(None, worker)  # holds none by now
    status = store.status()
    assert (status.finished, status.running, status.queued) == (1, 1, 4)
    again = store.claim(Worker.here())
    assert again is not None and (again.trial, again.attempt) == (left, 1)
    store.finish(others, other, ENDED)


def test_a_trial_of_a_dead_process_is_taken_back_at_once(store: StudyStore) -> None:
    dead = ended_worker()
    trial = claimed(store, dead)
    store.put_artefact(b"half a network", "checkpoint", trial=trial, worker=dead)
    (finding,) = store.doctor()
    assert f"trial {trial} is held by process {dead.pid}" in finding and "has ended" in finding
    again = store.claim(Worker.here())
    assert again is not None and (again.trial, again.attempt) == (trial, 2)
    assert again.last_error == f"its worker ended: {dead}"
    # The network of the attempt that was cut short is not taken for this one's.
    assert store.artefacts(trial) == ()
    with pytest.raises(ClaimLostError):
        store.finish(trial, dead, ENDED)
    with pytest.raises(ClaimLostError):
        store.put_artefact(b"late", "plan", trial=trial, worker=dead)


@pytest.mark.parametrize(
    "change",
    [{"started": "12"}, {"boot": "an earlier start of this machine"}],
    ids=["number of a process used again", "machine started anew"],
)
def test_a_process_is_not_taken_for_an_earlier_one(
    store: StudyStore, change: dict[str, str]
) -> None:
    trial = claimed(store, replace(Worker.here(), **change))
    assert claimed(store, Worker.here()) == trial


def test_a_killed_child_that_nobody_waited_for_is_dead(store: StudyStore) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here = Worker.here()
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        process.kill()
        process.wait()
        pytest.skip("needs /proc")
    started = stat.read_text().rpartition(")")[2].split()[19]
    child = replace(here, pid=process.pid, started=started, token="child")
    trial = claimed(store, child)
    assert claimed(store, here) != trial
    process.kill()
    deadline = time.monotonic() + 30
    while stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claimed(store, here) == trial
    process.wait()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "a container"}])
def test_a_worker_out_of_sight_keeps_its_trial_while_its_heart_beats(
    store: StudyStore, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def jumped() -> float:
        raise AssertionError("the wall clock may jump: nobody asks it")

    monkeypatch.setattr(time, "time", jumped)
    far, near = replace(Worker.here(), **change), Worker.here()
    held = claimed(store, far)
    now = [1000.0]
    with StudyStore.open(store.folder, lease_seconds=30, monotonic=lambda: now[0]) as other:
        taken = []
        for step in range(4):
            taken.append(claimed(other, near))  # sees the heartbeat, waits for the lease
            now[0] += 29.0
            if step < 3:
                store.heartbeat(far)
        assert held not in taken
        assert "cannot be seen from here" in other.doctor()[0]
        taken.append(claimed(other, near))  # the last beat was seen only 29 s ago
        now[0] += 1.0
        assert held not in taken and claimed(other, near) == held
    with pytest.raises(ClaimLostError):
        store.finish(held, far, ENDED)


def test_a_new_reader_waits_for_the_whole_lease(store: StudyStore) -> None:
    held = claimed(store, replace(Worker.here(), host="elsewhere"))
    for start in (0.0, 1e9):  # readers whose clocks have nothing in common
        with StudyStore.open(store.folder, lease_seconds=5, monotonic=lambda t=start: t) as other:
            assert claimed(other, Worker.here()) != held


def test_beating_beats(store: StudyStore) -> None:
    worker = Worker.here()
    with store.beating(worker, every_seconds=0.01):
        deadline = time.monotonic() + 30
        while not sql(store, "SELECT 1 FROM workers WHERE heartbeat > 2"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert sql(store, "SELECT token FROM workers") == [(worker.token,)]


def test_a_trial_that_ends_every_worker_fails_in_the_end(store: StudyStore) -> None:
    with StudyStore.open(store.folder, max_attempts=2) as other:
        trial = claimed(other, ended_worker())
        assert claimed(other, ended_worker()) == trial
        assert claimed(other, Worker.here()) != trial
        row = other.read().iloc[0]
    assert (row["trial"], row["status"]) == (trial, "failed")
    assert row["error"].startswith("its worker ended 2 times without a result")
    assert isinstance(row["method"], str)


def test_another_process_must_open_the_store_itself(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = Worker.here(), os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)
    for use in (store.status, store.read, store.doctor, lambda: store.claim(worker)):
        with pytest.raises(RecordError, match="open it in this one"):
            use()


def test_a_process_that_is_hidden_is_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Worker.here()
    assert life_of(here) == "alive"

    def no_signal(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", no_signal)
    assert life_of(here) == "alive"
    assert life_of(replace(here, pid=2**31 - 1)) == "unknown"  # not among those that /proc shows


@pytest.mark.parametrize("with_psutil", [True, False])
def test_processes_of_systems_without_proc(
    with_psutil: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if with_psutil:
        pytest.importorskip("psutil", reason="psutil is not installed")
    else:
        monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(store_workers, "_PROC", tmp_path)
    here = Worker.here()
    assert bool(here.started) == with_psutil and here.boot == ""
    assert life_of(here) == "alive"
    assert life_of(replace(here, pid=ended_worker().pid)) == "dead"
    if with_psutil:
        assert life_of(replace(here, started="12.5")) == "dead"


def test_a_store_that_another_process_holds(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_schema, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(store.folder / "study.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with StudyStore.open(store.folder) as waiting:
        with pytest.raises(RecordError, match="another process held it"):
            waiting.claim(Worker.here())
        assert waiting.status().queued == 6  # readers do not wait
        holder.execute("ROLLBACK")
        holder.close()
        assert waiting.claim(Worker.here()) is not None
