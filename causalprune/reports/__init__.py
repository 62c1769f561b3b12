"""The report of a run: figures and one self-contained HTML page.

Reads records, never a network: nothing here imports torch, and matplotlib and
jinja2 are imported by the functions that use them.
"""

from __future__ import annotations

from causalprune.reports.page import report

__all__ = ["report"]
