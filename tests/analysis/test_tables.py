"""Where tables of trials come from, and what is said of those that are none."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pandas as pd
import pytest
from simulated_trials import simulate

from causalprune import analysis
from causalprune.analysis.tables import read_table
from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.records import TRIAL_COLUMNS
from causalprune.experiments.store import StudyStore, Worker

# What is asked beside the main effect has tests of its own.
analyze = functools.partial(analysis.analyze, time_budget_s=0)


def stored(folder: Path, table: pd.DataFrame) -> Path:
    cells = [{"trial": int(row.trial), "order": int(row.order)} for row in table.itertuples()]
    with StudyStore.create(folder, {"name": "simulated"}, cells) as store:
        worker = Worker.here()
        rows = table.set_index("trial")
        while claimed := store.claim(worker):
            row = rows.loc[claimed.trial].dropna().to_dict()
            store.finish(claimed.trial, worker, {**row, "trial": claimed.trial})
    return folder


def test_one_table_from_everywhere(tmp_path: Path) -> None:
    table = simulate(5, checkpoints=2)
    folder = stored(tmp_path / "study", table)
    table.to_csv(tmp_path / "trials.csv", index=False)
    few = table[["checkpoint", "method", "ratio", "accuracy_loss", "assignment"]]
    few.to_csv(tmp_path / "few.csv", index=False)
    few.to_parquet(tmp_path / "few.parquet")
    sources = (table, folder, folder / "study.db", tmp_path, tmp_path / "trials.csv")
    expected = analyze(table, n_simulations=0)
    for source in sources:
        assert analyze(source, n_simulations=0) == expected
    for source in (few, tmp_path / "few.csv", tmp_path / "few.parquet"):
        found = analyze(source, n_simulations=0)
        assert found.estimate == pytest.approx(expected.estimate, rel=1e-9)


def test_a_study_is_a_table(tmp_path: Path) -> None:
    from causalprune.experiments import RunConfig, Study
    from causalprune.experiments.study_spec import StudySpec

    folder = stored(tmp_path / "study", simulate(6, checkpoints=2))
    study = Study(StudySpec("any", (RunConfig(),)), folder)
    pd.testing.assert_frame_equal(read_table(study), read_table(folder))


def test_missing_columns_are_named_with_what_they_mean() -> None:
    meaning = next(column.description for column in TRIAL_COLUMNS if column.name == "checkpoint")
    with pytest.raises(RecordError, match=rf"missing columns checkpoint \({meaning}\)"):
        analyze(simulate(1).drop(columns="checkpoint"))


def test_what_is_no_table(tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"\x80\x81\n")
    with pytest.raises(RecordError, match=r"broken\.csv: not a readable table"):
        read_table(broken)
    (tmp_path / "t.parquet").write_text(json.dumps({"a": 1}))
    with pytest.raises(RecordError, match=r"t\.parquet: not a readable table"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(RecordError, match="no such run table"):
        read_table(tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match="table: expected a DataFrame, a Study"):
        read_table([1, 2])
