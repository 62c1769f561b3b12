"""What an analysis says: the estimate, its interval, its refutations, in numbers and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalprune.analysis import wording
from causalprune.analysis.evidence import Contrast, Finding, Independence, Refutation
from causalprune.analysis.summaries import summary
from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.records import read_json
from causalprune.files import replace_file

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from causalprune.analysis.counterfactual_results import Attribution, Counterfactual

__all__ = [
    "AnalysisResult",
    "Contrast",
    "Finding",
    "Independence",
    "Refutation",
    "load_analyses",
    "save_analyses",
]

SCHEMA = 1


@dataclass(frozen=True)
class AnalysisResult:
    """Effect of a treatment on an outcome over a table of pruning trials.

    Attributes
    ----------
    preset : str
        ``"default"`` or ``"iisc"``.
    treatment, outcome : str
        Column names.
    estimand : str
        What is estimated, in words and as DoWhy's expression.
    estimate : float
        Change of the outcome (its own units: a fraction for accuracies) when the
        treatment grows by `step`; NaN where the table cannot tell (see `reason`).
    interval : tuple of float
        95 % interval; what kind is said by `interval_kind`.
    p_value : float or None
        Randomisation test within blocks; None where nothing was randomised.
    contrasts : tuple of Contrast
        The dose-response curve against the smallest treatment level.
    refutations : tuple of Refutation
        Every attempt to break the estimate.
    findings : tuple of Finding
        Effects beside the main one: of methods, by architecture, through memory.
    independencies : tuple of Independence
        What the graph implies, and whether the table contradicts it.
    graph_check : str
        The same in a sentence.
    thresholds : Mapping[str, float]
        The cut points of the preset ``"iisc"``.
    notes : tuple of str
        What the reader has to know before using the number.
    reason : str
        Empty, or why nothing could be estimated.
    table : DataFrame or None
        The table that was analysed, for further questions; None after reading a result from disk.

    Examples
    --------
    >>> from causalprune.analysis import AnalysisResult
    >>> result = AnalysisResult(
    ...     preset="default", treatment="ratio", outcome="accuracy_loss",
    ...     estimate=0.02, interval=(0.01, 0.03), step=0.1,
    ... )
    >>> AnalysisResult.from_json(result.to_json()) == result
    True
    """

    preset: str
    treatment: str
    outcome: str
    estimate: float
    interval: tuple[float, float]
    step: float = 1.0
    interval_kind: str = ""
    p_value: float | None = None
    estimand: str = ""
    graph_name: str = ""
    nodes: tuple[str, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    constant_nodes: tuple[str, ...] = ()
    adjustment: tuple[str, ...] = ()
    design_covariates: tuple[str, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    refutations: tuple[Refutation, ...] = ()
    findings: tuple[Finding, ...] = ()
    independencies: tuple[Independence, ...] = ()
    graph_check: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    n_trials: int = 0
    n_failed: int = 0
    n_clusters: int = 0
    designed: bool = False
    seed: int = 0
    n_simulations: int = 0
    notes: tuple[str, ...] = ()
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    table: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def estimable(self) -> bool:
        """Whether the table could answer the question at all."""
        return not self.reason

    @property
    def doubts(self) -> tuple[str, ...]:
        """Names of the attempts to break the estimate that succeeded."""
        return tuple(item.name for item in self.refutations if item.passed is False)

    @property
    def graph(self) -> nx.DiGraph:
        """The causal graph as a fresh `networkx.DiGraph` over column names."""
        import networkx as nx

        graph = nx.DiGraph(name=self.graph_name)
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from(self.edges)
        return graph

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        return wording.headline(self)

    def summary(self, width: int | None = None) -> str:
        """Everything the analysis found, in plain sentences under headings.

        Parameters
        ----------
        width : int, optional
            Characters a line is to have at most; by default lines are not broken.

        Examples
        --------
        >>> from causalprune.analysis import AnalysisResult
        >>> result = AnalysisResult("default", "ratio", "accuracy_loss", 0.02, (0.01, 0.03), 0.1)
        >>> print(result.headline.split(' (')[0])
        Each +0.1 of prune ratio raises the accuracy loss by 2.00 points
        """
        return summary(self, width)

    def refute(
        self,
        table: pd.DataFrame | str | Path | None = None,
        *,
        seed: int | None = None,
        n_simulations: int | None = None,
    ) -> tuple[Refutation, ...]:
        """Return the recorded refutations, or run them again on a table.

        Parameters
        ----------
        table : DataFrame, path or None
            None returns what was recorded; a table (as `analyze` takes it) runs
            the refuters anew with the same treatment, outcome and thresholds.
        seed, n_simulations : int, optional
            Default to those of this result. Only used with a table.

        Examples
        --------
        >>> from causalprune.analysis import AnalysisResult
        >>> AnalysisResult("default", "ratio", "accuracy_loss", 0.02, (0.01, 0.03)).refute()
        ()
        """
        if table is None:
            if seed is not None or n_simulations is not None:
                raise InvalidArgumentError(
                    "seed, n_simulations: expected a table to run the refuters on, got table=None"
                )
            return self.refutations
        from causalprune.analysis.algorithm import analyze

        seed = self.seed if seed is None else seed
        draws = self.n_simulations if n_simulations is None else n_simulations
        if self.preset == "iisc":
            again = analyze(
                table,
                preset="iisc",
                thresholds=dict(self.thresholds),
                seed=seed,
                n_simulations=draws,
            )
        else:
            again = analyze(
                table,
                self.treatment,
                self.outcome,
                seed=seed,
                n_simulations=draws,
                time_budget_s=0,
            )
        return again.refutations

    def counterfactual(self, table: Any = None, **question: Any) -> Counterfactual:
        """Answer a what-if question from the trials behind this result.

        Parameters
        ----------
        table : DataFrame, Study or path, optional
            As `analyze` took it; needed where the result was read from disk.
        **question
            `network`, `ratio`, `method`, `machine`, ... as
            `causalprune.analysis.counterfactual` takes them.

        Raises
        ------
        InvalidArgumentError
            No table is given, and the result has none.
        """
        from causalprune.analysis.counterfactuals import counterfactual

        return counterfactual(self._trials(table), seed=self.seed, **question)

    def attribute(self, row: int | Mapping[str, Any], table: Any = None) -> Attribution:
        """Find the root causes of one trial's outcome.

        Parameters
        ----------
        row : int or mapping
            Number of a trial of the table, or a row with its columns.
        table : DataFrame, Study or path, optional
            As for `counterfactual`.
        """
        from causalprune.analysis.counterfactuals import CounterfactualModel

        model = CounterfactualModel.fit(self._trials(table), seed=self.seed, replay_share=0)
        return model.attribute(row, self.outcome)

    def _trials(self, table: Any) -> Any:
        if table is None and self.table is None:
            raise InvalidArgumentError(
                "table: expected the table that was analysed (a result read from disk holds none), "
                "got None"
            )
        return self.table if table is None else table

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        record = plain_json(asdict(replace(self, table=None)))
        del record["table"]
        return {"schema": SCHEMA, **record}

    def to_json(self) -> str:
        """Return the result as JSON text (schema version inside)."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AnalysisResult:
        """Rebuild a result from `to_dict`; RecordError for anything else."""
        if not isinstance(record, Mapping) or record.get("schema") != SCHEMA:
            found = record.get("schema") if isinstance(record, Mapping) else type(record).__name__
            raise RecordError(f"analysis record: expected schema {SCHEMA}, got {found!r}")
        known = {entry.name for entry in fields(cls)}
        values = {key: value for key, value in record.items() if key in known}
        try:
            values["estimate"] = _number(values["estimate"])
            values["interval"] = _pair(values["interval"])
            values["contrasts"] = tuple(
                Contrast(**{**entry, **_numbers(entry, ("start", "end", "effect", "low", "high"))})
                for entry in values.get("contrasts", ())
            )
            values["refutations"] = tuple(
                Refutation(
                    **{**entry, **_numbers(entry, ("estimate", "refuted_effect", "low", "high"))}
                )
                for entry in values.get("refutations", ())
            )
            values["findings"] = tuple(
                Finding(**{**entry, **_numbers(entry, ("effect", "low", "high"))})
                for entry in values.get("findings", ())
            )
            values["independencies"] = tuple(
                Independence(**{**entry, "given": tuple(entry["given"])})
                for entry in values.get("independencies", ())
            )
            values["edges"] = tuple((str(a), str(b)) for a, b in values.get("edges", ()))
            for key in ("nodes", "constant_nodes", "adjustment", "design_covariates", "notes"):
                values[key] = tuple(values.get(key, ()))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"analysis record: broken or incomplete ({error!r})") from error

    @classmethod
    def from_json(cls, text: str) -> AnalysisResult:
        """Rebuild a result from `to_json`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise RecordError(f"analysis record: not JSON ({error})") from error

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all."""
        return _write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> AnalysisResult:
        """Read what `save` wrote."""
        return cls.from_dict(read_json(path))


