"""What a counterfactual, a replay check and a search for root causes say, in numbers and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from causalprune.analysis import wording
from causalprune.analysis.results import plain_json
from causalprune.errors import UnknownNameError

__all__ = ["ArrowStrength", "Attribution", "Counterfactual", "Prediction", "Replay", "RootCause"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Prediction:
    """One outcome of a counterfactual.

    Attributes
    ----------
    outcome : str
        Column: ``"accuracy_loss"`` (a fraction), ``"memory_bytes"`` or ``"latency_ms"``.
    value : float
        What the trial would have shown, its own noise at its middle.
    low, high : float
        95 % interval for one such trial; NaN where too few trials could be held out.
    observed : float or None
        What the table recorded for this very cell, where it was run.

    Examples
    --------
    >>> from causalprune.analysis import Prediction
    >>> Prediction("accuracy_loss", 0.02, 0.01, 0.03).text
    'accuracy loss 2.00 points (95 % interval 1.00 to 3.00)'
    """

    outcome: str
    value: float
    low: float
    high: float
    observed: float | None = None

    @property
    def text(self) -> str:
        """The outcome in words."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        interval = (
            f"95 % interval {wording.span(self.outcome, self.low, self.high)}"
            if known
            else "no interval: fewer than 19 trials could be held out"
        )
        seen = (
            f"; recorded: {wording.number(self.outcome, self.observed)}"
            if self.observed is not None
            else ""
        )
        amount = wording.amount(self.outcome, self.value)
        return f"{wording.name_of(self.outcome)} {amount} ({interval}{seen})"


@dataclass(frozen=True)
class Replay:
    """How well held-out trials were predicted as counterfactuals.

    Attributes
    ----------
    outcome : str
    n : int
        Trials compared.
    mean_absolute_error : float
        In units of the outcome; NaN without trials.
    coverage : float
        Share of trials inside their 95 % intervals; NaN where there are no intervals.
    n_refused : int
        Held-out trials that lay outside the support of the others.

    Examples
    --------
    >>> from causalprune.analysis import Replay
    >>> replay = Replay("accuracy_loss", 12, 0.004, 11 / 12)
    >>> replay.text
    'accuracy loss: mean absolute error 0.40 points, 11 of 12 inside their 95 % intervals'
    >>> replay.verdict
    'The intervals of the accuracy loss may well hold the 95 % that they promise (62 to 100 % by \
these 12 trials).'
    """

    outcome: str
    n: int
    mean_absolute_error: float
    coverage: float
    n_refused: int = 0

    @property
    def coverage_interval(self) -> tuple[float, float]:
        """95 % interval of the coverage, by trials drawn at random; NaN where there is none.

        Clopper and Pearson, Biometrika 26 (1934). Trials of one network are taken as independent.
        """
        if not self.n or not math.isfinite(self.coverage):
            return math.nan, math.nan
        from scipy.stats import binomtest

        found = binomtest(round(self.coverage * self.n), self.n).proportion_ci(method="exact")
        return float(found.low), float(found.high)

    @property
    def verdict(self) -> str:
        """Whether the intervals hold what they promise, in a sentence; empty without intervals."""
        low, high = self.coverage_interval
        if not math.isfinite(low):
            return ""
        name, seen = wording.name_of(self.outcome), f"{100 * low:.0f} to {100 * high:.0f} %"
        if high < CONFIDENCE:
            return (
                f"The intervals of the {name} are too narrow: they hold {seen} of such trials, "
                "not 95 %."
            )
        if low > CONFIDENCE:
            return f"The intervals of the {name} are wider than need be: they hold {seen}."
        return (
            f"The intervals of the {name} may well hold the 95 % that they promise ({seen} by "
            f"these {self.n} trials)."
        )

    @property
    def text(self) -> str:
        """The check in words."""
        name = wording.name_of(self.outcome)
        if not self.n:
            return f"{name}: no held-out trial could be predicted"
        error = wording.amount(self.outcome, self.mean_absolute_error)
        inside = (
            f"{round(self.coverage * self.n)} of {self.n} inside their 95 % intervals"
            if math.isfinite(self.coverage)
            else f"{self.n} trials, no intervals"
        )
        return f"{name}: mean absolute error {error}, {inside}"


