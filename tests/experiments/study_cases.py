"""What the tests of studies share: a small study and how it is made."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from causalprune.experiments.records import MEASURED_COLUMNS
from causalprune.experiments.study import Study

TEXT = """\
methods: [l1, random]
ratios: [0.0, 0.5, 0.8]
checkpoints: 1
epochs: 4
retrain_epochs: 1
calibration: 40
train_limit: 340
test_limit: 90
latency_repeats: 1
latency_batch: 2
device: cpu
shifts: ["contrast:5", "noise:1"]
blocks:
- {network: lenet5}
- {network: lenet300, methods: [l1], ratios: [0.5]}
"""


def study_in(folder: Path, text: str = TEXT) -> Study:
    file = folder / "small.yaml"
    file.write_text(text)
    return Study.from_file(file)


def repeatable(frame: pd.DataFrame) -> pd.DataFrame:
    """What must not depend on the machine's state, by trial."""
    kept = [column for column in frame.columns if column not in (*MEASURED_COLUMNS, "order")]
    return frame.sort_values("trial")[kept].reset_index(drop=True)
