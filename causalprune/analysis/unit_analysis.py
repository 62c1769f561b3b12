"""`analyze` of tables that are not of trials: one row a unit, or one row an image and mask."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from causalprune.analysis.layer_forests import layer_forests
from causalprune.analysis.mask_effects import layer_findings, mask_effects, one_more_unit
from causalprune.analysis.results import AnalysisResult, Finding
from causalprune.analysis.tables import read_table
from causalprune.analysis.unit_effects import UnitEffects, unit_effects
from causalprune.errors import InvalidArgumentError, MissingDependencyError, RecordError

__all__ = [
    "ANALYSIS_FILE",
    "AUDIT_FILE",
    "EFFECTS_FILE",
    "FACTS_FILE",
    "LAYERS_FILE",
    "MASKS_FILE",
    "TREATMENTS_FILE",
    "UNITS_FILE",
    "UNIT_COLUMNS",
    "UnitTables",
    "analyze_masks",
    "analyze_unit_tables",
    "analyze_units",
    "is_unit_folder",
    "masked_layers",
    "recognised",
    "with_masks",
]

# The folder that `causalprune units` writes.
UNITS_FILE, EFFECTS_FILE, LAYERS_FILE = "units.csv", "effects.csv", "layers.csv"
MASKS_FILE, TREATMENTS_FILE, AUDIT_FILE = "masks.csv", "treatments.csv", "audit.csv"
ANALYSIS_FILE, FACTS_FILE = "analysis.json", "units.json"

UNIT_COLUMNS = {
    "layer": "the unit's layer",
    "unit": "its index there",
    "kind": "filter, hidden or head",
    "score_*": "its importance by a cheap method",
    "effect_*": "the effect of removing it as that method estimates it",
    "size": "what units were sampled by",
    "probability": "the chance with which it was ablated",
    "ablated": "whether it was",
    "effect": "where it was: mean over the images of the outcome without it, minus with it",
    "se": "the standard error of that over images",
    "importance": "mean of the absolute change",
    "n": "images of the ablation",
    "cost": "forward-equivalents spent on it, cheap scores included",
    "cost_ablation": "forward-equivalents that ablating it takes",
    "measured": "the outcome",
}
"""What stands in the columns of a per-unit table."""

WHILE_MISSING = "by layer, others removed too"

_OF_UNITS = ("layer", "unit", "probability", "ablated")
_OF_MASKS = ("image", "mask", "outcome", "outcome_whole")


@dataclass(frozen=True)
class UnitTables:
    """A per-unit table, or the tables of random masks, or both of one network.

    Attributes
    ----------
    units, masks, treatments : DataFrame or None
    """

    units: pd.DataFrame | None = None
    masks: pd.DataFrame | None = None
    treatments: pd.DataFrame | None = None


def is_unit_folder(path: Path) -> bool:
    """Whether a path is a folder that ``causalprune units`` wrote."""
    return (path / UNITS_FILE).is_file()


def recognised(table: Any) -> UnitTables | None:
    """Return the tables of units or masks that something holds; None for a table of trials.

    Raises
    ------
    RecordError
        If masks come without their treatments, whose propensities are needed.
    """
    if hasattr(table, "frame") and hasattr(table, "treatments"):  # a MaskTable, which brings torch
        return UnitTables(masks=table.frame, treatments=table.treatments)
    if isinstance(table, pd.DataFrame):
        return _of_frame(table)
    if not isinstance(table, (str, Path)):
        return None
    path = Path(table)
    if is_unit_folder(path):
        return _of_folder(path)
    if path.name == MASKS_FILE and (path.parent / TREATMENTS_FILE).is_file():
        return replace(_of_folder(path.parent), units=None)
    if path.is_file() and path.suffix in (".csv", ".parquet"):
        found = _of_frame(read_table(path))
        # As exact as it was written.
        return _of_frame(_exactly(path)) if found and path.suffix == ".csv" else found
    return None


def _of_frame(frame: pd.DataFrame) -> UnitTables | None:
    names = set(map(str, frame))
    if names.issuperset(_OF_UNITS):
        return UnitTables(units=frame)
    if names.issuperset(_OF_MASKS):
        raise RecordError(
            "table: expected the treatments beside the rows of random masks, whose known "
            "propensities are in them: pass scoring.mask_table(scores) itself, or call "
            "analysis.mask_effects(table, treatments) or analysis.layer_forests(table, treatments)"
        )
    return None


def _of_folder(folder: Path) -> UnitTables:
    def read(name: str) -> pd.DataFrame | None:
        return _exactly(folder / name) if (folder / name).is_file() else None

    return UnitTables(read(UNITS_FILE), read(MASKS_FILE), read(TREATMENTS_FILE))


def _exactly(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, float_precision="round_trip")
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise RecordError(f"{path}: not a readable table ({problem})") from error


def analyze_unit_tables(
    tables: UnitTables, outcome: str = "effect", *, seed: int = 0, time_budget_s: float = 120.0
) -> AnalysisResult:
    """Analyse what `recognised` found: the units alone, while others are missing, or both.

    `outcome` is a column of the per-unit table, or what its effects are changes of; the default
    of :func:`causalprune.analysis.analyze` is a column of trials and stands for the effects.
    """
    found = []
    if tables.units is not None:
        measured = tables.units.get("measured")
        names = {"accuracy_loss", *(measured if measured is not None else ())}
        column = "effect" if outcome in names else outcome
        found.append(analyze_units(unit_effects(tables.units, column, seed=seed), seed=seed))
    if tables.masks is not None and tables.treatments is not None:
        found.append(
            analyze_masks(tables.masks, tables.treatments, seed=seed, time_budget_s=time_budget_s)
        )
    return found[0] if len(found) < 2 else with_masks(*found)


def with_masks(first: AnalysisResult, second: AnalysisResult) -> AnalysisResult:
    """Add to the analysis of a per-unit table that of random masks of the same network."""
    whole = Finding(
        "any layer, others removed too",
        "one more unit removed",
        "random masks, known propensities",
        second.estimate,
        *second.interval,
        outcome=second.outcome,
        n_clusters=1,
        sentence=second.headline,
    )
    return replace(
        first,
        findings=(*first.findings, *second.findings, whole),
        notes=(*first.notes, *second.notes),
        versions={**first.versions, **second.versions},
    )


def analyze_units(effects: UnitEffects, *, seed: int = 0) -> AnalysisResult:
    """Put what :func:`causalprune.analysis.unit_effects` found into the form of every analysis.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "a", "unit": range(3), "size": 1.0,
    ...     "probability": [1.0, 0.5, 0.5], "ablated": [True, True, False],
    ...     "effect": [4.0, 1.0, float("nan")], "measured": "loss"})
    >>> analyze_units(unit_effects(table, regression="none")).headline[:45]
    'Removing one unit alone changes the loss by 2'
    """
    whole = effects.whole
    return AnalysisResult(
        preset="units",
        treatment="unit",
        outcome=effects.measured,
        estimate=whole.mean,
        interval=(whole.low, whole.high),
        interval_kind=f"{100 * effects.confidence:g} %, over which units were ablated; the images "
        "are those of the table",
        estimand=f"Mean over {whole.n_units} units of the change of {effects.measured} when the "
        "unit is removed alone, on the images of the table",
        findings=effects.findings(),
        designed=True,
        seed=seed,
        notes=tuple(map(_sentence, (effects.sentence, effects.coverage, *effects.notes))),
    )


def analyze_masks(
    masks: pd.DataFrame,
    treatments: pd.DataFrame,
    *,
    seed: int = 0,
    time_budget_s: float = 120.0,
    advance: Callable[[], None] = lambda: None,
) -> AnalysisResult:
    """Analyse a random-mask design: all layers, each layer, and where each layer matters.

    `time_budget_s` is for the causal forests; no layer's begins after it.
    """
    layers = treatments[treatments["unit"] == -1].reset_index(drop=True)
    outcome = str(layers["measured"].iloc[0]) if "measured" in layers else "outcome"
    slope, low, high = one_more_unit(masks, layers, seed=seed)
    n_images = int(masks["image"].nunique())
    found = list(layer_findings(mask_effects(masks, layers, seed=seed), outcome, n_images))
    forests, notes = _forests(masks, layers, outcome, seed, time_budget_s, advance)
    return AnalysisResult(
        preset="masks",
        treatment="n_removed",
        outcome=outcome,
        estimate=slope,
        interval=(low, high),
        interval_kind="95 %, clustered by image",
        estimand=f"Change of {outcome} for one more unit removed, whichever, while the others are "
        "missing at random with recorded probabilities",
        findings=(*found, *forests),
        designed=True,
        seed=seed,
        notes=tuple(notes),
        versions=_versions() if forests else {},
    )


def masked_layers(result: AnalysisResult) -> tuple[tuple[str, Finding], ...]:
    """Return each layer with what removing one more of its units does while others are missing."""
    found = [item for item in result.findings if item.question == WHILE_MISSING]
    return tuple(
        (item.contrast.removeprefix("one more unit of ").removesuffix(" removed"), item)
        for item in found
        if item.contrast.endswith(" removed") and item.estimator.startswith("random masks")
    )


def _forests(
    masks: pd.DataFrame,
    layers: pd.DataFrame,
    outcome: str,
    seed: int,
    seconds: float,
    advance: Callable[[], None],
) -> tuple[list[Finding], list[str]]:
    """Return groups of layers whose differences are borne out, and a sentence on all of them."""
    begun, tried = time.monotonic(), 0
    found: list[Finding] = []
    told: list[str] = []
    for name in layers["layer"]:
        if time.monotonic() - begun >= seconds:
            break
        try:
            forest = layer_forests(masks, layers, [name], outcome=outcome, seed=seed)[0]
        except (MissingDependencyError, InvalidArgumentError) as error:
            return [], [f"No causal forests by layer: {error}."]
        tried += 1
        advance()
        if forest.differs:
            told.append(name)
            found += forest.findings()[1:]
    if not tried:
        return [], ["No causal forests by layer: the time budget was spent."]
    left = len(layers) - tried
    return found, [
        f"Causal forests on the random masks of {tried} layers: in {len(told)} the effect differs "
        "between images or masks as forests fitted on other images predict"
        + (f" ({', '.join(told)})" if told else "")
        + (f"; {left} layers were not tried within the time budget" if left else "")
        + "."
    ]


def _versions() -> Mapping[str, str]:
    from importlib.metadata import version

    return {"econml": version("econml")}


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
