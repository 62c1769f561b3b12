"""Root causes of an anomalous trial, and how strong each arrow is, with bootstrap intervals."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from causalprune.analysis import wording
from causalprune.analysis.counterfactual_results import ArrowStrength, Attribution, RootCause
from causalprune.analysis.structural_intervals import Calibrated, calibrate, distance
from causalprune.analysis.structural_mechanisms import Array
from causalprune.analysis.structural_model import (
    NOTHING,
    SIZES,
    Structure,
    coded,
    from_noise,
    quiet_gcm,
)
from causalprune.errors import InvalidArgumentError, RecordError, UnknownNameError

__all__: list[str] = []

# Trials of the same architecture that stand for the usual trial.
REFERENCE_TRIALS = 60
# Up to here every coalition of causes is evaluated; 2^8 x 60 rows a draw.
MAX_CAUSES = 8
ATTRIBUTION_DRAWS = 40


def attribute(
    frame: pd.DataFrame,
    row: int | Mapping[str, Any] | pd.Series[Any],
    outcome: str,
    seed: int,
) -> Attribution:
    """Share out a trial's deviation from the usual trial among the noise terms behind it.

    The causes are what the experiment set (method, ratio, shift, machine, ...), the sizes that
    this pruning left, the network's own noise, mediators' noise and the trial's own. The value
    of a set of causes is the mean outcome over usual trials (of the same architecture and data
    set) that have this trial's noise in these terms; contributions are its Shapley values, as in
    Budhathoki et al., Causal structure-based root cause analysis of outliers, ICML 2022, for the
    deviation of the mean instead of a tail probability. Every set is evaluated, so nothing is
    left to chance. The trial is left out of the model that judges it.

    Parameters
    ----------
    frame : DataFrame
        Completed trials of a `CounterfactualModel`.
    row : int, mapping or Series
        Number of a trial of the table, or a row with its columns.
    outcome : str
        ``"accuracy_loss"``, ``"memory_bytes"`` or ``"latency_ms"``.
    seed : int

    Raises
    ------
    RecordError
        The row lacks a column.
    UnknownNameError
        A category that no other trial of the architecture has; an outcome without a column.
    InvalidArgumentError
        There is no such trial.
    """
    trial, rest = _found(frame, row)
    calibrated = calibrate(rest, seed)
    if outcome not in calibrated.structure.outcomes:
        raise UnknownNameError("outcome", outcome, calibrated.structure.outcomes)
    structure = _behind(calibrated.structure, outcome)
    _check_row(structure, trial)
    usual = _usual(structure, trial, seed)
    causes = _causes(structure, outcome, trial, usual)
    shares = _shares(structure, trial, usual, causes, outcome)
    few = [_behind(draw, outcome) for draw in calibrated.draws[:ATTRIBUTION_DRAWS]]
    drawn = np.array([_shares(draw, trial, usual, causes, outcome) for draw in few])
    low, high = _interval(shares, drawn)
    roots = tuple(
        RootCause(name, float(shares[k]), float(low[k]), float(high[k]))
        for k, name in sorted(enumerate(causes), key=lambda each: -abs(shares[each[0]]))
    )
    value = float(trial[outcome].iloc[0])
    expected = value - float(shares.sum())
    p_value = _surprise(calibrated, trial, outcome)
    number = int(trial["trial"].iloc[0]) if "trial" in trial else None
    sentence = _sentence(number, outcome, value, expected, roots, p_value)
    return Attribution(number, outcome, value, expected, roots, p_value, sentence)


def arrow_strengths(calibrated: Calibrated, outcome: str) -> tuple[ArrowStrength, ...]:
    """Return how much of an outcome's variance goes when an arrow into it is cut.

    Cutting feeds the outcome's mechanism values of that cause from other trials: the variance
    that this adds, given the trial's own causes (Janzing et al., Quantifying causal influences,
    Annals of Statistics 41, 2013, with the variance for a measure as in
    `dowhy.gcm.arrow_strength`, here over all pairs of up to 200 trials instead of random ones),
    as a share of the outcome's variance; on the scale of its logarithm for memory and latency.
    Shares need not sum to one. Intervals: 95 %, bootstrap over networks.

    Parameters
    ----------
    calibrated : Calibrated
    outcome : str
    """
    structure = calibrated.structure
    if outcome not in structure.outcomes:
        raise UnknownNameError("outcome", outcome, structure.outcomes)
    causes = structure.parents(outcome)
    point = _strengths(structure, outcome)
    drawn = np.array([_strengths(draw, outcome) for draw in calibrated.draws])
    low, high = _interval(point, drawn)
    found = [
        ArrowStrength(name, outcome, float(point[k]), max(float(low[k]), 0.0), float(high[k]))
        for k, name in enumerate(causes)
    ]
    return tuple(sorted(found, key=lambda each: -each.strength))


def _interval(point: Array, drawn: Array) -> tuple[Array, Array]:
    # Normal, not percentiles: reweighting few networks shifts a variance upwards.
    margin = 1.96 * drawn.std(axis=0, ddof=1)
    return point - margin, point + margin


def _found(
    frame: pd.DataFrame, row: int | Mapping[str, Any] | pd.Series[Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the trial as a table of one row, and the table without it."""
    if isinstance(row, (int, np.integer)) and not isinstance(row, bool):
        numbers = frame["trial"].to_numpy() if "trial" in frame else np.arange(len(frame))
        own = numbers == row
        if not own.any():
            raise InvalidArgumentError(
                f"row: expected the number of a completed trial, {numbers.min():g} to "
                f"{numbers.max():g}, got {row}"
            )
        return frame[own].head(1).reset_index(drop=True), frame[~own].reset_index(drop=True)
    if not isinstance(row, (Mapping, pd.Series)):
        raise InvalidArgumentError(f"row: expected a trial's number or a row, got {row!r}")
    given = pd.DataFrame([dict(row)])
    if "checkpoint" in given:
        given["checkpoint"] = _network_name(frame, given)
    if "trial" in given and "trial" in frame:
        return given, frame[frame["trial"] != given["trial"].iloc[0]].reset_index(drop=True)
    return given, frame


