"""C-SWAP: which units are critical, neutral or detrimental, by a test per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import (
    Job,
    MethodResult,
    UnitScores,
    fixed_outcome,
    register_method,
)
from causalprune.scoring.outcomes import OUTCOMES, Outcome
from causalprune.scoring.paired_tests import Numbers, signed_rank_tests, t_tests

__all__ = ["ClassTests", "cswap", "cswap_categories", "cswap_importance"]

Truths = NDArray[np.bool_]

MANY_CLASSES = 20
"""Beyond so many tested classes the false discovery rate is controlled by default."""

LARGEST_TABLE = 1_000_000
"""Rows of the table of classes; a network for 1000 classes would have tens of millions."""


@dataclass(frozen=True)
class ClassTests:
    """Tests of the relative change of the true-class probability, per unit and class.

    Attributes
    ----------
    classes : tuple of int
        The K classes that were tested.
    n : ndarray [K], int64
        Images of each.
    xi : ndarray [U, K], float64
        Mean over the images of a class of ``(p_do - p) / max(p, floor)``.
    se : ndarray [U, K], float64
        Its standard error.
    p_decrease, p_increase : ndarray [U, K], float64
        One-sided p-values: of "no fall by more than `smallest_change`" and of "no such rise".
    p_equivalent : ndarray [U, K], float64
        p-value of "changes by the margin or more" (two one-sided tests).
    """

    classes: tuple[int, ...]
    n: NDArray[np.int64]
    xi: Numbers
    se: Numbers
    p_decrease: Numbers
    p_increase: Numbers
    p_equivalent: Numbers


@register_method(
    "cswap",
    interventions=("zero", "mean", "resample"),
    outcomes=("probability",),
    orders=True,
)
def cswap(
    job: Job,
    *,
    test: str = "t",
    alpha: float = 0.05,
    fdr: bool | None = None,
    smallest_change: float = 0.01,
    margin: float = 0.05,
    floor: float = 1e-3,
) -> MethodResult:
    """Relative change of the true-class probability, and the category that its tests give.

    For unit n, image x and softmax probability p of the true class,
    ``d_n(x) = (p_do(x) - p(x)) / max(p(x), floor)``; ``xi`` is its mean over the images of one
    class. ``effect`` is the mean of d over all images. A unit is critical when in some class xi
    is significantly below ``-smallest_change``, detrimental when it is not and in some class xi
    is significantly above ``smallest_change``, else neutral. Tests against zero would tell how
    many images there are rather than which units matter: of a ResNet-20's 400 units 309 then are
    critical with 512 images and 383 with 2000. Without `fdr` every class is a test at level
    `alpha` of its own, so a unit whose xi is ``-smallest_change`` in all K classes is called
    critical with probability up to ``1 - (1 - alpha)^K``.

    "Not significant" is not "no effect": table ``units`` tells neutral units that are equivalent
    to no effect within `margin` in every class from those that are undecided. Table ``classes``
    has one row per unit and class with xi, its standard error, its p-values (as they are, before
    any correction) and the verdict (after it), unless that is more than a million rows.

    ``importance`` ranks for the pruning order: detrimental units by descending xi, then neutral
    ones by ascending abs(xi), then critical ones; see :func:`cswap_importance`.

    Parameters
    ----------
    job : Job
    test : str
        ``"t"`` (paired) or ``"wilcoxon"`` (signed ranks; keeps d of all images in memory,
        8 bytes per unit and image).
    alpha : float
        Level of the tests, in (0, 1).
    fdr : bool, optional
        Whether to control the false discovery rate over units, class by class (Benjamini and
        Hochberg). Default: with more than 20 tested classes.
    smallest_change : float
        A unit is critical, or detrimental, where xi exceeds it significantly; in [0, 1). With 0,
        any significant change of any class counts.
    margin : float
        Relative changes below it count as none in the equivalence tests.
    floor : float
        Smallest probability that is divided by.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range, or an outcome is given: the method has its own.
    DataError
        If no class has two images. Classes without images, or with one, are left out with a note.

    Notes
    -----
    Source: Bauvin, Baret and Ahmad (2025), C-SWAP; xi as in the paper, tests, smallest
    change, floor, correction and ranking reconstructed.

    Examples
    --------
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     model[2].weight[:, 1] = 0  # nobody listens to hidden unit 1
    >>> scores = score(model, (torch.randn(20, 4), torch.arange(20) % 2), method="cswap")
    >>> scores.tables["units"]["verdict"][1], len(scores.tables["classes"])
    ('equivalent', 6)
    """
    _check_options(test, alpha, fdr, smallest_change, margin, floor)
    job = fixed_outcome(job, "cswap", OUTCOMES["probability"])
    totals, samples, costs = _measure(job, floor, keep=test == "wilcoxon")
    tests, notes = _test_classes(job, samples, test, margin, smallest_change)
    controlled = len(tests.classes) > MANY_CLASSES if fdr is None else fdr
    falls, rises = _significant(tests, alpha, controlled)
    category = cswap_categories(falls, rises)
    equivalent: Truths = np.asarray((tests.p_equivalent <= alpha).all(1))
    importance = torch.from_numpy(cswap_importance(tests.xi, category))
    units, start = {}, 0
    for group in job.graph.groups:
        part = slice(start, start + group.n_units)
        mean, start = totals[group.name], part.stop
        units[group.name] = UnitScores(
            importance[part],
            mean.mean,
            mean.standard_error,
            mean.n,
            costs[group.name] * mean.n,
            category=category[part],
            statistics=mean,
        )
    correction = "Benjamini-Hochberg over units per class" if controlled else "uncorrected"
    notes += _neutral_notes(category, equivalent, margin)
    tables = {"units": _unit_table(job, category, equivalent, tests)}
    if tests.xi.size <= LARGEST_TABLE:
        tables["classes"] = _class_table(job, tests, falls, rises)
    else:
        notes += (f"no table of classes: it would have {tests.xi.size:,} rows",)
    return MethodResult(
        units,
        notes=(
            f"{test} tests at level {alpha:g} of relative changes by more than "
            f"{smallest_change:g}, {correction}",
            *notes,
        ),
        tables=tables,
        outcome=Outcome("relative probability", job.outcome.function, higher_is_better=True),
    )


def cswap_categories(falls: Truths, rises: Truths) -> tuple[str, ...]:
    """Categories of units from what is significant in which class.

    Parameters
    ----------
    falls, rises : ndarray [U, K], bool
        Whether the true-class probability falls, or rises, significantly.

    Examples
    --------
    >>> falls = np.array([[True, False], [False, False], [False, False]])
    >>> rises = np.array([[False, True], [True, False], [False, False]])
    >>> cswap_categories(falls, rises)
    ('critical', 'detrimental', 'neutral')
    """
    return tuple(
        "critical" if down else "detrimental" if up else "neutral"
        for down, up in zip(np.asarray(falls.any(1)), np.asarray(rises.any(1)), strict=True)
    )


def cswap_importance(xi: Numbers, category: Sequence[str]) -> Numbers:
    """Ranking of units for removal, lowest first: detrimental, neutral, critical.

    A detrimental unit gets ``-s(max xi)``, a neutral one ``s(max abs(xi))`` and a critical one
    ``1 + s(max -xi)``, maxima over classes and ``s(a) = a / (1 + a)``: the three categories lie in
    (-1, 0), [0, 1) and [1, 2), in each the order is that of the paper's loop, and no number
    depends on other units.

    Parameters
    ----------
    xi : ndarray [U, K], float64
        Mean relative changes per class.
    category : sequence of str [U]

    Returns
    -------
    ndarray [U], float64

    Notes
    -----
    Source: Bauvin, Baret and Ahmad (2025), C-SWAP; reconstructed.

    Examples
    --------
    >>> xi = np.array([[0.25, 1.0], [0.25, -1.0], [-0.5, 1.0]])
    >>> cswap_importance(xi, ["detrimental", "neutral", "critical"]).round(3).tolist()
    [-0.5, 0.5, 1.333]
    """
    kinds = np.asarray(category)
    # Ranks, unlike means, may be significant against the sign of every xi; still not neutral.
    rise = np.maximum(xi.max(1), 1e-12)
    fall, either = np.maximum(-xi.min(1), 0.0), np.abs(xi).max(1)
    ranking = np.where(kinds == "critical", 1 + fall / (1 + fall), either / (1 + either))
    ranking = np.where(kinds == "detrimental", -rise / (1 + rise), ranking)
    return np.asarray(ranking, dtype=np.float64)


def _check_options(
    test: str,
    alpha: float,
    fdr: bool | None,
    smallest_change: float,
    margin: float,
    floor: float,
) -> None:
    if test not in ("t", "wilcoxon"):
        raise UnknownNameError("test", test, ("t", "wilcoxon"))
    if not _is_number(alpha) or not 0 < alpha < 1:
        raise InvalidArgumentError(f"alpha: expected a number in (0, 1), got {alpha!r}")
    if fdr is not None and not isinstance(fdr, bool):
        raise InvalidArgumentError(f"fdr: expected True, False or None, got {fdr!r}")
    if not _is_number(smallest_change) or not 0 <= smallest_change < 1:
        raise InvalidArgumentError(
            f"smallest_change: expected a number in [0, 1), got {smallest_change!r}"
        )
    for name, value in (("margin", margin), ("floor", floor)):
        if not _is_number(value) or not value > 0:
            raise InvalidArgumentError(f"{name}: expected a positive number, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass
class _ClassSample:
    """Relative changes on the images of one class, all units side by side."""

    mean: PairedMean
    values: list[Tensor]


def _measure(
    job: Job, floor: float, keep: bool
) -> tuple[dict[str, PairedMean], dict[int, _ClassSample], dict[str, float]]:
    """Mean of d over all images per group, its sample per class, and the cost per image."""
    exact = ExactEffects(job)
    groups = job.graph.groups
    totals = {group.name: PairedMean(group.n_units) for group in groups}
    samples: dict[int, _ClassSample] = {}
    n_batches = job.batches.n_batches
    steps = None if n_batches is None else n_batches * len(groups)
    with torch.no_grad(), job.bar("C-SWAP", steps) as advance:
        for batch in job.batches:
            plain, parts = exact.observe(batch).clamp_min(floor), []
            for group in groups:
                effects = exact.effects(group.name, range(group.n_units))
                parts.append((effects / plain[:, None]).cpu())
                totals[group.name].update(parts[-1])
                advance()
            changes, targets = torch.cat(parts, 1), torch.as_tensor(batch.targets, device="cpu")
            for label in np.unique(targets.numpy()).tolist():
                of_class = changes[targets == label]
                sample = samples.setdefault(label, _ClassSample(PairedMean(job.n_units), []))
                sample.mean.update(of_class)
                if keep:
                    sample.values.append(of_class)
    return totals, samples, {g.name: exact.interventions.cost(g.name) for g in groups}


def _test_classes(
    job: Job,
    samples: Mapping[int, _ClassSample],
    test: str,
    margin: float,
    smallest_change: float,
) -> tuple[ClassTests, tuple[str, ...]]:
    with torch.no_grad():
        n_classes = job.model(job.batches.example).shape[1]
    tested = sorted(label for label, sample in samples.items() if sample.mean.n > 1)
    if not tested:
        raise DataError(
            "data: expected a class with at least two images, because method 'cswap' tests class "
            f"by class, got one image in each of {len(samples)} classes"
        )
    notes = [
        f"class {label} has {'one image' if label in samples else 'no images'}: not tested"
        for label in range(n_classes)
        if label not in tested
    ]
    columns = []
    for label in tested:
        mean = samples[label].mean
        if test == "t":
            found = t_tests(mean, margin, smallest_change)
        else:
            changes = torch.cat(samples[label].values).numpy()
            found = signed_rank_tests(changes, margin, smallest_change)
        columns.append((mean.mean.numpy(), mean.standard_error.numpy(), *found))
    n = np.array([samples[label].mean.n for label in tested])
    return ClassTests(
        tuple(tested), n, *(np.stack(part, 1) for part in zip(*columns, strict=True))
    ), tuple(notes)


def _significant(tests: ClassTests, alpha: float, controlled: bool) -> tuple[Truths, Truths]:
    """Whether each unit's probability falls, or rises, significantly in each class [U, K]."""
    decrease, increase = tests.p_decrease, tests.p_increase
    if controlled:
        from scipy.stats import false_discovery_control

        decrease, increase = (false_discovery_control(p, axis=0) for p in (decrease, increase))
    return decrease <= alpha, increase <= alpha


