"""C-SWAP's progressive loop on the CIFAR ResNet-20, beside one shot at the same MACs.

Judges, after every kept step, what this command wrote to FOLDER, on the test images, which
nothing else has seen::

    causalprune prune --network resnet20 --weights resnet20-12fca82f.th --data cifar-subset \\
      --method cswap --ratio 0.4 --of macs --out FOLDER

Run from the repository: ``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/cswap_resnet20.py
FOLDER``; the table is benchmarks/results/cswap_resnet20.md. The networks between are made again
from the trace: units that are gone, refitted on the same images.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from resnet20_cifar import RESULTS, data_folder, provenance, resnet20
from torch import Tensor, nn

import causalprune as cp
from causalprune.experiments.before_after import correct_images, wilson_interval
from causalprune.experiments.image_parts import ImageParts, image_parts
from causalprune.experiments.model_specs import network_source
from causalprune.measures import count_macs
from causalprune.pruning import Plan, Trace
from causalprune.pruning.schedules import TOLERANCE_SEEN
from causalprune.scoring import Scores

RIVALS = ("cswap", "cswap, not per MAC", "taylor, logits")


@dataclass(frozen=True)
class Judged:
    """A network: the MACs that are gone, and which images [N] it gets right."""

    gone: float
    held_out: Tensor
    test: Tensor


class Study:
    """The whole network, its images, and scores of it."""

    def __init__(self) -> None:
        self.model: nn.Module = resnet20()
        self.parts: ImageParts = image_parts(
            "cifar-subset", network_source("resnet20"), guarded=True, root=data_folder()
        )
        self.image = self.parts.test[0][:1]

    def judged(self, model: nn.Module) -> Judged:
        gone = 1 - count_macs(model, self.image) / count_macs(self.model, self.image)
        found = [correct_images(model, part) for part in (self.parts.held_out, self.parts.test)]
        return Judged(gone, *found)

    def refitted(self, plan: Plan) -> nn.Module:
        return cp.apply(self.model, plan, compensation="refit", data=self.parts.calibration).eval()

    @cached_property
    def scores(self) -> dict[str, Scores]:
        cswap = cp.score(self.model, self.parts.calibration, "cswap")
        # Without categories a plan takes the order as it is.
        plain = replace(cswap, frame=cswap.frame.assign(category=""))
        taylor = cp.score(
            self.model, self.parts.calibration, "taylor", outcome="logits", intervention="mean"
        )
        return dict(zip(RIVALS, (cswap, plain, taylor), strict=True))

    def one_shot(self, name: str, gone: float) -> Judged:
        plan = cp.plan(self.model, self.scores[name], gone, of="macs")
        return self.judged(self.refitted(plan))

    def written(self, folder: Path) -> tuple[nn.Module, Trace]:
        """Read the network and the trace that the command wrote."""
        trace = Trace.load(folder / "trace.json")
        small = cp.apply(self.model, trace.plan)
        small.load_state_dict(torch.load(folder / "state_dict.pt", weights_only=True))
        return small.eval(), trace

    def after(self, trace: Trace, n_kept: int) -> Judged:
        """The network after the first `n_kept` kept steps of a run."""
        gone: dict[str, list[int]] = {}
        kept = [step for step in trace.steps if step.verdict == "kept"]
        for step in kept[:n_kept]:
            for unit in step.removed:
                gone.setdefault(unit.group, []).append(unit.unit)
        remove = {group: tuple(sorted(units)) for group, units in gone.items()}
        return self.judged(self.refitted(replace(trace.plan, remove=remove)))


def accuracy(hits: Tensor) -> str:
    share = wilson_interval(int(hits.sum()), len(hits))
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def percent(hits: Tensor) -> str:
    return f"{100 * float(hits.double().mean()):.1f}"


def difference(one: Tensor, other: Tensor) -> str:
    """Points more than the other on the same images, with a 95 % interval."""
    paired = 100 * (one.double() - other.double())
    half = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    return f"{float(paired.mean()):+.1f} ± {half:.1f}"


def table_of_steps(study: Study, trace: Trace) -> list[str]:
    kept = [step for step in trace.steps if step.verdict == "kept"]
    lines = [
        "| MACs gone, % | units gone | held-out, % | test, % | one shot: "
        + " | one shot: ".join(RIVALS)
        + " | progressive, points more than taylor |",
        "|---|---|---|---|" + "---|" * (len(RIVALS) + 1),
    ]
    for number in range(1, len(kept) + 1):
        found = study.after(trace, number)
        compared = number % 2 == 0 or number == len(kept)
        rivals = [study.one_shot(name, found.gone) for name in RIVALS] if compared else []
        columns = [
            f"{100 * found.gone:.1f}",
            str(sum(len(step.removed) for step in kept[:number])),
            percent(found.held_out),
            accuracy(found.test),
            *(accuracy(rival.test) for rival in rivals),
            *([difference(found.test, rivals[-1].test)] if rivals else [""] * (len(RIVALS) + 1)),
        ]
        lines.append(f"| {' | '.join(columns)} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def report(study: Study, trace: Trace, small: nn.Module) -> str:
    whole, end = study.judged(study.model), study.judged(small)
    categories = Counter(unit.category for step in trace.steps for unit in step.removed)
    verdicts = Counter(step.verdict for step in trace.steps)
    first = Counter(study.scores["cswap"].frame["category"])
    falls = [
        100 * float((hits.double() - after.double()).mean())
        for hits, after in ((whole.held_out, end.held_out), (whole.test, end.test))
    ]
    return "\n".join(
        [
            "# C-SWAP's progressive loop on the CIFAR ResNet-20, no fine-tuning",
            "",
            f"Target {trace.plan.ratio:.0%} of the multiply-accumulates, refit after every step. "
            f"Scores, means and refit from {len(study.parts.calibration[1])} training images; the "
            f"guard looks at {len(study.parts.held_out[1])} others, which the network was trained "
            f"on as well; test: the {len(study.parts.test[1])} exact CIFAR-10 test images, "
            "Wilson's 95 % intervals. Whole network: held-out "
            f"{percent(whole.held_out)}, test {accuracy(whole.test)}. The columns on the right "
            "remove at once, at the same "
            "multiply-accumulates and with the same refit, by one scoring of the whole network: "
            "C-SWAP's categories with units ordered by abs(xi) per MAC within each, the same by "
            "abs(xi) alone, and Taylor's change of the logits (do(mean)).",
            "",
            *table_of_steps(study, trace),
            f"Steps: {', '.join(f'{n} {verdict}' for verdict, n in verdicts.items())}. Units "
            f"tried, by category: {', '.join(f'{n} {c}' for c, n in categories.items())}; of the "
            f"whole network's: {', '.join(f'{n} {c}' for c, n in sorted(first.items()))}. "
            f"It ended with: {trace.stopped} ({trace.plan.achieved_ratio:.1%}).",
            "",
            f"At the end accuracy is {falls[0]:.1f} points lower on the held-out images and "
            f"{falls[1]:.1f} on the test images (progressive minus whole: "
            f"{difference(end.test, whole.test)}): images that a network was trained on are the "
            "first that it forgets, so a guard that looks at such images is given a tolerance of "
            f"{100 * TOLERANCE_SEEN:g} points.",
            "",
            provenance() + " `python benchmarks/end_to_end/cswap_resnet20.py FOLDER`.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what the command wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study()
    small, trace = study.written(arguments.folder)
    (RESULTS / "cswap_resnet20.md").write_text(report(study, trace, small))


if __name__ == "__main__":
    main()
