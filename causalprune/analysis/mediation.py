"""Through what pruning changes the cost: MACs and memory together, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis import effects
from causalprune.analysis.clustered import Estimate, t_estimate
from causalprune.analysis.evidence import Finding
from causalprune.analysis.findings import found, refused, said
from causalprune.analysis.tables import DESIGN_COLUMNS, Trials
from causalprune.analysis.wording import name_of, percent

__all__ = ["mediation"]

Array = NDArray[np.float64]

MEDIATORS = ("macs", "memory_bytes")
ESTIMATOR = "g-computation, joint mediators, cluster bootstrap"

# What sets the latency beside the mediators, and is no consequence of the ratio.
SETTINGS = ("latency_batch", "threads", "machine")

DRAWS = 999
# A treatment or mediator that the others explain beyond this cannot be told from them.
MIN_OWN_SHARE = 1e-4

_LABELS = {"macs": "MACs", "memory_bytes": "memory"}


def mediation(
    trials: Trials,
    treatment: str = "ratio",
    outcome: str = "latency_ms",
    *,
    contrast: tuple[float, float] | None = None,
    mediators: Sequence[str] = MEDIATORS,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Split the effect of the treatment on a cost into what goes through mediators and the rest.

    On the cost graph, what a ratio makes of a network's MACs and memory follows from its shape: it
    is read from the trials of the same network and method at both ratios, never learnt. Learnt is
    only how the outcome answers to treatment and mediators together, by least squares within
    networks. The effect through the mediators is the change of the outcome when all of them go
    from their values at `start` to those at `end` while the treatment stays; the direct effect is
    the rest of the total, with the mediators at `end`.

    Parameters
    ----------
    trials : Trials
    treatment, outcome : str
        Numeric columns.
    contrast : (start, end), optional
        Two levels of the treatment; by default the smallest and the largest.
    mediators : sequence of str
        Taken jointly; columns that are missing or never vary are named in the sentences.
    seed : int
        Of the bootstrap: networks are drawn with replacement.

    Returns
    -------
    tuple of Finding
        Total, through all mediators, through each, and direct, in units of the outcome.

    Examples
    --------
    >>> from causalprune.analysis.tables import completed_trials
    >>> rng = np.random.default_rng(0)
    >>> rows = []
    >>> for c in range(8):
    ...     for method in ("l1", "wt"):
    ...         for ratio in (0.0, 0.3, 0.6, 0.9):
    ...             macs = 100 * (1 - ratio * rng.uniform(0.5, 0.9))
    ...             rows.append({"checkpoint": c, "method": method, "ratio": ratio, "macs": macs,
    ...                          "latency_ms": 1 + 0.02 * macs + 0.01 * rng.standard_normal()})
    >>> trials = completed_trials(pd.DataFrame(rows), ("ratio", "latency_ms"))
    >>> total, through, direct = mediation(trials)
    >>> through.question, direct.low < 0 < direct.high
    ('through MACs', True)
    """
    about: dict[str, Any] = {"outcome": outcome, "n_clusters": trials.n_clusters}
    present, missing = _usable(trials.frame, mediators)
    levels = trials.frame[treatment]
    start, end = contrast or (float(levels.min()), float(levels.max()))
    moved = f"{name_of(treatment)} {start:g} to {end:g}"
    through = " and ".join(_LABELS.get(name, name_of(name)) for name in present or mediators)
    if not present:
        reason = f"The table has no column of {through} that varies."
        return (refused(f"through {through}", moved, ESTIMATOR, reason, **about),)
    model = _model(trials.frame, treatment, outcome, present, (start, end))
    if isinstance(model, str):
        return (refused(f"through {through}", moved, ESTIMATOR, model, **about),)
    about["n_clusters"] = len(model.paired)
    parts = _parts(model, np.ones((1, len(model.paired))))[0]
    draws = np.random.default_rng(seed).multinomial(
        len(model.paired), np.full(len(model.paired), 1 / len(model.paired)), DRAWS
    )
    drawn = _parts(model, draws.astype(float))
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if len(drawn) < DRAWS / 2:
        reason = "Most redrawn sets of networks cannot tell the mediators apart: too few networks."
        return (refused(f"through {through}", moved, ESTIMATOR, reason, **about),)
    # Redrawn networks lie around their own mean, which takes up one of them.
    networks = len(model.paired)
    errors = np.std(drawn, axis=0, ddof=1) * (networks / (networks - 1)) ** 0.5
    estimates = [
        t_estimate(float(value), float(error), networks)
        for value, error in zip(parts, errors, strict=True)
    ]
    return tuple(
        found(question, moved, ESTIMATOR, estimate, sentence=sentence, **about)
        for question, estimate, sentence in _sentences(
            estimates, model, outcome, moved, present, through, missing
        )
    )


