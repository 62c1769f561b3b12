"""MINT on MNIST: connections of one layer masked, fine-tuned with fixed masks.

Run from the repository: ``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/mint_mnist.py``;
``--cache FOLDER`` keeps the trained networks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from mnist_networks import digits, evaluate, mean_and_interval, options, trained
from resnet20_cifar import RESULTS, provenance
from torch import Tensor, nn

from causalprune.experiments import DataSplits
from causalprune.pruning.blocks import prune_blocks, remove_vanished
from causalprune.pruning.masks import apply_masks
from causalprune.pruning.retraining import SgdRecipe, retrain
from causalprune.pruning.weights import spread_blocks
from causalprune.scoring import Scores, mint_masks, random_masks, score
from causalprune.scoring.wt import weight_magnitudes

SHARE = 0.9620
PUBLISHED = {"mlp": ("98.59", "98.47")}


@dataclass(frozen=True)
class Case:
    """A network, the layer whose connections go, and how long it is trained."""

    network: str
    layer: str
    epochs: int
    recipe: SgdRecipe


CASES = (
    Case("mlp", "fc2", 20, SgdRecipe(epochs=10, learning_rate=0.05, weight_decay=0.0)),
    Case("lenet5", "conv2", 10, SgdRecipe(epochs=5, learning_rate=0.02, weight_decay=0.0)),
    Case("lenet5", "fc1", 10, SgdRecipe(epochs=5, learning_rate=0.02, weight_decay=0.0)),
)


@dataclass
class Rows:
    """Accuracies over the networks, by what chose the connections."""

    unpruned: list[float] = field(default_factory=list)
    masked: dict[str, list[float]] = field(default_factory=dict)
    tuned: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def chosen_masks(model: nn.Module, scores: Scores, layer: str, seed: int) -> dict[str, Tensor]:
    """Masks [O, I, ...] of the layer's weight by MINT, at random, and by magnitude."""
    _, budget = prune_blocks(model, scores, SHARE, layers=[layer])
    edges = torch.from_numpy(scores.edges[layer])
    connections = mint_masks({layer: edges}, SHARE)
    drawn = spread_blocks(model, scores, random_masks(connections, {layer: edges}, seed=seed))
    magnitude = weight_magnitudes(model)[layer]
    n_weights = int(budget.masks[layer].sum())
    largest = torch.zeros(magnitude.shape, dtype=torch.bool)
    largest.flatten()[magnitude.flatten().argsort(descending=True)[:n_weights]] = True
    return {
        "MINT": budget.masks[layer],
        "random connections": drawn[layer],
        "magnitude of single weights": largest,
    }


def tune(
    model: nn.Module, masks: Mapping[str, Tensor], case: Case, splits: DataSplits, seed: int
) -> tuple[float, float, nn.Module]:
    """Accuracy with masks alone, after fine-tuning, and the network."""
    sparse = copy.deepcopy(model)
    apply_masks(sparse, masks)
    before = evaluate(sparse, splits.test)
    recipe = SgdRecipe(**{**vars(case.recipe), "seed": seed})
    retrain(sparse, splits.train, recipe, masks=masks)
    return before, evaluate(sparse, splits.test), sparse


def measure(case: Case, splits: DataSplits, seeds: int, cache: object) -> Rows:
    rows = Rows()
    for seed in range(seeds):
        model, accuracy = trained(case.network, seed, splits, case.epochs, cache)  # type: ignore[arg-type]
        rows.unpruned.append(accuracy)
        scores = score(model, splits.calibration, "mint", seed=seed)
        for name, mask in chosen_masks(model, scores, case.layer, seed).items():
            masked, tuned, sparse = tune(model, {case.layer: mask}, case, splits, seed)
            rows.masked.setdefault(name, []).append(masked)
            rows.tuned.setdefault(name, []).append(tuned)
            small, plan = remove_vanished(sparse, {case.layer: mask}, splits.test[0][:1])
            apart = abs(evaluate(small, splits.test) - tuned)
            gone = sum(len(units) for units in plan.remove.values())
            rows.facts[name] = (
                f"{1 - float(mask.double().mean()):.2%} | {gone} of "
                f"{sum(row.units for row in plan.table)}, {plan.before.parameters:,} → "
                f"{plan.after.parameters:,} parameters"
            )
            print(
                f"{case.network} {case.layer} seed {seed} {name}: {masked:.2%} -> {tuned:.2%}, "
                f"removed {gone}, apart {apart:.2%}",
                flush=True,
            )
    return rows


def table(case: Case, rows: Rows) -> list[str]:
    before, after = PUBLISHED.get(case.network, ("", ""))
    lines = [
        f"## {case.network}, `{case.layer}`",
        "",
        f"Unpruned: {mean_and_interval(rows.unpruned)} %"
        + (f" (published {before} → {after} with MINT)." if before else "."),
        "",
        "| connections chosen by | masked, not trained, % | fine-tuned, % | weights of the layer "
        "masked | units that vanish with them (last network) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {mean_and_interval(rows.masked[name])} | "
        f"{mean_and_interval(rows.tuned[name])} | {rows.facts[name]} |"
        for name in rows.tuned
    ]
    return [*lines, ""]


def main() -> None:
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(1)
    splits = digits()
    parts = [
        "# MINT on MNIST",
        "",
        f"{SHARE:.2%} of the connections of one layer masked, all others whole; {arguments.seeds} "
        "networks from different seeds, test accuracy on 10,000 images, mean and 95 % Student-t "
        "interval over networks. MINT's Gaussian estimator on 250 images of every class that no "
        "network was trained on. Fine-tuned by SGD with the masks held; magnitude chooses single "
        "weights of the layer, as many as MINT leaves. A unit vanishes where its whole row or "
        "column is masked, and is then removed for good.",
        "",
    ]
    for case in CASES:
        parts += table(case, measure(case, splits, arguments.seeds, arguments.cache))
        parts += [f"Trained {case.epochs} epochs by Adam, fine-tuned by {case.recipe}.", ""]
    parts += [provenance() + " `python benchmarks/end_to_end/mint_mnist.py`.", ""]
    (RESULTS / "mint_mnist.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