def _neutral_notes(category: Sequence[str], equivalent: Truths, margin: float) -> tuple[str, ...]:
    neutral = np.asarray(category) == "neutral"
    if not neutral.any():
        return ()
    same = int((neutral & equivalent).sum())
    return (
        f"of {int(neutral.sum())} neutral units {same} are equivalent to no effect within a "
        f"relative change of {margin:g} in every tested class, the others are undecided",
    )


def _names(job: Job) -> tuple[list[str], list[int]]:
    """Group and index of every unit, in the order of the columns of the tests."""
    groups = [group.name for group in job.graph.groups for _ in range(group.n_units)]
    return groups, [unit for group in job.graph.groups for unit in range(group.n_units)]


def _class_table(job: Job, tests: ClassTests, falls: Truths, rises: Truths) -> dict[str, object]:
    """One row per unit and tested class, unit by unit."""
    groups, units = _names(job)
    n_classes = len(tests.classes)
    verdict = np.where(falls, "decrease", np.where(rises, "increase", ""))
    return {
        "group": np.repeat(groups, n_classes),
        "unit": np.repeat(units, n_classes),
        "class": np.tile(tests.classes, len(units)),
        "xi": tests.xi.ravel(),
        "se": tests.se.ravel(),
        "p_decrease": tests.p_decrease.ravel(),
        "p_increase": tests.p_increase.ravel(),
        "p_equivalent": tests.p_equivalent.ravel(),
        "verdict": verdict.ravel(),
        "n": np.tile(tests.n, len(units)),
    }


def _unit_table(
    job: Job, category: Sequence[str], equivalent: Truths, tests: ClassTests
) -> dict[str, object]:
    """One row per unit: its verdict, and its extremes over the tested classes."""
    groups, units = _names(job)
    neutral = np.where(equivalent, "equivalent", "undecided")
    lowest, highest = tests.xi.argmin(1), tests.xi.argmax(1)
    classes, every = np.asarray(tests.classes), np.arange(len(units))
    return {
        "group": groups,
        "unit": units,
        "verdict": np.where(np.asarray(category) == "neutral", neutral, category),
        "xi_lowest": tests.xi[every, lowest],
        "class_lowest": classes[lowest],
        "xi_highest": tests.xi[every, highest],
        "class_highest": classes[highest],
    }
