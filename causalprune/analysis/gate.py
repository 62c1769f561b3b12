"""Attempts to break an estimate that the three classical refuters cannot make.

The placebo, the random common cause and the subset all pass on a confounded estimate, on one that
was adjusted for consequences of pruning and, by p-value, on noise. These look where such estimates
differ from sound ones: at how the treatment was assigned, at an outcome that pruning cannot have
changed, at what was adjusted for, at the cells nobody looked into.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from causalprune.analysis import effects, randomisation
from causalprune.analysis.evidence import VERDICTS, Refutation
from causalprune.analysis.graphs import COST_OUTCOMES
from causalprune.analysis.refutations import SUBSET_SHARE, Target, relative
from causalprune.analysis.sensitivity import robustness
from causalprune.analysis.splines import MAX_KNOTS
from causalprune.analysis.tables import Trials
from causalprune.analysis.wording import amount, p_text, percent, span, unit_of

__all__ = ["Attack", "refute_further"]

CONTROL_OUTCOME = "accuracy_before"
ASSOCIATED = 0.01
RATIO_BINS = 5
BOOTSTRAP_DRAWS = 400
SAME_SIGN = 0.95
NOTHING = 1e-9

# Columns that are measured on the pruned network: whatever a table's rows say, they follow.
CONSEQUENCES = (
    *COST_OUTCOMES,
    "achieved_ratio",
    "achieved_ratio_macs",
    "accuracy",
    "accuracy_pruned",
    "output_difference",
    "seconds",
)


@dataclass(frozen=True)
class Attack:
    """What the further refuters need of an analysis.

    Attributes
    ----------
    trials : Trials
    target : Target
        The estimate, with the columns that it was adjusted for.
    design : Design
        The same columns by where they come from.
    step : float
        Of the treatment, that the estimate is for.
    seed : int
    """

    trials: Trials
    target: Target
    design: effects.Design
    step: float
    seed: int

    def slope(self, rows: pd.DataFrame, outcome: str, design: effects.Design) -> float:
        """Least-squares effect of a step of the treatment in some of the rows; NaN without one."""
        values = rows[self.target.treatment].to_numpy(dtype=float)
        matrix = np.column_stack(
            [np.ones(len(rows)), values, design.columns.loc[rows.index].to_numpy(dtype=float)]
        )
        coefficients, _, rank, _ = np.linalg.lstsq(
            matrix, rows[outcome].to_numpy(dtype=float), rcond=None
        )
        # Dummies of networks that are left out are columns of zeros; the treatment is none.
        return float(coefficients[1]) * self.step if rank > 1 and np.ptp(values) else math.nan


def refute_further(
    attack: Attack, advance: Callable[[], None] = lambda: None
) -> tuple[Refutation, ...]:
    """Look at assignment, control outcome, adjustment, overlap, parts of the table, sensitivity.

    Parameters
    ----------
    attack : Attack
    advance : callable
        Called after each.

    Returns
    -------
    tuple of Refutation
        `passed` is None where one does not apply, with the reason in its sentence.
    """
    found: list[Refutation] = []
    for refuter in (
        assignment_known,
        negative_control,
        adjustment_precedes,
        overlap,
        *(_leaving_out(name) for name in ("architecture", "dataset")),
        cluster_bootstrap,
    ):
        found.append(refuter(attack))
        advance()
    if not attack.trials.designed:
        found.append(robustness(attack.target, attack.design, attack.trials.frame))
        advance()
    return tuple(found)


def assignment_known(attack: Attack) -> Refutation:
    """Ask whether the experiment says how the treatment came to each trial."""
    designed = attack.trials.designed and attack.target.treatment != "achieved_ratio"
    what = attack.target.treatment
    sentence = (
        f"The table says that {what} was assigned by the experiment, so nothing that drives the "
        "outcome can have driven it."
        if designed
        else f"Nothing in the table says that {what} was assigned by the experiment: whatever "
        "made people prune one network harder may have moved the outcome, too. No test on the "
        "table itself can rule that out."
    )
    return _refutation(
        attack, "assignment", "the experiment assigned the treatment", designed, sentence
    )


def negative_control(attack: Attack) -> Refutation:
    """Estimate the effect on the accuracy of the unpruned network, which pruning cannot change."""
    rule = "interval of the effect on the unpruned network's accuracy contains zero"
    name = "negative-control outcome"
    frame, target = attack.trials.frame, attack.target
    usable = CONTROL_OUTCOME in frame and target.outcome.startswith("accuracy")
    values = pd.to_numeric(frame[CONTROL_OUTCOME], errors="coerce") if usable else None
    if values is None or values.isna().any() or np.ptp(values.to_numpy()) == 0:
        reason = (
            "There is no accuracy of the unpruned network that varies: this check cannot be made."
            if target.outcome.startswith("accuracy")
            else f"The table has no {target.outcome} of the unpruned networks to look at."
        )
        return _refutation(attack, name, rule, None, reason)
    own = ("checkpoint", CONTROL_OUTCOME)
    design = effects.build_design(
        frame,
        target.treatment,
        [column for column in attack.design.adjustment if column not in own],
        [column for column in attack.design.covariates if column not in own],
    )
    rows = frame.assign(**{CONTROL_OUTCOME: values.astype(float)})
    # In a balanced design the slope is zero but for rounding, and its interval is rounding alone.
    if abs(attack.slope(rows, CONTROL_OUTCOME, design)) < NOTHING:
        sentence = (
            "Pruning cannot have changed the accuracy before it, and the same analysis finds no "
            "effect on that: every network got every treatment alike."
        )
        return _refutation(attack, name, rule, True, sentence, effect=0.0, band=(0.0, 0.0))
    found = effects.linear_effect(rows, target.treatment, CONTROL_OUTCOME, design, step=attack.step)
    if isinstance(found, str):
        return _refutation(attack, name, rule, None, found)
    passed = found.low <= 0 <= found.high
    said = (
        f"is {amount(CONTROL_OUTCOME, found.effect)} "
        f"({span(CONTROL_OUTCOME, found.low, found.high)})"
    )
    meaning = (
        "with zero inside the interval, as it must be where nothing drives both"
        if passed
        else "so networks that were pruned harder were other networks to begin with: the estimate "
        "is confounded"
    )
    sentence = (
        f"Pruning cannot have changed the accuracy before it. The same analysis of that: the "
        f"effect {said}, {meaning}."
    )
    return _refutation(
        attack, name, rule, passed, sentence, effect=found.effect, band=(found.low, found.high)
    )


def adjustment_precedes(attack: Attack) -> Refutation:
    """Ask whether what the estimate is adjusted for came before the treatment."""
    rule = "nothing adjusted for follows from the treatment"
    name = "adjustment precedes treatment"
    columns = attack.design.adjustment
    if not columns:
        sentence = "The graph asks for no adjustment, so none can take part of the effect away."
        return _refutation(attack, name, rule, True, sentence)
    by_name = [column for column in columns if column in CONSEQUENCES]
    moved = [
        (column, p_value)
        for column in columns
        if column not in by_name and (p_value := _association(attack, column)) is not None
        if p_value < ASSOCIATED
    ]
    if not by_name and not moved:
        sentence = f"Adjusted for {', '.join(columns)}: none of it follows from the treatment."
        return _refutation(attack, name, rule, True, sentence)
    parts = [f"{column} is measured on the pruned network" for column in by_name]
    parts += [
        f"{column} differs with the treatment though that was assigned ({p_text(p_value)})"
        for column, p_value in moved
    ]
    sentence = (
        f"The estimate is adjusted for what pruning changes: {'; '.join(parts)}. Adjusting for a "
        "consequence takes the part of the effect away that goes through it."
    )
    return _refutation(attack, name, rule, False, sentence)


def _association(attack: Attack, column: str) -> float | None:
    """Randomisation p-value of a covariate's slope on an assigned treatment."""
    frame, target = attack.trials.frame, attack.target
    if not attack.trials.designed or column in ("architecture", "dataset", "checkpoint", "method"):
        return None
    values = frame[column]
    coded = values if pd.api.types.is_numeric_dtype(values) else pd.factorize(values)[0]
    rows = frame.assign(**{column: np.asarray(coded, dtype=float)})
    nothing = effects.Design(pd.DataFrame(index=frame.index), (), (), ())
    return randomisation.randomisation_p_value(
        rows, target.treatment, column, nothing, target.assignment, seed=attack.seed
    )


