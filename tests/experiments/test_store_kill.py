"""Workers of one study, killed at random moments: every trial is recorded once all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from experiments.store_cases import STUDY, cells

from causalprune.experiments.store import StudyStore

WORK = """
import hashlib, json, os, random, signal, sys, time
from causalprune.errors import ClaimLostError
from causalprune.experiments.store import StudyStore, Worker

folder, trial_seconds = sys.argv[1], float(sys.argv[2])

def work():
    generator = random.Random()
    # However often its workers are killed, none of these trials is to blame.
    with StudyStore.open(folder, max_attempts=10**6) as store:
        worker = Worker.here()
        while store.status().finished < store.status().total:
            claimed = store.claim(worker)
            if claimed is None:
                time.sleep(0.002)
                continue
            time.sleep(generator.uniform(0, trial_seconds))
            content = hashlib.sha256(b"%d" % claimed.trial).digest() * 1000
            digest = store.put_artefact(content, "plan", trial=claimed.trial, worker=worker)
            row = {"accuracy": 0.5, "accuracy_loss": claimed.trial / 7, "kept_units": digest,
                   "split": f"{os.getpid()}-{claimed.attempt}"}
            store.finish(claimed.trial, worker, row)

def start():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid
"""

KILL = """
workers, kills, ends = [start(), start()], 0, []
while kills < 20:
    time.sleep(random.uniform(0, 0.05))
    victim = random.randrange(2)
    os.kill(workers[victim], signal.SIGKILL)
    replaced = start()  # before the dead one is waited for: it is a zombie by now
    _, status = os.waitpid(workers[victim], 0)
    kills += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):
        ends.append(os.waitstatus_to_exitcode(status))
    workers[victim] = replaced
    if len(ends) > 20:
        break
ends += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
print(json.dumps([kills, ends]))
"""

RACE = """
workers = [start(), start()]
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]))
"""


def run(folder: Path, script: str, trial_seconds: float) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORK + script, str(folder), str(trial_seconds)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == ""
    answer: list[object] = json.loads(done.stdout)
    return answer


def check_whole(store: StudyStore, count: int) -> pd.DataFrame:
    status = store.status()
    assert (status.ok, status.total) == (count, count)
    frame = store.read()
    assert sorted(frame["trial"]) == list(range(count)) and set(frame["status"]) == {"ok"}
    assert frame["accuracy_loss"].tolist() == [trial / 7 for trial in frame["trial"]]
    # One artefact a trial, there and as it was, and nothing that a killed attempt had listed.
    kept = {artefact.trial: artefact.digest for artefact in store.artefacts()}
    assert len(store.artefacts()) == count
    assert kept == dict(zip(frame["trial"], frame["kept_units"], strict=True))
    assert [text for text in store.doctor() if "cut short" not in text] == []
    return frame


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    count = 200
    with StudyStore.create(tmp_path / "study", STUDY, cells(count)) as store:
        kills, ends = run(tmp_path / "study", KILL, 0.03)
        assert kills == 20 and set(ends) == {0}
        frame = check_whole(store, count)
        attempts = frame["split"].str.partition("-")[2].astype(int)
        assert attempts.max() > 1  # some were struck while they held a trial


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    count = 120
    with StudyStore.create(tmp_path / "study", STUDY, cells(count)) as store:
        assert run(tmp_path / "study", RACE, 0.004) == [0, 0]
        frame = check_whole(store, count)
    assert frame["split"].nunique() == 2 and frame["split"].str.endswith("-1").all()
    # Taken in the randomised order, whoever was first.
    assert frame["order"].tolist() == list(range(count))
    assert frame["trial"].tolist() == [cell["trial"] for cell in cells(count)]


def test_processes_that_make_one_study_at_once(tmp_path: Path) -> None:
    code = """
import sys
from causalprune.experiments.store import StudyStore
input()
with StudyStore.create(sys.argv[1], {"a": 1}, [{"trial": 0}, {"trial": 1}]) as store:
    print(store.study_id, store.status().queued)
"""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "study")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    answers = [maker.communicate()[0] for maker in makers]
    assert answers[0] == answers[1] and answers[0].endswith(" 2\n")
