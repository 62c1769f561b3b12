"""The replay check of counterfactuals: cells of a finished study run for real, beside the answers.

``python replay_check.py FOLDER``: FOLDER holds the records of the study that
benchmarks/end_to_end/lost_in_pruning.yaml describes. Runs 86 cells again in one process and random
order, half of them at ratios between those of the study, and six trials with their own seeds (30
minutes of processor time, rows to benchmarks/results/replay_check.csv; a second call goes on), and
writes benchmarks/results/replay_check.md. ``python replay_check.py STUDY.csv`` writes it again from
the rows that are there, whole or not, and the study's table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from resnet20_cifar import RESULTS, provenance

from causalprune.analysis import CounterfactualModel, cells_to_rerun, replay_answers
from causalprune.analysis.counterfactual_results import Replay
from causalprune.analysis.tables import read_table
from causalprune.experiments import Study

ROWS = RESULTS / "replay_check.csv"
CELLS, BETWEEN, SEED = 86, 0.5, 0
REPEATED = 2
"""Trials of each network that are run with their own seeds, too."""
CELL = ["architecture", "checkpoint", "method", "ratio"]
OUTCOMES = {"accuracy_loss": "accuracy loss", "memory_bytes": "memory", "latency_ms": "latency"}
LEGEND = """\
Cells drawn at random from the finished study (432 trials, three networks each of LeNet-300-100,
LeNet-5 and ResNet-20) and run again with new seeds. *Tried*: cells that the study had run; the
model was fitted without those trials. *Between*: the same method at a ratio between two of the
study's. Errors are of single trials, absolute, mean (median): points for the accuracy loss, per
cent of what was measured for memory and latency. Coverage: share of trials inside the model's 95 %
intervals, with the exact binomial interval of that share. *Straight line*: between the same
network's trials at the ratios around, by the same method (the nearest one where there is none
beyond). *Mean curve*: the mean of the architecture's networks by that method, likewise. *Rerun*:
what the study's own trial of the cell differs from its repetition by: no answer can be expected to
be nearer than that. The machine was shared with other work while these trials ran, so their
latencies are disturbed; they are shown for what they are worth."""


def reruns(folder: Path) -> None:
    """Run what is left of the sample."""
    study = Study.open(folder)
    model = CounterfactualModel.fit(study, replay_share=0, seed=SEED)
    cells = cells_to_rerun(model, count=CELLS, between=BETWEEN, seed=SEED)
    seeds = study.frame().set_index("trial")["seed"]
    tried = cells[cells["trial"] >= 0].groupby("architecture").head(REPEATED)
    repeated = tried.assign(seed=tried["trial"].map(seeds))
    study.rerun(pd.concat([cells, repeated]).drop(columns="trial"), ROWS, seed=SEED)


def told_by_peers(table: pd.DataFrame, rows: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Return what lines through the study's other trials tell, and its own trial of the cell."""
    found = []
    for row in rows.to_dict("records"):
        same = table[
            (table["architecture"] == row["architecture"]) & (table["method"] == row["method"])
        ]
        cell = (same["checkpoint"] == row["checkpoint"]) & np.isclose(same["ratio"], row["ratio"])
        others = same[~cell]
        line = others[others["checkpoint"] == row["checkpoint"]].sort_values("ratio")
        curve = others.groupby("ratio")[outcome].mean()
        own = same[cell][outcome]
        found.append(
            {
                "line": np.interp(row["ratio"], line["ratio"], line[outcome]),
                "curve": np.interp(row["ratio"], curve.index, curve),
                "rerun": float(own.iloc[0]) if len(own) else np.nan,
            }
        )
    return pd.DataFrame(found)


