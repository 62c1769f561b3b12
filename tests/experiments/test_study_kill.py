"""Whole studies whose workers are killed at random moments, compared with one that ran through."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
from experiments.study_cases import repeatable, study_in

from causalprune.experiments.study import Study

TEXT = """\
methods: [l1, random]
ratios: [0.0, 0.1, 0.3, 0.4, 0.6, 0.7]
checkpoints: 2
epochs: 3
retrain_epochs: 1
calibration: 40
train_limit: 240
test_limit: 60
latency_repeats: 1
latency_batch: 2
device: cpu
blocks:
- {network: lenet5}
- {network: lenet300}
"""

# Workers forked from a process that has imported everything. What each is at, and how often that
# has changed, is read from memory that they share, also after their end. Each is killed a random
# while after a random number of changes, so that moments vary on slow machines as on fast ones.
WORK = """
import functools, json, mmap, os, random, signal, sys, time
import sklearn.datasets, torch.utils.flop_counter
from causalprune.experiments import prepared, study_local, trial
from causalprune.experiments.store import StudyStore
from causalprune.experiments.study import Study

# However often its workers are killed, none of these trials is to blame.
StudyStore.create = functools.partial(StudyStore.create, max_attempts=10**6)
# Measured in a process that imports torch for every worker anew: seconds, and not of interest here.
prepared.start_measuring_process = lambda: None
trial._peak_memory = lambda setting, small: {}
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports what takes seconds
AT = ("starting", "preparing", "in a trial", "recording", "between")
OVER = 255
shared = mmap.mmap(-1, 4096)
mine = 0

def enter(code):
    shared[2 * mine] = code
    shared[2 * mine + 1] = min(shared[2 * mine + 1] + 1, OVER - 1)

def marked(function, name):
    def called(*given, **named):
        enter(AT.index(name))
        try:
            return function(*given, **named)
        finally:
            enter(AT.index("between"))
    return called

study_local.prepared_block = marked(study_local.prepared_block, "preparing")
study_local.study_row = marked(study_local.study_row, "in a trial")
StudyStore.finish = marked(StudyStore.finish, "recording")

def start(folder, number):
    global mine
    pid = os.fork()
    if pid == 0:
        mine, code = number, 1
        try:
            Study.from_file(sys.argv[1], folder).run(progress=False)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            shared[2 * mine + 1] = OVER
            os._exit(code)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def victim():
    while True:
        for slot, (_, number, changes) in enumerate(workers):
            if shared[2 * number + 1] >= changes:
                return slot
        time.sleep(0.0005)

def begun(number):
    return start(sys.argv[3], number), number, generator.randrange(10)

generator = random.Random()
ends, moments = [ended(start(sys.argv[2], 0))], []
workers = [begun(1), begun(2)]
while len(moments) < 20 and len(ends) < 10:
    slot = victim()
    pid, number, _ = workers[slot]
    time.sleep(generator.choice([0.001, 0.03, 0.2]) * generator.random())
    os.kill(pid, signal.SIGKILL)
    status = ended(pid)
    if status == -signal.SIGKILL:
        moments.append(AT[shared[2 * number]])
    else:
        ends.append(status)
    workers[slot] = begun(len(moments) + len(ends) + 2)
ends += [ended(pid) for pid, _, _ in workers]
print(json.dumps([moments, ends]))
"""


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    study = study_in(tmp_path, TEXT)
    undisturbed = Study(study.spec, tmp_path / "undisturbed")
    file = tmp_path / "small.yaml"
    answer, errors = tmp_path / "answer.json", tmp_path / "errors"
    with answer.open("w") as to, errors.open("w") as wrong:
        command = [sys.executable, "-W", "ignore", "-c", WORK, file]
        done = subprocess.run(
            [*command, undisturbed.folder, study.folder], stdout=to, stderr=wrong, timeout=600
        )
    assert done.returncode == 0 and errors.read_text() == ""
    moments, ends = json.loads(answer.read_text())
    assert len(moments) == 20 and set(ends) == {0}
    struck = Counter(moments)
    # All come by chance; these two last so long that they are never all missed.
    assert struck["preparing"] and struck["in a trial"], struck
    frame = study.frame()
    assert sorted(frame["trial"]) == list(range(48))
    assert (frame["status"] == "ok").all(), frame["error"].dropna().unique()
    pd.testing.assert_frame_equal(repeatable(frame), repeatable(undisturbed.frame()))
    # What a kill in the middle of a write left: told of, and of no trial.
    assert [text for text in study.doctor() if "cut short" not in text] == []


def test_the_command_goes_on_after_a_kill(tmp_path: Path) -> None:
    text = (
        TEXT.partition("blocks:")[0]
        .replace("checkpoints: 2", "checkpoints: 1")
        .replace("[l1, random]", "[l1]")
    )
    study = study_in(tmp_path, text)
    command = [sys.executable, "-m", "causalprune", "study"]
    first = subprocess.Popen([*command, "run", str(tmp_path / "small.yaml")])
    until = time.monotonic() + 120
    while not (study.folder / "study.db").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    last = subprocess.run(
        [*command, "resume", str(study.folder)], capture_output=True, text=True, timeout=300
    )
    assert last.returncode == 0, last.stderr
    assert "6 trials recorded, 0 failed" in last.stdout
    assert sorted(study.frame()["trial"]) == list(range(6))
    assert study.doctor() == []
