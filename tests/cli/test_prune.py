"""The command ``causalprune prune``: what it writes, how it is loaded, how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.refusals import refusal
from torch import nn
from typer.testing import CliRunner, Result

import causalprune as cp
from causalprune.cli import app
from causalprune.cli.prune_inputs import tolerance_of
from causalprune.experiments.model_specs import model_from

MODEL = """
import torch
from torch import nn


def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 12), nn.ReLU(), nn.Linear(12, 3),
    )


def nothing(model):
    with torch.no_grad():
        model[-1].bias.fill_(7.0)


def broken(model):
    raise RuntimeError("no such luck")
"""

LOADING = """
import json, sys
import torch
import causalprune as cp
sys.path.insert(0, sys.argv[1])
from nets import small

folder = sys.argv[2]
model = cp.apply(small(), cp.Plan.load(f"{folder}/plan.json"))
model.load_state_dict(torch.load(f"{folder}/state_dict.pt", weights_only=True))
model.eval()
inputs, _ = torch.load(f"{sys.argv[1]}/images.pt", weights_only=True)
with torch.no_grad():
    torch.save(model(inputs), f"{sys.argv[1]}/logits.pt")
"""


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prune", *arguments])


def _refused(*arguments: str) -> str:
    return refusal(_run(*arguments))


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, ...]:
    """Arguments that name a network, its weights, calibration and test images."""
    (tmp_path / "nets.py").write_text(MODEL)
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    torch.save((torch.randn(60, 1, 8, 8), torch.arange(60) % 3), tmp_path / "images.pt")
    torch.save((torch.randn(33, 1, 8, 8), torch.arange(33) % 3), tmp_path / "test.pt")
    torch.save(torch.randn(9, 1, 8, 8), tmp_path / "bare.pt")
    network = f"{tmp_path / 'nets.py'}:small"
    torch.save(model_from(network, seed=3).state_dict(), tmp_path / "weights.pt")
    return (
        *("--network", network, "--weights", str(tmp_path / "weights.pt")),
        *("--data", str(tmp_path / "images.pt"), "--test", str(tmp_path / "test.pt")),
    )


def _summary(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return content


def test_the_folder_loads_in_a_fresh_process(made: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = _run(*made, "--method", "l2", "--ratio", "0.4", "--of", "macs", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"pruned: {out}"
    assert {path.name for path in out.iterdir()} == {
        *("state_dict.pt", "plan.json", "trace.json", "trace.png", "summary.json"),
    }
    subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path), str(out)], check=True, timeout=300
    )
    model = model_from(made[1], made[3])
    plan = cp.Plan.load(out / "plan.json")
    inputs, _ = torch.load(tmp_path / "images.pt", weights_only=True)
    expected = cp.apply(model, plan, compensation="refit", data=inputs).eval()(inputs)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.allclose(found, expected, atol=1e-6)
    assert plan.after.macs < 0.65 * plan.before.macs


def test_the_summary_tells_what_was_measured(made: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "small"
    options = ("--method", "taylor", "--ratio", "0.5", "--compensation", "mean")
    assert _run(*made, *options, "--out", str(out)).exit_code == 0
    summary, plan = _summary(out), cp.Plan.load(out / "plan.json")
    for name, footprint in (("before", plan.before), ("after", plan.after)):
        measured = summary[name]
        assert isinstance(measured, dict)
        assert (measured["parameters"], measured["macs"]) == (footprint.parameters, footprint.macs)
        accuracy = measured["accuracy"]
        assert accuracy["n"] == 33 and accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        hits = accuracy["value"] * 33
        assert hits == pytest.approx(round(hits))
    change = summary["change"]
    assert isinstance(change, dict) and change["low"] <= change["value"] <= change["high"]
    model = model_from(made[1], made[3]).eval()
    inputs, targets = torch.load(tmp_path / "test.pt", weights_only=True)
    expected = (model(inputs).argmax(1) == targets).double().mean().item()
    assert summary["before"]["accuracy"]["value"] == pytest.approx(expected)  # type: ignore[index]


def test_layers_are_refitted_in_pairs(made: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "small"
    options = ("--method", "l2", "--ratio", "0.4", "--of", "macs", "--refit-layers", "pairs")
    assert _run(*made, *options, "--out", str(out)).exit_code == 0
    model, plan = model_from(made[1], made[3]), cp.Plan.load(out / "plan.json")
    inputs, _ = torch.load(tmp_path / "images.pt", weights_only=True)
    expected = cp.apply(model, plan, compensation="refit", data=inputs, refit_layers="pairs")
    found = torch.load(out / "state_dict.pt", weights_only=True)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value)
    without = cp.apply(model, plan, compensation="refit", data=inputs).state_dict()
    assert any(not torch.allclose(found[name], value) for name, value in without.items())


def test_a_plan_is_applied_again(made: tuple[str, ...], tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert _run(*made, "--method", "l1", "--ratio", "0.3", "--out", str(first)).exit_code == 0
    plan = ("--plan", str(first / "plan.json"))
    assert _run(*made, *plan, "--out", str(second)).exit_code == 0
    states = [torch.load(folder / "state_dict.pt", weights_only=True) for folder in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not (second / "trace.json").exists()
    # Without data: no accuracy, the rest as before.
    result = _run(*made[:4], *plan, "--out", str(third))
    assert result.exit_code == 0 and "accuracy" not in result.output
    assert _summary(third)["change"] is None
    line = _refused(*made, *plan, "--ratio", "0.2", "--protect", "0", "--out", str(tmp_path / "x"))
    assert "--plan: expected no --ratio, --protect beside it" in line


def test_a_progressive_run_with_retraining_and_checkpoint(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    out, again = tmp_path / "small", tmp_path / "again"
    options = (
        *("--method", "ablation", "--schedule", "progressive", "--ratio", "0.3"),
        *("--option", "chunk=0.1", "--option", "tolerance=1.0", "--held-out", "12"),
        *("--checkpoint", str(tmp_path / "run"), "--retrain", "1"),
    )
    assert _run(*made, *options, "--out", str(out)).exit_code == 0
    trace = json.loads((out / "trace.json").read_text())
    assert trace["schedule"] == "progressive" and len(trace["steps"]) > 2
    assert (tmp_path / "run" / "checkpoint.json").is_file()
    # The run is done: its checkpoint gives the same network at once.
    assert _run(*made, *options, "--out", str(again)).exit_code == 0
    states = [torch.load(folder / "state_dict.pt", weights_only=True) for folder in (out, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("options", "guarded", "held_out", "expected"),
    [
        ({}, True, None, {"tolerance": 0.05}),
        ({}, True, "30", {"tolerance": 0.05}),
        ({}, True, "new.npz", {}),  # what the network never saw is for the library's default
        ({}, False, None, {}),
        ({"tolerance": 0.2}, True, None, {}),
    ],
)
def test_training_images_are_a_lenient_guard(
    options: dict[str, float], guarded: bool, held_out: str | None, expected: dict[str, float]
) -> None:
    assert tolerance_of(options, guarded, held_out) == expected


def test_a_function_retrains(made: tuple[str, ...], tmp_path: Path) -> None:
    out, where = tmp_path / "small", tmp_path / "nets.py"
    options = ("--method", "l1", "--ratio", "0.2")
    result = _run(*made, *options, "--retrain", f"{where}:nothing", "--out", str(out))
    assert result.exit_code == 0, result.output
    state = torch.load(out / "state_dict.pt", weights_only=True)
    assert state["6.bias"].tolist() == [7.0] * 3
    line = _refused(*made, *options, "--retrain", f"{where}:broken", "--out", str(tmp_path / "x"))
    assert "--retrain: the function failed (RuntimeError: no such luck" in line


def test_a_target_out_of_reach_is_said_and_ends_with_1(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "small"
    protect = ("--protect", "0", "--ratio", "0.999", "--method", "l1")
    result = _run(*made, *protect, "--out", str(out))
    assert result.exit_code == 1, result.output
    assert "target not reached" in result.output and _summary(out)["reached"] is False


def test_a_network_of_the_library_without_data(tmp_path: Path) -> None:
    pytest.importorskip("torchvision.models")
    out = tmp_path / "small"
    result = _run(
        *("--network", "torchvision:squeezenet1_1", "--classes", "7", "--input-shape", "3,64,64"),
        *("--method", "l1", "--ratio", "0.3", "--scope", "layer", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    assert _summary(out)["network"] == "torchvision:squeezenet1_1"


def test_resnet20_on_cifar(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = _run(
        *("--network", "resnet20", "--weights", str(data_root / "weights/resnet20-12fca82f.th")),
        *("--data", "cifar-subset", "--images", "64", "--method", "l2", "--ratio", "0.2"),
        *("--of", "macs", "--out", str(out), "--data-root", str(data_root)),
    )
    assert result.exit_code == 0, result.output
    accuracy = _summary(out)["before"]["accuracy"]  # type: ignore[index]
    assert accuracy["n"] == 1017 and accuracy["value"] == pytest.approx(932 / 1017)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--network", "resnet"), "unknown network 'resnet'; known: "),
        (("--network", "caffe:resnet"), "importing 'caffe' failed"),
        (("--data", "{0}/nowhere.pt"), "data: no such file"),
        (("--data", "cifar"), "input_shape: expected channels, height and width"),
        (("--test", "{0}/bare.pt"), "has no targets"),
        (("--test", "{0}/nowhere.npz"), "test: no such file"),
        (("--held-out", "60"), "60 of 60 images asked for"),
        (("--held-out", "0"), "held_out: expected at least 1, got 0"),
        (("--held-out", "{0}/bare.pt"), "has no targets"),
        (("--images", "1"), "images: expected at least 2, got 1"),
        (("--method", "magic"), "unknown scoring method 'magic'"),
        (("--ratio", "1.5"), "ratio: expected"),
        (("--of", "flops"), "unknown"),
        (("--scope", "everywhere"), "scope"),
        (("--schedule", "later"), "unknown schedule 'later'"),
        (("--compensation", "magic"), "compensation"),
        (("--refit-layers", "magic"), "unknown choice of layers 'magic'"),
        (("--protect", "nobody"), "nobody"),
        (("--option", "depth=3"), "unknown option of method 'l1' 'depth'"),
        (("--option", "chunk"), "--option: expected name=value, got 'chunk'"),
        (("--option", "seed=3"), "unknown option of method 'l1' 'seed'"),
        (("--retrain", "soon"), "--retrain: expected a number of epochs or file.py:function"),
        (("--retrain", "{0}/nets.py:nobody"), "--retrain: expected a callable 'nobody'"),
        (("--plan", "{0}/nowhere.json", "--ratio", ""), "nowhere.json"),
        (("--input-shape", "8,8"), "--input-shape: expected channels,height,width"),
        (("--weights", "{0}/nowhere.pt"), "weights: no such file"),
        (("--device", "tpu"), "--device: expected auto, cpu or cuda"),
        (("--data", "{0}/wide.pt"), "data: the network does not take images (1, 1, 9, 9)"),
        (("--out", "{0}"), "exists; choose another folder"),
        (("--out", "{0}/no/where"), "out: no such folder"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    made: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    torch.save((torch.randn(9, 1, 9, 9), torch.arange(9) % 3), tmp_path / "wide.pt")
    given = dict(zip(made[::2], made[1::2], strict=True))
    given |= {"--method": "l1", "--ratio": "0.3", "--out": str(tmp_path / "small")}
    given |= dict(zip(options[::2], (text.format(tmp_path) for text in options[1::2]), strict=True))
    if "--plan" in given:
        del given["--method"], given["--ratio"]
    line = _refused(*(part for pair in given.items() for part in pair))
    assert words in line
    assert not (tmp_path / "small").exists()


def test_no_data_and_no_shape(made: tuple[str, ...], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "small"))
    assert "--data: expected images, or --input-shape" in _refused(*made[:4], *out)
    assert "--images: expected --data beside it" in _refused(*made[:4], "--images", "3", *out)
    shape = ("--input-shape", "1,8,8", "--method", "path")
    assert "need" in _refused(*made[:4], *shape, *out)
    folding = ("--input-shape", "1,8,8", "--method", "l1", "--compensation", "mean")
    assert "the compensation needs" in _refused(*made[:4], *folding, *out)


def test_nothing_is_left_of_a_folder_that_cannot_be_written(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from causalprune.experiments import pruned_folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pruned_folder, "write_json", full)
    before = {path.name for path in tmp_path.iterdir()}
    out = str(tmp_path / "small")
    assert "No space left" in _refused(*made, "--method", "l1", "--out", out)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_weights_named_module_and_nested_are_taken(tmp_path: Path) -> None:
    state = model_from("resnet20", seed=1).state_dict()
    nested = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": nested, "best_prec1": 91.7}, tmp_path / "weights.th")
    loaded = model_from("resnet20", tmp_path / "weights.th")
    assert isinstance(loaded, nn.Module)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
