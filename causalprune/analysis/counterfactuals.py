"""Counterfactuals: what a network would have had at another ratio, method, shift or machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import root_causes
from causalprune.analysis.counterfactual_results import (
    ArrowStrength,
    Attribution,
    Counterfactual,
    Prediction,
    Replay,
)
from causalprune.analysis.structural_intervals import Calibrated, calibrate, predict
from causalprune.analysis.structural_model import CATEGORIES, NUMBERS, OUTCOMES, SIZES
from causalprune.analysis.structural_replay import answers_to, summarised
from causalprune.analysis.structural_support import ask
from causalprune.analysis.tables import completed_trials, read_table
from causalprune.errors import InvalidArgumentError, RecordError

__all__ = ["CounterfactualModel", "counterfactual"]

REPLAY_SHARE = 0.1
MAX_REPLAY = 200
# Above, a seeded sample of trials: the cost grows with the rows, the answers hardly change.
MAX_ROWS = 5000
# An outcome that more trials lack is left out; where fewer lack it, those trials are.
MAX_MISSING = 0.1


@dataclass(frozen=True)
class CounterfactualModel:
    """A structural model of a trial table that answers what-if questions.

    The estimand is a unit-level counterfactual in Pearl's sense (*Causality*, 2nd ed., section
    7.1): abduction (each network's own noise, from all its trials), action (ratio, method,
    shift, machine; parameters, MACs, the achieved ratio and the memory are taken from trials of
    that architecture, never learnt by regression), prediction through the joined accuracy and
    cost graphs with `dowhy.gcm`. The trial's own noise is not carried over: another trial draws
    another one, and the interval holds it. Intervals are scaled by trials that were held out; at
    a ratio that was not tried there, by whole ratios that were, too.

    A network's own noise is a level, the same at every ratio, and a part that grows with the spread
    of trials, both shrunk by how much networks differ. One that responds to pruning twice as much
    as others at every ratio is told between its own response and theirs.

    Attributes
    ----------
    frame : DataFrame
        The completed trials it was fitted to.
    calibrated : Calibrated
        The fitted model, its bootstrap draws and its conformal scores.
    replay : tuple of Replay
        Trials held out at random, predicted as counterfactuals by a model without them.
    seed : int
    n_failed, n_left_out : int
        Trials that failed, and trials left out for lack of a number or beyond 5000.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from causalprune.analysis import CounterfactualModel
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "method": m, "ratio": r, "parameters": 1000 - 1000 * r,
    ...      "accuracy_loss": 0.05 * r + 0.002 * rng.standard_normal()}
    ...     for c in range(4) for m in ("path", "random") for r in (0.0, 0.25, 0.5, 0.75)
    ... ])
    >>> model = CounterfactualModel.fit(table)
    >>> answer = model.counterfactual(ratio=0.6, method="path", checkpoint=2)
    >>> answer.sizes["parameters"]
    400.0
    >>> bool(answer["accuracy_loss"].low < 0.03 < answer["accuracy_loss"].high)
    True
    """

    frame: pd.DataFrame
    calibrated: Calibrated
    replay: tuple[Replay, ...]
    seed: int
    n_failed: int
    n_left_out: int

    @classmethod
    def fit(
        cls,
        table: Any,
        *,
        seed: int = 0,
        replay_share: float = REPLAY_SHARE,
    ) -> CounterfactualModel:
        """Fit the model to completed trials and check it by replaying some that it has not seen.

        Parameters
        ----------
        table : DataFrame, Study or path
            As `analyze` takes it. Needs ``ratio``, ``checkpoint`` and one of ``accuracy_loss``,
            ``memory_bytes``, ``latency_ms``.
        seed : int
            Same seed, same numbers.
        replay_share : float
            Share of the trials that the replay check holds out; 0 leaves it out.

        Raises
        ------
        RecordError
            Columns are missing or too few trials completed.
        InvalidArgumentError
            `seed` or `replay_share` is wrong.
        MissingDependencyError
            DoWhy is not installed.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InvalidArgumentError(f"seed: expected an integer from 0, got {seed!r}")
        if not 0 <= replay_share <= 0.5:
            raise InvalidArgumentError(f"replay_share: expected 0 to 0.5, got {replay_share!r}")
        frame, n_failed, n_left_out = _prepared(read_table(table), seed)
        replay: tuple[Replay, ...] = ()
        if replay_share:
            held_out = _drawn_trials(frame, replay_share, seed)
            rest = frame[~held_out].reset_index(drop=True)
            partial = cls(rest, calibrate(rest, seed), (), seed, 0, 0)
            replay = partial.compare(frame[held_out])
        return cls(frame, calibrate(frame, seed), replay, seed, n_failed, n_left_out)

    def counterfactual(
        self,
        *,
        network: str | None = None,
        ratio: float | None = None,
        method: str | None = None,
        machine: str | None = None,
        dataset: str | None = None,
        shift: str | None = None,
        checkpoint: object | None = None,
    ) -> Counterfactual:
        """Answer what this network would have had, had the trial been another one.

        What is not said stays as the network's trials have it, or must be said where they differ.

        Parameters
        ----------
        network : str, optional
            Architecture.
        ratio : float, optional
            Target ratio, a fraction, within the ratios tried by this method on this architecture.
        method, machine, dataset, shift : str, optional
            As in the table's columns.
        checkpoint : optional
            Which trained network; None: a trial of any of the architecture's networks.

        Returns
        -------
        Counterfactual
            With 95 % intervals for one trial: the model's uncertainty from a bootstrap over
            networks and the trials' spread, scaled so that 95 % of trials held out in turn fall
            inside (Vovk, Cross-conformal predictors, Annals of Mathematics and AI 74, 2015).

        Raises
        ------
        UnknownNameError
            A name that no such trial has, with the known ones.
        InvalidArgumentError
            Nothing is asked, or a ratio outside the support.
        """
        question = ask(
            self.frame,
            network=network,
            ratio=ratio,
            method=method,
            machine=machine,
            dataset=dataset,
            shift=shift,
            checkpoint=checkpoint,
        )
        row = {**question.cell, **question.sizes.columns()}
        found = predict(
            self.calibrated, pd.DataFrame([row]), [question.checkpoints], named=question.named
        )
        predictions = tuple(
            Prediction(
                outcome,
                float(each.value[0]),
                float(each.low[0]),
                float(each.high[0]),
                question.observed.get(outcome),
            )
            for outcome, each in found.items()
        )
        return Counterfactual(
            cell=question.cell,
            checkpoint=question.checkpoints[0] if question.named else None,
            predictions=predictions,
            sizes=question.sizes.values,
            sizes_source=question.sizes.source,
            sizes_exact=question.sizes.exact,
            factual=question.factual,
            basis=self._basis(question.support, question.named, len(question.checkpoints)),
            replay=self.replay,
            seed=self.seed,
        )

    def attribute(
        self, row: int | Mapping[str, Any] | pd.Series[Any], outcome: str = "accuracy_loss"
    ) -> Attribution:
        """Find the root causes of a trial's outcome, by Shapley values over the noise terms.

        See `causalprune.analysis.root_causes.attribute`.

        Parameters
        ----------
        row : int, mapping or Series
            Number of a trial of the table, or a row with its columns.
        outcome : str
            Outcome column.
        """
        return root_causes.attribute(self.frame, row, outcome, self.seed)

    def arrow_strengths(self, outcome: str = "accuracy_loss") -> tuple[ArrowStrength, ...]:
        """Return the strength of each arrow into an outcome, with bootstrap intervals.

        See `causalprune.analysis.root_causes.arrow_strengths`.
        """
        return root_causes.arrow_strengths(self.calibrated, outcome)

    def compare(self, rows: pd.DataFrame) -> tuple[Replay, ...]:
        """Predict other trials of the same networks as counterfactuals and compare.

        See `replay_error`, which makes sure that the model has not seen the trials.

        Parameters
        ----------
        rows : DataFrame
            Trials.
        """
        return summarised(answers_to(self.frame, self.calibrated, rows))

    def _basis(self, support: str, named: bool, networks: int) -> str:
        total = self.frame["checkpoint"].nunique()
        whose = (
            "This network's own part, from all its trials, is kept"
            if named
            else f"For a trial of any of its {networks} networks"
        )
        few = (
            ""
            if total > 2
            else "; with so few networks the interval says little about another network"
        )
        return (
            f"{whose}; fitted to {len(self.frame)} trials of {total} "
            f"network{'s' if total != 1 else ''}; {support}{few}."
        )


