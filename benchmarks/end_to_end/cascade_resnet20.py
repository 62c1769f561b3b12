"""The prune-retrain cascade of Lost in Pruning on the CIFAR ResNet-20, in few epochs.

``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/cascade_resnet20.py FOLDER [METHOD ...]``
prunes the published network to one ratio after the other by single weights (``wt``, ``sipp``) and
by filters (``ft``, ``pfp``), trains it again after each, and judges on the test images, which
nothing else has seen. FOLDER keeps every finished ratio, so that a run that was stopped goes on;
the table is benchmarks/results/cascade_resnet20.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from resnet20_cifar import RESULTS, images, provenance, resnet20
from torch import Tensor, nn

from causalprune.experiments.before_after import correct_images, wilson_interval
from causalprune.measures import count_macs
from causalprune.pruning import SgdRecipe, cascade
from causalprune.pruning.cascade_steps import CascadeStep

METHODS = ("wt", "sipp", "ft", "pfp")
RATIOS = (0.3, 0.5, 0.7, 0.85)
TRAIN, CALIBRATION, TEST = 8152, 512, 1017
# A tenth of the published rate: the schedule in small cannot make up for a start at 0.1.
RECIPE = SgdRecipe(epochs=2, learning_rate=0.01, augment="crop_flip")
PUBLISHED = {"wt": "84.9", "sipp": "84.9", "ft": "52.1", "pfp": "44.9"}


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> str:
    found = correct_images(model, data)
    share = wilson_interval(int(found.sum()), len(found))
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def steps_of(method: str, folder: Path) -> list[CascadeStep]:
    """Run a cascade, or read from `folder` what of it is finished."""
    train = images(TRAIN)
    found = []
    for step in cascade(
        resnet20(),
        train,
        method,
        RATIOS,
        retrain=RECIPE,
        calibration=(train[0][:CALIBRATION], train[1][:CALIBRATION]),
        held_out=images(TEST, "test"),
        checkpoint=folder / method,
    ):
        found.append(step)
        print(method, step.keep_ratio, step.accuracy_pruned, step.accuracy, flush=True)
    return found


def table(method: str, steps: Sequence[CascadeStep], macs: int) -> list[str]:
    test = images(TEST, "test")
    lines = [
        f"## {method}",
        "",
        "| parameters kept, % | multiply-accumulates kept, % | pruned, before training, % | "
        "trained, % | last epoch's loss, nats |",
        "|---|---|---|---|---|",
    ]
    for step in steps:
        computed = f"{100 * step.footprint.macs / macs:.1f}" if step.plan is not None else "-"
        assert step.accuracy_pruned is not None
        lines.append(
            f"| {100 * step.keep_ratio:.1f} | {computed} | {100 * step.accuracy_pruned:.1f} | "
            f"{accuracy(step.model, test)} | {step.losses[-1]:.3f} |"
        )
    return [*lines, ""]


def report(found: dict[str, list[CascadeStep]]) -> str:
    whole = resnet20()
    macs = count_macs(whole, images(1, "test")[0])
    published = ", ".join(f"{name} {value}" for name, value in PUBLISHED.items())
    parts = [
        "# Prune-retrain cascades of the CIFAR ResNet-20",
        "",
        f"Whole network: {accuracy(whole, images(TEST, 'test'))}. Each row goes on from the one "
        "above: prune to the next share of the original network's parameters, then train again, "
        f"{RECIPE.epochs} epochs on {TRAIN} training images (the paper: 182 epochs on 50,000): "
        f"{RECIPE}. Scores on {CALIBRATION} training images. Accuracy in % on the {TEST} exact "
        "CIFAR-10 test images with Wilson's 95 % intervals; nothing was chosen by them. `wt` and "
        "`sipp` set single weights to zero, which saves no multiply-accumulates of a dense layer; "
        "`ft` and `pfp` remove filters, inner channels of the blocks only.",
        "",
    ]
    for method, steps in found.items():
        parts += table(method, steps, macs)
    parts += [
        "The paper prunes with its full training between the cycles to these shares of the "
        f"parameters at commensurate accuracy (within 0.5 points): {published} %.",
        "",
        provenance() + " `python benchmarks/end_to_end/cascade_resnet20.py FOLDER`.",
        "",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="keeps every finished ratio")
    parser.add_argument("methods", nargs="*", help="only these; default all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: steps_of(name, arguments.folder) for name in arguments.methods or METHODS}
    (RESULTS / "cascade_resnet20.md").write_text(report(found))


if __name__ == "__main__":
    main()
