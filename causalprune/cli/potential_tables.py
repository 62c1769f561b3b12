"""A study's prune potentials as tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from causalprune.experiments.study_measures import StudyPotentials

__all__ = ["potential_tables"]

_LEGEND = (
    "Largest per cent of the parameters that can go while the error rises by {delta:g} points at "
    "the most over that of the whole network retrained as long: mean ± sd over {networks}, and "
    "{level:.0%} interval (Student's t, each row by itself). 'fall': plain less shifted images, "
    "the same network; * where its interval excludes 0. The ratios are a grid: an interval of no "
    "width says that all networks agree on it. {signs}"
)


def potential_tables(found: StudyPotentials) -> Iterator[Table | str]:
    """Lay out potentials by method and shift, then weights less filters, within 80 columns."""
    for (network, data), own in found.summary.groupby(["architecture", "dataset"], sort=False):
        title = f"prune potential, {escape(str(network))} on {escape(str(data))}"
        yield _table(title, own.to_dict("records"))
        place = found.weights_minus_filters
        place = place[(place["architecture"] == network) & (place["dataset"] == data)]
        if len(place):
            yield _differences(place.to_dict("records"))
    count = int(found.summary["n"].max())
    signs = f"No test by signs has a p-value below {2.0 ** (1 - count):g} here."
    yield _LEGEND.format(
        delta=100 * found.delta,
        level=found.level,
        networks=f"{count} networks" if count > 1 else "a single network (no intervals)",
        signs=signs if count > 1 else "",
    )


def _table(title: str, rows: list[dict[Any, Any]]) -> Table:
    table = _empty(title, "method", "shift", "potential", "interval", "fall", "interval")
    last = None
    for row in rows:
        if last not in (None, row["method"]):
            table.add_section()
        fall = _spread(row["fall"], row["fall_sd"], "+")
        table.add_row(
            escape(row["method"]) if row["method"] != last else "",
            escape(row["shift"]) if row["shift"] != "none" else "plain images",
            _spread(row["mean"], row["sd"]),
            _span(row["low"], row["high"]),
            fall + _mark(row["fall_low"], row["fall_high"]),
            _span(row["fall_low"], row["fall_high"], "+"),
        )
        last = row["method"]
    return table


def _differences(rows: list[dict[Any, Any]]) -> Table:
    table = _empty("potential of single weights less units", "shift", "mean", "interval")
    for row in rows:
        table.add_row(
            escape(row["shift"]) if row["shift"] != "none" else "plain images",
            _spread(row["mean"], row["sd"], "+") + _mark(row["low"], row["high"]),
            _span(row["low"], row["high"], "+"),
        )
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(
            name, justify="left" if name in ("method", "shift") else "right", no_wrap=True
        )
    return table


def _spread(mean: float, sd: float, mark: str = "") -> str:
    if math.isnan(mean):
        return ""
    return f"{_percent(mean, mark)} ± {_percent(sd)}" if math.isfinite(sd) else _percent(mean, mark)


def _span(low: float, high: float, mark: str = "") -> str:
    return "" if math.isnan(low) else f"{_percent(low, mark)} to {_percent(high, mark)}"


def _mark(low: float, high: float) -> str:
    return "*" if low > 0 or high < 0 else " "


def _percent(value: float, mark: str = "") -> str:
    return f"{round(100 * value):{mark}d}"
