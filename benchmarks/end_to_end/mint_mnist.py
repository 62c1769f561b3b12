"""MINT on MNIST: connections of one layer masked, fine-tuned with fixed masks.

Run from the repository: ``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/mint_mnist.py``;
``--cache FOLDER`` keeps the trained networks and the figures of every network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mnist_networks import digits, evaluate, mean_and_interval, options, remembered, trained
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
    Case("mlp", "fc2", 20, SgdRecipe(epochs=4, learning_rate=0.02, weight_decay=0.0)),
    Case("lenet5", "conv2", 10, SgdRecipe(epochs=12, learning_rate=0.02, weight_decay=0.0)),
    Case("lenet5", "fc1", 10, SgdRecipe(epochs=4, learning_rate=0.02, weight_decay=0.0)),
)


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
    model: nn.Module, mask: Tensor, case: Case, splits: DataSplits, seed: int
) -> dict[str, float]:
    """Accuracy with the mask alone, after fine-tuning, and what then goes for good."""
    sparse, masks = copy.deepcopy(model), {case.layer: mask}
    apply_masks(sparse, masks)
    before = evaluate(sparse, splits.test)
    retrain(sparse, splits.train, replace(case.recipe, seed=seed), masks=masks)
    after = evaluate(sparse, splits.test)
    small, plan = remove_vanished(sparse, masks, splits.test[0][:1])
    return {
        "masked": before,
        "tuned": after,
        "share": 1 - float(mask.double().mean()),
        "removed": evaluate(small, splits.test),
        "units": sum(len(units) for units in plan.remove.values()),
        "parameters": plan.after.parameters,
    }


def measure(
    case: Case, splits: DataSplits, seeds: Sequence[int], cache: Path | None
) -> tuple[list[float], dict[str, list[dict[str, float]]]]:
    """Return the unpruned accuracies, and the figures of every network by what chose."""
    unpruned: list[float] = []
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        model, accuracy = trained(case.network, seed, splits, case.epochs, cache)
        unpruned.append(accuracy)
        scores = score(model, splits.calibration, "mint", seed=seed)
        for chooser, mask in chosen_masks(model, scores, case.layer, seed).items():
            name = f"mint-{case.network}-{case.layer}-{chooser.split()[0]}-{seed}"
            task = partial(tune, model, mask, case, splits, seed)
            found.setdefault(chooser, []).append(remembered(cache, name, task))
    return unpruned, found


def table(case: Case, unpruned: list[float], found: dict[str, list[dict[str, float]]]) -> list[str]:
    before, after = PUBLISHED.get(case.network, ("", ""))
    lines = [
        f"## {case.network}, `{case.layer}`",
        "",
        f"Unpruned: {mean_and_interval(unpruned)} %"
        + (f" (published {before} → {after} with MINT)." if before else "."),
        "",
        "| connections chosen by | layer's weights masked, % | masked, not trained, % | "
        "fine-tuned, % | units that vanish | parameters then | without them, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for chooser, figures in found.items():
        columns = {key: [each[key] for each in figures] for key in figures[0]}
        units, left = (sum(columns[key]) / len(figures) for key in ("units", "parameters"))
        lines.append(
            f"| {chooser} | {100 * sum(columns['share']) / len(figures):.2f} | "
            f"{mean_and_interval(columns['masked'])} | {mean_and_interval(columns['tuned'])} | "
            f"{units:.1f} | {left:,.0f} | {mean_and_interval(columns['removed'])} |"
        )
    return [*lines, "", f"Trained {case.epochs} epochs by Adam; {case.recipe}.", ""]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", help="one of the networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = digits()
    parts = [
        "# MINT on MNIST",
        "",
        f"{SHARE:.2%} of the connections of one layer masked, all others whole; {arguments.seeds} "
        "networks from different seeds, accuracy on the 10,000 test images in %, mean and 95 % "
        "Student-t interval over networks. MINT's Gaussian estimator on 250 images of every class "
        "that no network was trained on. Fine-tuned by SGD with the masks held; magnitude chooses "
        "single weights of the layer, as many as MINT leaves. A unit vanishes where its whole row "
        "or column is masked, and is then removed for good.",
        "",
    ]
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    for case in CASES:
        if arguments.only in (None, case.network):
            parts += table(case, *measure(case, splits, seeds, arguments.cache))
    parts += [provenance() + " `python benchmarks/end_to_end/mint_mnist.py`.", ""]
    (RESULTS / "mint_mnist.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
