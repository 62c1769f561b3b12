"""What an analysis found as text: the answer first, then under headings what stands behind it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from causalprune.analysis.wording import headline, p_text

if TYPE_CHECKING:
    from causalprune.analysis.evidence import Finding, Refutation
    from causalprune.analysis.results import AnalysisResult

__all__ = ["summary"]

_SENTENCE = re.compile(r"(?<=[.:;]) (?=[A-Z])")

# By the question of the findings below them; these come first, in this order.
_HEADINGS = {
    "dose-response": "From one level to another",
    "method": "One method instead of another",
    "few networks": "The same effect, by a bootstrap for few networks",
    "target to achieved": "From the target to what was achieved",
    "by dataset": "By data set",
}


def summary(result: AnalysisResult, width: int | None) -> str:
    """Return everything the analysis found; see `AnalysisResult.summary`."""
    parts = [("", _answer(result)), ("Before using these numbers", list(result.notes))]
    parts += [(_attempts(result.refutations), [_attempt(item) for item in result.refutations])]
    parts += [("The causal graph against the table", [result.graph_check])]
    parts += [
        (heading, _shared_once(findings)) for heading, findings in _by_question(result.findings)
    ]
    blocks = []
    for heading, lines in parts:
        shown = [line for line in lines if line]
        if shown:
            mark = "  - " if heading else ""
            blocks.append("\n".join([heading] * bool(heading) + _wrapped(shown, mark, width)))
    return "\n\n".join(blocks)


def _answer(result: AnalysisResult) -> list[str]:
    lines = [headline(result)]
    if result.n_trials:
        failed = f", {result.n_failed} failed" if result.n_failed else ""
        lines.append(
            f"From {result.n_trials} completed trials of {result.n_clusters} independently "
            f"trained networks{failed}."
        )
    if result.p_value is not None:
        lines.append(
            f"Randomisation test within blocks: {p_text(result.p_value)} under the hypothesis of "
            "no effect on any trial."
        )
    return lines


def _attempts(refutations: Sequence[Refutation]) -> str:
    verdicts = [item.verdict for item in refutations]
    told = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(verdicts) if kind)
    return f"Attempts to refute it: {told}" if told else "Attempts to refute it"


def _attempt(item: Refutation) -> str:
    verdict = f" [{item.verdict}]" if item.verdict else ""
    return f"{item.name}{verdict}: {item.sentence}"


def _by_question(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """Group findings by question; the order is that of the headings, then as they came."""
    groups: dict[str, list[Finding]] = {name: [] for name in _HEADINGS}
    for item in findings:
        groups.setdefault(item.question, []).append(item)
    return [
        (_HEADINGS.get(question, question[:1].upper() + question[1:]), group)
        for question, group in groups.items()
        if group
    ]


def _shared_once(findings: Sequence[Finding]) -> list[str]:
    """One line a finding; sentences that all of a group repeat follow once, at the end."""
    split = [
        _SENTENCE.split(item.sentence or f"{item.contrast}: {item.reason}") for item in findings
    ]
    shared = [
        sentence
        for sentence in split[0]
        if len(split) > 1 and all(sentence in others for others in split)
    ]
    lines = [" ".join(part for part in parts if part not in shared) for parts in split]
    return [*dict.fromkeys(line for line in lines if line), " ".join(shared)]


def _wrapped(lines: Iterable[str], mark: str, width: int | None) -> list[str]:
    if width is None:
        return [mark + line for line in lines]
    return [
        textwrap.fill(
            line,
            max(40, width),
            initial_indent=mark,
            subsequent_indent=" " * len(mark),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    ]
