"""Operators against the limits of the machine: ``python roofline.py [--layer PART] [--draw]``.

Writes benchmarks/results/roofline.{json,md,png}; ``--draw`` makes the picture and the table from
the JSON that is there. How work and traffic are counted is said in roofline_points.py and repeated
in the table. One thread, its CPU time, the fastest of several rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import roofline_points
from roofline_points import (
    ALL,
    FORWARD,
    IMAGES,
    LARGEST,
    MEAN,
    ONE,
    SPARSE,
    UPDATE,
    Ceiling,
    Point,
    ceilings,
    points,
)

import causalprune as cp
from causalprune.measures.convolution_layers import LAYERS
from causalprune.reports.style import ACCENT, INK, MUTED, SETTINGS, WARM

RESULTS = Path(__file__).parents[1] / "results"
PANELS = (FORWARD, SPARSE, ONE, ALL, MEAN, LARGEST, UPDATE)
LEAST_GFLOPS = 16.0
KERNELS = {layer.name: layer.kernel for layer in LAYERS}
OFFSETS = [(x, y) for r in (9, 15, 22, 30) for x, y in ((r, 0), (0, r), (-r, 0), (0, -r), (r, r),
           (-r, r), (r, -r), (-r, -r))]  # fmt: skip


def provenance() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=RESULTS, capture_output=True, text=True
    ).stdout.strip()
    facts = cp.info()
    return (
        f"Commit {commit}, {facts['machine']['name']}, {facts['isa']}, "
        f"{facts['build']['compiler']}, torch {facts['versions']['torch']}, CPU time of one thread."
    )


# ---- the table -----------------------------------------------------------------------------------


def table(limits: Sequence[Ceiling], found: Sequence[Point], origin: str) -> str:
    told = (roofline_points.__doc__ or "").partition("\n\n")[2].strip()
    peak = limits[0].rate
    lines = [
        "# Roofline",
        "",
        f"Limits of one thread, and {IMAGES} images of each layer against them. In brackets how "
        "much longer the median round took than the fastest, whose figure is given.",
        origin,
        "",
        "![Achieved GFLOP/s against operations a byte](roofline.png)",
        "",
        "| limit | best | median below it by |",
        "|---|---|---|",
    ]
    for limit in limits:
        unit = "GFLOP/s" if limit is limits[0] else "GB/s"
        lines.append(f"| {limit.name} | {limit.rate:.0f} {unit} | {limit.spread:.0%} |")
    lines += [
        "",
        told,
        "",
        "| layer | operator | ms | operations a byte | GFLOP/s | of multiply-adds |",
        "|---|---|---|---|---|---|",
    ]
    for p in found:
        lines.append(
            f"| {p.layer} | {p.operator} | {1e3 * p.seconds:.3f} ({p.spread:.0%}) "
            f"| {p.intensity:.1f} | {p.gflops:.1f} | {p.gflops / peak:.0%} |"
        )
    return "\n".join(lines) + "\n"


# ---- the picture ---------------------------------------------------------------------------------


def picture(limits: Sequence[Ceiling], found: Sequence[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    layers = list(dict.fromkeys(point.layer for point in found))
    with matplotlib.rc_context(SETTINGS):
        figure, grid = pyplot.subplots(4, 2, figsize=(9, 13), layout="constrained")
        panels = list(zip(grid.flat, PANELS, strict=False))
        left = min(p.intensity for p in found) / 2
        right = max(p.intensity for p in found) * 2
        for axis, operator in panels:
            shown = [point for point in found if point.operator == operator]
            low = min(p.gflops for p in shown)
            # The same height for all but those that lie far below.
            _roofs(axis, limits, (left, right), low / 2 if low < LEAST_GFLOPS else LEAST_GFLOPS)
            for marker, colour, kernel in (("o", ACCENT, 3), ("s", WARM, 1)):
                own = [p for p in shown if KERNELS.get(p.layer) == kernel]
                place = [p.intensity for p in own], [p.gflops for p in own]
                axis.plot(*place, marker, color=colour, markersize=6)
            axis.set_title(operator)
            axis.set_xlabel("operations a byte")
            axis.set_ylabel("GFLOP/s")
        _legend(grid[3, 1], limits, layers)
        figure.canvas.draw()
        for axis, operator in panels:
            _number(axis, [p for p in found if p.operator == operator], layers)
        figure.savefig(path, dpi=150, facecolor="white")


def _roofs(axis: Any, limits: Sequence[Ceiling], width: tuple[float, float], low: float) -> None:
    """Scales, the diagonals of reading and the ceiling of multiply-adds."""
    peak, *reads = limits
    left, right = width
    for scaled, ends in ((axis.xaxis, width), (axis.yaxis, (low, 1.6 * peak.rate))):
        first, last = (math.log2(end) for end in ends)
        step = 2 if last - first > 6 else 1
        ticks = [2.0**power for power in range(math.ceil(first), math.floor(last) + 1, step)]
        scaled.axes.set(**{f"{scaled.axis_name}scale": "log", f"{scaled.axis_name}lim": ends})
        scaled.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        scaled.set_ticks([], minor=True)
    ridge = peak.rate / max(read.rate for read in reads)
    axis.plot([ridge, right], [peak.rate] * 2, color=INK, linewidth=1.4)
    axis.text(left * 1.1, peak.rate * 1.06, f"{peak.rate:.0f} GFLOP/s", color=INK, fontsize=9)
    for read in reads:
        ends = [max(left, low / read.rate), peak.rate / read.rate]
        axis.plot(ends, [read.rate * end for end in ends], color=MUTED, linewidth=1.0)


def _legend(axis: Any, limits: Sequence[Ceiling], layers: Sequence[str]) -> None:
    lines: list[tuple[str, str]] = []
    for kernel, shape, colour in ((3, "circles", ACCENT), (1, "squares", WARM)):
        lines.append((f"{kernel}x{kernel} layers ({shape})", colour))
        for number, name in enumerate(layers, 1):
            if KERNELS.get(name) == kernel:
                lines.append((f"{number}  {name}", colour))
        lines.append(("", colour))
    lines.append(("diagonals, from the left", MUTED))
    lines += [(f"{limit.name}: {limit.rate:.0f} GB/s", MUTED) for limit in limits[1:]]
    axis.axis("off")
    for number, (line, colour) in enumerate(lines):
        height = 1 - number / len(lines)
        axis.text(0, height, line, transform=axis.transAxes, va="top", color=colour, fontsize=9.5)


def _number(axis: Any, shown: Sequence[Point], layers: Sequence[str]) -> None:
    """Write each point's number where it covers neither a point nor another number."""
    places = [axis.transData.transform((p.intensity, p.gflops)) for p in shown]
    scale = axis.figure.dpi / 72
    taken: list[tuple[float, float]] = [tuple(place) for place in places]
    for point, (x, y) in zip(shown, places, strict=True):
        free = (
            (dx, dy)
            for dx, dy in OFFSETS
            if all(
                abs(x + dx * scale - a) > 9 * scale or abs(y + dy * scale - b) > 9 * scale
                for a, b in taken
            )
        )
        dx, dy = next(free, OFFSETS[0])
        taken.append((x + dx * scale, y + dy * scale))
        far = max(abs(dx), abs(dy)) > 9
        axis.annotate(
            str(layers.index(point.layer) + 1),
            (point.intensity, point.gflops),
            (dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            color=INK,
            bbox={"boxstyle": "square,pad=0.1", "color": "white"},
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if far else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layer", default="", help="only layers whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.4, help="for a layer's operators")
    parser.add_argument("--draw", action="store_true", help="measure nothing, read the JSON")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args()
    record_path = given.out / "roofline.json"
    if given.draw:
        record = json.loads(record_path.read_text())
        limits = [Ceiling(**each) for each in record["ceilings"]]
        found = [Point(**each) for each in record["points"]]
    else:
        limits = ceilings()
        found = points([layer for layer in LAYERS if given.layer in layer.name], given.seconds)
        record = {
            "provenance": provenance(),
            "info": cp.info(),
            "ceilings": [asdict(limit) for limit in limits],
            "points": [asdict(point) for point in found],
        }
        record_path.write_text(json.dumps(record, indent=1) + "\n")
    text = table(limits, found, record["provenance"])
    (given.out / "roofline.md").write_text(text)
    picture(limits, found, given.out / "roofline.png")
    print(text)


if __name__ == "__main__":
    main()
