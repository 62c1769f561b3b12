"""The result of scoring: one row per unit."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, MissingDependencyError, RecordError
from causalprune.files import replace_file
from causalprune.scoring.explanatory_graph import ExplanatoryGraph

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Scores", "as_table", "fingerprint"]

SCHEMA = 1
EDGES = "edges/"
TABLES = "tables/"

COLUMNS: dict[str, str] = {
    "layer": "U",
    "unit": "i8",
    "kind": "U",
    "effect": "f8",
    "se": "f8",
    "low": "f8",
    "high": "f8",
    "importance": "f8",
    "category": "U",
    "n": "i8",
    "cost": "f8",
    "group": "U",
}
"""Columns of ``Scores.frame`` and the kind of array each is stored as."""


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of a network's parameters, in their order.

    Two networks with one fingerprint have the same structure; their weights may differ.

    Examples
    --------
    >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3))
    True
    >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(3, 3))
    False
    """
    names = [f"{name}:{list(p.shape)}" for name, p in model.named_parameters()]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of all units of a network.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row per unit: ``layer`` (its first producer), ``unit`` (index there), ``kind``
        ("filter", "hidden" or "head"), ``effect`` (mean over images of Y_do - Y, in units of the
        outcome), ``se`` (its standard error, paired), ``low`` and ``high`` (Student-t interval),
        ``importance`` (what plans rank by: mean over images of abs(Y_do - Y), or what the method
        describes), ``category`` ("critical", "neutral", "detrimental", or "" where there is no
        interval or the outcome has no better side), ``n`` (images), ``cost`` (forward-equivalents
        spent on the unit over all images), ``group``. Effect and interval are NaN for a method
        without an effect scale, such as a norm.
    method : str
    outcome : str
        What the method measured; empty where it measures no outcome.
    confidence : float
        Level of the intervals; each is for one unit, not for all at once.
    fingerprint : str
        :func:`fingerprint` of the network.
    example_shape : tuple of int
        Shape of one image with its batch dimension, ``(1, ...)``.
    example_dtype : str
        Its dtype, such as ``"float32"``.
    notes : tuple of str
        Layers that were refused, or taken at first order, and why.
    edges : Mapping of str to ndarray
        Layer name to the scores of its connections [O, I], or of its single weights (shape of
        the weight), where the method gives them.
    tables : Mapping of str to pandas.DataFrame
        What the method gives beside one row per unit, such as a row per unit and class; the
        method describes its tables.

    Examples
    --------
    >>> import torch
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> scores = score(model, torch.zeros(1, 4), method="l1")
    >>> list(scores.frame["layer"])
    ['0', '0', '0']
    """

    frame: pd.DataFrame
    method: str
    outcome: str
    confidence: float
    fingerprint: str
    example_shape: tuple[int, ...]
    example_dtype: str = "float32"
    notes: tuple[str, ...] = ()
    edges: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line: what was scored, on how much, and what was found."""
        n_images = int(self.frame["n"].max()) if len(self.frame) else 0
        counts = {str(k): int(v) for k, v in self.frame["category"].value_counts().items() if k}
        found = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        return (
            f"Scores(method={self.method!r}"
            + (f", outcome={self.outcome!r}" if self.outcome else "")
            + f": {len(self.frame)} units in {self.frame['group'].nunique()} groups, "
            f"{n_images} images"
            + (f", {self.confidence:.0%} intervals: {found}" if found else "")
            + (f"; {len(self.notes)} notes" if self.notes else "")
            + ")"
        )

    def top(self, n: int = 10) -> pd.DataFrame:
        """Return the `n` rows of highest importance, highest first."""
        order = self.frame.sort_values("importance", ascending=False, kind="stable")
        return order.head(n).reset_index(drop=True)

    def graph(self, target_class: int) -> ExplanatoryGraph:
        """Return the causal explanatory graph of a class (``method="path"``, ``graphs=[...]``).

        Raises
        ------
        DataError
            If there is none; the message names the classes that there are.
        """
        return ExplanatoryGraph.from_tables(self.tables, target_class)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the scores to `path` (.npz, no pickle), atomically; returns the path."""
        arrays: dict[str, Any] = {
            name: self.frame[name].to_numpy().astype(kind) for name, kind in COLUMNS.items()
        }
        meta = {
            "method": self.method,
            "outcome": self.outcome,
            "confidence": self.confidence,
            "fingerprint": self.fingerprint,
            "example_shape": list(self.example_shape),
            "example_dtype": self.example_dtype,
            "notes": list(self.notes),
            "tables": {name: list(table.columns) for name, table in self.tables.items()},
            "schema": SCHEMA,
        }
        arrays.update({EDGES + layer: values for layer, values in self.edges.items()})
        for name, table in self.tables.items():
            for column in table.columns:
                arrays[f"{TABLES}{name}/{column}"] = _storable(table[column].to_numpy())
        content = io.BytesIO()
        np.savez_compressed(content, meta=np.array(json.dumps(meta)), **arrays)
        return replace_file(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read scores that :meth:`save` wrote.

        Raises
        ------
        RecordError
            If the file is missing, broken, or of another schema.
        """
        import pandas as pd

        try:
            # Opened here, because np.load leaks the handle of a broken archive.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                meta = json.loads(str(archive["meta"]))
                frame = pd.DataFrame({name: archive[name] for name in COLUMNS})
                edges = {k[len(EDGES) :]: archive[k] for k in archive.files if k.startswith(EDGES)}
                tables = _read_tables(archive, meta.get("tables", {}))
            if meta["schema"] != SCHEMA:
                raise RecordError(f"{path}: expected scores schema {SCHEMA}, got {meta['schema']}")
            return cls(
                frame=_with_text_columns(frame),
                method=meta["method"],
                outcome=meta["outcome"],
                confidence=float(meta["confidence"]),
                fingerprint=meta["fingerprint"],
                example_shape=tuple(meta["example_shape"]),
                example_dtype=meta["example_dtype"],
                notes=tuple(meta["notes"]),
                edges=edges,
                tables=tables,
            )
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"{path}: expected scores in .npz, got {error}") from error

    def plot(self) -> Figure:
        """Draw the effects of every group with their intervals, sorted; returns the Figure.

        Where the method has no effect scale, the importance is drawn.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                "Scores.plot needs matplotlib: pip install 'causalprune[analysis]'"
            ) from error
        groups = list(self.frame.groupby("group", sort=False))
        figure = Figure(figsize=(7, 1 + 1.6 * len(groups)), layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
        for axis, (name, rows) in zip(axes, groups, strict=True):
            self._draw_group(axis, str(name), rows)
        axes[-1].set_xlabel("units, sorted")
        return figure

    def _draw_group(self, axis: Axes, name: str, rows: pd.DataFrame) -> None:
        axis.set_title(name, loc="left", fontsize="medium")
        if rows["effect"].isna().all():
            axis.bar(range(len(rows)), rows["importance"].sort_values(), color="tab:gray")
            axis.set_ylabel(self.method)
            return
        rows = rows.sort_values("effect").reset_index(drop=True)
        colours = {"critical": "tab:blue", "detrimental": "tab:red"}
        colour = [colours.get(category, "tab:gray") for category in rows["category"]]
        axis.vlines(rows.index, rows["low"], rows["high"], color=colour)
        axis.scatter(rows.index, rows["effect"], s=9, color=colour)
        axis.axhline(0.0, color="black", linewidth=0.5)
        axis.set_ylabel(f"change in {self.outcome}")


def as_table(name: str, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return the columns of a method's table as a DataFrame; `name` names it in errors.

    Parameters
    ----------
    name : str
    columns : Mapping of str to Tensor, ndarray or sequence [rows]
        Numbers, truth values or strings.

    Raises
    ------
    InvalidArgumentError
        If a column is not one-dimensional, holds anything else, or differs from another in length.

    Examples
    --------
    >>> as_table("classes", {"class": [0, 1], "unit": ["a", "b"]}).shape
    (2, 2)
    """
    import pandas as pd

    arrays = {}
    for column, values in columns.items():
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
        if array.dtype == object and all(isinstance(value, str) for value in array.flat):
            array = array.astype("U")
        if array.ndim != 1 or array.dtype.kind not in "biufU":
            raise InvalidArgumentError(
                f"tables[{name!r}][{column!r}]: expected numbers, truth values or strings [rows], "
                f"got {array.dtype} of shape {array.shape}"
            )
        arrays[column] = array.astype(object) if array.dtype.kind == "U" else array
    lengths = {column: len(array) for column, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidArgumentError(
            f"tables[{name!r}]: expected columns of one length, got {lengths}"
        )
    return pd.DataFrame(arrays)


def _storable(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.astype("U") if values.dtype == object else values


def _read_tables(archive: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    return {
        name: as_table(name, {column: archive[f"{TABLES}{name}/{column}"] for column in columns})
        for name, columns in names.items()
    }


def _with_text_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns as Python strings, as they are in a frame that was never saved."""
    text = {name: object for name, kind in COLUMNS.items() if kind == "U"}
    return frame.astype(text)
