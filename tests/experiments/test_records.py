"""The run table: whole or refused, written in one step, readable without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import causalprune
from causalprune.errors import RecordError
from causalprune.experiments import records
from causalprune.experiments.outputs import read_rows
from causalprune.experiments.records import TRIAL_COLUMNS, append_trial, read_trials, write_json


def _row(trial: int, order: int | None = None, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": trial, "order": trial if order is None else order}
    return row | {"status": "ok", "method": "l1", "ratio": 0.1, "seconds": 0.3} | values


def test_values_survive_exactly(tmp_path: Path) -> None:
    file = tmp_path / "trials.csv"
    row = _row(3, ratio=0.1 + 0.2, kept_units=json.dumps({"conv1": 4, "fc": 9}), error='a, "b"\nc')
    append_trial(file, [], row)
    read = read_trials(file).iloc[0]
    assert read["ratio"] == 0.1 + 0.2
    assert json.loads(read["kept_units"]) == {"conv1": 4, "fc": 9}
    assert read["error"] == 'a, "b"\nc'
    assert pd.isna(read["gpu_reason"]) and pd.isna(read["cycles"])


def test_rows_are_sorted_by_order_and_replaced_by_trial(tmp_path: Path) -> None:
    file = tmp_path / "trials.csv"
    rows = append_trial(file, [], _row(5, order=1))
    rows = append_trial(file, rows, _row(2, order=0, status="failed"))
    rows = append_trial(file, rows, _row(2, order=0))
    frame = read_trials(tmp_path)
    assert frame["trial"].tolist() == [2, 5] and set(frame["status"]) == {"ok"}
    assert frame["trial"].dtype == "int64" and frame["parameters"].dtype == "float64"


def test_all_columns_are_there_in_their_order(tmp_path: Path) -> None:
    append_trial(tmp_path / "trials.csv", [], _row(0))
    header = (tmp_path / "trials.csv").read_text().splitlines()[0]
    assert header.split(",") == [column.name for column in TRIAL_COLUMNS]
    assert len({column.name for column in TRIAL_COLUMNS}) == len(TRIAL_COLUMNS)


def test_a_table_of_the_first_version_is_read_and_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "trials.csv"
    append_trial(file, [], _row(0))
    first = [column.name for column in TRIAL_COLUMNS if column.since == 1]
    later = [column for column in TRIAL_COLUMNS if column.since > 1]
    assert later and all(column.since <= records.TABLE_VERSION for column in later)
    pd.read_csv(file, dtype=str)[first].to_csv(file, index=False)
    frame = read_trials(file)
    assert sorted(frame.columns) == sorted(column.name for column in TRIAL_COLUMNS)
    assert frame["ratio"].tolist() == [0.1]
    for column in later:
        assert frame[column.name].isna().all(), column.name
    rows = read_rows(tmp_path)
    append_trial(file, rows, _row(1, checkpoint_digest="ab", cpu_energy_joules=2.5))
    again = read_trials(file)
    assert again["cpu_energy_joules"].tolist()[1] == 2.5 and pd.isna(again["checkpoint_digest"][0])
    assert list(again.columns) == [column.name for column in TRIAL_COLUMNS]
    pd.read_csv(file, dtype=str).drop(columns="accuracy").to_csv(file, index=False)
    with pytest.raises(RecordError, match=r"columns are missing: accuracy$"):
        read_trials(file)


def test_a_failed_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trials.csv"
    rows = append_trial(file, [], _row(0))

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        append_trial(file, rows, _row(1))
    monkeypatch.undo()
    assert read_trials(file)["trial"].tolist() == [0]
    assert os.listdir(tmp_path) == ["trials.csv"]


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="unknown columns \\['flops'\\]"):
        append_trial(tmp_path / "trials.csv", [], _row(0, flops=1))


def test_missing_file_and_missing_columns(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such run table"):
        read_trials(tmp_path)
    (tmp_path / "trials.csv").write_text("trial,status\n0,ok\n")
    with pytest.raises(RecordError, match="columns are missing: order, checkpoint"):
        read_trials(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "not a readable run table"),
        (lambda text: text.replace(",ok,", ",maybe,"), "line 2: status is 'maybe'"),
        (lambda text: text.replace(",0.1,", ",much,"), "line 2: ratio is 'much', expected a num"),
        (lambda text: text + text.splitlines()[1] + "\n", "trial 0 appears twice"),
        (lambda text: text + "1,1,0\n", "status is ''"),
        (lambda text: text + "1," * 80 + "\n", "not a readable run table"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    file = tmp_path / "trials.csv"
    append_trial(file, [], _row(0))
    file.write_text(damage(file.read_text()))
    with pytest.raises(RecordError, match=words):
        read_trials(file)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(RecordError, match="not a readable run table"):
        read_trials(tmp_path)


def test_json_has_no_nan_and_must_be_an_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(RecordError, match="expected a JSON object, got list"):
        records.read_json(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(RecordError, match="not a readable JSON file"):
        records.read_json(tmp_path / "b.json")


def test_records_do_not_import_torch() -> None:
    code = (
        "import sys; import causalprune.experiments.records, causalprune.experiments.store; "
        "from causalprune.experiments import read_trials; print('torch' in sys.modules)"
    )
    # The package itself may be eager; only what the records add is judged.
    baseline = "import sys; import causalprune; print('torch' in sys.modules)"
    root = Path(causalprune.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    answers = [
        subprocess.run(
            [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        for text in (baseline, code)
    ]
    assert answers[0] == answers[1]
