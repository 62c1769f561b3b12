"""One-shot pruning of the CIFAR ResNets at equal multiply-accumulates, without fine-tuning.

``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/one_shot_resnets.py resnet20`` (or resnet32)
scores the inner channels of all blocks by every ranking below on the same training images, plans
at 10 to 60 % of the multiply-accumulates, removes the units with each of the three compensations,
and judges on the test images, which nothing else has seen. Every finished cell is a line of
benchmarks/results/one_shot_<network>.jsonl, so that a run that was stopped goes on; the table is
benchmarks/results/one_shot_<network>.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from resnet20_cifar import RESULTS, data_folder, images, provenance
from scipy.special import stdtrit
from torch import Tensor, nn

import causalprune as cp
from causalprune.experiments.before_after import correct_images, wilson_interval
from causalprune.experiments.model_specs import model_from
from causalprune.scoring import Scores

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
CALIBRATION = 512
FOR_PAIRS = {"refit in pairs": 1024, "refit in pairs, more images": 2048}
"""Images of a refit in pairs, which fits more weights."""
COMPENSATIONS = ("none", "mean", "refit", *FOR_PAIRS)
TEST = 1017
REFERENCE = "l2"
GOALS = {0.4: 1.0, 0.5: 2.0}


@dataclass(frozen=True)
class Ranking:
    """One way to rank units: a method of :func:`causalprune.score` and a scope of the plan."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "global"


PAIRED = (
    "taylor, logits, do(mean)",
    "l2, same share of every layer",
    "l2",
    "ablation, logits, do(mean)",
    "l1, same share of every layer",
    "path, logits, do(mean)",
    "l1",
)
PAIRED_CELLS = {
    "refit in pairs": [(name, ratio) for ratio in (0.4, 0.5, 0.6, 0.3) for name in PAIRED],
    "refit in pairs, more images": [(PAIRED[0], ratio) for ratio in (0.4, 0.5)],
}
"""Refits in pairs take minutes: for these rankings and ratios only."""
LOGITS = {"outcome": "logits", "intervention": "mean"}
RANKINGS: Mapping[str, Ranking] = {
    "ablation, logits, do(mean)": Ranking("ablation", LOGITS),
    "taylor, logits, do(mean)": Ranking("taylor", LOGITS),
    "path, logits, do(mean)": Ranking("path", LOGITS),
    "ablation, loss": Ranking("ablation"),
    "cswap": Ranking("cswap"),
    "path, loss": Ranking("path"),
    "irreplaceable": Ranking("irreplaceable"),
    "taylor, loss": Ranking("taylor"),
    "l1": Ranking("l1"),
    "l1, same share of every layer": Ranking("l1", scope="layer"),
    "l2": Ranking("l2"),
    "l2, same share of every layer": Ranking("l2", scope="layer"),
    "bn_scale": Ranking("bn_scale"),
    "variance": Ranking("variance"),
    **{f"random, seed {seed}": Ranking("random", {"seed": seed}) for seed in range(5)},
}


