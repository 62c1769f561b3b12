"""Weights: round trip, foreign layouts, and files that must not be trusted."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from causalprune.errors import DataError
from causalprune.experiments.weights import load_weights, save_weights, sha256_of


def test_round_trip(tmp_path: Path) -> None:
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model(torch.randn(8, 3))
    save_weights(model, tmp_path / "a.pt")
    load_weights(other, tmp_path / "a.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_state_dict_under_a_key_and_behind_data_parallel(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.th")
    load_weights(other, tmp_path / "a.th")
    assert torch.equal(model.weight, other.weight)


def test_names_and_shapes_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 3), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"weight has shape \(3, 2\), expected \(4, 2\)"):
        load_weights(nn.Linear(2, 4), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"0\.weight is missing.*and 1 more"):
        load_weights(nn.Sequential(nn.Linear(2, 3)), tmp_path / "a.pt")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    save_weights(model, tmp_path / "a.pt")
    with pytest.raises(DataError, match="NaN"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(50)])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pt: not readable as weights"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt")


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_weights(nn.Linear(20, 20), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.pt: not readable as weights"):
        load_weights(nn.Linear(20, 20), path)


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    path, touched = tmp_path / "a.pt", tmp_path / "touched"
    torch.save({"weight": _Touch(str(touched))}, path)
    with pytest.raises(DataError, match="not readable as weights"):
        load_weights(nn.Linear(1, 1), path)
    path.write_bytes(pickle.dumps(_Touch(str(touched))))
    with pytest.raises(DataError, match="not readable as weights"):
        load_weights(nn.Linear(1, 1), path)
    assert not touched.exists()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt")
    with pytest.raises(DataError, match="cannot read"):
        sha256_of(tmp_path / "a.pt")


def test_something_else_than_a_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(DataError, match="expected a state dictionary"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt")
