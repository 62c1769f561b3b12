"""Runs of other networks and data, and names that are unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.run_cases import SMALL

from causalprune.errors import (
    InvalidArgumentError,
    UnknownNameError,
)
from causalprune.experiments import build_network, preparation, run_experiment
from causalprune.measures import count_macs, count_parameters, parameter_bytes
from causalprune.scoring import Scores


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "alexnot"}, r"unknown network 'alexnot'.*lenet5"),
        ({"data": "cifar"}, r"unknown data set 'cifar'; known: .*cifar10.*digits"),
        ({"methods": ("magic",)}, r"unknown scoring method 'magic'; known: .*path"),
    ],
)
def test_unknown_names_list_the_known_ones_and_write_nothing(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UnknownNameError, match=words):
        run_experiment(replace(SMALL, **changes), tmp_path / "run", progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgumentError, match="device: 'cuda' is not there"):
        run_experiment(replace(SMALL, device="cuda"), tmp_path / "run", progress=False)


@pytest.mark.parametrize("network", ["lenet300", "debbi"])
def test_other_networks(tmp_path: Path, network: str) -> None:
    config = replace(
        SMALL, network=network, methods=("path",), ratios=(0.6,), checkpoints=1, ratio_of="macs"
    )
    result = run_experiment(config, tmp_path / "run", progress=False)
    row = result.trials.iloc[0]
    assert row["status"] == "ok", row["error"]
    assert row["achieved_ratio_macs"] == pytest.approx(0.6, abs=0.05)
    model = build_network(network)
    image = torch.zeros(1, 1, 28, 28)
    assert row["macs"] < count_macs(model, image) and row["parameters"] < count_parameters(model)
    assert row["parameter_bytes"] < parameter_bytes(model)


def test_the_record_says_which_outcome_each_method_measured(tmp_path: Path) -> None:
    config = replace(
        SMALL, methods=("taylor", "l1", "snip"), ratios=(0.5,), checkpoints=1, epochs=1,
        retrain_epochs=0, outcome="logits",
    )  # fmt: skip
    run_experiment(config, tmp_path / "run", progress=False)
    checks = json.loads((tmp_path / "run" / "checks.json").read_text())
    assert checks["outcome"] == "logits" and not checks["problems"]
    used = {"taylor": "logits", "ablation": "logits", "snip": "loss", "l1": ""}
    assert checks["outcomes"] == used


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 60), ("black", 5)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(generator.normal(level, 10, (32, 32)), 0, 255).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    config = replace(
        SMALL,
        data=str(tmp_path / "data"),
        methods=("path",),
        ratios=(0.5,),
        checkpoints=1,
        train_limit=None,
        test_limit=None,
        calibration=20,
        epochs=10,
        batch_size=8,
    )
    row = run_experiment(config, tmp_path / "run", progress=False).trials.iloc[0]
    assert (row["status"], row["dataset"], row["n_test"]) == ("ok", "data", 22)
    assert row["accuracy"] > 0.9


def test_stages_are_named_once_off_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, methods=("l1",), ratios=(0.5,), checkpoints=1, epochs=1)
    run_experiment(config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines] == [
        "training lenet5 on digits",
        "scoring units by l1",
        "1 trials",
    ]


def test_real_mnist(real_data: Path, tmp_path: Path) -> None:
    config = replace(
        SMALL,
        data="mnist",
        data_root=str(real_data),
        methods=("path",),
        ratios=(0.0, 0.6),
        checkpoints=1,
        epochs=2,
        train_limit=6_000,
        test_limit=1_000,
        calibration=128,
    )
    result = run_experiment(config, tmp_path / "run", progress=False)
    trials = result.trials.set_index("ratio")
    assert trials.loc[0.0, "accuracy"] > 0.93
    assert trials.loc[0.6, "accuracy"] > 0.9
    assert trials.loc[0.6, "parameters"] < 0.45 * trials.loc[0.0, "parameters"]


def test_a_run_does_without_explanations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Scores:
        raise ZeroDivisionError("no map")

    monkeypatch.setattr(preparation, "explained", broken)
    config = replace(SMALL, methods=("l1",), ratios=(0.5,), checkpoints=1, epochs=1)
    for name, explain in (("asked", None), ("not", False)):
        result = run_experiment(replace(config, explain=explain), tmp_path / name, progress=False)
        assert result.n_failed == 0
    scores = Scores.load(tmp_path / "asked" / "scores" / "0-l1.npz")
    assert scores.notes[-1] == "explanatory graphs could not be made (ZeroDivisionError: no map)"
    assert Scores.load(tmp_path / "not" / "scores" / "0-l1.npz").notes == scores.notes[:-1]