@dataclass(frozen=True)
class _Model:
    """Sums over the rows of each network [networks, ...], within networks."""

    gram: Array
    product: Array
    moved: Array  # [networks, mediators]: mean change of each between start and end
    paired: Array  # [networks]: pairs of trials behind that mean
    dose: float
    own_share: float
    mediator_shares: tuple[float, ...]


def _usable(frame: pd.DataFrame, names: Sequence[str]) -> tuple[list[str], list[str]]:
    present = [
        name
        for name in names
        if name in frame and frame[name].notna().all() and frame[name].nunique() > 1
    ]
    return present, [name for name in names if name not in present]


def _model(
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    mediators: list[str],
    contrast: tuple[float, float],
) -> _Model | str:
    start, end = contrast
    block = [name for name in DESIGN_COLUMNS if name in frame and name not in ("ratio", treatment)]
    settings = [name for name in SETTINGS if name in frame and frame[name].notna().all()]
    cells = frame.groupby([*block, *settings, treatment], dropna=False)[mediators].mean()
    ends = [_at(cells, treatment, level) for level in contrast]
    changes = (ends[1] - ends[0]).dropna()
    by_network = changes.groupby(level="checkpoint")
    moved, paired = by_network.mean(), by_network.size().astype(float)
    if len(moved) < 2:
        return (
            f"refused: {len(moved)} networks have trials at both {start:g} and {end:g} that agree "
            "in everything else; at least two are needed"
        )
    kept = frame.loc[frame["checkpoint"].isin(moved.index)].reset_index(drop=True)
    clusters = moved.index.get_indexer(pd.Index(kept["checkpoint"])).astype(np.int64)
    names = [treatment, *mediators, outcome]
    others = [name for name in (*block, *settings) if name != "checkpoint"]
    varied = [name for name in others if kept[name].nunique(dropna=False) > 1]
    design = effects.build_design(kept, treatment, (), varied).columns.to_numpy(dtype=float)
    scale = kept[names].to_numpy(dtype=float)
    within = _within(np.column_stack([scale, design]), clusters)
    count = len(mediators) + 1
    causes, target = within[:, :count], within[:, count]
    rest = _spanning(within[:, count + 1 :])
    shares = _own_shares(causes, rest)
    if shares[0] < MIN_OWN_SHARE:
        return (
            f"refused: {name_of(treatment)} fixes {_listed(mediators)} in this table (they leave "
            f"it {percent(shares[0])} of its variation), so that no direct effect can be told from "
            "theirs. Methods that cut different layers, or allotments by layer, would part them"
        )
    if min(shares[1:]) < MIN_OWN_SHARE:
        return (
            f"refused: {_listed(mediators)} move in step in this table, so that what goes through "
            "each and what does not cannot be told apart"
        )
    matrix = np.hstack([causes, rest])
    gram, product = _sums(matrix, target, clusters, len(moved))
    return _Model(
        gram,
        product,
        moved.to_numpy(dtype=float),
        np.asarray(paired, dtype=np.float64),
        end - start,
        shares[0],
        tuple(shares[1:]),
    )


def _at(cells: pd.DataFrame, treatment: str, level: float) -> pd.DataFrame:
    levels = cells.index.get_level_values(treatment)
    return cells.loc[np.isclose(levels, level)].droplevel(treatment)


