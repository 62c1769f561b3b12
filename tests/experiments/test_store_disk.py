"""A disk that fills and a log that was cut off: at most the trial in flight is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from experiments.store_cases import ENDED, STUDY, cells, claimed, ended_worker

from causalprune.errors import (
    RecordError,
)
from causalprune.experiments.store import StudyStore, Worker

# ---- disks --------------------------------------------------------------------------------------

FILLS_THE_DISK = """
import json, resource, sys
from causalprune.errors import RecordError
from causalprune.experiments.store import StudyStore, Worker

store, worker = StudyStore.open(sys.argv[1]), Worker.here()
if sys.argv[2] != "none":
    # No file may grow beyond this: the system refuses the write, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
done, errors = 0, []
try:
    while claimed := store.claim(worker):
        row = {"accuracy": 0.5, "accuracy_loss": 0.1, "kept_units": "x" * 20_000}
        digest = store.put_artefact(
            b"%d" % claimed.trial * 20_000, "plan", trial=claimed.trial, worker=worker
        )
        store.finish(claimed.trial, worker, row)
        done += 1
except RecordError as error:
    errors.append(str(error))
print(json.dumps([done, errors]))
"""


def check_full_disk(folder: Path, limit: str, make_room: Any) -> None:
    count = 40
    with StudyStore.create(folder, STUDY, cells(count)):
        pass
    run = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(folder), limit],
        capture_output=True,
        text=True,
        check=True,
    )
    done, errors = json.loads(run.stdout)
    assert 0 < done < count and len(errors) == 1 and "make room and start again" in errors[0]
    make_room()
    with StudyStore.open(folder) as store:
        assert store.status().ok == done
        # Open is the trial in flight; its plan may have reached the disk before the tables.
        found = store.doctor()
        assert len([text for text in found if "has ended; the next claim frees it" in text]) == 1
        assert all("has ended" in text or "belongs to no trial" in text for text in found)
        worker = Worker.here()
        while taken := store.claim(worker):
            store.finish(taken.trial, worker, ENDED)
        assert store.status().ok == count and sorted(store.read()["trial"]) == list(range(count))
        assert [text for text in store.doctor() if "belongs to no trial" not in text] == []


def test_writes_that_the_system_refuses_lose_nothing(tmp_path: Path) -> None:
    check_full_disk(tmp_path / "study", "400000", lambda: None)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small disk")

    def make_room() -> None:
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)

    try:
        check_full_disk(disk / "study", "none", make_room)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_artefact_without_room_leaves_nothing(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"cannot keep the plan .*No space left.*make room"):
        store.put_artefact(b"plan", "plan")
    monkeypatch.undo()
    assert store.artefacts() == () and store.doctor() == []


def test_a_log_cut_off_anywhere_is_a_moment_of_the_past(tmp_path: Path) -> None:
    count = 12
    store = StudyStore.create(tmp_path / "study", STUDY, cells(count))
    worker = ended_worker()
    for _ in range(count):
        store.finish(claimed(store, worker), worker, ENDED)
    # As a power cut leaves it: the log has reached the disk up to some byte, no more.
    log = (tmp_path / "study" / "study.db-wal").read_bytes()
    main = (tmp_path / "study" / "study.db").read_bytes()
    store.close()
    order = [cell["trial"] for cell in cells(count)]
    generator = random.Random()
    lengths = set()
    for number in range(12):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "study.db").write_bytes(main)
        kept = generator.randrange(len(log) // 3, len(log))
        (place / "study.db-wal").write_bytes(log[:kept] + os.urandom(generator.randrange(9000)))
        with StudyStore.open(place) as past:
            assert past.doctor() == [] or "has ended" in past.doctor()[0]
            rows = past.read()["trial"].tolist()
            assert rows == order[: len(rows)]
            lengths.add(len(rows))
            while found := past.claim(worker):
                past.finish(found.trial, worker, ENDED)
            assert past.read()["trial"].tolist() == order
    assert len(lengths) > 1
