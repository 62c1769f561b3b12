"""The command ``causalprune bench``: figures on the terminal and in a file; what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.refusals import refusal
from typer.testing import CliRunner, Result

from causalprune.cli import app
from causalprune.errors import InvalidArgumentError
from causalprune.measures.information_peers import HISTOGRAM_PEERS, Pairs
from causalprune.measures.information_timings import target_timing
from causalprune.measures.replay_timings import network_replay_timing


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.parametrize("kernel", ["sparse", "channel", "path"])
def test_figures_of_one_layer(kernel: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    kept = () if kernel == "path" else ("--kept", "0.5,0.1")
    ran = _run(
        kernel, "--layer", "64x8x8", "--batch", "2", *kept, "--seconds", "0.001", "--json", str(out)
    )
    assert ran.exit_code == 0, ran.output
    assert "64x8x8" in ran.output
    record = json.loads(out.read_text())
    assert (record["schema"], record["kernel"]) == (1, kernel)
    assert len(record["rows"]) == (1 if kernel == "path" else 2)
    for row in record["rows"]:
        assert row["batch"] == 2 and row["native_ms"] > 0
        if kernel == "path":
            assert row["times_forward"] == row["native_ms"] / min(row["forward_ms"].values())
        else:
            assert {"nchw", "channels_last"} <= set(row["dense_ms"])
            assert row["speedup"] == min(row["dense_ms"].values()) / row["native_ms"]
            assert row["gflops"] > 0 and row["peak_gflops"] > 0 and row["spread"] >= 0
    if kernel == "channel":
        assert "gather" in record["rows"][0]["peers_ms"]


def _rows(tmp_path: Path, kernel: str, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "figures.json"
    ran = _run(kernel, *arguments, "--seconds", "0.001", "--json", str(out))
    assert ran.exit_code == 0, ran.output
    record = json.loads(out.read_text())
    assert (record["schema"], record["kernel"]) == (1, kernel)
    assert "…" not in ran.output  # nothing cut off on a terminal of 80 columns
    return list(record["rows"])


def test_captum_beside_path(tmp_path: Path) -> None:
    pytest.importorskip("captum")
    (row,) = _rows(tmp_path, "path", "--layer", "64x8x8", "--batch", "2", "--peers")
    assert set(row["captum_ms"]) == {"FeatureAblation", "LayerConductance"}


def test_captum_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    (row,) = _rows(tmp_path, "path", "--layer", "64x8x8", "--batch", "2", "--peers")
    assert row["captum_ms"] == {}
    assert "pip install captum" in row["skipped"]["captum"]


def test_sensitivity(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "sensitivity", "--layer", "64x8x8", "--batch", "2")
    assert [row["aggregate"] for row in rows] == ["mean", "max"]
    for row in rows:
        assert row["times_forward"] == row["native_ms"] / min(row["forward_ms"].values())
        assert row["loop_filters"] == 4 and row["loop_ms"] > 0 and row["products_ms"] > 0
        # Four multiply-adds of two operations for every weight, position and image.
        operations = 6 * (64 * 64 * 9) * (8 * 8) * 2
        assert row["gflops"] == pytest.approx(operations / row["native_ms"] / 1e6)
        assert row["peak_gflops"] > 0


def test_information(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Pairs("small", 60, 3, 2, 1)
    monkeypatch.setattr("causalprune.measures.information_peers.HISTOGRAMS", (small,))
    monkeypatch.setattr("causalprune.measures.information_peers.TREES", (small,))
    histogram, tree = _rows(tmp_path, "mi")
    assert (histogram["operator"], tree["operator"]) == (
        "histogram_information",
        "spanning_tree_crossings",
    )
    assert histogram["native_us"] == pytest.approx(1e6 * histogram["seconds"] / 6)
    assert histogram["increments_per_second"] == pytest.approx(60 * 6 / histogram["seconds"])
    assert histogram["share_of_machine"] == pytest.approx(
        histogram["increments_per_second"] / histogram["machine_increments_per_second"]
    )
    assert tree["increments_per_second"] is None and tree["share_of_machine"] is None
    assert set(histogram["peers_us"]) == set(HISTOGRAM_PEERS) and not histogram["skipped"]
    assert tree["peers_us"]["scipy minimum_spanning_tree"] > 0


def test_information_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    monkeypatch.setattr(
        "causalprune.measures.information_peers.HISTOGRAMS", (Pairs("small", 60, 3, 2, 1),)
    )
    (row,) = _rows(tmp_path, "mi", "--layer", "small")
    assert set(row["peers_us"]) == {"numpy histogram2d", "torch bincount"}
    assert "sklearn" in row["skipped"]["sklearn mutual_info_score"]


def test_information_of_a_whole_pair_of_layers() -> None:
    timing = target_timing(Pairs("small", 60, 4, 3, 1), threads=2)
    assert (timing.operator, timing.threads, timing.pairs) == ("spanning_tree_information", 2, 12)
    assert timing.seconds > 0 and not timing.peers_us
    assert timing.cpu_seconds is not None and timing.cpu_seconds > 0


def test_information_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = Pairs("small", 60, 3, 2, 1)
    monkeypatch.setattr("causalprune.measures.information_peers.HISTOGRAMS", ())
    monkeypatch.setattr("causalprune.measures.information_peers.TREES", (small,))
    monkeypatch.setattr(target_timing, "__defaults__", (small,))
    tree, target = _rows(tmp_path, "mi", "--full")
    assert tree["threads"] == 1 and tree["cpu_seconds"] is None
    assert (target["operator"], target["threads"]) == ("spanning_tree_information", 2)


def test_replay_of_a_layer(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path, "replay", "--layer", "64x8x8", "--batch", "3")
    assert set(row["difference_ms"]) == {"nchw", "channels_last"} <= set(row["whole_ms"])
    assert row["faster_than_whole"] == min(row["whole_ms"].values()) / row["native_ms"]
    fastest = min(row["difference_ms"].values())
    assert row["faster_than_difference"] == fastest / row["native_ms"]
    outputs, inputs = 3 * 64 * 64, 3 * 64
    milliseconds = row["native_ms"] * 1e6
    assert row["gflops"] == pytest.approx(outputs * 9 * 2 / milliseconds)
    assert row["gigabytes_per_second"] == pytest.approx(4 * (2 * outputs + inputs) / milliseconds)


def test_replay_of_a_network(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path, "replay", "--layer", "network layer3.1", "--batch", "2")
    assert (row["module"], row["units"], row["images"]) == ("layer3.1", 128, 2)
    assert row["speedup"] == min(row["forward_us"].values()) / row["native_us"] > 0


def test_replay_below_no_module_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(InvalidArgumentError, match="module: expected part of one of"):
        network_replay_timing(model.eval(), torch.randn(2, 3), "other")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sparse", "--layer", "nowhere"), "--layer: expected part of one of ResNet-20"),
        (("sparse", "--batch", "none"), "--batch: expected positive numbers"),
        (("sparse", "--kept", "-1"), "--kept: expected positive numbers"),
        (("sparse", "--layer", "64x8x8", "--kept", "1.5"), "sparsities: expected numbers"),
        (("channel", "--threads", "0"), "--threads: expected at least 1"),
        (("path", "--kept", "0.5"), "--kept: expected with sparse, channel only"),
        (("sensitivity", "--kept", "0.5"), "got it with sensitivity"),
        (("mi", "--batch", "2"), "--batch: expected with"),
        (("mi", "--layer", "nowhere"), "--layer: expected part of one of 64 x 64 units"),
        (("replay", "--layer", "nowhere"), "ResNet-20 network layer1.1, "),
        (("mi", "--peers"), "--peers: expected with path only, got it with mi"),
        (("sparse", "--full"), "--full: expected with mi only, got it with sparse"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(_run(*arguments))
