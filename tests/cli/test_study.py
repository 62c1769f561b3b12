"""The commands ``causalprune study ...``: a study from its file to its table, and refusals."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from cli.refusals import refusal
from typer.testing import CliRunner, Result

from causalprune.cli import app
from causalprune.experiments.config import RunConfig
from causalprune.experiments.study import STUDY_COLUMNS, Study
from causalprune.experiments.study_file import STUDY_KEYS
from causalprune.experiments.study_spec import study_cells
from causalprune.pruning import Plan

TEXT = """\
methods: [l1]
ratios: [0.0, 0.6]
checkpoints: 1
epochs: 1
retrain_epochs: 0
calibration: 40
train_limit: 200
test_limit: 60
latency_repeats: 1
shifts: ["fog:2"]
"""


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def test_from_the_file_to_the_table(tmp_path: Path) -> None:
    file, folder = tmp_path / "small.yaml", tmp_path / "records"
    file.write_text(TEXT)
    planned = _run("plan", file, "--out", folder)
    assert planned.exit_code == 0 and "2 trials" in planned.output and not folder.exists()
    first = _run("run", file, "--out", folder, "--limit", 1)
    assert first.exit_code == 0 and "1 trials recorded, 0 failed" in first.output, first.output
    counted = " ".join(_run("status", folder).output.split())
    assert "small: 1 of 2 trials recorded; under a minute left for 1 process" in counted
    assert "method, lenet5 on digits recorded" in counted and "l1 1/2" in counted
    rest = _run("resume", folder)
    assert rest.exit_code == 0 and "2 trials recorded" in rest.output, rest.output
    assert "nothing found" in _run("doctor", folder).output
    table = tmp_path / "trials.csv"
    assert _run("export", folder, table).exit_code == 0
    assert sorted(pd.read_csv(table)["ratio"]) == [0.0, 0.6]
    kept = _run("artefacts", folder)
    assert kept.exit_code == 0 and kept.output.count("plan ") == 2, kept.output
    fetched = _run("artefacts", folder, "--trial", 1, "--kind", "plan", "--to", tmp_path / "plan")
    assert fetched.exit_code == 0 and Plan.load(tmp_path / "plan").method == "l1", fetched.output
    again = _run("artefacts", folder, "--trial", 1, "--kind", "plan", "--to", tmp_path / "plan")
    assert "exists" in refusal(again)
    assert "expected --trial and --kind" in refusal(_run("artefacts", folder, "--to", "x"))
    assert "nothing kept" in _run("artefacts", folder, "--kind", "trace").output
    told = _run("potential", folder, "--delta", 0.5)
    assert told.exit_code == 0 and "prune potential, lenet5 on digits" in told.output, told.output
    assert max(map(len, told.output.splitlines())) <= 80
    for word in ("l1", "plain images", "fog:2", "least of shifts", "50 points", "single network"):
        assert word in " ".join(told.output.split())
    assert _run("export", folder, table, "--by-shift").exit_code == 0
    assert sorted(pd.read_csv(table)["shift"]) == ["fog:2", "fog:2", "none", "none"]


def test_cells_are_run_again_and_compared_with_counterfactuals(tmp_path: Path) -> None:
    file, folder, out = tmp_path / "small.yaml", tmp_path / "small", tmp_path / "again.csv"
    ratios = "ratios: [0.0, 0.3, 0.6]\ncheck_by_ablation: false"
    file.write_text(TEXT.replace("ratios: [0.0, 0.6]", ratios).replace("points: 1", "points: 2"))
    assert _run("run", file).exit_code == 0
    told = _run("rerun", folder, "--count", 2, "--out", out)
    assert told.exit_code == 0, told.output
    rows = pd.read_csv(out)
    assert len(rows) == 2 and (~rows["ratio"].isin([0.0, 0.3, 0.6])).sum() == 1
    for words in (f"{out}, 2 trials, 0 failed", "accuracy loss: mean absolute error", "latency:"):
        assert words in told.output
    cells = tmp_path / "cells.csv"
    cells.write_text("checkpoint,method,ratio\n1,l1,0.5\n0,wt,0.5\n")
    told = _run("rerun", folder, "--cells", cells, "--out", tmp_path / "chosen.csv")
    assert told.exit_code == 0 and "1 trials lie outside" in told.output, told.output
    assert "holds other trials" in refusal(_run("rerun", folder, "--cells", cells, "--out", out))


def test_a_study_of_failures_ends_with_1(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(TEXT.replace("[l1]", "[bn_scale]"))  # LeNet-5 has no batch norm
    ran = _run("run", file)
    assert ran.exit_code == 1 and "2 failed" in ran.output and "batch norm" in ran.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run", "none.yaml"), "no such file"),
        (("status", "nowhere"), "nowhere"),
        (("potential", "nowhere"), "nowhere"),
        (("artefacts", "nowhere"), "nowhere"),
        (("export", "nowhere", "x.csv"), "nowhere"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert word in refusal(_run(*arguments))


def test_a_typing_error_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(TEXT.replace("latency_repeats", "latency_repeat"))
    said = refusal(_run("run", file))
    assert "line 9" in said and "did you mean 'latency_repeats'?" in said


def test_every_column_is_explained() -> None:
    listed = _run("columns")
    lines = dict(line.split(" (", 1) for line in listed.output.splitlines())
    assert listed.exit_code == 0 and list(lines) == [column.name for column in STUDY_COLUMNS]
    assert lines["latency_ms"].startswith("float): median time of a forward pass")


def test_the_readme_explains_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text.partition("| key of the file |")[2].partition("\n\n")[0]
    told: dict[str, str] = {}
    for row in table.splitlines()[2:]:
        keys, defaults = (cell.strip() for cell in row.split("|")[1:3])
        names = re.findall("`(.+?)`", keys)
        # One default for each key of a row, or one for all of them.
        each = defaults.split(", ") if len(names) == defaults.count(",") + 1 else [defaults]
        told |= dict(zip(names, each * (len(names) if len(each) == 1 else 1), strict=True))
    config = RunConfig()
    values = {entry.name: getattr(config, entry.name) for entry in fields(RunConfig)}
    assert set(told) == set(values) | set(STUDY_KEYS)
    for key, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in parts)
        shown = shown.lower() if isinstance(value, bool) else shown  # as YAML has it
        assert told[key] == ("none" if value in (None, ()) else shown), key


def test_the_readme_shows_a_study_that_can_be_planned(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search("```yaml\n(# small.yaml.+?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "small.yaml").write_text(found[1])
    study = Study.from_file(tmp_path / "small.yaml")
    assert len(study_cells(study.spec)) == 2 * 4 * 4 * 3 and len(study.spec.shifts) == 2
