"""The command ``causalprune score``: what it takes, what it writes, how it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli.refusals import refusal
from torch import nn
from typer.testing import CliRunner, Result

from causalprune.cli import app
from causalprune.experiments import build_network, load_data
from causalprune.experiments.model_specs import images_from, model_from
from causalprune.experiments.weights import save_weights
from causalprune.scoring import Scores, score
from causalprune.scoring.banzhaf import recorded_masks

MODEL = """
import torch
from torch import nn

__all__ = ["small"]


def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def broken():
    raise RuntimeError("no such luck")


def grown(width):
    return nn.Linear(width, width)


ready = small()
number = 3
"""


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["score", *arguments])


def _refused(*arguments: str) -> str:
    return refusal(_run(*arguments))


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """Options that name a small network in a file and images in an .npz."""
    (tmp_path / "nets.py").write_text(MODEL)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 1, 8, 8, generator=generator)
    np.savez(tmp_path / "images.npz", inputs=inputs.numpy(), targets=np.arange(12) % 3)
    torch.save((inputs, torch.arange(12) % 3), tmp_path / "images.pt")
    torch.save({"inputs": inputs}, tmp_path / "bare.pt")
    return ("--model", f"{tmp_path / 'nets.py'}:small", "--data", str(tmp_path / "images.npz"))


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_it_writes_what_score_gives(small: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, weights = _network(), tmp_path / "weights.pt"
    # As nn.DataParallel names them.
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, weights)
    out = tmp_path / "scores.npz"
    result = _run(
        *small,
        *("--weights", str(weights), "--method", "ablation", "--outcome", "margin"),
        *("--max-images", "10", "--batch-size", "4", "--units", "filters", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    images = images_from(str(tmp_path / "images.pt"), max_images=10)
    expected = score(model, images, "ablation", "margin", units="filters", batch_size=4)
    pd.testing.assert_frame_equal(Scores.load(out).frame, expected.frame, check_exact=True)
    assert "Scores(method='ablation', outcome='margin'" in result.output
    assert "most important units" in result.output and "\x1b" not in result.output
    assert result.output.splitlines()[-1] == f"scores: {out}"


def test_classes_are_explained_when_asked(small: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "scores.npz"
    arguments = (*small, "--method", "l1", "--out", str(out), "--force")
    assert _run(*arguments).exit_code == 0 and Scores.load(out).tables == {}
    assert _run(*arguments, "--explain", "all").exit_code == 0
    checks = Scores.load(out).tables["graph checks"]
    assert list(checks["class"]) == [0, 1, 2] and (checks["reason"] == "").any()
    assert _run(*arguments, "--explain", "2").exit_code == 0
    assert list(Scores.load(out).tables["graph checks"]["class"]) == [2]
    missing = _run(*small, "--out", str(tmp_path / "12.npz"), "--explain", "12")
    assert "class 12 is not explained: " in missing.output
    refused = _refused(*small, "--out", str(tmp_path / "no.npz"), "--explain", "cat")
    assert "--explain: expected classes" in refused


def test_an_existing_file_is_kept_unless_forced(small: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "scores.npz"
    out.write_text("mine")
    assert "exists; choose another file or --force" in _refused(*small, "--out", str(out))
    assert out.read_text() == "mine"
    assert _run(*small, "--out", str(out), "--force").exit_code == 0
    assert Scores.load(out).method == "path"


def test_options_of_the_method_and_the_seed(small: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("--method", "banzhaf", "--option", "n_masks=5", "--option", "q=0.4")
    more = ("--option", "estimator=regression")
    found = []
    for index, seed in enumerate(("7", "7", "8")):
        out = tmp_path / f"{index}.npz"
        result = _run(*small, *arguments, *more, "--seed", seed, "--out", str(out))
        assert result.exit_code == 0, result.output
        found.append(Scores.load(out))
    assert recorded_masks(found[0])["0"].shape == (60, 4)
    pd.testing.assert_frame_equal(found[0].frame, found[1].frame, check_exact=True)
    assert (found[0].frame["effect"] != found[2].frame["effect"]).any()
    budget = tmp_path / "budget.npz"
    assert (
        _run(*small, "--method", "banzhaf", "--budget", "48", "--out", str(budget)).exit_code == 0
    )
    assert Scores.load(budget).tables["design"]["mask"].max() == 2


def test_a_registered_network_on_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="digits ship with scikit-learn")
    weights, out = tmp_path / "lenet.pt", tmp_path / "scores.npz"
    model = build_network("lenet300", seed=4)
    save_weights(model, weights)
    result = _run(
        *("--model", "lenet300", "--weights", str(weights), "--data", "digits"),
        *("--max-images", "30", "--method", "taylor", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    expected = score(model, load_data("digits", calibration=30).calibration, "taylor")
    pd.testing.assert_frame_equal(Scores.load(out).frame, expected.frame, check_exact=True)


def test_a_module_a_ready_network_and_safetensors(
    small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = _network()
    safetensors.save_file(model.state_dict(), str(tmp_path / "weights.safetensors"))
    for spec in ("nets:small", "nets:ready"):
        found = model_from(spec, tmp_path / "weights.safetensors")
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in found.state_dict().items())
    first, again, other = (model_from("nets:small", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_images_without_targets(small: tuple[str, ...], tmp_path: Path) -> None:
    assert tuple(images_from(str(tmp_path / "bare.pt"), max_images=5).shape) == (5, 1, 8, 8)
    bare = (*small[:2], "--data", str(tmp_path / "bare.pt"))
    assert "need targets" in _refused(*bare, "--out", str(tmp_path / "a.npz"))
    result = _run(*bare, "--method", "l2", "--out", str(tmp_path / "b.npz"))
    assert result.exit_code == 0, result.output


def test_weights_from_before_batches_were_counted(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def normed():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))\n"
    )
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state, "best": 91.6}, tmp_path / "old.th")
    loaded = model_from(f"{tmp_path / 'nets.py'}:normed", tmp_path / "old.th")
    assert torch.equal(loaded[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "resnet"), "unknown network 'resnet'; known: <file.py>:<callable>"),
        (("--model", "{0}/nowhere.py:small"), "model: no such file"),
        (("--model", "{0}/nets.py:nobody"), "expected a callable 'nobody'"),
        (("--model", "{0}/nets.py:number"), "expected a callable 'number'"),
        (
            ("--model", "{0}/nets.py:broken"),
            "without arguments failed (RuntimeError: no such luck)",
        ),
        (("--model", "{0}/nets.py:grown"), "without arguments failed (TypeError"),
        (("--model", "os:getcwd"), "expected a torch.nn.Module from 'os:getcwd', got str"),
        (("--model", "no.such.package:net"), "importing 'no.such.package' failed"),
        (("--weights", "{0}/nowhere.pt"), "weights: no such file"),
        (("--weights", "{0}/images.pt"), "expected a state dictionary"),
        (("--weights", "{0}/other.pt"), "3.weight has shape (3, 12), expected (3, 144)"),
        (("--data", "cifar"), "input_shape: expected channels, height and width"),
        (("--data", "{0}/nowhere.npz"), "data: no such file"),
        (("--data", "{0}/nets.npz"), "expected arrays 'inputs' and 'targets', got ['pixels']"),
        (("--data", "{0}/broken.npz"), "not readable as .npz"),
        (("--data", "{0}/broken.pt"), "not readable as tensors"),
        (("--data", "{0}/other.pt"), "expected two tensors, inputs and targets"),
        (("--data", "cifar", "--input-shape", "1,8,8"), "unknown data set 'cifar'"),
        (("--input-shape", "8,8"), "--input-shape: expected channels,height,width"),
        (("--input-shape", "0,8,8"), "--input-shape: expected channels,height,width"),
        (("--method", "magic"), "unknown scoring method 'magic'"),
        (("--outcome", "happiness"), "unknown outcome 'happiness'"),
        (("--option", "depth=3"), "unknown option of method 'path' 'depth'"),
        (("--option", "edges"), "--option: expected name=value, got 'edges'"),
        (("--max-images", "0"), "max_images: expected a positive integer"),
        (("--confidence", "2"), "confidence: expected a number in (0, 1)"),
        (("--units", "neurons"), "unknown choice of units 'neurons'"),
        (("--intervention", "noise"), "unknown intervention 'noise'"),
        (("--device", "tpu"), "--device: expected auto, cpu or cuda, got 'tpu'"),
        (("--method", "l1", "--shards", "{0}/shards"), "'l1' is no sum over images"),
        (("--out", "{0}/nowhere/scores.npz"), "out: no such folder"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    small: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    np.savez(tmp_path / "nets.npz", pixels=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "broken.pt").write_bytes(b"no")
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    out = ("--out", str(tmp_path / "scores.npz"))
    given = dict(zip(small[::2], small[1::2], strict=True))
    changed = dict(zip(options[::2], options[1::2], strict=True))
    merged = {**given, **dict([out]), **{k: v.format(tmp_path) for k, v in changed.items()}}
    line = _refused(*(part for pair in merged.items() for part in pair))
    assert words in line
    assert not (tmp_path / "scores.npz").exists()


def test_torchrun_writes_the_file_of_one_process_and_prints_once(
    small: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*small, "--method", "ablation", "--batch-size", "5")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    together, alone = tmp_path / "together.npz", tmp_path / "alone.npz"
    shards = ("--shards", str(tmp_path / "shards"))
    command = ("-m", "causalprune", "score", *options, *shards, "--out", str(together))
    run = subprocess.run(
        [sys.executable, *launch, *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Scores(method='ablation'") == 1
    assert len(list((tmp_path / "shards").glob("shard-*.npz"))) == 3
    one = subprocess.run(
        [sys.executable, "-m", "causalprune", "score", *options, "--out", str(alone)],
        capture_output=True,
        text=True,
        timeout=300,
        # torchrun gives every process one thread.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert one.returncode == 0, one.stderr
    pd.testing.assert_frame_equal(
        Scores.load(together).frame, Scores.load(alone).frame, check_exact=True
    )