def counterfactual(
    table: Any,
    *,
    network: str | None = None,
    ratio: float | None = None,
    method: str | None = None,
    machine: str | None = None,
    dataset: str | None = None,
    shift: str | None = None,
    checkpoint: object | None = None,
    seed: int = 0,
) -> Counterfactual:
    """Answer one what-if question about a table; for several, fit a `CounterfactualModel` once.

    Parameters
    ----------
    table : DataFrame, Study or path
        As `analyze` takes it.
    network, ratio, method, machine, dataset, shift, checkpoint
        As `CounterfactualModel.counterfactual` takes them.
    seed : int
        Same seed, same numbers.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from causalprune.analysis import counterfactual
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame([
    ...     {"checkpoint": c, "ratio": r, "accuracy_loss": 0.05 * r + 0.01 * rng.random()}
    ...     for c in range(6) for r in (0.0, 0.25, 0.5, 0.75)
    ... ])
    >>> answer = counterfactual(table, ratio=0.5)
    >>> round(answer["accuracy_loss"].value, 2)
    0.03
    """
    return CounterfactualModel.fit(table, seed=seed).counterfactual(
        network=network,
        ratio=ratio,
        method=method,
        machine=machine,
        dataset=dataset,
        shift=shift,
        checkpoint=checkpoint,
    )