def overlap(attack: Attack) -> Refutation:
    """Look for cells of architecture and treatment in which there is no completed trial."""
    rule = "every architecture, data set and method has trials at every level of the treatment"
    frame, treatment = attack.trials.frame, attack.target.treatment
    values = frame[treatment]
    if values.nunique() > MAX_KNOTS:
        levels = pd.qcut(values, RATIO_BINS, duplicates="drop").astype(str)
    else:
        levels = values.map(lambda value: f"{value:g}")
    empty: list[str] = []
    for name in ("architecture", "dataset", "method"):
        if name in frame and frame[name].nunique() > 1:
            counts = pd.crosstab(frame[name].astype(str), levels)
            empty += [
                f"{row} at {column}"
                for row in counts.index
                for column in counts.columns
                if not counts.loc[row, column]
            ]
    if not empty:
        sentence = "Every cell has completed trials: no contrast is extrapolated."
        return _refutation(attack, "overlap", rule, True, sentence)
    listed = ", ".join(empty[:6]) + (f" and {len(empty) - 6} more" if len(empty) > 6 else "")
    sentence = (
        f"No completed trial with {listed}: there the model extrapolates, and contrasts that need "
        "these cells are no evidence."
    )
    return _refutation(attack, "overlap", rule, False, sentence)