@dataclass(frozen=True)
class Counterfactual:
    """What a network would have had under another ratio, method, shift or machine.

    Attributes
    ----------
    cell : Mapping[str, Any]
        The design of the trial asked for.
    checkpoint : str or None
        The network; None: a trial of any network of its architecture in the table.
    predictions : tuple of Prediction
        Accuracy loss, memory, latency, as far as the table has them.
    sizes : Mapping[str, float]
        Parameters, MACs and achieved ratio of the pruned network; never learnt by regression.
    sizes_source : str
        Which trials they are from.
    sizes_exact : bool
        False where they are a mean over networks or a straight line between ratios.
    factual : Mapping[str, Any]
        The recorded trial that it starts from.
    basis : str
        What the answer rests on, in a sentence.
    replay : tuple of Replay
        The error of such answers for trials that were held out.
    seed : int

    Examples
    --------
    >>> from causalprune.analysis import Counterfactual, Prediction
    >>> answer = Counterfactual({"ratio": 0.6}, "0", (Prediction("latency_ms", 2.0, 1.5, 2.5),))
    >>> answer["latency_ms"].value
    2.0
    """

    cell: Mapping[str, Any]
    checkpoint: str | None
    predictions: tuple[Prediction, ...]
    sizes: Mapping[str, float] | None = None
    sizes_source: str = ""
    sizes_exact: bool = False
    factual: Mapping[str, Any] | None = None
    basis: str = ""
    replay: tuple[Replay, ...] = ()
    seed: int = 0

    def __getitem__(self, outcome: str) -> Prediction:
        """Return the prediction of an outcome."""
        for each in self.predictions:
            if each.outcome == outcome:
                return each
        raise UnknownNameError("outcome", outcome, [each.outcome for each in self.predictions])

    @property
    def sentence(self) -> str:
        """The answer with its intervals."""
        found = ", ".join(each.text for each in self.predictions)
        return f"{self._what()} would have had {found}."

    def summary(self) -> str:
        """Return the answer, its sizes, what it rests on and its replay error, a line each."""
        lines = [self.sentence]
        shown = self.sizes or {}
        if shown:
            named = {"parameters": "parameters", "macs": "MACs"}
            parts = [f"{round(shown[n]):,} {word}" for n, word in named.items() if n in shown]
            if "achieved_ratio" in shown:
                parts.append(f"{wording.percent(shown['achieved_ratio'])} of the parameters gone")
            lines.append(f"Sizes: {', '.join(parts)}; from {self.sizes_source}.")
        if self.factual:
            lines.append(f"Starts from {_trial(self.factual)}.")
        lines += [self.basis] if self.basis else []
        if self.replay:
            lines.append(
                "Replay check, trials held out at random and predicted in this way: "
                f"{'; '.join(each.text for each in self.replay)}."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        record: dict[str, Any] = plain_json(asdict(self))
        return {**record, "sentence": self.sentence}

    def _what(self) -> str:
        cell = self.cell
        names = [str(cell[n]) for n in ("architecture", "dataset") if n in cell]
        network = " on ".join(names) or "The network"
        own = f" (checkpoint {self.checkpoint.rpartition('/')[2]})" if self.checkpoint else ""
        method = f" by {cell['method']}" if "method" in cell else ""
        shift = f" under {cell['shift']}" if cell.get("shift", "none") != "none" else ""
        machine = f" on {cell['machine']}" if "machine" in cell else ""
        return f"{network}{own} pruned{method} at ratio {cell['ratio']:g}{shift}{machine}"


@dataclass(frozen=True)
class RootCause:
    """How much one cause contributes to a trial's deviation, in units of the outcome.

    `cause` is a column that the experiment sets; ``"sizes"`` (this pruning left more or fewer
    parameters than usual at its ratio), ``"network"`` (what is this checkpoint's own), a mediator
    such as ``"memory_bytes"``, or ``"trial"`` (this trial's own noise: nothing in the table
    explains it).

    Examples
    --------
    >>> from causalprune.analysis import RootCause
    >>> RootCause("ratio", 0.03, 0.02, 0.04).contribution
    0.03
    """

    cause: str
    contribution: float
    low: float
    high: float


@dataclass(frozen=True)
class Attribution:
    """Why one trial's outcome is not what trials of its architecture show on average.

    Attributes
    ----------
    trial : int or None
    outcome : str
    value, expected : float
        The trial's outcome and the mean over trials of its architecture.
    causes : tuple of RootCause
        Largest first; they sum to ``value - expected``.
    p_value : float
        Share of held-out trials that surprise as much as this one does given its design.
    sentence : str

    Examples
    --------
    >>> from causalprune.analysis import Attribution, RootCause
    >>> found = Attribution(3, "latency_ms", 2.0, 1.0, (RootCause("trial", 1.0, 0.8, 1.2),), 0.01)
    >>> found.unexpected
    True
    """

    trial: int | None
    outcome: str
    value: float
    expected: float
    causes: tuple[RootCause, ...]
    p_value: float
    sentence: str = ""

    @property
    def unexpected(self) -> bool:
        """Whether at most one in twenty trials surprises as much given its design."""
        return self.p_value <= 0.05


@dataclass(frozen=True)
class ArrowStrength:
    """How much of an outcome's variance goes when one arrow into it is cut.

    Examples
    --------
    >>> from causalprune.analysis import ArrowStrength
    >>> ArrowStrength("ratio", "accuracy_loss", 0.8, 0.7, 0.9).strength
    0.8
    """

    cause: str
    outcome: str
    strength: float
    low: float
    high: float


def _trial(factual: Mapping[str, Any]) -> str:
    number = f"trial {factual['trial']}" if "trial" in factual else "a recorded trial"
    parts = [str(factual[n]) for n in ("method",) if n in factual]
    if "ratio" in factual:
        parts.append(f"ratio {factual['ratio']:g}")
    for outcome in ("accuracy_loss", "memory_bytes", "latency_ms"):
        if factual.get(outcome) is not None:
            amount = wording.amount(outcome, float(factual[outcome]))
            parts.append(f"{wording.name_of(outcome)} {amount}")
    return f"{number} ({', '.join(parts)})"
