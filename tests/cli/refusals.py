"""What the tests of the commands share."""

from __future__ import annotations

from typer.testing import Result


def refusal(result: Result) -> str:
    """Return the one line that a refused command prints; no traceback, exit code 2."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.splitlines()
    assert len(lines) == 1 and lines[0].startswith("causalprune: "), result.output
    return lines[0]