def _network_name(frame: pd.DataFrame, given: pd.DataFrame) -> str:
    """Return a network's name as the table has it: by its architecture, too, if several."""
    own = str(given["checkpoint"].iloc[0])
    same = frame
    for name in ("architecture", "dataset"):
        if name in frame and name in given:
            same = same[same[name] == str(given[name].iloc[0])]
    names = same["checkpoint"].astype(str)
    found = names[names.str.rpartition("/")[2] == own]
    return own if found.empty else str(found.iloc[0])


def _check_row(structure: Structure, trial: pd.DataFrame) -> None:
    needed = [*structure.nodes, "checkpoint"]
    lacking = [n for n in needed if n not in trial or trial[n].isna().any()]
    if lacking:
        raise RecordError(f"row: missing {', '.join(lacking)}")
    for name, known in structure.levels.items():
        if name in trial and str(trial[name].iloc[0]) not in known:
            raise UnknownNameError(name, str(trial[name].iloc[0]), known)


def _usual(structure: Structure, trial: pd.DataFrame, seed: int) -> pd.DataFrame:
    own = coded(trial, structure.nodes, structure.levels)
    same = structure.data
    for name in ("architecture", "dataset"):
        if name in structure.nodes:
            same = same[same[name] == own[name].iloc[0]]
    if same.empty:
        raise InvalidArgumentError(
            "row: expected an architecture and data set that other trials have together"
        )
    if len(same) > REFERENCE_TRIALS:
        same = same.sample(REFERENCE_TRIALS, random_state=seed)
    return same.reset_index(drop=True)


def _causes(
    structure: Structure, outcome: str, trial: pd.DataFrame, usual: pd.DataFrame
) -> tuple[str, ...]:
    own = coded(trial, structure.nodes, structure.levels).iloc[0]
    roots = [n for n in structure.roots if (usual[n] != own[n]).any()]
    sizes = ["sizes"] if any(n in structure.nodes for n in SIZES) else []
    between = [n for n in structure.outcomes if n != outcome]
    causes = (*roots, *sizes, *between, "network", "trial")
    if len(causes) > MAX_CAUSES:
        raise InvalidArgumentError(
            f"row: the table varies too much at once for an exact answer ({', '.join(causes)}); "
            f"expected at most {MAX_CAUSES} causes, so narrow it to some of its settings"
        )
    return causes


def _shares(
    structure: Structure,
    trial: pd.DataFrame,
    usual: pd.DataFrame,
    causes: Sequence[str],
    outcome: str,
) -> Array:
    """Return the Shapley value of each cause, all coalitions evaluated in one pass."""
    data = coded(trial, structure.nodes, structure.levels)
    own, own_effects = _terms(structure, data, trial["checkpoint"].astype(str), outcome)
    reference, usual_effects = _terms(structure, usual, usual["checkpoint"], outcome)
    coalitions = list(itertools.product((0, 1), repeat=len(causes)))
    inside = {name: np.array([c[k] == 1 for c in coalitions]) for k, name in enumerate(causes)}
    noise: dict[str, Array] = {}
    for (node, cause), values in own.items():
        # A root that is the same in all usual trials is no cause, and the same in the mixtures.
        switch = inside.get(cause, np.ones(len(coalitions), dtype=bool))
        mixed = np.where(switch[:, None], values[0], reference[node, cause][None, :]).ravel()
        noise[node] = noise[node] + mixed if node in noise else mixed
    switch = np.repeat(inside["network"], len(usual))
    effects = {
        node: np.where(switch[:, None], own_effects[node], np.tile(others, (len(coalitions), 1)))
        for node, others in usual_effects.items()
    }
    found = from_noise(structure, pd.DataFrame(noise), effects)[outcome].to_numpy()
    # Mixtures that no trial's sizes support are NaN, and left out of the mean.
    means = np.nanmean(found.reshape(len(coalitions), -1), axis=1)
    worth = dict(zip(coalitions, means, strict=True))
    with quiet_gcm():
        shapley = importlib.import_module("dowhy.gcm.shapley")
        exact = shapley.ShapleyApproximationMethods.EXACT
        shares = shapley.estimate_shapley_values(
            lambda subset: worth[tuple(int(k) for k in subset)],
            len(causes),
            shapley.ShapleyConfig(approximation_method=exact, n_jobs=1),
        )
    return np.asarray(shares, dtype=float)


