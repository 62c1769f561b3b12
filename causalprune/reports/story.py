"""The words of a report: what happened, how sure it is, and what is doubtful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from causalprune.analysis import AnalysisResult
from causalprune.analysis.few_networks import QUESTION as FEW_NETWORKS
from causalprune.analysis.wording import MINUS, name_of, p_text, span, unit_of
from causalprune.reports.losses import Losses
from causalprune.reports.names import place_name
from causalprune.reports.numbers import KIB, count, half_width, listed, points, share
from causalprune.reports.score_tables import ScoreTable
from causalprune.reports.sources import Source

if TYPE_CHECKING:
    from causalprune.reports.class_losses import ByClass

# A loss of accuracy that most people would accept for a smaller network.
ACCEPTABLE_LOSS = 0.01


@dataclass(frozen=True)
class Choice:
    """The method and ratio that the headline is about, with means over checkpoints."""

    method: str
    ratio: float
    rows: pd.DataFrame
    loss: float
    margin: float
    removed: float


@dataclass(frozen=True)
class Tile:
    """One big number."""

    value: str
    label: str
    detail: str = ""


Choices = dict[str, Choice | None]
"""The choice of each pair of network and data set."""


def best_choice(trials: pd.DataFrame) -> Choice | None:
    """Pick the largest removal whose mean loss is at most one point; None where none is."""
    best: Choice | None = None
    for (method, level), rows in trials.groupby(["method", "ratio"]):
        ratio = float(str(level))
        loss, removed = float(rows["accuracy_loss"].mean()), float(rows["achieved_ratio"].mean())
        if ratio <= 0 or loss > ACCEPTABLE_LOSS or not math.isfinite(removed):
            continue
        found = Choice(str(method), ratio, rows, loss, half_width(rows["accuracy_loss"]), removed)
        # Ties in what was asked for go to the smaller loss.
        if best is None or (found.ratio, -found.loss) > (best.ratio, -best.loss):
            best = found
    return best


def headline(source: Source, choices: Choices) -> str:
    """Say the main result in one sentence."""
    name = network_name(source)
    if source.trials.empty:
        return f"No trial on {name} completed"
    if len(choices) > 1:
        return _headline_of_several(choices)
    choice = next(iter(choices.values()))
    if choice is None:
        return f"Every prune ratio tried cost {name} more than one point of accuracy"
    if abs(choice.loss) < 0.0005:
        price = "without losing accuracy"
    elif choice.loss < 0 and choice.margin >= -choice.loss:
        price = "without a loss of accuracy that could be told from none"
    elif choice.loss < 0:
        price = f"and gained {points(-choice.loss)} points of accuracy"
    else:
        unsure = math.isfinite(choice.margin) and choice.margin > abs(choice.loss) / 2
        price = f"for {'about ' if unsure else ''}{points(choice.loss)} points of accuracy"
    subject = name if name.startswith(("the ", "LeNet", "ResNet")) else f"The network {name}"
    return (
        f"{subject[0].upper()}{subject[1:]} lost {share(choice.removed)} of its parameters {price}"
    )


def _headline_of_several(choices: Choices) -> str:
    found = [(place, choice.removed) for place, choice in choices.items() if choice]
    none = [place for place, choice in choices.items() if not choice]
    if not found:
        return "Every prune ratio tried cost every network more than one point of accuracy"
    found.sort(key=lambda item: -item[1])
    (first, most), *rest = found
    told = [f"{first} lost {share(most)}", *(f"{name} {share(removed)}" for name, removed in rest)]
    tail = f"; {listed(none)} nothing" if none else ""
    return (
        f"For at most one point of accuracy, {listed(told)} of {'their' if rest else 'its'} "
        f"parameters{tail}"
    )


def network_name(source: Source) -> str:
    """Return what the network is called in a sentence."""
    names = (
        sorted(set(source.table["architecture"].dropna())) if "architecture" in source.table else []
    )
    if len(names) != 1:
        return "the networks" if names else "the network"
    return place_name(names[0], None)


def lead(source: Source, choices: Choices) -> list[str]:
    """Say how the headline was arrived at and how the methods compare."""
    if source.trials.empty:
        if source.table.empty:
            return ["No trial has ended yet."]
        return [f"All {len(source.table)} trials failed; their errors are listed below."]
    sentences = []
    for place, choice in choices.items():
        trials = source.trials.loc[source.trials["place"] == place]
        where = f"{place}: with" if len(choices) > 1 else "With"
        if choice:
            sentences.append(_of_choice(trials, choice, where))
        compared = _compare_methods(trials)
        if compared and len(choices) == 1:
            sentences.append(compared)
    if any(choices.values()):
        which = "They are the largest ratios" if len(choices) > 1 else "It is the largest ratio"
        sentences.append(
            f"{which} of any method whose mean loss stayed within one point, so "
            f"{'these are selected results' if len(choices) > 1 else 'it is a selected result'}; "
            "the tables below have all."
        )
    return sentences


def _of_choice(trials: pd.DataFrame, choice: Choice, where: str) -> str:
    networks = choice.rows["checkpoint"].nunique()
    plural = "networks trained from different seeds" if networks > 1 else "trained network"
    tested = (
        f" on {int(trials['n_test'].iloc[0]):,} test images" if _known(trials, "n_test") else ""
    )
    interval = (
        f" (95 % interval {points(choice.loss - choice.margin, 2)} to "
        f"{points(choice.loss + choice.margin, 2)})"
        if math.isfinite(choice.margin)
        else ""
    )
    return (
        f"{where} the scoring method “{choice.method}” at a prune ratio of {choice.ratio:g}, the "
        f"mean accuracy loss after retraining was {points(choice.loss, 2)} points{interval}, "
        f"over {networks} {plural}{tested}."
    )


def _known(trials: pd.DataFrame, column: str) -> bool:
    return column in trials and bool(trials[column].notna().all()) and len(trials) > 0


def _compare_methods(trials: pd.DataFrame) -> str:
    methods = list(dict.fromkeys(trials["method"]))
    if len(methods) < 2:
        return ""
    common = set.intersection(*(set(trials.loc[trials["method"] == m, "ratio"]) for m in methods))
    common -= {0.0}
    if not common:
        return ""
    top = max(common)
    losses = trials.loc[trials["ratio"] == top].groupby("method")["accuracy_loss"].mean()
    told = ", ".join(f"{method} {points(loss)}" for method, loss in losses.sort_values().items())
    return f"At the heaviest common ratio, {top:g}, the mean loss in points was: {told}."


def how_sure(results: Sequence[AnalysisResult]) -> list[str]:
    """Say what the causal analyses found and how many attempts to refute it failed."""
    told = []
    for result in results:
        if result.preset == "iisc":
            continue
        sentence = result.headline
        tried = [item for item in result.refutations if item.passed is not None]
        if tried:
            held = sum(item.passed is True for item in tried)
            sentence += f" {held} of {count(len(tried), 'attempt')} to refute it failed to."
        if result.p_value is not None:
            sentence += f" Randomisation test of no effect at all: {p_text(result.p_value)}."
        told.append(sentence)
    return told


def doubtful(source: Source, results: Sequence[AnalysisResult]) -> list[str]:
    """Say which attempts to refute the analyses succeeded, and what else speaks against them."""
    told = []
    for result in results:
        if result.preset == "iisc" or not result.estimable:
            continue
        if result.doubts:
            told.append(
                f"The effect on {name_of(result.outcome)} did not stand up to: "
                f"{', '.join(result.doubts)}. The sentences are below."
            )
        violated = sum(item.violated for item in result.independencies)
        if violated:
            told.append(
                f"The table contradicts the causal graph of {name_of(result.outcome)} in "
                f"{count(violated, 'place')}."
            )
    networks = source.trials["checkpoint"].nunique() if len(source.trials) else 0
    tried = [item for result in results if result.preset != "iisc" for item in result.refutations]
    if tried and not told:
        told.append("None of the attempts to refute the analysis succeeded; that is no proof.")
    told += [text for result in results if (text := _by_few_networks(result))]
    if 0 < networks < 10:
        told.append(
            f"{count(networks, 'trained network')}{' each' if len(source.places) > 1 else ''}: "
            "few enough that another seed may shift every number here."
        )
    return told


def _by_few_networks(result: AnalysisResult) -> str:
    """Say that the bootstrap for few networks contains zero where the main interval does not."""
    if result.interval[0] <= 0 <= result.interval[1]:
        return ""
    for item in result.findings:
        if item.question == FEW_NETWORKS and item.estimable and item.low <= 0 <= item.high:
            unit = unit_of(result.outcome)
            return (
                f"A bootstrap made for few networks puts the effect on {name_of(result.outcome)} "
                f"at {span(result.outcome, item.low, item.high)} {unit}".rstrip()
                + ": by that alone it may be none."
            )
    return ""


def paid(classes: Sequence[ByClass]) -> list[str]:
    """Say of each place whether single classes lost more than the others."""
    several = len(classes) > 1
    return [f"{f'{item.place}: ' if several else ''}{item.short}" for item in classes if item.short]


def advice(lost: Sequence[Losses]) -> list[str]:
    """Give the guideline of each place in one sentence."""
    several = len(lost) > 1
    return [
        f"{f'{item.place}: ' if several else ''}{item.guideline[0]}"
        for item in lost
        if item.guideline
    ]


def headline_of_scores(scores: ScoreTable) -> str:
    """Say what scores found, in one sentence."""
    frame = scores.frame
    if not scores.has_categories:
        return f"{count(len(frame), 'unit')} ranked by “{scores.method}”"
    counts = frame["category"].value_counts()
    critical, neutral, idle = (
        int(counts.get(name, 0)) for name in ("critical", "neutral", "detrimental")
    )
    told = []
    if critical:
        told.append(f"{critical:,} {'is' if critical == 1 else 'are'} critical")
    if neutral:
        verb = "makes" if neutral == 1 else "make"
        told.append(f"{neutral:,} {verb} no difference that could be shown")
    if idle:
        told.append(f"the network would do better without {idle:,}")
    if len(told) > 1:
        told[-1] = f"and {told[-1]}"
    return f"Of {count(len(frame), 'unit')}, {', '.join(told)}"


def lead_of_scores(scores: ScoreTable) -> list[str]:
    """Say what was measured, and on how much."""
    images = f", over {scores.n_images:,} images" if scores.n_images else ""
    if scores.has_effects:
        told = [
            f"Each unit was judged by how the {scores.outcome} changes when it is cut off, "
            f"by “{scores.method}”{images}."
        ]
    else:
        told = [
            f"“{scores.method}” ranks units by an importance of its own; it measures no effect, so "
            "there are no intervals and no categories."
        ]
    top = scores.frame.sort_values("importance", ascending=False).iloc[0]
    told.append(f"The unit that matters most is number {top['unit']} of {top['layer']}.")
    return told


def tiles(trials: pd.DataFrame, choice: Choice | None) -> list[Tile]:
    """Give the big numbers under the headline."""
    if trials.empty:
        return []
    base = trials.loc[trials["ratio"] == trials["ratio"].min()]
    before = float(trials.groupby("checkpoint")["accuracy_before"].first().mean())
    found = [Tile(share(before, 1), "accuracy unpruned", "mean of the networks")]
    if choice is None:
        return found
    after = float(choice.rows["accuracy"].mean())
    detail = f"{choice.method}, ratio {choice.ratio:g}"
    found.append(Tile(share(after, 1), "accuracy pruned and retrained", detail))
    for column, label, unit in (
        ("parameters", "parameters", ""),
        ("macs", "MACs per image", ""),
        ("memory_bytes", "memory", "KiB"),
        ("latency_ms", "latency", "ms"),
    ):
        if column not in trials or choice.rows[column].isna().any() or base[column].isna().any():
            continue
        old, new = float(base[column].mean()), float(choice.rows[column].mean())
        if old <= 0:
            continue
        change = new / old - 1
        value = f"{MINUS if change < 0 else '+'}{abs(100 * change):.0f} %"
        found.append(Tile(value, label, f"{_size(old, unit)} → {_size(new, unit)}"))
    return found


def _size(value: float, unit: str) -> str:
    if unit == "KiB":
        return f"{value / KIB:,.0f} KiB"
    if unit == "ms":
        return f"{value:.3g} ms"
    return f"{value:,.0f}"
