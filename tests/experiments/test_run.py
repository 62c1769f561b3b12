"""The experiment as a whole: what it records, that it repeats itself, that nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from experiments.run_cases import SMALL

import causalprune
from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    OutputExistsError,
    RecordError,
)
from causalprune.experiments import RunConfig, RunResult, build_network, read_trials, run_experiment
from causalprune.experiments.class_rows import CLASS_COLUMNS
from causalprune.experiments.outputs import checkpoint_file
from causalprune.experiments.prepared import filled_in, splits_of
from causalprune.experiments.records import MEASURED_COLUMNS, TRIAL_COLUMNS
from causalprune.experiments.weights import load_weights, save_weights, state_digest
from causalprune.pruning.training import correct_images
from causalprune.scoring import METHODS, Scores, register_method


def _fixed(trials: pd.DataFrame) -> pd.DataFrame:
    """Only what must be the same from run to run."""
    return trials.drop(columns=list(MEASURED_COLUMNS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run_experiment(SMALL, tmp_path_factory.mktemp("run"), progress=False)


def test_every_cell_has_a_complete_row(finished: RunResult) -> None:
    trials = finished.trials
    assert len(trials) == 12 and finished.n_failed == 0 and finished.failures == []
    assert trials["order"].tolist() == list(range(12))
    may_be_missing = {"error", "counters_reason", "gpu_reason", "gpu_memory_bytes"}
    may_be_missing |= {"gpu_load_percent", "gpu_power_watts", "cpu_frequency_mhz"}
    may_be_missing |= {"instructions", "cycles", "branch_misses", "l1d_misses", "llc_misses"}
    may_be_missing |= {"cpu_energy_joules", "energy_reason", "gpu_energy_joules"}
    may_be_missing |= {"peak_process_bytes", "peak_gpu_bytes", "peak_memory_reason"}
    for column in TRIAL_COLUMNS:
        assert column.name in may_be_missing or trials[column.name].notna().all(), column.name
    assert set(trials["assignment_probability"]) == {1 / 6}
    pd.testing.assert_frame_equal(read_trials(finished.out), trials)


def test_pruned_networks_are_really_smaller(finished: RunResult) -> None:
    trials = finished.trials
    full, half, tenth = (trials[trials["ratio"] == ratio] for ratio in (0.0, 0.5, 0.9))
    assert (full["parameters"] == 61_706).all() and (full["macs"] == 416_520).all()
    for name in ("parameters", "macs", "parameter_bytes", "memory_bytes"):
        assert half[name].max() < full[name].min()
        assert tenth[name].max() < half[name].min()
    # Activations shrink only where filters of the first, largest maps go: here by "random".
    assert tenth["peak_activation_bytes"].max() <= full["peak_activation_bytes"].min()
    assert tenth["peak_activation_bytes"].min() < full["peak_activation_bytes"].min()
    assert half["achieved_ratio"].between(0.45, 0.55).all()
    assert tenth["achieved_ratio"].between(0.85, 0.95).all()
    assert (
        trials["memory_bytes"] == trials["parameter_bytes"] + trials["peak_activation_bytes"]
    ).all()
    assert (trials["parameter_bytes"] == 4 * trials["parameters"]).all()


def test_pruned_equals_masked(finished: RunResult) -> None:
    assert (finished.trials["output_difference"] <= 1e-4).all()
    assert (finished.trials.loc[finished.trials["ratio"] == 0, "output_difference"] == 0).all()


def test_kept_units_explain_the_parameters(finished: RunResult) -> None:
    for row in finished.trials.to_dict("records"):
        kept = json.loads(row["kept_units"])
        a, b, c, d = (kept[name] for name in ("conv1", "conv2", "fc1", "fc2"))
        parameters = 26 * a + b * (25 * a + 1) + c * (25 * b + 1) + d * (c + 1) + 10 * (d + 1)
        assert row["parameters"] == parameters


def test_layers_explain_the_achieved_ratio(finished: RunResult) -> None:
    total = {"conv1": 150, "conv2": 2_400, "fc1": 48_000, "fc2": 10_080, "fc3": 840}
    for row in finished.trials.to_dict("records"):
        gone, kept = json.loads(row["achieved_ratio_by_layer"]), json.loads(row["kept_units"])
        assert list(gone) == list(total)
        left = {
            "conv1": 25 * kept["conv1"],
            "conv2": 25 * kept["conv1"] * kept["conv2"],
            "fc1": 25 * kept["conv2"] * kept["fc1"],
            "fc2": kept["fc1"] * kept["fc2"],
            "fc3": 10 * kept["fc2"],
        }
        for layer, share in gone.items():
            assert share == pytest.approx(1 - left[layer] / total[layer], abs=1e-6)


def test_classes_explain_the_accuracies(finished: RunResult) -> None:
    """Counted again from the weights on disk, and the same images as behind the accuracy."""
    splits = splits_of(filled_in(SMALL))
    labels, model = splits.test[1], build_network("lenet5", 10)
    for row in finished.trials.to_dict("records"):
        after, before, changes = (json.loads(row[name]) for name in CLASS_COLUMNS)
        assert list(after) == list(before) == list(changes) == list(splits.classes)
        n, lost, won = (sum(each[k] for each in changes.values()) for k in range(3))
        assert n == row["n_test"] and (lost - won) / n == pytest.approx(row["accuracy_loss"])
        for name, (images, gone, come) in changes.items():
            assert images == (labels == int(name)).sum()
            assert before[name] - after[name] == pytest.approx((gone - come) / images, abs=2e-6)
        load_weights(model, checkpoint_file(finished.out, row["checkpoint"]))
        right = correct_images(model, splits.test)
        expected = [right[labels == each].double().mean().item() for each in range(10)]
        assert list(before.values()) == pytest.approx(expected, abs=1e-6)


def test_costs_are_measured_as_the_row_says(finished: RunResult) -> None:
    for row in finished.trials.to_dict("records"):
        timed = json.loads(row["latency_by_batch"])
        assert list(timed) == ["2", "7", "3"]
        assert [timed["2"][name] for name in ("median_ms", "q25_ms", "q75_ms")] == [
            row["latency_ms"],
            row["latency_q25_ms"],
            row["latency_q75_ms"],
        ]
        for timing in timed.values():
            assert 0 < timing["q25_ms"] <= timing["median_ms"] <= timing["q75_ms"]
        assert (row["latency_repeats"], row["latency_warmup"], row["block"]) == (2, 5, 0)
        assert row["macs_counter"] == "torch.utils.flop_counter / 2"
        process, gpu = row["peak_process_bytes"], row["peak_gpu_bytes"]
        for name, value in (("peak_process_bytes", process), ("peak_gpu_bytes", gpu)):
            assert pd.isna(value) == (name in str(row["peak_memory_reason"]))
        assert pd.isna(process) or process >= row["parameter_bytes"] // 2
        assert pd.isna(row["cpu_energy_joules"]) == pd.notna(row["energy_reason"])


def test_checkpoints_are_named_by_their_weights(finished: RunResult) -> None:
    digests = finished.trials.groupby("checkpoint")["checkpoint_digest"].unique()
    for number, found in digests.items():
        model = build_network("lenet5")
        load_weights(model, finished.out / "checkpoints" / f"{number}.pt")
        assert found.tolist() == [state_digest(model)]
        model.get_parameter("fc3.bias").data[3] += 1e-3
        assert state_digest(model) != found[0]
    assert digests[0] != digests[1]


def test_accuracies_are_of_the_saved_checkpoint(finished: RunResult) -> None:
    trials = finished.trials
    at_zero = trials[trials["ratio"] == 0]
    assert (at_zero["accuracy_pruned"] == at_zero["accuracy_before"]).all()
    assert trials.groupby("checkpoint")["accuracy_before"].nunique().eq(1).all()
    loss = trials["accuracy_before"] - trials["accuracy"]
    assert (loss - trials["accuracy_loss"]).abs().max() < 1e-12
    assert (trials["n_test"] == 120).all()


def test_what_lies_in_the_folder(finished: RunResult) -> None:
    out = finished.out
    assert {entry.name for entry in out.iterdir()} == {
        "checkpoints",
        "checks.json",
        "config.json",
        "machine.json",
        "scores",
        "trials.csv",
    }
    assert sorted(file.name for file in (out / "scores").iterdir()) == [
        f"{number}-{method}.npz" for number in (0, 1) for method in ("ablation", "path", "random")
    ]
    model = build_network("lenet5")
    load_weights(model, out / "checkpoints" / "1.pt")
    scores = Scores.load(out / "scores" / "1-path.npz")
    assert len(scores.frame) == 226 and scores.method == "path"
    config = json.loads((out / "config.json").read_text())
    assert RunConfig.from_dict(config) == SMALL


def test_the_first_scores_explain_the_classes(finished: RunResult) -> None:
    files = sorted((finished.out / "scores").iterdir())
    holding = [file.name for file in files if "graph checks" in Scores.load(file).tables]
    assert holding == ["0-path.npz"]
    scores = Scores.load(finished.out / "scores" / "0-path.npz")
    checks = scores.tables["graph checks"].set_index("class")
    explained = checks.index[checks["reason"] == ""]
    assert len(explained) > 0
    assert set(scores.tables["graph examples"]["class"]) == set(explained)
    assert "class" in "".join(checks["reason"]) or len(explained) == 10
    # In the digits' own grey values: black behind the digit, near white within.
    pixels = scores.tables["graph pixels"]
    for _, own in pixels.groupby("class"):
        assert own["red"].min() == 0 and own["red"].max() > 150
    assert scores.graph(int(explained[0])).layers[0].layer == "fc3"


def test_path_effects_are_checked_against_exact_ablation(finished: RunResult) -> None:
    checks = json.loads((finished.out / "checks.json").read_text())
    assert checks == finished.checks and checks["problems"] == []
    whole = {
        (row["method"], row["checkpoint"]): row
        for row in checks["comparisons"]
        if row["layer"] == "all"
    }
    for number in (0, 1):
        assert whole["path", number]["spearman_importance"] > 0.9
        assert abs(whole["random", number]["spearman_importance"]) < 0.5
        assert whole["random", number]["spearman_effect"] is None


def test_an_existing_folder_is_not_overwritten(finished: RunResult, tmp_path: Path) -> None:
    before = (finished.out / "trials.csv").read_bytes()
    with pytest.raises(OutputExistsError, match="--resume"):
        run_experiment(SMALL, finished.out, progress=False)
    assert (finished.out / "trials.csv").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a file"):
        run_experiment(SMALL, tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RecordError, match=r"no config\.json"):
        run_experiment(SMALL, tmp_path, resume=True, progress=False)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_another_configuration_cannot_be_resumed(finished: RunResult) -> None:
    other = replace(SMALL, seed=1, ratios=(0.0, 0.5))
    with pytest.raises(
        InvalidArgumentError, match=r"ratios: \[0\.0, 0\.5, 0\.9\] -> \[0\.0, 0\.5\]; seed: 0 -> 1"
    ):
        run_experiment(other, finished.out, resume=True, progress=False)


def test_resuming_a_finished_run_changes_nothing(finished: RunResult) -> None:
    before = (finished.out / "trials.csv").read_bytes()
    run_experiment(SMALL, finished.out, resume=True, progress=False)
    assert (finished.out / "trials.csv").read_bytes() == before


def test_broken_rows_are_not_built_upon(finished: RunResult, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(finished.out, tmp_path / "copy")
    table = copy / "trials.csv"
    text = table.read_text()
    last = text.rstrip("\n").rindex("\n") + 1
    table.write_text(text[: last + text[last:].index(",") + 2])
    with pytest.raises(RecordError, match=r"trials\.csv"):
        run_experiment(SMALL, copy, resume=True, progress=False)
    table.write_text(text.replace(",random,", ",l1,"))
    with pytest.raises(RecordError, match="not of the experiment"):
        run_experiment(SMALL, copy, resume=True, progress=False)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from causalprune.experiments import RunConfig, records, run_experiment

    out, name, survive = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    replace, seen = os.replace, []

    def deadly(source, target):
        # Just before the new file takes its place: the temporary file is complete and left over.
        if Path(target).name == name:
            seen.append(target)
            if len(seen) > survive:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = deadly
    import json
    config = RunConfig.from_dict(json.loads(sys.argv[4]))
    run_experiment(config, out, progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize(
    ("name", "survive", "rows"),
    [("trials.csv", 5, 5), ("1-path.npz", 0, None), ("config.json", 0, None)],
)
def test_a_killed_run_keeps_its_rows_and_resumes_to_the_same_table(
    finished: RunResult, tmp_path: Path, name: str, survive: int, rows: int | None
) -> None:
    out = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(Path(causalprune.__file__).parents[1])}
    arguments = [str(out), name, str(survive), json.dumps(SMALL.to_dict())]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if rows is None:
        assert not (out / "trials.csv").exists()
    else:
        assert len(read_trials(out)) == rows
        kept = read_trials(out)
    result = run_experiment(SMALL, out, resume=True, progress=False)
    pd.testing.assert_frame_equal(_fixed(result.trials), _fixed(finished.trials))
    assert result.checks == finished.checks
    if rows is not None:
        pd.testing.assert_frame_equal(result.trials.head(rows)[kept.columns], kept)
    left_over = [file for file in out.rglob(".*") if file.is_file()]
    assert left_over == []


@pytest.fixture
def broken_method() -> Iterator[str]:
    @register_method("broken-test", needs_data=False, needs_labels=False)
    def broken(job):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such luck")

    yield "broken-test"
    METHODS.pop("broken-test")


def test_a_trial_that_fails_is_recorded_and_tried_again(tmp_path: Path, broken_method: str) -> None:
    config = replace(SMALL, methods=("l1", broken_method), ratios=(0.0, 0.5), checkpoints=1)
    result = run_experiment(config, tmp_path / "run", progress=False)
    assert result.trials.groupby("method")["status"].unique().to_dict() == {
        "l1": ["ok"],
        broken_method: ["failed"],
    }
    assert result.n_failed == 2 and "2 x RuntimeError" in result.failures[0]
    failed = result.trials[result.trials["status"] == "failed"]
    assert failed["error"].str.contains("no such luck").all()
    assert failed["accuracy"].isna().all() and failed["accuracy_before"].notna().all()
    assert result.checks["problems"][0]["method"] == broken_method
    METHODS[broken_method] = replace(METHODS["random"], name=broken_method)
    again = run_experiment(config, tmp_path / "run", resume=True, progress=False)
    assert again.n_failed == 0 and len(again.trials) == 4
    assert again.trials["parameters"].dtype == "int64"


def test_weights_take_the_place_of_training(tmp_path: Path, finished: RunResult) -> None:
    file = tmp_path / "lenet.pt"
    model = build_network("lenet5")
    load_weights(model, finished.out / "checkpoints" / "1.pt")
    save_weights(model, file)
    config = replace(SMALL, methods=("random",), ratios=(0.0,), checkpoints=1)
    out = tmp_path / "run"
    result = run_experiment(config, out, weights=file, progress=False)
    theirs = finished.trials.query("checkpoint == 1")["accuracy_before"].iloc[0]
    assert result.trials["accuracy_before"].tolist() == [theirs]
    with pytest.raises(InvalidArgumentError, match="checkpoints=1"):
        run_experiment(SMALL, tmp_path / "other", weights=file, progress=False)
    folder = finished.out / "checkpoints"
    both = replace(config, checkpoints=2)
    loaded = run_experiment(both, tmp_path / "both", weights=folder, progress=False)
    assert loaded.trials["accuracy_before"].nunique() <= 2
    with pytest.raises(InvalidArgumentError, match="weights: not the ones"):
        run_experiment(
            both, tmp_path / "both", resume=True, weights=_swapped(folder, tmp_path), progress=False
        )
    (out / "checkpoints" / "0.pt").unlink()
    with pytest.raises(InvalidArgumentError, match="pass them again"):
        run_experiment(config, out, resume=True, progress=False)


def _swapped(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "swapped"
    target.mkdir()
    for number in (0, 1):
        (target / f"{number}.pt").write_bytes((folder / f"{1 - number}.pt").read_bytes())
    return target


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_weights(build_network("lenet300"), tmp_path / "a.pt")
    config = replace(SMALL, checkpoints=1)
    with pytest.raises(DataError, match="do not fit the network"):
        run_experiment(config, tmp_path / "run", weights=tmp_path / "a.pt", progress=False)
