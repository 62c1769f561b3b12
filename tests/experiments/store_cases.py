"""What the tests of a study's store share."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from dataclasses import replace
from typing import Any

from causalprune.experiments.store import StudyStore, Worker

STUDY = {"network": "lenet5", "seeds": [0, 1], "retrain": {"epochs": 2, "rate": 0.1}}
ENDED = {"accuracy": 0.9, "accuracy_loss": 0.1 + 0.2}


def cells(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Cells in an order drawn at random: the queue must follow it, not the trials' numbers."""
    numbers = random.Random(seed).sample(range(count), count)
    return [
        {"trial": number, "method": ("l1", "path")[number % 2], "ratio": number / count}
        for number in numbers
    ]


def claimed(store: StudyStore, worker: Worker) -> int:
    found = store.claim(worker)
    assert found is not None
    return found.trial


def sql(store: StudyStore, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Look into the tables, or meddle with them, behind the store's back."""
    connection = sqlite3.connect(store.folder / "study.db", isolation_level=None)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def ended_worker() -> Worker:
    """A worker whose process has ended, and whose number is free or another's."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Worker.here(), pid=process.pid, started="1")