def save_analyses(results: Iterable[AnalysisResult], path: str | Path) -> Path:
    """Write several results into one JSON file (``analysis.json`` of a run).

    Parameters
    ----------
    results : iterable of AnalysisResult
        Kept in order.
    path : str or Path
        Replaced whole, by way of a temporary file beside it.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from causalprune.analysis import AnalysisResult, load_analyses, save_analyses
    >>> result = AnalysisResult("default", "ratio", "accuracy_loss", 0.02, (0.01, 0.03))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_analyses([result], pathlib.Path(folder) / "analysis.json")
    ...     load_analyses(path) == (result,)
    True
    """
    record = {"schema": SCHEMA, "analyses": [result.to_dict() for result in results]}
    return _write(path, json.dumps(record, indent=2, allow_nan=False))


def load_analyses(path: str | Path) -> tuple[AnalysisResult, ...]:
    """Read the results of `save_analyses`, or the single one of `AnalysisResult.save`.

    Raises
    ------
    RecordError
        The file is missing, is not JSON or holds something else.
    """
    record = read_json(path)
    if "analyses" in record:
        return tuple(AnalysisResult.from_dict(entry) for entry in record["analyses"])
    return (AnalysisResult.from_dict(record),)


def _write(path: str | Path, text: str) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, text)
    return target


def plain_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: Any) -> float:
    # math.nan itself, so that a result equals its own round trip.
    return math.nan if value is None else float(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return _number(low), _number(high)


def _numbers(entry: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    return {key: _number(entry[key]) for key in keys if key in entry}
