"""The DoWhy part: graph in, identified estimand, estimate and refuters out.

Every call gets its own copy of the frame: DoWhy's estimators may add columns to
the frame they are given and read them back later, which makes a refuter compare
an estimate with itself (p = 1.0). Random states are objects, not integers: the
subset refuter would draw the *same* subset in every simulation from an integer.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from causalprune.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    import networkx as nx

__all__: list[str] = []

METHOD = "backdoor.linear_regression"


@dataclass(frozen=True)
class Identified:
    """A DoWhy model with its identified estimand.

    Attributes
    ----------
    model, estimand : object
        `dowhy.CausalModel` and `dowhy.causal_identifier.IdentifiedEstimand`.
    adjustment : tuple of str
        Columns of the backdoor set.
    """

    model: Any
    estimand: Any
    adjustment: tuple[str, ...]


@contextmanager
def quiet_dowhy() -> Iterator[None]:
    """Silence DoWhy's logging and the deprecation warnings of what it imports."""
    logger = logging.getLogger("dowhy")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def kept_display() -> Iterator[None]:
    """Keep how the interpreter prints: importing DoWhy, or EconML, switches it to sympy's."""
    display = sys.displayhook
    try:
        yield
    finally:
        sys.displayhook = display


def import_dowhy() -> Any:
    """Import DoWhy where it is needed: it takes seconds."""
    with quiet_dowhy(), kept_display():
        try:
            importlib.import_module("dowhy.causal_refuters")
            return importlib.import_module("dowhy")
        except ImportError as error:
            raise MissingDependencyError(
                "causal analysis needs DoWhy; install the extra: "
                f"pip install 'causalprune[analysis]' ({error})"
            ) from error


def identify(frame: pd.DataFrame, graph: nx.DiGraph, treatment: str, outcome: str) -> Identified:
    """Identify the total effect of `treatment` on `outcome` by DoWhy's backdoor criterion."""
    dowhy = import_dowhy()
    import networkx as nx

    if treatment not in graph or not nx.has_path(graph, treatment, outcome):
        raise InvalidArgumentError(
            f"treatment: expected a cause of {outcome!r} in the graph, got {treatment!r}; "
            f"causes: {', '.join(sorted(nx.ancestors(graph, outcome)))}"
        )
    with quiet_dowhy():
        model = dowhy.CausalModel(
            data=frame.copy(deep=True), treatment=treatment, outcome=outcome, graph=graph
        )
        estimand = model.identify_effect(proceed_when_unidentifiable=True)
        if estimand.estimands.get("backdoor") is None:
            raise InvalidArgumentError(
                f"treatment: no backdoor set for {treatment} -> {outcome} in this graph"
            )
        estimand.set_identifier_method("backdoor")
        adjustment = tuple(sorted(estimand.get_backdoor_variables()))
    return Identified(model, estimand, adjustment)


def with_columns(identified: Identified, columns: Sequence[str]) -> Any:
    """Return the estimand with its adjustment set written as these (one-hot) columns."""
    estimand = copy.deepcopy(identified.estimand)
    estimand.set_adjustment_set(list(columns))
    return estimand


def estimate(
    frame: pd.DataFrame,
    identified: Identified,
    estimand: Any,
    *,
    step: float = 1.0,
    intervals: bool = False,
) -> Any:
    """Run ``backdoor.linear_regression`` for treatment 0 -> `step` on a copy of the frame.

    Effect modifiers are empty on purpose: DoWhy would take every other cause of the
    outcome for one and report an average over interactions instead of the slope.
    """
    with quiet_dowhy():
        from dowhy.causal_estimator import estimate_effect
        from dowhy.causal_estimators.linear_regression_estimator import LinearRegressionEstimator

        estimator = LinearRegressionEstimator(estimand, confidence_intervals=intervals)
        return estimate_effect(
            data=frame.copy(deep=True),
            treatment=estimand.treatment_variable,
            outcome=estimand.outcome_variable,
            identifier_name="backdoor",
            estimator=estimator,
            control_value=0.0,
            treatment_value=step,
            effect_modifiers=[],
            method_params={},
        )


def refit(frame: pd.DataFrame, estimand: Any, fitted: Any) -> float:
    """Estimate the same effect with a fresh estimator on another frame."""
    with quiet_dowhy():
        estimator = fitted.estimator.get_new_estimator_object(estimand)
        estimator.fit(frame, effect_modifier_names=[])
        again = estimator.estimate_effect(
            frame, control_value=fitted.control_value, treatment_value=fitted.treatment_value
        )
    return float(again.value)


def random_common_cause(
    frame: pd.DataFrame, estimand: Any, fitted: Any, seed: int, simulations: int
) -> Any:
    """DoWhy's refuter: add a standard normal covariate and estimate again."""
    return _run("refute_random_common_cause", frame, estimand, fitted, seed, simulations)


def data_subset(
    frame: pd.DataFrame, estimand: Any, fitted: Any, seed: int, simulations: int
) -> Any:
    """DoWhy's refuter: estimate again on a random 80 % of the rows."""
    return _run("refute_data_subset", frame, estimand, fitted, seed, simulations)


def placebo_treatment(
    frame: pd.DataFrame, estimand: Any, fitted: Any, seed: int, simulations: int
) -> Any:
    """DoWhy's refuter: permute the treatment over the rows and estimate again.

    Permuted, because DoWhy's other placebo ignores the random state and, for a
    continuous treatment, is a column of zeros.
    """
    from dowhy.causal_refuters.placebo_treatment_refuter import PlaceboType

    return _run(
        "refute_placebo_treatment",
        frame,
        estimand,
        fitted,
        seed,
        simulations,
        treatment_names=list(estimand.treatment_variable),
        placebo_type=PlaceboType.PERMUTE,
    )


def _run(
    name: str,
    frame: pd.DataFrame,
    estimand: Any,
    fitted: Any,
    seed: int,
    simulations: int,
    **extra: Any,
) -> Any:
    with quiet_dowhy():
        refuter: Callable[..., Any] = getattr(
            importlib.import_module("dowhy.causal_refuters"), name
        )
        return refuter(
            frame.copy(deep=True),
            copy.deepcopy(estimand),
            fitted,
            num_simulations=simulations,
            random_state=np.random.RandomState(seed),
            show_progress_bar=False,
            n_jobs=1,
            **extra,
        )