def _within(values: Array, clusters: NDArray[np.int64]) -> Array:
    """Subtract each network's own mean: its level is nobody else's evidence."""
    sums = np.zeros((int(clusters.max()) + 1, values.shape[1]))
    np.add.at(sums, clusters, values)
    return np.asarray(values - (sums / np.bincount(clusters)[:, None])[clusters])


def _spanning(columns: Array) -> Array:
    """Return an orthonormal basis of the columns' span."""
    if not columns.shape[1]:
        return columns
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-9 * max(1.0, float(sizes[0]))])


def _own_shares(causes: Array, rest: Array) -> list[float]:
    """Share of each cause's variation within networks that the others leave unexplained."""
    shares = []
    for position in range(causes.shape[1]):
        one = causes[:, position]
        # Columns of one size, so that bytes beside fractions lose no digits.
        others = np.hstack([np.delete(causes, position, axis=1), rest])
        others = others / np.maximum(np.linalg.norm(others, axis=0), 1e-300)
        left = one - others @ np.linalg.lstsq(others, one, rcond=None)[0]
        shares.append(float(left @ left) / max(float(one @ one), 1e-300))
    return shares


def _sums(
    matrix: Array, target: Array, clusters: NDArray[np.int64], count: int
) -> tuple[Array, Array]:
    width = matrix.shape[1]
    gram, product = np.zeros((count, width, width)), np.zeros((count, width))
    for network in range(count):
        rows = clusters == network
        gram[network] = matrix[rows].T @ matrix[rows]
        product[network] = matrix[rows].T @ target[rows]
    return gram, product


def _parts(model: _Model, weights: Array) -> Array:
    """Total, through all, through each, direct [draws, 2 + mediators + 1]; NaN if singular."""
    mediators = model.moved.shape[1]
    gram = np.einsum("dn,nij->dij", weights, model.gram)
    product = weights @ model.product
    size = np.sqrt(np.maximum(np.einsum("dii->di", gram), 1e-300))
    scaled = gram / (size[:, :, None] * size[:, None, :])
    usable = np.linalg.cond(scaled) < 1e10
    slopes = np.full(product.shape, np.nan)
    slopes[usable] = np.linalg.solve(scaled[usable], (product / size)[usable][..., None])[..., 0]
    slopes = slopes / size
    counted = weights * model.paired
    moved = counted @ model.moved / counted.sum(axis=1, keepdims=True)
    each = slopes[:, 1 : 1 + mediators] * moved
    through, direct = each.sum(axis=1, keepdims=True), slopes[:, :1] * model.dose
    return np.hstack([through + direct, through, each, direct])


def _listed(names: Sequence[str]) -> str:
    return " and ".join(_LABELS.get(name, name_of(name)) for name in names)


def _sentences(
    estimates: list[Estimate],
    model: _Model,
    outcome: str,
    moved: str,
    mediators: list[str],
    through: str,
    missing: list[str],
) -> list[tuple[str, Estimate, str]]:
    what = name_of(outcome)
    left_out = (
        f" {_listed(missing)} could not be taken in (missing or constant)." if missing else ""
    )
    total, joint, direct = estimates[0], estimates[1], estimates[-1]
    listed = [
        (
            "in total",
            total,
            f"{what}, {moved}: {said(outcome, total)} in total, through {through} and otherwise.",
        ),
        (
            f"through {through}",
            joint,
            f"Of the change of {what}, {moved}, {said(outcome, joint)} goes through {through}, "
            "whose values are computed from the networks' shapes. Right only if it answers to them "
            f"in straight lines and nothing unseen moves both {through} and {what}.{left_out}",
        ),
    ]
    if len(mediators) > 1:
        for position, name in enumerate(mediators):
            label = _LABELS.get(name, name_of(name))
            listed.append(
                (
                    f"through {label}",
                    estimates[2 + position],
                    f"Through {label} alone: {said(outcome, estimates[2 + position])}; told from "
                    f"the others by {percent(model.mediator_shares[position])} of its variation.",
                )
            )
    listed.append(
        (
            "directly",
            direct,
            f"Not through {through}: {said(outcome, direct)}, as by the shapes of the layers that "
            f"are left. It rests on {percent(model.own_share)} of the treatment's variation, what "
            f"{through} leave of it.",
        )
    )
    return listed
