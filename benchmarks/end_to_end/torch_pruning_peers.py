"""torch-pruning's importances on the same unit groups, at equal multiply-accumulates.

``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/torch_pruning_peers.py`` scores the inner
channels of the trained CIFAR ResNet-20 (first convolution of every block) by torch-pruning's
importance classes through its own dependency graph and groups, and by ours; plans, removes and
compensates all of them by the same code; writes benchmarks/results/torch_pruning_peers.md. One
shot, no fine-tuning; accuracy on the test images, which nothing else has seen.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch_pruning
from resnet20_cifar import RESULTS, images, provenance, resnet20
from torch import Tensor, nn
from torch.nn import functional

import causalprune as cp
from causalprune.experiments.before_after import Share, correct_images, wilson_interval
from causalprune.scoring import Scores

OURS: Mapping[str, Mapping[str, Any]] = {
    "causalprune ablation, logits, do(mean)": {
        "method": "ablation",
        "outcome": "logits",
        "intervention": "mean",
    },
    "causalprune taylor, logits, do(mean)": {
        "method": "taylor",
        "outcome": "logits",
        "intervention": "mean",
    },
}
CALIBRATION = 512
TEST = 1017
RATIOS = (0.2, 0.3, 0.4, 0.5)
COMPENSATIONS = ("none", "refit")
RANDOM_SEEDS = 5
BATCH = 64

importances = torch_pruning.importance


@dataclass(frozen=True)
class Ranking:
    """Scores of all units, with what they cost."""

    name: str
    rule: str
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Result:
    ranking: Ranking
    compensation: str
    ratio: float
    achieved: float
    hits: Tensor


# ---- torch-pruning's scores ----------------------------------------------------------------------


def by_weights(kind: Callable[[], Any]) -> Callable[[nn.Module, Any, Any], Any]:
    def prepare(model: nn.Module, graph: Any, data: tuple[Tensor, Tensor]) -> Any:
        return kind()

    return prepare


def by_taylor(model: nn.Module, graph: Any, data: tuple[Tensor, Tensor]) -> Any:
    for x, y in batches(data):
        (functional.cross_entropy(model(x), y, reduction="sum") / CALIBRATION).backward()
    return importances.TaylorImportance()


def by_hessian(model: nn.Module, graph: Any, data: tuple[Tensor, Tensor]) -> Any:
    """Squared gradients of every image, as torch-pruning's documentation accumulates them."""
    found = importances.HessianImportance()
    found.zero_grad()
    for x, y in batches(data):
        for each in range(len(x)):
            model.zero_grad()
            functional.cross_entropy(model(x[each : each + 1]), y[each : each + 1]).backward()
            found.accumulate_grad(model)
    return found


def by_obdc(model: nn.Module, graph: Any, data: tuple[Tensor, Tensor]) -> Any:
    """Fisher information of classes drawn from the network's own probabilities (Wang et al. 2019),
    as in torch-pruning's example."""
    found = importances.OBDCImportance(num_classes=10)
    generator = torch.Generator().manual_seed(0)
    # What its _prepare_model registers, which in 1.6.1 fails on networks without attention.
    found.modules = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in found.modules:
        module.register_forward_pre_hook(found._save_input)
        module.register_backward_hook(found._save_grad_output)
    for x, _ in batches(data):
        logits = model(x)
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        model.zero_grad()
        functional.cross_entropy(logits, drawn).backward()
        found.step()
    found._rm_hooks(model)
    return found


PEERS: Mapping[str, Callable[[nn.Module, Any, tuple[Tensor, Tensor]], Any]] = {
    "MagnitudeImportance(p=1)": by_weights(lambda: importances.MagnitudeImportance(p=1)),
    "MagnitudeImportance(p=2)": by_weights(lambda: importances.MagnitudeImportance(p=2)),
    "BNScaleImportance": by_weights(importances.BNScaleImportance),
    "LAMPImportance": by_weights(importances.LAMPImportance),
    "FPGMImportance": by_weights(importances.FPGMImportance),
    "TaylorImportance": by_taylor,
    "HessianImportance": by_hessian,
    "OBDCImportance": by_obdc,
}
RULES = {"global": "as torch-pruning ranks", "per MAC": "per MAC"}


