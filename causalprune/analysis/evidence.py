"""The pieces of what an analysis says: contrasts, findings, attempts to break them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from causalprune.analysis.wording import p_text, percent

__all__ = ["VERDICTS", "Contrast", "Finding", "Independence", "Refutation"]

VERDICTS = {True: "held", False: "did not hold", None: "not applicable"}
"""What is said of an attempt by whether its rule holds."""


@dataclass(frozen=True)
class Refutation:
    """One attempt to break an estimate.

    Attributes
    ----------
    name : str
        ``"placebo treatment"``, ``"random common cause"`` or ``"data subset"``.
    estimate : float
        The estimate under attack, in the units of `AnalysisResult.estimate`.
    refuted_effect : float
        Mean estimate over the simulations; NaN where there were none.
    p_value : float or None
        The refuter's p-value where it has one. A large one is no support.
    threshold : str
        The rule that `passed` applies, in words.
    passed : bool or None
        Whether the rule holds; None where the refuter does not apply.
    sentence : str
        What happened and what it means.
    low, high : float
        Band of the simulated estimates that the rule looks at; NaN without one.
    simulations : int
        How many estimates were computed.
    verdict : str
        The outcome in one or two words.

    Examples
    --------
    >>> from causalprune.analysis import Refutation
    >>> placebo = Refutation("placebo treatment", 0.02, 0.0001, 0.005, "band", True, "It holds.")
    >>> placebo.passed
    True
    """

    name: str
    estimate: float
    refuted_effect: float
    p_value: float | None
    threshold: str
    passed: bool | None
    sentence: str
    low: float = math.nan
    high: float = math.nan
    simulations: int = 0
    verdict: str = ""


@dataclass(frozen=True)
class Contrast:
    """Effect of moving the treatment from `start` to `end`, in units of the outcome.

    `reason` is empty, or says why the contrast is refused (then the numbers are NaN); `clusters`
    counts the independently trained networks behind it.

    Examples
    --------
    >>> from causalprune.analysis import Contrast
    >>> Contrast(0.0, 0.5, 0.012, 0.004, 0.020).effect
    0.012
    """

    start: float
    end: float
    effect: float
    low: float
    high: float
    clusters: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """One effect beside the main one: another estimator's, a method's, an architecture's.

    Attributes
    ----------
    question : str
        What it answers; findings of one question stand together in a report: ``"method"``,
        ``"dose-response"``, ``"by architecture"``, ``"through memory"``, ``"target to achieved"``.
    contrast : str
        What is compared: ``"wt instead of l1"``, ``"ratio 0.3 to 0.7"``.
    estimator : str
        How, in a few words: ``"LinearDML, spline, known design"``.
    effect, low, high : float
        In units of `outcome`, with a 95 % interval; NaN where the table cannot tell.
    outcome : str
        Column whose change `effect` is.
    n_clusters : int
        Independently trained networks behind it.
    sentence : str
        What it says, with its caveats.
    reason : str
        Empty, or why there is no number.

    Examples
    --------
    >>> from causalprune.analysis import Finding
    >>> found = Finding("method", "wt instead of l1", "paired differences", -0.02, -0.03, -0.01)
    >>> found.estimable
    True
    """

    question: str
    contrast: str
    estimator: str
    effect: float
    low: float
    high: float
    outcome: str = "accuracy_loss"
    n_clusters: int = 0
    sentence: str = ""
    reason: str = ""

    @property
    def estimable(self) -> bool:
        """Whether there is a number."""
        return not self.reason


@dataclass(frozen=True)
class Independence:
    """One independence that a graph implies, and what the table says of it.

    Attributes
    ----------
    first, second : str
        Columns that are to be independent,
    given : tuple of str
        given these: the causes of `first`.
    share : float
        Of what is left of `first` given its causes, the part that `second` explains.
    p_value : float
        Holm-adjusted over all independencies; whole networks change places.
    violated : bool
        By a share above 2 % and an adjusted p-value below 0.01.

    Examples
    --------
    >>> from causalprune.analysis import Independence
    >>> Independence("latency_ms", "method", ("macs",), 0.001, 0.8, False).sentence
    'latency_ms is independent of method given macs (0.1 % explained, p = 0.80)'
    """

    first: str
    second: str
    given: tuple[str, ...]
    share: float
    p_value: float
    violated: bool

    @property
    def sentence(self) -> str:
        """What was found."""
        given = f" given {', '.join(self.given)}" if self.given else ""
        found = f"{percent(self.share)} explained, {p_text(self.p_value)}"
        verb = "depends on" if self.violated else "is independent of"
        return f"{self.first} {verb} {self.second}{given} ({found})"
