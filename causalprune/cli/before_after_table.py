"""A network and its pruned copy as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from causalprune.experiments.before_after import BeforeAfter, Share

__all__ = ["before_after_table"]


def before_after_table(compared: BeforeAfter) -> Table:
    """Lay out sizes, latency and accuracy of both networks, within 80 columns."""
    title = "one image; median over quartiles"
    if compared.change is not None:
        title += f", accuracy over {compared.confidence:.0%} interval"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    before, after = compared.before, compared.after
    sizes = {
        "parameters": (before.parameters, after.parameters),
        "MACs": (before.macs, after.macs),
        "bytes": (before.bytes, after.bytes),
        "activation bytes": (before.activation_bytes, after.activation_bytes),
    }
    for name, (first, second) in sizes.items():
        table.add_row(name, f"{first:,}", f"{second:,}", f"{second / first - 1:+.1%}")
    old, new = before.latency, after.latency
    times = [f"{t.median_ms:.2f} ms\n{t.q25_ms:.2f} to {t.q75_ms:.2f}" for t in (old, new)]
    table.add_row("latency", *times, f"{new.median_ms / old.median_ms - 1:+.1%}")
    shares = (before.accuracy, after.accuracy, compared.change)
    if before.accuracy is not None:
        name = f"accuracy\non {before.accuracy.n:,} images"
        marks = ("", "", "+")
        table.add_row(name, *(_percent(s, m) for s, m in zip(shares, marks, strict=True) if s))
    return table


def _percent(share: Share, mark: str) -> str:
    value, low, high = (f"{100 * part:{mark}.1f}" for part in (share.value, share.low, share.high))
    return f"{value} %\n{low} to {high}"