def batches(data: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))


def peer_scores(
    name: str, template: Scores, data: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Importance of every inner channel by torch-pruning, and the CPU time it took."""
    model = copy.deepcopy(resnet20())
    started = time.process_time()
    graph = torch_pruning.DependencyGraph().build_dependency(model, data[0][:1])
    importance = PEERS[name](model, graph, data)
    found = {}
    for layer in inner_layers(template):
        module = model.get_submodule(layer)
        group = graph.get_pruning_group(
            module, torch_pruning.prune_conv_out_channels, idxs=list(range(module.out_channels))
        )
        found[layer] = importance(group).detach().double()
    return found, time.process_time() - started


def inner_layers(template: Scores) -> list[str]:
    groups = template.frame["group"]
    return list(dict.fromkeys(groups[groups.str.match(r"layer\d\.\d+\.conv1$")]))


def as_scores(template: Scores, name: str, values: Mapping[str, Tensor], rule: str) -> Scores:
    """Put importances in the place of `template`'s.

    A plan divides by what a unit saves where there are effects (their scale compares over
    layers), and takes the importance as it is where there are none.
    """
    frame = template.frame.copy()
    for layer, importance in values.items():
        rows = frame.index[frame["group"] == layer]
        frame.loc[rows, "importance"] = importance[frame.loc[rows, "unit"].to_numpy()].numpy()
    frame["effect"] = 0.0 if rule == "per MAC" else math.nan
    return replace(template, frame=frame, method=name)


# ---- rankings, plans, accuracies -----------------------------------------------------------------


def rankings(model: nn.Module, data: tuple[Tensor, Tensor]) -> list[Ranking]:
    template = cp.score(model, data[0][:1], "l1")
    found = []
    for name, arguments in OURS.items():
        started = time.process_time()
        scores = cp.score(model, data, **arguments)
        found.append(Ranking(name, "per MAC", scores, time.process_time() - started))
        print(name, f"{found[-1].seconds:.1f} s", flush=True)
    for name in PEERS:
        values, seconds = peer_scores(name, template, data)
        for rule in RULES:
            scores = as_scores(template, name, values, rule)
            found.append(Ranking(name, RULES[rule], scores, seconds))
        print(name, f"{seconds:.2f} s", flush=True)
    for seed in range(RANDOM_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        values = {
            layer: torch.rand(
                model.get_submodule(layer).out_channels, generator=generator, dtype=torch.float64
            )
            for layer in inner_layers(template)
        }
        # What RandomImportance does, from a seed.
        scores = as_scores(template, "RandomImportance", values, "global")
        found.append(Ranking("RandomImportance", f"seed {seed}", scores, 0.0))
    return found


def judge(
    model: nn.Module, ranking: Ranking, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> list[Result]:
    inner = set(inner_layers(ranking.scores))
    others = [g for g in dict.fromkeys(ranking.scores.frame["group"]) if g not in inner]
    found = []
    for ratio in RATIOS:
        plan = cp.plan(model, ranking.scores, ratio, "macs", protect=others)
        for compensation in COMPENSATIONS:
            more = {} if compensation == "none" else {"data": data, "batch_size": BATCH}
            small = cp.apply(model, plan, compensation=compensation, **more)
            hits = correct_images(small, test)
            found.append(Result(ranking, compensation, ratio, plan.achieved_ratio, hits))
    return found


# ---- the table -----------------------------------------------------------------------------------


def interval(hits: Tensor) -> str:
    share: Share = wilson_interval(int(hits.sum()), len(hits))
    return f"{100 * share.value:.1f} ({100 * share.low:.1f}-{100 * share.high:.1f})"


def paired(hits: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean of the differences of two networks on the same images, and half its 95 % interval."""
    difference = hits.double() - reference.double()
    return float(difference.mean()), 1.96 * float(difference.std()) / len(hits) ** 0.5


def difference(hits: Tensor, reference: Tensor) -> str:
    mean, half = paired(hits, reference)
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def rows_of(results: list[Result], compensation: str, cell: Callable[[Result, Result], str]) -> str:
    ours = results[0].ranking
    reference = {(r.compensation, r.ratio): r for r in results if r.ranking is ours}
    head = "| importance | ranking | score time, CPU s | " + " | ".join(
        f"{r:.0%} of MACs" for r in RATIOS
    )
    lines = [f"{head} |", "|---|---|---:|" + "---:|" * len(RATIOS)]
    seen = dict.fromkeys((r.ranking.name, r.ranking.rule) for r in results)
    for name, rule in seen:
        mine = [
            r
            for r in results
            if (r.ranking.name, r.ranking.rule, r.compensation) == (name, rule, compensation)
        ]
        cells = [cell(r, reference[compensation, r.ratio]) for r in mine]
        seconds = mine[0].ranking.seconds
        lines.append("| " + " | ".join([name, rule, f"{seconds:.2f}", *cells]) + " |")
    return "\n".join(lines)


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch-pruning's own hooks and classes
    model, data, test = resnet20(), images(CALIBRATION), images(TEST, "test")
    results: list[Result] = []
    for ranking in rankings(model, data):
        results += judge(model, ranking, data, test)
        last = [r for r in results if r.ranking is ranking]
        shown = ", ".join(f"{r.compensation} {r.ratio:.0%} {interval(r.hits)}" for r in last)
        print(f"{ranking.name} [{ranking.rule}]: {shown}", flush=True)
    text = report(model, results, test)
    if quick:
        print(text)
    else:
        (RESULTS / "torch_pruning_peers.md").write_text(text)


def summary(results: list[Result]) -> str:
    """For every ratio: ours against the best of all peers, in words a table can hold."""
    lines = ["| compensation | ratio | ours | best of torch-pruning's | ours less that, points |"]
    lines.append("|---|---:|---:|---|---:|")
    for compensation in COMPENSATIONS:
        for ratio in RATIOS:
            at = [r for r in results if (r.compensation, r.ratio) == (compensation, ratio)]
            own = next(r for r in at if r.ranking is results[0].ranking)
            best = max(
                (r for r in at if r.ranking.name not in OURS), key=lambda r: float(r.hits.sum())
            )
            told = f"{best.ranking.name}, {best.ranking.rule}: {interval(best.hits)}"
            lines.append(
                f"| {compensation} | {ratio:.0%} | {interval(own.hits)} | {told} | "
                f"{difference(own.hits, best.hits)} |"
            )
    return "\n".join(lines)


def report(model: nn.Module, results: list[Result], test: tuple[Tensor, Tensor]) -> str:
    achieved = pd.DataFrame([(r.ratio, r.achieved) for r in results], columns=["ratio", "achieved"])
    off = float((achieved["achieved"] - achieved["ratio"]).abs().max())
    parts = [
        "# torch-pruning's importances on the same groups, at equal MACs",
        f"CIFAR ResNet-20 (akamaster's weights), inner channels of all nine blocks, one shot, no "
        f"fine-tuning. Calibration: {CALIBRATION} training images; accuracy in percent on the "
        f"{TEST} test images with Wilson's 95 % interval; unpruned "
        f"{interval(correct_images(model, test))}. torch-pruning {torch_pruning.__version__} with "
        "the default options of each class computes the importance of each channel through its own "
        "dependency graph and groups; planning, surgery and compensation are the same code for "
        f"all. Every plan removes the ratio named to within {100 * off:.2f} points. The peers are "
        "ranked both as torch-pruning's global pruning does (importances, normalised within a "
        "layer, compared over layers) and divided by the MACs that a channel alone would save; "
        "random from five seeds. CPU time of one thread, graphs included.",
        "## Ours against the best peer at every ratio",
        f"Ours: {results[0].ranking.name}. The best peer is chosen on the test images themselves, "
        "in its favour.",
        summary(results),
    ]
    for compensation in COMPENSATIONS:
        parts += [
            f"## Accuracy, compensation {compensation}",
            rows_of(results, compensation, lambda r, _: interval(r.hits)),
            f"### Less ours on the same images, points ± half the 95 % interval ({compensation})",
            rows_of(results, compensation, lambda r, ours: difference(r.hits, ours.hits)),
        ]
    return "\n\n".join([*parts, provenance(), ""])


if __name__ == "__main__":
    main("--print" in sys.argv)
