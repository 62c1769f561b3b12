"""Per-unit tables of ResNet-20/CIFAR: variance, coverage and cost beside ablating everything.

The effects of all filters are computed exactly once (kept in --cache, as for racing.py); samples
are then looked up, so that many can be drawn. Run from the repository:
``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/unit_tables.py --cache outputs.npy``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from racing import exact_outputs
from resnet20_cifar import RESULTS, images, provenance, resnet20
from torch import nn

from causalprune.analysis import layer_forests, unit_effects
from causalprune.pruning import audit
from causalprune.scoring import mask_table, score, unit_table
from causalprune.scoring.data import Batch
from causalprune.scoring.driver import open_job
from causalprune.scoring.outcomes import OUTCOMES, evaluate
from causalprune.scoring.unit_designs import draw_units, inclusion_probabilities

SHARE = 0.2
TOP = 0.05
SELECTED = 100
AUDITED = 32


@dataclass(frozen=True)
class Arm:
    """A way to sample and to estimate."""

    name: str
    tail: float
    floor: float
    options: Mapping[str, Any] = field(default_factory=dict)
    flat: bool = False  # one conformal width for all units


ARMS = (
    Arm("uniform, plain mean", 0.0, 1.0, {"estimator": "weighted", "regression": "none"}),
    Arm("uniform, AIPW (ridge)", 0.0, 1.0),
    Arm("uniform, AIPW (ridge), marginal conformal", 0.0, 1.0, {"strata": "all"}, flat=True),
    Arm("tail + PPS, weighted mean", TOP, 0.2, {"estimator": "weighted", "regression": "none"}),
    Arm("tail + PPS, AIPW (size alone)", TOP, 0.2, {"features": []}),
    Arm("**tail + PPS, AIPW (ridge)**", TOP, 0.2),
)


def truth_of(model: nn.Module, batch: Batch, outcome: str, cache: Path | None) -> pd.DataFrame:
    """All units: features, costs, and the exact effect as `truth`; kept beside the outputs."""
    kept = None if cache is None else cache.with_suffix(f".{outcome}.csv")
    if kept is not None and kept.exists():
        return pd.read_csv(kept)
    data, few = (batch.inputs, batch.targets), {"units": "filters", "batch_size": 64}
    table = unit_table(model, data, outcome=outcome, tail=0, sample=0.003, **few)
    with open_job(model, data, "ablation", outcome, options={}, **few) as (_, job):
        plain, without = exact_outputs(job, batch, cache)
    chosen = OUTCOMES[outcome]
    before = evaluate(chosen, plain, batch.targets, "", plain)
    effects = [evaluate(chosen, w, batch.targets, "", plain) - before for w in without]
    table["truth"] = torch.stack(effects).mean(1).numpy()
    exact = table["cost_ablation"] + len(plain) / table["ablated"].sum()
    table["cost_cheap"] = table["cost"] - np.where(table["ablated"], exact, 0)
    table = table.drop(columns=["effect", "se", "importance"])
    if kept is not None:
        table.to_csv(kept, index=False)
    return table


def drawn(units: pd.DataFrame, arm: Arm, seed: int) -> pd.DataFrame:
    table = units.copy()
    table["probability"] = inclusion_probabilities(
        table["size"], tail=arm.tail, sample=SHARE - arm.tail, floor=arm.floor
    )
    table["ablated"] = draw_units(table["probability"], list(table["layer"]), seed)
    table["effect"] = table["truth"].where(table["ablated"])
    n_images = table["n"].max()
    table["cost"] = table["cost_cheap"] + np.where(
        table["ablated"], table["cost_ablation"] + n_images / table["ablated"].sum(), 0
    )
    table["all"] = "all"
    if arm.flat:
        table["size"] = 1.0
    return table


def trial(units: pd.DataFrame, arm: Arm, seed: int) -> dict[str, Any]:
    truth, top = units["truth"].to_numpy(), units["size"] >= units["size"].quantile(1 - TOP)
    large = np.abs(truth) >= np.quantile(np.abs(truth), 1 - TOP)
    found = unit_effects(drawn(units, arm, seed), seed=seed, **arm.options)
    of_layer = units.groupby("layer")["truth"].mean()
    slack = 1e-12
    layers = [r.low - slack <= of_layer[r.layer] <= r.high + slack for r in found.layers]
    rows = found.units
    inside = (rows["low"] - slack <= truth) & (truth <= rows["high"] + slack)
    guessed = rows["source"] == "predicted"
    width = (rows["high"] - rows["low"])[guessed & np.isfinite(rows["high"])]
    return {
        "mean": found.whole.mean,
        "covered": found.whole.low <= truth.mean() <= found.whole.high,
        "layers": float(np.mean(layers)),
        "by layer": layers,
        "layer width": float(np.mean([r.high - r.low for r in found.layers])),
        "units": float(inside[guessed].mean()),
        "top units": float(inside[top].mean()),
        "large units": float(inside[large].mean()),
        "infinite": float(np.isinf(rows["high"][guessed]).mean()),
        "unit width": float(width.median()),
        "cost": found.cost / found.cost_exact,
    }


def estimates(units: pd.DataFrame, outcome: str, seeds: int) -> list[str]:
    truth = float(units["truth"].mean())
    lines = [
        "",
        f"## Outcome `{outcome}`",
        "",
        f"True mean effect of a unit: {truth:.4g}; the {TOP:.0%} of units with the largest effects "
        f"make {share_of_largest(units):.0%} of the sum of absolute effects. Rank correlation of "
        f"the cheap score with the size of the effect: "
        f"{units['size'].corr(units['truth'].abs(), 'spearman'):.2f}.",
        "",
        "| sample and estimator | sd of the mean / truth | bias / sd | variance, uniform plain = 1 "
        "| coverage of the mean | of layers' means | of the worst layer's | width of layers' "
        f"| coverage of predicted units (90 %) | top {TOP:.0%} by cheap score "
        f"| largest {TOP:.0%} by true effect | "
        "median width of units' | no finite interval | cost / exact |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    reference = None
    for arm in ARMS:
        rows = pd.DataFrame([trial(units, arm, seed) for seed in range(seeds)])
        by_layer = np.mean(rows.pop("by layer").tolist(), axis=0)
        layers = list(dict.fromkeys(units["layer"]))
        spread, mean = float(rows["mean"].std()), rows.mean()
        reference = spread if reference is None else reference
        lines.append(
            f"| {arm.name} | {spread / abs(truth):.1%} | {(mean['mean'] - truth) / spread:+.2f} | "
            f"1/{(reference / spread) ** 2:.1f} | {mean['covered']:.0%} | {mean['layers']:.1%} | "
            f"{by_layer.min():.0%} ({layers[by_layer.argmin()]}) | {mean['layer width']:.2g} | "
            f"{mean['units']:.1%} | {mean['top units']:.1%} | {mean['large units']:.1%} | "
            f"{mean['unit width']:.2g} | {mean['infinite']:.1%} | "
            f"{mean['cost']:.0%} |"
        )
        print(lines[-1], flush=True)
    return lines


def share_of_largest(units: pd.DataFrame) -> float:
    size = units["truth"].abs().sort_values(ascending=False)
    return float(size.head(round(TOP * len(size))).sum() / size.sum())


def curse(units: pd.DataFrame, seeds: int) -> list[str]:
    """The units that are predicted to do least, their predicted and their true sum."""
    predicted, true, hits = [], [], []
    arm = next(arm for arm in ARMS if arm.name.startswith("**"))
    for seed in range(seeds):
        table = drawn(units, arm, seed)
        found = unit_effects(table, seed=seed).units
        lowest = found["effect"].nsmallest(SELECTED).index
        predicted.append(found["effect"][lowest].sum())
        true.append(units["truth"][lowest].sum())
        chosen = np.random.default_rng(seed).permutation(lowest)[:AUDITED]
        error = (units["truth"] - found["effect"])[chosen]
        estimate = predicted[-1] + SELECTED * error.mean()
        half = 2.04 * SELECTED * error.std() * np.sqrt((1 - AUDITED / SELECTED) / AUDITED)
        hits.append(abs(estimate - true[-1]) <= half)
    path = units["effect_path"].nsmallest(SELECTED).index
    return [
        "",
        "## Winner's curse",
        "",
        f"The {SELECTED} filters of lowest predicted effect on the loss: predictions of the table "
        f"sum to {np.mean(predicted):.3f} and the true effects to {np.mean(true):.3f} (means over "
        f"{seeds} samples); those of `path` alone to {units['effect_path'][path].sum():.3f} and "
        f"{units['truth'][path].sum():.3f}. An audit of {AUDITED} at random covers the true sum in "
        f"{np.mean(hits):.0%} of the samples.",
    ]


def audited(model: nn.Module, units: pd.DataFrame, n: int) -> list[str]:
    lowest = units.nsmallest(SELECTED, "effect_path")
    selection = {name: rows["unit"].tolist() for name, rows in lowest.groupby("layer")}
    guess = lowest[["layer", "unit"]].assign(effect=lowest["effect_path"])
    found = audit(
        model, selection, images(n, "test"), guess, n_units=AUDITED, units="filters", batch_size=64
    )
    return ["", f"The same by `audit` on test images, which selected nothing: {found.sentence}."]


def masks(model: nn.Module, units: pd.DataFrame, n: int) -> list[str]:
    options: dict[str, Any] = {"units": "filters", "q": 0.05, "n_masks": 8, "batch_size": 64}
    scores = score(model, images(n), "banzhaf", **options)
    table = mask_table(scores, {})
    alone = units.groupby("layer")["truth"].mean()
    lines = [
        "",
        "## Layers, while other filters are missing",
        "",
        f"{n} images, 8 masks each that remove every filter with probability 0.05, outcome loss; "
        "effect of one more filter of the layer, from known propensities, and where causal forests "
        "fitted on other images predict the least and the most. Calibration 1: effects differ as "
        "predicted, 0: not at all.",
        "",
        "| layer | filters | alone (exact, 512 images) | others missing (95 %) | least | most | "
        "calibration (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in layer_forests(table.frame, table.treatments, outcome="loss"):
        whole, (least, _, most) = found.whole, found.groups
        lines.append(
            f"| {found.layer} | {found.n_units} | {alone[found.layer]:.4f} | {whole.effect:.4f} "
            f"({whole.low:.4f} to {whole.high:.4f}) | {least.effect:.4f} | {most.effect:.4f} | "
            f"{found.calibration:.2f} ({found.calibration_low:.2f} to "
            f"{found.calibration_high:.2f}) |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "unit_tables.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, batch = resnet20(), Batch(*images(arguments.images))
    lines = [
        "# Per-unit tables: ResNet-20, CIFAR-10",
        "",
        f"{arguments.images} images of the exact subset's training part, all convolution filters "
        f'(`units="filters"`), do(zero). Truth: exact ablation of every filter on every image, '
        f"once; samples of {SHARE:.0%} of the filters are looked up in it, {arguments.seeds} of "
        "them a row. Features: path, taylor, variance, l1, l2; `path` decides what is ablated "
        f"(*tail*: its top {TOP:.0%} for certain; *PPS*: the rest in proportion to it, a fifth of "
        "the size uniform). Intervals of means are at 95 %, of single units at 90 %, by strata of "
        "size unless marginal. The columns of units by cheap score and by true effect include "
        "those that were ablated; the latter group is known only to who has the truth, and no "
        "interval can promise anything for it. Costs are forward-equivalents, the features "
        "included, as a fraction of ablating every filter in suffix replay. Filters that are drawn "
        "by size lie earlier in the network and are dearer, so variances are to be read together "
        "with the costs.",
    ]
    tables = {}
    for outcome in ("loss", "logits"):
        tables[outcome] = truth_of(model, batch, outcome, arguments.cache)
        lines += estimates(tables[outcome], outcome, arguments.seeds)
    lines += curse(tables["loss"], arguments.seeds)
    lines += audited(model, tables["loss"], 512)
    lines += masks(model, tables["loss"], 128)
    lines += ["", f"{provenance()} `python benchmarks/end_to_end/unit_tables.py`."]
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
