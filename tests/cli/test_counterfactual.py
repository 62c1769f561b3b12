"""The command ``causalprune counterfactual``: a sentence, JSON, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.refusals import refusal
from simulated_trials import simulate, write_run
from typer.testing import CliRunner, Result

from causalprune.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trials = simulate(2, checkpoints=3, ratios=(0.0, 0.3, 0.6, 0.8), methods=("path", "l1"))
    return write_run(tmp_path_factory.mktemp("runs") / "run", trials)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["counterfactual", *map(str, arguments)])


def test_prints_sentence_support_and_replay_error(folder: Path) -> None:
    question = (folder, "--network", "lenet5", "--ratio", 0.5, "--method", "path")
    told = run(*question, "--machine", "machine-a", "--checkpoint", 1)
    assert told.exit_code == 0, told.output
    first, *rest = told.output.splitlines()
    assert first.startswith("lenet5 on digits (checkpoint 1) pruned by path at ratio 0.5")
    assert "accuracy loss" in first and "95 % interval" in first
    assert any("path was tried on lenet5" in line and "0 to 0.8" in line for line in rest)
    assert any(line.startswith("Replay check") and "inside" in line for line in rest)


def test_prints_json(folder: Path) -> None:
    told = run(folder, "--ratio", 0.6, "--method", "l1", "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.output)
    assert record["cell"]["ratio"] == 0.6 and record["checkpoint"] is None
    loss = record["predictions"][0]
    assert loss["outcome"] == "accuracy_loss" and loss["low"] < loss["value"] < loss["high"]
    assert record["sentence"].startswith("lenet5 on digits pruned by l1")


def test_refuses_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "at least one" in refusal(run(folder))
    assert "no such" in refusal(run(tmp_path / "absent.csv", "--ratio", 0.5)).lower()