def compared(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a trial and outcome: what was measured, and the error of each answer."""
    model = CounterfactualModel.fit(table, replay_share=0, seed=SEED)
    answers = replay_answers(model, rows)
    parts = []
    for outcome, own in answers.groupby("outcome", sort=False):
        told = pd.concat([rows[CELL], told_by_peers(table, rows, str(outcome))], axis=1)
        told = told.iloc[own["row"].to_numpy()].reset_index(drop=True)
        own = own.reset_index(drop=True)
        unit = 0.01 if outcome == "accuracy_loss" else own["actual"] / 100
        told["model"] = own["value"]
        for name in ("model", "line", "curve", "rerun"):
            told[name] = (told[name] - own["actual"]).abs() / unit
        told["inside"] = own["actual"].between(own["low"], own["high"])
        told["answered"] = own["refused"].eq("")
        parts.append(told.assign(outcome=outcome, sample=rows["sample"].to_numpy()[own["row"]]))
    return pd.concat(parts, ignore_index=True)


def both(values: pd.Series[float], unit: str) -> str:
    known = values.dropna()
    return f"{known.mean():.2f} ({known.median():.2f}) {unit}" if len(known) else ""


def lines_of(told: pd.DataFrame, by: list[str]) -> list[str]:
    head = [*by, "trials", "model", "coverage", "straight line", "mean curve", "rerun"]
    lines = [head, ["---"] * len(head)]
    for key, own in told.groupby(by, sort=False):
        own = own[own["answered"]]
        names = [OUTCOMES.get(str(part), str(part)) for part in key]
        unit = "points" if "accuracy_loss" in key else "%"
        share = float(own["inside"].mean())
        low, high = Replay("", len(own), 0.0, share).coverage_interval
        coverage = f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        errors = [both(own[name], unit) for name in ("model", "line", "curve", "rerun")]
        lines.append([*names, str(len(own)), errors[0], coverage, *errors[1:]])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def repeated_line(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Say what trials that were run with their own seeds differ by."""
    found = rows.merge(table, on=[*CELL, "seed"], suffixes=("", "_study"))
    if found.empty:
        return "No trial was run with its own seed."
    gaps = {
        name: round(float((found[name] - found[f"{name}_study"]).abs().max()), 9)
        for name in ("accuracy", "accuracy_pruned", "parameters", "memory_bytes")
    }
    latency = (found["latency_ms"] / found["latency_ms_study"] - 1).abs().max()
    return (
        f"{len(found)} trials run with their own seeds differ from the study's by at most "
        f"{100 * gaps['accuracy']:.3g} points of accuracy after retraining and "
        f"{100 * gaps['accuracy_pruned']:.3g} before, {gaps['parameters']:g} parameters, "
        f"{gaps['memory_bytes']:g} bytes, and {100 * latency:.0f} % of latency."
    )


def report(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    ok = rows[rows["status"] == "ok"].reset_index(drop=True)
    own_seed = ok["seed"].isin(table["seed"])
    fresh = ok[~own_seed].reset_index(drop=True)
    cells = set(table[CELL].round(6).itertuples(index=False, name=None))
    tried = [cell in cells for cell in fresh[CELL].round(6).itertuples(index=False, name=None)]
    fresh["sample"] = np.where(tried, "tried", "between")
    fresh = fresh.sort_values(["sample", "architecture"], ascending=False, ignore_index=True)
    told = compared(table, fresh)
    whole = CELLS + 3 * REPEATED
    stopped = (
        f" The order is random; {len(rows)} of {whole} chosen trials had run when the time was up."
        if len(rows) < whole
        else ""
    )
    loss = told[told["outcome"] == "accuracy_loss"]
    return "\n".join(
        [
            "# Replay check: counterfactuals beside trials run for real",
            "",
            f"{provenance()} Made by `benchmarks/end_to_end/replay_check.py`; rows in "
            "[replay_check.csv](replay_check.csv).",
            "",
            " ".join(LEGEND.split()) + stopped,
            "",
            *lines_of(told, ["outcome", "sample"]),
            "",
            "Accuracy loss by network:",
            "",
            *lines_of(loss, ["outcome", "architecture"]),
            "",
            f"{int((rows['status'] == 'failed').sum())} trials failed, "
            f"{int((~loss['answered']).sum())} were refused as outside of the study's support. "
            + repeated_line(table, ok),
            "",
        ]
    )


if __name__ == "__main__":
    source = Path(sys.argv[1])
    if source.is_dir():
        reruns(source)
    text = report(read_table(source), pd.read_csv(ROWS))
    (RESULTS / "replay_check.md").write_text(text)
    print(text)
