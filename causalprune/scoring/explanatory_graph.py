"""What a walk over path interventions found: the units and edges that explain one class."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalprune.errors import DataError, MissingDependencyError, RecordError
from causalprune.files import replace_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Candidate", "ExplanatoryGraph", "ExplanatoryLayer", "tables_of"]

SCHEMA = 1
NODES, LAYERS = "graph nodes", "graph layers"
"""Names of the tables that hold explanatory graphs among those of a method."""

LAYER_COLUMNS = (
    "class", "step", "layer", "child", "effects", "criterion",
    "n_images", "mean", "deviation", "test", "beta",
)  # fmt: skip
EDGE_COLUMNS = (
    "layer", "parent", "parent_unit", "child", "child_unit", "effect", "statistic", "relative",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """An input unit of a layer, and what setting its weights into the effect set did.

    Attributes
    ----------
    parent : str
        Group of the unit, by the name of the layer that produces it first.
    unit : int
    effect : float
        Mean over images of Y_do - Y, in logits.
    statistic : float
        `effect` in standard errors: the test's statistic; NaN where there is none.
    relative : float
        Mean over images of (Y_do - Y) / abs(Y).
    cause : bool
        Whether the unit was kept.
    """

    parent: str
    unit: int
    effect: float
    statistic: float
    relative: float
    cause: bool


@dataclass(frozen=True)
class ExplanatoryLayer:
    """One step of the walk: which input units of a layer cause the effects kept behind it.

    Attributes
    ----------
    layer : str
        Whose weights were intervened on.
    child : str
        Group of the effects: that of the layer's output units, ``"output"`` for the class logit,
        or ``""`` where the layer's outputs are no units of their own; all of them are effects then.
    effects : tuple of int
        The effect set E: units of `child`, or the class.
    criterion : str
        By what causes were chosen: ``"test"``, ``"relative change"``; ``"none"``: there are none.
    candidates : tuple of Candidate
        All input units, kept or not.
    """

    layer: str
    child: str
    effects: tuple[int, ...]
    criterion: str
    candidates: tuple[Candidate, ...]

    @property
    def total(self) -> int:
        """Number of input units."""
        return len(self.candidates)

    @property
    def causes(self) -> tuple[Candidate, ...]:
        """The candidates that were kept."""
        return tuple(c for c in self.candidates if c.cause)


@dataclass(frozen=True)
class ExplanatoryGraph:
    """The causal explanatory graph of one class (Ahmad, Béreux, Baret et al. 2023).

    Attributes
    ----------
    target_class : int
    n_images : int
        Images of the class, predicted as it, that the graph rests on.
    mean, deviation : float
        Of the class logit on them, as observed.
    test : str
        ``"paired"`` or ``"unpaired"``.
    beta : float or None
        Weights were set to draws from U(beta, beta + 0.01); ``None``: to zero.
    layers : tuple of ExplanatoryLayer
        In the order of the walk, from the last layer to the first.
    """

    target_class: int
    n_images: int
    mean: float
    deviation: float
    test: str
    beta: float | None
    layers: tuple[ExplanatoryLayer, ...]

    def __repr__(self) -> str:
        """Return one line: the class, and kept out of all units per layer."""
        kept = ", ".join(f"{x.layer} {len(x.causes)}/{x.total}" for x in self.layers)
        return (
            f"ExplanatoryGraph(class {self.target_class}, {self.n_images} images; "
            f"kept/total: {kept or 'nothing'})"
        )

    def layer(self, name: str) -> ExplanatoryLayer:
        """Return the step of the walk at layer `name`.

        Raises
        ------
        DataError
            If the walk did not reach it; the message lists the layers that it did.
        """
        for found in self.layers:
            if found.layer == name:
                return found
        raise DataError(
            f"layer: expected one that the walk for class {self.target_class} reached "
            f"({', '.join(x.layer for x in self.layers)}), got {name!r}"
        )

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """Group name to the units that are causes somewhere."""
        found: dict[str, set[int]] = {}
        for layer in self.layers:
            for cause in layer.causes:
                found.setdefault(cause.parent, set()).add(cause.unit)
        return {group: tuple(sorted(units)) for group, units in found.items()}

    def to_frame(self) -> pd.DataFrame:
        """Edges, one row each: from every cause of a layer to every effect it acts on.

        Columns: ``layer`` (whose weights hold the edge), ``parent``, ``parent_unit``, ``child``,
        ``child_unit`` (-1: all outputs of the layer), and of the joint intervention on all edges
        from the parent unit into the layer's effects: ``effect``, ``statistic``, ``relative``.
        """
        import pandas as pd

        rows = [
            (x.layer, c.parent, c.unit, x.child, e, c.effect, c.statistic, c.relative)
            for x in self.layers
            for c in x.causes
            for e in (x.effects or (-1,))
        ]
        return pd.DataFrame(rows, columns=list(EDGE_COLUMNS))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the graph to `path` (JSON), atomically; returns the path."""
        content = _finite({"schema": SCHEMA, **asdict(self)})
        return replace_file(path, json.dumps(content, indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExplanatoryGraph:
        """Read a graph that :meth:`save` wrote.

        Raises
        ------
        RecordError
            If the file is missing, broken, or of another schema.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            if content.pop("schema") != SCHEMA:
                raise RecordError(f"{path}: expected an explanatory graph of schema {SCHEMA}")
            layers = tuple(
                ExplanatoryLayer(
                    **{
                        **layer,
                        "effects": tuple(layer["effects"]),
                        "candidates": tuple(_candidate(row) for row in layer["candidates"]),
                    }
                )
                for layer in content.pop("layers")
            )
            return cls(layers=layers, **content)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"{path}: expected an explanatory graph, got {error}") from error

    @classmethod
    def from_tables(cls, tables: Mapping[str, pd.DataFrame], target_class: int) -> ExplanatoryGraph:
        """Read the graph of one class from the tables of scores; see :func:`tables_of`.

        Raises
        ------
        DataError
            If there is none; the message names the classes that there are.
        """
        layers = tables.get(LAYERS)
        classes = [] if layers is None else sorted(int(k) for k in layers["class"].unique())
        if layers is None or target_class not in classes:
            at_hand = f"graphs of the classes {classes} are" if classes else "no graph is"
            raise DataError(
                f"target_class: {at_hand} in these scores, got {target_class!r}; "
                f"score with method='path', graphs=[{target_class!r}]"
            )
        nodes = tables[NODES]
        steps = layers[layers["class"] == target_class].to_dict("records")
        nodes = nodes[nodes["class"] == target_class]
        first = steps[0]
        return cls(
            target_class,
            int(first["n_images"]),
            float(first["mean"]),
            float(first["deviation"]),
            str(first["test"]),
            None if first["beta"] != first["beta"] else float(first["beta"]),
            tuple(_layer_from(step, nodes[nodes["step"] == step["step"]]) for step in steps),
        )

    def plot(self) -> Figure:
        """Draw the kept units of every layer and their edges; returns the Figure.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                "ExplanatoryGraph.plot needs matplotlib: pip install 'causalprune[analysis]'"
            ) from error
        places = self._places()
        figure = Figure(figsize=(2 + 1.6 * len(self.layers), 4), layout="constrained")
        axes = figure.subplots()
        strongest = max((abs(c.effect) for x in self.layers for c in x.causes), default=1.0) or 1.0
        for layer in self.layers:
            for cause in layer.causes:
                start = places[cause.parent, cause.unit]
                for effect in layer.effects or (-1,):
                    end = places.get((layer.child, effect), (start[0] + 1, 0.5))
                    strength = min(1.0, 0.1 + 0.9 * abs(cause.effect) / strongest)
                    axes.plot(*zip(start, end, strict=True), color="tab:blue", alpha=strength, lw=1)
        for (_, unit), (x, y) in places.items():
            axes.plot([x], [y], "o", color="black", markersize=4)
            axes.annotate(str(unit), (x, y), fontsize="x-small", xytext=(3, 3),
                          textcoords="offset points")  # fmt: skip
        columns = {x: name for (name, _), (x, _) in places.items()}
        axes.set_xticks(list(columns), list(columns.values()), rotation=30, ha="right")
        axes.set_yticks([])
        axes.set_title(f"what explains class {self.target_class}", loc="left", fontsize="medium")
        return figure

    def _places(self) -> dict[tuple[str, int], tuple[float, float]]:
        """Where the plot shows every unit: groups from left to right, in the network's order."""
        columns: dict[str, set[int]] = {"output": {self.target_class}}
        for layer in self.layers:
            for cause in layer.causes:
                columns.setdefault(cause.parent, set()).add(cause.unit)
        return {
            (name, unit): (len(columns) - 1.0 - k, (row + 1) / (len(units) + 1))
            for k, (name, units) in enumerate(columns.items())
            for row, unit in enumerate(sorted(units))
        }


def tables_of(graphs: Sequence[ExplanatoryGraph]) -> dict[str, dict[str, list[Any]]]:
    """Explanatory graphs as the tables of a method; :meth:`ExplanatoryGraph.from_tables` undoes it.

    Returns
    -------
    dict
        ``"graph layers"``: one row per class and step of the walk, ``effects`` as text; ``"graph
        nodes"``: one row per class, step and candidate (:class:`Candidate`).
    """
    candidate = [f.name for f in fields(Candidate)]
    nodes: dict[str, list[Any]] = {name: [] for name in ("class", "step", "layer", *candidate)}
    layers: dict[str, list[Any]] = {name: [] for name in LAYER_COLUMNS}
    for graph in graphs:
        for step, layer in enumerate(graph.layers):
            effects = " ".join(map(str, layer.effects))
            row = [graph.target_class, step, layer.layer, layer.child, effects, layer.criterion]
            row += [graph.n_images, graph.mean, graph.deviation, graph.test]
            row += [float("nan") if graph.beta is None else graph.beta]
            for name, value in zip(LAYER_COLUMNS, row, strict=True):
                layers[name].append(value)
            for found in layer.candidates:
                values = {"class": graph.target_class, "step": step, "layer": layer.layer}
                for name, value in (values | asdict(found)).items():
                    nodes[name].append(value)
    return {LAYERS: layers, NODES: nodes}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _candidate(row: Mapping[Any, Any]) -> Candidate:
    effect, statistic, relative = (float(row[k]) for k in ("effect", "statistic", "relative"))
    return Candidate(
        str(row["parent"]), int(row["unit"]), effect, statistic, relative, bool(row["cause"])
    )


def _layer_from(step: Mapping[Any, Any], nodes: pd.DataFrame) -> ExplanatoryLayer:
    return ExplanatoryLayer(
        str(step["layer"]),
        str(step["child"]),
        tuple(int(unit) for unit in str(step["effects"]).split()),
        str(step["criterion"]),
        tuple(_candidate(row) for row in nodes.to_dict("records")),
    )
