"""An image of a class beside the map of what in it speaks for the class and against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from causalprune.reports import style
from causalprune.reports.numbers import listed, signed
from causalprune.reports.score_tables import Picture, Values
from causalprune.reports.style import Drawing

DOWN = ("top", "middle", "bottom")
ACROSS = ("left", "centre", "right")
WIDTH = 4.2
FAINT = 0.3
"""How much of the image's contrast stays behind a map."""


def example_picture(picture: Picture) -> Drawing:
    """Draw the image, and its map over a faint copy of it: blue for the class, orange against."""
    mapped = bool(np.isfinite(picture.map).all())
    top = float(np.abs(picture.map).max()) or 1.0 if mapped else 1.0
    height, width = picture.map.shape
    tall = min(1.6, max(0.5, height / width)) * 1.9
    rows = regions(picture) if mapped else []

    def paint(figure: Any) -> None:
        whole = tall + (1.05 if mapped else 0.4)
        left = figure.add_axes((0.01, 1 - (tall + 0.32) / whole, 0.48, tall / whole))
        left.imshow(picture.pixels, interpolation="none")
        left.set_title("image", fontsize=10, fontweight="normal")
        axes = [left]
        if mapped:
            right = figure.add_axes((0.51, 1 - (tall + 0.32) / whole, 0.48, tall / whole))
            right.imshow(_overlaid(picture, top), interpolation="none")
            right.set_title("map over it", fontsize=10, fontweight="normal")
            axes.append(right)
            _legend(figure, picture, top, whole)
        for each in axes:
            each.set_xticks([])
            each.set_yticks([])
            each.grid(False)
            for side in each.spines.values():
                side.set_visible(True)
                side.set_color(style.GRID)

    svg = style.draw(
        WIDTH,
        tall + (1.05 if mapped else 0.4),
        paint,
        title=f"An image of class {picture.target} and where the kept units find the class in it"
        if mapped
        else f"An image of class {picture.target}",
        description=_told(picture, rows),
        layout="none",
    )
    told_rows = tuple(
        (name, down, across, f"{value:+.3g}".replace("-", "\N{MINUS SIGN}"))
        for name, down, across, value in rows
    )
    return Drawing(svg, ("part of the image", "rows", "columns", "logit"), told_rows)


def regions(picture: Picture) -> list[tuple[str, str, str, float]]:
    """Name, rows, columns and sum of the map of nine parts of an image, largest first."""
    found = []
    for down, rows in zip(DOWN, np.array_split(np.arange(len(picture.map)), 3), strict=True):
        parts = np.array_split(np.arange(picture.map.shape[1]), 3)
        for across, columns in zip(ACROSS, parts, strict=True):
            name = "centre" if (down, across) == ("middle", "centre") else f"{down} {across}"
            value = float(picture.map[np.ix_(rows, columns)].sum())
            found.append((name, _span(rows), _span(columns), value))
    return sorted(found, key=lambda part: -abs(part[3]))


def _span(places: Values) -> str:
    if not len(places):
        return "none"
    return f"{places[0] + 1} to {places[-1] + 1}"


def _told(picture: Picture, rows: list[tuple[str, str, str, float]]) -> str:
    size = f"{picture.map.shape[1]} by {picture.map.shape[0]} pixels"
    start = f"An image of {size}, whose logit for class {picture.target} is {picture.logit:.3g}."
    if not rows:
        return start
    total = sum(value for *_, value in rows)
    told = [f"{name} ({signed(value, 2)})" for name, _, _, value in rows if value > 0][:3]
    against = [f"{name} ({signed(value, 2)})" for name, _, _, value in rows if value < 0][:2]
    return (
        f"{start} What the kept units read in it comes to {signed(total, 2)} logits"
        + (f", most of all at the {listed(told)}" if told else "")
        + (f"; against the class speaks the {listed(against)}" if against else "")
        + "."
    )


def _colour(text: str) -> Values:
    return np.array([int(text[k : k + 2], 16) for k in (1, 3, 5)]) / 255


def _coloured(values: Values, top: float) -> tuple[Values, Values]:
    """Colour [..., 3] and opacity [..., 1] of values between -top and top."""
    colours = np.where(values[..., None] > 0, _colour(style.ACCENT), _colour(style.WARM))
    return colours, (np.abs(values) / top)[..., None]


def _overlaid(picture: Picture, top: float) -> Values:
    grey = picture.pixels.astype(float).mean(2, keepdims=True) / 255
    base = (1 - FAINT) + FAINT * grey
    colours, opacity = _coloured(picture.map, top)
    blended: Values = opacity * colours + (1 - opacity) * base
    return blended.clip(0, 1)


def _legend(figure: Any, picture: Picture, top: float, whole: float) -> None:
    axes = figure.add_axes((0.25, 0.36 / whole, 0.5, 0.13 / whole))
    values = np.linspace(-top, top, 101)[None]
    colours, opacity = _coloured(values, top)
    axes.imshow(opacity * colours + (1 - opacity), aspect="auto", interpolation="none",
                extent=(-1, 1, 0, 1))  # fmt: skip
    axes.set_yticks([])
    axes.grid(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks([-1, 0, 1], [signed(-top, _digits(top)), "0", f"+{top:.{_digits(top)}f}"])
    axes.set_xlabel("logit a pixel", fontsize=9, labelpad=1)
    middle = 0.36 / whole + 0.065 / whole
    figure.text(0.235, middle, "against it", ha="right", va="center", fontsize=9.5)
    figure.text(0.765, middle, f"for class {picture.target}", va="center", fontsize=9.5)


def _digits(top: float) -> int:
    return int(max(0, 1 - np.floor(np.log10(top))))
