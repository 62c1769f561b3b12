"""The replay check of counterfactuals: cells of a finished study run for real, beside the answers.

``python replay_check.py FOLDER``: FOLDER holds the records of the study that
benchmarks/end_to_end/lost_in_pruning.yaml describes. Runs 86 cells again in one process, half of
them at ratios between those of the study, and six trials with their own seeds (30 to 40 minutes,
rows to benchmarks/results/replay_check.csv; a second call goes on); writes
benchmarks/results/replay_check.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from resnet20_cifar import RESULTS

from causalprune.analysis import CounterfactualModel, cells_to_rerun
from causalprune.experiments import Study

ROWS = RESULTS / "replay_check.csv"
CELLS, BETWEEN, SEED = 86, 0.5, 0
REPEATED = 2
"""Trials of each network that are run with their own seeds, too."""


def reruns(folder: Path) -> pd.DataFrame:
    """Return the rerun rows, run now where they are not there yet."""
    study = Study.open(folder)
    model = CounterfactualModel.fit(study, replay_share=0, seed=SEED)
    cells = cells_to_rerun(model, count=CELLS, between=BETWEEN, seed=SEED)
    seeds = study.frame().set_index("trial")["seed"]
    tried = cells[cells["trial"] >= 0].groupby("architecture").head(REPEATED)
    repeated = tried.assign(seed=tried["trial"].map(seeds))
    return study.rerun(pd.concat([cells, repeated]).drop(columns="trial"), ROWS, seed=SEED)


if __name__ == "__main__":
    print(len(reruns(Path(sys.argv[1]))))