def _leaving_out(column: str) -> Callable[[Attack], Refutation]:
    name = f"leave one {'data set' if column == 'dataset' else column} out"

    def leave_out(attack: Attack) -> Refutation:
        rule = f"same sign and shift below {percent(SUBSET_SHARE)} without any one of them"
        frame = attack.trials.frame
        levels = sorted(frame[column].astype(str).unique()) if column in frame else []
        if len(levels) < 2:
            only = f"only {levels[0]}" if levels else "no such column"
            sentence = f"There is {only}: whether the effect holds for another is unknown."
            return _refutation(attack, name, rule, None, sentence)
        without = {
            level: attack.slope(
                frame.loc[frame[column].astype(str) != level], attack.target.outcome, attack.design
            )
            for level in levels
        }
        return _judged(attack, name, rule, without, "without")

    return leave_out


def _judged(
    attack: Attack, name: str, rule: str, slopes: dict[str, float], word: str
) -> Refutation:
    target = attack.target
    known = {level: value for level, value in slopes.items() if math.isfinite(value)}
    if not known:
        return _refutation(attack, name, rule, None, "What is left has one treatment only.")
    shifts = {level: relative(value, target.estimate) for level, value in known.items()}
    worst = max(shifts, key=shifts.__getitem__)
    same_sign = all(np.sign(value) == np.sign(target.estimate) for value in known.values())
    passed = same_sign and shifts[worst] < SUBSET_SHARE
    meaning = (
        "no single one carries the result"
        if passed
        else "the result is about that one as much as about pruning"
    )
    sentence = (
        f"The estimate moves most {word} {worst}: to {amount(target.outcome, known[worst])} "
        f"(by {percent(shifts[worst])}); {meaning}."
    )
    low, high = min(known.values()), max(known.values())
    mean = float(np.mean(list(known.values())))
    return _refutation(
        attack, name, rule, passed, sentence, effect=mean, band=(low, high), draws=len(known)
    )


def cluster_bootstrap(attack: Attack) -> Refutation:
    """Draw whole networks with replacement: the sign should stay."""
    rule = f"same sign in {percent(SAME_SIGN)} of the draws of whole networks"
    name, target = "bootstrap of networks", attack.target
    frame = attack.trials.frame
    names = frame["checkpoint"].unique()
    if len(names) < 2:
        sentence = "All trials come from one trained network: there is nothing to draw from."
        return _refutation(attack, name, rule, None, sentence)
    rows_of = [np.flatnonzero(frame["checkpoint"] == network) for network in names]
    generator = np.random.default_rng(attack.seed)
    slopes = []
    for _ in range(BOOTSTRAP_DRAWS):
        drawn = generator.integers(len(names), size=len(names))
        slopes.append(
            attack.slope(
                frame.iloc[np.concatenate([rows_of[k] for k in drawn])],
                target.outcome,
                attack.design,
            )
        )
    values = np.array([value for value in slopes if math.isfinite(value)])
    share = float(np.mean(np.sign(values) == np.sign(target.estimate)))
    low, high = (float(q) for q in np.quantile(values, (0.025, 0.975)))
    passed = share >= SAME_SIGN
    few = (
        f" With {len(names)} networks the draws repeat themselves, and the band is too narrow."
        if len(names) < 10
        else ""
    )
    sentence = (
        f"{len(values)} draws of {len(names)} networks with replacement: {percent(share)} have the "
        f"estimate's sign, 95 % of them run from {span(target.outcome, low, high)} "
        f"{unit_of(target.outcome)}".rstrip()
        + f".{few}"
    )
    return _refutation(
        attack,
        name,
        rule,
        passed,
        sentence,
        effect=float(values.mean()),
        band=(low, high),
        draws=len(values),
    )


def _refutation(
    attack: Attack,
    name: str,
    rule: str,
    passed: bool | None,
    sentence: str,
    *,
    effect: float = math.nan,
    band: tuple[float, float] = (math.nan, math.nan),
    draws: int = 0,
) -> Refutation:
    return Refutation(
        name,
        attack.target.estimate,
        effect,
        None,
        rule,
        passed,
        sentence,
        *band,
        draws,
        VERDICTS[passed],
    )
