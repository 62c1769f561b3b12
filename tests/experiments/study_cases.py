"""What the tests of studies share."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from causalprune.experiments.records import MEASURED_COLUMNS
from causalprune.experiments.study import Study


def study_in(folder: Path, text: str) -> Study:
    file = folder / "small.yaml"
    file.write_text(text)
    return Study.from_file(file)


def repeatable(frame: pd.DataFrame) -> pd.DataFrame:
    """What must not depend on the machine's state, by trial."""
    kept = [column for column in frame.columns if column not in (*MEASURED_COLUMNS, "order")]
    return frame.sort_values("trial")[kept].reset_index(drop=True)
