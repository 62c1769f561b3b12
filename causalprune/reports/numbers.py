"""Numbers as a reader takes them: signs, shares, points, sizes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from causalprune.analysis.wording import DASH, MINUS

KIB = 1024.0

__all__ = ["KIB", "count", "half_width", "listed", "points", "share", "signed"]


def signed(value: float, digits: int) -> str:
    """Return a number with a true minus sign and no negative zero."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def points(value: float, digits: int = 1) -> str:
    """Return a fraction as percentage points."""
    return signed(100 * value, digits)


def share(value: float, digits: int = 0) -> str:
    """Return a fraction in percent."""
    return f"{signed(100 * value, digits)} %" if math.isfinite(value) else DASH


def count(number: int, noun: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> count(1, "trial"), count(1200, "trial")
    ('1 trial', '1,200 trials')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(parts: list[str]) -> str:
    """Join with commas and a last "and".

    Examples
    --------
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def half_width(values: pd.Series[float]) -> float:
    """Half of the 95 % t-interval of a mean; NaN for fewer than two values."""
    from scipy.stats import t

    n = int(values.notna().sum())
    if n < 2:
        return float("nan")
    return float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