class Study:
    """Cells of one network, each computed once."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.path = RESULTS / f"one_shot_{network}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        self.cells: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.model: nn.Module = model_from(network, data_folder() / "weights" / WEIGHTS[network])
        self.model.eval()
        self.calibration = images(CALIBRATION)
        self.test = images(TEST, "test")

    def has(self, ranking: str, ratio: float, compensation: str) -> bool:
        wanted = (ranking, ratio, compensation)
        return any((c["ranking"], c["ratio"], c["compensation"]) == wanted for c in self.cells)

    def add(self, cell: dict[str, Any]) -> None:
        self.cells.append(cell)
        with self.path.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        n_right = int(hits(cell).sum())
        print(cell["ranking"], cell["ratio"], cell["compensation"], n_right, flush=True)

    def correct(self, model: nn.Module) -> str:
        """Return which test images are right, as bits in hexadecimal, the first image first."""
        bits = "".join("1" if hit else "0" for hit in correct_images(model, self.test).tolist())
        return f"{int(bits, 2):0{-(-TEST // 4)}x}"

    def scored(self, ranking: Ranking) -> tuple[Scores, float]:
        begin = time.process_time()
        scores = cp.score(self.model, self.calibration, ranking.method, **ranking.options)
        return scores, time.process_time() - begin

    def shrunk(self, plan: cp.Plan, compensation: str) -> nn.Module:
        if compensation in FOR_PAIRS:
            how = {"compensation": "refit", "refit_layers": "pairs"}
            return cp.apply(self.model, plan, **how, data=images(FOR_PAIRS[compensation])[0])
        return cp.apply(self.model, plan, compensation=compensation, data=self.calibration[0])

    def run(self, names: Sequence[str]) -> None:
        if not self.has("whole", 0.0, "none"):
            self.add(_cell("whole", 0.0, "none", 0.0, 0.0, 0.0, self.correct(self.model)))
        for name in names:
            ranking = RANKINGS[name]
            wanted = [(ratio, each) for ratio in RATIOS for each in COMPENSATIONS[:3]]
            for each, cells in PAIRED_CELLS.items():
                wanted += [(ratio, each) for other, ratio in cells if other == name]
            todo = [cell for cell in wanted if not self.has(name, *cell)]
            if not todo:
                continue
            scores, seconds = self.scored(ranking)
            for ratio, compensation in todo:
                plan = cp.plan(self.model, scores, ratio, of="macs", scope=ranking.scope)
                begin = time.process_time()
                small = self.shrunk(plan, compensation)
                spent = time.process_time() - begin
                achieved = plan.achieved_ratio
                found = self.correct(small)
                self.add(_cell(name, ratio, compensation, achieved, seconds, spent, found))


def _cell(
    ranking: str,
    ratio: float,
    compensation: str,
    achieved: float,
    score_s: float,
    apply_s: float,
    correct: str,
) -> dict[str, Any]:
    return {
        "ranking": ranking,
        "ratio": ratio,
        "compensation": compensation,
        "achieved": round(achieved, 4),
        "score_s": round(score_s, 1),
        "apply_s": round(apply_s, 1),
        "correct": correct,
    }


# ---- the table -----------------------------------------------------------------------------------


def hits(cell: Mapping[str, Any]) -> Tensor:
    return torch.tensor([float(bit) for bit in f"{int(cell['correct'], 16):0{TEST}b}"])


def accuracy(cell: Mapping[str, Any]) -> str:
    found = hits(cell)
    share = wilson_interval(int(found.sum()), len(found))
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def difference(cell: Mapping[str, Any], other: Tensor) -> str:
    """Difference in points with its 95 % interval, image by image."""
    paired = 100 * (hits(cell) - other)
    half = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    return f"{float(paired.mean()):+.1f} ± {half:.1f}"


def random_row(cells: Mapping[tuple[str, float], dict[str, Any]], ratio: float) -> str:
    """Mean over the seeds with a Student t interval of it."""
    found = [
        hits(c).mean() for (name, r), c in cells.items() if name[:6] == "random" and r == ratio
    ]
    if len(found) < 2:
        return "-"
    values = 100 * torch.stack(found)
    half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.1f} ± {half:.1f} ({len(values)} seeds)"


def table(study: Study, compensation: str, show: Callable[..., str]) -> list[str]:
    cells = {
        (c["ranking"], c["ratio"]): c for c in study.cells if c["compensation"] == compensation
    }
    lines = [
        "| ranking | score, CPU s | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS) + " |",
        "|---|---|" + "---|" * len(RATIOS),
    ]
    for name in RANKINGS:
        own = [cells.get((name, ratio)) for ratio in RATIOS]
        if name.startswith("random") or not any(own):
            continue
        seconds = next(cell["score_s"] for cell in own if cell)
        row = [
            show(cell, cells, ratio) if cell else "-"
            for cell, ratio in zip(own, RATIOS, strict=True)
        ]
        lines.append(f"| {name} | {seconds:.1f} | " + " | ".join(row) + " |")
    if show is shown_accuracy and compensation not in FOR_PAIRS:
        seeds = " | ".join(random_row(cells, ratio) for ratio in RATIOS)
        lines.append(f"| random, mean of the seeds | 0.0 | {seeds} |")
    return [*lines, ""]


def shown_accuracy(cell: Mapping[str, Any], cells: Mapping[Any, Any], ratio: float) -> str:
    return accuracy(cell)


def shown_against(cell: Mapping[str, Any], cells: Mapping[Any, Any], ratio: float) -> str:
    """Against the best of the two magnitude norms and their two scopes at this ratio."""
    rivals = [c for (name, r), c in cells.items() if name[:2] in ("l1", "l2") and r == ratio]
    if not rivals:
        return "-"
    return difference(cell, hits(max(rivals, key=lambda c: float(hits(c).mean()))))


def report(study: Study) -> str:
    whole = next(cell for cell in study.cells if cell["ranking"] == "whole")
    lines = [
        f"# {study.network}: one shot, no fine-tuning, at equal multiply-accumulates",
        "",
        f"Inner channels of all blocks; {CALIBRATION} training images for scores, means and refit, "
        f'{FOR_PAIRS} for the refit in pairs (`refit_layers="pairs"`), no labels in either; '
        f"accuracy in % on the {TEST} exact CIFAR-10 test images with Wilson's 95 % intervals. "
        f"Whole network: {accuracy(whole)}. A plan is within 1 % of its target. CPU seconds for "
        "scoring all units; a busy machine inflates them.",
        "",
    ]
    for compensation in COMPENSATIONS:
        lines += [
            f"## compensation = {compensation}",
            "",
            *table(study, compensation, shown_accuracy),
        ]
    for compensation in COMPENSATIONS[2:4]:
        lines += [
            f"## With {compensation}, against the better magnitude norm at each ratio",
            "",
            "Points of accuracy more than the best of l1 and l2, each ranked over all layers or "
            "with the same share of every layer, whichever is best on these very test images; "
            "95 % interval of the paired differences.",
            "",
            *table(study, compensation, shown_against),
        ]
    lines += ["## Goals", ""]
    for ratio, points in GOALS.items():
        for compensation in COMPENSATIONS[2:]:
            rows = [c for c in study.cells if c["ratio"] == ratio]
            rows = [c for c in rows if c["compensation"] == compensation]
            named = [c for c in rows if not c["ranking"].startswith("random")]
            named.sort(key=lambda c: -float(hits(c).sum()))
            losses = [f"{c['ranking']} {difference(c, hits(whole))}" for c in named[:5]]
            lines.append(
                f"- {ratio:.0%} of the multiply-accumulates, goal at most {points:g} points below "
                f"the whole network, {compensation}: {'; '.join(losses)} (the best five on these "
                "test images)."
            )
    lines.append("")
    for compensation in COMPENSATIONS[2:]:
        seconds = [c["apply_s"] for c in study.cells if c["compensation"] == compensation]
        told = f"{min(seconds):.0f} to {max(seconds):.0f} CPU s a network" if seconds else "-"
        lines.append(f"{compensation.capitalize()}: {told}. ")
    lines += [
        "",
        "Cells were measured at several commits, at which these rankings compute the same, and on "
        "more than one machine, so that CPU seconds compare within a row only; the line below is "
        "that of the table.",
    ]
    return "\n".join([*lines, "", provenance(), ""])


def main(network: str, names: Sequence[str] = ()) -> None:
    torch.set_num_threads(1)
    study = Study(network)
    study.run(names or tuple(RANKINGS))
    Path(RESULTS / f"one_shot_{network}.md").write_text(report(study))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
