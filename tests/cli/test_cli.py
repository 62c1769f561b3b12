"""The command line: what it prints, what it leaves behind, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.refusals import refusal
from typer.testing import CliRunner, Result

from causalprune.analysis import AnalysisResult
from causalprune.cli import app
from causalprune.experiments import RunConfig, read_trials

TINY = [
    *("--method", "path,random", "--ratios", "0,0.5,0.8", "--checkpoints", "2", "--epochs", "1"),
    *("--retrain-epochs", "1", "--train-limit", "340", "--test-limit", "100", "--device", "cpu"),
]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def _refused(*arguments: str) -> str:
    return refusal(_run(*arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("dowhy", reason="the analysis needs dowhy (extra: analysis)")
    out = tmp_path_factory.mktemp("cli") / "run"
    result = _run("run", "--quick", *TINY, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out, result.output


def test_run_leaves_table_analysis_and_report(finished: tuple[Path, str]) -> None:
    out, _ = finished
    trials = read_trials(out)
    assert len(trials) == 12 and (trials["status"] == "ok").all()
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<html" in html and "random" in html
    assert json.loads((out / "analysis.json").read_text())
    config = RunConfig.from_dict(json.loads((out / "config.json").read_text()))
    assert (config.methods, config.ratios) == (("path", "random"), (0.0, 0.5, 0.8))


def test_run_prints_a_line_a_stage_and_the_result(finished: tuple[Path, str]) -> None:
    out, output = finished
    lines = output.splitlines()
    for start in ("training lenet5", "scoring units", "12 trials", "causal analysis", "report: 1"):
        assert sum(line.startswith(start) for line in lines) == 1, output
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert "61,706" in output and "retrained" in output
    assert "\x1b" not in output


def test_resume_needs_no_options_again(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "trials.csv").read_bytes()
    result = _run("run", "--quick", "--resume", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert (out / "trials.csv").read_bytes() == before


def test_resume_with_other_options_is_refused(finished: tuple[Path, str]) -> None:
    out, _ = finished
    line = _refused("run", "--resume", "--seed", "5", "--out", str(out))
    assert "seed: 0 -> 5" in line


def test_a_run_is_repeated_from_its_configuration(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = finished
    assert "no such file" in _refused("run", "--config", str(tmp_path / "a.json"))
    config, again = str(out / "config.json"), tmp_path / "again"
    options = ("--ratios", "0.5", "--method", "random")
    result = _run("run", "--config", config, *options, "--out", str(again))
    assert result.exit_code == 0, result.output
    # One ratio is not enough for an analysis: said, and the report is written without it.
    assert "left out" in result.output and (again / "report.html").is_file()
    theirs = read_trials(out).query("ratio == 0.5 and method == 'random'")
    ours = read_trials(again)
    assert ours.sort_values("checkpoint")["accuracy"].tolist() == (
        theirs.sort_values("checkpoint")["accuracy"].tolist()
    )


def test_an_existing_folder_is_refused(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert "--resume" in _refused("run", "--out", str(out))


def test_analyze_prints_words_and_saves(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    saved = tmp_path / "effect.json"
    result = _run("analyze", str(out), "--save", str(saved))
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output and saved.is_file()
    assert "exists" in _refused("analyze", str(out), "--save", str(saved))
    assert "unknown preset" in _refused("analyze", str(out), "--preset", "nobody")


def test_analyze_takes_a_graph_of_ones_own(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    graph, saved = tmp_path / "mine.txt", tmp_path / "effect.json"
    graph.write_text("ratio -> macs -> accuracy_loss\ncheckpoint -> accuracy_loss\n")
    options = ("--graph", str(graph), "--time-budget", "0", "--save", str(saved))
    result = _run("analyze", str(out), *options)
    assert result.exit_code == 0, result.output
    found = AnalysisResult.load(saved)
    assert found.graph_name == "mine" and ("macs", "accuracy_loss") in found.edges
    assert not found.findings
    graph.write_text("ratio -> accuracy_loss -> ratio")
    assert "cycle" in _refused("analyze", str(out), "--graph", str(graph))


def test_analyze_answers_contrasts(finished: tuple[Path, str]) -> None:
    out, _ = finished
    result = _run("analyze", str(out), "--contrast", "0:0.7", "--time-budget", "0")
    assert result.exit_code == 0, result.output
    assert "prune ratio 0 to 0.7: " in result.output
    assert "'0.3-0.7'" in _refused("analyze", str(out), "--contrast", "0.3-0.7")


def test_report_does_not_overwrite(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    _refused("report", str(out))
    target = tmp_path / "again.html"
    result = _run("report", str(out), "--out", str(target))
    assert result.exit_code == 0, result.output
    assert target.is_file()
    assert _run("report", str(out), "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--network", "resnet"), "unknown network 'resnet'; known: debbi, lenet300, lenet5"),
        (("--data", "cifar"), "unknown data set 'cifar'; known: "),
        (("--method", "magic"), "unknown scoring method 'magic'; known: ablation, "),
        (("--ratios", "0,1"), "ratios: expected values in [0, 1), got 1"),
        (("--ratios", "0,half"), "--ratios: expected numbers separated by commas, got '0,half'"),
        (("--ratios", "-0.5"), "ratios: expected values in [0, 1), got -0.5"),
        (("--checkpoints", "0"), "checkpoints: expected at least 1, got 0"),
        (("--of", "flops"), "ratio_of: expected one of"),
        (("--outcome", "happiness"), "unknown outcome 'happiness'"),
        (("--outcome", "correctness"), "method 'path' needs a differentiable outcome"),
        (("--device", "tpu"), "device: expected auto, cpu"),
        (("--weights", "nowhere.pt", "--checkpoints", "1"), "weights: no such file 'nowhere.pt'"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    line = _refused("run", *options, "--out", str(tmp_path / "run"))
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_missing_data_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAUSALPRUNE_DATA", raising=False)
    out = str(tmp_path / "run")
    assert "CAUSALPRUNE_DATA" in _refused("run", "--data", "mnist", "--out", out)
    monkeypatch.setenv("CAUSALPRUNE_DATA", str(tmp_path / "nowhere"))
    assert "no such folder" in _refused("run", "--data", "mnist", "--out", out)
    folder = str(tmp_path / "no-images")
    assert "no such folder" in _refused("run", "--data", folder, "--out", out)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = _refused("run", *TINY, "--out", str(tmp_path / "file" / "run"))
    assert "file" in line


def test_reports_and_analyses_of_nothing_are_refused(tmp_path: Path) -> None:
    assert "trials.csv" in _refused("analyze", str(tmp_path))
    _refused("report", str(tmp_path))


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from causalprune.experiments import run as module

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_trial", interrupted)
    out = tmp_path / "run"
    result = _run("run", *TINY, "--out", str(out))
    assert result.exit_code == 130
    assert f"causalprune run --resume --out {out}" in result.output
    assert (out / "checkpoints" / "1.pt").is_file()


def test_when_every_trial_fails_the_reason_is_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from causalprune.experiments import trial as module

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "plan", broken)
    result = _run("run", *TINY, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "every trial failed: 12 x RuntimeError: no such luck" in result.output
    assert (read_trials(tmp_path / "run")["status"] == "failed").all()


def test_when_some_trials_fail_the_report_is_there_and_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dowhy", reason="the analysis needs dowhy (extra: analysis)")
    from causalprune.experiments import trial as module

    whole = module.plan

    def brittle(model: object, scores: object, ratio: float, *rest: object, **options: object):
        if ratio > 0.7:
            raise RuntimeError("no such luck")
        return whole(model, scores, ratio, *rest, **options)

    monkeypatch.setattr(module, "plan", brittle)
    result = _run("run", "--quick", *TINY, "--out", str(tmp_path / "run"))
    assert result.exit_code == 1, result.output
    assert "4 trials failed (--resume tries them again): 4 x RuntimeError" in result.output
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_wrong_instruction_set_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSALPRUNE_ISA", "sse9")
    line = _refused("run", *TINY, "--out", str(tmp_path / "run"))
    assert "CAUSALPRUNE_ISA: expected one of scalar" in line and "'sse9'" in line
    assert not (tmp_path / "run").exists()
    assert "CAUSALPRUNE_ISA" in _refused("info")


def test_info_shows_build_machine_and_versions() -> None:
    result = _run("info")
    assert result.exit_code == 0, result.output
    assert "available_isas" in result.output and "versions torch" in result.output
    facts = json.loads(_run("info", "--json").output)
    assert facts["isa"] in facts["available_isas"]
    assert facts["versions"]["torch"] == facts["machine"]["torch"]


def test_help_lists_the_commands() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("run", "info", "analyze", "report"))