def _terms(
    structure: Structure, data: pd.DataFrame, checkpoints: pd.Series[str], outcome: str
) -> tuple[dict[tuple[str, str], Array], dict[str, Array]]:
    """Return each node's noise with the cause that it belongs to, and the networks' effects."""
    found: dict[tuple[str, str], Array] = {}
    effects: dict[str, Array] = {}
    for node in structure.nodes:
        parents = structure.parents(node)
        if not parents:
            found[node, node] = data[node].to_numpy()
            continue
        mechanism, causes = structure.mechanism(node), data[parents].to_numpy()
        noise = mechanism.estimate_noise(data[node].to_numpy(), causes)[:, 0]
        if node in SIZES:
            found[node, "sizes"] = noise
            continue
        effects[node] = np.array([structure.own[node].get(name, NOTHING) for name in checkpoints])
        own = mechanism.own_noise(causes, effects[node])
        found[node, "trial" if node == outcome else node] = noise - own
    return found, effects


def _behind(structure: Structure, outcome: str) -> Structure:
    """Return the part of the model that an outcome follows from."""
    import networkx as nx

    graph = structure.scm.graph
    with quiet_gcm() as gcm:
        part = gcm.InvertibleStructuralCausalModel(
            graph.subgraph([outcome, *nx.ancestors(graph, outcome)]).copy()
        )
    return replace(structure, scm=part)


def _surprise(calibrated: Calibrated, trial: pd.DataFrame, outcome: str) -> float:
    """Return the conformal p-value of a trial given its design, sizes and network."""
    checkpoint = str(trial["checkpoint"].iloc[0])
    known = tuple(calibrated.structure.own[outcome])
    named = checkpoint in known
    scores = (calibrated.scores if named else calibrated.scores_any)[outcome]
    own = distance(calibrated, trial, [(checkpoint,) if named else known], outcome)
    return float((1 + np.sum(scores >= own[0])) / (1 + len(scores)))


def _strengths(structure: Structure, outcome: str) -> Array:
    mechanism = structure.mechanism(outcome)
    causes = structure.parents(outcome)
    inputs = structure.data[causes].to_numpy()
    if len(inputs) > 200:
        inputs = inputs[np.linspace(0, len(inputs) - 1, 200).astype(int)]
    count = len(inputs)
    noise = float(np.var(mechanism.noise))
    spread = noise * float(np.mean(mechanism.scale(inputs) ** 2))
    total = float(np.var(mechanism.location(inputs))) + spread
    found = []
    for column in range(len(causes)):
        mixed = np.repeat(inputs, count, axis=0)
        mixed[:, column] = np.tile(inputs[:, column], count)
        place = mechanism.location(mixed).reshape(count, count)
        scale = mechanism.scale(mixed).reshape(count, count)
        after = place.var(axis=1).mean() + noise * (scale**2).mean()
        found.append(float(after - spread) / total if total > 0 else math.nan)
    return np.array(found)


def _sentence(
    number: int | None,
    outcome: str,
    value: float,
    expected: float,
    roots: Sequence[RootCause],
    p_value: float,
) -> str:
    said = {
        "sizes": "what this pruning left at its ratio",
        "network": "the network's own part",
        "trial": "the trial's own part, which nothing in the table explains",
    }
    parts = []
    for each in roots[:4]:
        name = said.get(each.cause, wording.name_of(each.cause))
        share = wording.number(outcome, each.contribution)
        parts.append(f"{name} {share} ({wording.span(outcome, each.low, each.high)})")
    which = f"Trial {number}" if number is not None else "The trial"
    verdict = (
        "given its design it is unexpected"
        if p_value <= 0.05
        else "given its design it is not unexpected"
    )
    gap = wording.amount(outcome, value - expected)
    return (
        f"{which}: {wording.name_of(outcome)} {wording.amount(outcome, value)}, {gap} from the "
        f"mean of its architecture's trials, because of {'; '.join(parts)}; {verdict} "
        f"({wording.p_text(p_value)}, held-out trials)."
    )
