"""Configurations: checked on construction, the same after a round trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments import RunConfig
from causalprune.experiments.config import _SINCE_THE_SCHEMA
from causalprune.experiments.design import derive_seed, trial_cells


def test_round_trip_through_json() -> None:
    config = RunConfig(methods=("l1", "path"), ratios=(0.25, 0.0), train_limit=100, threads=2)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    earlier = {
        name: value for name, value in config.to_dict().items() if name not in _SINCE_THE_SCHEMA
    }
    assert RunConfig.from_dict(earlier) == config


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ratios": (0.5, 1.0)}, r"ratios: expected values in \[0, 1\), got 1"),
        ({"ratios": (-0.1,)}, r"ratios: expected values in \[0, 1\), got -0\.1"),
        ({"ratios": (float("nan"),)}, "ratios"),
        ({"ratios": ()}, "ratios: expected at least one"),
        ({"methods": ("l1", "l1")}, "methods: each may appear only once"),
        ({"ratio_of": "flops"}, "ratio_of: expected one of parameters, macs, units, got 'flops'"),
        ({"scope": "all"}, "scope"),
        ({"checkpoints": 0}, "checkpoints: expected at least 1, got 0"),
        ({"epochs": -1}, "epochs: expected at least 0"),
        ({"seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"threads": True}, "threads: expected an integer"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"retrain_learning_rate": "fast"}, "retrain_learning_rate"),
        ({"optimiser": "lion"}, "optimiser: expected one of adam, sgd"),
        ({"augment": "blur"}, "augment: expected one of none, crop_flip"),
        ({"latency_batches": (0,)}, "latency_batches: expected at least 1, got 0"),
        ({"latency_batches": (1.5,)}, "latency_batches: expected an integer, got 1.5"),
        ({"latency_batches": (8, 16)}, r"latency_batches: .* only once, got \[16, 8, 16\]"),
        ({"device": "tpu"}, "device: expected auto, cpu, cuda"),
        ({"image_size": 0}, "image_size: expected at least 1, got 0"),
        ({"image_size": "32"}, "image_size: expected an integer, got '32'"),
        ({"weights": 3}, "weights: expected the path of a file or folder, got 3"),
        ({"explain": 1}, "explain: expected true, false or none, got 1"),
        ({"check_by_ablation": "no"}, "check_by_ablation: expected true or false, got 'no'"),
    ],
)
def test_values_out_of_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        RunConfig(**wrong)


def test_differences_name_the_fields() -> None:
    assert RunConfig(seed=1).differences(RunConfig(seed=2, methods=("l1",))) == [
        "methods: ['path', 'l1', 'random'] -> ['l1']",
        "seed: 1 -> 2",
    ]


def test_other_schemas_and_missing_fields_are_refused() -> None:
    with pytest.raises(RecordError, match="schema 99, expected 1"):
        RunConfig.from_dict(RunConfig().to_dict() | {"schema": 99})
    values = RunConfig().to_dict()
    del values["seed"]
    with pytest.raises(RecordError, match="fields are missing: seed"):
        RunConfig.from_dict(values)


def test_records_from_before_a_field_are_read_as_its_default() -> None:
    values = RunConfig().to_dict()
    assert not {"image_size", "weights", "check_by_ablation", "explain"} & set(values)
    later = RunConfig(image_size=64, weights="a.pt", check_by_ablation=False, explain=True)
    assert RunConfig.from_dict(values) == RunConfig()
    assert RunConfig.from_dict(later.to_dict()) == later
    assert RunConfig().differences(later) == [
        "image_size: None -> 64",
        "weights: None -> a.pt",
        "check_by_ablation: True -> False",
        "explain: None -> True",
    ]


def test_classes_are_explained_where_ablation_is_affordable() -> None:
    assert RunConfig().explains and not RunConfig(check_by_ablation=False).explains
    assert not RunConfig(explain=False).explains
    assert RunConfig(explain=True, check_by_ablation=False).explains


def test_every_cell_once_in_an_order_that_follows_the_seed() -> None:
    config = RunConfig(checkpoints=2, methods=("l1", "random"), ratios=(0.0, 0.5, 0.9))
    cells = trial_cells(config)
    assert [cell.order for cell in cells] == list(range(12))
    assert sorted(cell.trial for cell in cells) == list(range(12))
    assert len({(cell.checkpoint, cell.method, cell.ratio) for cell in cells}) == 12
    assert len({cell.seed for cell in cells}) == 12
    assert cells == trial_cells(config)
    other = trial_cells(RunConfig(**{**config.__dict__, "seed": 1}))
    assert [cell.trial for cell in other] != [cell.trial for cell in cells]


def test_order_is_mixed_over_checkpoints() -> None:
    checkpoints = [cell.checkpoint for cell in trial_cells(RunConfig())]
    assert checkpoints != sorted(checkpoints)


def test_seeds_do_not_change_between_versions() -> None:
    assert derive_seed(0, "checkpoint", 0) == 0x7FFFFFFF & int.from_bytes(
        __import__("hashlib").sha256(b"(0, 'checkpoint', 0)").digest()[:4], "big"
    )


def test_learning_rates_suit_the_optimiser() -> None:
    assert RunConfig().learning_rates() == (2e-3, 1e-3)
    assert RunConfig(optimiser="sgd").learning_rates() == (0.1, 0.1)
    assert RunConfig(optimiser="sgd", retrain_learning_rate=0.02).learning_rates() == (0.1, 0.02)


def test_a_default_of_a_later_release_is_not_written() -> None:
    values = RunConfig(learning_rate=0.01).to_dict()
    assert not {"optimiser", "augment"} & set(values)
    assert RunConfig.from_dict(values) == RunConfig(learning_rate=0.01)
