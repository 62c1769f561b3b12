"""What ``causalprune units`` does: tables, effects, a plan and its audit, and the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from causalprune.analysis import AnalysisResult, UnitEffects
    from causalprune.experiments.image_parts import ImageParts
    from causalprune.pruning import Audit, Plan
    from causalprune.scoring import MaskTable

__all__ = ["Masks", "UnitRun", "audited_plan", "images_of", "measure", "write"]

_AUDIT_IMAGES = 256


@dataclass(frozen=True)
class Masks:
    """How many random masks an image, with what chance of removal, and units with own columns."""

    n_masks: int
    removal: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class UnitRun:
    """What the folder is written from."""

    table: pd.DataFrame
    effects: UnitEffects
    result: AnalysisResult
    masks: MaskTable | None = None
    plan: Plan | None = None
    audit: Audit | None = None


def images_of(
    data: str,
    model: str,
    shape: tuple[int, int, int] | None,
    max_images: int | None,
    held_out: str | None,
    planned: bool,
    root: Path | None,
) -> ImageParts:
    """Read the images, and others for an audit, which may not be those that selected."""
    from causalprune.experiments.image_parts import ImageParts, image_parts
    from causalprune.experiments.model_specs import (
        file_of_images,
        images_from,
        is_file_of_images,
        network_source,
    )

    if not planned:
        return ImageParts(
            images_from(data, model=model, input_shape=shape, max_images=max_images, root=root)
        )
    count: int | str | None = held_out
    if held_out is None:
        count = len(file_of_images(data)[0]) // 5 if is_file_of_images(data) else _AUDIT_IMAGES
    elif held_out.lstrip("-").isdigit():
        count = int(held_out)
    return image_parts(
        data,
        network_source(model),
        input_shape=shape,
        n_calibration=max_images,
        held_out=count,
        root=root,
    )


def measure(
    network: nn.Module,
    parts: ImageParts,
    methods: Sequence[str] | None,
    outcome: str,
    design: Mapping[str, Any],
    *,
    levels: Mapping[str, Any],
    masks: Masks,
    **common: Any,
) -> UnitRun:
    """Make the table, estimate from it, and draw random masks where they are asked for."""
    from causalprune.analysis import analyze, unit_effects
    from causalprune.analysis.unit_analysis import analyze_units, with_masks
    from causalprune.scoring import mask_table, score, unit_table
    from causalprune.scoring.unit_tables import FEATURE_METHODS

    images, seed = parts.calibration, common["seed"]
    table = unit_table(network, images, methods or FEATURE_METHODS, outcome, **design, **common)
    effects = unit_effects(table, seed=seed, **levels)
    found = UnitRun(table, effects, analyze_units(effects, seed=seed))
    if not masks.n_masks:
        return found
    options: dict[str, Any] = {"n_masks": masks.n_masks, "q": masks.removal}
    drawn = mask_table(
        score(network, images, "banzhaf", outcome, **options, **common), masks.layers
    )
    result = with_masks(found.result, analyze(drawn, seed=seed))
    return replace(found, masks=drawn, result=result)


def audited_plan(
    network: nn.Module,
    parts: ImageParts,
    found: UnitRun,
    outcome: str,
    ratio: float,
    of: str,
    n_units: int,
    **common: Any,
) -> UnitRun:
    """Plan by what the table knows or predicts of each unit, and audit the plan on other images."""
    from causalprune.analysis import unit_effects
    from causalprune.pruning import audit, plan
    from causalprune.scoring import score

    units = unit_effects(found.table, "importance", seed=common["seed"]).units
    # Any scores will do for the network's own facts; the norm costs no run.
    scores = score(network, parts.calibration, "l1", units=common["units"])
    frame = scores.frame.assign(
        effect=found.effects.units["effect"].to_numpy(),
        # A mean absolute change, whatever a regression predicts.
        importance=units["effect"].clip(lower=0).to_numpy(),
    )
    chosen = plan(network, replace(scores, frame=frame, method="unit table"), ratio, of)
    judged = parts.calibration if parts.held_out is None else parts.held_out
    check = audit(
        network, chosen, judged, found.effects.units, n_units=n_units, outcome=outcome, **common
    )
    return replace(found, plan=chosen, audit=check)


def write(
    out: Path, found: UnitRun, asked: Mapping[str, Any], *, with_report: bool = False
) -> None:
    """Write the folder, all of it or none."""
    import pandas as pd

    from causalprune.analysis.results import plain_json
    from causalprune.analysis.unit_analysis import (
        ANALYSIS_FILE,
        AUDIT_FILE,
        EFFECTS_FILE,
        FACTS_FILE,
        LAYERS_FILE,
        MASKS_FILE,
        TREATMENTS_FILE,
        UNIT_COLUMNS,
        UNITS_FILE,
    )
    from causalprune.experiments.pruned_folder import PLAN_FILE, new_folder
    from causalprune.experiments.records import write_json
    from causalprune.measures import machine_info

    facts = {
        **asked,
        "outcome": found.effects.measured,
        "images": int(found.table["n"].max()),
        "units_ablated": int(found.table["ablated"].sum()),
        "cost": found.effects.cost,
        "cost_of_ablating_all": found.effects.cost_exact,
        "coverage": found.effects.coverage,
    }
    with new_folder(out) as folder:
        tables = {UNITS_FILE: found.table, EFFECTS_FILE: found.effects.units}
        tables[LAYERS_FILE] = pd.DataFrame(map(vars, found.effects.layers))
        if found.masks is not None:
            tables |= {MASKS_FILE: found.masks.frame, TREATMENTS_FILE: found.masks.treatments}
            facts["masks"] = len(found.masks.frame)
        if found.audit is not None and found.plan is not None:
            tables[AUDIT_FILE] = found.audit.units
            found.plan.save(folder / PLAN_FILE)
            told = {key: value for key, value in vars(found.audit).items() if key != "units"}
            planned = {"ratio": found.plan.achieved_ratio, "of": found.plan.of}
            facts["audit"] = {**told, **planned, "sentence": found.audit.sentence}
        for name, table in tables.items():
            table.to_csv(folder / name, index=False)
        found.result.save(folder / ANALYSIS_FILE)
        described = {"columns": UNIT_COLUMNS, "machine": machine_info()}
        write_json(folder / FACTS_FILE, plain_json({**facts, **described}))
    if with_report:
        from causalprune.reports import report

        report(out, out / "report.html")