def _drawn_trials(frame: pd.DataFrame, share: float, seed: int) -> np.ndarray[Any, Any]:
    # Rows of one trial (under several shifts) are held out together.
    trials = frame["trial"].to_numpy() if "trial" in frame else np.arange(len(frame))
    distinct = np.unique(trials)
    count = min(max(1, round(share * len(distinct))), MAX_REPLAY)
    drawn = np.random.default_rng(seed).choice(distinct, size=count, replace=False)
    return np.isin(trials, drawn)


def _prepared(table: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, int, int]:
    """Return completed trials with whole columns, and how many failed and were left out."""
    there = [n for n in OUTCOMES if n in table and table[n].notna().any()]
    if not there:
        raise RecordError(f"table: expected one of the columns {', '.join(OUTCOMES)}, got none")
    ok = table[table["status"].astype(str).str.lower() != "failed"] if "status" in table else table
    enough = [n for n in there if ok[n].isna().mean() <= MAX_MISSING]
    if not enough:
        raise RecordError(f"table: {', '.join(there)}: missing in most completed trials")
    trials = completed_trials(table, ("ratio", *enough))
    frame = trials.frame
    for name in CATEGORIES:
        if name in frame:
            frame[name] = frame[name].fillna("none").astype(str)
    for name in (*SIZES, *NUMBERS):
        if name in frame:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    whole = frame.drop(columns=[n for n in there if n not in enough])
    if len(whole) > MAX_ROWS:
        rows = np.random.default_rng(seed).choice(len(whole), size=MAX_ROWS, replace=False)
        whole = whole.iloc[np.sort(rows)].reset_index(drop=True)
    left_out = trials.n_incomplete + len(frame) - len(whole)
    return whole, trials.n_failed, left_out
