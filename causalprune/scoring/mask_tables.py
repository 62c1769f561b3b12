"""The table of a random-mask design, with its treatments and their known propensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring.banzhaf import recorded_masks
from causalprune.scoring.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MaskTable", "mask_table"]


@dataclass(frozen=True, eq=False)
class MaskTable:
    """A randomised experiment as a table.

    Attributes
    ----------
    frame : DataFrame
        One row per (image, mask): ``image``, ``mask``, ``outcome``, ``outcome_whole`` (of the
        whole network on that image: known before any mask is drawn), ``target`` where there are
        targets, ``n_removed``, ``log_probability`` of the mask, and the treatments.
    treatments : DataFrame
        One row a treatment: ``column`` in `frame`, ``layer``, ``unit`` (-1: the fraction of the
        layer's units that is removed), ``n_units`` (1, or the layer's), ``mean`` and ``variance``
        of the treatment as it was drawn, and ``measured``, the outcome's name. Of a unit's 0/1
        column the mean is its known propensity.
    """

    frame: pd.DataFrame
    treatments: pd.DataFrame


def mask_table(
    scores: Scores, units: Mapping[str, Sequence[int]] | Sequence[str] | None = None
) -> MaskTable:
    """Export the masks behind scores of method ``"banzhaf"`` as a table of treatments.

    Every unit was removed independently with a probability that is recorded, whatever the image:
    treatments have no causes, their propensities are known, and rows of one image are a cluster.
    :func:`causalprune.analysis.mask_effects` estimates from it; so may DoWhy and EconML.

    Parameters
    ----------
    scores : Scores
        Of method ``"banzhaf"``.
    units : mapping of str to sequence of int, or sequence of str, optional
        Units that get a 0/1 column each: by group, or all units of the groups named. Default:
        all of all groups. Every group has a column with the fraction removed in any case.

    Raises
    ------
    RecordError
        If the scores hold no masks.
    UnknownNameError
        If a group is not known.
    InvalidArgumentError
        If a unit does not exist, or the scores were made before probabilities of single units
        were recorded.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> scores = score(model, (torch.randn(5, 4), torch.arange(5) % 2), "banzhaf", n_masks=2)
    >>> table = mask_table(scores, {"0": [2]})
    >>> table.treatments[["column", "unit", "n_units"]].values.tolist()
    [['removed_0', -1, 3], ['removed_0_unit2', 2, 1]]
    >>> table.frame["removed_0_unit2"].isin([0, 1]).all()
    np.True_
    """
    import pandas as pd

    masks = recorded_masks(scores)
    if "units" not in scores.tables:
        raise InvalidArgumentError(
            "scores: expected a table 'units' with the probability of every unit; these scores "
            "were made before it was recorded, score again"
        )
    chances = scores.tables["units"]
    layers = scores.tables["layers"]
    wanted = _wanted(masks, units)
    columns: dict[str, np.ndarray] = {}
    rows: list[tuple[str, str, int, int, float, float]] = []
    for layer, column in zip(layers["group"], layers["column"], strict=True):
        q = chances.loc[chances["group"] == layer, "q"].to_numpy(dtype=np.float64)
        spread = q * (1 - q)
        rows.append((column, layer, -1, len(q), q.mean(), spread.sum() / len(q) ** 2))
        for unit in wanted.get(layer, ()):
            name = f"{column}_unit{unit}"
            columns[name] = masks[layer][:, unit].astype(np.int64)
            rows.append((name, layer, unit, 1, q[unit], spread[unit]))
    frame = pd.concat([scores.tables["design"], pd.DataFrame(columns)], axis=1)
    names = ["column", "layer", "unit", "n_units", "mean", "variance"]
    treatments = pd.DataFrame(rows, columns=names)
    treatments["measured"] = scores.outcome
    return MaskTable(frame, treatments)


def _wanted(
    masks: Mapping[str, np.ndarray], units: Mapping[str, Sequence[int]] | Sequence[str] | None
) -> dict[str, list[int]]:
    if units is None:
        units = list(masks)
    if not isinstance(units, Mapping):
        named = [units] if isinstance(units, str) else units
        units = {name: range(masks[name].shape[1]) if name in masks else [] for name in named}
    wanted = {}
    for name, indices in units.items():
        if name not in masks:
            raise UnknownNameError("unit group", name, masks)
        n_units = masks[name].shape[1]
        wanted[name] = [int(index) for index in indices]
        if not all(0 <= index < n_units for index in wanted[name]):
            raise InvalidArgumentError(
                f"units: expected units of {name!r} in [0, {n_units}), got {wanted[name]}"
            )
    return wanted
